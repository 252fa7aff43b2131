//! The last segment of a plan, when it is in the repository in pieces alone: as a file of a segment's size, with zeros
//! behind the last whole record, at which PostgreSQL's replay ends as it does after a crash.
//!
//! Such a file must never come back under the segment's name. So only a recovery gets it whose plan names that segment as
//! its last: no standby (it would wait behind the zeros for a stream), nobody who fetches by hand or for `pg_rewind`, and no
//! server with `archive_mode = always`, which archives what it restores.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use tokio::runtime::Handle;

use super::{super::arrival::Arrived, Fetch};
use crate::{
    error::{Error, Result},
    postgres::{
        SegmentName, SegmentSize,
        configuration::running_value,
        settings::{RECOVERY_SIGNAL, STANDBY_SIGNAL},
    },
    repository::{System, pieces::PieceWal},
};

/// The pieces of the segment that is asked for, when they are for who asks. None where they are not, or there are none.
pub(super) async fn due(system: &System, request: &Fetch) -> Result<Option<PieceWal>> {
    let Some(name) = request.replayed().filter(|name| request.until == Some(*name)) else { return Ok(None) };
    let pgdata = request.data_directory()?;
    if !pgdata.join(RECOVERY_SIGNAL).exists() || pgdata.join(STANDBY_SIGNAL).exists() {
        return Ok(None);
    }
    let pieces = system.open_pieces(name).await?;
    if pieces.is_some() {
        prove_not_archived(name, &pgdata)?;
    }
    Ok(pieces)
}

fn prove_not_archived(name: SegmentName, pgdata: &Path) -> Result<()> {
    match running_value(pgdata, "archive_mode")? {
        Some(value) if value.eq_ignore_ascii_case("always") => Err(Error::refused(format!(
            "{name} is in the repository in pieces alone, and a server with archive_mode = always would archive the unfinished file"
        ))
        .hint("recover with archive_mode = on: walden restore --set archive_mode=on")),
        _ => Ok(()),
    }
}

/// Writes what the pieces have, and zeros up to the segment's end. Call it on a thread of its own.
pub(super) fn write(mut pieces: PieceWal, size: SegmentSize, path: PathBuf, near: &Path) -> Result<Arrived> {
    Arrived::made(path, near, true, |to, path| {
        let failed = |e| Error::io("write", path, e);
        while let Some(pages) = Handle::current().block_on(pieces.next())? {
            to.write_all(&pages).map_err(failed)?;
        }
        let proven = pieces.proven();
        if proven == 0 {
            return Err(Error::damaged(
                "no record ends in the pieces that are in the repository, and this recovery needs some",
            ));
        }
        // A record that is not whole is taken back: what is behind the last whole one reads as zeros.
        to.set_len(proven).and_then(|()| to.set_len(size.bytes())).map_err(failed)?;
        Ok(size.bytes())
    })
}
