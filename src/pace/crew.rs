//! How many threads work at a time.
//!
//! The rule, looked at four times a second:
//! - One thread begins.
//! - There are never more than the processors that others leave: all of them, less what runs on them besides this
//!   program. The server that is being backed up goes first; one thread always goes on.
//! - Where there is room they are doubled, and stay so when at least a tenth more was done in the next quarter of a
//!   second. If not, something else is the limit (the disk, the network, a rate limit): the step is taken back, and
//!   tried again after two seconds.
//! - Where the system does not tell what its processors do, the configured number works from the start.
//!
//! Disks are not asked how busy they are: a single thread that waits for one makes it look as busy as can be
//! (`/proc/pressure/io` counts the time in which anybody waits). That more threads bring no more is what tells.

use std::{
    fs,
    sync::{Condvar, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How often the rule is looked at.
const EVERY: Duration = Duration::from_millis(250);
/// How often it is looked at before a step that did not pay is tried again.
const HOLD: u32 = 8;
/// More threads must do so much more.
const PAYS: f64 = 1.1;
/// A processor that is nearly free is one: somebody always runs for an instant.
const NEARLY: f64 = 0.3;

/// How many threads may work, decided from look to look.
#[derive(Debug)]
pub struct Rule {
    most: usize,
    now: usize,
    /// How many there were before the last step, and what they did in a second.
    before: Option<(usize, f64)>,
    hold: u32,
}

/// What is seen at one look.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// What was done in a second since the last look, in any unit.
    pub rate: f64,
    /// How many processors others leave; `None` where that cannot be told.
    pub left: Option<f64>,
}

impl Rule {
    /// At most `most` threads.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self { most: most.max(1), now: 1, before: None, hold: 0 }
    }

    /// How many threads may work until the next look.
    pub fn next(&mut self, look: Look) -> usize {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a number of processors")]
        let room = look.left.map_or(self.most, |left| ((left + NEARLY).max(1.0) as usize).min(self.most));
        let before = self.before.take();
        if look.left.is_none() {
            self.now = self.most;
        } else if room < self.now {
            (self.now, self.hold) = (room, HOLD);
        } else if let Some((fewer, rate)) = before
            && look.rate < rate * PAYS
        {
            (self.now, self.hold) = (fewer, HOLD);
        } else if self.hold > 0 {
            self.hold -= 1;
        } else if self.now < room {
            self.before = Some((self.now, look.rate));
            self.now = (self.now * 2).min(room);
        }
        self.now
    }
}

/// The threads of one piece of work, of which so many work as the rule allows. The others wait between two files.
#[derive(Debug)]
pub struct Crew {
    most: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    allowed: usize,
    over: bool,
}

/// A thread of a crew. When it goes, for whatever reason, there is nothing left to do, and nobody waits any longer.
#[derive(Debug)]
pub struct Member<'a> {
    crew: &'a Crew,
    number: usize,
}

impl Crew {
    /// Up to `most` threads.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self { most: most.max(1), state: Mutex::new(State { allowed: 1, over: false }), changed: Condvar::new() }
    }

    /// How many threads to start.
    #[must_use]
    pub fn most(&self) -> usize {
        self.most
    }

    /// Thread `number`, from 0.
    #[must_use]
    pub fn member(&self, number: usize) -> Member<'_> {
        Member { crew: self, number }
    }

    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }

    /// Looks at the rule again and again, until it is dropped. `done` tells how much is done, in any unit.
    pub async fn lead(&self, done: impl Fn() -> u64) {
        let mut rule = Rule::new(self.most);
        let (mut did, mut ticks, mut at) = (done(), Ticks::read(), Instant::now());
        if ticks.is_none() {
            self.set(|state| state.allowed = self.most);
            return;
        }
        loop {
            tokio::time::sleep(EVERY).await;
            let (done, now) = (done(), Ticks::read());
            let left = ticks.zip(now).and_then(|(then, now)| now.left_since(then));
            let rate = done.saturating_sub(did) as f64 / at.elapsed().as_secs_f64();
            let allowed = rule.next(Look { rate, left });
            tracing::trace!(rate, left, allowed, "threads");
            self.set(|state| state.allowed = allowed);
            (did, ticks, at) = (done, now, Instant::now());
        }
    }
}

impl Member<'_> {
    /// Waits until this thread may go on.
    pub fn turn(&self) {
        let state = self.crew.state.lock().unwrap_or_else(PoisonError::into_inner);
        let waits = |state: &mut State| self.number >= state.allowed && !state.over;
        drop(self.crew.changed.wait_while(state, waits).unwrap_or_else(PoisonError::into_inner));
    }
}

impl Drop for Member<'_> {
    fn drop(&mut self) {
        self.crew.set(|state| state.over = true);
    }
}

/// What the processors have done since the system was started, in clock ticks (proc_stat(5), proc_pid_stat(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ticks {
    processors: u64,
    /// Of all processors together.
    all: u64,
    idle: u64,
    /// Of this program.
    own: u64,
}

impl Ticks {
    fn read() -> Option<Self> {
        Self::parse(&fs::read_to_string("/proc/stat").ok()?, &fs::read_to_string("/proc/self/stat").ok()?)
    }

    fn parse(system: &str, own: &str) -> Option<Self> {
        let numbers = |text: &str| text.split_ascii_whitespace().map_while(|n| n.parse().ok()).collect::<Vec<u64>>();
        let processors = system.lines().filter(|line| line.starts_with("cpu") && !line.starts_with("cpu ")).count();
        let all = numbers(system.lines().find_map(|line| line.strip_prefix("cpu "))?);
        // Guests are counted among the users before them.
        let (idle, all) = (all.get(3)? + all.get(4)?, all.iter().take(8).sum());
        // The name of the program stands in parentheses and can hold anything; after it come state and numbers.
        let mut own = own.rsplit_once(") ")?.1.split_ascii_whitespace().skip(11);
        let own = own.next()?.parse::<u64>().ok()? + own.next()?.parse::<u64>().ok()?;
        Some(Self { processors: processors as u64, all, idle, own })
    }

    /// How many processors others have left, idle or to this program.
    fn left_since(self, then: Self) -> Option<f64> {
        let all = self.all.checked_sub(then.all).filter(|all| *all > 0)? as f64;
        // What waits for the disk is idle, and the count of that may go back.
        let (idle, own) = (self.idle.saturating_sub(then.idle), self.own.saturating_sub(then.own));
        Some(self.processors as f64 * ((idle + own) as f64 / all).min(1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(rule: &mut Rule, looks: &[(f64, f64)]) -> Vec<usize> {
        looks.iter().map(|(rate, left)| rule.next(Look { rate: *rate, left: Some(*left) })).collect()
    }

    #[test]
    fn they_grow_while_more_is_done() {
        let mut rule = Rule::new(8);
        let looks = [(100.0, 16.0), (190.0, 16.0), (350.0, 16.0), (500.0, 16.0), (500.0, 16.0)];
        // Doubled, doubled and doubled again; more are not configured.
        assert_eq!(after(&mut rule, &[(100.0, 16.0)]), [2]);
        assert_eq!(after(&mut rule, &looks[1..2]), [4]);
        assert_eq!(after(&mut rule, &looks[2..]), [8, 8, 8]);
    }

    #[test]
    fn a_step_that_brings_nothing_is_taken_back_and_tried_later() {
        let mut rule = Rule::new(8);
        assert_eq!(after(&mut rule, &[(100.0, 16.0), (105.0, 16.0)]), [2, 1]);
        assert_eq!(after(&mut rule, &[(100.0, 16.0); HOLD as usize]), [1; HOLD as usize]);
        assert_eq!(after(&mut rule, &[(100.0, 16.0), (150.0, 16.0)]), [2, 4]);
        assert_eq!(after(&mut rule, &[(150.0, 16.0)]), [2]);
    }

    #[test]
    fn the_server_goes_first() {
        let mut rule = Rule::new(8);
        assert_eq!(after(&mut rule, &[(100.0, 8.0), (200.0, 8.0), (400.0, 8.0)]), [2, 4, 8]);
        // Others want five of eight processors, then all of them; then they have done.
        assert_eq!(after(&mut rule, &[(400.0, 3.0), (100.0, 0.2)]), [3, 1]);
        assert_eq!(after(&mut rule, &[(100.0, 8.0); HOLD as usize]), [1; HOLD as usize]);
        assert_eq!(after(&mut rule, &[(100.0, 1.8)]), [2]);
    }

    #[test]
    fn where_nothing_is_told_the_configured_number_works() {
        assert_eq!(Rule::new(5).next(Look { rate: 0.0, left: None }), 5);
        assert_eq!(Rule::new(0).next(Look { rate: 0.0, left: None }), 1);
    }

    #[test]
    fn what_others_leave_is_what_is_idle_and_ones_own() {
        let system =
            |busy: u64, idle: u64| format!("cpu  {busy} 0 0 {idle} 10 0 0 0 0 0\ncpu0 1 2\ncpu1 1 2\nintr 5\n");
        let own = |user: u64| format!("77 (a (b) c) S 1 2 3 4 -1 6 7 8 9 10 {user} 5 0 0 20 0 9\n");
        let then = Ticks::parse(&system(100, 500), &own(20)).unwrap();
        assert_eq!(then, Ticks { processors: 2, all: 610, idle: 510, own: 25 });
        // 100 ticks: 60 busy, of which 40 are one's own.
        let now = Ticks::parse(&system(160, 540), &own(60)).unwrap();
        assert!((now.left_since(then).unwrap() - 1.6).abs() < 1e-9);
        assert_eq!(then.left_since(then), None);
        assert_eq!(Ticks::parse("cpu0 1 2", &own(1)), None);
        assert_eq!(Ticks::parse(&system(1, 1), "7 (x"), None);
        assert!(Ticks::read().is_some_and(|ticks| ticks.processors > 0));
    }

    #[test]
    fn whoever_waits_goes_on_when_another_has_come_to_the_end() {
        let crew = Crew::new(3);
        std::thread::scope(|scope| {
            let waiting: Vec<_> = (1..3).map(|number| (number, crew.member(number))).collect();
            let first = crew.member(0);
            first.turn();
            let waiting: Vec<_> = waiting.into_iter().map(|(_, member)| scope.spawn(move || member.turn())).collect();
            drop(first);
            waiting.into_iter().for_each(|thread| thread.join().unwrap());
        });
    }
}
