//! Looks at a cluster: at its server and the files beside it, then at what of it is in the repository. Reads only, and
//! goes on without whatever does not answer.

use std::{future::Future, sync::Arc, time::Duration};

use super::status::{NotSeen, Seen, ServerSeen, Status, SuspendedSeen};
use crate::{
    archive::{Record, Suspensions},
    clock::Clock,
    config::{ClusterConfig, Config},
    error::{Error, Kind, Result},
    plan::{
        Watch,
        window::{self, Depth, Timelines},
    },
    postgres::{ControlFile, TimelineId, pg_wal::PgWal, sql::Session},
    repository::{Incarnation, System},
    store::Store,
};

/// The state of a cluster. `store` opens the repository; that, and what is read there, may take `patience`. A
/// repository that is not reached is told in the status; an error means that it is none, or damaged.
pub async fn status(
    config: &Config,
    cluster: &ClusterConfig,
    store: impl Future<Output = Result<Arc<dyn Store>>>,
    patience: Option<Duration>,
    clock: &dyn Clock,
    watch: &Watch,
) -> Result<Status> {
    // What the server and its files say is archived has to be in the repository, which is looked at after them.
    let (now, here, wal) = (clock.now(), here(cluster), pg_wal(cluster));
    let suspended = suspended(config, cluster);
    let server = server(cluster).await;
    let read = systems(cluster, store, watch);
    let systems = match patience {
        None => read.await,
        Some(limit) => tokio::time::timeout(limit, read)
            .await
            .unwrap_or_else(|_| Err(Error::unavailable(format!("it did not answer within {} s", limit.as_secs())))),
    };
    let (systems, unreachable) = match systems {
        Err(error) if matches!(error.kind(), Kind::Unavailable | Kind::Denied) => (Vec::new(), Some(error.to_string())),
        systems => (systems?, None),
    };
    Ok(Status::of(&Seen { systems: &systems, unreachable, here, wal, suspended, server, now }))
}

async fn systems(
    cluster: &ClusterConfig,
    store: impl Future<Output = Result<Arc<dyn Store>>>,
    watch: &Watch,
) -> Result<Vec<Timelines>> {
    let store = store.await?;
    let mut systems = Vec::new();
    for system in System::all(&store, &cluster.name).await? {
        systems.push(timelines(&system, Depth::Ends, cluster, watch).await?);
    }
    Ok(systems)
}

/// The timelines of a system. When the data directory is at hand it tells which of them the cluster writes.
pub async fn timelines(system: &System, depth: Depth, cluster: &ClusterConfig, watch: &Watch) -> Result<Timelines> {
    let mut timelines = window::timelines(system, depth, watch).await?;
    if let Some(live) = written_here(&timelines, cluster) {
        timelines.set_live(live);
    }
    Ok(timelines)
}

fn written_here(timelines: &Timelines, cluster: &ClusterConfig) -> Option<TimelineId> {
    let control = ControlFile::read(cluster.pgdata().ok()?).ok()?;
    let here = timelines.system.incarnation;
    (control.system == here.system && cluster.incarnation == here.number).then_some(control.checkpoint_copy.timeline)
}

fn here(cluster: &ClusterConfig) -> Option<Incarnation> {
    let control = ControlFile::read(cluster.pgdata().ok()?).ok()?;
    Some(Incarnation { system: control.system, number: cluster.incarnation })
}

fn pg_wal(cluster: &ClusterConfig) -> Result<PgWal, NotSeen> {
    let pgdata = cluster.pgdata().map_err(|error| NotSeen { why: error.to_string(), tried: false })?;
    PgWal::look(pgdata)
        .map_err(|error| NotSeen { why: Error::io("read", &pgdata.join("pg_wal"), error).to_string(), tried: true })
}

fn suspended(config: &Config, cluster: &ClusterConfig) -> Result<SuspendedSeen, NotSeen> {
    cluster.pgdata().map_err(|error| NotSeen { why: error.to_string(), tried: false })?;
    let look = || {
        let suspensions = Suspensions::of(config, cluster)?;
        let current = suspensions.current()?;
        let ended = suspensions.pending()?.into_iter().filter(|record| record.begun.suspended.resumed.is_some());
        let skipped = |record: &Record| record.segments().collect::<Vec<_>>();
        Ok::<_, Error>(SuspendedSeen {
            not_noted: ended.map(|record| (record.begun.suspended.clone(), skipped(&record))).collect(),
            current: current.map(|record| (record.begun.suspended.clone(), skipped(&record))),
        })
    };
    look().map_err(|error| NotSeen { why: error.to_string(), tried: true })
}

async fn server(cluster: &ClusterConfig) -> Result<ServerSeen, NotSeen> {
    let connection = cluster.connection().map_err(|error| NotSeen { why: error.to_string(), tried: false })?;
    let ask = async {
        let session = Session::open(&connection.reveal().parse()?).await?;
        let facts = session.server_facts().await?;
        Ok(ServerSeen {
            system: facts.system,
            mode: facts.archive_mode,
            command: facts.archive_command,
            library: facts.archive_library,
            in_recovery: facts.in_recovery,
            timeline: facts.timeline,
            segment_size: facts.segment_size,
            slots: session.slots().await?,
            archiver: session.archiver().await?,
            lsn: session.current_wal_lsn().await?,
        })
    };
    let seen: Result<ServerSeen> = ask.await;
    seen.map_err(|error| NotSeen { why: error.to_string(), tried: true })
}
