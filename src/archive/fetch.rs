//! Fetch: a file out of the archive to where PostgreSQL wants it, or the proof that there is none.
//!
//! PostgreSQL takes "there is none" for the end of the log and promotes. So a segment is absent only when the
//! repository proves that it has no such object, the plan of this recovery does not name it, and no later segment of
//! its timeline is there. Everything else is an error, and the caller answers it with an exit code on which
//! PostgreSQL stops.

use std::{
    fs::{self, File},
    io::Write,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::data_directory;
use crate::{
    error::{Error, Kind, Result},
    postgres::{ControlFile, SegmentName, SystemId, TimelineId, WalFile},
    repository::{
        ClusterName, Incarnation, System, join,
        wal_object::{self, WalObject},
    },
    store::{Key, Store},
    wal,
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

/// How a fetch ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fetched {
    /// The file stands at its destination, verified and durable.
    Delivered {
        /// Its length in bytes.
        size: u64,
    },
    /// It is proven that there is none.
    Absent,
}

/// What `restore_command` answers when a fetch ended in doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDoubt {
    /// PostgreSQL must stop: the log would end here otherwise.
    Stop,
    /// A standby asks again by itself.
    AskAgain,
}

/// On a standby doubt may be answered "not there", because PostgreSQL will ask again; but not while it is being
/// promoted, when a missing segment would end recovery early.
pub fn on_doubt(request: &Fetch, promote_despite_doubt: bool) -> OnDoubt {
    let Ok(pgdata) = data_directory(&request.destination, request.pgdata.as_deref()) else { return OnDoubt::Stop };
    let standby = pgdata.join("standby.signal").exists();
    let promoted = pgdata.join("promote").exists();
    if standby && (!promoted || promote_despite_doubt) { OnDoubt::AskAgain } else { OnDoubt::Stop }
}

/// Fetches a file.
pub async fn fetch(store: Arc<dyn Store>, cluster: &ClusterName, request: &Fetch) -> Result<Fetched> {
    let pgdata = data_directory(&request.destination, request.pgdata.as_deref())?;
    let id = ControlFile::read(&pgdata)?.system;
    let incarnation = Incarnation { system: id, number: request.incarnation };
    let system = System::open(store, cluster, incarnation).await?;
    let Some((key, object)) = find(&system, request.file).await? else {
        prove_absent(&system, request).await?;
        return Ok(Fetched::Absent);
    };
    let (file, destination) = (request.file, request.destination.clone());
    let delivered = tokio::task::spawn_blocking(move || deliver(object, &key, file, id, &destination)).await;
    join(delivered)?.map(|size| Fetched::Delivered { size })
}

async fn find(system: &System, file: WalFile) -> Result<Option<(Key, WalObject)>> {
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
        Ok(object) => Ok(Some((key, object))),
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

/// Writes the file beside its destination, proves it, and renames it there.
fn deliver(object: WalObject, key: &Key, file: WalFile, system: SystemId, destination: &Path) -> Result<u64> {
    if let Some(head) = object.head.as_ref().filter(|head| head.name != file) {
        return Err(Error::damaged(format!("{key} says that it holds {}", head.name)));
    }
    let folder = match destination.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    // PostgreSQL itself removes files of this name from pg_wal when it starts (`RemoveTempXlogFiles`, xlog.c).
    let temporary = folder.join(format!("xlogtemp.walden.{}", std::process::id()));
    let written = write_verified(object, file, system, &temporary).and_then(|size| {
        fs::rename(&temporary, destination).map_err(|e| Error::io("rename to", destination, e))?;
        sync_folder(folder)?;
        Ok(size)
    });
    if written.is_err() {
        // What remains of it is of no use, and the error that is reported matters more than this one.
        let _ = fs::remove_file(&temporary);
    }
    written
}

fn write_verified(object: WalObject, file: WalFile, system: SystemId, temporary: &Path) -> Result<u64> {
    let _ = fs::remove_file(temporary);
    let mut to = File::create_new(temporary).map_err(|e| Error::io("create", temporary, e))?;
    let mut header_seen = !matches!(file, WalFile::Segment(_));
    let mut front = Vec::new();
    let head = object.read(|bytes| {
        if !header_seen {
            front.extend_from_slice(&bytes[..bytes.len().min(64)]);
            if front.len() >= wal::page::LONG_HEADER {
                header_seen = true;
                check_header(&front, file, system)?;
            }
        }
        to.write_all(bytes).map_err(|e| Error::io("write", temporary, e))?;
        Ok(ControlFlow::Continue(()))
    })?;
    to.sync_all().map_err(|e| Error::io("fsync", temporary, e))?;
    Ok(head.size)
}

fn check_header(front: &[u8], file: WalFile, system: SystemId) -> Result<()> {
    let WalFile::Segment(name) = file else { return Ok(()) };
    let header = wal::SegmentHeader::parse(front)?;
    header.check_name(name)?;
    if header.system != system {
        return Err(Error::damaged(format!(
            "{name} in the repository belongs to system {}, not to {system}",
            header.system
        )));
    }
    Ok(())
}

fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|f| f.sync_all()).map_err(|e| Error::io("fsync", folder, e))
}
