//! Reading a file of a running cluster into a part: exactly as many bytes as its header tells, its pages proven.
//!
//! A file may grow, shrink or vanish while it is read. Replay of the WAL from the backup's start mends all of that,
//! so a file that shrinks is filled up with zeros and one that vanishes is left out, as PostgreSQL's own base backup
//! does (`src/backend/backup/basebackup.c`, `sendFile`). A page that PostgreSQL was just writing can be torn: it is
//! read again before its checksum is believed to be wrong.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::fs::Advice;

use super::{
    ancestor::{Ancestor, Same},
    changes, origin,
    part::{Attributes, PartWriter},
    shelf::Shelf,
    summaries::Changed,
};
use crate::{
    error::{Error, Result},
    interrupt::Interrupt,
    pace::Throttle,
    postgres::{
        Lsn,
        page::{self, Verdict},
    },
    progress::Progress,
    repository::{self, BadPage, FileStat, Hashed, Layer, LayerBlocks},
    seal::Blake3,
};

/// Bytes read at a time; a multiple of every page size.
pub const CHUNK: usize = 256 << 10;
/// Files of at least so many bytes get a map of their blocks; a smaller one is soon stored whole.
const MAPPED: u64 = 128 << 10;
/// Files without a map are compared with the ancestor's up to so many bytes, which are held in memory.
const SMALL: u64 = 1 << 20;
/// How often a page with a wrong checksum is read again, and how long to wait in between: a write of one page is over
/// in far less.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(20);

/// How the pages of a relation's file are to be proven.
#[derive(Clone, Copy, Debug)]
pub struct Pages {
    /// Bytes in a page.
    pub size: u32,
    /// The number, in its fork, of the first page of this file.
    pub first: u32,
    /// Where the backup began: a page that is younger will be written by the replay.
    pub start: Lsn,
}

/// Who watches the reading, and who holds it up.
#[derive(Clone, Copy)]
pub struct Watch<'a> {
    /// Who watches.
    pub progress: &'a dyn Progress,
    /// Who may ask to stop.
    pub interrupt: &'a Interrupt,
    /// How fast to read.
    pub throttle: &'a Throttle,
}

/// What a file's bytes are held against, and where those go that are new.
pub struct Into<'a> {
    /// The parts of this thread.
    pub shelf: &'a mut Shelf,
    /// The backup that is compared with, if there is one.
    pub ancestor: Option<&'a Ancestor>,
    /// What the log tells of the time since the backup that is compared with.
    pub changed: Option<&'a Changed>,
    /// How the file is divided, when it is a relation's.
    pub relation: Option<Blocks>,
}

/// How a relation's file is divided.
#[derive(Clone, Copy, Debug)]
pub struct Blocks {
    /// Bytes in a block.
    pub size: u32,
    /// The number, in the fork, of the file's first block.
    pub first: u32,
}

impl Into<'_> {
    /// The blocks that may differ from the ancestor's; `None` when that is any.
    fn named(&self, opened: &Opened, Blocks { size, first }: Blocks) -> Option<Vec<u32>> {
        let (ancestor, changed) = (self.ancestor?, self.changed?);
        let file = ancestor.file_of_backup(&opened.path)?;
        let count = |bytes: u64| u32::try_from(bytes / u64::from(size)).ok();
        let now = count(opened.size)?;
        let mut named = changed.blocks(&opened.path, first, count(file.size)?, now)?;
        // What was wrong then may have been mended without a word in the log.
        named.extend(ancestor.bad_pages(&opened.path).iter().filter(|block| **block < now));
        named.sort_unstable();
        named.dedup();
        Some(named)
    }
}

/// A file of the backup.
pub enum Seen {
    /// Of which the manifest says what the ancestor's says.
    Same(Same),
    /// Of which it says this.
    New(Stored),
}

/// A file of the backup, with the pages that were wrong.
pub struct Stored {
    /// What the manifest says of it.
    pub file: repository::File,
    /// The pages whose checksums were wrong.
    pub bad: Vec<BadPage>,
}

/// A file that is open, and what was known of it before its first byte was read.
pub(super) struct Opened {
    pub from: File,
    pub full: PathBuf,
    pub path: PathBuf,
    pub size: u64,
    pub attributes: Attributes,
    /// What tells it apart on its file system, where that can be known.
    pub stat: Option<FileStat>,
    pub pages: Option<Pages>,
    /// Whether the server may be writing it, so that a page can be torn.
    pub is_changing: bool,
}

/// Stores the file `path` below `root`, or finds that it is stored already. `None` when it has vanished.
pub fn store(
    root: &Path,
    path: &Path,
    pages: Option<Pages>,
    mut into: Into<'_>,
    watch: Watch<'_>,
) -> Result<Option<Seen>> {
    let full = root.join(path);
    let gone = |e: &io::Error| e.kind() == io::ErrorKind::NotFound;
    if let Some(ancestor) = into.ancestor {
        let now = match fs::metadata(&full) {
            Ok(now) => now,
            Err(e) if gone(&e) => return Ok(None),
            Err(e) => return Err(Error::io("stat", &full, e)),
        };
        if let Some(same) = ancestor.unchanged(path, &now) {
            watch.progress.advance(now.len());
            return Ok(Some(Seen::Same(same)));
        }
    }
    let from = match File::open(&full) {
        Ok(file) => file,
        Err(e) if gone(&e) => return Ok(None),
        Err(e) => return Err(Error::io("open", &full, e)),
    };
    let metadata = from.metadata().map_err(|e| Error::io("stat", &full, e))?;
    // Advice that is not taken costs nothing.
    let _ = rustix::fs::fadvise(&from, 0, None, Advice::Sequential);
    let opened = Opened {
        from,
        full,
        path: path.to_path_buf(),
        size: metadata.len(),
        attributes: Attributes { mode: metadata.mode() & 0o7777, mtime: origin::mtime(&metadata) },
        stat: Some(origin::stat(&metadata)),
        pages,
        is_changing: true,
    };
    let in_blocks = into.relation.filter(|blocks| is_mapped(opened.size, blocks.size));
    let named = in_blocks.and_then(|blocks| into.named(&opened, blocks));
    let stored = match in_blocks {
        Some(blocks) => changes::store(&opened, blocks.size, named.as_deref(), &mut into, watch),
        None => whole(&opened, &mut into, watch),
    }?;
    // Of what was hardly read the server's pages may stay in memory.
    if named.is_none() {
        let _ = rustix::fs::fadvise(&opened.from, 0, None, Advice::DontNeed);
    }
    Ok(Some(Seen::New(stored)))
}

/// Whether a relation's file of that size gets a map of its blocks.
pub(super) fn is_mapped(size: u64, block_size: u32) -> bool {
    size >= MAPPED && size.is_multiple_of(u64::from(block_size))
}

/// Stores a file without a map of its blocks. A small one is compared with the ancestor's first.
fn whole(opened: &Opened, into: &mut Into<'_>, watch: Watch<'_>) -> Result<Stored> {
    let known = into.ancestor.and_then(|a| a.file(&opened.path));
    let known = known.filter(|f| f.hashed == Hashed::Content && f.size == opened.size && f.size <= SMALL);
    let mut reading = Reading::new(opened);
    let mut buffer = vec![0; CHUNK.min(usize::try_from(opened.size).unwrap_or(CHUNK)).max(1)];
    let (mut hasher, mut crc) = (blake3::Hasher::new(), 0);
    if let Some(known) = known {
        buffer = vec![0; opened.size as usize];
        let bytes = reading.next(&mut buffer, watch)?;
        hasher.update(bytes);
        let (blake3, crc32c) = (Blake3::from(&hasher), crc32c::crc32c(bytes));
        let layers = known.layers;
        if blake3 == known.blake3 {
            return Ok(opened.stored(Found { blake3, hashed: Hashed::Content, crc32c, layers }, &reading.bad));
        }
        let part = into.shelf.part()?;
        let layer = part.begin(&opened.path, opened.size, opened.attributes)?;
        part.data(bytes)?;
        let found = Found { blake3, hashed: Hashed::Content, crc32c, layers: layers_of(layer) };
        return Ok(opened.record(part, found, None, &reading.bad));
    }
    let part = into.shelf.part()?;
    let layer = part.begin(&opened.path, opened.size, opened.attributes)?;
    while reading.left > 0 {
        let chunk = reading.next(&mut buffer, watch)?;
        hasher.update(chunk);
        crc = crc32c::crc32c_append(crc, chunk);
        part.data(chunk)?;
    }
    let blake3 = Blake3::from(&hasher);
    let found = Found { blake3, hashed: Hashed::Content, crc32c: crc, layers: layers_of(layer) };
    Ok(opened.record(part, found, None, &reading.bad))
}

/// An empty file needs no layer.
pub(super) fn layers_of(layer: Layer) -> Vec<Layer> {
    if layer.length == 0 { Vec::new() } else { vec![layer] }
}

/// What was found out about the content of a file.
pub(super) struct Found {
    pub blake3: Blake3,
    pub hashed: Hashed,
    pub crc32c: u32,
    pub layers: Vec<Layer>,
}

impl Found {
    /// The file that this was found out about.
    pub(super) fn file(
        self,
        path: &Path,
        size: u64,
        attributes: Attributes,
        stat: Option<FileStat>,
    ) -> repository::File {
        let (Self { blake3, hashed, crc32c, layers }, Attributes { mode, mtime }) = (self, attributes);
        repository::File { path: path.to_path_buf(), size, mtime, mode, blake3, hashed, crc32c, stat, layers }
    }
}

impl Opened {
    fn file(&self, found: Found) -> repository::File {
        found.file(&self.path, self.size, self.attributes, self.stat)
    }

    /// The file, of which nothing new was stored.
    pub(super) fn stored(&self, found: Found, bad: &[u32]) -> Stored {
        Stored { file: self.file(found), bad: bad_pages(&self.path, bad) }
    }

    /// The file, whose newest layer was stored in `part`.
    pub(super) fn record(
        &self,
        part: &mut PartWriter,
        found: Found,
        blocks: Option<&LayerBlocks>,
        bad: &[u32],
    ) -> Stored {
        let bad = bad_pages(&self.path, bad);
        Stored { file: part.record(self.file(found), blocks, &bad), bad }
    }
}

pub(super) fn bad_pages(path: &Path, blocks: &[u32]) -> Vec<BadPage> {
    blocks.iter().map(|block| BadPage { path: path.display().to_string(), block: *block }).collect()
}

/// Stores bytes that are at hand, such as `backup_label`, as a file.
pub fn store_bytes(
    path: &Path,
    bytes: &[u8],
    attributes: Attributes,
    part: &mut PartWriter,
) -> Result<repository::File> {
    let layer = part.begin(path, bytes.len() as u64, attributes)?;
    part.data(bytes)?;
    let file = repository::File {
        path: path.to_path_buf(),
        size: bytes.len() as u64,
        mtime: attributes.mtime,
        mode: attributes.mode,
        blake3: crate::seal::blake3(bytes),
        crc32c: crc32c::crc32c(bytes),
        hashed: Hashed::Content,
        stat: None,
        layers: if bytes.is_empty() { Vec::new() } else { vec![layer] },
    };
    Ok(part.record(file, None, &[]))
}

/// Reads a file from its start to the end that it had when it was opened.
pub(super) struct Reading<'a> {
    opened: &'a Opened,
    at: u64,
    /// Bytes that are still to come.
    pub left: u64,
    /// Numbers of bad pages, counted from the start of this file.
    pub bad: Vec<u32>,
}

impl<'a> Reading<'a> {
    pub(super) fn new(opened: &'a Opened) -> Self {
        Self { opened, at: 0, left: opened.size, bad: Vec::new() }
    }

    /// The next bytes, as many as the buffer takes.
    pub(super) fn next<'b>(&mut self, buffer: &'b mut [u8], watch: Watch<'_>) -> Result<&'b [u8]> {
        let wanted = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let chunk = self.read(self.at, &mut buffer[..wanted], watch)?;
        watch.progress.advance(wanted as u64);
        self.at += wanted as u64;
        self.left -= wanted as u64;
        Ok(chunk)
    }

    /// The bytes at `at`, filled up with zeros where the file has become shorter; their pages are proven.
    pub(super) fn read<'b>(&mut self, at: u64, chunk: &'b mut [u8], watch: Watch<'_>) -> Result<&'b [u8]> {
        watch.interrupt.check()?;
        watch.throttle.pass(chunk.len() as u64);
        self.filled(at, chunk).map_err(|e| Error::io("read", &self.opened.full, e))?;
        Ok(chunk)
    }

    fn filled(&mut self, at: u64, chunk: &mut [u8]) -> io::Result<()> {
        let filled = read_up_to(&self.opened.from, at, chunk)?;
        if let Some(pages) = self.opened.pages {
            self.prove(pages, at, &mut chunk[..filled])?;
        }
        chunk[filled..].fill(0);
        Ok(())
    }

    fn prove(&mut self, pages: Pages, at: u64, chunk: &mut [u8]) -> io::Result<()> {
        let size = pages.size as usize;
        for (index, page) in chunk.chunks_exact_mut(size).enumerate() {
            let offset = at + (index * size) as u64;
            let block = (offset / size as u64) as u32;
            let verdict = |page: &[u8]| page::verify_page(page, pages.first + block, pages.start);
            let mut attempts = 0;
            while let Verdict::Bad { .. } = verdict(page) {
                attempts += 1;
                if attempts > ATTEMPTS || !self.opened.is_changing {
                    self.bad.push(block);
                    break;
                }
                std::thread::sleep(PAUSE);
                match self.opened.from.read_exact_at(page, offset) {
                    // The file has become shorter meanwhile: what is stored of this page does not matter.
                    Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => break,
                    read => read?,
                }
            }
        }
        Ok(())
    }
}

/// Fills `chunk` from the offset `at`; gives back how many bytes there were.
pub(super) fn read_up_to(from: &File, at: u64, chunk: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < chunk.len() {
        match from.read_at(&mut chunk[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}
