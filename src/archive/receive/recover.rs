//! What a receiver before this one has received and not stored: it comes into the repository before anything else, also
//! when the server is no more.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    os::unix::fs::DirBuilderExt,
    path::Path,
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

use super::{
    Receiver,
    event::Event,
    spool::{Folder, Spool},
    state::{Held, Shared, State},
};
use crate::{
    error::{Error, Result},
    postgres::SegmentName,
    repository::{Incarnation, System, pieces::Piece},
};

impl Receiver {
    /// Empties the spools of all systems of the cluster. They are this process's for as long as the file is open that this
    /// gives back.
    pub(super) async fn recover(&self, place: &Path) -> Result<File> {
        let cluster = place.join(self.receiving.cluster.as_str());
        let lock = lock(&cluster)?;
        let failed = |e| Error::io("read", &cluster, e);
        for entry in fs::read_dir(&cluster).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let Some(incarnation) = entry.file_name().to_str().and_then(|name| name.parse::<Incarnation>().ok()) else {
                continue;
            };
            self.recover_system(incarnation, Folder(entry.path())).await?;
        }
        Ok(lock)
    }

    async fn recover_system(&self, incarnation: Incarnation, folder: Folder) -> Result<()> {
        let shared = Shared::default();
        let recovering = |system: &System| {
            let size = system.document.segment_size;
            Spool::open(folder.clone(), size, self.is_durable(), shared.clone())?.recover()
        };
        let system = System::open(self.store.clone(), &self.receiving.cluster, incarnation).await?;
        recovering(&system)?;
        let left: Vec<Held> = shared.see(|state| state.queue.iter().copied().collect());
        for held in left {
            let Held::Segment(segment) = held else { continue };
            let stored = in_repository(&system, segment.name, segment.length).await?;
            shared.change(|state| state.set_stored(segment.name, stored));
        }
        let waiting = shared.see(State::waiting);
        self.storer(&system, folder, &shared).drain().await?;
        if waiting > 0 {
            self.listener.tell(&Event::Recovered { bytes: waiting });
        }
        Ok(())
    }
}

/// Keeps other receivers of this host away from the spools, until this process has ended, however it does.
fn lock(cluster: &Path) -> Result<File> {
    let path = cluster.join("lock");
    let failed = |e| Error::io("open", &path, e);
    DirBuilder::new().recursive(true).mode(0o700).create(cluster).map_err(failed)?;
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => Err(Error::refused("another receive is running on this host for this cluster")
            .hint("stop that one first; one is enough")),
        Err(error) => Err(Error::io("lock", &path, error.into())),
    }
}

/// How many bytes of a segment, from its first on, are in the repository.
async fn in_repository(system: &System, name: SegmentName, length: u64) -> Result<u64> {
    if !system.segments(name.timeline, Some(name), Some(name)).await?.is_empty() {
        return Ok(length);
    }
    let pieces = system.pieces(name).await?;
    // They are sorted by their first byte.
    let unbroken = |at: u64, piece: &Piece| if u64::from(piece.from) <= at { at.max(piece.to.into()) } else { at };
    Ok(pieces.iter().fold(0, unbroken).min(length))
}
