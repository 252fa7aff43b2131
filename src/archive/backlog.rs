//! How far archiving is behind, and how much work therefore goes into a segment: a thorough level where it waits alone
//! and processors are idle, the fast one where others wait behind it.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    config::Levels,
    pace::{Cores, Seat},
};

/// With so many segments waiting, speed is all that counts: the fastest level, and all processors that are allowed. What
/// the server loses of them is less than what it loses when its disk fills up.
const BEHIND: usize = 8;
/// What was seen this long ago is not looked at again.
const FRESH: Duration = Duration::from_secs(1);
/// What was seen this long ago says nothing about how fast they become more.
const RECENT: Duration = Duration::from_secs(10);
/// The most threads beside its own that compress one segment: reading and checking it is one thread's work, and takes a
/// quarter of the time.
const HELPERS: usize = 3;

/// The segments that wait.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    seen: Mutex<Option<Seen>>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    at: Instant,
    /// How many wait and were not begun.
    waiting: usize,
    /// How many more there were than at the look before.
    growth: usize,
}

/// How much work goes into a segment.
#[derive(Debug)]
pub(super) struct Effort {
    /// zstd's level.
    pub(super) level: i32,
    /// How many threads compress it besides the one that reads it.
    pub(super) helpers: usize,
    /// The processors that it takes, as long as this is there.
    _seat: Option<Seat>,
}

impl Effort {
    /// For a file that makes no work, or that nobody waits behind.
    pub(super) fn alone(level: i32) -> Self {
        Self { level, helpers: 0, _seat: None }
    }
}

impl Backlog {
    /// So many wait and were not begun.
    pub(super) fn tell(&self, waiting: usize) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let before = seen.filter(|seen| seen.at.elapsed() < RECENT);
        let growth = before.map_or(0, |before| waiting.saturating_sub(before.waiting));
        *seen = Some(Seen { at: Instant::now(), waiting, growth });
    }

    /// One of them was begun.
    pub(super) fn begun(&self) {
        if let Some(seen) = &mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner) {
            seen.waiting = seen.waiting.saturating_sub(1);
        }
    }

    fn seen(&self) -> Option<Seen> {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for its turn and decides. `count` tells how many wait where that was not seen just now.
    pub(super) async fn effort(&self, levels: Levels, cores: &Arc<Cores>, count: impl FnOnce() -> usize) -> Effort {
        if self.seen().is_none_or(|seen| seen.at.elapsed() >= FRESH) {
            self.tell(count());
        }
        let urgent = self.seen().is_some_and(|seen| seen.waiting >= BEHIND);
        let mut seat = cores.seat(urgent).await;
        // Others may have come while it waited.
        let (waiting, growth) = self.seen().map_or((0, 0), |seen| (seen.waiting, seen.growth));
        let spare = seat.spare();
        let helpers = if waiting == 0 { spare.min(HELPERS) } else { 0 };
        seat.widen(helpers);
        let level = level(levels, waiting + growth, spare);
        tracing::debug!(waiting, growth, spare, level, "a segment is compressed");
        Effort { level, helpers, _seat: Some(seat) }
    }
}

/// The level for a segment behind which so many wait. More than the fast one is worth its time only where a processor is
/// spare.
fn level(Levels { fast, thorough }: Levels, waiting: usize, spare: usize) -> i32 {
    let waiting = if spare == 0 { BEHIND } else { waiting.min(BEHIND) };
    let less = (thorough - fast) as usize * waiting / BEHIND;
    thorough - less as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_wait_the_faster_it_goes() {
        let levels = Levels { fast: 1, thorough: 6 };
        let chosen = |spare: usize| [0, 1, 2, 4, 7, 8, 500].map(|waiting| level(levels, waiting, spare));
        assert_eq!(chosen(1), [6, 6, 5, 4, 2, 1, 1]);
        assert_eq!(chosen(0), [1; 7]);
        assert_eq!(level(3.into(), 0, 1), 3);
        assert_eq!(level(3.into(), 9, 0), 3);
    }

    #[tokio::test]
    async fn what_becomes_more_counts_twice_and_only_one_that_waits_alone_is_helped() {
        let (backlog, cores) = (Backlog::default(), Arc::new(Cores::new(1)));
        let levels = Levels { fast: 1, thorough: 9 };
        backlog.tell(2);
        backlog.tell(5);
        assert_eq!(backlog.seen().map(|seen| (seen.waiting, seen.growth)), Some((5, 3)));
        backlog.begun();
        let effort = backlog.effort(levels, &cores, || panic!("it was seen just now")).await;
        // One processor is allowed, and taken: there is none to spare.
        assert_eq!((effort.level, effort.helpers), (1, 0));
        backlog.tell(0);
        assert_eq!(backlog.seen().map(|seen| (seen.waiting, seen.growth)), Some((0, 0)));
        let unseen = Backlog::default();
        drop(effort);
        drop(unseen.effort(levels, &cores, || 7).await);
        assert_eq!(unseen.seen().map(|seen| seen.waiting), Some(7));
    }
}
