//! Walking the records of archived segments in their order.

use std::{collections::VecDeque, ops::ControlFlow, sync::Arc};

use tokio::{runtime::Handle, task::JoinHandle};

use crate::{
    error::{Error, Kind, Result},
    interrupt::Interrupt,
    postgres::{Lsn, SegmentName, SegmentSize},
    progress::Progress,
    repository::{
        System, join,
        wal_object::{self, WalObject},
    },
    wal::{End, Reader, Record},
};

/// Objects that are being opened ahead of the one that is read.
const AHEAD: usize = 3;

/// How a walk ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walked {
    /// The start of the last whole record.
    pub last: Option<Lsn>,
    /// The end of the last whole record.
    pub proven: Lsn,
    /// Why no more records came; `None` when whoever asked had seen enough.
    pub end: Option<End>,
}

/// Walks `segments`, which follow each other on one path, and hands on every record until `each` has seen enough or the
/// log ends. Damaged objects are errors; a log that ends early is not, but is told.
pub async fn walk<T: Send + 'static>(
    system: &System,
    segments: Vec<SegmentName>,
    progress: Arc<dyn Progress>,
    interrupt: Interrupt,
    state: T,
    each: impl FnMut(&mut T, &Record) -> ControlFlow<()> + Send + 'static,
) -> Result<(T, Walked)> {
    let system = system.clone();
    let runtime = Handle::current();
    join(
        tokio::task::spawn_blocking(move || {
            let size = system.document.segment_size;
            let mut walk = Walk { system, size, runtime, opened: VecDeque::new(), rest: segments.into() };
            walk.run(&*progress, &interrupt, state, each)
        })
        .await,
    )?
}

struct Walk {
    system: System,
    size: SegmentSize,
    runtime: Handle,
    opened: VecDeque<(SegmentName, JoinHandle<Result<WalObject>>)>,
    rest: VecDeque<SegmentName>,
}

impl Walk {
    fn run<T>(
        &mut self,
        progress: &dyn Progress,
        interrupt: &Interrupt,
        mut state: T,
        mut each: impl FnMut(&mut T, &Record) -> ControlFlow<()>,
    ) -> Result<(T, Walked)> {
        let Some(first) = self.rest.front() else {
            return Err(Error::internal("a walk over no segments"));
        };
        let mut reader = Reader::new(first.start(self.size)?);
        while let Some((name, object)) = self.next()? {
            interrupt.check()?;
            let mut enough = false;
            let read = object.read(|bytes| {
                for record in reader.read(bytes) {
                    if each(&mut state, &record).is_break() {
                        enough = true;
                        return Ok(ControlFlow::Break(()));
                    }
                }
                progress.advance(bytes.len() as u64);
                Ok(ControlFlow::Continue(()))
            });
            read.map_err(|e| e.context(format!("read {name}")))?;
            if enough {
                return Ok((state, Walked { last: reader.last(), proven: reader.proven(), end: None }));
            }
            if !matches!(reader.end(), End::OfInput { .. }) {
                break;
            }
        }
        Ok((state, Walked { last: reader.last(), proven: reader.proven(), end: Some(reader.end()) }))
    }

    fn next(&mut self) -> Result<Option<(SegmentName, WalObject)>> {
        while self.opened.len() < AHEAD
            && let Some(name) = self.rest.pop_front()
        {
            let key = self.system.folder.segment(name)?;
            let store = self.system.store.clone();
            self.opened.push_back((name, self.runtime.spawn(async move { wal_object::open(&*store, &key).await })));
        }
        let Some((name, opening)) = self.opened.pop_front() else { return Ok(None) };
        let object = join(self.runtime.block_on(opening))?.map_err(|e| match e.kind() {
            Kind::NotFound => {
                Error::unavailable(format!("{name} was in the archive a moment ago, and is gone")).hint("try again")
            }
            _ => e,
        })?;
        Ok(Some((name, object)))
    }
}
