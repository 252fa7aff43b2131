//! The remote way: the server reads its own files, and sends them over one replication connection. It needs a role
//! that may replicate, and nothing on the host of the server.

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use tokio::sync::mpsc::{self, Sender};

use super::{
    asking::{Asked, Asking},
    catalogue, extra,
    finish::{Taken, finish, new_id, with_lease},
    intake::{Intake, Received},
    part::Parts,
    request::{BackupOutcome, BackupRequest, Surroundings, check_archiving},
    source::Pages,
};
use crate::{
    error::{Error, Result},
    interrupt::Interrupt,
    pace::Throttle,
    postgres::replication::{
        Facts, Replication,
        base_backup::{Archive, BaseBackup, Ended, Piece, Started},
    },
    repository::{ClusterName, Incarnation, System, Tablespace, join},
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
    let system = request.with_copies(System::open(store, cluster, incarnation).await?).await?;
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
        let started = self.around.clock.now();
        let asking = Asking { system: self.system, request: self.request, around: self.around, facts: &self.facts, id };
        let mut interrupt = self.around.interrupt.clone();
        let (taken, mut catalogue) = tokio::select! {
            taken = async {
                let asked = asking.ask(&mut connection).await?;
                Ok::<_, Error>(tokio::join!(
                    self.take(&mut connection, &asking, asked),
                    catalogue::take(self.system, &self.request.conninfo, id, started, self.request.level),
                ))
            } => taken?,
            () = interrupt.asked() => {
                // The server would not notice before it sends something again.
                if let Err(error) = connection.cancel().await {
                    tracing::debug!(%error, "the server has not ended the backup");
                }
                return Err(Interrupt::error());
            }
        };
        let (received, ended, asked) = taken?;
        let stopped = self.around.clock.now();
        let extra = extra::out_of_reach(self.request).await;
        let skipped = connection.take_warnings().into_iter().map(|w| format!("the server warns: {w}"));
        let skipped = skipped.chain(extra.words()).collect();
        let version_number = connection.version_number();
        let history = Some(asking.history(&mut connection).await?);
        drop(connection);
        self.check(&received, ended, &asked)?;
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
            tablespaces: tablespaces(&asked.started.archives),
            catalogue,
            origin: None,
            ancestor: asked.ancestor,
            extra,
            history,
            read: None,
        };
        let document = finish(self.system, self.request, self.around, taken).await?;
        let notes = asked.refused.map(|why| format!("the server sent everything, not what changed alone: {why}"));
        Ok(BackupOutcome { document, skipped, unnamed, notes: notes.into_iter().collect() })
    }

    /// Everything that the server sends, stored, and its word that this was all.
    async fn take(
        &self,
        connection: &mut Replication,
        asking: &Asking<'_>,
        mut asked: Asked,
    ) -> Result<(Received, Ended, Asked)> {
        let parts = Arc::new(Parts::new(self.system.clone(), asking.id, self.request.level));
        let without_map = Arc::new(OnceLock::new());
        let mut taken = self.receive(connection, parts.clone(), &asked, without_map.clone()).await;
        if let Some(path) = without_map.get() {
            // What was stored so far lies in parts that nothing will name.
            connection.cancel().await?;
            let why = format!("no map of the blocks of {} was kept", path.display());
            asked = asking.ask_all(connection, asked.ancestor, Some(why)).await?;
            taken = self.receive(connection, parts, &asked, Arc::default()).await;
        }
        let (received, ended) = taken?;
        Ok((received, ended, asked))
    }

    async fn receive(
        &self,
        connection: &mut Replication,
        parts: Arc<Parts>,
        asked: &Asked,
        without_map: Arc<OnceLock<PathBuf>>,
    ) -> Result<(Received, Ended)> {
        let (request, progress, facts) = (self.request, &self.around.progress, &self.facts);
        let Started { start, archives } = asked.started.clone();
        progress.start("backing up", Some(archives.iter().map(|a| a.size).sum()));
        let pages = Pages { size: facts.block_size, first: 0, start: start.lsn };
        let intake = Intake {
            parts,
            ancestor: asked.ancestor.clone(),
            incremental: asked.incremental.clone(),
            without_map,
            block_size: facts.block_size,
            archives: archives.clone(),
            pages: facts.data_checksums.then_some(pages),
            relation_segment_blocks: facts.relation_segment_blocks,
            exclude: request.exclude.clone(),
            throttle: Throttle::new(request.rate_limit),
            progress: progress.clone(),
            interrupt: self.around.interrupt.clone(),
        };
        let (sender, receiver) = mpsc::channel(WAITING);
        let runtime = tokio::runtime::Handle::current();
        let intake = tokio::task::spawn_blocking(move || intake.run(receiver, runtime));
        let mut backup = connection.receive_base_backup(start, archives);
        let sent = feed(&mut backup, sender).await;
        let received = join(intake.await).flatten();
        // When the stream broke, what the intake says of it is only that it broke.
        sent.map_err(|e| e.context("receive a base backup"))?;
        let received = received?;
        let ended = backup.finish().await.map_err(|e| e.context("end a base backup"))?;
        Ok((received, ended))
    }

    /// That what came is of the server that we began with, builds on what we know, and that the server and we judge its
    /// pages alike.
    fn check(&self, received: &Received, ended: Ended, asked: &Asked) -> Result<()> {
        let base = asked.ancestor.as_ref().filter(|_| asked.incremental.is_some()).and_then(|ancestor| ancestor.base());
        if received.label.incremental_from != base.map(|base| (base.start_lsn, base.timeline)) {
            return Err(Error::failed("the server sent what changed since another backup than it was asked for"));
        }
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
