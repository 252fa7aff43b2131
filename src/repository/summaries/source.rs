//! Where summaries come from: the roll-up of a log, the head of an object, or the records of a segment. The first that
//! has what is needed is taken.

use std::{collections::HashMap, ops::ControlFlow, sync::Arc};

use bytes::Bytes;
use tokio::sync::{Mutex, Semaphore};

use super::{Fault, Need};
use crate::{
    error::{Error, Kind, Result},
    postgres::{SegmentName, TimelineId, WalFile},
    repository::{
        Stored, System, join,
        pieces::PieceEnd,
        rolling::RollUps,
        rollup::{RollUp, Served},
        wal_object::{self, WalHead},
    },
    store,
    wal::{List, Summarizer, Summary},
};

/// Of a log of which fewer segments are wanted the heads are read: that takes one request more, not two.
const FEW: usize = 8;
/// Segments whose records are read at a time.
const READERS: usize = 4;
/// The longest roll-up that is accepted, in bytes.
const ROLL_UP: u64 = 32 << 20;

/// Finds the summaries of one system's segments.
#[derive(Debug)]
pub(in crate::repository) struct Source {
    pub system: System,
    need: Need,
    readers: Semaphore,
    /// The lowest log of each timeline that is wanted.
    lowest: HashMap<TimelineId, u32>,
    roll_ups: Mutex<HashMap<TimelineId, Arc<RollUps>>>,
}

/// A summary that is not joined yet, or what is wrong with the segment.
pub(in crate::repository) type Known = std::result::Result<Box<Summary>, Fault>;

/// The summary of pieces, and how far they reach.
type InPieces = (Box<Summary>, PieceEnd);

impl Source {
    /// For segments of one path.
    pub fn new(system: System, need: Need, path: &[(SegmentName, Stored)]) -> Self {
        let mut lowest = HashMap::new();
        for (name, _) in path {
            lowest.entry(name.timeline).or_insert(name.log);
        }
        Self { system, need, readers: Semaphore::new(READERS), lowest, roll_ups: Mutex::default() }
    }

    pub fn need(&self) -> Need {
        self.need
    }

    /// The roll-up that has most of these segments, which are of one log; none where there is none.
    pub async fn roll_up(&self, path: &[(SegmentName, Stored)]) -> Result<Option<Bytes>> {
        let Some((name, _)) = path.first().filter(|_| path.len() >= FEW) else { return Ok(None) };
        let Some(newest) = self.roll_ups(name.timeline).await?.get(&name.log).copied() else {
            return Ok(None);
        };
        let key = self.system.folder.roll_up(name.timeline, newest)?;
        match store::read(&*self.system.store, &key, ROLL_UP).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if matches!(error.kind(), Kind::Damaged | Kind::NotFound) => {
                tracing::warn!("{error}; the heads of the segments are read instead");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// What a roll-up has for `path`; `begins` when nothing is before it.
    pub fn serve(&self, roll_up: Option<Bytes>, path: &[(SegmentName, Stored)], begins: bool) -> Vec<Served> {
        let searching = self.need == Need::Finding;
        let nothing = || path.iter().map(|_| Served::Nothing { joined: false }).collect();
        match roll_up.map(|bytes| RollUp::from_bytes(&bytes, searching)) {
            None => nothing(),
            Some(Ok(roll_up)) => {
                let mut served = roll_up.serve(path, begins, searching);
                for one in &mut served {
                    if let Served::Summary(summary) | Served::WithoutLead(summary) = one {
                        self.lighten(summary);
                    }
                }
                served
            }
            Some(Err(error)) => {
                let name = path.first().map_or_else(String::new, |(name, _)| name.to_string());
                tracing::warn!("the roll-up of the log of {name}: {error}; the heads of the segments are read instead");
                nothing()
            }
        }
    }

    /// The summary of one segment, of which a roll-up has `served`.
    pub async fn one(&self, name: SegmentName, length: u64, served: Served) -> Result<Known> {
        match served {
            Served::Summary(summary) => Ok(Ok(summary)),
            Served::WithoutLead(mut summary) => Ok(self.head_or_records(name, length).await?.map(|own| {
                summary.lead = own.lead;
                summary
            })),
            Served::Nothing { joined } => Ok(self.head_or_records(name, length).await?.map(|mut own| {
                own.lead = own.lead.filter(|_| !joined);
                own
            })),
        }
    }

    async fn head_or_records(&self, name: SegmentName, length: u64) -> Result<Known> {
        let found = match self.head(name, length).await {
            Ok(Some(summary)) if summary.suffices(self.need == Need::Finding) => Ok(summary),
            Ok(_) => self.records(name, length).await,
            Err(error) => Err(error),
        };
        known(found.map(|mut summary| {
            self.lighten(&mut summary);
            Box::new(summary)
        }))
    }

    /// The summary in the head of a segment's object, whatever is cut from it; none when the head has none. Proves that
    /// the object is what it should be.
    pub async fn head(&self, name: SegmentName, length: u64) -> Result<Option<Summary>> {
        let key = self.system.folder.segment(name)?;
        let (head, found) =
            wal_object::read_head_and_length(&*self.system.store, &key).await.map_err(|e| gone(name, e))?;
        self.prove(name, &key, &head)?;
        same_length(name, length, found)?;
        Ok(head.summary)
    }

    /// The same of a segment that is stored in pieces; damage is a fact about it.
    pub async fn in_pieces(&self, name: SegmentName) -> Result<Option<std::result::Result<InPieces, Fault>>> {
        match self.pieces(name).await {
            Ok(found) => Ok(found.map(|(mut summary, end)| {
                self.lighten(&mut summary);
                Ok((Box::new(summary), end))
            })),
            Err(error) if error.kind() == Kind::Damaged => Ok(Some(Err(Fault::Damaged { why: error.to_string() }))),
            Err(error) => Err(error),
        }
    }

    /// The summary of a segment that is stored in pieces, with whole lists, and how far they reach; none where no record
    /// ends in them.
    pub async fn pieces(&self, name: SegmentName) -> Result<Option<(Summary, PieceEnd)>> {
        let _turn = self.readers.acquire().await.map_err(|e| Error::internal("wait for a reader").source(e))?;
        let start = name.start(self.system.document.segment_size)?;
        let mut pieces = self.system.open_pieces(name).await?.ok_or_else(|| gone(name, Error::not_found("")))?;
        let mut summarizer = Summarizer::whole(start);
        while let Some(pages) = pieces.next().await? {
            summarizer.feed(&pages);
        }
        let end = pieces.end().filter(|end| end.end > start).cloned();
        Ok(end.map(|end| (summarizer.finish(), end)))
    }

    fn prove(&self, name: SegmentName, key: &store::Key, head: &WalHead) -> Result<()> {
        let size = self.system.document.segment_size.bytes();
        let system = head.system.is_none_or(|system| system == self.system.folder.incarnation.system);
        if head.name == WalFile::Segment(name) && head.size == size && system {
            return Ok(());
        }
        Err(Error::damaged(format!("{key} says that it holds {} bytes of {}", head.size, head.name)))
    }

    /// The summary of a segment from its records, with whole lists.
    pub async fn records(&self, name: SegmentName, length: u64) -> Result<Summary> {
        let start = name.start(self.system.document.segment_size)?;
        self.read(name, length, || Summarizer::whole(start)).await
    }

    /// The summary of a segment from its records, as a head would hold it.
    pub async fn bounded_records(&self, name: SegmentName, length: u64) -> Result<Summary> {
        let start = name.start(self.system.document.segment_size)?;
        self.read(name, length, || Summarizer::new(start)).await
    }

    async fn read(&self, name: SegmentName, length: u64, summarizer: impl Fn() -> Summarizer) -> Result<Summary> {
        let _turn = self.readers.acquire().await.map_err(|e| Error::internal("wait for a reader").source(e))?;
        let key = self.system.folder.segment(name)?;
        loop {
            match self.read_this(name, &key, length, summarizer()).await {
                Err(error) if store::another_copy(&*self.system.store, &key, &error) => {}
                ended => return ended,
            }
        }
    }

    async fn read_this(
        &self,
        name: SegmentName,
        key: &store::Key,
        length: u64,
        mut summarizer: Summarizer,
    ) -> Result<Summary> {
        let object = wal_object::open(&*self.system.store, key).await.map_err(|e| gone(name, e))?;
        same_length(name, length, object.length)?;
        if let Some(head) = &object.head {
            self.prove(name, key, head)?;
        }
        join(
            tokio::task::spawn_blocking(move || {
                object.read(|bytes| {
                    summarizer.feed(bytes);
                    Ok(ControlFlow::Continue(()))
                })?;
                Ok(summarizer.finish())
            })
            .await,
        )?
    }

    /// Gives up the lists that are not needed: a million summaries are many.
    pub fn lighten(&self, summary: &mut Summary) {
        if self.need == Need::Planning {
            summary.changes = cut(&summary.changes);
            summary.rows = summary.rows.emptied();
        }
    }

    /// The newest roll-up of each log of a timeline that is wanted. Asked for once.
    async fn roll_ups(&self, timeline: TimelineId) -> Result<Arc<RollUps>> {
        let mut known = self.roll_ups.lock().await;
        if let Some(roll_ups) = known.get(&timeline) {
            return Ok(roll_ups.clone());
        }
        let first = self.lowest.get(&timeline).copied().unwrap_or(0);
        let roll_ups = Arc::new(self.system.roll_ups(timeline, first).await?);
        known.insert(timeline, roll_ups.clone());
        Ok(roll_ups)
    }
}

/// What of a list a reader sees that does not need it: nothing, and that something may be missing.
fn cut<T>(list: &List<T>) -> List<T> {
    List { items: Vec::new(), cut: !list.is_empty() }
}

fn same_length(name: SegmentName, listed: u64, found: u64) -> Result<()> {
    if listed == found {
        return Ok(());
    }
    Err(Error::damaged(format!("the object of {name} is {found} bytes long, where the listing said {listed}")))
}

fn gone(name: SegmentName, error: Error) -> Error {
    match error.kind() {
        Kind::NotFound => {
            Error::unavailable(format!("{name} was in the archive a moment ago, and is gone")).hint("try again")
        }
        _ => error,
    }
}

/// Damage is a fact about the segment; everything else is an error.
fn known(found: Result<Box<Summary>>) -> Result<Known> {
    match found {
        Ok(summary) => Ok(Ok(summary)),
        Err(error) if error.kind() == Kind::Damaged => Ok(Err(Fault::Damaged { why: error.to_string() })),
        Err(error) => Err(error),
    }
}
