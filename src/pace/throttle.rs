//! A limit on the bytes that pass in a second, shared by all threads, which counts them as well.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// Lets so many bytes a second pass.
#[derive(Debug)]
pub struct Throttle {
    rate: Option<u64>,
    passed: AtomicU64,
    /// When what has passed so far would be over at that rate.
    free_at: Mutex<Instant>,
}

impl Throttle {
    /// At most `rate` bytes a second; without one there is no limit.
    #[must_use]
    pub fn new(rate: Option<u64>) -> Self {
        Self { rate: rate.filter(|rate| *rate > 0), passed: AtomicU64::new(0), free_at: Mutex::new(Instant::now()) }
    }

    /// The bytes that have passed.
    #[must_use]
    pub fn passed(&self) -> u64 {
        self.passed.load(Ordering::Relaxed)
    }

    /// Waits until `bytes` may pass.
    pub fn pass(&self, bytes: u64) {
        self.passed.fetch_add(bytes, Ordering::Relaxed);
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
        assert_eq!(throttle.passed(), 50_000);
    }
}
