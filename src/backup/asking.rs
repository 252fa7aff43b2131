//! What a server is asked to send: what changed since the newest backup, where it can tell that (17 on, with
//! `summarize_wal = on`), else everything.
//!
//! The server knows from its summaries of the WAL which blocks were changed since the ancestor began; it is told when
//! that was by a `backup_manifest` that is made from the ancestor's. Only files with a map of their blocks are named in
//! it: whatever it does not name the server sends entire. It also has to tell, by SQL, which files were cut short since
//! (`summaries::Cuts`). Every doubt, the server's or ours, ends in everything.

use std::{
    collections::BTreeMap,
    io::{self, BufWriter, Write},
    sync::Arc,
};

use bytes::Bytes;
use tokio::sync::mpsc::{self, Sender};

use super::{
    ancestor::{self, Ancestor},
    changes,
    request::{BackupRequest, Surroundings},
    summaries::Cuts,
};
use crate::{
    error::{Error, Result},
    postgres::{
        TimelineHistory, TimelineId,
        backup_manifest::{ManifestWriter, WalRange},
        relation::{Fork, RelationFile},
        replication::{
            Facts, Replication,
            base_backup::{Options, Started},
        },
        sql::Session,
    },
    repository::{BackupDocument, BackupId, FORMAT, File, Hashed, IntentDocument, System, join},
};

/// Bytes of a manifest that are sent at a time, and how many of these wait.
const PIECE: usize = 64 << 10;
const WAITING: usize = 8;

/// A base backup that the server has started.
pub struct Asked {
    /// What it said.
    pub started: Started,
    /// What to compare with.
    pub ancestor: Option<Arc<Ancestor>>,
    /// What was cut off since, when it sends of the ancestor's files only what changed.
    pub incremental: Option<Arc<Cuts>>,
    /// Why it does not, where it was meant to.
    pub refused: Option<String>,
}

/// Whom to ask, and for what.
pub struct Asking<'a> {
    /// The system.
    pub system: &'a System,
    /// What the user wants.
    pub request: &'a BackupRequest,
    /// Who watches.
    pub around: &'a Surroundings,
    /// What the server says of itself.
    pub facts: &'a Facts,
    /// The new backup.
    pub id: BackupId,
}

impl Asking<'_> {
    /// Asks, and waits for the checkpoint.
    pub async fn ask(&self, connection: &mut Replication) -> Result<Asked> {
        self.around.progress.start("reading the last backup", None);
        let history = self.history(connection).await?;
        let block_size = self.facts.block_size;
        let (mut refused, mut number) = (None, 1);
        if self.facts.version.0 >= 17 && connection.show("summarize_wal").await? == "on" {
            let base = self.refer(1, ancestor::find_backup(self.system, &history, block_size).await?).await?;
            number = 2;
            if let Some(base) = base.filter(|base| named(base, block_size).next().is_some()) {
                match self.ask_changes(connection, &base).await {
                    Ok((started, cuts)) => {
                        let (ancestor, incremental) = (Some(base), Some(Arc::new(cuts)));
                        return Ok(Asked { started, ancestor, incremental, refused });
                    }
                    Err(error) if connection.is_free() => refused = Some(error.to_string()),
                    Err(error) => return Err(error),
                }
            }
        }
        let ancestor = self.refer(number, ancestor::find(self.system, &history, None, block_size).await?).await?;
        self.ask_all(connection, ancestor, refused).await
    }

    /// Says that the backup may come to refer to that ancestor, and leaves out what an expiry removes.
    async fn refer(&self, number: u32, mut ancestor: Option<Ancestor>) -> Result<Option<Arc<Ancestor>>> {
        let intent = IntentDocument {
            format: FORMAT,
            id: self.id,
            timeline: self.facts.identity.timeline,
            begun: self.around.clock.now(),
            block_size: self.facts.block_size,
            origin: None,
            references: ancestor.as_ref().map_or_else(Vec::new, Ancestor::references),
            publishes: BTreeMap::new(),
        };
        self.system.intend(&intent, number).await?;
        if let Some(ancestor) = &mut ancestor {
            ancestor.forget_condemned().await?;
        }
        Ok(ancestor.map(Arc::new))
    }

    /// Asks for everything.
    pub async fn ask_all(
        &self,
        connection: &mut Replication,
        ancestor: Option<Arc<Ancestor>>,
        refused: Option<String>,
    ) -> Result<Asked> {
        let started = self.start(connection, false).await?;
        Ok(Asked { started, ancestor, incremental: None, refused })
    }

    async fn start(&self, connection: &mut Replication, incremental: bool) -> Result<Started> {
        self.around.progress.start("waiting for the checkpoint", None);
        let label = self.request.label_for(self.id);
        let options = Options { label, incremental, rate_limit: self.request.rate_limit };
        connection.start_base_backup(&options).await.map_err(|e| e.context("start a base backup"))
    }

    /// The history of the server's timeline, as it tells it.
    pub(super) async fn history(&self, connection: &mut Replication) -> Result<TimelineHistory> {
        let timeline = self.facts.identity.timeline;
        if timeline == TimelineId::FIRST {
            return Ok(TimelineHistory::root(timeline));
        }
        let bytes = connection.timeline_history(timeline).await?;
        TimelineHistory::parse(timeline, &String::from_utf8_lossy(&bytes))
    }

    async fn ask_changes(&self, connection: &mut Replication, ancestor: &Arc<Ancestor>) -> Result<(Started, Cuts)> {
        let told = |e: Error| e.context("ask what was cut off since the last backup");
        let session = Session::open(&self.request.conninfo).await.map_err(told)?;
        if !session.may_read_wal_summaries().await.map_err(told)? {
            return Err(Error::failed(
                "the role may not execute pg_available_wal_summaries and pg_wal_summary_contents",
            ));
        }
        let base = ancestor.base().ok_or_else(|| Error::internal("an ancestor without a backup"))?;
        // pg_checksums writes every page, and no WAL.
        if base.data_checksums != self.facts.data_checksums {
            return Err(Error::failed(format!("page checksums were switched after backup {}", base.id)));
        }
        self.upload(connection, ancestor, base)
            .await
            .map_err(|e| e.context(format_args!("tell of backup {}", base.id)))?;
        let started = self.start(connection, true).await?;
        let timeline = self.facts.identity.timeline;
        let cuts = match ancestor.since() {
            Some(since) => Cuts::since(&session, since, timeline, started.start.lsn).await,
            None => Err(Error::internal("an ancestor without a backup")),
        };
        if cuts.is_err() {
            connection.cancel().await?;
        }
        Ok((started, cuts.map_err(told)?))
    }

    /// Makes the manifest while it is sent.
    async fn upload(
        &self,
        connection: &mut Replication,
        ancestor: &Arc<Ancestor>,
        base: &BackupDocument,
    ) -> Result<()> {
        let (sender, receiver) = mpsc::channel(WAITING);
        let wal = WalRange { timeline: base.timeline, start: base.start_lsn, end: base.stop_lsn };
        let Facts { version, identity, block_size, .. } = *self.facts;
        let ancestor = ancestor.clone();
        let writing = tokio::task::spawn_blocking(move || {
            let to = BufWriter::with_capacity(PIECE, Pieces(sender));
            let mut manifest = ManifestWriter::new(to, version, identity.system)?;
            for file in named(&ancestor, block_size) {
                manifest.file(&file.path, file.size, file.mtime, file.crc32c)?;
            }
            manifest.finish(&[wal]).map(drop)
        });
        let uploaded = connection.upload_manifest(receiver).await;
        let written = join(writing.await).flatten();
        uploaded.and(written)
    }
}

/// The files of which changes alone may come: main forks (records that change a visibility map do not name its blocks)
/// with a map of every layer, and not so many layers that they are to be stored whole again.
fn named(ancestor: &Ancestor, block_size: u32) -> impl Iterator<Item = File> {
    ancestor.files().filter(move |file| {
        let name = file.path.file_name().and_then(|name| RelationFile::parse(name.to_str()?));
        let main = name.is_some_and(|name| name.fork == Fork::Main);
        let mapped = file.hashed == Hashed::Blocks && file.layers.iter().all(|layer| layer.map.is_some());
        main && mapped && changes::takes_a_layer(file, block_size)
    })
}

/// Hands on what is written.
struct Pieces(Sender<Bytes>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(Bytes::copy_from_slice(bytes));
        sent.map(|()| bytes.len()).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
