//! How many processors are taken for short pieces of work that wait in a row, segments to be compressed: never more
//! than is allowed, and beyond the first one only those that others leave idle.
//!
//! [`Crew`](super::Crew) asks the same of work that takes minutes, and looks at what the processors did meanwhile. A
//! segment takes a tenth of a second: here it counts what runs at this moment.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::available_parallelism,
    time::Duration,
};

use tokio::{
    sync::{Mutex, Notify},
    time::timeout,
};

/// How often it is looked at whether others have left a processor.
const EVERY: Duration = Duration::from_millis(100);

/// The processors that may be taken.
#[derive(Debug)]
pub struct Cores {
    most: usize,
    taken: AtomicUsize,
    /// Those who wait are served in their order.
    turn: Mutex<()>,
    freed: Notify,
}

/// Processors that are taken; given back when it is dropped.
#[derive(Debug)]
pub struct Seat {
    cores: Arc<Cores>,
    taken: usize,
}

impl Cores {
    /// At most so many.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self { most: most.max(1), taken: AtomicUsize::new(0), turn: Mutex::default(), freed: Notify::new() }
    }

    /// How many may be taken.
    #[must_use]
    pub fn most(&self) -> usize {
        self.most
    }

    /// Takes one, when it is this one's turn: at once where none is taken, and else as soon as one is allowed and, unless
    /// it is `urgent`, idle.
    pub async fn seat(self: &Arc<Self>, urgent: bool) -> Seat {
        let _turn = self.turn.lock().await;
        loop {
            let freed = self.freed.notified();
            let taken = self.taken.load(Ordering::Relaxed);
            if taken == 0 || taken < self.most && (urgent || left() > taken) {
                self.taken.fetch_add(1, Ordering::Relaxed);
                return Seat { cores: self.clone(), taken: 1 };
            }
            _ = timeout(EVERY, freed).await;
        }
    }
}

impl Seat {
    /// How many more could be taken now because they are allowed and idle.
    #[must_use]
    pub fn spare(&self) -> usize {
        let taken = self.cores.taken.load(Ordering::Relaxed);
        self.cores.most.min(left()).saturating_sub(taken)
    }

    /// Takes so many more. Two that ask at once may together take more than was spare: for that short time.
    pub fn widen(&mut self, by: usize) {
        self.cores.taken.fetch_add(by, Ordering::Relaxed);
        self.taken += by;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.cores.taken.fetch_sub(self.taken, Ordering::Relaxed);
        self.cores.freed.notify_one();
    }
}

/// How many processors of the machine other programs leave at this moment. All of them where the system does not tell.
fn left() -> usize {
    let text = |path| fs::read_to_string(path).unwrap_or_default();
    // Not what this program may use: what runs is counted on the whole machine.
    let all = processors(&text("/sys/devices/system/cpu/online"));
    let own = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let own = own.filter(|thread| runs(&fs::read_to_string(thread.path().join("stat")).unwrap_or_default())).count();
    all.saturating_sub(running(&text("/proc/loadavg")).saturating_sub(own))
}

/// How many processors a list such as `0-3,8` names.
fn processors(list: &str) -> usize {
    let count = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(last.parse::<usize>().ok()?.checked_sub(first.parse().ok()?)? + 1)
    };
    let counted = list.trim().split(',').map(count).sum::<Option<usize>>();
    counted.unwrap_or_else(|| available_parallelism().map_or(1, std::num::NonZero::get))
}

/// How many threads want a processor: `0.20 0.18 0.12 3/80 11206` says three (proc_loadavg(5)).
fn running(loadavg: &str) -> usize {
    let counts = loadavg.split_ascii_whitespace().nth(3).and_then(|counts| counts.split_once('/'));
    counts.and_then(|(running, _)| running.parse().ok()).unwrap_or(0)
}

/// Whether a thread is one of them. The state follows its name in parentheses, which can hold anything (proc_pid_stat(5)).
fn runs(stat: &str) -> bool {
    stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with('R'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runs_is_counted() {
        assert_eq!(running("0.20 0.18 0.12 3/80 11206\n"), 3);
        assert_eq!(running(""), 0);
        assert!(runs("7 (a) b) R 1 2") && !runs("7 (R) S 1 2") && !runs(""));
        assert_eq!([processors("0\n"), processors("0-3,8\n"), processors("0-1,4-5")], [1, 5, 4]);
        assert!(processors("?") > 0);
    }

    #[tokio::test]
    async fn no_more_are_taken_than_are_allowed_and_the_first_is_always_there() {
        let cores = Arc::new(Cores::new(2));
        // Whatever else runs on this machine.
        let first = cores.seat(false).await;
        let second = cores.seat(true).await;
        assert_eq!(first.spare(), 0);
        let waits = tokio::spawn({
            let cores = cores.clone();
            async move { cores.seat(true).await }
        });
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!waits.is_finished());
        drop(second);
        let mut third = waits.await.unwrap();
        drop(first);
        third.widen(1);
        assert_eq!(third.spare(), 0);
        drop(third);
        assert_eq!(cores.taken.load(Ordering::Relaxed), 0);
    }
}
