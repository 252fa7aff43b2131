//! The small documents of a repository: what `walden.json`, `system.json` and `backup-<n>.json` say.
//!
//! Unknown fields are passed over on reading, so that a later Walden may add some; a higher `format` is refused.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    about::AboutObject,
    environment::Environment,
    extra::{ExtraObject, LeftOut},
    manifest::{Origin, Part},
    names::{BackupId, ClusterName, Incarnation},
};
use crate::{
    error::{Error, Result},
    postgres::{HistoryEntry, Lsn, RequiredSettings, SegmentName, SegmentSize, TimelineHistory, TimelineId, Version},
    seal::{Blake3, sha256},
    store::Key,
};

/// The format of the repository that this Walden writes, and the highest that it reads.
pub const FORMAT: u32 = 1;

/// `walden.json`: makes a place a repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepositoryDocument {
    /// The format of everything in it.
    pub format: u32,
    /// A random name of its own: a wiped and remade repository is another one.
    pub id: String,
    /// When it was made.
    pub made: DateTime<Utc>,
    /// The id of the repository whose objects it holds as well; absent of one that is no mirror.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror_of: Option<String>,
}

impl RepositoryDocument {
    /// What it has in common with those that hold the same objects: the id of the repository that they came from.
    #[must_use]
    pub fn lineage(&self) -> &str {
        self.mirror_of.as_deref().unwrap_or(&self.id)
    }

    /// Its id as the name of a folder on this host.
    pub fn folder_name(&self) -> Result<&str> {
        if self.id.is_empty() || !self.id.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(Error::damaged("the repository's id in walden.json is not one"));
        }
        Ok(&self.id)
    }
}

/// `system.json`: what is known of one system from its first day.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemDocument {
    /// The format of everything below it.
    pub format: u32,
    /// The cluster it belongs to.
    pub cluster: ClusterName,
    /// The system and its incarnation.
    pub incarnation: Incarnation,
    /// PostgreSQL's major version.
    pub postgres: Version,
    /// The size of its WAL segments in bytes.
    pub segment_size: SegmentSize,
    /// The size of its pages in bytes.
    pub block_size: u32,
    /// When `init` saw it first.
    pub first_seen: DateTime<Utc>,
}

/// A tablespace at the time of the backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tablespace {
    /// Its OID: the name of its link in `pg_tblspc`.
    pub oid: u32,
    /// Where the link pointed.
    pub location: String,
}

/// A page whose checksum was wrong when it was backed up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadPage {
    /// The file, below the data directory.
    pub path: String,
    /// The page's number in that file, from 0.
    pub block: u32,
}

/// A part and what it must hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartSummary {
    /// Its number, from 1.
    pub number: u32,
    /// The length of the object in bytes.
    pub length: u64,
}

/// `backup-<n>.json`: small, readable, written last. It alone makes the backup exist.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BackupDocument {
    /// The format of the backup.
    pub format: u32,
    /// Its id.
    pub id: BackupId,
    /// What the user called it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// The cluster.
    pub cluster: ClusterName,
    /// The system and its incarnation.
    pub incarnation: Incarnation,
    /// PostgreSQL's major version.
    pub postgres: Version,
    /// `server_version_num`, such as 170011.
    pub server_version_num: u32,
    /// `pg_control`'s version and the catalog's: what a server must match to run this backup.
    pub catalog_version: u32,
    /// The timeline it was taken on.
    pub timeline: TimelineId,
    /// Whether the server was a standby.
    #[serde(default)]
    pub from_standby: bool,
    /// Where replay starts: the redo location in `backup_label`.
    pub start_lsn: Lsn,
    /// Where its checkpoint record begins.
    pub checkpoint_lsn: Lsn,
    /// Where it is consistent. No target before this can be reached from it.
    pub stop_lsn: Lsn,
    /// When `pg_backup_start` was called.
    pub started: DateTime<Utc>,
    /// When `pg_backup_stop` had answered.
    pub stopped: DateTime<Utc>,
    /// The first segment that it needs.
    pub first_segment: SegmentName,
    /// The last segment that it needs to be consistent.
    pub last_segment: SegmentName,
    /// The size of the cluster's files in bytes.
    pub size: u64,
    /// How many files.
    pub files: u64,
    /// Bytes that were read of its files, what was read again included; absent when a server has sent them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read: Option<u64>,
    /// Bytes that this backup added to the repository.
    pub stored: u64,
    /// Its own parts.
    pub parts: Vec<PartSummary>,
    /// Older backups whose parts it needs.
    #[serde(default)]
    pub references: Vec<BackupId>,
    /// Every part that it needs, as the manifest has them: for hosts that cannot read that. Absent in older documents.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub needed_parts: Vec<NeededOf>,
    /// The ancestors of its timeline, oldest first; absent where they were not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ancestors: Option<Vec<AncestorLeft>>,
    /// The number of its manifest: `manifest-<n>.json.zst`.
    pub manifest: u32,
    /// BLAKE3 of the manifest's content.
    pub manifest_blake3: Blake3,
    /// The number of its catalogue: `catalogue-<n>.json.zst`. Absent where none was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub catalogue: Option<u32>,
    /// BLAKE3 of the catalogue's content; absent where there is none, and in older documents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub catalogue_blake3: Option<Blake3>,
    /// What this document leaves out, where the repository is encrypted: label, `extra_left_out`, environment and
    /// tablespaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub about: Option<AboutObject>,
    /// Its files from outside the data directory; absent where there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extra: Option<ExtraObject>,
    /// Such files that were meant, and are not in it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extra_left_out: Vec<LeftOut>,
    /// What the server's host was like; absent in older documents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<Environment>,
    /// Whether the cluster has page checksums.
    pub data_checksums: bool,
    /// Pages whose checksums were wrong: the backup is kept, and marked by these.
    #[serde(default)]
    pub bad_pages: Vec<BadPage>,
    /// The tablespaces, those inside the data directory left out.
    #[serde(default)]
    pub tablespaces: Vec<Tablespace>,
    /// What a recovering server needs at least.
    pub required: RequiredSettings,
    /// The name of the host it was taken on.
    pub host: String,
    /// The version of Walden that took it.
    pub walden: String,
}

/// The parts that lie in the folder of one backup and that a backup needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NeededOf {
    /// The backup in whose folder they lie.
    pub backup: BackupId,
    /// Their numbers, rising.
    pub parts: Vec<u32>,
    /// The lengths of the objects in bytes.
    pub bytes: u64,
}

impl NeededOf {
    /// What a manifest with these parts needs.
    pub(crate) fn all(parts: &[Part]) -> Vec<Self> {
        let mut all: BTreeMap<BackupId, Self> = BTreeMap::new();
        for part in parts {
            let nothing = Self { backup: part.backup, parts: Vec::new(), bytes: 0 };
            let needed = all.entry(part.backup).or_insert(nothing);
            needed.parts.push(part.number);
            needed.bytes += part.length;
        }
        all.values_mut().for_each(|needed| needed.parts.sort_unstable());
        all.into_values().collect()
    }
}

/// An ancestor of a timeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AncestorLeft {
    /// The ancestor.
    pub timeline: TimelineId,
    /// Where it was left: the first byte that is not the ancestor's.
    pub switch: Lsn,
}

impl BackupDocument {
    /// The history of its timeline, without the reasons.
    #[must_use]
    pub fn history(&self) -> Option<TimelineHistory> {
        let entry =
            |left: &AncestorLeft| HistoryEntry { timeline: left.timeline, switch: left.switch, reason: String::new() };
        let ancestors = self.ancestors.as_ref()?.iter().map(entry).collect();
        Some(TimelineHistory { timeline: self.timeline, ancestors })
    }
}

/// `intent-<n>.json`: a backup that has begun, and which others it may refer to; what each of several says holds.
/// The first is written before its first part; what it says of the reading lets a later backup use the parts of one that
/// was killed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IntentDocument {
    /// The format of the backup.
    pub format: u32,
    /// Its id.
    pub id: BackupId,
    /// The timeline it is taken on.
    pub timeline: TimelineId,
    /// When it was begun.
    pub begun: DateTime<Utc>,
    /// The size of a page in bytes.
    pub block_size: u32,
    /// Where the files are read; absent for files that a server sends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// The backups whose parts it may come to need.
    pub references: Vec<BackupId>,
    /// Of a compaction, which is no backup and never becomes one: the backups that are to get a new document, and its number.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub publishes: BTreeMap<BackupId, u32>,
}

/// What stands in place of `backup-1.json` where an expiry has given up an attempt: it never becomes a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    /// The format of the backup.
    pub format: u32,
    /// Its id.
    pub id: BackupId,
    /// When it was given up.
    pub given_up: DateTime<Utc>,
}

/// What begins and what ends the last line but one of a document, around 64 hexadecimal digits. No document has a field of
/// that name by itself.
const CHECKSUM: (&str, &str) = ("  \"lines_sha256\": \"", "\"\n}\n");

/// A document as it is stored under `key`: JSON that people can read, with a line feed at its end. The last field but one
/// is the key, so that no document passes for another, nor an older version of one for a newer. The last is the SHA-256 of
/// the lines before it: `head -n -2 | sha256sum` tells the same.
pub fn to_bytes<T: Serialize>(key: &Key, document: &T) -> Result<Vec<u8>> {
    let json =
        serde_json::to_string_pretty(document).map_err(|e| Error::internal("write a document as JSON").source(e))?;
    let fields = json.strip_suffix("\n}").ok_or_else(|| Error::internal("a document without fields"))?;
    // What a key is made of needs no escape.
    let lines = format!("{fields},\n  \"key\": \"{key}\",\n");
    let (before, behind) = CHECKSUM;
    Ok(format!("{lines}{before}{}{behind}", sha256(lines.as_bytes())).into_bytes())
}

/// Whether the document is as it was written. Those of an older Walden have no checksum.
fn is_sound(text: &str) -> bool {
    let (before, behind) = CHECKSUM;
    let length = before.len() + 64 + behind.len();
    let split = text.len().checked_sub(length).and_then(|at| text.split_at_checked(at));
    if let Some((lines, line)) = split
        && let Some(digits) = line.strip_prefix(before).and_then(|rest| rest.strip_suffix(behind))
    {
        return lines.ends_with(",\n") && digits == sha256(lines.as_bytes());
    }
    // The field under a name that is damaged.
    let digits = |line: &str| {
        let value = line.trim().strip_suffix('"').and_then(|line| line.rsplit_once('"'));
        value.is_some_and(|(_, value)| value.len() == 64 && value.bytes().all(|b| b.is_ascii_hexdigit()))
    };
    !text.contains("\"lines_sha256\"") && !text.lines().rev().nth(1).is_some_and(digits)
}

/// Reads the document under `key`. A format of the future is told apart from damage. Those of an older Walden do not tell
/// their key.
pub fn from_bytes<T: DeserializeOwned>(key: &Key, bytes: &[u8]) -> Result<T> {
    #[derive(Deserialize)]
    struct Common {
        #[serde(default)]
        format: u32,
        key: Option<String>,
    }
    let damaged = |e: serde_json::Error| Error::damaged(format!("{key} cannot be read")).source(e);
    let common = serde_json::from_slice::<Common>(bytes).map_err(damaged)?;
    if !std::str::from_utf8(bytes).is_ok_and(is_sound) {
        return Err(Error::damaged(format!("{key} is not as it was written: its checksum is another")));
    }
    if let Some(own) = common.key.filter(|own| own != key.as_str()) {
        return Err(Error::damaged(format!("{key} is not what was written there: it says that it is {own}")));
    }
    if common.format > FORMAT {
        let format = common.format;
        return Err(Error::refused(format!("{key} has format {format}; this Walden knows formats up to {FORMAT}"))
            .hint("use the version of Walden that wrote it, or a newer one"));
    }
    serde_json::from_slice(bytes).map_err(damaged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn no_byte_of_a_document_changes_unnoticed() {
        let (key, made) = (Key::new("walden.json").unwrap(), DateTime::UNIX_EPOCH);
        let document = RepositoryDocument { format: 1, id: "x".into(), made, mirror_of: None };
        let bytes = to_bytes(&key, &document).unwrap();
        for at in 0..bytes.len() {
            for change in [0x01, 0x20, 0x2A] {
                let mut other = bytes.clone();
                other[at] ^= change;
                let read = from_bytes::<RepositoryDocument>(&key, &other);
                assert!(read.is_err(), "byte {at} of {}", String::from_utf8_lossy(&other));
            }
            assert!(from_bytes::<RepositoryDocument>(&key, &bytes[..at]).is_err(), "{at} bytes");
        }
        let extended = [&bytes[..], b"\n"].concat();
        assert!(from_bytes::<RepositoryDocument>(&key, &extended).is_err());
        let older = serde_json::to_vec_pretty(&document).unwrap();
        assert_eq!(from_bytes::<RepositoryDocument>(&key, &older).unwrap(), document);
    }

    #[test]
    fn a_document_counts_under_its_own_name_alone() {
        let (key, other) = (Key::new("notes/pins/1.json").unwrap(), Key::new("notes/pins/2.json").unwrap());
        let bytes = to_bytes(&key, &serde_json::json!({ "format": 1, "pins": [] })).unwrap();
        from_bytes::<serde_json::Value>(&key, &bytes).unwrap();
        let error = from_bytes::<serde_json::Value>(&other, &bytes).unwrap_err();
        assert!(error.kind() == Kind::Damaged && error.to_string().contains("says that it is notes/pins/1"), "{error}");
    }

    #[test]
    fn the_future_is_told_apart_from_damage() {
        let key = Key::new("walden.json").unwrap();
        let document = RepositoryDocument { format: 1, id: "x".into(), made: DateTime::UNIX_EPOCH, mirror_of: None };
        let bytes = to_bytes(&key, &document).unwrap();
        assert_eq!(from_bytes::<RepositoryDocument>(&key, &bytes).unwrap(), document);
        let future = br#"{"format": 2, "other": true}"#;
        assert_eq!(from_bytes::<RepositoryDocument>(&key, future).unwrap_err().kind(), Kind::Refused);
        let damaged = &bytes[..bytes.len() / 2];
        assert_eq!(from_bytes::<RepositoryDocument>(&key, damaged).unwrap_err().kind(), Kind::Damaged);
    }
}
