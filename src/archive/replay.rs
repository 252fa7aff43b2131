//! The recovery of one data directory: which segments it will want next, which of them are under way, and how many it
//! makes sense to fetch ahead.

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::watch;

use super::{
    arrival::{Arrived, Found},
    spool::Spool,
};
use crate::{error::Result, interrupt::Interrupt, postgres::SegmentName, repository::Incarnation};

/// How many segments are fetched ahead after the first question.
const FIRST_PACE: usize = 2;

/// The recovery of one data directory.
#[derive(Debug)]
pub(super) struct Replay {
    pub(super) spool: Spool,
    pub(super) incarnation: Incarnation,
    pgdata: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// What is worth keeping.
    wanted: HashSet<SegmentName>,
    /// What is being fetched; its end is seen by the sender's.
    under_way: HashMap<SegmentName, watch::Receiver<()>>,
    /// How many segments are fetched ahead: more, while what was fetched is asked for.
    pace: usize,
    asked: Instant,
    /// What was handed out last and is not kept.
    handed: Option<Arrived>,
}

/// A segment that is being fetched ahead, until this is dropped.
#[derive(Debug)]
pub(super) struct UnderWay {
    pub(super) name: SegmentName,
    pub(super) replay: Arc<Replay>,
    _end: watch::Sender<()>,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.replay.state().under_way.remove(&self.name);
    }
}

impl Replay {
    pub(super) fn new(spool: Spool, pgdata: PathBuf, incarnation: Incarnation) -> Self {
        let state = State {
            wanted: HashSet::new(),
            under_way: HashMap::new(),
            pace: FIRST_PACE,
            asked: Instant::now(),
            handed: None,
        };
        Self { spool, incarnation, pgdata, state: Mutex::new(state) }
    }

    /// The segment's file and its length, when it lies ready or will in a moment.
    pub(super) async fn take(&self, name: SegmentName) -> Option<(PathBuf, u64)> {
        loop {
            let under_way = {
                let mut state = self.state();
                state.asked = Instant::now();
                if let Some(ready) = self.spool.ready(name) {
                    return Some(ready);
                }
                state.under_way.get(&name).cloned()
            };
            // Nothing is ever sent: it ends with the sender.
            _ = under_way?.changed().await;
        }
    }

    /// How many segments to fetch ahead: after one that was ready twice as many as before.
    pub(super) fn pace(&self, was_ready: bool, most: usize) -> usize {
        let mut state = self.state();
        state.pace = state.pace.saturating_mul(if was_ready { 2 } else { 1 }).min(most.max(1));
        state.pace.min(most)
    }

    /// From now on these are wanted, `delivered` being in somebody's hands; what is neither there nor under way has to
    /// be fetched.
    pub(super) fn want(self: &Arc<Self>, delivered: SegmentName, names: &[SegmentName]) -> Vec<UnderWay> {
        let mut state = self.state();
        state.wanted = names.iter().copied().collect();
        let mut kept = state.wanted.clone();
        kept.insert(delivered);
        if let Err(error) = self.spool.keep_only(&kept) {
            tracing::info!("{error}");
        }
        let missing =
            names.iter().filter(|name| !state.under_way.contains_key(name) && self.spool.ready(**name).is_none());
        let missing: Vec<SegmentName> = missing.copied().collect();
        let begin = |name| {
            let (end, seen) = watch::channel(());
            state.under_way.insert(name, seen);
            UnderWay { name, replay: self.clone(), _end: end }
        };
        missing.into_iter().map(begin).collect()
    }

    /// Writes a segment into the spool, unless it is not wanted any more. Call it on a thread of its own.
    pub(super) fn receive(&self, name: SegmentName, found: Found) -> Result<()> {
        let wanted = || self.state().wanted.contains(&name);
        let arrived = Arrived::write(found, self.spool.temporary(), &self.pgdata.join("pg_wal"), wanted)?;
        let state = self.state();
        if state.wanted.contains(&name) { self.spool.keep(name, arrived) } else { Err(Interrupt::error()) }
    }

    /// There is no next one yet: a standby that has come to the end asks for one after the other.
    pub(super) fn end_of_archive(&self) {
        self.state().pace = 1;
    }

    /// Keeps what was handed out until the next is.
    pub(super) fn hand(&self, arrived: Option<Arrived>) {
        self.state().handed = arrived;
    }

    /// Waits until nothing is under way any more.
    pub(super) async fn settled(&self) {
        let under_way: Vec<_> = self.state().under_way.values().cloned().collect();
        for mut end in under_way {
            _ = end.changed().await;
        }
    }

    /// How long nothing was asked for.
    pub(super) fn idle(&self) -> Duration {
        self.state().asked.elapsed()
    }

    /// It does not go on for now: nothing is wanted.
    pub(super) fn rest(&self) {
        self.forget();
        if let Err(error) = self.spool.keep_only(&HashSet::new()) {
            tracing::info!("{error}");
        }
    }

    /// It is over.
    pub(super) fn close(&self) {
        self.forget();
        self.spool.end();
    }

    fn forget(&self) {
        let mut state = self.state();
        state.wanted.clear();
        state.handed = None;
        state.asked = Instant::now();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
