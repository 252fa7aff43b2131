//! The settings that steer a recovery, as a block at the end of `postgresql.auto.conf`, and its removal.
//!
//! PostgreSQL reads that file after `postgresql.conf`, and of several lines with one name the last counts, so that
//! a block at the end overrides everything and hides nothing: once it is removed, what was in force before is in
//! force again. `ALTER SYSTEM` rewrites the file without its comments (`write_auto_conf_file` in `guc.c`) but keeps
//! settings and their order, even those of unknown extensions; so the block's ends are settings themselves.

use super::{Lsn, TimelineId, Version, control::RequiredSettings};
use crate::error::{Error, Result};

/// The file below PGDATA that the block goes into.
pub const AUTO_CONF: &str = "postgresql.auto.conf";
/// The file below PGDATA that asks for a recovery up to a target.
pub const RECOVERY_SIGNAL: &str = "recovery.signal";
/// The file below PGDATA that asks for a standby.
pub const STANDBY_SIGNAL: &str = "standby.signal";

/// The setting at both ends of the block. PostgreSQL takes any name with a dot for an extension's.
const MARK: &str = "walden.recovery";

/// Where recovery is to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecoveryTarget {
    /// At an LSN. Inclusive: after the first record that starts at it or later. Exclusive: before that record.
    Lsn {
        /// The address.
        lsn: Lsn,
        /// Whether that record is still replayed.
        inclusive: bool,
    },
    /// As soon as the copy is consistent.
    Immediate,
    /// At the end of the archive; a standby goes on waiting for more.
    None,
}

/// What the server does when it has reached the target (`recovery_target_action`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetAction {
    /// Stay in recovery, read-only.
    Pause,
    /// Open a new timeline and accept writes.
    Promote,
    /// Shut down.
    Shutdown,
}

impl TargetAction {
    /// In PostgreSQL's word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Promote => "promote",
            Self::Shutdown => "shutdown",
        }
    }
}

/// What becomes of the WAL that the restored server writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Archiving {
    /// It stays in `pg_wal`: this `archive_command` runs instead of the configured one and fails.
    HeldBack {
        /// The command; it must fail with an exit code below 126.
        command: String,
    },
    /// Archiving is off.
    Off,
    /// As configured.
    AsConfigured,
}

/// What a recovery needs to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoverySettings {
    /// `restore_command`.
    pub restore_command: String,
    /// Where to stop.
    pub target: RecoveryTarget,
    /// Which timeline to follow; `None` for the latest, which only a standby should.
    pub timeline: Option<TimelineId>,
    /// What to do there.
    pub action: TargetAction,
    /// The least values without which recovery would stop.
    pub required: Option<RequiredSettings>,
    /// What becomes of new WAL.
    pub archiving: Archiving,
    /// Further settings, name and value, for instance a socket directory.
    pub further: Vec<(String, String)>,
}

impl RecoverySettings {
    /// Name and value of every setting, in the order in which they must stand.
    #[must_use]
    pub fn lines(&self, version: Version) -> Vec<(String, String)> {
        let mut lines = vec![("restore_command".to_owned(), self.restore_command.clone())];
        let mut put = |name: &str, value: &str| lines.push((name.to_owned(), value.to_owned()));
        // These would stop, delay or end recovery otherwise, delete from an archive, or let it follow another server.
        for name in ["archive_cleanup_command", "recovery_end_command", "primary_conninfo", "primary_slot_name"] {
            put(name, "");
        }
        put("recovery_min_apply_delay", "0");
        // Without it "pause" is "shutdown".
        put("hot_standby", "on");
        // Up to 17 an empty target that comes after the one in force is an error ("multiple recovery targets").
        let targets = ["", "_lsn", "_name", "_time", "_xid"].map(|suffix| format!("recovery_target{suffix}"));
        let (target, value, inclusive) = match self.target {
            RecoveryTarget::Lsn { lsn, inclusive } => ("recovery_target_lsn", lsn.to_string(), inclusive),
            RecoveryTarget::Immediate => ("recovery_target", "immediate".to_owned(), true),
            RecoveryTarget::None => ("", String::new(), true),
        };
        targets.iter().filter(|name| *name != target).for_each(|name| put(name, ""));
        if !target.is_empty() {
            put(target, &value);
        }
        put("recovery_target_inclusive", if inclusive { "on" } else { "off" });
        put("recovery_target_timeline", &self.timeline.map_or_else(|| "latest".to_owned(), |t| t.to_string()));
        put("recovery_target_action", self.action.as_str());
        for (name, value) in self.required.map(RequiredSettings::each).into_iter().flatten() {
            put(name, &value.to_string());
        }
        match &self.archiving {
            Archiving::HeldBack { command } => {
                put("archive_command", command);
                if version.0 >= 15 {
                    put("archive_library", "");
                }
            }
            Archiving::Off => put("archive_mode", "off"),
            Archiving::AsConfigured => {}
        }
        self.further.iter().for_each(|(name, value)| put(name, value));
        lines
    }

    /// The text of `postgresql.auto.conf` with this block at its end, in place of an earlier one.
    pub fn apply(&self, auto_conf: &str, version: Version) -> Result<String> {
        let mut text = remove(auto_conf)?;
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text.push_str("# Written by walden restore; walden adopt removes it.\n");
        text.push_str(&line(MARK, "begin"));
        for (name, value) in self.lines(version) {
            text.push_str(&line(&name, &value));
        }
        text.push_str(&line(MARK, "end"));
        Ok(text)
    }
}

/// The text of `postgresql.auto.conf` without the block; unchanged when there is none. What came after the block
/// (by a later `ALTER SYSTEM`) stays.
pub fn remove(auto_conf: &str) -> Result<String> {
    let mut kept = String::with_capacity(auto_conf.len());
    let mut inside = false;
    for whole in auto_conf.split_inclusive('\n') {
        match mark(whole) {
            Some("begin") if !inside => {
                inside = true;
                let comment = kept.trim_end_matches('\n').rfind('\n').map_or(0, |at| at + 1);
                if kept[comment..].starts_with("# Written by walden restore") {
                    kept.truncate(comment);
                }
            }
            Some("end") if inside => inside = false,
            Some(_) => return Err(torn()),
            None if !inside => kept.push_str(whole),
            None => {}
        }
    }
    if inside { Err(torn()) } else { Ok(kept) }
}

/// Whether `postgresql.auto.conf` holds a block.
#[must_use]
pub fn is_applied(auto_conf: &str) -> bool {
    auto_conf.lines().any(|line| mark(line).is_some())
}

/// One line of a configuration file, quoted by PostgreSQL's rules (`DeescapeQuotedString` in `guc-file.l`).
#[must_use]
pub fn line(name: &str, value: &str) -> String {
    let mut line = format!("{name} = '");
    for c in value.chars() {
        match c {
            '\'' => line.push_str("''"),
            '\\' => line.push_str("\\\\"),
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            _ => line.push(c),
        }
    }
    line.push_str("'\n");
    line
}

fn mark(line: &str) -> Option<&str> {
    let value = line.trim().strip_prefix(MARK)?.trim_start();
    value.strip_prefix('=').unwrap_or(value).trim().strip_prefix('\'')?.strip_suffix('\'')
}

fn torn() -> Error {
    Error::refused(format!("{AUTO_CONF}: the block of {MARK} has lost one of its ends")).hint(format!(
        "edit {AUTO_CONF}: remove what restore wrote (restore_command, recovery_target*, archive_command) and the lines that name {MARK}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> RecoverySettings {
        RecoverySettings {
            restore_command: "/usr/bin/walden-restore --config '/etc/a b.toml' %f %p".to_owned(),
            target: RecoveryTarget::Lsn { lsn: Lsn(0x16B_3740), inclusive: false },
            timeline: Some(TimelineId::new(10).unwrap()),
            action: TargetAction::Pause,
            required: Some(RequiredSettings { max_connections: 300, ..Default::default() }),
            archiving: Archiving::HeldBack { command: "walden-archive --hold %p".to_owned() },
            further: Vec::new(),
        }
    }

    #[test]
    fn quotes_as_postgresql_reads() {
        assert_eq!(line("a", r"it's C:\x"), "a = 'it''s C:\\\\x'\n");
        assert_eq!(line("a", "b\nc"), "a = 'b\\nc'\n");
    }

    #[test]
    fn one_target_is_set_last_and_the_others_are_empty() {
        let lines = settings().lines(Version(17));
        let targets: Vec<_> =
            lines.iter().filter(|(n, _)| n.starts_with("recovery_target")).map(|(n, v)| format!("{n}={v}")).collect();
        assert_eq!(
            targets,
            [
                "recovery_target=",
                "recovery_target_name=",
                "recovery_target_time=",
                "recovery_target_xid=",
                "recovery_target_lsn=0/16B3740",
                "recovery_target_inclusive=off",
                "recovery_target_timeline=10",
                "recovery_target_action=pause",
            ]
        );
        let has = |name: &str| lines.iter().any(|(n, _)| n == name);
        assert!(has("archive_library") && has("primary_conninfo") && has("max_connections"));
        assert!(!settings().lines(Version(14)).iter().any(|(n, _)| n == "archive_library"));
    }

    #[test]
    fn what_was_there_before_comes_back() {
        for before in ["", "archive_command = 'walden-archive %p'\n", "# comment\nwork_mem = '1MB'"] {
            let once = settings().apply(before, Version(16)).unwrap();
            assert!(is_applied(&once));
            let twice = settings().apply(&once, Version(16)).unwrap();
            assert_eq!(once, twice, "applied twice is applied once");
            assert_eq!(remove(&twice).unwrap().trim_end(), before.trim_end());
        }
        assert_eq!(remove("a = '1'\n").unwrap(), "a = '1'\n");
    }

    #[test]
    fn the_block_is_found_after_alter_system() {
        let applied = settings().apply("work_mem = '1MB'\nmax_connections = '20'\n", Version(16)).unwrap();
        // ALTER SYSTEM drops comments and every line of that name, and appends the new one.
        let altered: String = std::iter::once("# Do not edit this file manually!\n")
            .chain(applied.split_inclusive('\n').filter(|l| !l.starts_with('#') && !l.starts_with("max_connections")))
            .chain(std::iter::once("max_connections = '500'\n"))
            .collect();
        assert_eq!(
            remove(&altered).unwrap(),
            "# Do not edit this file manually!\nwork_mem = '1MB'\nmax_connections = '500'\n"
        );
    }

    #[test]
    fn a_torn_block_is_refused() {
        let applied = settings().apply("", Version(16)).unwrap();
        for end in ["begin", "end"] {
            let torn = applied.replace(&format!("{MARK} = '{end}'\n"), "");
            assert!(remove(&torn).is_err(), "{end}");
            assert!(settings().apply(&torn, Version(16)).is_err());
        }
    }
}
