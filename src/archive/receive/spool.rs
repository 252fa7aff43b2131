//! The spool: what was received, on local disk until it is durable in the repository. It makes a whole segment out of what
//! comes, and with `flushed_when = "spooled"` it is what a commit waits for.
//!
//! A segment that still grows is `<segment>.partial`; a whole one is made durable and then called `<segment>`.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::{DirBuilderExt, FileExt},
    path::{Path, PathBuf},
};

use super::state::{Held, HeldSegment, Position, Shared};
use crate::{
    error::{Error, Result},
    postgres::{Lsn, SegmentName, SegmentSize, TimelineId, WalFile},
    wal::Summarizer,
};

/// The file that says since which start of the machine the spool was written.
const BOOT: &str = "boot";

/// The folder of the spool of one system in one repository.
#[derive(Clone, Debug)]
pub(super) struct Folder(pub(super) PathBuf);

impl Folder {
    /// Where a file of it lies.
    pub(super) fn path(&self, file: WalFile) -> PathBuf {
        self.0.join(file.to_string())
    }

    fn sync(&self) -> Result<()> {
        File::open(&self.0).and_then(|folder| folder.sync_all()).map_err(|e| Error::io("sync", &self.0, e))
    }
}

/// The spool of one system in one repository.
#[derive(Debug)]
pub(super) struct Spool {
    folder: Folder,
    size: SegmentSize,
    /// Whether it is what a commit waits for.
    durable: bool,
    growing: Option<Growing>,
    /// The history files that came.
    histories: HashMap<TimelineId, Vec<u8>>,
    shared: Shared,
}

#[derive(Debug)]
struct Growing {
    name: SegmentName,
    path: PathBuf,
    file: File,
    length: u64,
}

impl Spool {
    pub(super) fn open(folder: Folder, size: SegmentSize, durable: bool, shared: Shared) -> Result<Self> {
        let create = |e| Error::io("create", &folder.0, e);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder.0).map_err(create)?;
        Ok(Self { folder, size, durable, growing: None, histories: HashMap::new(), shared })
    }

    /// Queues what a receiver before us has left, and keeps nothing that could have been spoilt by a crash of the machine.
    pub(super) fn recover(&mut self) -> Result<()> {
        let same_boot = self.same_boot();
        let mut files = Vec::new();
        let failed = |e| Error::io("read", &self.folder.0, e);
        for entry in fs::read_dir(&self.folder.0).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            files.extend(entry.file_name().to_str().and_then(|name| name.parse::<WalFile>().ok()));
        }
        // A history file comes before the segments of its timeline.
        files.sort_by_key(|file| match file {
            WalFile::History(timeline) => (*timeline, None),
            WalFile::Segment(name) | WalFile::Partial(name) | WalFile::BackupLabel(name, _) => {
                (name.timeline, Some(*name))
            }
        });
        for file in files {
            let path = self.folder.path(file);
            let length = fs::metadata(&path).map_err(|e| Error::io("stat", &path, e))?.len();
            let held = match file {
                WalFile::History(timeline) => Held::History(timeline),
                WalFile::Segment(name) if length == self.size.bytes() => {
                    Held::Segment(HeldSegment { name, length, stored: 0, over: true })
                }
                WalFile::Partial(name) => {
                    let length = match (same_boot, self.durable) {
                        (true, _) => length,
                        (false, true) => self.sound(name, &path)?,
                        (false, false) => 0,
                    };
                    if length == self.size.bytes() {
                        self.complete(name, &path)?;
                    }
                    Held::Segment(HeldSegment { name, length, stored: 0, over: true })
                }
                WalFile::Segment(_) | WalFile::BackupLabel(..) => continue,
            };
            self.shared.change(|state| state.queue.push_back(held));
        }
        Ok(())
    }

    /// Begins to be used by this start of the machine.
    pub(super) fn begin(&self) -> Result<()> {
        let path = self.folder.0.join(BOOT);
        fs::write(&path, boot()).map_err(|e| Error::io("write", &path, e))
    }

    fn same_boot(&self) -> bool {
        let boot = boot();
        !boot.is_empty() && fs::read_to_string(self.folder.0.join(BOOT)).is_ok_and(|before| before == boot)
    }

    /// How many bytes of a segment are proven by the records in it, up to the end of the last whole one: no commit that
    /// anybody was told of lies behind it.
    fn sound(&self, name: SegmentName, path: &Path) -> Result<u64> {
        let bytes = fs::read(path).map_err(|e| Error::io("read", path, e))?;
        let start = name.start(self.size)?;
        let mut summarizer = Summarizer::new(start);
        summarizer.feed(&bytes);
        // Pages are read when they are whole.
        let page = 64 << 10;
        summarizer.feed(&vec![0; (page - bytes.len() % page) % page]);
        let summary = summarizer.finish();
        Ok(if summary.records == 0 { 0 } else { summary.end.since(start).min(bytes.len() as u64) })
    }

    /// Takes WAL that begins at `lsn`: what is there already is compared, the rest is written down. Bytes that differ from
    /// those that came before are `Refused`.
    pub(super) fn take(&mut self, timeline: TimelineId, lsn: Lsn, mut bytes: &[u8]) -> Result<()> {
        let mut at = lsn;
        while !bytes.is_empty() {
            let name = SegmentName::holding(timeline, at, self.size);
            let offset = self.size.offset_of(at);
            let room = usize::try_from(self.size.bytes() - offset).unwrap_or(usize::MAX);
            let (here, rest) = bytes.split_at(bytes.len().min(room));
            self.take_part(name, offset, here)?;
            (at, bytes) = (at + here.len() as u64, rest);
        }
        Ok(())
    }

    fn take_part(&mut self, name: SegmentName, offset: u64, bytes: &[u8]) -> Result<()> {
        let mut growing = match self.growing.take() {
            Some(growing) if growing.name == name => growing,
            _ => self.grow(name)?,
        };
        if offset > growing.length {
            return Err(Error::failed(format!(
                "the server went on at offset {offset:08X} of {name}, and its bytes from {:08X} on are missing",
                growing.length
            )));
        }
        let known = bytes.len().min(usize::try_from(growing.length - offset).unwrap_or(usize::MAX));
        let (known, new) = bytes.split_at(known);
        growing.compare(offset, known)?;
        let failed = |e| Error::io("write", &growing.path, e);
        growing.file.write_all_at(new, growing.length).map_err(failed)?;
        growing.length += new.len() as u64;
        let whole = growing.length == self.size.bytes();
        if whole {
            self.complete(name, &growing.path)?;
        }
        let reached = Position { timeline: name.timeline, lsn: name.start(self.size)? + offset + bytes.len() as u64 };
        let length = growing.length;
        self.shared.change(|state| {
            if let Some(segment) = state.segment(name) {
                segment.length = length;
                segment.over = whole;
            }
            state.received = Some(reached);
            if whole {
                state.synced = Some(reached);
            }
        });
        if !whole {
            self.growing = Some(growing);
        }
        Ok(())
    }

    /// The file of a segment that grows; a new one is queued.
    fn grow(&self, name: SegmentName) -> Result<Growing> {
        let path = self.folder.path(WalFile::Partial(name));
        let known = self.shared.change(|state| {
            let known = state.segment(name).copied();
            if known.is_none() {
                state.queue.push_back(Held::Segment(HeldSegment { name, length: 0, stored: 0, over: false }));
            }
            known
        });
        let failed = |e| Error::io("open", &path, e);
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(known.is_none()).open(&path).map_err(failed)?;
        if self.durable {
            self.folder.sync()?;
        }
        Ok(Growing { name, path, file, length: known.map_or(0, |segment| segment.length) })
    }

    fn complete(&self, name: SegmentName, path: &Path) -> Result<()> {
        let failed = |e| Error::io("complete", path, e);
        File::open(path).and_then(|file| file.sync_all()).map_err(failed)?;
        fs::rename(path, self.folder.path(WalFile::Segment(name))).map_err(failed)?;
        self.folder.sync()
    }

    /// Makes what was received durable here, where a commit waits for that.
    pub(super) fn sync(&mut self) -> Result<()> {
        if self.durable
            && let Some(growing) = &self.growing
        {
            growing.file.sync_data().map_err(|e| Error::io("sync", &growing.path, e))?;
            self.shared.change(|state| state.synced = state.received);
        }
        Ok(())
    }

    /// Writes a history file down, to be stored before the segments of its timeline. One that came before is not stored
    /// again; one that differs from that is `Refused`.
    pub(super) fn take_history(&mut self, timeline: TimelineId, text: &[u8]) -> Result<()> {
        match self.histories.get(&timeline) {
            Some(before) if before == text => return Ok(()),
            Some(_) => {
                return Err(Error::refused(format!("the history of timeline {timeline} is another one than before"))
                    .hint(
                        "two servers were promoted to the same timeline: stop one of them, or give it its own archive: \
                     walden init --new-incarnation, then walden backup",
                    ));
            }
            None => {}
        }
        let path = self.folder.path(WalFile::History(timeline));
        let temporary = path.with_extension("tmp");
        let written = fs::write(&temporary, text)
            .and_then(|()| File::open(&temporary)?.sync_all())
            .and_then(|()| fs::rename(&temporary, &path));
        written.map_err(|e| Error::io("write", &path, e))?;
        self.folder.sync()?;
        self.shared.change(|state| state.queue.push_back(Held::History(timeline)));
        self.histories.insert(timeline, text.to_vec());
        Ok(())
    }

    /// No more will be received of the segment that grows: its timeline is over, or the stream goes on elsewhere.
    pub(super) fn leave(&mut self) {
        if let Some(growing) = self.growing.take() {
            self.shared.change(|state| {
                if let Some(segment) = state.segment(growing.name) {
                    segment.over = true;
                }
            });
        }
    }

    /// Removes what is left, when all of it is durable in the repository.
    pub(super) fn clear(&mut self) {
        self.leave();
        let files = self.shared.change(|state| std::mem::take(&mut state.queue));
        for held in files {
            if let Held::Segment(segment) = held {
                remove(&self.folder.path(WalFile::Partial(segment.name)));
            }
        }
    }
}

impl Growing {
    /// Proves that the server sends the bytes that it has sent before.
    fn compare(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let mut before = vec![0; bytes.len()];
        let read = self.file.seek(SeekFrom::Start(offset)).and_then(|_| self.file.read_exact(&mut before));
        read.map_err(|e| Error::io("read", &self.path, e))?;
        match before.iter().zip(bytes).position(|(a, b)| a != b) {
            None => Ok(()),
            Some(differs) => Err(Error::refused(format!(
                "the server sends other bytes of {} than were received before, from offset {:08X} on",
                self.name,
                offset + differs as u64
            ))
            .hint(
                "two servers write the same WAL: one of them is a copy of the other, or was rolled back; stop the copy, \
                 or give this server its own archive: walden init --new-incarnation, then walden backup",
            )),
        }
    }
}

/// Removes a file of the spool that is not needed any more. One that stays costs a second push at the next start.
pub(super) fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!("{} stays in the spool: {error}", path.display());
    }
}

/// Which start of the machine this is.
fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}
