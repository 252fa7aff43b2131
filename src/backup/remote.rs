//! The remote way: the server reads its own files, and sends them over one replication connection. It needs a role
//! that may replicate, and nothing on the host of the server.

use std::sync::Arc;

use tokio::sync::mpsc::{self, Sender};

use super::{
    ancestor::{self, Ancestor},
    catalogue, extra,
    finish::{Taken, finish, new_id, with_lease},
    intake::{Intake, Received},
    part::Parts,
    request::{BackupOutcome, BackupRequest, Surroundings, check_archiving},
    source::Pages,
    throttle::Throttle,
};
use crate::{
    error::{Error, Result},
    interrupt::Interrupt,
    postgres::{
        TimelineHistory, TimelineId,
        replication::{
            Facts, Replication,
            base_backup::{Archive, BaseBackup, Ended, Options, Piece},
        },
    },
    repository::{BackupId, ClusterName, FORMAT, Incarnation, IntentDocument, System, Tablespace, join},
    store::Store,
};

/// So many pieces of 32 kB wait for the thread that stores them; then the server waits.
const WAITING: usize = 64;

/// Takes a backup over the replication protocol.
pub async fn backup(
    store: Arc<dyn Store>,
    cluster: &ClusterName,
    request: &BackupRequest,
    around: &Surroundings,
) -> Result<BackupOutcome> {
    let mut connection = Replication::open(&request.conninfo).await?;
    let facts = connection.facts().await?;
    check_archiving(facts.in_recovery, facts.wal_level, facts.archive_mode)?;
    let incarnation = Incarnation { system: facts.identity.system, number: request.incarnation };
    let system = System::open(store, cluster, incarnation).await?;
    let driver = Driver { system: &system, request, around, facts };
    with_lease(&system, around, driver.run(connection)).await
}

struct Driver<'a> {
    system: &'a System,
    request: &'a BackupRequest,
    around: &'a Surroundings,
    facts: Facts,
}

impl Driver<'_> {
    async fn run(&self, mut connection: Replication) -> Result<BackupOutcome> {
        let id = new_id(self.system, self.around).await?;
        let ancestor = self.ancestor(&mut connection).await?;
        self.intend(id, ancestor.as_deref()).await?;
        let started = self.around.clock.now();
        let mut interrupt = self.around.interrupt.clone();
        let (taken, mut catalogue) = tokio::select! {
            taken = async {
                tokio::join!(
                    self.take(&mut connection, id, ancestor.clone()),
                    catalogue::take(self.system, &self.request.conninfo, id, started, self.request.level),
                )
            } => taken,
            () = interrupt.asked() => {
                // The server would not notice before it sends something again.
                if let Err(error) = connection.cancel().await {
                    tracing::debug!(%error, "the server has not ended the backup");
                }
                return Err(Interrupt::error());
            }
        };
        let (received, ended, archives) = taken?;
        let stopped = self.around.clock.now();
        let extra = extra::out_of_reach(self.request).await;
        let skipped = connection.take_warnings().into_iter().map(|w| format!("the server warns: {w}"));
        let skipped = skipped.chain(extra.words()).collect();
        let version_number = connection.version_number();
        drop(connection);
        self.check(&received, ended)?;
        let unnamed = std::mem::take(&mut catalogue.missing);
        let taken = Taken {
            id,
            control: received.control,
            version_number,
            label: received.label,
            stop: ended.stop.lsn,
            started,
            stopped,
            haul: received.haul,
            directories: received.directories,
            tablespaces: tablespaces(&archives),
            catalogue,
            origin: None,
            ancestor,
            extra,
        };
        let document = finish(self.system, self.request, self.around, taken).await?;
        Ok(BackupOutcome { document, skipped, unnamed })
    }

    /// The newest backup on the way to here.
    async fn ancestor(&self, connection: &mut Replication) -> Result<Option<Arc<Ancestor>>> {
        self.around.progress.start("reading the last backup", None);
        let timeline = self.facts.identity.timeline;
        let history = match timeline {
            TimelineId::FIRST => TimelineHistory::root(timeline),
            _ => {
                let bytes = connection.timeline_history(timeline).await?;
                TimelineHistory::parse(timeline, &String::from_utf8_lossy(&bytes))?
            }
        };
        Ok(ancestor::find(self.system, &history, None, self.facts.block_size).await?.map(Arc::new))
    }

    async fn intend(&self, id: BackupId, ancestor: Option<&Ancestor>) -> Result<()> {
        let intent = IntentDocument {
            format: FORMAT,
            id,
            timeline: self.facts.identity.timeline,
            begun: self.around.clock.now(),
            block_size: self.facts.block_size,
            origin: None,
            references: ancestor.map_or_else(Vec::new, Ancestor::references),
        };
        self.system.intend(&intent).await
    }

    /// Everything that the server sends, stored, and its word that this was all.
    async fn take(
        &self,
        connection: &mut Replication,
        id: BackupId,
        ancestor: Option<Arc<Ancestor>>,
    ) -> Result<(Received, Ended, Vec<Archive>)> {
        let (request, progress) = (self.request, &self.around.progress);
        progress.start("waiting for the checkpoint", None);
        let label = request.label_for(id);
        let options = Options { label, rate_limit: request.rate_limit };
        let mut backup = connection.base_backup(&options).await.map_err(|e| e.context("start a base backup"))?;
        let archives = backup.archives.clone();
        progress.start("backing up", Some(archives.iter().map(|a| a.size).sum()));
        let (start, facts) = (backup.start.lsn, &self.facts);
        let intake = Intake {
            parts: Arc::new(Parts::new(self.system.clone(), id, request.level)),
            ancestor,
            block_size: facts.block_size,
            archives: archives.clone(),
            pages: facts.data_checksums.then_some(Pages { size: facts.block_size, first: 0, start }),
            relation_segment_blocks: facts.relation_segment_blocks,
            exclude: request.exclude.clone(),
            throttle: Throttle::new(request.rate_limit),
            progress: progress.clone(),
            interrupt: self.around.interrupt.clone(),
        };
        let (sender, receiver) = mpsc::channel(WAITING);
        let runtime = tokio::runtime::Handle::current();
        let intake = tokio::task::spawn_blocking(move || intake.run(receiver, runtime));
        let sent = feed(&mut backup, sender).await;
        let received = join(intake.await).flatten();
        // When the stream broke, what the intake says of it is only that it broke.
        sent.map_err(|e| e.context("receive a base backup"))?;
        let received = received?;
        let ended = backup.finish().await.map_err(|e| e.context("end a base backup"))?;
        Ok((received, ended, archives))
    }

    /// That what came is of the server that we began with, and that the server and we judge its pages alike.
    fn check(&self, received: &Received, ended: Ended) -> Result<()> {
        let (control, facts) = (&received.control, &self.facts);
        let said = (facts.identity.system, facts.block_size, facts.relation_segment_blocks, facts.data_checksums);
        let sent = (control.system, control.block_size, control.relation_segment_blocks, control.has_checksums());
        if said != sent {
            return Err(Error::failed(
                "the pg_control that the server sent contradicts what the server says of itself",
            ));
        }
        if ended.damaged && received.haul.bad.is_empty() {
            return Err(Error::damaged("the server found pages with wrong checksums, but none that it sent has one")
                .hint("the server's log names them; take the backup again"));
        }
        Ok(())
    }
}

/// Hands on what the server sends, until it has sent everything or nobody takes it any more.
async fn feed(backup: &mut BaseBackup<'_>, sender: Sender<Piece>) -> Result<()> {
    while let Some(piece) = backup.next().await? {
        if sender.send(piece).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// The tablespaces outside the data directory, by their OIDs.
fn tablespaces(archives: &[Archive]) -> Vec<Tablespace> {
    let outside = archives.iter().filter(|a| a.location.is_absolute());
    let tablespace =
        |a: &Archive| Some(Tablespace { oid: a.tablespace?, location: a.location.to_string_lossy().into_owned() });
    let mut found: Vec<_> = outside.filter_map(tablespace).collect();
    found.sort_by_key(|tablespace| tablespace.oid);
    found
}
