//! Time and randomness as they come in. Whoever needs the time of day or a random number is handed one of
//! these, so that leases, retries and expiry can be tested without waiting. `clippy.toml` forbids the
//! standard library's clocks everywhere else.

use std::{fmt, sync::Mutex};

use chrono::{DateTime, Utc};

/// Where the time of day comes from.
pub trait Clock: fmt::Debug + Send + Sync {
    /// The present instant.
    fn now(&self) -> DateTime<Utc>;
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is where the time comes in")]
    fn now(&self) -> DateTime<Utc> {
        Utc::now()
    }
}

/// A clock for tests: it stands still until it is moved.
#[derive(Debug)]
pub struct ManualClock(Mutex<DateTime<Utc>>);

impl ManualClock {
    /// A clock that shows `start`.
    #[must_use]
    pub fn at(start: DateTime<Utc>) -> Self {
        Self(Mutex::new(start))
    }

    /// Moves the clock forward (or back, when negative).
    pub fn advance(&self, by: chrono::Duration) {
        let mut now = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *now += by;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> DateTime<Utc> {
        *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// A seeded source of random numbers. Not for keys or secrets: names, identities of writes and jitter only.
#[derive(Debug)]
pub struct Random(Mutex<fastrand::Rng>);

impl Random {
    /// Numbers that differ from process to process.
    #[must_use]
    pub fn from_system() -> Self {
        let mut seed = [0; 8];
        // Without the system's entropy (a kernel that is only just booting) fastrand's own seed has to do.
        match rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::NONBLOCK) {
            Ok(8) => Self::seeded(u64::from_ne_bytes(seed)),
            _ => Self(Mutex::new(fastrand::Rng::new())),
        }
    }

    /// The same numbers for the same seed.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        Self(Mutex::new(fastrand::Rng::with_seed(seed)))
    }

    /// A random number.
    pub fn u64(&self) -> u64 {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).u64(..)
    }

    /// A name nobody else has: 32 lower-case hexadecimal digits.
    pub fn name(&self) -> String {
        format!("{:016x}{:016x}", self.u64(), self.u64())
    }

    /// A fraction from 0 (included) to 1 (not included), for jitter.
    pub fn fraction(&self) -> f64 {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).f64()
    }
}
