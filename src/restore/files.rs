//! The files of a backup out of its parts into the place: threads take runs of neighbouring files from a queue, fetch
//! each run with one ranged request, and prove every file while it is written.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    io::{self, Read, Write},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::runtime::Handle;

use super::place::{Attributes, Place};
use crate::{
    error::{Error, Kind, Result},
    interrupt::Interrupt,
    progress::Progress,
    repository::{self, BackupId, LayerKind, Manifest, Part, System, join},
    seal::{Blake3, SeekTable},
    store::bridge::{self, BodyReader},
};

/// Bytes handled at a time.
const CHUNK: usize = 256 << 10;
/// More bytes than this between two wanted files are not fetched: another request is.
const GAP: u64 = 4 << 20;
/// A run is not continued past this many bytes, so that several threads share a part.
const RUN: u64 = 64 << 20;

/// What the threads share.
#[derive(Debug)]
pub struct Job {
    /// Where from.
    pub system: System,
    /// What there is.
    pub manifest: Arc<Manifest>,
    /// Where to.
    pub place: Arc<Place>,
    /// How many threads.
    pub parallel: usize,
    /// Who watches.
    pub progress: Arc<dyn Progress>,
    /// Who may ask to stop.
    pub interrupt: Interrupt,
}

/// Neighbouring files of one part, by their numbers in the manifest, in the order in which they lie.
#[derive(Debug)]
struct Run {
    part: (BackupId, u32),
    files: Vec<usize>,
}

impl Job {
    /// The files that are there already, whole and right, of those that `wanted` picks. Their attributes are mended.
    pub async fn right_files(self: &Arc<Self>, wanted: impl Fn(&Path) -> bool) -> Result<HashSet<usize>> {
        let queue: Vec<usize> =
            (0..self.manifest.files.len()).filter(|i| wanted(&self.manifest.files[*i].path)).collect();
        let found = Arc::new(Mutex::new(HashSet::new()));
        let into = found.clone();
        self.each(queue, move |job, index| {
            if job.is_right(index)? {
                into.lock().unwrap_or_else(PoisonError::into_inner).insert(index);
            }
            Ok(())
        })
        .await?;
        let found = std::mem::take(&mut *found.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(found)
    }

    fn is_right(&self, index: usize) -> Result<bool> {
        let file = &self.manifest.files[index];
        let Some(mut there) = self.place.read(&file.path)? else { return Ok(false) };
        let failed = |e| Error::io("read", &self.place.whole(&file.path), e);
        if there.metadata().map_err(failed)?.len() != file.size {
            return Ok(false);
        }
        let mut buffer = vec![0; CHUNK];
        let mut hasher = blake3::Hasher::new();
        loop {
            self.interrupt.check()?;
            match there.read(&mut buffer).map_err(failed)? {
                0 => break,
                count => {
                    hasher.update(&buffer[..count]);
                    self.progress.advance(count as u64);
                }
            }
        }
        let right = Blake3::from(&hasher) == file.blake3;
        if right {
            self.place.finish(&file.path, &there, attributes(file))?;
        }
        Ok(right)
    }

    /// Fetches and writes these files. None of them may be there.
    pub async fn write(self: &Arc<Self>, wanted: &[usize]) -> Result<()> {
        let (empty, full): (Vec<usize>, Vec<usize>) = wanted.iter().partition(|i| self.manifest.files[**i].size == 0);
        self.each(empty, |job, index| {
            let file = &job.manifest.files[index];
            let made = job.place.create(&file.path)?;
            job.place.finish(&file.path, &made, attributes(file))
        })
        .await?;
        let runs = runs(&self.manifest, full)?;
        self.each(runs, |job, run| job.fetch(&run, |job, index, from| job.receive(index, from))).await
    }

    /// Fetches a small file into memory, proven.
    pub async fn content(self: &Arc<Self>, index: usize) -> Result<Vec<u8>> {
        let mut runs = runs(&self.manifest, vec![index])?;
        let Some(run) = runs.pop() else { return Ok(Vec::new()) };
        let job = self.clone();
        let content = tokio::task::spawn_blocking(move || {
            let mut content = Vec::new();
            job.fetch(&run, |job, index, from| {
                let file = &job.manifest.files[index];
                let mut proof = Proof::default();
                copy(from, file.size, |bytes| {
                    proof.see(bytes);
                    content.extend_from_slice(bytes);
                    Ok(())
                })?;
                proof.check(file)
            })?;
            Ok(content)
        });
        join(content.await)?
    }

    /// Makes these files durable.
    pub async fn sync(self: &Arc<Self>, files: Vec<usize>) -> Result<()> {
        self.each(files, |job, index| {
            job.interrupt.check()?;
            let file = &job.manifest.files[index];
            job.place.sync(&file.path)?;
            job.progress.advance(file.size);
            Ok(())
        })
        .await
    }

    /// Has several threads do `work` on the items. The first error ends all of them.
    async fn each<T: Send + 'static>(
        self: &Arc<Self>,
        items: Vec<T>,
        work: impl Fn(&Self, T) -> Result<()> + Send + Sync + 'static,
    ) -> Result<()> {
        let threads = self.parallel.clamp(1, items.len().max(1));
        let queue = Arc::new(Mutex::new(VecDeque::from(items)));
        let work = Arc::new(work);
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                let (job, queue, work) = (self.clone(), queue.clone(), work.clone());
                tokio::task::spawn_blocking(move || {
                    let lock = || queue.lock().unwrap_or_else(PoisonError::into_inner);
                    loop {
                        let Some(item) = lock().pop_front() else { return Ok(()) };
                        job.interrupt.check().and_then(|()| work(&job, item)).inspect_err(|_| lock().clear())?;
                    }
                })
            })
            .collect();
        let mut failure = None;
        for worker in workers {
            if let Err(error) = join(worker.await).flatten() {
                failure.get_or_insert(error);
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// Fetches a run and hands each file's bytes to `receive`, which must take all of them.
    fn fetch(&self, run: &Run, mut receive: impl FnMut(&Self, usize, &mut dyn Read) -> Result<()>) -> Result<()> {
        let (backup, number) = run.part;
        let layer = |index: &usize| self.manifest.files[*index].layers.first();
        let (Some(first), Some(last)) = (run.files.first().and_then(layer), run.files.last().and_then(layer)) else {
            return Ok(());
        };
        let part = self.manifest.part(first)?;
        let damaged = |what: &str| lost(part, what);
        let (start, mut at) =
            part.frames.seek(first.offset).ok_or_else(|| damaged("is shorter than the manifest tells"))?;
        let end = end_of(&part.frames, last.offset + last.length)
            .ok_or_else(|| damaged("is shorter than the manifest tells"))?;
        let key = self.system.folder.part(backup, number)?;
        let runtime = Handle::current();
        let download = runtime.block_on(self.system.store.get(&key, Some(start..end))).map_err(|e| match e.kind() {
            Kind::NotFound => damaged("is missing"),
            _ => e,
        })?;
        if download.length != part.length {
            return Err(damaged("does not have the length that the manifest tells"));
        }
        let body = BodyReader::new(download.body, runtime);
        let decoder = zstd::Decoder::new(body).map_err(|e| Error::internal("start the zstd decoder").source(e))?;
        let mut from = Guarded { decoder, part };
        for index in &run.files {
            let Some(layer) = layer(index) else { continue };
            let skip = layer.offset.checked_sub(at).ok_or_else(|| damaged("holds files that overlap"))?;
            copy(&mut from, skip, |_| Ok(()))?;
            receive(self, *index, &mut from)?;
            at = layer.offset + layer.length;
        }
        Ok(())
    }

    fn receive(&self, index: usize, from: &mut dyn Read) -> Result<()> {
        let file = &self.manifest.files[index];
        let mut to = self.place.create(&file.path)?;
        let mut proof = Proof::default();
        copy(from, file.size, |bytes| {
            self.interrupt.check()?;
            proof.see(bytes);
            to.write_all(bytes).map_err(|e| Error::io("write", &self.place.whole(&file.path), e))?;
            self.progress.advance(bytes.len() as u64);
            Ok(())
        })?;
        proof.check(file)?;
        self.place.finish(&file.path, &to, attributes(file))
    }
}

/// What a file is given besides its content.
pub fn attributes(file: &repository::File) -> Attributes {
    Attributes { mode: file.mode, mtime: file.mtime }
}

/// What was seen of a file's content so far.
#[derive(Default)]
struct Proof {
    hasher: blake3::Hasher,
    crc32c: u32,
}

impl Proof {
    fn see(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.crc32c = crc32c::crc32c_append(self.crc32c, bytes);
    }

    fn check(&self, file: &repository::File) -> Result<()> {
        if Blake3::from(&self.hasher) == file.blake3 && self.crc32c == file.crc32c {
            return Ok(());
        }
        let place =
            file.layers.first().map_or_else(String::new, |l| format!(" in part {} of backup {}", l.part, l.backup));
        Err(Error::damaged(format!("{}{place} does not have the content that the manifest tells", file.path.display()))
            .hint(ANOTHER))
    }
}

const ANOTHER: &str = "bring that object back from another copy of the repository and repeat this command, or restore another backup: --backup ID";

fn lost(part: &Part, what: &str) -> Error {
    Error::damaged(format!("part {} of backup {} {what}", part.number, part.backup)).hint(ANOTHER)
}

/// The content of a part; what is wrong with it names the part.
struct Guarded<'a, R: io::BufRead> {
    decoder: zstd::Decoder<'static, R>,
    part: &'a Part,
}

impl<R: io::BufRead> Read for Guarded<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.decoder
            .read(buffer)
            .map_err(|e| bridge::into_io(bridge::from_io(e, |e| lost(self.part, "cannot be decompressed").source(e))))
    }
}

/// Hands exactly `length` bytes on.
fn copy(from: &mut (impl Read + ?Sized), mut length: u64, mut to: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let mut buffer = vec![0; CHUNK.min(usize::try_from(length).unwrap_or(CHUNK))];
    while length > 0 {
        let wanted = buffer.len().min(usize::try_from(length).unwrap_or(usize::MAX));
        let count = from
            .read(&mut buffer[..wanted])
            .map_err(|e| bridge::from_io(e, |e| Error::damaged("a part cannot be read").source(e)))?;
        if count == 0 {
            return Err(Error::damaged("a part ends before its last file does").hint(ANOTHER));
        }
        to(&buffer[..count])?;
        length -= count as u64;
    }
    Ok(())
}

/// Where the frame that holds the last byte before `content` ends in the object.
fn end_of(frames: &SeekTable, content: u64) -> Option<u64> {
    let (mut stored, mut seen) = (0, 0);
    for frame in frames.frames() {
        if seen >= content {
            break;
        }
        stored += u64::from(frame.stored);
        seen += u64::from(frame.content);
    }
    (seen >= content).then_some(stored)
}

/// Where a file lies in the content of its part, its length, and its number in the manifest.
type Lies = (u64, u64, usize);

/// Cuts files into runs of neighbours; great runs come first, so that the threads end together.
fn runs(manifest: &Manifest, files: Vec<usize>) -> Result<Vec<Run>> {
    let mut parts: BTreeMap<(BackupId, u32), Vec<Lies>> = BTreeMap::new();
    for index in files {
        let file = &manifest.files[index];
        match file.layers.as_slice() {
            [] if file.size == 0 => {}
            [one] if one.kind == LayerKind::Whole && one.length == file.size => {
                parts.entry((one.backup, one.part)).or_default().push((one.offset, one.length, index));
            }
            layers if layers.iter().any(|l| l.kind != LayerKind::Whole) => {
                return Err(Error::refused(format!("{} is stored as changed blocks", file.path.display()))
                    .hint("use the version of Walden that took this backup, or a newer one"));
            }
            _ => return Err(Error::damaged(format!("the manifest does not tell where {} lies", file.path.display()))),
        }
    }
    let mut runs = Vec::new();
    for (part, mut files) in parts {
        files.sort_unstable();
        let (mut begin, mut end) = (0, 0);
        for (offset, length, index) in files {
            match runs.last_mut() {
                Some((_, Run { part: same, files })) if *same == part && offset <= end + GAP && end - begin < RUN => {
                    files.push(index);
                }
                _ => {
                    begin = offset;
                    runs.push((0, Run { part, files: vec![index] }));
                }
            }
            end = offset + length;
            if let Some((size, _)) = runs.last_mut() {
                *size = end - begin;
            }
        }
    }
    runs.sort_by_key(|(size, _): &(u64, Run)| std::cmp::Reverse(*size));
    Ok(runs.into_iter().map(|(_, run)| run).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        repository::{File, Hashed, Layer},
        seal::{FrameSize, blake3},
    };
    use chrono::DateTime;

    fn manifest(layers: &[(u32, u64, u64)]) -> Manifest {
        let backup = "20261121T014500Z".parse().unwrap();
        let file = |(number, (part, offset, length)): (usize, &(u32, u64, u64))| File {
            path: format!("base/{number}").into(),
            size: *length,
            mtime: DateTime::UNIX_EPOCH,
            mode: 0o600,
            blake3: blake3(b""),
            hashed: Hashed::Content,
            crc32c: 0,
            stat: None,
            layers: vec![Layer {
                backup,
                part: *part,
                offset: *offset,
                length: *length,
                kind: LayerKind::Whole,
                map: None,
            }],
        };
        Manifest {
            format: 1,
            backup,
            incarnation: "7-1".parse().unwrap(),
            block_size: 8192,
            origin: None,
            tablespaces: vec![],
            directories: vec![],
            parts: vec![],
            files: layers.iter().enumerate().map(file).collect(),
        }
    }

    #[test]
    fn neighbours_share_a_request_and_strangers_do_not() {
        let manifest = manifest(&[(1, 512, 100), (2, 512, 10), (1, 2048, 100), (1, 64 << 20, 100)]);
        let found = runs(&manifest, vec![3, 2, 1, 0]).unwrap();
        let mut files: Vec<_> = found.iter().map(|r| (r.part.1, r.files.clone())).collect();
        files.sort();
        assert_eq!(files, [(1, vec![0, 2]), (1, vec![3]), (2, vec![1])]);
    }

    #[test]
    fn a_long_part_is_shared_by_several_threads() {
        let great: Vec<_> = (0..10).map(|n| (1, 512 + n * (32 << 20), 32 << 20)).collect();
        let manifest = manifest(&great);
        let found = runs(&manifest, (0..10).collect()).unwrap();
        assert!(found.len() >= 3 && found.iter().all(|r| r.files.len() <= 3), "{found:?}");
    }

    #[test]
    fn layers_that_do_not_fit_are_errors() {
        let mut short = manifest(&[(1, 512, 100)]);
        short.files[0].size = 101;
        assert_eq!(runs(&short, vec![0]).unwrap_err().kind(), Kind::Damaged);
        short.files[0].layers[0].kind = LayerKind::Incremental;
        assert_eq!(runs(&short, vec![0]).unwrap_err().kind(), Kind::Refused);
    }

    #[test]
    fn the_last_frame_is_fetched_whole_and_no_further() {
        let frames = SeekTable::from(vec![
            FrameSize { stored: 10, content: 100 },
            FrameSize { stored: 20, content: 50 },
            FrameSize { stored: 5, content: 7 },
        ]);
        assert_eq!(end_of(&frames, 100), Some(10));
        assert_eq!(end_of(&frames, 101), Some(30));
        assert_eq!(end_of(&frames, 157), Some(35));
        assert_eq!(end_of(&frames, 158), None);
    }
}
