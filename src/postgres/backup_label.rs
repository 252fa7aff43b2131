//! `backup_label` and `tablespace_map`, the two files that `pg_backup_stop` hands over
//! (`build_backup_content` in `src/backend/access/transam/xlogbackup.c`, `read_backup_label` and
//! `read_tablespace_map` in `xlogrecovery.c`).

use std::{
    ffi::OsString,
    fmt,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::PathBuf,
};

use super::{Lsn, SegmentName, TimelineId, relation};
use crate::error::{Error, Result};

/// The file that tells recovery where the backup started.
pub const BACKUP_LABEL: &str = "backup_label";
/// The file that tells recovery which links to make in `pg_tblspc`.
pub const TABLESPACE_MAP: &str = "tablespace_map";

/// What a `backup_label` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupLabel {
    /// Where recovery must start reading WAL.
    pub start: Lsn,
    /// The segment that holds that place.
    pub start_segment: SegmentName,
    /// Where the backup's checkpoint record starts.
    pub checkpoint: Lsn,
    /// `streamed`.
    pub method: String,
    /// `primary` or `standby`.
    pub from: String,
    /// When it started, as the server writes it, in the server's `log_timezone`.
    pub start_time: String,
    /// The label that the backup was given; it may hold line breaks.
    pub label: String,
    /// The timeline it started on.
    pub timeline: TimelineId,
    /// Of an incremental backup: start and timeline of the one before. PostgreSQL starts no such directory.
    pub incremental_from: Option<(Lsn, TimelineId)>,
}

impl BackupLabel {
    /// Reads the text of a `backup_label`.
    pub fn parse(text: &str) -> Result<Self> {
        let bad = |what: &str| Error::damaged(format!("{BACKUP_LABEL}: {what} is missing or malformed"));
        // The label itself is the only text that people choose: what comes after it is found from the end.
        let (head, rest) = text.split_once("\nLABEL: ").ok_or_else(|| bad("LABEL"))?;
        let (label, tail) = rest.rsplit_once("\nSTART TIMELINE: ").ok_or_else(|| bad("START TIMELINE"))?;
        let field = |name: &str| {
            let value = head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            value.ok_or_else(|| bad(name))
        };
        let (start, file) = field("START WAL LOCATION")?.split_once(" (file ").ok_or_else(|| bad("the segment"))?;
        let mut tail = tail.lines();
        let timeline = tail.next().and_then(|line| line.parse().ok()).ok_or_else(|| bad("START TIMELINE"))?;
        let mut after = |name: &str| tail.next().and_then(|line| line.strip_prefix(name));
        let incremental_from = match after("INCREMENTAL FROM LSN: ") {
            None => None,
            Some(lsn) => {
                let timeline = after("INCREMENTAL FROM TLI: ").ok_or_else(|| bad("INCREMENTAL FROM TLI"))?;
                Some((lsn.parse()?, timeline.parse()?))
            }
        };
        Ok(Self {
            start: start.parse()?,
            start_segment: file.strip_suffix(')').ok_or_else(|| bad("the segment"))?.parse()?,
            checkpoint: field("CHECKPOINT LOCATION")?.parse()?,
            method: field("BACKUP METHOD")?.to_owned(),
            from: field("BACKUP FROM")?.to_owned(),
            start_time: field("START TIME")?.to_owned(),
            label: label.to_owned(),
            timeline,
            incremental_from,
        })
    }

    /// Whether the backup was taken from a standby.
    #[must_use]
    pub fn from_standby(&self) -> bool {
        self.from == "standby"
    }
}

impl fmt::Display for BackupLabel {
    /// As the server writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "START WAL LOCATION: {} (file {})", self.start, self.start_segment)?;
        writeln!(f, "CHECKPOINT LOCATION: {}", self.checkpoint)?;
        writeln!(f, "BACKUP METHOD: {}", self.method)?;
        writeln!(f, "BACKUP FROM: {}", self.from)?;
        writeln!(f, "START TIME: {}", self.start_time)?;
        writeln!(f, "LABEL: {}", self.label)?;
        writeln!(f, "START TIMELINE: {}", self.timeline)?;
        if let Some((lsn, timeline)) = self.incremental_from {
            writeln!(f, "INCREMENTAL FROM LSN: {lsn}\nINCREMENTAL FROM TLI: {timeline}")?;
        }
        Ok(())
    }
}

/// What a `tablespace_map` says: the links that recovery makes in `pg_tblspc`, and where they point.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TablespaceMap {
    /// OID and location of each tablespace.
    pub entries: Vec<(u32, PathBuf)>,
}

impl TablespaceMap {
    /// Reads the bytes of a `tablespace_map`: lines of an OID, a space and a path, in which a backslash precedes
    /// every line break, carriage return and backslash.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let mut entries = Vec::new();
        let mut line = Vec::new();
        let mut escaped = false;
        for &byte in bytes {
            match byte {
                b'\\' if !escaped => escaped = true,
                b'\n' | b'\r' if !escaped => {
                    if !line.is_empty() {
                        entries.push(Self::entry(&line)?);
                    }
                    line.clear();
                }
                _ => {
                    line.push(byte);
                    escaped = false;
                }
            }
        }
        if line.is_empty() && !escaped {
            Ok(Self { entries })
        } else {
            Err(Error::damaged(format!("{TABLESPACE_MAP} is cut short")))
        }
    }

    fn entry(line: &[u8]) -> Result<(u32, PathBuf)> {
        let bad = || Error::damaged(format!("{TABLESPACE_MAP}: no tablespace: \"{}\"", String::from_utf8_lossy(line)));
        let space = line.iter().position(|&byte| byte == b' ').ok_or_else(bad)?;
        let oid = std::str::from_utf8(&line[..space]).ok().and_then(relation::number).ok_or_else(bad)?;
        let path = &line[space + 1..];
        if path.is_empty() { Err(bad()) } else { Ok((oid, OsString::from_vec(path.to_vec()).into())) }
    }

    /// The file's bytes, as the server writes them.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (oid, path) in &self.entries {
            bytes.extend_from_slice(format!("{oid} ").as_bytes());
            for &byte in path.as_os_str().as_bytes() {
                if matches!(byte, b'\n' | b'\r' | b'\\') {
                    bytes.push(b'\\');
                }
                bytes.push(byte);
            }
            bytes.push(b'\n');
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABEL: &str = "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\n\
        CHECKPOINT LOCATION: 0/2000060\nBACKUP METHOD: streamed\nBACKUP FROM: standby\n\
        START TIME: 2026-11-21 04:39:21 UTC\nLABEL: nightly\nSTART TIMELINE: 1\n";

    #[test]
    fn reads_what_it_writes() {
        let label = BackupLabel::parse(LABEL).unwrap();
        assert_eq!(label.start, Lsn(0x200_0028));
        assert_eq!(label.checkpoint, Lsn(0x200_0060));
        assert_eq!(label.label, "nightly");
        assert!(label.from_standby());
        assert_eq!(label.to_string(), LABEL);
        let incremental = format!("{LABEL}INCREMENTAL FROM LSN: 0/1000028\nINCREMENTAL FROM TLI: 1\n");
        let read = BackupLabel::parse(&incremental).unwrap();
        assert_eq!(read.incremental_from, Some((Lsn(0x100_0028), TimelineId::FIRST)));
        assert_eq!(read.to_string(), incremental);
    }

    #[test]
    fn a_label_cannot_pretend_to_be_another_field() {
        let text = LABEL.replace("nightly", "a\nSTART WAL LOCATION: 9/9 (file x)\nSTART TIMELINE: 7\nLABEL: b");
        let label = BackupLabel::parse(&text).unwrap();
        assert_eq!((label.start, label.timeline.get()), (Lsn(0x200_0028), 1));
        assert_eq!(label.to_string(), text);
    }

    #[test]
    fn malformed_labels_are_errors() {
        for cut in ["START WAL LOCATION", "CHECKPOINT LOCATION", "BACKUP FROM", "LABEL", "START TIMELINE", ")"] {
            assert!(BackupLabel::parse(&LABEL.replace(cut, "X")).is_err(), "{cut}");
        }
        assert!(BackupLabel::parse("").is_err());
    }

    #[test]
    fn paths_survive_the_map() {
        let map = TablespaceMap {
            entries: vec![
                (16384, "/srv/a b".into()),
                (16385, "/odd\n/\\path\r".into()),
                (16386, OsString::from_vec(b"/\xFF".to_vec()).into()),
            ],
        };
        let bytes = map.to_bytes();
        assert!(bytes.starts_with(b"16384 /srv/a b\n16385 /odd\\\n/\\\\path\\\r\n"));
        assert_eq!(TablespaceMap::parse(&bytes).unwrap(), map);
        assert_eq!(TablespaceMap::parse(b"").unwrap().entries, []);
    }

    #[test]
    fn malformed_maps_are_errors() {
        for text in ["16384", "x /a\n", "16384 \n", "16384 /a", "16384 /a\\\n", "../x /a\n"] {
            assert!(TablespaceMap::parse(text.as_bytes()).is_err(), "{text:?}");
        }
    }
}
