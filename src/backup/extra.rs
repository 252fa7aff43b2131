//! Files from outside the data directory: the server's configuration where it lies elsewhere, and what `[backup] files`
//! names. They are stored in one object, with owners, modes and extended attributes. What cannot be had is told, and
//! written into the backup's document; it does not stop the backup.

mod find;
mod glob;

use std::{
    fs::{self, File, Metadata},
    io::{self, Cursor, Read, Write},
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
};

use chrono::DateTime;
use rustix::fs::{Mode, OFlags};
use tokio::runtime::Handle;

use super::request::{BackupRequest, Surroundings};
use crate::{
    error::{Error, Result},
    interrupt::Interrupt,
    postgres::{
        account,
        sql::{ServerFacts, Session},
    },
    repository::{BackupId, ExtraObject, ExtraWriter, LeftOut, Member, MemberKind, System, join},
    seal::{FrameWriter, HashWriter},
    store::{Put, bridge},
};

/// A file up to this many bytes is read at once, and again when it was written meanwhile.
const SMALL: u64 = 4 << 20;
const ATTEMPTS: u32 = 5;

/// What came of it.
#[derive(Debug, Default)]
pub struct Taken {
    /// The object, if there is one.
    pub object: Option<ExtraObject>,
    /// What is not in it.
    pub left_out: Vec<LeftOut>,
}

impl Taken {
    /// What is not in it, in words.
    pub fn words(&self) -> impl Iterator<Item = String> {
        self.left_out.iter().map(|l| format!("{}: {}", l.path, l.why))
    }
}

/// Stores the extra files of a server that runs on this host.
pub async fn take(
    system: &System,
    request: &BackupRequest,
    around: &Surroundings,
    facts: &ServerFacts,
    pgdata: &Path,
    id: BackupId,
) -> Result<Taken> {
    let (config, patterns, pgdata) = (facts.config_files.clone(), request.files.clone(), pgdata.to_path_buf());
    let (system, level, interrupt) = (system.clone(), request.level, around.interrupt.clone());
    let runtime = Handle::current();
    join(
        tokio::task::spawn_blocking(move || {
            let mut found = find::Finder::new(&pgdata)?;
            if config.is_empty() && !fs::symlink_metadata(pgdata.join("postgresql.conf")).is_ok_and(|m| m.is_file()) {
                found.leave_out(
                    "postgresql.conf",
                    "the role may not ask where it lies: grant pg_read_all_settings to it",
                );
            }
            found.configuration(&config);
            for pattern in &patterns {
                found.pattern(pattern);
            }
            let (paths, left_out) = found.finish();
            let mut taking = Taking { left_out, files: 0, size: 0, interrupt };
            let object = match paths.is_empty() {
                true => None,
                false => taking.store(&system, id, level, &runtime, paths)?,
            };
            taking.left_out.sort();
            taking.left_out.dedup();
            Ok(Taken { object, left_out: taking.left_out })
        })
        .await,
    )?
}

/// What a backup over the replication protocol cannot have.
pub async fn out_of_reach(request: &BackupRequest) -> Taken {
    let why = "a remote backup reads no files of the server's host outside its data directory";
    let facts = match Session::open(&request.conninfo).await {
        Ok(session) => session.server_facts().await.ok(),
        Err(_) => None,
    };
    let pgdata = facts.as_ref().and_then(|f| f.data_directory.clone());
    let configuration = facts.iter().flat_map(|f| &f.config_files);
    let outside = configuration.filter(|path| pgdata.as_ref().is_some_and(|pgdata| !path.starts_with(pgdata)));
    let paths = outside.map(|path| path.display().to_string()).chain(request.files.iter().cloned());
    Taken { object: None, left_out: paths.map(|path| LeftOut { path, why: why.into() }).collect() }
}

struct Taking {
    left_out: Vec<LeftOut>,
    files: u64,
    size: u64,
    interrupt: Interrupt,
}

impl Taking {
    fn store(
        &mut self,
        system: &System,
        id: BackupId,
        level: i32,
        runtime: &Handle,
        paths: Vec<PathBuf>,
    ) -> Result<Option<ExtraObject>> {
        let key = system.folder.extra(id, 1)?;
        let upload = runtime.block_on(system.store.upload(&key))?;
        let hashed = HashWriter::new(bridge::UploadWriter::new(upload, runtime.clone()));
        let mut archive = ExtraWriter::new(FrameWriter::new(hashed, level).map_err(failed)?);
        for path in paths {
            self.interrupt.check()?;
            match Source::open(&path) {
                Ok(Some(mut source)) => self.add(&mut archive, &path, &mut source)?,
                Ok(None) => self.leave_out(&path, "it is neither a file nor a folder nor a link"),
                Err(e) => self.leave_out(&path, &why(&e)),
            }
        }
        if self.files == 0 {
            return Ok(None);
        }
        let (mut out, frames, _) = archive.finish().and_then(FrameWriter::finish).map_err(failed)?;
        out.write_all(&frames.to_bytes()).map_err(failed)?;
        let (blake3, length) = out.digest();
        match out.into_inner().finish()? {
            Put::Created => Ok(Some(ExtraObject { number: 1, length, blake3, files: self.files, size: self.size })),
            Put::Exists => Err(Error::refused(format!("{key} is there already: another program wrote this backup"))),
        }
    }

    fn add<W: Write>(&mut self, archive: &mut ExtraWriter<W>, path: &Path, source: &mut Source) -> Result<()> {
        for name in std::mem::take(&mut source.unreadable) {
            self.leave_out(path, &format!("its attribute {name} cannot be read"));
        }
        if let MemberKind::File(size) = source.member.kind {
            self.files += 1;
            self.size += size;
        }
        archive.add(&source.member, &mut source.content).map_err(failed)?;
        if source.content.missing > 0 {
            self.leave_out(path, "it became shorter while it was read: its end is stored as zeros");
        }
        Ok(())
    }

    fn leave_out(&mut self, path: &Path, why: &str) {
        self.left_out.push(LeftOut { path: path.display().to_string(), why: why.to_owned() });
    }
}

fn failed(error: io::Error) -> Error {
    bridge::from_io(error, |e| Error::internal("write the extra files").source(e))
}

/// An error of the operating system in its own words, without the number.
fn why(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_lowercase()
}

/// Something that is to be stored.
struct Source {
    member: Member,
    content: Content,
    /// Extended attributes that could not be read.
    unreadable: Vec<String>,
}

impl Source {
    /// `None` for what has no place in an archive.
    fn open(path: &Path) -> io::Result<Option<Self>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let seen = fs::symlink_metadata(path)?;
        if seen.is_symlink() {
            let kind = MemberKind::Link(fs::read_link(path)?);
            let content = Content { at_hand: Cursor::default(), rest: None, missing: 0 };
            return Ok(Some(Self { member: member(path, kind, &seen), content, unreadable: Vec::new() }));
        }
        if !seen.is_file() && !seen.is_dir() {
            return Ok(None);
        }
        let handle = rustix::fs::open(path, flags, Mode::empty())?;
        let mut file = File::from(handle);
        let mut metadata = file.metadata()?;
        let (xattrs, unreadable) = xattrs(&file)?;
        let mut content = Content { at_hand: Cursor::default(), rest: None, missing: 0 };
        let kind = if metadata.is_dir() {
            MemberKind::Directory
        } else if metadata.len() > SMALL {
            content.rest = Some(file.take(metadata.len()));
            content.missing = metadata.len();
            MemberKind::File(metadata.len())
        } else {
            let bytes;
            (bytes, metadata) = steady(&mut file)?;
            let size = bytes.len() as u64;
            content.at_hand = Cursor::new(bytes);
            MemberKind::File(size)
        };
        let member = Member { xattrs, ..member(path, kind, &metadata) };
        Ok(Some(Self { member, content, unreadable }))
    }
}

/// The content of a small file as it stood at one moment, as far as its time and length tell.
fn steady(file: &mut File) -> io::Result<(Vec<u8>, Metadata)> {
    let stamp = |m: &Metadata| (m.len(), m.mtime(), m.mtime_nsec());
    let mut attempts = 0;
    loop {
        let before = file.metadata()?;
        let mut bytes = Vec::new();
        io::Seek::rewind(file)?;
        file.take(16 * SMALL).read_to_end(&mut bytes)?;
        attempts += 1;
        if stamp(&before) == stamp(&file.metadata()?) && bytes.len() as u64 == before.len() || attempts > ATTEMPTS {
            return Ok((bytes, before));
        }
    }
}

fn member(path: &Path, kind: MemberKind, metadata: &Metadata) -> Member {
    let time = DateTime::from_timestamp(metadata.mtime(), u32::try_from(metadata.mtime_nsec()).unwrap_or(0));
    Member {
        path: path.strip_prefix("/").unwrap_or(path).to_path_buf(),
        kind,
        mode: metadata.mode() & 0o7777,
        user: (metadata.uid(), account::user_name(metadata.uid()).unwrap_or_default()),
        group: (metadata.gid(), account::group_name(metadata.gid()).unwrap_or_default()),
        mtime: time.unwrap_or_default(),
        xattrs: Vec::new(),
    }
}

type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// The extended attributes of an open file, and the names of those that cannot be read.
fn xattrs(file: impl AsFd) -> io::Result<(Xattrs, Vec<String>)> {
    let mut names = vec![0; 64 << 10];
    let length = match rustix::fs::flistxattr(&file, names.as_mut_slice()) {
        Ok(length) => length,
        // Not every file system has any.
        Err(rustix::io::Errno::NOTSUP) => 0,
        Err(e) => return Err(e.into()),
    };
    names.truncate(length);
    let (mut found, mut unreadable) = (Vec::new(), Vec::new());
    for name in names.split(|b| *b == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 64 << 10];
        match rustix::fs::fgetxattr(&file, name, value.as_mut_slice()) {
            // The archive has no way to write such a name.
            Ok(length) if !name.contains(&b'=') => {
                value.truncate(length);
                found.push((name.to_vec(), value));
            }
            Err(rustix::io::Errno::NODATA) => {}
            _ => unreadable.push(String::from_utf8_lossy(name).into_owned()),
        }
    }
    Ok((found, unreadable))
}

/// Exactly the bytes that the header tells: the end of a file that became shorter is zeros.
struct Content {
    at_hand: Cursor<Vec<u8>>,
    rest: Option<io::Take<File>>,
    /// Bytes of a great file that are still to come; those that had to be made up stay.
    missing: u64,
}

impl Read for Content {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(rest) = &mut self.rest else { return self.at_hand.read(buffer) };
        match rest.read(buffer)? {
            0 => {
                buffer.fill(0);
                Ok(buffer.len())
            }
            count => {
                self.missing -= count as u64;
                Ok(count)
            }
        }
    }
}
