//! The files of a backup that lie outside the data directory: one tar in zstd frames, with owners, modes and extended
//! attributes as GNU tar writes them (`--format=pax --xattrs`), so that `zstd -d | tar x` restores them, too.

use std::{
    ffi::OsStr,
    io::{self, Read, Write},
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use tar::{EntryType, Header};

use super::{BackupId, System, join};
use crate::{
    error::{Error, Kind, Result},
    seal::{Blake3, HashReader},
    store::bridge,
};

const BLOCK: usize = 512;
/// What the records of one member may take: a file system holds far fewer extended attributes.
const RECORDS: u64 = 8 << 20;
/// What comes before the name of an extended attribute.
const XATTR: &str = "SCHILY.xattr.";

/// What the document of a backup says of the object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtraObject {
    /// Its number: `extra-<n>.tar.zst`.
    pub number: u32,
    /// The length of the object in bytes.
    pub length: u64,
    /// BLAKE3 of the object.
    pub blake3: Blake3,
    /// How many files are in it; folders and links are not counted.
    pub files: u64,
    /// The bytes of their content.
    pub size: u64,
}

/// A file from outside the data directory that is not in the backup.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LeftOut {
    /// Its path, or the pattern that named it.
    pub path: String,
    /// Why, in words.
    pub why: String,
}

/// A file, folder or link in the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its path below the root of the file system, without links in it.
    pub path: PathBuf,
    /// What it is.
    pub kind: MemberKind,
    /// Permissions.
    pub mode: u32,
    /// The owner's number and name; no name where it has none.
    pub user: (u32, String),
    /// The group's number and name.
    pub group: (u32, String),
    /// When it was last changed.
    pub mtime: DateTime<Utc>,
    /// Names and values of its extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What a member is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberKind {
    /// A file of so many bytes.
    File(u64),
    /// A folder.
    Directory,
    /// A symbolic link, and where it points.
    Link(PathBuf),
}

/// Writes the archive.
#[derive(Debug)]
pub struct ExtraWriter<W>(W);

impl<W: Write> ExtraWriter<W> {
    /// Writes into `inner`.
    pub fn new(inner: W) -> Self {
        Self(inner)
    }

    /// Adds a member; a file has its bytes in `content`, exactly as many as it says.
    pub fn add(&mut self, member: &Member, content: &mut dyn Read) -> io::Result<()> {
        let mut records = Vec::new();
        let mut header = Header::new_ustar();
        if header.set_path(&member.path).is_err() {
            header.set_path("long")?;
            record(&mut records, "path".as_bytes(), member.path.as_os_str().as_bytes());
        }
        if let MemberKind::Link(to) = &member.kind
            && header.set_link_name_literal(to.as_os_str().as_bytes()).is_err()
        {
            record(&mut records, "linkpath".as_bytes(), to.as_os_str().as_bytes());
        }
        if member.mtime.timestamp_subsec_nanos() > 0 && member.mtime.timestamp() >= 0 {
            let time = format!("{}.{:09}", member.mtime.timestamp(), member.mtime.timestamp_subsec_nanos());
            record(&mut records, "mtime".as_bytes(), time.as_bytes());
        }
        // A name that does not fit goes by its number.
        let _ = header.set_username(&member.user.1);
        let _ = header.set_groupname(&member.group.1);
        for (name, value) in &member.xattrs {
            record(&mut records, &[XATTR.as_bytes(), name.as_slice()].concat(), value);
        }
        let (kind, size) = match &member.kind {
            MemberKind::File(size) => (EntryType::Regular, *size),
            MemberKind::Directory => (EntryType::Directory, 0),
            MemberKind::Link(_) => (EntryType::Symlink, 0),
        };
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(member.mode & 0o7777);
        header.set_uid(member.user.0.into());
        header.set_gid(member.group.0.into());
        header.set_mtime(u64::try_from(member.mtime.timestamp()).unwrap_or(0));
        header.set_cksum();
        if !records.is_empty() {
            self.records(&records)?;
        }
        self.0.write_all(header.as_bytes())?;
        if size > 0 && io::copy(&mut content.take(size), &mut self.0)? != size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.pad(size)
    }

    fn records(&mut self, records: &[u8]) -> io::Result<()> {
        let mut header = Header::new_ustar();
        header.set_path("PaxHeaders/member")?;
        header.set_entry_type(EntryType::XHeader);
        header.set_mode(0o644);
        header.set_size(records.len() as u64);
        header.set_cksum();
        self.0.write_all(header.as_bytes())?;
        self.0.write_all(records)?;
        self.pad(records.len() as u64)
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let over = (size % BLOCK as u64) as usize;
        if over > 0 { self.0.write_all(&[0; BLOCK][over..]) } else { Ok(()) }
    }

    /// Ends the archive.
    pub fn finish(mut self) -> io::Result<W> {
        self.0.write_all(&[0; 2 * BLOCK])?;
        Ok(self.0)
    }
}

/// Adds `<length> <key>=<value>\n`; the length counts its own digits.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(format!("{length} ").as_bytes());
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

/// The keys and values of a member's records.
fn records(mut text: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
    let mut found = Vec::new();
    while !text.is_empty() {
        let digits = text.iter().position(|b| *b == b' ')?;
        let length: usize = std::str::from_utf8(&text[..digits]).ok()?.parse().ok()?;
        let (record, rest) = text.split_at_checked(length)?;
        let record = record.get(digits + 1..)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|b| *b == b'=')?;
        found.push((&record[..equals], &record[equals + 1..]));
        text = rest;
    }
    Some(found)
}

/// Hands on every member of the archive with the bytes of its content. What Walden does not write is refused: a path
/// that leads out, a device, a hard link.
pub fn read_members(tar: impl Read, mut each: impl FnMut(Member, &mut dyn Read) -> Result<()>) -> Result<()> {
    let mut archive = tar::Archive::new(tar);
    let mut before: Vec<u8> = Vec::new();
    for entry in archive.entries().map_err(unreadable)?.raw(true) {
        let mut entry = entry.map_err(unreadable)?;
        if entry.header().entry_type() == EntryType::XHeader {
            before.clear();
            entry.by_ref().take(RECORDS).read_to_end(&mut before).map_err(unreadable)?;
            continue;
        }
        let member = member(entry.header(), &std::mem::take(&mut before))?;
        each(member, &mut entry)?;
    }
    Ok(())
}

fn member(header: &Header, before: &[u8]) -> Result<Member> {
    let records = records(before).ok_or_else(|| Error::damaged("the records of a member cannot be read"))?;
    let find = |key: &str| records.iter().find(|(k, _)| *k == key.as_bytes()).map(|(_, value)| *value);
    let path = match find("path") {
        Some(path) => PathBuf::from(OsStr::from_bytes(path)),
        None => header.path().map_err(unreadable)?.into_owned(),
    };
    if path.as_os_str().is_empty() || !path.components().all(|c| matches!(c, Component::Normal(_))) {
        return Err(Error::damaged(format!("a member is called \"{}\"", path.display())));
    }
    let kind = match header.entry_type() {
        EntryType::Regular => MemberKind::File(header.size().map_err(unreadable)?),
        EntryType::Directory => MemberKind::Directory,
        EntryType::Symlink => {
            let named = find("linkpath").map(<[u8]>::to_vec);
            let to = named.or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned));
            let to = to.ok_or_else(|| Error::damaged(format!("the link {} leads nowhere", path.display())))?;
            MemberKind::Link(PathBuf::from(OsStr::from_bytes(&to)))
        }
        other => return Err(Error::damaged(format!("{} is of the kind {other:?}", path.display()))),
    };
    let number = |found: io::Result<u64>| u32::try_from(found.map_err(unreadable)?).map_err(|_| too_great(&path));
    let name = |found: Option<&[u8]>| String::from_utf8_lossy(found.unwrap_or_default()).into_owned();
    let (uid, gid) = (number(header.uid())?, number(header.gid())?);
    let xattr = |(key, value): &(&[u8], &[u8])| Some((key.strip_prefix(XATTR.as_bytes())?.to_vec(), value.to_vec()));
    Ok(Member {
        kind,
        mode: header.mode().map_err(unreadable)? & 0o7777,
        user: (uid, name(header.username_bytes())),
        group: (gid, name(header.groupname_bytes())),
        mtime: time(header, find("mtime"))?,
        xattrs: records.iter().filter_map(xattr).collect(),
        path,
    })
}

fn time(header: &Header, exact: Option<&[u8]>) -> Result<DateTime<Utc>> {
    let exact = exact.and_then(|text| {
        let (seconds, nanos) = std::str::from_utf8(text).ok()?.split_once('.')?;
        DateTime::from_timestamp(seconds.parse().ok()?, nanos.parse().ok()?)
    });
    let whole = i64::try_from(header.mtime().map_err(unreadable)?).unwrap_or_default();
    Ok(exact.or_else(|| DateTime::from_timestamp(whole, 0)).unwrap_or_default())
}

fn too_great(path: &Path) -> Error {
    Error::damaged(format!("the owner of {} has an impossible number", path.display()))
}

fn unreadable(error: io::Error) -> Error {
    bridge::from_io(error, |e| Error::damaged("the archive cannot be read").source(e))
}

impl System {
    /// Hands every member of a backup's extra files to `each`, on a thread of its own, and proves the object. What
    /// `each` did with the members counts only when that ends well.
    pub async fn extra<T: Send + 'static>(
        &self,
        backup: BackupId,
        object: &ExtraObject,
        mut state: T,
        mut each: impl FnMut(&mut T, Member, &mut dyn Read) -> Result<()> + Send + 'static,
    ) -> Result<T> {
        let key = self.folder.extra(backup, object.number)?;
        let download = self.store.get(&key, None).await.map_err(|e| match e.kind() {
            Kind::NotFound => Error::damaged(format!("backup {backup} has lost its extra files {key}")),
            _ => e,
        })?;
        let body = bridge::BodyReader::new(download.body, tokio::runtime::Handle::current());
        let expected = (object.blake3, object.length);
        let read = tokio::task::spawn_blocking(move || {
            let internal = |e| Error::internal("start the zstd decoder").source(e);
            let mut frames = zstd::Decoder::new(HashReader::new(body)).map_err(internal)?;
            read_members(&mut frames, |member, content| each(&mut state, member, content))?;
            io::copy(&mut frames, &mut io::sink()).map_err(unreadable)?;
            let mut stored = frames.finish();
            io::copy(&mut stored, &mut io::sink()).map_err(unreadable)?;
            if stored.get_ref().digest() == expected {
                Ok(state)
            } else {
                Err(Error::damaged("the object does not have the hash that the backup's document tells"))
            }
        })
        .await;
        join(read)?.map_err(|e| e.context(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn path() -> impl Strategy<Value = PathBuf> {
        let name = prop::collection::vec(any::<u8>().prop_filter("no name", |b| ![0, b'/'].contains(b)), 1..120);
        let name = name.prop_filter("no name", |n| n != b"." && n != b"..");
        prop::collection::vec(name, 1..5)
            .prop_map(|names| names.iter().map(|n| OsStr::from_bytes(n)).collect::<PathBuf>())
    }

    fn any_member() -> impl Strategy<Value = (Member, Vec<u8>)> {
        let bytes = || prop::collection::vec(any::<u8>(), 0..1500);
        let kind = prop_oneof![
            bytes().prop_map(|b| (MemberKind::File(b.len() as u64), b)),
            Just((MemberKind::Directory, Vec::new())),
            path().prop_map(|p| (MemberKind::Link(Path::new("/..").join(p)), Vec::new())),
        ];
        let xattrs = prop::collection::vec(("user\\.[a-z]{1,20}".prop_map(String::into_bytes), bytes()), 0..3);
        let owner = || (any::<u32>(), "[a-z]{0,20}");
        let time = (0..4_000_000_000_i64, 0..1_000_000_000_u32);
        (path(), kind, 0..0o10000_u32, owner(), owner(), time, xattrs).prop_map(
            |(path, (kind, content), mode, user, group, (seconds, nanos), xattrs)| {
                let mtime = DateTime::from_timestamp(seconds, nanos).unwrap();
                (Member { path, kind, mode, user, group, mtime, xattrs }, content)
            },
        )
    }

    fn write(members: &[(Member, Vec<u8>)]) -> Vec<u8> {
        let mut writer = ExtraWriter::new(Vec::new());
        for (member, content) in members {
            writer.add(member, &mut content.as_slice()).unwrap();
        }
        writer.finish().unwrap()
    }

    proptest! {
        #[test]
        fn any_members_come_back(members in prop::collection::vec(any_member(), 0..6)) {
            let archive = write(&members);
            let mut back = Vec::new();
            read_members(&archive[..], |member, content| {
                let mut bytes = Vec::new();
                content.read_to_end(&mut bytes).unwrap();
                back.push((member, bytes));
                Ok(())
            }).unwrap();
            prop_assert_eq!(back, members);
        }

        #[test]
        fn no_bytes_make_it_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..2000), start in any_member()) {
            bytes.splice(0..0, write(&[start]).into_iter().take(700));
            let _ = read_members(&bytes[..], |_, content| io::copy(content, &mut io::sink()).map(drop).map_err(unreadable));
        }
    }

    #[test]
    fn a_path_that_leads_out_is_refused() {
        let mut member = Member {
            path: "a".into(),
            kind: MemberKind::Directory,
            mode: 0o755,
            user: (0, String::new()),
            group: (0, String::new()),
            mtime: DateTime::UNIX_EPOCH,
            xattrs: Vec::new(),
        };
        for path in ["../a", "/a", "a/../b"] {
            let mut records = Vec::new();
            record(&mut records, b"path", path.as_bytes());
            member.path = "x".into();
            let mut writer = ExtraWriter::new(Vec::new());
            writer.records(&records).unwrap();
            writer.add(&member, &mut io::empty()).unwrap();
            let archive = writer.finish().unwrap();
            let error = read_members(&archive[..], |_, _| Ok(())).unwrap_err();
            assert_eq!(error.kind(), Kind::Damaged, "{path}");
        }
    }
}
