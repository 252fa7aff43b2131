//! Object lock: objects that nobody may delete for good before their time.

use std::time::Duration;

use aws_sdk_s3::{primitives::DateTime, types::ObjectLockMode};

use super::Bucket;
use crate::{
    clock::{Clock as _, SystemClock},
    store::Key,
};

/// How objects are locked.
#[derive(Clone, Copy, Debug)]
pub struct Lock {
    /// For how long from when they are written.
    pub time: Duration,
    /// Whether nobody at all may lift it, instead of those who have a right to.
    pub compliance: bool,
    /// Which objects are.
    pub of: fn(&Key) -> bool,
}

impl Bucket {
    /// What the headers for object lock say of a new object: the mode, and until when.
    pub(super) fn retention(&self, name: &str) -> (Option<ObjectLockMode>, Option<DateTime>) {
        let lock = self.options.lock.filter(|lock| Key::new(name).is_ok_and(|key| (lock.of)(&key)));
        let Some(lock) = lock else { return (None, None) };
        let mode = if lock.compliance { ObjectLockMode::Compliance } else { ObjectLockMode::Governance };
        let until = SystemClock.now() + chrono::Duration::from_std(lock.time).unwrap_or_default();
        (Some(mode), Some(DateTime::from_secs(until.timestamp())))
    }
}
