//! Several threads that take files from one queue and write them into parts of their own.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::runtime::Handle;

use super::{
    ancestor::{Ancestor, Same},
    part::Parts,
    queue::Queue,
    shelf::Shelf,
    source::{self, Blocks, Into, Pages, Seen, Stored, Watch},
    summaries::Changed,
};
use crate::{
    error::{Error, Result},
    interrupt::Interrupt,
    pace::{Crew, Member, Throttle},
    postgres::datadir::FileKind,
    progress::Progress,
    repository::{BadPage, Files, Part, join},
};

/// What the threads share.
#[derive(Debug)]
pub struct Job {
    /// Where to store.
    pub parts: Arc<Parts>,
    /// What to compare with.
    pub ancestor: Option<Ancestor>,
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
    pub queue: Mutex<Queue>,
}

/// What the threads have stored.
#[derive(Debug, Default)]
pub struct Haul {
    /// The files.
    pub files: Files,
    /// The parts.
    pub parts: Vec<Part>,
    /// Pages that were wrong.
    pub bad: Vec<BadPage>,
}

impl Job {
    fn blocks_of(&self, path: &Path) -> Option<Blocks> {
        let FileKind::Relation(relation) = FileKind::of(path) else { return None };
        Some(Blocks { size: self.block_size, first: relation.first_block(self.relation_segment_blocks) })
    }

    fn turn(&self, member: &Member<'_>) -> Option<PathBuf> {
        member.turn();
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).next()
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

    fn work(&self, number: usize, runtime: &Handle) -> Result<(Haul, Vec<Same>)> {
        let member = self.crew.member(number);
        let (mut haul, mut same) = (Haul::default(), Vec::new());
        let mut shelf = Shelf::new(self.parts.clone(), runtime.clone());
        while let Some(path) = self.turn(&member) {
            let relation = self.blocks_of(&path);
            let pages = self.pages.zip(relation).map(|(pages, blocks)| Pages { first: blocks.first, ..pages });
            let (ancestor, changed) = (self.ancestor.as_ref(), self.changed.as_ref());
            let into = Into { shelf: &mut shelf, ancestor, changed, relation };
            let watch = Watch { progress: &*self.progress, interrupt: &self.interrupt, throttle: &self.throttle };
            match source::store(&self.root, &path, pages, into, watch)? {
                Some(Seen::Same(file)) => {
                    let bad = self.ancestor.as_ref().map_or(&[][..], |ancestor| ancestor.bad_pages(&path));
                    haul.bad.extend(source::bad_pages(&path, bad));
                    same.push(file);
                }
                Some(Seen::New(Stored { file, bad })) => {
                    haul.files.push(&file);
                    haul.bad.extend(bad);
                }
                None => {}
            }
            self.done.fetch_add(1, Ordering::Relaxed);
        }
        haul.parts = shelf.finish()?;
        Ok((haul, same))
    }
}

/// What a job leaves.
pub struct Done {
    /// All files, those that have not changed, too.
    pub haul: Haul,
    /// What was compared with; the files were taken out of it.
    pub ancestor: Option<Ancestor>,
    /// Bytes that were read.
    pub read: u64,
}

/// Stores every file of the job's queue on the threads of its crew. The first error ends all of them.
pub async fn run(job: Job) -> Result<Done> {
    let job = Arc::new(job);
    let led = job.clone();
    let lead = tokio::spawn(async move { led.crew.lead(|| led.done()).await });
    let gathered = gather(&job).await;
    lead.abort();
    // It holds the job as well. That it was aborted is no news.
    _ = lead.await;
    let (mut haul, same) = gathered?;
    let job = Arc::into_inner(job).ok_or_else(|| Error::internal("a thread of the backup works on"))?;
    let (mut ancestor, read) = (job.ancestor, job.throttle.passed());
    if let Some(ancestor) = &mut ancestor {
        let mut files = ancestor.take(&same);
        files.append(std::mem::take(&mut haul.files));
        haul.files = files;
    }
    Ok(Done { haul, ancestor, read })
}

async fn gather(job: &Arc<Job>) -> Result<(Haul, Vec<Same>)> {
    let runtime = Handle::current();
    let workers: Vec<_> = (0..job.crew.most())
        .map(|number| {
            let (job, runtime) = (job.clone(), runtime.clone());
            tokio::task::spawn_blocking(move || job.work(number, &runtime).inspect_err(|_| job.abandon()))
        })
        .collect();
    let (mut whole, mut same) = (Haul::default(), Vec::new());
    let mut failure: Option<Error> = None;
    for worker in workers {
        match join(worker.await).flatten() {
            Ok((haul, others)) => {
                same.extend(others);
                whole.files.append(haul.files);
                whole.parts.extend(haul.parts);
                whole.bad.extend(haul.bad);
            }
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    match failure {
        Some(error) => Err(error),
        None => Ok((whole, same)),
    }
}
