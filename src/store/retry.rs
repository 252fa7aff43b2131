//! How long a store tries, and how it waits in between.

use std::{future::Future, time::Duration};

use tokio::time::{Instant, sleep, timeout};

use crate::{
    clock::Random,
    error::{Error, Kind, Result},
};

/// The slowest transfer that still counts as one, in bytes a second. Attempts get this much more time for each byte.
const SLOWEST: u64 = 256 << 10;

/// How long a store tries before it reports that it could not do something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// After this time without an answer an attempt is broken off and made again.
    pub attempt: Duration,
    /// After this time no further attempt is made.
    pub deadline: Duration,
    /// The pause after the first attempt; it doubles after each.
    pub first_pause: Duration,
    /// The longest pause.
    pub longest_pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            attempt: Duration::from_secs(20),
            deadline: Duration::from_secs(60),
            first_pause: Duration::from_millis(100),
            longest_pause: Duration::from_secs(5),
        }
    }
}

impl Patience {
    /// The same with the time that it takes to move `bytes` on a slow line.
    #[must_use]
    pub fn to_move(self, bytes: usize) -> Self {
        let moving = Duration::from_millis((bytes as u64).saturating_mul(1000) / SLOWEST);
        Self { attempt: self.attempt + moving, deadline: self.deadline + moving, ..self }
    }

    /// The pause after attempt `number` (from 0). `fraction` (0 to 1) spreads the writers that failed together.
    #[must_use]
    pub fn pause(&self, number: u32, fraction: f64) -> Duration {
        let full = self.first_pause.saturating_mul(2_u32.saturating_pow(number)).min(self.longest_pause);
        full.mul_f64(0.5 + 0.5 * fraction)
    }
}

/// Makes attempts, numbered from 0, until one ends in anything but [`Kind::Unavailable`] or patience is at its end.
/// `silence` makes the error of an attempt that got no answer in time.
pub async fn persist<T, F: Future<Output = Result<T>>>(
    patience: Patience,
    random: &Random,
    silence: impl Fn(Duration) -> Error,
    mut attempt: impl FnMut(u32) -> F,
) -> Result<T> {
    let start = Instant::now();
    let mut number = 0;
    loop {
        let time = patience.attempt.min(patience.deadline.saturating_sub(start.elapsed()));
        let error = match timeout(time, attempt(number)).await {
            Ok(Err(error)) if error.kind() == Kind::Unavailable => error,
            Ok(answer) => return answer,
            Err(_) => silence(time),
        };
        let pause = patience.pause(number, random.fraction());
        number += 1;
        if start.elapsed() + pause >= patience.deadline {
            let spent = start.elapsed().as_secs_f64();
            return Err(error.context(format!("gave up after {number} attempts in {spent:.1} s")));
        }
        tracing::debug!(%error, attempt = number, "will try again");
        sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    fn silence(time: Duration) -> Error {
        Error::unavailable(format!("silence for {} s", time.as_secs()))
    }

    #[tokio::test(start_paused = true)]
    async fn what_may_pass_is_tried_again_until_it_has_passed() {
        let random = Random::seeded(1);
        let answer = persist(Patience::default(), &random, silence, |number| async move {
            if number < 4 { Err(Error::unavailable("busy")) } else { Ok(number) }
        });
        assert_eq!(answer.await.unwrap(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn what_will_not_pass_is_not_tried_again() {
        let (random, attempts) = (Random::seeded(1), AtomicU32::new(0));
        let answer = persist(Patience::default(), &random, silence, |_| async {
            attempts.fetch_add(1, Ordering::Relaxed);
            Err::<(), _>(Error::denied("no"))
        });
        assert_eq!(answer.await.unwrap_err().kind(), Kind::Denied);
        assert_eq!(attempts.into_inner(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_at_the_deadline() {
        let (random, start) = (Random::seeded(1), Instant::now());
        let answer = persist(Patience::default(), &random, silence, |_| std::future::pending::<Result<()>>());
        let error = answer.await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(error.to_string().starts_with("gave up after 3 attempts in 60.0 s: silence"), "{error}");
        assert!(start.elapsed() <= Duration::from_secs(60));
    }

    #[test]
    fn pauses_grow_and_are_spread() {
        let patience = Patience::default();
        assert_eq!(patience.pause(0, 0.0), Duration::from_millis(50));
        assert!(patience.pause(3, 0.9) > patience.pause(3, 0.1));
        assert!(patience.pause(40, 1.0) <= patience.longest_pause);
        assert_eq!(patience.to_move(2 << 20).attempt, Duration::from_secs(28));
    }
}
