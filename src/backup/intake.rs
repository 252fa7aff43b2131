//! Takes in what a server sends of a base backup: its tar archives are read as they come and cut into the parts of
//! our own, and its manifest is held against what was stored. Memory does not grow with the stream: the sender waits.

mod arrival;
mod changed;
mod spool;

use std::{
    io::{self, Read},
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
    sync::{Arc, OnceLock},
};

use bytes::{Buf, Bytes};
use chrono::DateTime;
use tokio::{runtime::Handle, sync::mpsc::Receiver};

use self::{arrival::Arriving, spool::Spool};
use super::{
    ancestor::Ancestor,
    part::{Attributes, Parts},
    shelf::Shelf,
    source::{self, CHUNK, Pages},
    summaries::Cuts,
    workers::Haul,
};
use crate::{
    error::{Error, Result},
    interrupt::Interrupt,
    pace::Throttle,
    postgres::{
        ControlFile,
        backup_label::{BACKUP_LABEL, BackupLabel, TABLESPACE_MAP, TablespaceMap},
        backup_manifest::{ManifestFile, ManifestReader},
        control::CONTROL_FILE,
        datadir::{self, FileKind},
        replication::base_backup::{Archive, Piece},
    },
    progress::Progress,
    repository::Directory,
};

/// Files of up to so many bytes are held in memory.
const SMALL: u64 = 1 << 20;

/// What the intake works with.
pub struct Intake {
    /// Where to store.
    pub parts: Arc<Parts>,
    /// What to compare with.
    pub ancestor: Option<Arc<Ancestor>>,
    /// What was cut off since, when only the changed blocks of the ancestor's files come.
    pub incremental: Option<Arc<Cuts>>,
    /// A file of that kind of which the ancestor has no map after all: then the intake fails, and all must come.
    pub without_map: Arc<OnceLock<PathBuf>>,
    /// The size of a block.
    pub block_size: u32,
    /// What will come.
    pub archives: Vec<Archive>,
    /// How pages are proven, the first page's number aside; `None` in a cluster without checksums.
    pub pages: Option<Pages>,
    /// Pages in one file of a relation.
    pub relation_segment_blocks: u32,
    /// Paths to leave out.
    pub exclude: Vec<PathBuf>,
    /// How fast to take.
    pub throttle: Throttle,
    /// Who watches.
    pub progress: Arc<dyn Progress>,
    /// Who may ask to stop.
    pub interrupt: Interrupt,
}

/// What was taken in.
pub struct Received {
    /// Files, parts and bad pages.
    pub haul: Haul,
    /// Directories, parents before children.
    pub directories: Vec<Directory>,
    /// The control file.
    pub control: ControlFile,
    /// The `backup_label`.
    pub label: BackupLabel,
}

impl Intake {
    /// Takes in everything until the sender ends. On a thread of its own.
    pub fn run(self, pieces: Receiver<Piece>, runtime: Handle) -> Result<Received> {
        let mut pieces = Pieces { from: pieces, chunk: Bytes::new(), next: None };
        let mut taking = Taking {
            shelf: Shelf::new(self.parts.clone(), runtime),
            intake: self,
            spool: None,
            haul: Haul::default(),
            as_sent: Vec::new(),
            merged: 0,
            directories: Vec::new(),
            control: None,
            label: None,
            buffer: vec![0; CHUNK],
        };
        let mut proven = false;
        while let Some(head) = pieces.head() {
            match head {
                Piece::Archive(number) => taking.archive(number, &mut pieces)?,
                Piece::Manifest => {
                    taking.prove(&mut pieces)?;
                    proven = true;
                }
                Piece::Data(_) => return Err(Error::internal("data before the head of an archive")),
            }
        }
        if proven { taking.end() } else { Err(cut()) }
    }
}

struct Taking {
    intake: Intake,
    shelf: Shelf,
    spool: Option<Spool>,
    haul: Haul,
    /// Files that are not stored as they were sent: path, size and CRC-32C of what was.
    as_sent: Vec<ManifestFile>,
    /// How many of them are stored in another form.
    merged: usize,
    directories: Vec<Directory>,
    control: Option<Vec<u8>>,
    label: Option<Vec<u8>>,
    buffer: Vec<u8>,
}

impl Taking {
    fn archive(&mut self, number: usize, pieces: &mut Pieces) -> Result<()> {
        let tablespace = self.intake.archives.get(number).and_then(|archive| archive.tablespace);
        let root = tablespace.map_or_else(PathBuf::new, |oid| Path::new("pg_tblspc").join(oid.to_string()));
        let mut archive = tar::Archive::new(pieces);
        // PostgreSQL writes plain ustar: names that go on in other members are not its own.
        for entry in archive.entries().map_err(unreadable)?.raw(true) {
            let mut entry = entry.map_err(unreadable)?;
            let header = entry.header();
            let path = below(&root, &header.path_bytes())?;
            let (kind, mode) = (header.entry_type(), header.mode().map_err(unreadable)? & 0o7777);
            let mtime = header.mtime().map_err(unreadable)?;
            let mtime = i64::try_from(mtime).ok().and_then(|s| DateTime::from_timestamp(s, 0)).unwrap_or_default();
            match kind {
                tar::EntryType::Regular => {
                    let (size, attributes) = (entry.size(), Attributes { mode, mtime });
                    self.file(&mut Arriving { path, size, attributes, from: &mut entry })?;
                }
                tar::EntryType::Directory => self.directory(&root, path, mode),
                // A tablespace's link, which the list of tablespaces tells, too.
                tar::EntryType::Symlink if path.starts_with("pg_tblspc") => {}
                _ => {
                    return Err(Error::failed(format!(
                        "the server sent \"{}\", which is neither a file nor a directory",
                        path.display()
                    )));
                }
            }
        }
        Ok(())
    }

    fn directory(&mut self, root: &Path, path: PathBuf, mode: u32) {
        // The archive of a tablespace begins with what is in it.
        if path.parent() == Some(root) && !root.as_os_str().is_empty() {
            self.directories.push(Directory { path: root.to_path_buf(), mode });
        }
        self.directories.push(Directory { path, mode });
    }

    fn is_stored(&self, path: &Path) -> bool {
        !datadir::is_left_to_restore(path) && !self.intake.exclude.iter().any(|e| path.starts_with(e))
    }

    fn pages_of(&self, path: &Path) -> Option<Pages> {
        let FileKind::Relation(relation) = FileKind::of(path) else { return None };
        let first = relation.first_block(self.intake.relation_segment_blocks);
        self.intake.pages.map(|pages| Pages { first, ..pages })
    }

    /// Holds the server's manifest against what was received: every file of it, no other, and each byte.
    fn prove(&mut self, pieces: &mut Pieces) -> Result<()> {
        self.haul.files.sort();
        self.as_sent.sort_by(|a, b| a.path.cmp(&b.path));
        let (files, as_sent) = (&self.haul.files, &self.as_sent);
        let received = |path: &Path| -> Option<(u64, u32)> {
            match as_sent.binary_search_by(|f| f.path.as_path().cmp(path)) {
                Ok(at) => as_sent.get(at).map(|f| (f.size, f.crc32c)),
                Err(_) => {
                    let file = files.at(files.find(path)?);
                    Some((file.size, file.crc32c))
                }
            }
        };
        let (mut reader, mut named) = (ManifestReader::default(), 0);
        loop {
            let count = pieces.read(&mut self.buffer).map_err(unreadable)?;
            if count == 0 {
                break;
            }
            reader.feed(&self.buffer[..count], |file| {
                named += 1;
                match received(&file.path) {
                    Some(ours) if ours == (file.size, file.crc32c) => Ok(()),
                    Some(_) => Err(differs(format_args!("{} is not what was received", file.path.display()))),
                    None => Err(differs(format_args!("{} was not received", file.path.display()))),
                }
            })?;
        }
        reader.finish()?;
        let count = files.len() - self.merged + as_sent.len();
        if named == count { Ok(()) } else { Err(differs(format_args!("it names {named} files of {count}"))) }
    }

    /// The server was not asked for a map: 14 and 15 would then leave out tablespaces without a link.
    fn map(&mut self) -> Result<()> {
        let outside = self.intake.archives.iter().filter(|a| a.location.is_absolute());
        let entries: Vec<_> = outside.filter_map(|a| Some((a.tablespace?, a.location.clone()))).collect();
        let label = self.haul.files.find(Path::new(BACKUP_LABEL)).map(|number| self.haul.files.at(number));
        let (Some(label), false) = (label, entries.is_empty()) else { return Ok(()) };
        let attributes = Attributes { mode: label.mode, mtime: label.mtime };
        let bytes = TablespaceMap { entries }.to_bytes();
        let file = source::store_bytes(Path::new(TABLESPACE_MAP), &bytes, attributes, self.shelf.part()?)?;
        self.haul.files.push(&file);
        Ok(())
    }

    fn end(mut self) -> Result<Received> {
        self.map()?;
        self.haul.parts = self.shelf.finish()?;
        let missing = |what: &str| Error::damaged(format!("the server sent no {what}"));
        let control = ControlFile::parse(&self.control.ok_or_else(|| missing(CONTROL_FILE))?)
            .map_err(|e| e.hint("the server may have been writing it just then: take the backup again"))?;
        let label = String::from_utf8_lossy(&self.label.ok_or_else(|| missing(BACKUP_LABEL))?).into_owned();
        let mut directories = self.directories;
        directories.retain(|d| !self.intake.exclude.iter().any(|e| d.path.starts_with(e) && d.path != *e));
        directories.sort_by(|a, b| a.path.cmp(&b.path));
        directories.dedup_by(|a, b| a.path == b.path);
        Ok(Received { haul: self.haul, directories, control, label: BackupLabel::parse(&label)? })
    }
}

/// The pieces as a stream of bytes that ends where the next archive begins.
struct Pieces {
    from: Receiver<Piece>,
    chunk: Bytes,
    next: Option<Piece>,
}

impl Pieces {
    /// What begins next, past what is left of what was before; `None` when the sender has ended.
    fn head(&mut self) -> Option<Piece> {
        self.chunk.clear();
        while self.next.is_none() {
            match self.from.blocking_recv()? {
                Piece::Data(_) => {}
                head => self.next = Some(head),
            }
        }
        self.next.take()
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            if self.next.is_some() {
                return Ok(0);
            }
            match self.from.blocking_recv() {
                None => return Ok(0),
                Some(Piece::Data(bytes)) => self.chunk = bytes,
                Some(head) => self.next = Some(head),
            }
        }
        let count = buffer.len().min(self.chunk.len());
        self.chunk.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

/// The path of a member, which must not lead out.
fn below(root: &Path, name: &[u8]) -> Result<PathBuf> {
    let name = Path::new(std::ffi::OsStr::from_bytes(name));
    let plain = name.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
    let path: PathBuf = root.components().chain(name.components().filter(|c| *c != Component::CurDir)).collect();
    if plain && !path.as_os_str().is_empty() {
        Ok(path)
    } else {
        Err(Error::failed(format!("the server sent a file called \"{}\"", name.display())))
    }
}

fn unreadable(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => cut(),
        _ => Error::failed("an archive that the server sent cannot be read").source(error),
    }
}

fn cut() -> Error {
    Error::failed("what the server sent is cut short")
}

fn differs(how: std::fmt::Arguments<'_>) -> Error {
    Error::damaged(format!("what was received is not what the server's manifest says: {how}"))
        .hint("take the backup again; if it happens again, suspect the network or the memory of one of the hosts")
}

#[cfg(test)]
mod tests;
