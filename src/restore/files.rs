//! The files of a backup out of its parts into the place: threads take work from a queue, runs of neighbouring files
//! that are stored whole and batches of files in layers, and prove every file while it is written.

use std::{
    collections::{HashSet, VecDeque},
    fs,
    io::{Read, Write},
    os::unix::fs::FileExt,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    fetch::{CHUNK, PartName, Piece, Run, Source, copy, runs},
    layers::{Layered, lay},
    place::{Attributes, Place},
    proof::{self, Proof},
};
use crate::{
    error::{Error, Kind, Result},
    interrupt::Interrupt,
    progress::Progress,
    repository::{File, Hashed, LayerKind, Manifest, join, overlay},
    seal::{BlockHash, BlockMap},
};

/// A run is not continued past this many bytes, so that several threads share a part.
const RUN: u64 = 64 << 20;
/// So many bytes of files in layers are put together at a time, or one file.
const BATCH: u64 = 256 << 20;
/// So many of them are open at a time at most, by one thread and by all.
const BATCH_FILES: usize = 64;
const OPEN_FILES: usize = 512;

/// What the threads share.
#[derive(Debug)]
pub struct Job {
    /// Where from.
    pub source: Source,
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

/// What one thread does at a time.
#[derive(Debug)]
enum Work {
    /// Files that are stored whole, one after the other.
    Run(Run),
    /// Files in layers, by their numbers in the manifest.
    Batch(Vec<usize>),
}

impl Job {
    /// The files that are there already, whole and right, of those that `wanted` picks. Their attributes are mended.
    pub async fn right_files(self: &Arc<Self>, wanted: impl Fn(&Path) -> bool) -> Result<HashSet<usize>> {
        let queue: Vec<usize> =
            (0..self.manifest.files.len()).filter(|i| wanted(self.manifest.files.path(*i))).collect();
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
        let file = &self.manifest.files.at(index);
        let Some(mut there) = self.place.read(&file.path)? else { return Ok(false) };
        let failed = |e| Error::io("read", &self.place.whole(&file.path), e);
        if there.metadata().map_err(failed)?.len() != file.size {
            return Ok(false);
        }
        let mut buffer = vec![0; CHUNK];
        let mut proof = Proof::of(file, self.manifest.block_size);
        loop {
            self.interrupt.check()?;
            match there.read(&mut buffer).map_err(failed)? {
                0 => break,
                count => {
                    self.source.throttle.pass(count as u64);
                    proof.see(&buffer[..count]);
                    self.progress.advance(count as u64);
                }
            }
        }
        let right = proof.holds(file);
        if right {
            self.place.finish(&file.path, &there, attributes(file))?;
        }
        Ok(right)
    }

    /// Whether a file that is there can be changed in place, so that only the blocks that differ are fetched.
    pub fn can_mend(&self, index: usize) -> Result<bool> {
        let file = &self.manifest.files.at(index);
        Ok(file.hashed == Hashed::Blocks && file.size > 0 && self.place.modify(&file.path)?.is_some())
    }

    /// Fetches and writes these files. Those that `mended` names are changed in place, none of the others may be there.
    pub async fn write(self: &Arc<Self>, wanted: &[usize], mended: HashSet<usize>) -> Result<()> {
        let (empty, full): (Vec<usize>, Vec<usize>) =
            wanted.iter().partition(|i| self.manifest.files.at(**i).size == 0);
        self.each(empty, |job, index| {
            let file = &job.manifest.files.at(index);
            let made = job.place.create(&file.path)?;
            job.place.finish(&file.path, &made, attributes(file))
        })
        .await?;
        self.each(work(&self.manifest, &full, &mended, self.parallel), move |job, work| match work {
            Work::Run(run) => {
                let files = || run.pieces.iter().map(|piece| piece.file);
                job.with_any_copy(files, |_| job.source.fetch(&run, |piece, from| job.receive(piece.file, from)))
            }
            Work::Batch(files) => {
                let anew = HashSet::new();
                let mended = |again| if again { &anew } else { &mended };
                job.with_any_copy(|| files.iter().copied(), |again| job.put_together(&files, mended(again)))
            }
        })
        .await
    }

    /// Writes files by `attempt`; again, from nothing, where that finds damage and another copy of their parts can be had.
    fn with_any_copy<I: Iterator<Item = usize>>(
        &self,
        files: impl Fn() -> I,
        attempt: impl Fn(bool) -> Result<()>,
    ) -> Result<()> {
        let mut again = false;
        loop {
            let error = match attempt(again) {
                Err(error) if error.kind() == Kind::Damaged => error,
                ended => return ended,
            };
            if !self.source.set_aside(files().map(|index| self.manifest.files.at(index)))? {
                return Err(error);
            }
            tracing::warn!("{error}; what it held is taken from another repository");
            files().try_for_each(|index| self.place.remove(&self.manifest.files.at(index).path))?;
            again = true;
        }
    }

    /// Fetches a small file into memory, proven.
    pub async fn content(self: &Arc<Self>, index: usize) -> Result<Vec<u8>> {
        let job = self.clone();
        let file = move || {
            let file = &job.manifest.files.at(index);
            let read = || match stored_whole(file, index) {
                Some(piece) => job.read_whole(file, piece),
                None if file.size == 0 => Ok(Vec::new()),
                None => job.read_layers(file),
            };
            loop {
                match read() {
                    Err(error)
                        if error.kind() == Kind::Damaged && job.source.set_aside([file.clone()].into_iter())? =>
                    {
                        tracing::warn!("{error}; it is taken from another repository");
                    }
                    ended => return ended,
                }
            }
        };
        join(tokio::task::spawn_blocking(file).await)?
    }

    fn read_whole(&self, file: &File, piece: (PartName, Piece)) -> Result<Vec<u8>> {
        let (mut content, mut proof) = (Vec::new(), Proof::of(file, self.manifest.block_size));
        for run in runs(vec![piece], RUN) {
            self.source.fetch(&run, |_, from| {
                copy(from, file.size, |bytes| {
                    proof.see(bytes);
                    content.extend_from_slice(bytes);
                    Ok(())
                })
            })?;
        }
        proof.check(file)?;
        Ok(content)
    }

    fn read_layers(&self, file: &File) -> Result<Vec<u8>> {
        let mut layered = Layered::new(file, self.manifest.block_size)?;
        let mut content = vec![0; file.size as usize];
        let fetch = |run: &Run, receive: &mut Receive<'_>| self.source.fetch(run, receive);
        lay(std::slice::from_mut(&mut layered), fetch, |_, at, bytes| {
            content[at as usize..][..bytes.len()].copy_from_slice(bytes);
            Ok(())
        })?;
        layered.check()?;
        Ok(content)
    }

    /// Makes these files durable.
    pub async fn sync(self: &Arc<Self>, files: Vec<usize>) -> Result<()> {
        self.each(files, |job, index| {
            job.interrupt.check()?;
            let file = &job.manifest.files.at(index);
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

    /// Writes a file that is stored whole.
    fn receive(&self, index: usize, from: &mut dyn Read) -> Result<()> {
        let file = &self.manifest.files.at(index);
        let mut to = self.place.create(&file.path)?;
        let mut proof = Proof::of(file, self.manifest.block_size);
        copy(from, file.size, |bytes| {
            self.interrupt.check()?;
            proof.see(bytes);
            to.write_all(bytes).map_err(|e| self.failed(file, e))?;
            self.progress.advance(bytes.len() as u64);
            Ok(())
        })?;
        proof.check(file)?;
        self.place.finish(&file.path, &to, attributes(file))
    }

    /// Writes files out of their layers.
    fn put_together(&self, batch: &[usize], mended: &HashSet<usize>) -> Result<()> {
        let all: Vec<File> = batch.iter().map(|index| self.manifest.files.at(*index)).collect();
        let (mut files, mut open, mut written) = (Vec::new(), Vec::new(), vec![0; batch.len()]);
        for (index, file) in batch.iter().zip(&all) {
            let mut layered = Layered::new(file, self.manifest.block_size)?;
            let there = if mended.contains(index) { self.mend(&mut layered)? } else { None };
            let is_new = there.is_none();
            let to = there.map_or_else(|| self.place.create(&file.path), Ok)?;
            to.set_len(file.size).map_err(|e| self.failed(file, e))?;
            files.push(layered);
            open.push((to, is_new));
        }
        let fetch = |run: &Run, receive: &mut Receive<'_>| self.source.fetch(run, receive);
        lay(&mut files, fetch, |number, at, bytes| {
            self.interrupt.check()?;
            open[number].0.write_all_at(bytes, at).map_err(|e| self.failed(&all[number], e))?;
            written[number] += bytes.len() as u64;
            self.progress.advance(bytes.len() as u64);
            Ok(())
        })?;
        for ((layered, (to, is_new)), written) in files.iter().zip(&open).zip(written) {
            let file = layered.file;
            if !is_new {
                let zeros = vec![0; self.manifest.block_size as usize];
                layered
                    .zeros()
                    .try_for_each(|block| to.write_all_at(&zeros, block.start))
                    .map_err(|e| self.failed(file, e))?;
            }
            layered.check()?;
            self.progress.advance(file.size - written);
            self.place.finish(&file.path, to, attributes(file))?;
        }
        Ok(())
    }

    /// Opens a file that is there and keeps those of its blocks that are right. `None` where that cannot be told: then
    /// the file is gone.
    fn mend(&self, layered: &mut Layered<'_>) -> Result<Option<fs::File>> {
        let file = layered.file;
        let (Some(there), Some(wanted)) = (self.place.modify(&file.path)?, self.hashes(file)?) else {
            self.place.remove(&file.path)?;
            return Ok(None);
        };
        // What lies beyond its end becomes zeros, and is compared like the rest.
        there.set_len(file.size).map_err(|e| self.failed(file, e))?;
        let size = self.manifest.block_size as usize;
        let (mut from, mut block) = (&there, 0);
        let mut buffer = vec![0; CHUNK.next_multiple_of(size)];
        while block < wanted.hashes().len() {
            self.interrupt.check()?;
            let bytes = &mut buffer[..((wanted.hashes().len() - block) * size).min(CHUNK.next_multiple_of(size))];
            self.source.throttle.pass(bytes.len() as u64);
            from.read_exact(bytes).map_err(|e| Error::io("read", &self.place.whole(&file.path), e))?;
            for content in bytes.chunks_exact(size) {
                let hash = BlockHash::of(content);
                if hash == wanted.hashes()[block] {
                    layered.keep(block, hash);
                }
                block += 1;
            }
        }
        Ok(Some(there))
    }

    /// The hashes of a file's blocks, from the indexes of the parts that hold them; `None` where some are not known.
    fn hashes(&self, file: &File) -> Result<Option<BlockMap>> {
        let size = self.manifest.block_size as usize;
        let layers: Result<Option<Vec<_>>> = file.layers.iter().map(|layer| self.source.blocks(layer)).collect();
        match layers {
            Ok(layers) => Ok(layers
                .map(|layers| overlay(file.size as usize / size, size, &layers).map)
                .filter(|map| proof::proves(map, size, file))),
            Err(error) if error.kind() == Kind::Damaged => {
                tracing::warn!("{} is fetched whole: {error}", file.path.display());
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn failed(&self, file: &File, error: std::io::Error) -> Error {
        Error::io("write", &self.place.whole(&file.path), error)
    }
}

/// Takes a piece of a run.
type Receive<'a> = dyn FnMut(&Piece, &mut dyn Read) -> Result<()> + 'a;

/// What a file is given besides its content.
pub fn attributes(file: &File) -> Attributes {
    Attributes { mode: file.mode, mtime: file.mtime }
}

/// Where a file lies that is stored whole and as it is.
fn stored_whole(file: &File, index: usize) -> Option<(PartName, Piece)> {
    match file.layers.as_slice() {
        [one] if one.kind == LayerKind::Whole && one.length == file.size => {
            Some(((one.backup, one.part), Piece { offset: one.offset, length: one.length, file: index }))
        }
        _ => None,
    }
}

/// Divides files into work; what is great comes first, so that the threads end together.
fn work(manifest: &Manifest, files: &[usize], mended: &HashSet<usize>, threads: usize) -> Vec<Work> {
    let (mut whole, mut layered) = (Vec::new(), Vec::new());
    for index in files {
        match stored_whole(&manifest.files.at(*index), *index).filter(|_| !mended.contains(index)) {
            Some(piece) => whole.push(piece),
            None => layered.push(*index),
        }
    }
    let mut work: Vec<_> = runs(whole, RUN).into_iter().map(|run| (run.span, Work::Run(run))).collect();
    // Files whose newest layers are neighbours share frames.
    layered.sort_by_cached_key(|i| manifest.files.at(*i).layers.last().map(|l| (l.backup, l.part, l.offset)));
    let most = (OPEN_FILES / threads.max(1)).clamp(1, BATCH_FILES);
    let (mut size, mut batch) = (0, Vec::new());
    for index in layered {
        let more = manifest.files.at(index).size;
        if size + more > BATCH || batch.len() == most {
            work.push((std::mem::take(&mut size), Work::Batch(std::mem::take(&mut batch))));
        }
        size += more;
        batch.push(index);
    }
    work.push((size, Work::Batch(batch)));
    work.retain(|(size, _)| *size > 0);
    work.sort_by_key(|(size, _)| std::cmp::Reverse(*size));
    work.into_iter().map(|(_, work)| work).collect()
}

#[cfg(test)]
mod tests;
