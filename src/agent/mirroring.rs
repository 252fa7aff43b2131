//! Keeps mirrors in step with the first repository: whatever came to it, from here or from elsewhere, is copied after a
//! little while; a mirror that was away catches up by itself.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::time::sleep;

use super::desk::Opened;
use crate::{
    clock::{Random, SystemClock},
    error::Result,
    mirror::{Extent, Mirror, Round},
    progress::Unwatched,
};

/// Between two rounds.
const PAUSE: Duration = Duration::from_secs(15);
/// The longest time until one that did not answer is tried again.
const LONGEST: Duration = Duration::from_secs(300);

/// Goes on as long as the configuration holds.
pub(super) async fn keep_in_step(opened: Weak<Opened>, mirror: Arc<Mirror>, random: Arc<Random>) {
    let mut pause = PAUSE;
    while let Some(opened) = opened.upgrade() {
        match round(&opened, &mirror, &random).await {
            // What cannot be copied will not be otherwise in a moment.
            Ok(true) => pause = PAUSE,
            Ok(false) => pause = (pause * 2).min(LONGEST),
            Err(error) => {
                tracing::warn!("{error}");
                pause = (pause * 2).min(LONGEST);
            }
        }
        drop(opened);
        // Hosts that lost the same mirror do not come back to it at the same moment.
        sleep(pause.mul_f64(0.5 + random.fraction())).await;
    }
}

/// Whether all is well.
async fn round(opened: &Opened, mirror: &Mirror, random: &Arc<Random>) -> Result<bool> {
    let (first, config) = (&opened.store(random.clone()).await?, &opened.config);
    let mut well = true;
    for cluster in config.clusters() {
        let round = Round {
            first,
            cluster: &cluster.name,
            state_dir: &config.archive.state_dir,
            extent: Extent::Since,
            parallel: config.archive.parallel,
            limit: usize::MAX,
            wait: false,
            progress: &Unwatched,
            interrupt: None,
            clock: &SystemClock,
        };
        let done = round.of(mirror).await?;
        if done.objects > 0 {
            tracing::info!("{} objects of cluster {} copied to {}", done.objects, cluster.name, mirror.name);
        }
        for problem in &done.problems {
            well = false;
            tracing::warn!("not copied to {}: {problem}", mirror.name);
        }
    }
    Ok(well)
}
