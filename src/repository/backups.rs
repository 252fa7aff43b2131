//! The folders of backups: which backups exist, by the documents that make them exist, and which were only begun.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, Utc};
use futures_util::{StreamExt, TryStreamExt, stream};

use super::{
    BackupDocument, BackupId, BackupObject, DOCUMENT_LIMIT, FORMAT, IntentDocument, System, Tombstone, document,
    documents,
};
use crate::{
    error::{Error, Kind, Result},
    store::{self, Key, Listed, Put},
};

/// Folders that are looked at at a time.
const PARALLEL: usize = 32;

impl System {
    /// The backups whose documents can be read, oldest first, and those whose documents are damaged, each with what is
    /// wrong.
    pub async fn readable_backups(&self) -> Result<(Vec<BackupDocument>, Vec<(BackupId, Error)>)> {
        let read = |id: BackupId| async move {
            match self.newest_document(id).await {
                Ok(Some(found)) => Ok((id, Ok(Some(self.with_about(found).await?)))),
                Err(error) if error.kind() != Kind::Damaged => Err(error),
                found => Ok((id, found)),
            }
        };
        let names = self.store.folders(&self.folder.backups()).await?;
        let ids: Vec<BackupId> = names.iter().filter_map(|name| name.parse().ok()).collect();
        let mut coming = stream::iter(ids.into_iter().map(read)).buffered(PARALLEL);
        let (mut backups, mut damaged) = (Vec::new(), Vec::new());
        while let Some((id, found)) = coming.try_next().await? {
            match found {
                Ok(found) => backups.extend(found),
                Err(error) => damaged.push((id, error)),
            }
        }
        Ok((backups, damaged))
    }

    /// The backups that exist, oldest first.
    pub async fn backups(&self) -> Result<Vec<BackupDocument>> {
        let (backups, damaged) = self.readable_backups().await?;
        damaged.into_iter().next().map_or(Ok(backups), |(_, error)| Err(error))
    }

    /// One backup.
    pub async fn backup(&self, id: BackupId) -> Result<BackupDocument> {
        let document = self.newest_document(id).await?.ok_or_else(|| {
            Error::not_found(format!("there is no backup {id} of cluster {}", self.folder.cluster))
                .hint("walden list shows the backups")
        })?;
        self.with_about(document).await
    }

    pub(super) async fn newest_document(&self, id: BackupId) -> Result<Option<BackupDocument>> {
        let numbers = self.small_objects(id).await?;
        let documents = numbers.iter().filter_map(|object| match object {
            BackupObject::Document(number) => Some(*number),
            _ => None,
        });
        match documents.max() {
            Some(number) => self.document_of(id, number).await,
            None => Ok(None),
        }
    }

    /// The number of the newest document of a backup, a tombstone included; 0 where there is none.
    pub async fn newest_number(&self, id: BackupId) -> Result<u32> {
        Ok(self.document_numbers(id).await?.last().copied().unwrap_or(0))
    }

    /// The numbers of the documents of a backup, rising, a tombstone included.
    pub async fn document_numbers(&self, id: BackupId) -> Result<Vec<u32>> {
        let objects = self.small_objects(id).await?.into_iter();
        let numbers = objects.filter_map(|o| if let BackupObject::Document(number) = o { Some(number) } else { None });
        let mut numbers: Vec<u32> = numbers.collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// The highest number of a manifest of a backup, whether a document names it or not; 0 where there is none.
    pub async fn newest_manifest(&self, id: BackupId) -> Result<u32> {
        let objects = self.small_objects(id).await?.into_iter();
        let numbers = objects.filter_map(|o| if let BackupObject::Manifest(number) = o { Some(number) } else { None });
        Ok(numbers.max().unwrap_or(0))
    }

    /// Has what counts of a backup count under that number as well, so that nobody else can take it. Nothing is done where
    /// somebody has, or where the backup is gone.
    pub async fn close(&self, id: BackupId, number: u32) -> Result<()> {
        let newest = self.newest_number(id).await?;
        if newest == 0 || newest >= number {
            return Ok(());
        }
        let Some(document) = self.document_of(id, newest).await? else { return Ok(()) };
        let key = self.folder.backup_document(id, number)?;
        self.store.put(&key, documents::to_bytes(&key, &document)?.into()).await?;
        Ok(())
    }

    /// Whether a backup of that id exists.
    pub async fn backup_exists(&self, id: BackupId) -> Result<bool> {
        Ok(self.newest_document(id).await?.is_some())
    }

    /// The `number`th document of a backup; `None` where it is the tombstone of an attempt that was given up.
    pub async fn document_of(&self, id: BackupId, number: u32) -> Result<Option<BackupDocument>> {
        let key = self.folder.backup_document(id, number)?;
        loop {
            match self.read_document_of(id, &key).await {
                Err(error) if store::another_copy(&*self.store, &key, &error) => {}
                ended => return ended,
            }
        }
    }

    async fn read_document_of(&self, id: BackupId, key: &Key) -> Result<Option<BackupDocument>> {
        let bytes = store::read(&*self.store, key, DOCUMENT_LIMIT).await?;
        let other = |of: BackupId| Error::damaged(format!("{key} says that it is of backup {of}"));
        if let Ok(tombstone) = documents::from_bytes::<Tombstone>(key, &bytes) {
            return if tombstone.id == id { Ok(None) } else { Err(other(tombstone.id)) };
        }
        let found: BackupDocument = documents::from_bytes(key, &bytes)?;
        if (found.id, &found.cluster, found.incarnation) != (id, &self.folder.cluster, self.folder.incarnation) {
            return Err(other(found.id));
        }
        Ok(Some(found))
    }

    /// What lies in a backup's folder besides its parts: `part-` sorts after all else, so that a short listing holds it.
    pub(super) async fn small_objects(&self, id: BackupId) -> Result<Vec<BackupObject>> {
        let listed = self.store.list(&self.folder.backup(id), None, 1000).await?;
        Ok(listed.iter().filter_map(|l| self.folder.object_of(id, &l.key)).collect())
    }

    /// Writes the document that makes a backup exist. Refused where an expiry has given the attempt up.
    pub async fn publish(&self, backup: &BackupDocument, number: u32) -> Result<()> {
        let key = self.folder.backup_document(backup.id, number)?;
        match self.store.put(&key, documents::to_bytes(&key, &*backup.readable())?.into()).await? {
            Put::Created => Ok(()),
            Put::Exists if number == 1 && self.document_of(backup.id, 1).await?.is_none() => Err(Error::refused(
                format!("backup {} was taken for dead, and an expiry has given it up", backup.id),
            )
            .hint(
                "it had lost its lease: this host did not reach the repository for some minutes; take the backup again",
            )),
            Put::Exists => Err(Error::refused(format!("{key} is there already: another program wrote this backup"))),
        }
    }

    /// Gives up an attempt for good: whatever becomes of it, it will never be a backup. [`Put::Exists`] when it has
    /// become one, or was given up before.
    pub async fn give_up(&self, id: BackupId, now: DateTime<Utc>) -> Result<Put> {
        let tombstone = Tombstone { format: FORMAT, id, given_up: now };
        let key = self.folder.backup_document(id, 1)?;
        self.store.put(&key, documents::to_bytes(&key, &tombstone)?.into()).await
    }

    /// Says that a backup has begun, or what else it may refer to, before it refers to it.
    pub async fn intend(&self, intent: &IntentDocument, number: u32) -> Result<()> {
        let key = self.folder.intent(intent.id, number)?;
        match self.store.put(&key, documents::to_bytes(&key, intent)?.into()).await? {
            Put::Created => Ok(()),
            Put::Exists => Err(Error::refused(format!("{key} is there already: another program writes this backup"))),
        }
    }

    /// One of the documents in which a backup says what it may refer to.
    pub async fn intent(&self, id: BackupId, number: u32) -> Result<IntentDocument> {
        document(&*self.store, &self.folder.intent(id, number)?).await
    }

    /// What was said of backups that began after `after` and do not exist, oldest first; of each what it said last.
    pub async fn attempts(&self, after: Option<BackupId>) -> Result<Vec<IntentDocument>> {
        let mut attempts = Vec::new();
        for name in self.store.folders(&self.folder.backups()).await? {
            let Ok(id) = name.parse::<BackupId>() else { continue };
            if after.is_some_and(|after| id <= after) {
                continue;
            }
            // Asked for by their names, deleted ones would be doubtful in a bucket that keeps versions.
            let (mut exists, mut last) = (false, None);
            for object in self.small_objects(id).await? {
                match object {
                    BackupObject::Document(_) => exists = true,
                    BackupObject::Intent(number) => last = last.max(Some(number)),
                    _ => {}
                }
            }
            if let Some(number) = last.filter(|_| !exists) {
                let intent = self.intent(id, number).await?;
                attempts.extend(intent.publishes.is_empty().then_some(intent));
            }
        }
        Ok(attempts)
    }

    /// The parts that lie in the folders of these backups, with the lengths of the objects in bytes.
    pub async fn parts_there(&self, backups: impl Iterator<Item = BackupId>) -> Result<HashMap<(BackupId, u32), u64>> {
        let list = |backup: BackupId| async move {
            Ok::<_, Error>((backup, store::list_all(&*self.store, &self.folder.backup(backup)).await?))
        };
        let backups = backups.collect::<HashSet<_>>();
        let mut coming = stream::iter(backups.into_iter().map(list)).buffer_unordered(PARALLEL);
        let mut there = HashMap::new();
        while let Some((backup, listed)) = coming.try_next().await? {
            let part = |object: Listed| Some(((backup, self.folder.part_number(backup, &object.key)?), object.length));
            there.extend(listed.into_iter().filter_map(part));
        }
        Ok(there)
    }
}
