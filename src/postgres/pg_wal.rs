//! `pg_wal` as it lies on disk: its segments, what waits to be archived, what PostgreSQL holds for archived, and the
//! room that is left. Needs no server, so that it tells something when nobody answers.

use std::{
    fs::{self, Metadata},
    io,
    path::Path,
    time::Duration,
};

use super::{Lsn, SegmentName, SegmentSize, TimelineId, WalFile};

/// What was seen of `pg_wal`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PgWal {
    /// The segments, in the order of their names; those that wait to be written again are among them.
    pub segments: Vec<Written>,
    /// What waits to be archived (`.ready`), in the order of the names.
    pub ready: Vec<Marked>,
    /// What PostgreSQL holds for archived (`.done`) and has not removed yet, in the order of the names.
    pub done: Vec<Marked>,
    /// How many bytes are free on its file system.
    pub free: Option<u64>,
}

/// A segment's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Its name.
    pub name: SegmentName,
    /// Its size in bytes.
    pub bytes: u64,
    /// How long ago it was written to.
    pub age: Duration,
}

/// A file with a mark in `archive_status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marked {
    /// The file.
    pub file: WalFile,
    /// How long ago it was complete: the mark is made then, and only renamed when it is archived
    /// (`XLogArchiveNotify`, xlogarchive.c).
    pub age: Duration,
}

impl PgWal {
    /// Looks at the `pg_wal` of a data directory.
    pub fn look(pgdata: &Path) -> io::Result<Self> {
        let folder = pgdata.join("pg_wal");
        let (mut ready, mut done) = (Vec::new(), Vec::new());
        each(&folder.join("archive_status"), |name, found| {
            let marks = [(".ready", &mut ready), (".done", &mut done)];
            for (mark, files) in marks {
                if let Some(file) = name.strip_suffix(mark).and_then(|name| name.parse().ok()) {
                    files.push(Marked { file, age: age(found) });
                }
            }
        })?;
        let mut segments = Vec::new();
        each(&folder, |name, found| {
            if let Ok(name) = name.parse() {
                segments.push(Written { name, bytes: found.len(), age: age(found) });
            }
        })?;
        segments.sort_by_key(|segment| segment.name);
        ready.sort_by_key(|marked| marked.file);
        done.sort_by_key(|marked| marked.file);
        Ok(Self { segments, ready, done, free: free(pgdata) })
    }

    /// The bytes of the files that wait to be archived.
    #[must_use]
    pub fn waiting_bytes(&self) -> u64 {
        let waits = |name: SegmentName| self.ready.iter().any(|marked| marked.file == WalFile::Segment(name));
        self.segments.iter().filter(|segment| waits(segment.name)).map(|segment| segment.bytes).sum()
    }

    /// The bytes of segments that PostgreSQL keeps to write the WAL after `lsn` into: they take no more room then.
    #[must_use]
    pub fn spare_bytes(&self, timeline: TimelineId, lsn: Lsn, size: SegmentSize) -> u64 {
        let current = SegmentName::holding(timeline, lsn, size);
        let spare = |segment: &&Written| segment.name.timeline == timeline && segment.name > current;
        self.segments.iter().filter(spare).map(|segment| segment.bytes).sum()
    }

    /// How much WAL was written up to `lsn`, and in which time: since the oldest segment was complete that was so
    /// within `window`, or since the last one, where none was. `None` where no complete segment is there.
    #[must_use]
    pub fn written(
        &self,
        timeline: TimelineId,
        lsn: Lsn,
        size: SegmentSize,
        window: Duration,
    ) -> Option<(u64, Duration)> {
        let current = SegmentName::holding(timeline, lsn, size);
        let complete = |segment: &&Written| segment.name.timeline == timeline && segment.name < current;
        let recent = self.segments.iter().filter(complete).find(|segment| segment.age <= window);
        let since = recent.or_else(|| self.segments.iter().rfind(complete))?;
        let end = since.name.start(size).ok()?.0 + size.bytes();
        Some((lsn.0.saturating_sub(end), since.age))
    }
}

/// The free bytes on the file system of `pg_wal`.
#[must_use]
pub fn free(pgdata: &Path) -> Option<u64> {
    let space = rustix::fs::statvfs(pgdata.join("pg_wal")).ok()?;
    Some(space.f_bavail.saturating_mul(space.f_frsize))
}

/// Every file of a folder by its name. One that goes in this moment is passed over.
fn each(folder: &Path, mut see: impl FnMut(&str, &Metadata)) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if let (Some(name), Ok(found)) = (entry.file_name().to_str(), entry.metadata()) {
            see(name, &found);
        }
    }
    Ok(())
}

fn age(found: &Metadata) -> Duration {
    found.modified().ok().and_then(|at| at.elapsed().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: SegmentSize = SegmentSize::DEFAULT;

    fn wal(segments: &[(u64, u64)]) -> PgWal {
        let segment = |(number, seconds): &(u64, u64)| Written {
            name: SegmentName::from_number(TimelineId::FIRST, *number, SIZE).unwrap(),
            bytes: SIZE.bytes(),
            age: Duration::from_secs(*seconds),
        };
        PgWal { segments: segments.iter().map(segment).collect(), ..PgWal::default() }
    }

    fn written(wal: &PgWal, segment: u64) -> Option<(u64, u64)> {
        let lsn = Lsn(segment * SIZE.bytes() + 100);
        wal.written(TimelineId::FIRST, lsn, SIZE, Duration::from_secs(300)).map(|(bytes, time)| (bytes, time.as_secs()))
    }

    #[test]
    fn the_rate_is_that_of_the_last_minutes_and_what_lies_ready_for_later_tells_nothing() {
        // Segment 9 was recycled: it is old, and is not written yet.
        let busy = wal(&[(3, 900), (4, 200), (5, 100), (6, 0), (9, 5000)]);
        assert_eq!(written(&busy, 6), Some((SIZE.bytes() + 100, 200)));
        assert_eq!(busy.spare_bytes(TimelineId::FIRST, Lsn(6 * SIZE.bytes()), SIZE), SIZE.bytes());
        let idle = wal(&[(3, 9000), (4, 5000), (5, 1)]);
        assert_eq!(written(&idle, 5), Some((100, 5000)));
        assert_eq!(written(&wal(&[(5, 1)]), 5), None);
    }

    #[test]
    fn marks_are_told_apart() {
        let pgdata = tempfile::tempdir().unwrap();
        let folder = pgdata.path().join("pg_wal");
        fs::create_dir_all(folder.join("archive_status")).unwrap();
        for name in ["000000010000000000000003", "000000010000000000000004", "00000002.history", "junk"] {
            fs::write(folder.join(name), "12345").unwrap();
        }
        for mark in ["000000010000000000000003.done", "000000010000000000000004.ready", "00000002.history.ready"] {
            fs::write(folder.join("archive_status").join(mark), "").unwrap();
        }
        let seen = PgWal::look(pgdata.path()).unwrap();
        let names = |marked: &[Marked]| marked.iter().map(|m| m.file.to_string()).collect::<Vec<_>>();
        assert_eq!(names(&seen.ready), ["000000010000000000000004", "00000002.history"]);
        assert_eq!(names(&seen.done), ["000000010000000000000003"]);
        assert_eq!((seen.segments.len(), seen.waiting_bytes()), (2, 5));
        assert!(seen.free.is_some());
    }
}
