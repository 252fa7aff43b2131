//! Looks at a cluster: at its server and the files beside it, then at what of it is in the repository. Reads only, and
//! goes on without whatever does not answer.

use std::{fs, future::Future, os::unix::fs::MetadataExt, path::PathBuf, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};

use super::{
    doctor::{self, FileSeen, Known},
    status::{NotSeen, Seen, ServerSeen, Status, SuspendedSeen},
};
use crate::{
    archive::{Record, Suspensions, receive},
    clock::Clock,
    config::{ClusterConfig, Config, Origin, Value},
    error::{Error, Kind, Result},
    plan::{
        Watch,
        window::{self, Depth, Timelines},
    },
    postgres::{
        ControlFile, TimelineId,
        pg_wal::PgWal,
        sql::{Session, Slot},
    },
    repository::{Incarnation, KitNote, System},
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
    let (InRepository { systems, restored, kit }, unreachable) = match systems {
        Err(error) if matches!(error.kind(), Kind::Unavailable | Kind::Denied) => {
            (InRepository::default(), Some(error.to_string()))
        }
        systems => (systems?, None),
    };
    let advice = doctor::judge(&Known {
        goals: &config.goals,
        keep: &config.keep,
        locks: locks(config),
        system: systems.last(),
        restored,
        archive_timeout: server.as_ref().ok().filter(|server| !server.in_recovery).map(|server| server.archive_timeout),
        received: server.as_ref().is_ok_and(|server| received(config, cluster, &server.slots)),
        identity: identity(config, cluster),
        recipients: &config.encryption.recipients,
        kit,
        file: configuration(config),
        now,
    });
    let mut status = Status::of(&Seen { systems: &systems, unreachable, here, wal, suspended, server, now });
    status.advise(advice);
    Ok(status)
}

/// The configuration file, as others can reach it.
#[must_use]
pub fn configuration(config: &Config) -> Option<FileSeen> {
    let path = config.file.clone()?;
    let mode = fs::metadata(&path).ok()?.mode();
    let secret = config.settings().iter().any(|setting| match (&setting.value, &setting.origin) {
        (Value::Connection(connection), Origin::File(..)) => connection.holds_secret(),
        _ => false,
    });
    Some(FileSeen { path, mode, secret })
}

/// For how long each repository locks objects that does, by the name of its table.
#[must_use]
pub fn locks(config: &Config) -> Vec<(String, Duration)> {
    let first = config.repository().ok().map(|first| ("repository".to_owned(), first));
    let others = config.mirrors().iter().map(|(name, mirror)| (format!("repository.{name}"), mirror));
    first.into_iter().chain(others).filter_map(|(table, repository)| Some((table, repository.lock?))).collect()
}

/// The identity file, where it lies on the host of the data directory.
#[must_use]
pub fn identity(config: &Config, cluster: &ClusterConfig) -> Option<PathBuf> {
    let file = config.encryption.identity_file.as_ref().filter(|file| file.exists())?;
    here(cluster).map(|_| file.clone())
}

/// Whether somebody receives by the slot of `[receive]`.
#[must_use]
pub fn received(config: &Config, cluster: &ClusterConfig, slots: &[Slot]) -> bool {
    let ours = receive::slot_name(config.receive.slot.as_deref(), &cluster.name);
    ours.is_ok_and(|ours| slots.iter().any(|slot| slot.active && slot.name == ours))
}

/// When a restore from that system was done last; none where its notes could not be listed.
pub async fn restored(system: &System) -> Option<Option<DateTime<Utc>>> {
    let notes = system.restore_notes(1).await.ok()?;
    Some(notes.first().map(|note| note.done))
}

async fn systems(
    cluster: &ClusterConfig,
    store: impl Future<Output = Result<Arc<dyn Store>>>,
    watch: &Watch,
) -> Result<InRepository> {
    let store = store.await?;
    let mut found = InRepository::default();
    for system in System::all(&store, &cluster.name).await? {
        found.systems.push(timelines(&system, Depth::Ends, cluster, watch).await?);
        found.restored = found.restored.max(restored(&system).await);
        found.kit = system.newest_kit().await.ok();
    }
    Ok(found)
}

/// What is known of a cluster from its repository.
#[derive(Default)]
struct InRepository {
    /// Its systems, the newest last.
    systems: Vec<Timelines>,
    /// When a restore was done last; the inner value is none where there was none.
    restored: Option<Option<DateTime<Utc>>>,
    /// The newest recovery kit of the newest system, in the same way.
    kit: Option<Option<KitNote>>,
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
            archive_timeout: session.archive_timeout().await?,
            slots: session.slots().await?,
            archiver: session.archiver().await?,
            lsn: session.current_wal_lsn().await?,
        })
    };
    let seen: Result<ServerSeen> = ask.await;
    seen.map_err(|error| NotSeen { why: error.to_string(), tried: true })
}
