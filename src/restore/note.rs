//! The note that a restore leaves in the repository: what it took.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::{
    run::Restored,
    start::{Outcome, Reached},
};
use crate::{
    plan::Plan,
    repository::{FORMAT, Measured, RestoreNote, System},
};

/// Nobody waits longer for a note.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a restore took, and how long that was estimated to take, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Took {
    /// As it was.
    pub seconds: f64,
    /// As the plan had it; `None` where that cannot be compared.
    pub estimated: Option<f64>,
}

/// Holds what a restore took against the estimate, and writes it down for the next. It is no error when that cannot be
/// written: who restores may have no right to.
pub async fn remember(
    system: &System,
    plan: &Plan,
    restored: &Restored,
    reached: Option<&Reached>,
    now: DateTime<Utc>,
) -> Took {
    let reached = reached.filter(|r| r.outcome != Outcome::Following);
    let files = (restored.kept == 0 && !restored.resumed)
        .then_some(Measured { bytes: restored.bytes, seconds: restored.took.as_secs_f64() });
    let wal_bytes = plan.segments.saturating_mul(system.document.segment_size.bytes());
    let wal = reached.map(|r| Measured { bytes: wal_bytes, seconds: r.seconds });
    let estimated = plan.estimate.as_ref().filter(|_| files.is_some());
    let estimated = estimated.map(|e| e.files_seconds + wal.map_or(0.0, |_| e.wal_seconds));
    let took = Took { seconds: restored.took.as_secs_f64() + wal.map_or(0.0, |w| w.seconds), estimated };
    if files.is_some() || wal.is_some() {
        let note = RestoreNote {
            format: FORMAT,
            done: now,
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            walden: env!("CARGO_PKG_VERSION").to_owned(),
            backup: plan.backup.id,
            files,
            wal,
            estimated_seconds: estimated,
        };
        match tokio::time::timeout(PATIENCE, system.add_restore_note(&note)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "no note of this restore"),
            Err(_) => tracing::debug!("no note of this restore: the repository did not answer in time"),
        }
    }
    took
}
