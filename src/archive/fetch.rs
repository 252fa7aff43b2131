//! Fetch: a file out of the archive to where PostgreSQL wants it, or the proof that there is none.
//!
//! PostgreSQL takes "there is none" for the end of the log and promotes. So a segment is absent only when the
//! repository proves that it has no such object, the plan of this recovery does not name it, and no later segment of
//! its timeline is there. Everything else is an error, and the caller answers it with an exit code on which
//! PostgreSQL stops.

mod pieces;

use std::path::PathBuf;

use super::{
    arrival::{Arrived, Found, RECOVERED, folder_of},
    data_directory,
};
use crate::{
    error::{Error, Kind, Result},
    postgres::{ControlFile, SegmentName, TimelineId, WalFile},
    repository::{Incarnation, System, join, wal_object},
    store::{self, Key},
};

/// What is wanted.
#[derive(Clone, Debug)]
pub struct Fetch {
    /// The file (`%f`).
    pub file: WalFile,
    /// Where it should go (`%p`), below the present working directory unless absolute.
    pub destination: PathBuf,
    /// Up to this segment the plan of this recovery needs everything on its path.
    pub until: Option<SegmentName>,
    /// The data directory as the configuration has it.
    pub pgdata: Option<PathBuf>,
    /// The incarnation as the configuration has it.
    pub incarnation: u32,
}

/// What `restore_command` answers when a fetch ended in doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OnDoubt {
    /// PostgreSQL must stop: the log would end here otherwise.
    Stop,
    /// A standby asks again by itself.
    AskAgain,
}

/// On a standby doubt may be answered "not there", because PostgreSQL will ask again; but not while it is being
/// promoted, when a missing segment would end recovery early.
fn on_doubt(request: &Fetch, promote_despite_doubt: bool) -> OnDoubt {
    let Ok(pgdata) = request.data_directory() else { return OnDoubt::Stop };
    let standby = pgdata.join("standby.signal").exists();
    let promoted = pgdata.join("promote").exists();
    if standby && (!promoted || promote_despite_doubt) { OnDoubt::AskAgain } else { OnDoubt::Stop }
}

/// What `restore_command` answers: `NotFound` means 1, every other error that PostgreSQL has to stop.
pub fn answer<T>(ended: Result<Option<T>>, request: &Fetch, promote_despite_doubt: bool) -> Result<T> {
    let file = request.file;
    let absent = || Error::not_found(format!("{file} is not in the archive"));
    match ended {
        Ok(Some(delivered)) => Ok(delivered),
        Ok(None) => Err(absent()),
        Err(error) if on_doubt(request, promote_despite_doubt) == OnDoubt::AskAgain => {
            Err(absent().context("a standby asks again").source(error))
        }
        // What is not proven absent must never be answered as such.
        Err(error) if error.kind() == Kind::NotFound => {
            Err(Error::unavailable(format!("{file} cannot be read")).source(error))
        }
        Err(error) => Err(error),
    }
}

impl Fetch {
    /// The segment, when PostgreSQL is replaying: only its startup process names the destination so. `pg_rewind` and
    /// others fetch one file and go elsewhere for the next.
    pub(super) fn replayed(&self) -> Option<SegmentName> {
        match self.file {
            WalFile::Segment(name) if self.destination.file_name()? == RECOVERED => Some(name),
            _ => None,
        }
    }

    /// The data directory that asks.
    pub(super) fn data_directory(&self) -> Result<PathBuf> {
        data_directory(&self.destination, self.pgdata.as_deref())
    }

    /// The system whose WAL that directory wants.
    pub(super) fn wanted(&self) -> Result<Incarnation> {
        let system = ControlFile::read(&self.data_directory()?)?.system;
        Ok(Incarnation { system, number: self.incarnation })
    }
}

/// Fetches a file to `path`, a temporary one; `None` when it is proven that there is none.
pub(super) async fn fetch(system: &System, request: &Fetch, path: PathBuf) -> Result<Option<Arrived>> {
    let near = folder_of(&request.destination).to_path_buf();
    loop {
        let Some(found) = find(system, request.file).await? else {
            if let Some(pieces) = pieces::due(system, request).await? {
                let size = system.document.segment_size;
                return join(tokio::task::spawn_blocking(move || pieces::write(pieces, size, path, &near)).await)?
                    .map(Some);
            }
            prove_absent(system, request).await?;
            return Ok(None);
        };
        let (key, to, near) = (found.key.clone(), path.clone(), near.clone());
        let arrived = join(tokio::task::spawn_blocking(move || Arrived::write(found, to, &near, || true)).await)?;
        match arrived {
            Err(error) if store::another_copy(&*system.store, &key, &error) => tracing::warn!("{error}"),
            arrived => return arrived.map(Some),
        }
    }
}

/// The object of a file; `None` when the store says that there is no such key.
pub(super) async fn find(system: &System, file: WalFile) -> Result<Option<Found>> {
    let key = match file {
        WalFile::Segment(name) => system.folder.segment(name)?,
        WalFile::History(timeline) => system.folder.history(timeline)?,
        WalFile::BackupLabel(name, _) => {
            let folder = system.folder.segment(name)?;
            let (folder, _) = folder.as_str().rsplit_once('/').unwrap_or_default();
            Key::new(format!("{folder}/{file}"))?
        }
        WalFile::Partial(name) => match only_partial(system, name).await? {
            Some(key) => key,
            None => return Ok(None),
        },
    };
    match wal_object::open(&*system.store, &key).await {
        Ok(object) => Ok(Some(Found { object, key, file, system: system.folder.incarnation.system, durable: true })),
        Err(error) if error.kind() == Kind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

async fn only_partial(system: &System, name: SegmentName) -> Result<Option<Key>> {
    let mut listed = system.store.list(&system.folder.partials(name)?, None, 2).await?;
    if listed.len() > 1 {
        return Err(Error::refused(format!("several servers archived a {name}.partial, each with other content"))
            .hint(format!("they are below {}", system.folder.partials(name)?)));
    }
    Ok(listed.pop().map(|l| l.key))
}

/// An error unless the absence of the file in this incarnation is beyond doubt.
async fn prove_absent(system: &System, request: &Fetch) -> Result<()> {
    if request.until.is_none() {
        // With a plan nothing that it needs is ever called absent; without one a repository that is away may have it.
        system.store.all_answer()?;
    }
    match request.file {
        WalFile::Segment(name) => {
            if on_the_path(system, name, request.until).await? {
                return Err(Error::damaged(format!(
                    "{name} is missing in {}, and this recovery needs it",
                    system.store.url()
                ))
                .hint("bring the segment back from another copy, or plan anew: walden plan"));
            }
            if let Some(later) = system.first_segment_after(name).await? {
                return Err(Error::damaged(format!(
                    "{name} is missing in {}, but {later} is there: the archive has a hole",
                    system.store.url()
                ))
                .hint("bring the segment back from another copy, or choose a target before the hole: walden plan"));
            }
            Ok(())
        }
        WalFile::History(timeline) if timeline != TimelineId::FIRST => {
            let listed = system.store.list(&system.folder.timeline(timeline), None, 1).await?;
            if listed.is_empty() {
                return Ok(());
            }
            Err(Error::damaged(format!(
                "{} is missing in {}, but WAL of that timeline is there",
                request.file,
                system.store.url()
            ))
            .hint("bring the history file back from another copy"))
        }
        _ => Ok(()),
    }
}

/// Whether the plan needs that very segment: at a switch it is the new timeline's copy that counts.
async fn on_the_path(system: &System, name: SegmentName, until: Option<SegmentName>) -> Result<bool> {
    let Some(until) = until else { return Ok(false) };
    let size = system.document.segment_size;
    if name.number(size)? > until.number(size)? {
        return Ok(false);
    }
    let history = system.history(until.timeline).await.map_err(|e| match e.kind() {
        Kind::NotFound => Error::damaged(format!("the history of timeline {} is missing", until.timeline)),
        _ => e,
    })?;
    let last_byte = name.start(size)? + (size.bytes() - 1);
    Ok(history.at(last_byte) == name.timeline)
}
