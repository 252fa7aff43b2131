//! `pg_wal/archive_status`: what waits to be archived (`src/backend/postmaster/pgarch.c`).

use std::{fs, io, path::Path, time::Duration};

use super::WalFile;

/// The files that wait, in about the order in which PostgreSQL's archiver takes them: history files first, then the
/// oldest (`ready_file_comparator`, pgarch.c); but backup labels, which are as small as histories, before segments.
pub fn ready(pgdata: &Path) -> io::Result<Vec<WalFile>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(pgdata.join("pg_wal/archive_status"))? {
        let name = entry?.file_name();
        let name = name.to_str().and_then(|name| name.strip_suffix(".ready"));
        files.extend(name.and_then(|name| name.parse::<WalFile>().ok()));
    }
    let turn = |file: &WalFile| match file {
        WalFile::History(_) => 0,
        WalFile::BackupLabel(..) => 1,
        WalFile::Segment(_) | WalFile::Partial(_) => 2,
    };
    files.sort_by_cached_key(|file| (turn(file), file.to_string()));
    Ok(files)
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_files_come_first_and_then_the_oldest() {
        let pgdata = tempfile::tempdir().unwrap();
        let status = pgdata.path().join("pg_wal/archive_status");
        fs::create_dir_all(&status).unwrap();
        let names = [
            "000000020000000000000004",
            "00000002.history",
            "000000010000000000000003",
            "000000010000000000000003.00000028.backup",
        ];
        names.iter().for_each(|name| fs::write(status.join(format!("{name}.ready")), "").unwrap());
        fs::write(status.join("000000010000000000000002.done"), "").unwrap();
        fs::write(status.join("junk.ready"), "").unwrap();
        let found: Vec<String> = ready(pgdata.path()).unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(found, [names[1], names[3], names[2], names[0]]);
    }
}
