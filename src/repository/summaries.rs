//! The summaries of archived segments, in the order of a path, joined where records go on from one segment into the next.

pub(super) mod source;

use std::{collections::VecDeque, ops::Range, pin::Pin, sync::Arc};

use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use tokio::task::JoinHandle;

use self::source::Source;
use super::{Stored, System, join, pieces::PieceEnd, rollup::Served};
use crate::{
    error::{Error, Kind, Result},
    postgres::{Lsn, SegmentName},
    wal::{Ended, Joined, Summary},
};

/// Roll-ups that are fetched at a time.
const ROLL_UPS: usize = 64;
/// Roll-ups that are decoded at a time.
const DECODERS: usize = 3;
/// Summaries of a log that are handed on at a time: their heads are read at the same time.
const PIECE: usize = 32;
/// Pieces at a time.
const PIECES: usize = 3;

/// Which lists of a summary must be whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// [`Summary::turns`].
    Planning,
    /// All.
    Finding,
}

/// What is known of one archived segment.
#[derive(Clone, Debug, PartialEq)]
pub struct SegmentSummary {
    /// Its name.
    pub name: SegmentName,
    /// How it is stored, as it was listed.
    pub stored: Stored,
    /// What it holds. It is joined with the next one of the path, and the lists that were needed are whole.
    pub summary: Summary,
    /// How far its pieces reach; none of a segment that is whole.
    pub pieces: Option<PieceEnd>,
    /// What keeps a recovery from going on into this segment from the one before it; none where it can.
    pub fault: Option<Fault>,
}

/// Why an unbroken row of names is no unbroken row of records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The object is not what was stored. The summary is empty: nothing is known of the segment, and recovery can neither
    /// end in it nor pass it.
    Damaged {
        /// What is wrong with it.
        why: String,
    },
    /// Its records do not go on from those of the segment before it. A recovery can begin with this segment, and not come
    /// to it.
    Unlinked {
        /// That segment.
        before: SegmentName,
        /// How far the records are proven there.
        at: Lsn,
        /// What is wrong.
        why: String,
    },
}

impl SegmentSummary {
    /// The fault as the error of whoever wants to pass this segment.
    pub fn sound(&self) -> Result<()> {
        let error = match &self.fault {
            None => return Ok(()),
            Some(Fault::Damaged { why }) => Error::damaged(why.clone()),
            Some(Fault::Unlinked { before, at, why }) => {
                Error::damaged(format!("{} does not go on from {before}, which is proven up to {at}: {why}", self.name))
            }
        };
        Err(error.hint(
            "one of the two is of another server, or was damaged before it was archived: choose a target before it, or a backup after it",
        ))
    }
}

/// The summaries of consecutive segments of a path, oldest first.
pub struct Summaries {
    source: Arc<Source>,
    coming: Pin<Box<dyn Stream<Item = Result<Box<SegmentSummary>>> + Send>>,
    /// Those that came and were not handed out. There are more than two only where a record is longer than a segment.
    held: VecDeque<Box<SegmentSummary>>,
}

impl std::fmt::Debug for Summaries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Summaries").finish_non_exhaustive()
    }
}

impl System {
    /// The summaries of `segments`, which follow each other on one path and have the lengths that were listed. Proves
    /// each object's length, and that each segment's records go on from those of the one before it; where that is not
    /// so, the segment has a [`Fault`]. One in pieces, which only the last can be, is left out where no record ends in it.
    ///
    /// They come from roll-ups where many segments of a log are wanted, else from the heads, else from the records.
    #[must_use]
    pub fn summaries(&self, segments: Vec<(SegmentName, Stored)>, need: Need) -> Summaries {
        let source = Arc::new(Source::new(self.clone(), need, &segments));
        let coming = Box::pin(coming(source.clone(), Arc::new(segments)));
        Summaries { source, coming, held: VecDeque::new() }
    }

    /// The summary of one segment by itself: the record at its end counts only if it ends there.
    pub async fn summary(&self, name: SegmentName, stored: Stored, need: Need) -> Result<SegmentSummary> {
        let one = self.summaries(vec![(name, stored)], need).next().await?;
        one.ok_or_else(|| Error::internal("a segment without a summary"))
    }

    /// The last commit in `path`, segments that follow each other: it is looked for from the end on.
    pub async fn last_commit(&self, path: &[(SegmentName, Stored)]) -> Result<Option<Ended>> {
        let (mut end, mut count) = (path.len(), 1);
        while end > 0 {
            let begin = end.saturating_sub(count);
            // One more, for the record that goes on in it.
            let part = &path[begin..(end + 1).min(path.len())];
            let mut summaries = self.summaries(part.to_vec(), Need::Planning);
            let mut last = None;
            for _ in begin..end {
                let Some(segment) = summaries.next().await? else { break };
                last = segment.summary.last_commit.or(last);
            }
            if last.is_some() {
                return Ok(last);
            }
            (end, count) = (begin, (count * 8).min(1 << 12));
        }
        Ok(None)
    }
}

impl Summaries {
    /// The next one; none after the last.
    pub async fn next(&mut self) -> Result<Option<SegmentSummary>> {
        if !self.fill(1).await? {
            return Ok(None);
        }
        let Some(mut first) = self.held.pop_front() else { return Ok(None) };
        if first.fault.as_ref().is_some_and(|fault| matches!(fault, Fault::Damaged { .. })) {
            return Ok(Some(*first));
        }
        let joined = self.join(&mut first).await?;
        if first.summary.tail.as_ref().is_some_and(|tail| tail.unknown)
            && !first.summary.suffices(self.source.need() == Need::Finding)
        {
            match self.read_again(&first, joined).await {
                Ok(summary) => first.summary = summary,
                Err(error) if error.kind() == Kind::Damaged => {
                    first.summary = Summary::default();
                    first.fault = Some(Fault::Damaged { why: error.to_string() });
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Some(*first))
    }

    /// Waits until so many are held. False when there are no more.
    async fn fill(&mut self, count: usize) -> Result<bool> {
        while self.held.len() < count {
            match self.coming.next().await {
                Some(next) => self.held.push_back(next?),
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Joins with as many of the following ones as the last record goes on in. How many those are.
    async fn join(&mut self, first: &mut SegmentSummary) -> Result<usize> {
        let version = self.source.system.document.postgres;
        for count in 1.. {
            if !self.fill(count).await? {
                return Ok(count - 1);
            }
            let next = &mut self.held[count - 1];
            if next.fault.is_some() {
                return Ok(count - 1);
            }
            match first.summary.join(&mut next.summary, version) {
                Joined::Whole => return Ok(count),
                Joined::GoesOn => {}
                Joined::Broken { at, why } => {
                    next.fault = Some(Fault::Unlinked { before: first.name, at, why });
                    return Ok(count - 1);
                }
            }
        }
        Ok(0)
    }

    /// Reads the records of a segment, and of those after it that its last record goes on in: the heads have too little
    /// of that one.
    async fn read_again(&mut self, first: &SegmentSummary, joined: usize) -> Result<Summary> {
        let source = &self.source;
        let mut whole = records(source, first).await?;
        for next in self.held.iter().take(joined) {
            let mut next = records(source, next).await?;
            whole.join(&mut next, source.system.document.postgres);
        }
        source.lighten(&mut whole);
        Ok(whole)
    }
}

async fn records(source: &Source, segment: &SegmentSummary) -> Result<Summary> {
    match segment.stored {
        Stored::Whole(length) => source.records(segment.name, length).await,
        Stored::Pieces(_) => Ok(source.pieces(segment.name).await?.map(|(summary, _)| summary).unwrap_or_default()),
    }
}

/// The summaries as they were stored, in order.
fn coming(
    source: Arc<Source>,
    segments: Arc<Vec<(SegmentName, Stored)>>,
) -> impl Stream<Item = Result<Box<SegmentSummary>>> + Send {
    let logs = logs(&segments);
    let (fetching, reading, path) = (source.clone(), source.clone(), segments.clone());
    stream::iter(logs)
        .map(move |log| {
            let (source, path) = (fetching.clone(), path.clone());
            spawned(async move { source.roll_up(&path[log.clone()]).await.map(|found| (log, found)) })
        })
        .buffered(ROLL_UPS)
        .map(move |fetched| {
            let (source, path) = (reading.clone(), segments.clone());
            spawned(async move {
                let (log, found) = fetched?;
                let served = tokio::task::spawn_blocking(move || {
                    let served = source.serve(found, &path[log.clone()], log.start == 0);
                    path[log].iter().copied().zip(served).collect::<Vec<_>>()
                });
                join(served.await)
            })
        })
        .buffered(DECODERS)
        .map_ok(|served| stream::iter(pieces(served).into_iter().map(Ok)))
        .try_flatten()
        .map(move |piece| {
            let source = source.clone();
            async move {
                let piece = piece?;
                if piece.iter().all(|(_, served)| matches!(served, Served::Summary(_))) {
                    return Ok(piece.into_iter().filter_map(ready).collect::<Vec<_>>());
                }
                let resolved = stream::iter(piece).map(|one| resolve(&source, one)).buffered(PIECE);
                resolved.try_filter_map(async |one| Ok(one)).try_collect().await
            }
        })
        .buffered(PIECES)
        .map_ok(|piece| stream::iter(piece.into_iter().map(Ok)))
        .try_flatten()
}

type Listed = ((SegmentName, Stored), Served);

/// Cuts what is known of a log into pieces.
fn pieces(mut served: Vec<Listed>) -> Vec<Vec<Listed>> {
    let mut pieces = Vec::with_capacity(served.len() / PIECE + 1);
    while served.len() > PIECE {
        let rest = served.split_off(PIECE);
        pieces.push(std::mem::replace(&mut served, rest));
    }
    pieces.push(served);
    pieces
}

/// What needs no request.
fn ready(((name, stored), served): Listed) -> Option<Box<SegmentSummary>> {
    let Served::Summary(summary) = served else { return None };
    Some(Box::new(SegmentSummary { name, stored, summary: *summary, pieces: None, fault: None }))
}

/// What has to be asked for; none of pieces in which no record ends.
async fn resolve(source: &Arc<Source>, ((name, stored), served): Listed) -> Result<Option<Box<SegmentSummary>>> {
    let source = source.clone();
    let (known, pieces) = match (served, stored) {
        (Served::Summary(summary), _) => (Ok(summary), None),
        (other, Stored::Whole(length)) => (spawned(async move { source.one(name, length, other).await }).await?, None),
        (_, Stored::Pieces(_)) => match spawned(async move { source.in_pieces(name).await }).await? {
            None => return Ok(None),
            Some(Ok((summary, end))) => (Ok(summary), Some(end)),
            Some(Err(fault)) => (Err(fault), None),
        },
    };
    let (summary, fault) = match known {
        Ok(summary) => (*summary, None),
        Err(fault) => (Summary::default(), Some(fault)),
    };
    Ok(Some(Box::new(SegmentSummary { name, stored, summary, pieces, fault })))
}

/// Cuts a path into its logs.
fn logs(path: &[(SegmentName, Stored)]) -> Vec<Range<usize>> {
    let mut at = 0;
    path.chunk_by(|(a, _), (b, _)| (a.timeline, a.log) == (b.timeline, b.log))
        .map(|log| {
            at += log.len();
            at - log.len()..at
        })
        .collect()
}

/// Runs on any thread of the runtime, so that several can decode at a time, until nobody waits for it any more.
async fn spawned<T: Send + 'static>(work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    struct Task<T>(JoinHandle<T>);
    impl<T> Drop for Task<T> {
        fn drop(&mut self) {
            self.0.abort();
        }
    }
    let mut task = Task(tokio::spawn(work));
    join((&mut task.0).await)?
}

#[cfg(test)]
mod tests;
