//! A limit on the bytes that are read in a second, shared by all threads.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Lets so many bytes a second pass.
#[derive(Debug)]
pub struct Throttle {
    rate: Option<u64>,
    /// When what has passed so far would be over at that rate.
    free_at: Mutex<Instant>,
}

impl Throttle {
    /// At most `rate` bytes a second; without one there is no limit.
    #[must_use]
    pub fn new(rate: Option<u64>) -> Self {
        Self { rate: rate.filter(|rate| *rate > 0), free_at: Mutex::new(Instant::now()) }
    }

    /// Waits until `bytes` may pass.
    pub fn pass(&self, bytes: u64) {
        let Some(rate) = self.rate else { return };
        let wait = {
            let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            let begin = (*free_at).max(now);
            *free_at = begin + Duration::from_secs_f64(bytes as f64 / rate as f64);
            begin - now
        };
        std::thread::sleep(wait);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_the_rate_passes() {
        let throttle = Throttle::new(Some(1_000_000));
        let begun = Instant::now();
        for _ in 0..5 {
            throttle.pass(10_000);
        }
        // The fifth waits for the four before it: 40 ms at the least, however slow the machine is.
        assert!(begun.elapsed() >= Duration::from_millis(40));
    }
}
