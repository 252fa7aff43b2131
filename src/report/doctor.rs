//! What is well today and will not be on the day of need, each with its mend: the backup that is too old, the restore
//! that was never tried, the password that everybody can read. Pure: what is known comes in.
//!
//! Each rule is a small function that looks at one thing. To add one: write it, and name it in [`RULES`].

use std::{path::PathBuf, time::Duration};

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::{
    config::{GoalsConfig, KeepConfig},
    human,
    plan::window::Timelines,
    repository::KitNote,
    seal::age::Recipients,
};

/// Something to do before the day of need.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Advice {
    /// What was looked at; the same name in every version.
    pub name: &'static str,
    /// What it is.
    pub what: String,
    /// What to do.
    pub mend: String,
    /// Whether it needs a person now.
    pub grave: bool,
}

/// What is known; what is none is not, and is not judged.
#[derive(Debug)]
pub struct Known<'a> {
    /// What the owner wants.
    pub goals: &'a GoalsConfig,
    /// What is to be kept.
    pub keep: &'a KeepConfig,
    /// For how long each repository locks objects that does, by the name of its table.
    pub locks: Vec<(String, Duration)>,
    /// The newest system in the repository.
    pub system: Option<&'a Timelines>,
    /// When a restore was done last, of those that are on record.
    pub restored: Option<Option<DateTime<Utc>>>,
    /// The server's `archive_timeout`; zero when it is off.
    pub archive_timeout: Option<Duration>,
    /// Whether somebody receives WAL from the server as it is written, by the slot of `[receive]`.
    pub received: bool,
    /// The identity file, where it lies on the host of the data directory.
    pub identity: Option<PathBuf>,
    /// To whom new objects are encrypted.
    pub recipients: &'a Recipients,
    /// The newest recovery kit with an identity, else the newest.
    pub kit: Option<Option<KitNote>>,
    /// The configuration file.
    pub file: Option<FileSeen>,
    /// When that was.
    pub now: DateTime<Utc>,
}

/// The configuration file, as others can reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSeen {
    /// Where it is.
    pub path: PathBuf,
    /// Its mode, as `stat` tells it.
    pub mode: u32,
    /// Whether a password stands in it.
    pub secret: bool,
}

/// Looks at one thing; `None` where nothing is to be said.
type Rule = fn(&Known<'_>) -> Option<Advice>;

/// The rules, in the order in which they are told.
const RULES: &[Rule] = &[recent_backup, tried_restore, loss, no_window, no_rules, long_lock, own_identity, kit, modes];

/// Everything that is to be said.
#[must_use]
pub fn judge(known: &Known<'_>) -> Vec<Advice> {
    RULES.iter().filter_map(|rule| rule(known)).collect()
}

fn recent_backup(known: &Known<'_>) -> Option<Advice> {
    let backups = known.system?.backups();
    let usable = backups.iter().filter(|backup| backup.broken.is_none()).map(|backup| backup.stopped).max()?;
    let (age, limit) = (known.since(usable), known.goals.backup_age);
    (age > limit).then(|| Advice {
        name: "recent-backup",
        what: format!(
            "the newest backup that can be used is {} old, more than {}: a recovery would replay all WAL since then",
            human::duration(age),
            human::duration(limit)
        ),
        mend: "walden backup, on a schedule; how old the newest may be is said by backup_age under [goals]".into(),
        grave: true,
    })
}

fn tried_restore(known: &Known<'_>) -> Option<Advice> {
    let oldest = known.system?.backups().iter().map(|backup| backup.stopped).min()?;
    let (restored, limit) = (known.restored?, known.goals.restore_age);
    let what = match restored {
        None => "no restore from this repository is on record: whether one succeeds nobody knows".to_owned(),
        Some(last) if known.since(last) > limit && known.since(oldest) > limit => {
            format!(
                "the last restore on record is {} ago, more than {}",
                human::duration(known.since(last)),
                human::duration(limit)
            )
        }
        Some(_) => return None,
    };
    let mend = "try one into an empty directory: walden restore --to latest --pgdata DIR --clone --start";
    Some(Advice { name: "tried-restore", what, mend: mend.into(), grave: false })
}

fn loss(known: &Known<'_>) -> Option<Advice> {
    let (goal, timeout) = (known.goals.rpo?, known.archive_timeout?);
    if known.received || (!timeout.is_zero() && timeout <= goal) {
        return None;
    }
    let now = match timeout.is_zero() {
        true => "archive_timeout is off, so that a segment waits until it is full".to_owned(),
        false => format!("archive_timeout lets a segment wait {}", human::duration(timeout)),
    };
    let seconds = goal.as_secs().max(1);
    let mend = match goal < Duration::from_secs(30) {
        true => "run walden wal receive, which stores WAL as it is written".to_owned(),
        false => format!(
            "set archive_timeout = {seconds}s in postgresql.conf and reload; or run walden wal receive, which stores WAL as it is written"
        ),
    };
    Some(Advice {
        name: "loss",
        what: format!("at most {} are to be lost (rpo under [goals]), but {now}", human::duration(goal)),
        mend,
        grave: true,
    })
}

fn no_window(known: &Known<'_>) -> Option<Advice> {
    let rules = known.keep.has_rules() && known.keep.window.is_none();
    rules.then(|| Advice {
        name: "no-window",
        what: "[keep] has rules and no window: walden expire leaves of older backups nothing but the instant of each"
            .into(),
        mend: "say for how long every instant is to stay recoverable, such as: window = \"14 d\" under [keep]".into(),
        grave: false,
    })
}

/// After so long whoever has no rules has most likely forgotten them.
const UNRULED: Duration = Duration::from_secs(90 * 86_400);

fn no_rules(known: &Known<'_>) -> Option<Advice> {
    let oldest = known.system?.backups().iter().map(|backup| backup.stopped).min()?;
    let age = known.since(oldest);
    let forgotten = !known.keep.has_rules() && known.keep.window.is_none() && age > UNRULED;
    forgotten.then(|| Advice {
        name: "no-rules",
        what: format!(
            "[keep] has no rules, and the oldest backup is {} old: nothing is ever removed",
            human::duration(age)
        ),
        mend:
            "say what is to be kept under [keep], look at walden expire --dry-run, and put walden expire on a schedule"
                .into(),
        grave: false,
    })
}

fn long_lock(known: &Known<'_>) -> Option<Advice> {
    let KeepConfig { window, .. } = known.keep;
    if !known.keep.has_rules() && window.is_none() {
        return None;
    }
    let kept = window.unwrap_or_default();
    let (table, lock) = known.locks.iter().max_by_key(|(_, lock)| *lock).filter(|(_, lock)| *lock > kept)?;
    let goes = match window {
        Some(window) => format!("when it is {} old", human::duration(*window)),
        None => "as soon as a newer backup does without it".to_owned(),
    };
    Some(Advice {
        name: "long-lock",
        what: format!(
            "[{table}] locks objects for {}, and by [keep] WAL goes {goes}: what walden expire removes takes its room, and is \
             paid for, up to {} longer",
            human::duration(*lock),
            human::duration(*lock - kept)
        ),
        mend:
            "a window under [keep] as long as the lock costs nothing more; or take a shorter lock, which holds for new \
               objects, for what is locked stays so"
                .into(),
        grave: false,
    })
}

fn own_identity(known: &Known<'_>) -> Option<Advice> {
    let file = known.identity.as_ref()?.display();
    Some(Advice {
        name: "own-identity",
        what: format!("{file}: this host can read all that it ever stored, and so can whoever takes it over"),
        mend: "archiving and backups need the recipients only: keep the identity in two other places, remove \
               identity_file under [encryption], and recover where the identity is"
            .into(),
        grave: false,
    })
}

fn kit(known: &Known<'_>) -> Option<Advice> {
    if known.recipients.is_empty() {
        return None;
    }
    let (what, grave) = match known.kit.as_ref()? {
        None => ("what is stored is encrypted, and no recovery kit is on record".to_owned(), false),
        Some(kit) if known.recipients.texts().all(|recipient| kit.recipients.contains(&recipient)) => return None,
        Some(kit) => (
            format!(
                "the newest recovery kit{}, of {}, is older than the last change of the recipients",
                if kit.identity { " with an identity" } else { "" },
                human::time(kit.made)
            ),
            true,
        ),
    };
    let mend = "walden kit export --with-identity=FILE, where the identity is; keep it where this host is not";
    Some(Advice { name: "kit", what, mend: mend.into(), grave })
}

fn modes(known: &Known<'_>) -> Option<Advice> {
    const OTHERS_READ: u32 = 0o004;
    const OTHERS_WRITE: u32 = 0o002;
    let FileSeen { path, mode, secret } = known.file.as_ref()?;
    let shown = path.display();
    let what = match mode {
        mode if mode & OTHERS_WRITE != 0 => format!("{shown}: everybody on this host can change it"),
        mode if mode & OTHERS_READ != 0 && *secret => {
            format!("{shown}: everybody on this host can read it, and a password stands in it")
        }
        _ => return None,
    };
    Some(Advice { name: "configuration-modes", what, mend: format!("chmod 640 {shown}"), grave: true })
}

impl Known<'_> {
    fn since(&self, then: DateTime<Utc>) -> Duration {
        (self.now - then).to_std().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        report::trees::{self, at},
        repository::KitLock,
    };

    const DAY: Duration = Duration::from_secs(86_400);

    const RECIPIENT: &str = "age1t7rxyev2z3rw82stdlrrepyc39nvn86l5078zqkf5uasdy86jp6svpy7pa";

    fn note(recipients: &Recipients) -> KitNote {
        KitNote {
            format: 1,
            made: at("20 10:00"),
            host: "h".into(),
            walden: "0".into(),
            locked: KitLock::Passphrase,
            identity: true,
            credentials: false,
            recipients: recipients.texts().collect(),
            configuration_sha256: String::new(),
            bytes: 1,
            sha256: String::new(),
            object: None,
        }
    }

    fn goals() -> GoalsConfig {
        GoalsConfig { rpo: Some(Duration::from_secs(60)), backup_age: 8 * DAY, restore_age: 100 * DAY }
    }

    fn keep(daily: u32, window: Option<Duration>) -> KeepConfig {
        let (last, weekly, monthly, yearly) = (0, 0, 0, 0);
        KeepConfig {
            last,
            daily,
            weekly,
            monthly,
            yearly,
            window,
            zone: chrono_tz::Tz::UTC,
            compact: None,
            compact_limit: 0,
            rate_limit: None,
        }
    }

    fn told(change: impl FnOnce(&mut Known<'_>)) -> Vec<&'static str> {
        told_with(&keep(0, None), change)
    }

    fn told_with(keep: &KeepConfig, change: impl FnOnce(&mut Known<'_>)) -> Vec<&'static str> {
        let (goals, systems) = (goals(), trees::single());
        let recipients = Recipients::parse(&[RECIPIENT]).unwrap();
        let mut known = Known {
            goals: &goals,
            keep,
            locks: Vec::new(),
            system: systems.last(),
            restored: Some(Some(at("20 10:00"))),
            archive_timeout: Some(Duration::from_secs(60)),
            received: false,
            identity: None,
            recipients: &recipients,
            kit: Some(Some(note(&recipients))),
            file: Some(FileSeen { path: "/etc/walden/walden.toml".into(), mode: 0o100_640, secret: true }),
            now: at("21 10:05"),
        };
        change(&mut known);
        judge(&known).iter().map(|advice| advice.name).collect()
    }

    #[test]
    fn what_is_well_and_what_is_not_known_is_passed_over() {
        assert!(told(|_| {}).is_empty());
        assert!(
            told(|known| (known.system, known.restored, known.kit, known.file) = (None, None, None, None)).is_empty()
        );
        assert!(told(|known| known.file.as_mut().unwrap().mode = 0o100_644).len() == 1);
    }

    #[test]
    fn each_rule_says_its_own() {
        let later = |days: i64| move |known: &mut Known<'_>| known.now += chrono::TimeDelta::try_days(days).unwrap();
        assert_eq!(told(later(9)), ["recent-backup"]);
        assert_eq!(told(later(101)), ["recent-backup", "tried-restore", "no-rules"]);
        assert_eq!(told_with(&keep(7, None), |_| {}), ["no-window"]);
        assert!(told_with(&keep(7, Some(14 * DAY)), |_| {}).is_empty());
        let locks = |days: u32| move |known: &mut Known<'_>| known.locks = vec![("repository".into(), days * DAY)];
        assert!(told(locks(30)).is_empty(), "without rules nothing is to go");
        assert!(told_with(&keep(7, Some(14 * DAY)), locks(14)).is_empty());
        assert_eq!(told_with(&keep(7, Some(14 * DAY)), locks(15)), ["long-lock"]);
        assert_eq!(told_with(&keep(7, None), locks(1)), ["no-window", "long-lock"]);
        assert_eq!(told(|known| known.restored = Some(None)), ["tried-restore"]);
        for timeout in [0, 61] {
            assert_eq!(told(|known| known.archive_timeout = Some(Duration::from_secs(timeout))), ["loss"]);
        }
        assert!(told(|known| (known.archive_timeout, known.received) = (Some(Duration::ZERO), true)).is_empty());
        assert_eq!(told(|known| known.kit = Some(None)), ["kit"]);
        assert_eq!(told(|known| known.kit.as_mut().unwrap().as_mut().unwrap().recipients.clear()), ["kit"]);
        assert_eq!(told(|known| known.identity = Some("/etc/walden/identity".into())), ["own-identity"]);
        assert_eq!(told(|known| known.file.as_mut().unwrap().mode = 0o100_642), ["configuration-modes"]);
        let open =
            |secret| told(move |known| known.file = Some(FileSeen { path: "/w".into(), mode: 0o100_644, secret }));
        assert_eq!((open(true).len(), open(false).len()), (1, 0));
    }
}
