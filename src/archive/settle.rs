//! Brings what is known of suspended archiving to the repository, as soon as that can be reached: history files that
//! could not be stored, what still lies in `pg_wal`, and the note that says what is missing and why.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    push::{Push, push},
    suspension::{Record, Suspensions},
};
use crate::{
    error::{Error, Kind, Result},
    postgres::{Lsn, SegmentName, WalFile},
    repository::{FORMAT, GapNote, System, rows_of_segments},
    store::Store,
};

impl Suspensions {
    /// Stores the notes of what has ended and of what lasts, and forgets what has ended. The notes.
    pub async fn settle(&self, store: &Arc<dyn Store>) -> Result<Vec<GapNote>> {
        let mut notes = Vec::new();
        for record in self.pending()? {
            let system = System::open(store.clone(), &self.cluster, record.incarnation).await?;
            for kept in files(&record.histories())? {
                self.push(store, kept.clone(), &record).await?;
                fs::remove_file(&kept).map_err(|e| Error::io("remove", &kept, e))?;
            }
            let note = note(&system, &record).await?;
            system.add_gap_note(&note).await?;
            if record.begun.suspended.resumed.is_some() {
                self.forget(&record)?;
            }
            notes.push(note);
        }
        Ok(notes)
    }

    /// Stores what was skipped and still lies in `pg_wal`, the oldest first. How many files that were. What is not what
    /// its name says, because PostgreSQL has begun to write it again, is gone.
    pub async fn catch_up(&self, store: &Arc<dyn Store>, record: &Record) -> Result<usize> {
        let mut stored = 0;
        for file in record.skipped.iter().filter(|file| !matches!(file, WalFile::History(_))) {
            let path = record.begun.pgdata.join("pg_wal").join(file.to_string());
            if !path.exists() {
                continue;
            }
            match self.push(store, path.clone(), record).await {
                Ok(()) => stored += 1,
                Err(error) if matches!(error.kind(), Kind::Unavailable | Kind::Denied) => return Err(error),
                Err(error) => tracing::warn!("{} could not be stored: {error}", path.display()),
            }
        }
        Ok(stored)
    }

    async fn push(&self, store: &Arc<dyn Store>, path: PathBuf, record: &Record) -> Result<()> {
        let pgdata = Some(record.begun.pgdata.clone());
        let request = Push { path, pgdata, incarnation: record.incarnation.number, level: self.level };
        push(store.clone(), &self.cluster, &request).await.map(drop)
    }
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(folder).map_err(|e| Error::io("read", folder, e))?;
    Ok(entries.flatten().map(|entry| entry.path()).collect())
}

/// What the record tells, with what of it is missing in the repository.
async fn note(system: &System, record: &Record) -> Result<GapNote> {
    let (begun, size) = (&record.begun, system.document.segment_size);
    let mut note =
        GapNote { format: FORMAT, suspended: begun.suspended.clone(), from: begun.from, to: None, missing: Vec::new() };
    if begun.suspended.resumed.is_none() {
        return Ok(note);
    }
    let mut missing: BTreeSet<SegmentName> = record.segments().collect();
    for row in rows_of_segments(&missing, size) {
        for (name, _) in system.segments(row.first.timeline, Some(row.first), Some(row.last)).await? {
            missing.remove(&name);
        }
    }
    note.missing = rows_of_segments(&missing, size);
    note.from = missing.first().map(|first| first.start(size)).transpose()?;
    note.to = missing.last().map(|last| Ok::<_, Error>(Lsn((last.number(size)? + 1) * size.bytes()))).transpose()?;
    Ok(note)
}
