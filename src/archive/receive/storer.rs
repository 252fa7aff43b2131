//! Out of the spool into the repository: pieces while a segment grows, the whole when it is complete, the history of a
//! timeline before its first segment. One after the other, so that what comes later never counts before what came earlier.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::time::{sleep, timeout};

use super::{
    event::{Event, Listener},
    may_pass,
    spool::{self, Folder},
    state::{Held, HeldSegment, Shared, State},
};
use crate::{
    archive::push,
    clock::Random,
    error::{Error, Result},
    postgres::{SegmentName, TimelineId, WalFile},
    repository::{System, join},
};

/// As soon as so many bytes came, they are stored, however early it is.
const PIECE: u64 = 1 << 20;
/// How long to wait after the repository failed, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));
/// How often it is said that it still fails.
const SAY_AGAIN: Duration = Duration::from_secs(60);

/// Stores what lies in the spool.
#[derive(Clone, Debug)]
pub(super) struct Storer {
    pub(super) system: System,
    pub(super) folder: Folder,
    pub(super) shared: Shared,
    /// How long a byte may wait for more to come.
    pub(super) interval: Duration,
    /// zstd's level.
    pub(super) level: i32,
    pub(super) random: Arc<Random>,
    pub(super) listener: Arc<dyn Listener>,
}

/// What is to be stored next.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    History(TimelineId),
    Whole(SegmentName),
    Piece(HeldSegment),
    /// A segment of which no more comes, and all of it is stored.
    Leave(SegmentName),
    /// Nothing yet; perhaps after that time.
    Wait(Option<Duration>),
    Empty,
}

impl Storer {
    /// Stores for as long as nothing is refused.
    pub(super) async fn run(self) -> Result<()> {
        let mut watch = self.shared.watch();
        // When the first byte that is not stored had come, at the latest.
        let mut since = None;
        loop {
            let next = self.next(&watch.borrow_and_update(), since);
            match next {
                Next::Wait(None) | Next::Empty => {
                    _ = watch.changed().await;
                    since = Some(Instant::now());
                }
                Next::Wait(Some(most)) => _ = timeout(most, watch.changed()).await,
                work => {
                    let began = Instant::now();
                    self.insist(&work).await?;
                    // What came meanwhile has waited since then.
                    since = Some(began);
                }
            }
        }
    }

    /// Stores everything that is there. Only of what no more comes.
    pub(super) async fn drain(&self) -> Result<()> {
        loop {
            let next = self.shared.see(|state| self.next(state, None));
            match next {
                Next::Empty => return Ok(()),
                Next::Wait(_) => return Err(Error::internal("a segment in the spool is not over")),
                work => self.insist(&work).await?,
            }
        }
    }

    fn next(&self, state: &State, since: Option<Instant>) -> Next {
        let size = self.system.document.segment_size;
        let segment = match state.queue.front() {
            None => return Next::Empty,
            Some(Held::History(timeline)) => return Next::History(*timeline),
            Some(Held::Segment(segment)) => *segment,
        };
        let HeldSegment { name, length, stored, over } = segment;
        match over {
            true if length == size.bytes() => return Next::Whole(name),
            true if length <= stored => return Next::Leave(name),
            false if length <= stored => return Next::Wait(None),
            _ => {}
        }
        let urged = || {
            let at = name.start(size).map(|start| start + stored);
            state.urged.zip(at.ok()).is_some_and(|(urged, at)| at < urged)
        };
        let waited = since.map_or(self.interval, |since| since.elapsed());
        if over || state.eager || length - stored >= PIECE || waited >= self.interval || urged() {
            Next::Piece(segment)
        } else {
            Next::Wait(Some(self.interval - waited))
        }
    }

    /// Does it until it is done or refused.
    async fn insist(&self, work: &Next) -> Result<()> {
        let (mut pause, most) = PAUSES;
        let mut said: Option<Instant> = None;
        loop {
            let error = match self.store(work).await {
                Ok(()) => {
                    if self.shared.change(|state| std::mem::take(&mut state.failing)) {
                        self.listener.tell(&Event::RepositoryWorks);
                    }
                    return Ok(());
                }
                Err(error) if may_pass(error.kind()) => error,
                Err(error) => return Err(error),
            };
            self.shared.change(|state| state.failing = true);
            if said.is_none_or(|said| said.elapsed() >= SAY_AGAIN) {
                said = Some(Instant::now());
                let waiting = self.shared.see(State::waiting);
                self.listener.tell(&Event::RepositoryFails { error: error.to_string(), waiting });
            }
            sleep(pause.mul_f64(0.5 + self.random.fraction())).await;
            pause = (pause * 2).min(most);
        }
    }

    async fn store(&self, work: &Next) -> Result<()> {
        match work {
            Next::History(timeline) => self.store_history(*timeline).await,
            Next::Whole(name) => self.store_whole(*name).await,
            Next::Piece(segment) => self.store_piece(segment).await,
            Next::Leave(name) => {
                self.leave(WalFile::Partial(*name));
                Ok(())
            }
            Next::Wait(_) | Next::Empty => Ok(()),
        }
    }

    async fn store_history(&self, timeline: TimelineId) -> Result<()> {
        let file = WalFile::History(timeline);
        push::push_received(&self.system, &self.folder.path(file), self.level).await?;
        self.leave(file);
        self.listener.tell(&Event::History { timeline });
        Ok(())
    }

    async fn store_whole(&self, name: SegmentName) -> Result<()> {
        let file = WalFile::Segment(name);
        let pushed = push::push_received(&self.system, &self.folder.path(file), self.level).await?;
        let size = self.system.document.segment_size;
        let end = name.start(size)? + size.bytes();
        self.shared.change(|state| state.has_stored(name, size.bytes(), end));
        self.leave(file);
        self.listener.tell(&Event::Segment { segment: name, already: pushed.already });
        Ok(())
    }

    async fn store_piece(&self, segment: &HeldSegment) -> Result<()> {
        let HeldSegment { name, length, stored, .. } = *segment;
        let to = length.min(stored + PIECE);
        let Some(bytes) = self.read(name, stored, to).await? else { return Ok(()) };
        let piece = self.system.put_piece(name, stored, bytes, self.level).await?;
        let end = name.start(self.system.document.segment_size)? + to;
        self.shared.change(|state| state.has_stored(name, to, end));
        self.listener.tell(&Event::Piece { segment: name, from: stored, to, already: piece.already });
        Ok(())
    }

    /// Bytes of a segment; `None` when it has become whole in this moment.
    async fn read(&self, name: SegmentName, from: u64, to: u64) -> Result<Option<Bytes>> {
        let (path, whole) = (self.folder.path(WalFile::Partial(name)), self.folder.path(WalFile::Segment(name)));
        let reading = tokio::task::spawn_blocking(move || {
            let file = match File::open(&path) {
                Err(_) if whole.exists() => return Ok(None),
                file => file.map_err(|e| Error::io("open", &path, e))?,
            };
            let mut bytes = vec![0; usize::try_from(to - from).unwrap_or(usize::MAX)];
            file.read_exact_at(&mut bytes, from).map_err(|e| Error::io("read", &path, e))?;
            Ok(Some(Bytes::from(bytes)))
        });
        join(reading.await)?
    }

    /// The first in the queue is done with.
    fn leave(&self, file: WalFile) {
        let size = self.system.document.segment_size;
        self.shared.change(|state| state.pop(size));
        spool::remove(&self.folder.path(file));
    }
}
