//! `pg_wal/archive_status`: what waits to be archived (`src/backend/postmaster/pgarch.c`).

use std::{fs, io, path::Path, time::Duration};

/// The files that wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// How many.
    pub files: usize,
    /// For how long the oldest has.
    pub oldest: Duration,
}

impl Waiting {
    /// More files than this wait only where archiving does not keep up.
    const MANY: usize = 16;
    /// A file that waits longer than this is stuck.
    const LONG: Duration = Duration::from_secs(600);

    /// Counts the `.ready` files of a data directory.
    pub fn of(pgdata: &Path) -> io::Result<Self> {
        let mut waiting = Self::default();
        for entry in fs::read_dir(pgdata.join("pg_wal/archive_status"))? {
            let entry = entry?;
            if entry.path().extension().is_none_or(|e| e != "ready") {
                continue;
            }
            // One that was archived in this moment is gone.
            let Ok(made) = entry.metadata().and_then(|m| m.modified()) else { continue };
            waiting.files += 1;
            waiting.oldest = waiting.oldest.max(made.elapsed().unwrap_or_default());
        }
        Ok(waiting)
    }

    /// Whether archiving does not keep up.
    #[must_use]
    pub fn is_stuck(&self) -> bool {
        self.files >= Self::MANY || self.oldest >= Self::LONG
    }
}

impl std::fmt::Display for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let oldest = crate::human::duration(self.oldest);
        match self.files {
            0 => f.write_str("nothing waits to be archived"),
            1 => write!(f, "1 file waits to be archived, for {oldest}"),
            files => write!(f, "{files} files wait to be archived, the oldest for {oldest}"),
        }
    }
}
