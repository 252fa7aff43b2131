//! Sentences about windows: the same in every place that tells them.

use chrono::{DateTime, Utc};

use super::escape::plain;
use crate::{
    human,
    plan::window::{Fork, Gap, Timeline, Window, WindowEnd},
    repository::GapNote,
};

/// How long ago `then` was, as far as the clocks agree.
#[must_use]
pub fn ago(then: DateTime<Utc>, now: DateTime<Utc>) -> String {
    human::duration((now - then).to_std().unwrap_or_default())
}

/// `from 2026-11-21 01:45:12 UTC to 2026-11-21 09:58:03 UTC`.
#[must_use]
pub fn window(window: &Window) -> String {
    let from = window.from.time.map_or_else(|| window.from.lsn.to_string(), human::time);
    match window.to.time {
        Some(to) => format!("from {from} to {}", human::time(to)),
        None if window.unread => format!("from {from} up to {}", window.to.lsn),
        None => format!("at {from} (nothing was committed since)"),
    }
}

/// What can be recovered along a timeline, in one line.
#[must_use]
pub fn recoverable(timeline: &Timeline, now: DateTime<Utc>) -> String {
    let Some(last) = timeline.windows.last() else {
        return match &timeline.lost_history {
            Some(lost) => format!("nothing can be recovered: {lost}"),
            None if timeline.backups.is_empty() => "nothing can be recovered: there is no backup".into(),
            None => "nothing can be recovered: no backup has the WAL that it needs".into(),
        };
    };
    let all: Vec<String> = timeline.windows.iter().map(window).collect();
    let age = match last.to.time {
        Some(to) if !timeline.live => format!("its last commit is {} old", ago(to, now)),
        _ => age(last, now),
    };
    let pieces = pieces(last).map_or_else(String::new, |pieces| format!(", {pieces}"));
    format!("recoverable {}{pieces}; {age}", all.join(", and "))
}

/// `up to 0/3A01B28, the last 107304 bytes from pieces`, of a window that ends in a segment which is not whole.
#[must_use]
pub fn pieces(window: &Window) -> Option<String> {
    let said = || format!("up to {}, the last {} bytes from pieces", window.to.lsn, window.from_pieces);
    (window.from_pieces > 0).then(said)
}

/// How old the end of the last window is.
#[must_use]
pub fn age(window: &Window, now: DateTime<Utc>) -> String {
    match (window.to.time, &window.end) {
        (Some(to), WindowEnd::Archive) => format!("the last archived commit is {} old", ago(to, now)),
        (Some(to), _) => format!("the last commit that can be reached is {} old", ago(to, now)),
        (None, _) => match window.from.time {
            Some(from) => format!("the backup is {} old", ago(from, now)),
            None => "no time is known".into(),
        },
    }
}

/// `3 segments are missing, 000000010000000000000004 to 000000010000000000000006`.
#[must_use]
pub fn missing(gap: &Gap) -> String {
    let why = gap.suspended.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
    match gap.segments {
        1 => format!("segment {} is missing{why}", gap.first),
        many => format!("{many} segments are missing, {} to {}{why}", gap.first, gap.last),
    }
}

/// Why a window goes no further, when that is not simply the end of the archive.
#[must_use]
pub fn end(end: &WindowEnd) -> Option<String> {
    Some(match end {
        WindowEnd::Archive => return None,
        WindowEnd::Missing { segment, suspended: None } => format!("segment {segment} is missing"),
        WindowEnd::Missing { segment, suspended: Some(why) } => format!("segment {segment} is missing: {why}"),
        WindowEnd::Damaged { segment, what } => format!("segment {segment} is damaged: {what}"),
        WindowEnd::Pieces { what, .. } => what.clone(),
        WindowEnd::Minimal { at } => format!("at {at} the server was started with wal_level = minimal"),
        WindowEnd::Broken { at, what } => format!("the WAL cannot be read at {at}: {what}"),
    })
}

/// Where a timeline comes from.
#[must_use]
pub fn fork(fork: &Fork) -> String {
    let when = fork.left.map_or_else(String::new, |left| format!(", {}", human::time(left)));
    let why = if fork.reason.is_empty() { String::new() } else { format!(" ({})", plain(&fork.reason)) };
    format!("forked from timeline {} at {}{when}{why}", fork.parent, fork.lsn)
}

/// What was, or is, let go and why, in one line.
#[must_use]
pub fn suspension(note: &GapNote) -> String {
    match (note.from, note.to) {
        (Some(from), Some(to)) => format!("nothing from {from} to {to} is archived: {}", note.suspended),
        (Some(from), None) => format!("what came after {from} is not archived: {}", note.suspended),
        _ => note.suspended.to_string(),
    }
}
