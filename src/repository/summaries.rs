//! The summaries of archived segments, in the order of a path: from the heads of the objects, and from the records of
//! those that have none.

use std::{collections::VecDeque, ops::ControlFlow};

use futures_util::{Stream, StreamExt, stream};

use super::{System, join, wal_object};
use crate::{
    error::{Error, Result},
    postgres::{Lsn, SegmentName},
    wal::{Summarizer, Summary},
};

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
    /// The length of its object in bytes, as it was listed.
    pub length: u64,
    /// What it holds. It is joined with the next one of the path, and the lists that were needed are whole.
    pub summary: Summary,
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
    system: System,
    coming: std::pin::Pin<Box<dyn Stream<Item = Result<SegmentSummary>> + Send>>,
    held: VecDeque<SegmentSummary>,
}

impl std::fmt::Debug for Summaries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Summaries").finish_non_exhaustive()
    }
}

impl System {
    /// The summaries of `segments`, which follow each other on one path and have the lengths that were listed. Proves
    /// each object's length, and that each segment's records go on from those of the one before it.
    #[must_use]
    pub fn summaries(&self, segments: Vec<(SegmentName, u64)>, need: Need) -> Summaries {
        let _ = need;
        let system = self.clone();
        let coming = stream::iter(segments).map(move |(name, length)| read(system.clone(), name, length)).buffered(4);
        Summaries { system: self.clone(), coming: Box::pin(coming), held: VecDeque::new() }
    }
}

impl Summaries {
    /// The next one; none after the last.
    pub async fn next(&mut self) -> Result<Option<SegmentSummary>> {
        while self.held.len() < 2
            && let Some(next) = self.coming.next().await
        {
            self.held.push_back(next?);
        }
        let Some(mut first) = self.held.pop_front() else { return Ok(None) };
        if let Some(second) = self.held.front_mut() {
            first.summary.join(&mut second.summary, self.system.document.postgres);
        }
        Ok(Some(first))
    }
}

/// Reads the records of a segment.
async fn read(system: System, name: SegmentName, length: u64) -> Result<SegmentSummary> {
    let start = name.start(system.document.segment_size)?;
    let object = wal_object::open(&*system.store, &system.folder.segment(name)?).await?;
    if object.length != length {
        return Err(Error::damaged(format!("the object of {name} changed its length while it was read")));
    }
    let summary = join(
        tokio::task::spawn_blocking(move || {
            let mut summarizer = Summarizer::whole(start);
            object.read(|bytes| {
                summarizer.feed(bytes);
                Ok(ControlFlow::Continue(()))
            })?;
            Ok(summarizer.finish())
        })
        .await,
    )??;
    Ok(SegmentSummary { name, length, summary, fault: None })
}
