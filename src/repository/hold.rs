//! Holds: what a restore or an export reads, so that no expiry takes it away meanwhile.
//!
//! A hold is a document with a time after which it means nothing, renewed while the work goes on. It is put before
//! anything is read, and what is condemned is looked at after that: an expiry that does not see the hold is seen.

use std::{collections::BTreeMap, sync::Arc};

use chrono::{DateTime, Duration, Utc};
use serde::{Deserialize, Serialize};

use super::{BackupId, Condemned, FORMAT, System, document, documents, lease::ThisProcess};
use crate::{
    clock::{Clock, Random},
    error::Result,
    postgres::SegmentName,
    store::{self, Key, Put},
};

/// It is renewed well before this is over.
const TERM: Duration = Duration::hours(1);
/// How often.
const INTERVAL: std::time::Duration = std::time::Duration::from_secs(600);

/// What is held.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// What for, in a word: `restore`, `export`.
    pub work: String,
    /// The backups whose objects are read: the one that is wanted, and those whose parts it needs.
    pub backups: Vec<BackupId>,
    /// Segments: the first and the last of each timeline on the way.
    pub wal: Vec<(SegmentName, SegmentName)>,
}

/// A hold as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldDocument {
    /// The format of the repository.
    pub format: u32,
    /// What is held.
    #[serde(flatten)]
    pub held: Held,
    /// Where the work is done.
    #[serde(flatten)]
    pub by: ThisProcess,
    /// Since when.
    pub taken: DateTime<Utc>,
    /// From when on it means nothing.
    pub expires: DateTime<Utc>,
    /// Whether the work is over: it is left for what comes after it, be the process alive or not.
    #[serde(default)]
    pub left: bool,
}

/// A hold on parts and WAL. Dropping it without a word leaves it to expire.
#[derive(Debug)]
pub struct Hold {
    system: System,
    clock: Arc<dyn Clock>,
    name: String,
    number: u32,
    document: HoldDocument,
}

impl Hold {
    /// Puts a hold, and tells in the log when an expiry is about to remove what it names. `None`, told there too, where
    /// nothing may be written: whoever may only read goes on without one.
    pub async fn take(system: &System, held: Held, clock: Arc<dyn Clock>, random: &Random) -> Option<Self> {
        let now = clock.now();
        let by = ThisProcess::read();
        let document = HoldDocument { format: FORMAT, held, by, taken: now, expires: now + TERM, left: false };
        let none = |error| {
            tracing::warn!("no hold could be put, so that an expiry may take away what is read: {error}");
        };
        // Where several repositories are read as one, it is the first that an expiry looks at.
        let store = match system.store.to_write() {
            Some(opening) => opening.await.map_err(none).ok()?,
            None => system.store.clone(),
        };
        let system = System { store, ..system.clone() };
        let mut hold = Self { system, clock, name: random.name(), number: 0, document };
        hold.put_next().await.map_err(none).ok()?;
        match hold.system.condemned().await {
            Ok((_, condemned)) => hold.tell(&condemned),
            Err(error) => tracing::warn!("whether an expiry takes away what is read is not known: {error}"),
        }
        Some(hold)
    }

    fn tell(&self, condemned: &Condemned) {
        let Held { backups, wal, .. } = &self.document.held;
        for backup in backups.iter().filter(|b| condemned.backups.contains(b) || condemned.parts.contains_key(b)) {
            tracing::warn!("an expiry is removing backup {backup} or parts of it: this can fail for want of them");
        }
        if let Some((first, last)) = wal.iter().find_map(|(first, last)| condemned.touches(*first, *last)) {
            tracing::warn!("an expiry is removing the segments from {first} to {last}: this can fail for want of them");
        }
    }

    fn key(&self, number: u32) -> Result<Key> {
        Key::new(format!("{}{}-{number}.json", self.system.folder.leases("hold"), self.name))
    }

    async fn put_next(&mut self) -> Result<()> {
        let key = self.key(self.number + 1)?;
        let put = self.system.store.put(&key, documents::to_bytes(&key, &self.document)?.into()).await?;
        debug_assert_eq!(put, Put::Created, "the name is random");
        self.number += 1;
        if self.number > 1
            && let Err(error) = self.system.store.delete(&self.key(self.number - 1)?).await
        {
            tracing::debug!(%error, "an old hold stays");
        }
        Ok(())
    }

    /// Does the work, and keeps the hold meanwhile.
    pub async fn during<T>(&mut self, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                () = tokio::time::sleep(INTERVAL) => {
                    self.document.expires = self.clock.now() + TERM;
                    if let Err(error) = self.put_next().await {
                        tracing::warn!("the hold on what is read was not renewed: {error}");
                    }
                }
            }
        }
    }

    /// Lets go.
    pub async fn release(self) {
        let key = self.key(self.number);
        let gone = match key {
            Ok(key) => self.system.store.delete(&key).await,
            Err(error) => Err(error),
        };
        if let Err(error) = gone {
            tracing::debug!(%error, "a hold was not given back");
        }
    }

    /// Leaves it for what comes after the work, for that long.
    pub async fn leave(mut self, for_as_long: Duration) {
        self.document.left = true;
        self.document.expires = self.clock.now() + for_as_long;
        if let Err(error) = self.put_next().await {
            tracing::debug!(%error, "a hold was not left");
        }
    }
}

impl System {
    /// What is held at this instant. What cannot be read is an error: nothing is known of it, and doubt keeps.
    pub async fn holds(&self, now: DateTime<Utc>) -> Result<Vec<HoldDocument>> {
        let here = ThisProcess::read();
        let dead = |hold: &HoldDocument| hold.expires <= now || (!hold.left && here.outlived(&hold.by));
        Ok(self.all_holds().await?.into_iter().map(|(_, hold)| hold).filter(|hold| !dead(hold)).collect())
    }

    /// The newest document of each hold, dead ones too, with the keys of all its documents.
    async fn all_holds(&self) -> Result<Vec<(Vec<Key>, HoldDocument)>> {
        let folder = self.folder.leases("hold");
        let mut keys: BTreeMap<String, Vec<(u32, Key)>> = BTreeMap::new();
        for listed in store::list_all(&*self.store, &folder).await? {
            let name = listed.key.as_str().strip_prefix(&folder).and_then(|n| n.strip_suffix(".json"));
            let Some((name, number)) = name.and_then(|name| name.rsplit_once('-')) else { continue };
            let Ok(number) = number.parse() else { continue };
            keys.entry(name.to_owned()).or_default().push((number, listed.key.clone()));
        }
        let mut holds = Vec::new();
        for mut versions in keys.into_values() {
            versions.sort_unstable_by_key(|(number, _)| *number);
            let keys: Vec<Key> = versions.into_iter().map(|(_, key)| key).collect();
            let Some(newest) = keys.last() else { continue };
            match document(&*self.store, newest).await {
                Ok(hold) => holds.push((keys, hold)),
                // It was given back, or renewed, since it was listed.
                Err(error) => match self.renewed(&folder, newest).await? {
                    Some(next) if next == *newest => return Err(error),
                    Some(next) => holds.push((vec![next.clone()], document(&*self.store, &next).await?)),
                    None => {}
                },
            }
        }
        Ok(holds)
    }

    /// The newest document of the hold that this one is of; none when it was given back.
    async fn renewed(&self, folder: &str, gone: &Key) -> Result<Option<Key>> {
        let name = gone.as_str().rsplit_once('-').map_or(gone.as_str(), |(name, _)| name);
        let listed = store::list_all(&*self.store, folder).await?;
        let number =
            |key: &Key| key.as_str().strip_prefix(name)?.strip_prefix('-')?.strip_suffix(".json")?.parse().ok();
        Ok(listed
            .into_iter()
            .map(|l| l.key)
            .filter_map(|key| Some((number(&key)?, key)))
            .max_by_key(|(n, _): &(u32, Key)| *n)
            .map(|(_, key)| key))
    }

    /// Deletes the documents of holds that ended by the clock a day ago and more.
    pub async fn clear_holds(&self, now: DateTime<Utc>) -> Result<()> {
        for (keys, hold) in self.all_holds().await? {
            if hold.expires + Duration::days(1) < now {
                for key in keys {
                    self.store.delete(&key).await?;
                }
            }
        }
        Ok(())
    }
}
