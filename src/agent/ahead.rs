//! Ships the segments of one cluster that are ready, before PostgreSQL asks for each: but only while its own archiver
//! calls. A restored copy whose `archive_command` holds its WAL back lies in the same place as the cluster it is a copy
//! of; what it writes must not go to the archive until a person adopts it.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::metrics::Figures;
use crate::{
    archive::{Shipper, Suspensions},
    clock::Random,
    postgres::server,
    store::Store,
};

/// How long after a call PostgreSQL counts as calling: after three failures its archiver pauses for a minute
/// (`PGARCH_AUTOWAKE_INTERVAL`, pgarch.c).
const CALLING: Duration = Duration::from_secs(90);
/// Between two looks for ready segments.
const PAUSE: Duration = Duration::from_millis(100);
/// Between two tries when the repository does not answer; doubled up to the second, and less by up to a half, so that
/// those who have lost the same repository do not all come back at once.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(30);

/// A cluster that is served.
pub(super) struct Served {
    pub(super) shipper: Shipper,
    figures: Arc<Figures>,
    suspensions: Suspensions,
    store: Arc<dyn Store>,
    called: watch::Sender<Option<Call>>,
}

/// A call of PostgreSQL's archiver.
#[derive(Clone)]
struct Call {
    path: PathBuf,
    at: Instant,
    /// The run of the server whose archiver it was.
    run: String,
}

impl Served {
    pub(super) fn new(
        shipper: Shipper,
        figures: Arc<Figures>,
        suspensions: Suspensions,
        store: Arc<dyn Store>,
    ) -> Self {
        Self { shipper, figures, suspensions, store, called: watch::Sender::new(None) }
    }

    /// Tells the repository of suspended archiving what it does not know yet.
    async fn settle(&self) {
        if let Err(error) = self.suspensions.settle(&self.store).await {
            tracing::info!("the repository is not told yet that archiving is, or was, suspended: {error}");
        }
    }

    /// A process asks for this file. It counts when the server itself has started it: not a person who pushes one file
    /// by hand, nor who works on the files of a stopped server.
    pub(super) fn is_called(&self, path: &Path, by: Option<i32>) {
        let pgdata = self.shipper.pgdata(path).ok();
        let pgdata = pgdata.zip(by).filter(|(pgdata, by)| server::started(pgdata, *by));
        if let Some(run) = pgdata.and_then(|(pgdata, _)| server::run_of(&pgdata)) {
            self.called.send_replace(Some(Call { path: path.into(), at: Instant::now(), run }));
        }
    }
}

/// Ships what is ready, as long as somebody serves the cluster.
pub(super) async fn ship(served: Weak<Served>, random: Arc<Random>) {
    let Some(mut called) = served.upgrade().map(|served| served.called.subscribe()) else { return };
    let mut retry = FIRST_RETRY;
    let mut settled: Option<Instant> = None;
    while let Some(served) = served.upgrade() {
        let call = called.borrow_and_update().clone();
        let Some(call) = call.filter(|call| is_calling(call, &served)) else {
            drop(served);
            // An error means that the cluster is not served any more: the next upgrade tells.
            _ = called.changed().await;
            continue;
        };
        let suspended = served.suspensions.is_suspended(&call.path);
        if (suspended || served.suspensions.has_ended()) && settled.is_none_or(|at| at.elapsed() > LAST_RETRY) {
            served.settle().await;
            settled = Some(Instant::now());
        }
        if suspended {
            drop(served);
            _ = timeout(LAST_RETRY, called.changed()).await;
            continue;
        }
        match served.shipper.ahead(&call.path, usize::MAX).await {
            Ok(count) => {
                served.figures.shipped_ahead(count);
                retry = FIRST_RETRY;
                drop(served);
                sleep(PAUSE).await;
            }
            Err(error) => {
                tracing::info!("cluster {}: ship ahead: {error}", served.shipper.shipping().cluster);
                drop(served);
                // PostgreSQL's own calls tell whoever looks, and one that comes is a reason to try again.
                _ = timeout(retry.mul_f64(1.0 - random.fraction() / 2.0), called.changed()).await;
                retry = (retry * 2).min(LAST_RETRY);
            }
        }
    }
}

fn is_calling(call: &Call, served: &Served) -> bool {
    let run = || served.shipper.pgdata(&call.path).ok().and_then(|pgdata| server::run_of(&pgdata));
    call.at.elapsed() < CALLING && run().is_some_and(|run| run == call.run)
}
