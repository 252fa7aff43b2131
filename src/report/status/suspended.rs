//! What is said of suspended archiving: that it lasts, or what it has cost.

use super::{Seen, Status, Suspension};
use crate::{
    human,
    report::words,
    repository::{GapNote, Suspended},
};

const RESUME: &str = "as soon as there is room: walden wal resume, which takes a backup";

impl Status {
    pub(super) fn suspensions(&mut self, seen: &Seen<'_>) {
        let here = seen.suspended.as_ref().ok();
        let current = here.and_then(|here| here.current.as_ref());
        let noted = seen.systems.last().map_or(&[][..], |system| &system.suspensions);
        let open = noted.iter().rfind(|note| note.suspended.resumed.is_none());
        if let Err(not) = &seen.suspended
            && not.tried
        {
            self.notes.push(format!("whether archiving is suspended cannot be told from here: {}", not.why));
        }
        match (current, here, open) {
            (Some((by, skipped)), ..) => self.suspended_now(Suspension {
                by: by.clone(),
                skipped: Some(skipped.len()),
                first: skipped.iter().min().copied(),
                last: skipped.iter().max().copied(),
            }),
            // This host knows better than the repository.
            (None, Some(_), _) => self.suspended = Some(false),
            (None, None, Some(open)) => {
                self.suspended_now(Suspension { by: open.suspended.clone(), skipped: None, first: None, last: None })
            }
            (None, None, None) => self.suspended = seen.unreachable.is_none().then_some(false),
        }
        for (by, skipped) in here.iter().flat_map(|here| &here.not_noted) {
            self.not_noted(by, skipped.len());
        }
        for note in noted.iter().filter(|note| !note.missing.is_empty()) {
            self.let_go(note, seen);
        }
    }

    fn suspended_now(&mut self, suspension: Suspension) {
        let what = match (suspension.skipped, suspension.first, suspension.last) {
            (Some(0), ..) => "; no segment was let go yet".to_owned(),
            (Some(skipped), Some(first), Some(last)) => {
                format!("; {skipped} segments are stored nowhere, {first} to {last}")
            }
            _ => String::new(),
        };
        self.concern(format!("{}{what}", suspension.by), RESUME);
        (self.suspended, self.suspension) = (Some(true), Some(suspension));
    }

    fn not_noted(&mut self, by: &Suspended, skipped: usize) {
        self.concern(
            format!("{by}; {skipped} segments were let go, which the repository does not know yet"),
            "walden wal resume, again: it does what was left to do, and takes a backup",
        );
    }

    /// A gap that a person made. What lies behind it can be recovered once a backup was taken there.
    fn let_go(&mut self, note: &GapNote, seen: &Seen<'_>) {
        let backups = seen.systems.last().map(|system| system.backups()).unwrap_or_default();
        let behind = backups.iter().any(|b| b.broken.is_none() && note.to.is_some_and(|to| b.start_lsn >= to));
        let what = words::suspension(note);
        if behind {
            let known = self.notes.iter().any(|known| known.contains(&note.suspended.to_string()));
            if !known {
                self.notes.push(what);
            }
        } else {
            let from = note.suspended.resumed.map(human::time).unwrap_or_default();
            self.concern(
                format!("{what}; no backup was taken since it was resumed ({from})"),
                "nothing behind it can be recovered until there is one: walden backup",
            );
        }
    }
}
