//! Several threads that take files from one queue and write them into parts of their own.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::runtime::Handle;

use super::{
    ancestor::Ancestor,
    part::Parts,
    shelf::Shelf,
    source::{self, Blocks, Into, Pages, Stored, Watch},
    summaries::Changed,
};
use crate::{
    error::{Error, Result},
    interrupt::Interrupt,
    pace::{Crew, Member, Throttle},
    postgres::datadir::{FileEntry, FileKind},
    progress::Progress,
    repository::{BadPage, File, Part, join},
};

/// What the threads share.
#[derive(Debug)]
pub struct Job {
    /// Where to store.
    pub parts: Arc<Parts>,
    /// What to compare with.
    pub ancestor: Option<Arc<Ancestor>>,
    /// What the log tells of the time since then.
    pub changed: Option<Changed>,
    /// The size of a block.
    pub block_size: u32,
    /// The data directory.
    pub root: PathBuf,
    /// How pages are proven, the first page's number aside; `None` in a cluster without checksums.
    pub pages: Option<Pages>,
    /// Pages in one file of a relation.
    pub relation_segment_blocks: u32,
    /// How fast to read.
    pub throttle: Throttle,
    /// How many threads work.
    pub crew: Crew,
    /// Files that are done.
    pub done: AtomicU64,
    /// Who watches.
    pub progress: Arc<dyn Progress>,
    /// Who may ask to stop.
    pub interrupt: Interrupt,
    /// What is still to do.
    pub queue: Mutex<VecDeque<FileEntry>>,
}

/// What the threads have stored.
#[derive(Debug, Default)]
pub struct Haul {
    /// The files.
    pub files: Vec<File>,
    /// The parts.
    pub parts: Vec<Part>,
    /// Pages that were wrong.
    pub bad: Vec<BadPage>,
}

impl Job {
    fn blocks_of(&self, entry: &FileEntry) -> Option<Blocks> {
        let FileKind::Relation(relation) = &entry.kind else { return None };
        Some(Blocks { size: self.block_size, first: relation.first_block(self.relation_segment_blocks) })
    }

    fn turn(&self, member: &Member<'_>) -> Option<FileEntry> {
        member.turn();
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    /// Leaves nothing to do for the others, because one has failed.
    fn abandon(&self) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// How much is done: bytes that were read, and something for each file, be it read or not.
    fn done(&self) -> u64 {
        const FILE: u64 = 64 << 10;
        self.throttle.passed() + self.done.load(Ordering::Relaxed) * FILE
    }

    fn work(&self, number: usize, runtime: &Handle) -> Result<Haul> {
        let member = self.crew.member(number);
        let mut haul = Haul::default();
        let mut shelf = Shelf::new(self.parts.clone(), runtime.clone());
        while let Some(entry) = self.turn(&member) {
            let relation = self.blocks_of(&entry);
            let pages = self.pages.zip(relation).map(|(pages, blocks)| Pages { first: blocks.first, ..pages });
            let (ancestor, changed) = (self.ancestor.as_deref(), self.changed.as_ref());
            let into = Into { shelf: &mut shelf, ancestor, changed, relation };
            let watch = Watch { progress: &*self.progress, interrupt: &self.interrupt, throttle: &self.throttle };
            let stored = source::store(&self.root, &entry.path, pages, into, watch)?;
            if let Some(Stored { file, bad }) = stored {
                haul.files.push(file);
                haul.bad.extend(bad);
            }
            self.done.fetch_add(1, Ordering::Relaxed);
        }
        haul.parts = shelf.finish()?;
        Ok(haul)
    }
}

/// Stores every file of the job's queue on the threads of its crew. The first error ends all of them.
pub async fn run(job: Arc<Job>) -> Result<Haul> {
    let led = job.clone();
    let lead = tokio::spawn(async move { led.crew.lead(|| led.done()).await });
    let done = gather(job).await;
    lead.abort();
    done
}

async fn gather(job: Arc<Job>) -> Result<Haul> {
    let runtime = Handle::current();
    let workers: Vec<_> = (0..job.crew.most())
        .map(|number| {
            let (job, runtime) = (job.clone(), runtime.clone());
            tokio::task::spawn_blocking(move || job.work(number, &runtime).inspect_err(|_| job.abandon()))
        })
        .collect();
    let mut whole = Haul::default();
    let mut failure: Option<Error> = None;
    for worker in workers {
        match join(worker.await).flatten() {
            Ok(haul) => {
                whole.files.extend(haul.files);
                whole.parts.extend(haul.parts);
                whole.bad.extend(haul.bad);
            }
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    failure.map_or(Ok(whole), Err)
}

/// The queue: great files first, so that the threads end together; small ones together, in the order of their paths.
pub fn queue(mut files: Vec<FileEntry>) -> Mutex<VecDeque<FileEntry>> {
    const GREAT: u64 = 16 << 20;
    files.sort_by(|a, b| {
        let great = |f: &FileEntry| if f.size >= GREAT { f.size } else { 0 };
        great(b).cmp(&great(a)).then_with(|| a.path.cmp(&b.path))
    });
    Mutex::new(files.into())
}

/// Whether the control file is meant, which is read after all others.
pub fn is_control(entry: &FileEntry) -> bool {
    entry.path == Path::new(crate::postgres::control::CONTROL_FILE)
}
