//! Takes in what a server sends of a base backup: its tar archives are read as they come and cut into the parts of
//! our own, and its manifest is held against what was stored. Memory does not grow with the stream: the sender waits.

use std::{
    io::{self, Read},
    mem,
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use bytes::{Buf, Bytes};
use chrono::DateTime;
use tokio::{runtime::Handle, sync::mpsc::Receiver};

use super::{
    part::{Attributes, PART_CONTENT, PartWriter, Parts},
    source::{CHUNK, Pages},
    throttle::Throttle,
    workers::Haul,
};
use crate::{
    error::{Error, Result},
    postgres::{
        ControlFile,
        backup_label::{BACKUP_LABEL, BackupLabel, TABLESPACE_MAP},
        backup_manifest::{ManifestFile, ManifestReader},
        control::CONTROL_FILE,
        datadir::{self, FileKind},
        page::{Verdict, verify_page},
        replication::base_backup::{Archive, Piece},
    },
    progress::Progress,
    repository::{BadPage, Directory, File},
    seal::Blake3,
};

/// Of a file that is needed here, too, at most this many bytes are kept.
const SMALL: u64 = 1 << 20;

/// What the intake works with.
pub struct Intake {
    /// Where to store.
    pub parts: Parts,
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
            intake: self,
            runtime,
            part: None,
            haul: Haul::default(),
            left_out: Vec::new(),
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
    runtime: Handle,
    part: Option<PartWriter>,
    haul: Haul,
    /// Files that were sent, but are not stored: path, size and CRC-32C.
    left_out: Vec<ManifestFile>,
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
                tar::EntryType::Regular => self.file(path, &mut entry, Attributes { mode, mtime })?,
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

    fn file(&mut self, path: PathBuf, from: &mut tar::Entry<'_, &mut Pieces>, attributes: Attributes) -> Result<()> {
        let size = from.size();
        let mut part = match self.is_stored(&path, size) {
            false => None,
            true => Some(match self.part.take() {
                Some(part) => part,
                None => self.intake.parts.begin(&self.runtime)?,
            }),
        };
        let layer = part.as_mut().map(|part| part.begin(&path, size, attributes)).transpose()?;
        let mut proof = Proof::new(self.pages_of(&path));
        let mut kept = self.is_needed(&path, size).then(Vec::new);
        let mut left = size;
        while left > 0 {
            let wanted = self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            self.intake.throttle.pass(wanted as u64);
            let chunk = &mut self.buffer[..wanted];
            from.read_exact(chunk).map_err(unreadable)?;
            proof.add(chunk);
            if let Some(part) = &mut part {
                part.data(chunk)?;
            }
            if let Some(kept) = &mut kept {
                kept.extend_from_slice(chunk);
            }
            self.intake.progress.advance(wanted as u64);
            left -= wanted as u64;
        }
        match path.to_str() {
            Some(CONTROL_FILE) => self.control = kept,
            Some(BACKUP_LABEL) => self.label = kept,
            _ => {}
        }
        let crc32c = proof.crc;
        let Some(layer) = layer else {
            self.left_out.push(ManifestFile { path, size, crc32c });
            return Ok(());
        };
        self.haul.bad.extend(proof.bad.iter().map(|b| BadPage { path: path.display().to_string(), block: *b }));
        let layers = if size == 0 { Vec::new() } else { vec![layer] };
        let blake3 = Blake3::from(&proof.hasher);
        let Attributes { mode, mtime } = attributes;
        self.haul.files.push(File { path, size, mtime, mode, blake3, crc32c, layers });
        match part {
            Some(part) if part.content() >= PART_CONTENT => self.haul.parts.push(part.finish()?),
            part => self.part = part,
        }
        Ok(())
    }

    /// A server sends the map even when there is nothing in it.
    fn is_stored(&self, path: &Path, size: u64) -> bool {
        let empty_map = path == Path::new(TABLESPACE_MAP) && size == 0;
        !(empty_map || datadir::is_left_to_restore(path) || self.is_excluded(path))
    }

    fn is_excluded(&self, path: &Path) -> bool {
        self.intake.exclude.iter().any(|e| path.starts_with(e))
    }

    fn is_needed(&self, path: &Path, size: u64) -> bool {
        size <= SMALL && [CONTROL_FILE, BACKUP_LABEL].iter().any(|needed| path == Path::new(needed))
    }

    fn pages_of(&self, path: &Path) -> Option<Pages> {
        let FileKind::Relation(relation) = FileKind::of(path) else { return None };
        let first = relation.first_block(self.intake.relation_segment_blocks);
        self.intake.pages.map(|pages| Pages { first, ..pages })
    }

    /// Holds the server's manifest against what was received: every file of it, no other, and each byte.
    fn prove(&mut self, pieces: &mut Pieces) -> Result<()> {
        self.haul.files.sort_by(|a, b| a.path.cmp(&b.path));
        self.left_out.sort_by(|a, b| a.path.cmp(&b.path));
        let (files, left_out) = (&self.haul.files, &self.left_out);
        let received = |path: &Path| -> Option<(u64, u32)> {
            match files.binary_search_by(|f| f.path.as_path().cmp(path)) {
                Ok(at) => files.get(at).map(|f| (f.size, f.crc32c)),
                Err(_) => {
                    let at = left_out.binary_search_by(|f| f.path.as_path().cmp(path)).ok()?;
                    left_out.get(at).map(|f| (f.size, f.crc32c))
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
        let count = files.len() + left_out.len();
        if named == count { Ok(()) } else { Err(differs(format_args!("it names {named} files of {count}"))) }
    }

    fn end(mut self) -> Result<Received> {
        if let Some(part) = self.part.take() {
            self.haul.parts.push(part.finish()?);
        }
        let missing = |what: &str| Error::damaged(format!("the server sent no {what}"));
        let control = ControlFile::parse(&self.control.ok_or_else(|| missing(CONTROL_FILE))?)
            .map_err(|e| e.hint("the server may have been writing it just then: take the backup again"))?;
        let label = String::from_utf8_lossy(&self.label.ok_or_else(|| missing(BACKUP_LABEL))?).into_owned();
        let mut directories = mem::take(&mut self.directories);
        directories.retain(|d| !self.intake.exclude.iter().any(|e| d.path.starts_with(e) && d.path != *e));
        directories.sort_by(|a, b| a.path.cmp(&b.path));
        directories.dedup_by(|a, b| a.path == b.path);
        Ok(Received { haul: self.haul, directories, control, label: BackupLabel::parse(&label)? })
    }
}

/// What is found out about a file while it passes.
struct Proof {
    hasher: blake3::Hasher,
    crc: u32,
    pages: Option<Pages>,
    /// Pages so far.
    block: u32,
    bad: Vec<u32>,
}

impl Proof {
    fn new(pages: Option<Pages>) -> Self {
        Self { hasher: blake3::Hasher::new(), crc: 0, pages, block: 0, bad: Vec::new() }
    }

    /// The next bytes; whole pages but at the end. The server has read a page again before it sent one that is bad.
    fn add(&mut self, chunk: &[u8]) {
        self.hasher.update(chunk);
        self.crc = crc32c::crc32c_append(self.crc, chunk);
        let Some(Pages { size, first, start }) = self.pages else { return };
        for page in chunk.chunks_exact(size as usize) {
            if let Verdict::Bad { .. } = verify_page(page, first + self.block, start) {
                self.bad.push(self.block);
            }
            self.block += 1;
        }
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
mod tests {
    use super::*;
    use crate::{
        clock::Random,
        postgres::{
            Lsn, SegmentSize, SystemId, TimelineId, Version,
            backup_manifest::{ManifestWriter, WalRange},
            control::tests::seventeen,
        },
        progress::Unwatched,
        repository::{FORMAT, Incarnation, System, SystemDocument},
        store::dir::DirStore,
    };

    const LABEL: &str = "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\n\
        CHECKPOINT LOCATION: 0/2000060\nBACKUP METHOD: streamed\nBACKUP FROM: primary\n\
        START TIME: 2026-11-21 04:39:21 UTC\nLABEL: x\nSTART TIMELINE: 1\n";

    /// The archives of a server: a tablespace and the data directory.
    fn archives() -> Vec<Archive> {
        let archive = |tablespace, location: &str| Archive { tablespace, location: location.into(), size: 0 };
        vec![archive(Some(7), "/srv/apart"), archive(None, "")]
    }

    fn member(kind: tar::EntryType, name: &str, content: &[u8]) -> Vec<u8> {
        let mut header = tar::Header::new_ustar();
        // As a server that means harm would write it.
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(1_700_000_000);
        header.set_cksum();
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    }

    fn file(name: &str, content: &[u8]) -> Vec<u8> {
        member(tar::EntryType::Regular, name, content)
    }

    /// What a server sends: both archives, and a manifest of these files.
    struct Sent {
        tablespace: Vec<Vec<u8>>,
        base: Vec<Vec<u8>>,
        named: Vec<(&'static str, Vec<u8>)>,
    }

    impl Sent {
        fn new() -> Self {
            let control = seventeen();
            let table = vec![3; 300 << 10];
            Self {
                tablespace: vec![
                    member(tar::EntryType::Directory, "PG_17_1/", b""),
                    member(tar::EntryType::Directory, "PG_17_1/5/", b""),
                    file("PG_17_1/5/16384", &table),
                ],
                base: vec![
                    file(BACKUP_LABEL, LABEL.as_bytes()),
                    file(TABLESPACE_MAP, b""),
                    member(tar::EntryType::Directory, "global/", b""),
                    member(tar::EntryType::Symlink, "pg_tblspc/7/", b""),
                    file("standby.signal", b""),
                    file(CONTROL_FILE, &control),
                ],
                named: vec![
                    ("pg_tblspc/7/PG_17_1/5/16384", table),
                    (BACKUP_LABEL, LABEL.into()),
                    (TABLESPACE_MAP, Vec::new()),
                    ("standby.signal", Vec::new()),
                    (CONTROL_FILE, control),
                ],
            }
        }

        fn pieces(&self) -> Vec<Piece> {
            let mut manifest = ManifestWriter::new(Vec::new(), Version(17), SystemId(7)).unwrap();
            for (path, content) in &self.named {
                let (size, crc) = (content.len() as u64, crc32c::crc32c(content));
                manifest.file(Path::new(path), size, DateTime::UNIX_EPOCH, crc).unwrap();
            }
            let range = WalRange { timeline: TimelineId::FIRST, start: Lsn(1), end: Lsn(2) };
            let manifest = manifest.finish(&[range]).unwrap();
            let mut pieces = Vec::new();
            // The last archive without the blocks that end a tar, as 14 sends it.
            let ended = [self.tablespace.concat(), vec![0; 1024]].concat();
            for (head, bytes) in
                [(Piece::Archive(0), ended), (Piece::Archive(1), self.base.concat()), (Piece::Manifest, manifest)]
            {
                pieces.push(head);
                pieces.extend(bytes.chunks(1000).map(|c| Piece::Data(Bytes::copy_from_slice(c))));
            }
            pieces
        }
    }

    /// Takes it in; the exclusion is what a user may have configured.
    fn take(pieces: Vec<Piece>, exclude: &str) -> Result<Received> {
        let folder = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let store = Arc::new(DirStore::create(folder.path().join("r"), Arc::new(Random::seeded(1))).unwrap());
            let document = SystemDocument {
                format: FORMAT,
                cluster: "main".parse().unwrap(),
                incarnation: Incarnation { system: SystemId(7), number: 1 },
                postgres: Version(17),
                segment_size: SegmentSize::new(16 << 20).unwrap(),
                block_size: 8192,
                first_seen: DateTime::UNIX_EPOCH,
            };
            let system = System::init(store, document).await.unwrap();
            let intake = Intake {
                parts: Parts::new(system, "20261121T014500Z".parse().unwrap(), 1),
                archives: archives(),
                pages: None,
                relation_segment_blocks: 131_072,
                exclude: vec![exclude.into()],
                throttle: Throttle::new(None),
                progress: Arc::new(Unwatched),
            };
            let (sender, receiver) = tokio::sync::mpsc::channel(1);
            let taking = tokio::task::spawn_blocking(move || intake.run(receiver, Handle::current()));
            for piece in pieces {
                if sender.send(piece).await.is_err() {
                    break;
                }
            }
            drop(sender);
            taking.await.unwrap()
        })
    }

    #[test]
    fn files_lie_where_the_data_directory_has_them() {
        let received = take(Sent::new().pieces(), "none").unwrap();
        let files: Vec<_> = received.haul.files.iter().map(|f| f.path.to_str().unwrap()).collect();
        assert_eq!(files, [BACKUP_LABEL, CONTROL_FILE, "pg_tblspc/7/PG_17_1/5/16384"]);
        let directories: Vec<_> = received.directories.iter().map(|d| d.path.to_str().unwrap()).collect();
        assert_eq!(directories, ["global", "pg_tblspc/7", "pg_tblspc/7/PG_17_1", "pg_tblspc/7/PG_17_1/5"]);
        assert_eq!(received.label.start, Lsn(0x200_0028));
        assert_eq!(received.haul.parts.len(), 1);
        let excluded = take(Sent::new().pieces(), "pg_tblspc/7/PG_17_1/5").unwrap();
        assert_eq!(excluded.haul.files.len(), 2, "what is left out is held against the manifest all the same");
    }

    #[test]
    fn what_the_manifest_does_not_confirm_is_no_backup() {
        let damaged = |sent: &Sent, says: &str| {
            let error = take(sent.pieces(), "none").err().unwrap();
            assert!(error.to_string().contains(says), "{error}");
        };
        let mut changed = Sent::new();
        changed.tablespace[2][512 + 299_000] ^= 1;
        damaged(&changed, "16384 is not what was received");
        let mut lost = Sent::new();
        lost.tablespace.pop();
        damaged(&lost, "16384 was not received");
        let mut more = Sent::new();
        more.base.insert(2, file("more", b"x"));
        damaged(&more, "it names 5 files of 6");
        let mut half_written = Sent::new();
        let control = vec![9; 8192];
        half_written.base[5] = file(CONTROL_FILE, &control);
        half_written.named[4].1 = control;
        damaged(&half_written, "pg_control");
    }

    #[test]
    fn a_stream_that_ends_early_is_no_backup() {
        let whole = Sent::new().pieces();
        for length in (0..whole.len()).step_by(7).chain([whole.len() - 1]) {
            assert!(take(whole[..length].to_vec(), "none").is_err(), "{length} of {}", whole.len());
        }
    }

    #[test]
    fn nothing_leads_out_of_the_data_directory() {
        use tar::EntryType::{Link, Regular, Symlink};
        for (kind, name) in
            [(Regular, "../x"), (Regular, "/etc/x"), (Regular, "base/../../x"), (Link, "x"), (Symlink, "x")]
        {
            let mut sent = Sent::new();
            sent.base.insert(1, member(kind, name, b""));
            let error = take(sent.pieces(), "none").err().unwrap();
            assert!(error.to_string().contains(&format!("\"{name}\"")), "{error}");
        }
    }
}
