//! The layout of a repository, and the one place that knows what is called what: keys, documents, manifests, the
//! catalogue of backups, leases.

mod about;
mod backups;
mod catalogue;
mod condemned;
mod copies;
mod damage;
mod documents;
mod environment;
mod extra;
mod files;
mod gaps;
pub mod hold;
mod horizon;
mod kits;
mod layer_maps;
mod layout;
pub mod lease;
mod listing;
mod manifest;
mod names;
mod needs;
mod notes;
mod numbered;
mod part_index;
pub mod pieces;
mod pins;
mod references;
mod rolling;
pub mod rollup;
mod sealing;
pub mod summaries;
#[cfg(test)]
pub(crate) mod testing;
mod unheaded;
pub mod wal_object;

use std::sync::Arc;

pub use about::AboutObject;
pub use catalogue::{CatalogueEntry, CatalogueWriter};
pub use condemned::Condemned;
pub use copies::Copies;
pub use damage::{DamageNote, DamagedObject};
pub use documents::{
    AncestorLeft, BackupDocument, BadPage, FORMAT, IntentDocument, NeededOf, PartSummary, RepositoryDocument,
    SystemDocument, Tablespace, Tombstone,
};
pub use environment::{ConfigurationFiles, Environment, Library, Needed, Unknown, list};
pub use extra::{ExtraObject, ExtraWriter, LeftOut, Member, MemberKind};
pub use files::Files;
pub use gaps::{GapNote, MissingRow, Suspended, rows as rows_of_segments};
pub use horizon::{Horizons, horizons};
pub use kits::{Cleared, KitLock, KitNote, ToldKit, ToldKits, kits};
pub use layer_maps::{LayerMaps, Overlaid, overlay};
pub use layout::{
    BackupObject, REPOSITORY, SystemFolder, archived, is_kit, is_lasting, piece_of, roll_up_of, segment_of,
};
pub use listing::Stored;
pub use manifest::{Directory, File, FileStat, FileSystem, Hashed, Layer, LayerKind, LayerMap, Manifest, Origin, Part};
pub use names::{BackupId, ClusterName, EndedRow, Incarnation, RepositoryName, RollUpName};
pub use needs::Needs;
pub use notes::{Measured, RestoreNote};
pub use part_index::{LayerBlocks, PartIndex};
pub use pins::Pin;
pub use references::{Needed as NeededParts, NeededPart, PartName, PartUse, References, Stock, Total, Unneeded};
pub use rolling::RolledUp;
pub use sealing::SEALING;

use crate::{
    clock::{Clock, Random},
    error::{Error, Kind, Result},
    postgres::{TimelineHistory, TimelineId},
    seal::{self, FrameWriter},
    store::{self, Key, Put, Store, bridge},
};

/// Documents are far shorter than this many bytes.
pub(crate) const DOCUMENT_LIMIT: u64 = 16 << 20;

/// Makes a place a repository, or finds that it is one already.
pub async fn init(store: &dyn Store, clock: &dyn Clock, random: &Random) -> Result<RepositoryDocument> {
    let made = RepositoryDocument { format: FORMAT, id: random.name(), made: clock.now(), mirror_of: None };
    make(store, made).await
}

/// Makes a place a mirror of that repository, or finds that it is a repository already: of which, its document tells.
pub async fn init_mirror(
    store: &dyn Store,
    first: &RepositoryDocument,
    clock: &dyn Clock,
    random: &Random,
) -> Result<RepositoryDocument> {
    let mirror_of = Some(first.lineage().to_owned());
    make(store, RepositoryDocument { format: FORMAT, id: random.name(), made: clock.now(), mirror_of }).await
}

async fn make(store: &dyn Store, made: RepositoryDocument) -> Result<RepositoryDocument> {
    let key = Key::new(REPOSITORY)?;
    match store.put(&key, documents::to_bytes(&key, &made)?.into()).await? {
        Put::Created => Ok(made),
        Put::Exists => open(store).await,
    }
}

/// Reads `walden.json`. Where there is none, the place is no repository.
pub async fn open(store: &dyn Store) -> Result<RepositoryDocument> {
    document(store, &Key::new(REPOSITORY)?).await.map_err(|error| match error.kind() {
        Kind::NotFound => Error::invalid(format!("{} is not a repository: it has no {REPOSITORY}", store.url()))
            .hint("check [repository] url, or make one with: walden init"),
        _ => error,
    })
}

/// The clusters that have something in the repository.
pub async fn clusters(store: &dyn Store) -> Result<Vec<ClusterName>> {
    Ok(store.folders("").await?.iter().filter_map(|name| name.parse().ok()).collect())
}

/// Proves that a document is what was written, whatever it tells.
pub async fn prove_document(store: &dyn Store, key: &Key) -> Result<()> {
    document::<serde_json::Value>(store, key).await.map(drop)
}

async fn document<T: serde::de::DeserializeOwned>(store: &dyn Store, key: &Key) -> Result<T> {
    loop {
        let read = store::read(store, key, DOCUMENT_LIMIT).await;
        match read.and_then(|bytes| documents::from_bytes(key, &bytes)) {
            Err(error) if store::another_copy(store, key, &error) => {}
            ended => return ended,
        }
    }
}

/// One system of one cluster in one incarnation: its archive and its backups.
#[derive(Clone, Debug)]
pub struct System {
    /// Where it is kept.
    pub store: Arc<dyn Store>,
    /// Its folder.
    pub folder: SystemFolder,
    /// What was written down when it was first seen.
    pub document: SystemDocument,
    /// What this host keeps of its newest backup, for whoever compares with that.
    pub copies: Option<Arc<Copies>>,
}

impl System {
    /// Writes down a system that is new, or finds it. A contradiction to what was written before is refused.
    pub async fn init(store: Arc<dyn Store>, document: SystemDocument) -> Result<Self> {
        let folder = SystemFolder { cluster: document.cluster.clone(), incarnation: document.incarnation };
        let key = folder.system()?;
        if store.put(&key, documents::to_bytes(&key, &document)?.into()).await? == Put::Created {
            return Ok(Self { store, folder, document, copies: None });
        }
        let found = Self::open(store, &document.cluster, document.incarnation).await?;
        let same = |d: &SystemDocument| (d.postgres, d.segment_size, d.block_size);
        if same(&found.document) == same(&document) {
            Ok(found)
        } else {
            Err(Error::refused(format!(
                "system {} is in the repository as PostgreSQL {} with segments of {} bytes, but the data directory says PostgreSQL {} with segments of {}",
                document.incarnation,
                found.document.postgres,
                found.document.segment_size.bytes(),
                document.postgres,
                document.segment_size.bytes(),
            ))
            .hint("after pg_resetwal or a rollback: walden init --new-incarnation"))
        }
    }

    /// The system of that number.
    pub async fn open(store: Arc<dyn Store>, cluster: &ClusterName, incarnation: Incarnation) -> Result<Self> {
        let folder = SystemFolder { cluster: cluster.clone(), incarnation };
        match document::<SystemDocument>(&*store, &folder.system()?).await {
            Ok(SystemDocument { cluster: other, incarnation: of, .. }) if (&other, of) != (cluster, incarnation) => {
                Err(Error::damaged(format!("{} says that it is cluster {other}, system {of}", folder.system()?)))
            }
            Ok(document) => Ok(Self { store, folder, document, copies: None }),
            Err(error) if error.kind() == Kind::NotFound => {
                open(&*store).await?;
                Err(Error::invalid(format!("cluster {cluster} has no system {incarnation} in {}", store.url())).hint(
                    "if this server is a new one (initdb, pg_upgrade): walden init; if not, check [cluster] pgdata and [repository] url",
                ))
            }
            Err(error) => Err(error),
        }
    }

    /// Every system of the cluster, the one that was first seen last at the end.
    pub async fn all(store: &Arc<dyn Store>, cluster: &ClusterName) -> Result<Vec<Self>> {
        open(&**store).await?;
        let mut systems = Vec::new();
        for name in store.folders(&format!("{cluster}/")).await? {
            let Ok(incarnation) = name.parse() else { continue };
            systems.push(Self::open(store.clone(), cluster, incarnation).await.map_err(|error| {
                match error.kind() {
                    // Something is in its folder.
                    Kind::Invalid => Error::damaged(format!("{cluster}/{incarnation}/system.json is missing"))
                        .hint("walden init on the host of its server writes it again"),
                    _ => error,
                }
            })?);
        }
        systems.sort_by_key(|s| (s.document.first_seen, s.document.incarnation));
        Ok(systems)
    }

    /// Writes a manifest; gives back the BLAKE3 of its content and the length of the object.
    pub async fn put_manifest(&self, manifest: Manifest, number: u32, level: i32) -> Result<(seal::Blake3, u64)> {
        let key = self.folder.manifest(manifest.backup, number)?;
        let upload = self.store.upload(&key).await?;
        let to = bridge::UploadWriter::new(upload, tokio::runtime::Handle::current());
        let copies = self.copies.clone();
        let written = tokio::task::spawn_blocking(move || {
            if let Some(Err(error)) = copies.map(|copies| copies.keep_manifest(&manifest, number, level)) {
                tracing::warn!("the next backup has nothing to compare with, and will store everything: {error}");
            }
            let failed = |e| bridge::from_io(e, |e| Error::internal("write a manifest").source(e));
            let mut text = seal::HashWriter::new(FrameWriter::new(to, level).map_err(failed)?);
            manifest.write(&mut text).map_err(failed)?;
            let (hash, _) = text.digest();
            let (to, _, length) = text.into_inner().finish().map_err(failed)?;
            Ok::<_, Error>((to.finish()?, hash, length))
        })
        .await;
        match join(written)?? {
            (Put::Created, hash, length) => Ok((hash, length)),
            _ => Err(Error::refused(format!("{key} is there already: another program wrote this backup"))),
        }
    }

    /// Reads the manifest of a backup and proves its hash.
    pub async fn manifest(&self, backup: &BackupDocument) -> Result<Manifest> {
        self.proven_manifest(backup, |text| Manifest::read(text)).await
    }

    /// The same by `read`, from whichever copy is whole.
    async fn proven_manifest<T: Send + 'static>(
        &self,
        backup: &BackupDocument,
        read: impl Fn(&mut dyn std::io::Read) -> Result<T> + Clone + Send + 'static,
    ) -> Result<T> {
        let key = self.folder.manifest(backup.id, backup.manifest)?;
        loop {
            match self.read_manifest(backup, read.clone()).await {
                Err(error) if store::another_copy(&*self.store, &key, &error) => {}
                ended => return ended,
            }
        }
    }

    /// Has `read` read the text of a manifest, and proves its hash.
    async fn read_manifest<T: Send + 'static>(
        &self,
        backup: &BackupDocument,
        read: impl FnOnce(&mut dyn std::io::Read) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let key = self.folder.manifest(backup.id, backup.manifest)?;
        let text = match self.kept_manifest(backup).await? {
            Some(text) => text,
            None => self.stored_manifest(backup, &key).await?,
        };
        let expected = backup.manifest_blake3;
        let read = tokio::task::spawn_blocking(move || {
            let mut hashed = seal::HashReader::new(text);
            let found = read(&mut hashed)?;
            std::io::copy(&mut hashed, &mut std::io::sink())
                .map_err(|e| bridge::from_io(e, |e| Error::damaged("the manifest cannot be read").source(e)))?;
            if hashed.digest().0 == expected {
                Ok(found)
            } else {
                Err(Error::damaged("the manifest does not have the hash that the backup's document tells"))
            }
        })
        .await;
        join(read)?.map_err(|e| e.context(key).hint("restore another backup: --backup ID"))
    }

    /// The text of a manifest as it is in the repository.
    async fn stored_manifest(&self, backup: &BackupDocument, key: &Key) -> Result<Box<dyn std::io::Read + Send>> {
        let download = self.store.get(key, None).await.map_err(|e| match e.kind() {
            Kind::NotFound => Error::damaged(format!("backup {} has lost its manifest {key}", backup.id)),
            _ => e,
        })?;
        let body = bridge::BodyReader::new(download.body, tokio::runtime::Handle::current());
        let text = zstd::Decoder::new(body).map_err(|e| Error::internal("start the zstd decoder").source(e))?;
        Ok(Box::new(text))
    }

    /// The text of a manifest as this host has kept it.
    async fn kept_manifest(&self, backup: &BackupDocument) -> Result<Option<Box<dyn std::io::Read + Send>>> {
        let Some(copies) = self.copies.clone() else { return Ok(None) };
        let backup = backup.clone();
        join(tokio::task::spawn_blocking(move || copies.manifest(&backup)).await)
    }

    /// The timelines that have something in the archive.
    pub async fn timelines(&self) -> Result<Vec<TimelineId>> {
        let folders = self.store.folders(&self.folder.wal()).await?;
        let timeline = |name: &String| TimelineId::new(u32::from_str_radix(name, 16).ok()?).ok();
        Ok(folders.iter().filter_map(timeline).collect())
    }

    /// The history of a timeline. Timeline 1 needs no history file; an absent one of another is `NotFound`.
    pub async fn history(&self, timeline: TimelineId) -> Result<TimelineHistory> {
        if timeline == TimelineId::FIRST {
            return Ok(TimelineHistory::root(timeline));
        }
        let key = self.folder.history(timeline)?;
        let text = loop {
            let read = async { wal_object::open(&*self.store, &key).await?.content().await };
            match read.await {
                Err(error) if store::another_copy(&*self.store, &key, &error) => {}
                // It is encrypted, and not for this host.
                Err(error) if error.kind() == Kind::Refused => {
                    return self.history_by_backups(timeline).await?.ok_or(error);
                }
                ended => break ended?,
            }
        };
        TimelineHistory::parse(timeline, &String::from_utf8_lossy(&text))
    }

    /// The history of a timeline as the documents of the backups tell it that were taken on it, or on one that branched
    /// off it: without the reasons.
    async fn history_by_backups(&self, timeline: TimelineId) -> Result<Option<TimelineHistory>> {
        // The newest tells most.
        for name in self.store.folders(&self.folder.backups()).await?.iter().rev() {
            let Ok(id) = name.parse() else { continue };
            let told = self.newest_document(id).await?.and_then(|backup| backup.history());
            if let Some(history) = told.and_then(|history| history.of_ancestor(timeline)) {
                return Ok(Some(history));
            }
        }
        Ok(None)
    }
}

/// The result of a thread; a panic in it is a bug.
pub(crate) fn join<T>(result: Result<T, tokio::task::JoinError>) -> Result<T> {
    result.map_err(|e| Error::internal("a worker thread stopped").source(e))
}
