//! Reading a file of a running cluster into a part: exactly as many bytes as its header tells, its pages proven.
//!
//! A file may grow, shrink or vanish while it is read. Replay of the WAL from the backup's start mends all of that,
//! so a file that shrinks is filled up with zeros and one that vanishes is left out, as PostgreSQL's own base backup
//! does (`src/backend/backup/basebackup.c`, `sendFile`). A page that PostgreSQL was just writing can be torn: it is
//! read again before its checksum is believed to be wrong.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
    time::Duration,
};

use chrono::{DateTime, Utc};
use rustix::fs::Advice;

use super::{
    part::{Attributes, PartWriter},
    throttle::Throttle,
};
use crate::{
    error::{Error, Result},
    interrupt::Interrupt,
    postgres::{
        Lsn,
        page::{self, Verdict},
    },
    progress::Progress,
    repository::{self, BadPage, Hashed},
    seal::Blake3,
};

/// Bytes read at a time; a multiple of every page size.
pub const CHUNK: usize = 256 << 10;
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

/// A file as it was stored, with the pages that were wrong.
pub struct Stored {
    /// What the manifest says of it.
    pub file: repository::File,
    /// The pages whose checksums were wrong.
    pub bad: Vec<BadPage>,
}

/// Stores the file `path` below `root` in `part`. `None` when it has vanished.
pub fn store(
    root: &Path,
    path: &Path,
    pages: Option<Pages>,
    part: &mut PartWriter,
    watch: Watch<'_>,
) -> Result<Option<Stored>> {
    let full = root.join(path);
    let from = match File::open(&full) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io("open", &full, e)),
    };
    let metadata = from.metadata().map_err(|e| Error::io("stat", &full, e))?;
    let (size, mode) = (metadata.len(), metadata.mode() & 0o7777);
    let mtime = DateTime::<Utc>::from_timestamp(metadata.mtime(), metadata.mtime_nsec() as u32).unwrap_or_default();
    // Advice that is not taken costs nothing.
    let _ = rustix::fs::fadvise(&from, 0, None, Advice::Sequential);
    let layer = part.begin(path, size, Attributes { mode, mtime })?;
    let mut reading = Reading { from, at: 0, left: size, pages, bad: Vec::new() };
    let mut buffer = vec![0; CHUNK.min(usize::try_from(size).unwrap_or(CHUNK)).max(1)];
    let (mut hasher, mut crc) = (blake3::Hasher::new(), 0);
    while reading.left > 0 {
        watch.interrupt.check()?;
        watch.throttle.pass(buffer.len() as u64);
        let chunk = reading.next(&mut buffer).map_err(|e| Error::io("read", &full, e))?;
        hasher.update(chunk);
        crc = crc32c::crc32c_append(crc, chunk);
        part.data(chunk)?;
        watch.progress.advance(chunk.len() as u64);
    }
    let _ = rustix::fs::fadvise(&reading.from, 0, None, Advice::DontNeed);
    let bad = reading.bad.iter().map(|block| BadPage { path: path.display().to_string(), block: *block }).collect();
    let layers = if size == 0 { Vec::new() } else { vec![layer] };
    let blake3 = Blake3::from(&hasher);
    let path = path.to_path_buf();
    let hashed = Hashed::Content;
    let file = repository::File { path, size, mtime, mode, blake3, hashed, crc32c: crc, stat: None, layers };
    Ok(Some(Stored { file: part.record(file, None), bad }))
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
    Ok(part.record(file, None))
}

struct Reading {
    from: File,
    at: u64,
    left: u64,
    pages: Option<Pages>,
    /// Numbers of bad pages, counted from the start of this file.
    bad: Vec<u32>,
}

impl Reading {
    /// The next chunk, filled up with zeros where the file has become shorter.
    fn next<'a>(&mut self, buffer: &'a mut [u8]) -> io::Result<&'a [u8]> {
        let wanted = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let chunk = &mut buffer[..wanted];
        let mut filled = 0;
        while filled < wanted {
            match self.from.read(&mut chunk[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        if let Some(pages) = self.pages {
            self.prove(pages, &mut chunk[..filled])?;
        }
        chunk[filled..].fill(0);
        self.at += wanted as u64;
        self.left -= wanted as u64;
        Ok(chunk)
    }

    fn prove(&mut self, pages: Pages, chunk: &mut [u8]) -> io::Result<()> {
        let size = pages.size as usize;
        for (index, page) in chunk.chunks_exact_mut(size).enumerate() {
            let offset = self.at + (index * size) as u64;
            let block = (offset / size as u64) as u32;
            let verdict = |page: &[u8]| page::verify_page(page, pages.first + block, pages.start);
            let mut attempts = 0;
            while let Verdict::Bad { .. } = verdict(page) {
                attempts += 1;
                if attempts > ATTEMPTS {
                    self.bad.push(block);
                    break;
                }
                std::thread::sleep(PAUSE);
                match self.from.read_exact_at(page, offset) {
                    // The file has become shorter meanwhile: what is stored of this page does not matter.
                    Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => break,
                    read => read?,
                }
            }
        }
        Ok(())
    }
}
