//! A round: a mirror catches up with everything that the first has of a cluster.

use std::{path::Path, sync::Arc};

use super::{CatchUp, CaughtUp, Extent, InStep, Mirror};
use crate::{
    clock::Clock,
    error::{Error, Result},
    interrupt::Interrupt,
    progress::Progress,
    repository::{self, ClusterName, System},
    store::Store,
};

/// How a mirror catches up.
#[derive(Debug)]
pub struct Round<'a> {
    /// The first repository.
    pub first: &'a Arc<dyn Store>,
    /// The cluster.
    pub cluster: &'a ClusterName,
    /// Where this host remembers how far mirrors are; a folder that cannot be used means that all is compared.
    pub state_dir: &'a Path,
    /// How much is compared.
    pub extent: Extent,
    /// How many objects are copied at a time.
    pub parallel: usize,
    /// How many are copied at most.
    pub limit: usize,
    /// Whether to wait while another process of this host copies to that mirror; else that one is left to it.
    pub wait: bool,
    /// Who watches.
    pub progress: &'a dyn Progress,
    /// Who may ask to stop.
    pub interrupt: Option<&'a Interrupt>,
    /// The time of day.
    pub clock: &'a dyn Clock,
}

/// Objects that are copied at a time at most: each may be held in memory.
const PARALLEL: usize = 4;

impl Round<'_> {
    /// Brings the mirror up to the first. Errors name it.
    pub async fn of(&self, mirror: &Mirror) -> Result<CaughtUp> {
        let done = self.catch_up(mirror).await;
        self.progress.finish();
        if done.is_err() {
            mirror.doubt_unless_away().await;
        }
        done
    }

    async fn catch_up(&self, mirror: &Mirror) -> Result<CaughtUp> {
        let first = repository::open(&**self.first).await?;
        let there = mirror.open(&first).await?;
        let mut all = CaughtUp { complete: true, ..CaughtUp::default() };
        for system in System::all(self.first, self.cluster).await? {
            let state = InStep::open(self.state_dir, &first, &there.document, &system.folder);
            let state = state.inspect_err(|error| tracing::debug!("{}: {error}", mirror.name)).ok();
            let _lock = match &state {
                Some(state) if self.wait => Some(state.alone().await?),
                Some(state) => match state.try_alone()? {
                    None => {
                        all.complete = false;
                        continue;
                    }
                    lock => lock,
                },
                None => None,
            };
            let catch_up = CatchUp {
                first: &system,
                mirror: &there,
                name: &mirror.name,
                state: state.as_ref(),
                parallel: self.parallel.min(PARALLEL),
                limit: self.limit.saturating_sub(all.objects),
                progress: self.progress,
                interrupt: self.interrupt,
                now: self.clock.now(),
            };
            let copy = |e: Error| e.context(format_args!("copy to repository {}", mirror.name));
            all.add(catch_up.run(self.extent).await.map_err(copy)?);
        }
        Ok(all)
    }
}

impl CaughtUp {
    fn add(&mut self, other: Self) {
        self.objects += other.objects;
        self.segments += other.segments;
        self.bytes += other.bytes;
        self.backups.extend(other.backups);
        self.problems.extend(other.problems);
        self.complete &= other.complete;
    }
}
