//! Which object is called what. docs/FORMAT.md tells the same in prose.

use super::names::{BackupId, ClusterName, Incarnation, RollUpName};
use crate::{
    error::Result,
    postgres::{SegmentName, TimelineId, WalFile},
    seal::Blake3,
    store::Key,
};

/// The key of the document that makes a place a repository.
pub const REPOSITORY: &str = "walden.json";

/// The folder of one system of one cluster in one incarnation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SystemFolder {
    /// The cluster.
    pub cluster: ClusterName,
    /// The system.
    pub incarnation: Incarnation,
}

impl SystemFolder {
    /// The folder's prefix, ending in `/`.
    #[must_use]
    pub fn prefix(&self) -> String {
        format!("{}/{}/", self.cluster, self.incarnation)
    }

    fn key(&self, rest: &str) -> Result<Key> {
        Key::new(format!("{}{rest}", self.prefix()))
    }

    /// `system.json`.
    pub fn system(&self) -> Result<Key> {
        self.key("system.json")
    }

    /// The folder of the archive of one timeline.
    #[must_use]
    pub fn timeline(&self, timeline: TimelineId) -> String {
        format!("{}wal/{}/", self.prefix(), timeline.hex())
    }

    /// The folder of all timelines.
    #[must_use]
    pub fn wal(&self) -> String {
        format!("{}wal/", self.prefix())
    }

    /// A segment.
    pub fn segment(&self, name: SegmentName) -> Result<Key> {
        Key::new(format!("{}{:08X}/{name}", self.timeline(name.timeline), name.log))
    }

    /// The object of a file that PostgreSQL archives. Several partial segments of one name can exist, so that theirs
    /// has the hash of its content in its name as well.
    pub fn wal_file(&self, file: WalFile, content: Blake3) -> Result<Key> {
        match file {
            WalFile::Segment(name) => self.segment(name),
            WalFile::Partial(name) => Key::new(format!("{}{content}", self.partials(name)?)),
            WalFile::BackupLabel(name, _) => {
                Key::new(format!("{}{:08X}/{file}", self.timeline(name.timeline), name.log))
            }
            WalFile::History(timeline) => self.history(timeline),
        }
    }

    /// The folder of the partial segments of that name.
    pub fn partials(&self, name: SegmentName) -> Result<String> {
        Ok(format!("{}.partial/", self.segment(name)?))
    }

    /// The folder of the pieces of a segment that is not complete.
    pub fn pieces(&self, name: SegmentName) -> Result<String> {
        Ok(format!("{}.pieces/", self.segment(name)?))
    }

    /// A key behind which no piece of that segment lies, and whatever belongs to a later one.
    pub fn behind_pieces(&self, name: SegmentName) -> Result<Key> {
        // Offsets are written in hexadecimal digits.
        Key::new(format!("{}G", self.pieces(name)?))
    }

    /// The piece of a segment that holds its bytes from offset `from` up to offset `to`.
    pub fn piece(&self, name: SegmentName, from: u32, to: u32) -> Result<Key> {
        Key::new(format!("{}{from:08X}-{to:08X}", self.pieces(name)?))
    }

    /// The history file of a timeline.
    pub fn history(&self, timeline: TimelineId) -> Result<Key> {
        Key::new(format!("{}{}.history", self.timeline(timeline), timeline.hex()))
    }

    /// The folder of the roll-ups of a timeline.
    #[must_use]
    pub fn roll_ups(&self, timeline: TimelineId) -> String {
        format!("{}notes/summaries/{}/", self.prefix(), timeline.hex())
    }

    /// The roll-up of one log of a timeline.
    pub fn roll_up(&self, timeline: TimelineId, name: RollUpName) -> Result<Key> {
        Key::new(format!("{}{name}.json.zst", self.roll_ups(timeline)))
    }

    /// The folder of all backups.
    #[must_use]
    pub fn backups(&self) -> String {
        format!("{}backups/", self.prefix())
    }

    /// The folder of one backup.
    #[must_use]
    pub fn backup(&self, id: BackupId) -> String {
        format!("{}{id}/", self.backups())
    }

    /// The document that makes a backup exist, in its `number`th version.
    pub fn backup_document(&self, id: BackupId, number: u32) -> Result<Key> {
        Key::new(format!("{}backup-{number}.json", self.backup(id)))
    }

    /// The document that says that a backup has begun, or what else it may refer to.
    pub fn intent(&self, id: BackupId, number: u32) -> Result<Key> {
        Key::new(format!("{}intent-{number}.json", self.backup(id)))
    }

    /// The list of everything in a backup, in its `number`th version.
    pub fn manifest(&self, id: BackupId, number: u32) -> Result<Key> {
        Key::new(format!("{}manifest-{number}.json.zst", self.backup(id)))
    }

    /// What the databases and relations were called when a backup was taken, in its `number`th version.
    pub fn catalogue(&self, id: BackupId, number: u32) -> Result<Key> {
        Key::new(format!("{}catalogue-{number}.json.zst", self.backup(id)))
    }

    /// What the document of a backup leaves out where the repository is encrypted, in its `number`th version.
    pub fn about(&self, id: BackupId, number: u32) -> Result<Key> {
        Key::new(format!("{}about-{number}.json.zst", self.backup(id)))
    }

    /// The files of a backup from outside its data directory, in their `number`th version.
    pub fn extra(&self, id: BackupId, number: u32) -> Result<Key> {
        self.key(&format!("backups/{id}/extra-{number}.tar.zst"))
    }

    /// A part of a backup; parts are counted from 1.
    pub fn part(&self, id: BackupId, number: u32) -> Result<Key> {
        Key::new(format!("{}part-{number:05}.tar.zst", self.backup(id)))
    }

    /// The number of the part of a backup that an object's key names, if it is one's.
    #[must_use]
    pub fn part_number(&self, id: BackupId, key: &Key) -> Option<u32> {
        let name = key.as_str().strip_prefix(&self.backup(id))?;
        name.strip_prefix("part-")?.strip_suffix(".tar.zst")?.parse().ok()
    }

    /// The backup in whose folder an object lies.
    #[must_use]
    pub fn backup_of(&self, key: &Key) -> Option<BackupId> {
        key.as_str().strip_prefix(&self.backups())?.split('/').next()?.parse().ok()
    }

    /// Whether that is a document that makes a backup exist.
    #[must_use]
    pub fn is_backup_document(&self, key: &Key) -> bool {
        key.as_str().starts_with(&self.backups()) && number_of(key, "backup-").is_some()
    }

    /// The folder of the notes of all kinds.
    #[must_use]
    pub fn notes_of_all_kinds(&self) -> String {
        format!("{}notes/", self.prefix())
    }

    /// Whether that is about one repository alone, and means nothing in another that holds the same: how long a
    /// restore from there took, what was removed there, and what is damaged there.
    #[must_use]
    pub fn is_of_one_repository(&self, key: &Key) -> bool {
        ["restores", "condemned", "horizon", "damage"].iter().any(|kind| key.as_str().starts_with(&self.notes(kind)))
    }

    /// Whether that is the note of a recovery kit.
    #[must_use]
    pub fn is_note_of_kit(&self, key: &Key) -> bool {
        key.as_str().starts_with(&self.notes("kits")) && key.as_str().ends_with(".json")
    }

    /// What an object in the folder of a backup is; none of what no Walden of this version writes there.
    #[must_use]
    pub fn object_of(&self, id: BackupId, key: &Key) -> Option<BackupObject> {
        let name = key.as_str().strip_prefix(&self.backup(id))?;
        let (kind, rest) = name.split_once('-')?;
        let (number, extension) = rest.split_once('.')?;
        let number: u32 = number.parse().ok()?;
        let object = match (kind, extension) {
            ("backup", "json") => BackupObject::Document(number),
            ("intent", "json") => BackupObject::Intent(number),
            ("manifest", "json.zst") => BackupObject::Manifest(number),
            ("catalogue", "json.zst") => BackupObject::Catalogue(number),
            ("about", "json.zst") => BackupObject::About(number),
            ("extra", "tar.zst") => BackupObject::Extra(number),
            ("part", "tar.zst") => BackupObject::Part(number),
            _ => return None,
        };
        // Another spelling of the number is another object.
        self.key_of(id, object).ok().filter(|same| same == key).map(|_| object)
    }

    /// The key of an object in the folder of a backup.
    pub fn key_of(&self, id: BackupId, object: BackupObject) -> Result<Key> {
        match object {
            BackupObject::Document(number) => self.backup_document(id, number),
            BackupObject::Intent(number) => self.intent(id, number),
            BackupObject::Manifest(number) => self.manifest(id, number),
            BackupObject::Catalogue(number) => self.catalogue(id, number),
            BackupObject::About(number) => self.about(id, number),
            BackupObject::Extra(number) => self.extra(id, number),
            BackupObject::Part(number) => self.part(id, number),
        }
    }

    /// The folder of the leases of one kind.
    #[must_use]
    pub fn leases(&self, kind: &str) -> String {
        format!("{}lease/{kind}/", self.prefix())
    }

    /// The folder of the notes of one kind.
    #[must_use]
    pub fn notes(&self, kind: &str) -> String {
        format!("{}notes/{kind}/", self.prefix())
    }

    /// The folder for objects that prove something and are deleted at once.
    #[must_use]
    pub fn probes(&self) -> String {
        format!("{}probe/", self.prefix())
    }
}

/// An object in the folder of a backup, with its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BackupObject {
    /// `backup-<n>.json`
    Document(u32),
    /// `intent-<n>.json`
    Intent(u32),
    /// `manifest-<n>.json.zst`
    Manifest(u32),
    /// `catalogue-<n>.json.zst`
    Catalogue(u32),
    /// `about-<n>.json.zst`
    About(u32),
    /// `extra-<n>.tar.zst`
    Extra(u32),
    /// `part-<n>.tar.zst`
    Part(u32),
}

/// Whether an object is data, or tells what data is, and lies there unchanged until it is expired: what object lock is
/// for. Leases, probes, notes and intents are not, nor are pieces of segments: Walden removes them when they have served.
#[must_use]
pub fn is_lasting(key: &Key) -> bool {
    let parts: Vec<&str> = key.as_str().split('/').collect();
    match parts.as_slice() {
        [REPOSITORY] | [_, _, "system.json"] => true,
        [_, _, "wal", rest @ ..] => !rest.iter().any(|part| part.ends_with(".pieces")),
        [_, _, "backups", _, name] => !name.starts_with("intent-"),
        _ => false,
    }
}

/// The segment that an object's key names, if it is one's.
#[must_use]
pub fn segment_of(key: &Key) -> Option<SegmentName> {
    let (folder, name) = key.as_str().rsplit_once('/')?;
    let name: SegmentName = name.parse().ok()?;
    folder.ends_with(&format!("/wal/{}/{:08X}", name.timeline.hex(), name.log)).then_some(name)
}

/// The segment that the key of a piece names, and the offsets of its first byte and of the first after it.
#[must_use]
pub fn piece_of(key: &Key) -> Option<(SegmentName, u32, u32)> {
    let (folder, range) = key.as_str().rsplit_once('/')?;
    let name = segment_of(&Key::new(folder.strip_suffix(".pieces")?).ok()?)?;
    let (from, to) = range.split_once('-')?;
    let (from, to) = (u32::from_str_radix(from, 16).ok()?, u32::from_str_radix(to, 16).ok()?);
    (from < to && range == format!("{from:08X}-{to:08X}")).then_some((name, from, to))
}

/// The name of the roll-up that an object's key names, if it is one's.
#[must_use]
pub fn roll_up_of(key: &Key) -> Option<RollUpName> {
    let (_, name) = key.as_str().rsplit_once('/')?;
    name.strip_suffix(".json.zst")?.parse().ok()
}

/// What the key of an archived file tells of it: where it belongs, its name, and of a partial segment its content's hash.
#[must_use]
pub fn archived(key: &Key) -> Option<(Incarnation, WalFile, Option<Blake3>)> {
    let parts: Vec<&str> = key.as_str().split('/').collect();
    let [_, incarnation, "wal", _, rest @ ..] = parts.as_slice() else { return None };
    let (name, hash) = match rest {
        [name] | [_, name] => (name, None),
        [_, name, hash] => (name, Some(hash.parse().ok()?)),
        _ => return None,
    };
    Some((incarnation.parse().ok()?, name.parse().ok()?, hash))
}

/// What the object with a recovery kit is called.
#[must_use]
pub(super) fn kit_name(number: u32, locked: bool) -> String {
    format!("{number}.tar.zst{}", if locked { ".age" } else { "" })
}

/// The number of the recovery kit that an object is, or is the note of.
#[must_use]
pub(super) fn kit_number(key: &Key) -> Option<u32> {
    let (_, name) = key.as_str().rsplit_once('/')?;
    let (number, rest) = name.split_once('.')?;
    ["json", "tar.zst", "tar.zst.age"].contains(&rest).then(|| number.parse().ok())?
}

/// Whether an object is a recovery kit: a file with a lock of its own.
#[must_use]
pub fn is_kit(key: &Key) -> bool {
    key.as_str().contains("/notes/kits/") && !key.as_str().ends_with(".json")
}

/// The number in the last part of a key such as `.../backup-2.json` or `.../7.json`.
#[must_use]
pub(super) fn number_of(key: &Key, before: &str) -> Option<u32> {
    let (_, name) = key.as_str().rsplit_once('/')?;
    name.strip_prefix(before)?.strip_suffix(".json")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::blake3;

    fn folder() -> SystemFolder {
        SystemFolder { cluster: "main".parse().unwrap(), incarnation: "7-1".parse().unwrap() }
    }

    #[test]
    fn every_object_has_its_place() {
        let key = |text: &str| folder().wal_file(text.parse().unwrap(), blake3(b"x")).unwrap().to_string();
        assert_eq!(key("0000000A000000010000000F"), "main/7-1/wal/0000000A/00000001/0000000A000000010000000F");
        assert_eq!(key("0000000A.history"), "main/7-1/wal/0000000A/0000000A.history");
        assert_eq!(
            key("0000000A000000010000000F.00000028.backup"),
            "main/7-1/wal/0000000A/00000001/0000000A000000010000000F.00000028.backup"
        );
        let partial = key("0000000A000000010000000F.partial");
        assert!(partial.starts_with("main/7-1/wal/0000000A/00000001/0000000A000000010000000F.partial/"));
        let id: BackupId = "20261121T014500Z".parse().unwrap();
        let timeline = TimelineId::new(10).unwrap();
        let document = folder().backup_document(id, 2).unwrap();
        assert_eq!(folder().backup_of(&document), Some(id));
        assert!(
            folder().is_backup_document(&document) && !folder().is_backup_document(&folder().manifest(id, 1).unwrap())
        );
        let name = RollUpName { log: 0x1F, number: 2, row: None };
        let roll_up = folder().roll_up(timeline, name).unwrap();
        assert_eq!(roll_up.as_str(), "main/7-1/notes/summaries/0000000A/0000001F-2.json.zst");
        assert_eq!(roll_up_of(&roll_up), Some(name));
        assert_eq!(folder().part(id, 3).unwrap().as_str(), "main/7-1/backups/20261121T014500Z/part-00003.tar.zst");
    }

    #[test]
    fn a_key_tells_what_it_holds() {
        for name in [
            "0000000A000000010000000F",
            "0000000A.history",
            "0000000A000000010000000F.00000028.backup",
            "0000000A000000010000000F.partial",
        ] {
            let file: WalFile = name.parse().unwrap();
            let key = folder().wal_file(file, blake3(b"x")).unwrap();
            let hash = matches!(file, WalFile::Partial(_)).then(|| blake3(b"x"));
            assert_eq!(archived(&key), Some((folder().incarnation, file, hash)));
        }
        assert_eq!(archived(&folder().system().unwrap()), None);
    }

    #[test]
    fn what_lies_in_the_folder_of_a_backup_is_known_by_its_key_or_not_at_all() {
        let (folder, id) = (folder(), "20261121T014500Z".parse().unwrap());
        for object in [
            BackupObject::Document(2),
            BackupObject::Intent(1),
            BackupObject::Manifest(1),
            BackupObject::Catalogue(1),
            BackupObject::Extra(1),
            BackupObject::Part(3),
            BackupObject::Part(123_456),
        ] {
            assert_eq!(folder.object_of(id, &folder.key_of(id, object).unwrap()), Some(object));
        }
        for name in ["part-3.tar.zst", "part-00003.tar.zst.age", "backup-01.json", "notes-1.json", "backup-1.json/x"] {
            let key = Key::new(format!("{}{name}", folder.backup(id))).unwrap();
            assert_eq!(folder.object_of(id, &key), None, "{name}");
        }
    }

    #[test]
    fn what_is_locked_is_never_what_walden_clears_away() {
        let (id, timeline): (BackupId, _) = ("20261121T014500Z".parse().unwrap(), TimelineId::new(10).unwrap());
        let segment: SegmentName = "0000000A000000010000000F".parse().unwrap();
        let partial: WalFile = "0000000A000000010000000F.partial".parse().unwrap();
        for key in [
            Key::new(REPOSITORY),
            folder().system(),
            folder().segment(segment),
            folder().wal_file(partial, blake3(b"x")),
            folder().history(timeline),
            folder().part(id, 1),
            folder().manifest(id, 1),
            folder().backup_document(id, 1),
        ] {
            assert!(is_lasting(key.as_ref().unwrap()), "{key:?}");
        }
        for key in [
            folder().piece(segment, 0, 1),
            folder().intent(id, 1),
            Key::new(format!("{}1.json", folder().leases("backup"))),
            Key::new(format!("{}1.json", folder().notes("restores"))),
            Key::new(format!("{}x", folder().probes())),
            Key::new("probe/x"),
        ] {
            assert!(!is_lasting(key.as_ref().unwrap()), "{key:?}");
        }
    }

    #[test]
    fn a_segment_is_known_by_its_key_alone() {
        let name: SegmentName = "0000000A000000010000000F".parse().unwrap();
        let piece = folder().piece(name, 0x1000, 0x4000_0000).unwrap();
        assert_eq!(piece.as_str(), "main/7-1/wal/0000000A/00000001/0000000A000000010000000F.pieces/00001000-40000000");
        assert_eq!(piece_of(&piece), Some((name, 0x1000, 0x4000_0000)));
        assert_eq!((segment_of(&piece), archived(&piece)), (None, None));
        for range in ["00001000-00001000", "1000-00002000", "00001000-0000200g", "00001000"] {
            let key = Key::new(format!("{}{range}", folder().pieces(name).unwrap())).unwrap();
            assert_eq!(piece_of(&key), None, "{range}");
        }
        assert_eq!(segment_of(&folder().segment(name).unwrap()), Some(name));
        for text in [
            "main/7-1/wal/0000000A/00000001/0000000A000000010000000F.partial/ab",
            "main/7-1/wal/0000000A/00000002/0000000A000000010000000F",
            "main/7-1/wal/0000000A/0000000A.history",
            "0000000A000000010000000F",
        ] {
            assert_eq!(segment_of(&Key::new(text).unwrap()), None, "{text}");
        }
    }
}
