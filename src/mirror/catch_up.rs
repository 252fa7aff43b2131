//! Brings a mirror up to the first: copies what it lacks, a backup's documents after everything that the backup needs.
//! Whatever ends it in between, what was copied stays, and the next run goes on from there.

use std::{collections::HashMap, fmt};

use chrono::{DateTime, Utc};
use futures_util::{StreamExt, stream};
use serde::Serialize;

use super::{
    Opened,
    compare::{Comparison, Lack, Missing},
    copy::{self, Proof},
    in_step::{InStep, Positions},
};
use crate::{
    error::{Error, Kind, Result},
    interrupt::Interrupt,
    progress::Progress,
    repository::{BackupDocument, BackupId, PartName, RepositoryName, System, segment_of, wal_object},
    store::{Key, Listed},
};

/// How much is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// What came since it was in step last, as far as this host remembers.
    Since,
    /// Everything.
    Whole,
}

/// A mirror that is to catch up with one system of the first.
#[derive(Debug)]
pub struct CatchUp<'a> {
    /// The system in the first.
    pub first: &'a System,
    /// The mirror.
    pub mirror: &'a Opened,
    /// What the configuration calls it.
    pub name: &'a RepositoryName,
    /// Where this host remembers how far it is; without it everything is compared.
    pub state: Option<&'a InStep>,
    /// How many objects are copied at a time.
    pub parallel: usize,
    /// How many are copied at most.
    pub limit: usize,
    /// Who watches.
    pub progress: &'a dyn Progress,
    /// Who may ask to stop.
    pub interrupt: Option<&'a Interrupt>,
    /// The time of day.
    pub now: DateTime<Utc>,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CaughtUp {
    /// How many objects were copied.
    pub objects: usize,
    /// How many of them are segments.
    pub segments: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Backups that exist there now.
    pub backups: Vec<BackupId>,
    /// Objects that could not be copied, each with the reason. All others were.
    pub problems: Vec<Problem>,
    /// Whether everything was looked at; otherwise the next run goes on.
    pub complete: bool,
}

/// An object that cannot be copied as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Its key.
    pub object: String,
    /// What is wrong.
    pub why: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.object, self.why)
    }
}

/// An object, and what proves it.
type Job = (Listed, Proof);

impl CatchUp<'_> {
    /// Copies. An error ends it before its end: mostly the mirror or the first does not answer. What it remembers of
    /// the way is written only when nothing is left.
    pub async fn run(&self, extent: Extent) -> Result<CaughtUp> {
        let since = match (extent, self.state) {
            (Extent::Since, Some(state)) => state.read(self.now),
            _ => Positions::default(),
        };
        let whole = since.is_empty();
        self.progress.start(&format!("copying to {}", self.name), None);
        self.mirror.know(self.first).await?;
        let mut done = CaughtUp::default();
        // What is about to be removed is not copied any more.
        let condemned = self.first.condemned().await?.1;
        let goes = |key: &Key| segment_of(key).is_some_and(|name| condemned.touches(name, name).is_some());
        let mut comparison = Comparison::new(self.first, &*self.mirror.store, since).await?;
        while let Some(lack) = comparison.next().await? {
            if let Some(interrupt) = self.interrupt {
                interrupt.check()?;
            }
            match lack {
                Lack::Objects(listed) => {
                    let stay = listed.into_iter().filter(|listed| !goes(&listed.key));
                    let jobs = stay.map(|listed| (Proof::of(&listed.key), listed));
                    self.copy_all(jobs.map(|(proof, listed)| (listed, proof)).collect(), &mut done).await?;
                }
                Lack::Backup(missing) if condemned.backups.contains(&missing.id) => {
                    tracing::debug!("backup {} is not copied: an expiry removes it", missing.id);
                }
                Lack::Backup(mut missing) => {
                    let part = |listed: &Listed| self.first.folder.part_number(missing.id, &listed.key);
                    let goes = |listed: &Listed| part(listed).is_some_and(|n| condemned.has_part((missing.id, n)));
                    missing.objects.retain(|listed| !goes(listed));
                    self.backup(missing, &mut done).await?;
                }
                Lack::Differs(listed, theirs) => done.problems.extend(self.differs(&listed, theirs).await?),
            }
            if done.objects >= self.limit {
                return Ok(done);
            }
        }
        done.complete = true;
        if let Some(state) = self.state.filter(|_| done.problems.is_empty()) {
            // What is not remembered is compared again.
            if let Err(error) = state.write(&comparison.seen(), whole, self.now) {
                tracing::debug!("how far {} is in step was not written down: {error}", self.name);
            }
        }
        Ok(done)
    }

    /// Copies objects that need no others. Gives back whether all of them are there now.
    async fn copy_all(&self, jobs: Vec<Job>, done: &mut CaughtUp) -> Result<bool> {
        let (from, to) = (&*self.first.store, &*self.mirror.store);
        let mut all = true;
        let mut copies = stream::iter(jobs.into_iter().take(self.limit.saturating_sub(done.objects)))
            .map(|(listed, proof)| async move { (copy::copy(from, to, &listed, proof).await, listed) })
            .buffer_unordered(self.parallel.max(1));
        while let Some((copied, listed)) = copies.next().await {
            match copied {
                Ok(_) => {
                    done.objects += 1;
                    done.bytes += listed.length;
                    done.segments += usize::from(segment_of(&listed.key).is_some());
                    self.progress.advance(listed.length);
                }
                // It was removed since it was listed: whoever does that knows that it is not needed.
                Err(error) if error.kind() == Kind::NotFound => all = false,
                Err(error) if copy::is_of_one(&error) => {
                    all = false;
                    done.problems.push(problem(&listed.key, &error));
                }
                Err(error) => return Err(error),
            }
            if let Some(interrupt) = self.interrupt {
                interrupt.check()?;
            }
        }
        Ok(all)
    }

    /// Copies what is missing of a backup: parts and lists, those of older backups that it needs, and its documents
    /// when all of that is there.
    async fn backup(&self, missing: Missing, done: &mut CaughtUp) -> Result<()> {
        let id = missing.id;
        self.progress.message(&format!("backup {id}"));
        let (document, mut needed) = match self.needed(id).await {
            Ok(needed) => needed,
            Err(error) if error.kind() == Kind::NotFound => return Ok(()),
            Err(error) if copy::is_of_one(&error) => {
                done.problems.push(problem(&self.first.folder.manifest(id, 1)?, &error));
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let mut jobs = Vec::new();
        for listed in missing.objects {
            let part = self.first.folder.part_number(id, &listed.key).and_then(|number| needed.remove(&(id, number)));
            let proof = match part {
                Some((_, proof)) => proof,
                None => proof(self.first, &document, &listed.key)?,
            };
            jobs.push((listed, proof));
        }
        let there = self.there(id, &needed).await?;
        let mut whole = true;
        for ((backup, number), (length, proof)) in needed {
            let key = self.first.folder.part(backup, number)?;
            match there.get(&(backup, number)) {
                None => jobs.push((Listed { key, length }, proof)),
                Some(theirs) if *theirs != length => {
                    whole = false;
                    done.problems.extend(self.differs(&Listed { key, length }, *theirs).await?);
                }
                Some(_) => {}
            }
        }
        let count = jobs.len();
        let before = done.objects;
        whole &= self.copy_all(jobs, done).await? && done.objects - before == count;
        if !whole {
            tracing::warn!("backup {id} is not whole in {}, and does not exist there yet", self.name);
            return Ok(());
        }
        let documents: Vec<Job> = missing.documents.into_iter().map(|listed| (listed, Proof::Length)).collect();
        let keys: Vec<Key> = documents.iter().map(|(listed, _)| listed.key.clone()).collect();
        if !documents.is_empty() && self.copy_all(documents, done).await? && self.stays(id, &keys).await? {
            done.backups.push(id);
        }
        Ok(())
    }

    /// Whether a backup that was copied stays. An expiry condemns in the first, then removes here, then there: one that
    /// came meanwhile may have removed what these documents name, and they go again.
    async fn stays(&self, id: BackupId, documents: &[Key]) -> Result<bool> {
        if !self.first.condemned().await?.1.backups.contains(&id) && self.first.backup_exists(id).await? {
            return Ok(true);
        }
        for key in documents {
            self.mirror.store.delete(key).await?;
        }
        Ok(false)
    }

    /// The newest document of a backup, and the parts that it needs: their lengths, and what proves them.
    async fn needed(&self, id: BackupId) -> Result<(BackupDocument, HashMap<PartName, (u64, Proof)>)> {
        let document = self.first.backup(id).await?;
        let parts = match self.first.parts_needed(&document).await {
            Err(error) if error.kind() == Kind::Refused && !document.needed_parts.is_empty() => {
                let told = self.told(&document).await?;
                return Ok((document, told));
            }
            parts => parts?,
        };
        let needed = parts
            .into_iter()
            .map(|part| ((part.backup, part.number), (part.length, Proof::Bytes(part.blake3, part.hashed))));
        Ok((document, needed.collect()))
    }

    /// The same as the document tells it, for a host that may not read the manifest. What is encrypted is proven from
    /// outside when it is copied.
    async fn told(&self, document: &BackupDocument) -> Result<HashMap<PartName, (u64, Proof)>> {
        let needed = || document.needed_parts.iter();
        let there = self.first.parts_there(needed().map(|of| of.backup)).await?;
        let names = needed().flat_map(|of| of.parts.iter().map(|number| (of.backup, *number)));
        // One that is not there is found out when it is to be copied.
        Ok(names.map(|name| (name, (there.get(&name).copied().unwrap_or(0), Proof::Length))).collect())
    }

    /// Which parts the mirror has in the folders of these and of that backup.
    async fn there(&self, id: BackupId, needed: &HashMap<PartName, (u64, Proof)>) -> Result<HashMap<PartName, u64>> {
        let folders = needed.keys().map(|(backup, _)| *backup).chain([id]);
        let mirror = System { store: self.mirror.store.clone(), ..self.first.clone() };
        mirror.parts_there(folders).await
    }

    /// What is to be said of an object that has another length there. The same file of `pg_wal` may have been
    /// compressed in two ways.
    async fn differs(&self, listed: &Listed, theirs: u64) -> Result<Option<Problem>> {
        let key = &listed.key;
        let why = format!("it is {} bytes long in the first, and {theirs} in {}", listed.length, self.name);
        if Proof::of(key) == Proof::Wal {
            let heads = tokio::join!(
                wal_object::read_head(&*self.first.store, key),
                wal_object::read_head(&*self.mirror.store, key)
            );
            match heads {
                (Ok(ours), Ok(theirs)) if (ours.blake3, ours.size) == (theirs.blake3, theirs.size) => return Ok(None),
                (Ok(_), Err(error)) if copy::is_of_one(&error) => {
                    return Ok(Some(Problem { object: key.to_string(), why: format!("in {}: {error}", self.name) }));
                }
                (Err(error), _) | (_, Err(error)) if !copy::is_of_one(&error) => return Err(error),
                (Err(error), _) => return Ok(Some(problem(key, &error))),
                _ => {}
            }
        }
        Ok(Some(Problem { object: key.to_string(), why }))
    }
}

fn problem(key: &Key, error: &Error) -> Problem {
    Problem { object: key.to_string(), why: error.to_string() }
}

/// What proves an object of a backup that is no part.
fn proof(system: &System, document: &BackupDocument, key: &Key) -> Result<Proof> {
    if *key == system.folder.manifest(document.id, document.manifest)? {
        return Ok(Proof::Content(document.manifest_blake3));
    }
    match &document.extra {
        Some(extra) if *key == system.folder.extra(document.id, extra.number)? => {
            Ok(Proof::Bytes(extra.blake3, extra.length))
        }
        _ => Ok(Proof::Length),
    }
}
