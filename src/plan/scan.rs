//! Leads a survey along archived segments: past those whose summary tells enough, and through the records of the few
//! that decide. What is passed is proven on the way: each object has its length, and each segment goes on where the one
//! before it ends.

use std::ops::ControlFlow;

use tokio::runtime::Handle;

use super::{resolve::Watch, survey::Survey};
use crate::{
    error::{Error, Kind, Result},
    interrupt::Interrupt,
    postgres::{Lsn, SegmentName},
    repository::{
        Stored, System, join,
        summaries::{Need, SegmentSummary, Summaries},
        wal_object,
    },
    store,
    wal::{End, Ending, Reader, Record, Summary},
};

/// Segments on a path that follow each other, and how each is stored.
pub type Segments<'a> = &'a [(SegmentName, Stored)];

/// A record has at most this many bytes (`XLogRecordMaxSize` in `xlogrecord.h`).
const LONGEST_RECORD: u64 = 1 << 30;

/// How a scan ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Scanned {
    /// The end of the last whole record that was read.
    pub proven: Lsn,
    /// Why the log goes no further; `None` when the survey had seen enough.
    pub end: Option<End>,
    /// The segment that the log does not reach, though it is there: it says why.
    pub fault: Option<SegmentSummary>,
    /// How many of the segments are proven.
    pub segments: usize,
    /// Why the pieces of the last segment reach no further, though later ones are there.
    pub short: Option<String>,
}

/// Shows `survey` the log of `segments` until it has seen enough or the log ends, which is told.
pub async fn scan(system: &System, segments: Segments<'_>, survey: Survey, watch: &Watch) -> Result<(Survey, Scanned)> {
    let total = segments.len() as u64 * system.document.segment_size.bytes();
    watch.progress.start("reading the summaries", Some(total));
    let scanned = Scan { system, segments, watch, come: 0, end: segments.len() }.run(survey).await;
    watch.progress.finish();
    scanned
}

/// Proves the log of `segments` up to `needed`; an error of kind `Damaged` says where it breaks.
pub async fn prove(system: &System, segments: Segments<'_>, needed: Lsn, watch: &Watch) -> Result<()> {
    watch.progress.start("proving the segments", Some(segments.len() as u64 * system.document.segment_size.bytes()));
    let proven = Scan { system, segments, watch, come: 0, end: segments.len() }.prove(needed).await;
    watch.progress.finish();
    proven
}

/// Shows `each` the records of consecutive segments until it has seen enough or the log ends.
pub async fn read<T: Send + 'static>(
    system: &System,
    names: Vec<SegmentName>,
    watch: &Watch,
    state: T,
    each: impl FnMut(&mut T, &Record) -> ControlFlow<()> + Send + 'static,
) -> Result<T> {
    let Some(first) = names.first() else { return Ok(state) };
    let reader = Reader::new(first.start(system.document.segment_size)?);
    let (system, interrupt) = (system.clone(), watch.interrupt.clone());
    let read = tokio::task::spawn_blocking(move || records(&system, names, reader, &interrupt, None, state, each));
    Ok(join(read.await)??.0)
}

struct Scan<'a> {
    system: &'a System,
    segments: Segments<'a>,
    watch: &'a Watch,
    /// How many of them have come so far.
    come: usize,
    /// Behind this index nothing can be read: where a fault is, or the end.
    end: usize,
}

impl Scan<'_> {
    async fn run(&mut self, mut survey: Survey) -> Result<(Survey, Scanned)> {
        let mut summaries = self.system.summaries(self.segments.to_vec(), Need::Planning);
        // The last segment in which records start, and whether the survey was shown them.
        let mut last: Option<(usize, Summary, bool)> = None;
        let (mut fault, mut short) = (None, None);
        let mut coming = self.following(&mut summaries).await?;
        for index in 0.. {
            let Some(next) = coming else { break };
            if next.fault.is_some() && index == 0 {
                let behind =
                    next.name.next(self.system.document.segment_size)?.start(self.system.document.segment_size)?;
                return Ok((survey, Scanned { fault: Some(next), ..Self::enough(behind, 0) }));
            }
            if next.fault.is_some() {
                fault = Some(next);
                break;
            }
            short = next.pieces.and_then(|pieces| pieces.why);
            // Where this one's last record goes on there, and that one is damaged, it must not be read.
            coming = self.following(&mut summaries).await?;
            let summary = next.summary;
            let ends = is_end(&summary.ending);
            if summary.records > 0 {
                if let Some((_, before, false)) = last.take() {
                    survey.pass(&before);
                    if survey.is_done() {
                        return Ok((survey, Self::enough(before.end, index)));
                    }
                }
                let reads = !ends && survey.needs_records(&summary);
                if reads {
                    let (shown, read) = self.read(index, summary.last, survey, Survey::see).await?;
                    if shown.is_done() || matches!(read.end, Some(End::Zeros { .. } | End::Garbage { .. })) {
                        return Ok((shown, read));
                    }
                    survey = shown;
                }
                last = Some((index, summary, reads));
            }
            if ends {
                break;
            }
        }
        // The log may end in the last one: only its records tell where.
        let (survey, ended) = match last {
            Some((index, _, true)) => {
                let ((), ended) = self.read(index, None, (), |(), _| ControlFlow::Continue(())).await?;
                (survey, ended)
            }
            last => self.read(last.map_or(0, |(index, ..)| index), None, survey, Survey::see).await?,
        };
        Ok((survey, Scanned { fault, short, ..ended }))
    }

    async fn prove(&mut self, needed: Lsn) -> Result<()> {
        let mut summaries = self.system.summaries(self.segments.to_vec(), Need::Planning);
        while let Some(next) = self.following(&mut summaries).await? {
            next.sound()?;
            let ends = is_end(&next.summary.ending) || next.pieces.is_some();
            if ends && next.summary.end < needed {
                return Err(Error::damaged(format!("the log breaks at {} in segment {}", next.summary.end, next.name))
                    .hint(
                        "bring the segment back from another copy of the archive, or use a later backup: walden list",
                    ));
            }
        }
        Ok(())
    }

    async fn following(&mut self, summaries: &mut Summaries) -> Result<Option<SegmentSummary>> {
        let next = following(summaries, &self.watch.interrupt).await?;
        let Some(next) = next else { return Ok(None) };
        self.watch.progress.advance(self.system.document.segment_size.bytes());
        if next.fault.is_some() {
            self.end = self.end.min(self.come);
        }
        self.come += 1;
        Ok(Some(next))
    }

    fn enough(proven: Lsn, segments: usize) -> Scanned {
        Scanned { proven, end: None, fault: None, segments, short: None }
    }

    /// Reads the records of one segment, and as far into the next ones as the last of them reaches: until `each` has
    /// seen enough, or the one that starts at `until` was shown, or the log ends.
    async fn read<T: Send + 'static>(
        &self,
        index: usize,
        until: Option<Lsn>,
        state: T,
        each: impl FnMut(&mut T, &Record) -> ControlFlow<()> + Send + 'static,
    ) -> Result<(T, Scanned)> {
        let size = self.system.document.segment_size;
        let count = usize::try_from(LONGEST_RECORD / size.bytes()).unwrap_or(usize::MAX).saturating_add(2);
        let count = count.min(self.end.saturating_sub(index));
        let names: Vec<_> = self.segments.iter().skip(index).take(count).map(|(name, _)| *name).collect();
        let Some(first) = names.first() else { return Err(Error::internal("a scan of no segments")) };
        self.watch.progress.message(&format!("reading {first}"));
        let reader = Reader::new(first.start(size)?);
        let (system, interrupt) = (self.system.clone(), self.watch.interrupt.clone());
        let read = tokio::task::spawn_blocking(move || records(&system, names, reader, &interrupt, until, state, each));
        let (state, proven, end) = join(read.await)??;
        self.watch.progress.message("");
        Ok((state, Scanned { end, ..Self::enough(proven, index + 1) }))
    }
}

/// The next summary, unless somebody asks to stop.
pub async fn following(summaries: &mut Summaries, interrupt: &Interrupt) -> Result<Option<SegmentSummary>> {
    let mut interrupt = interrupt.clone();
    tokio::select! {
        next = summaries.next() => next,
        () = interrupt.asked() => Err(Interrupt::error()),
    }
}

fn is_end(ending: &Ending) -> bool {
    matches!(ending, Ending::Zeros | Ending::Broken { .. })
}

/// Call it on a thread of its own.
fn records<T>(
    system: &System,
    names: Vec<SegmentName>,
    mut reader: Reader,
    interrupt: &Interrupt,
    until: Option<Lsn>,
    mut state: T,
    mut each: impl FnMut(&mut T, &Record) -> ControlFlow<()>,
) -> Result<(T, Lsn, Option<End>)> {
    for name in names {
        interrupt.check()?;
        let mut enough = None;
        let read = content(system, name, |bytes| {
            for record in reader.read(bytes) {
                let beyond = until.is_some_and(|until| record.start > until);
                if beyond || each(&mut state, &record).is_break() || until == Some(record.start) {
                    enough = Some(record.end);
                    return Ok(ControlFlow::Break(()));
                }
            }
            Ok(ControlFlow::Continue(()))
        });
        read.map_err(|e| e.context(format!("read {name}")))?;
        if let Some(end) = enough {
            return Ok((state, end, None));
        }
        if !matches!(reader.end(), End::OfInput { .. }) {
            break;
        }
    }
    Ok((state, reader.proven(), Some(reader.end())))
}

/// Hands on the content of a segment, whole or in pieces, until `sink` has seen enough.
fn content(system: &System, name: SegmentName, mut sink: impl FnMut(&[u8]) -> Result<ControlFlow<()>>) -> Result<()> {
    let runtime = Handle::current();
    let key = system.folder.segment(name)?;
    let store = &*system.store;
    // What was shown cannot be taken back: damage has to be found before, where another copy could do.
    while store.has_copies() {
        let object = runtime.block_on(wal_object::open(store, &key));
        match object.and_then(|object| object.read(|_| Ok(ControlFlow::Continue(())))) {
            Err(error) if store::another_copy(store, &key, &error) => {}
            // Whatever else is wrong, the reading itself will tell.
            _ => break,
        }
    }
    match runtime.block_on(wal_object::open(store, &key)) {
        Err(error) if error.kind() == Kind::NotFound => {}
        object => return object?.read(sink).map(drop),
    }
    let Some(mut pieces) = runtime.block_on(system.open_pieces(name))? else {
        let gone = Error::unavailable(format!("{name} was in the archive a moment ago, and is gone"));
        return Err(gone.hint("try again"));
    };
    while let Some(pages) = runtime.block_on(pieces.next())? {
        if sink(&pages)?.is_break() {
            break;
        }
    }
    Ok(())
}
