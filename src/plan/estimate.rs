//! How long a restore will take: from what the last ones took, and by careful rates where none was measured.

use serde::{Deserialize, Serialize};

use crate::repository::{Measured, RestoreNote, System};

/// How many of the newest notes are looked at.
const NOTES: usize = 3;
/// Bytes of files a second that are assumed: a disk and a network of the slower kind.
const FILES: f64 = 50e6;
/// Bytes of WAL a second that are assumed: replay goes on one processor, and waits for pages.
const WAL: f64 = 40e6;
/// So many bytes tell a rate. What took less was mostly spent on beginning and ending.
const ENOUGH: u64 = 256 << 20;

/// How long a restore will take.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// Until the files are there, in seconds.
    pub files_seconds: f64,
    /// From the start of the server until the target is reached, in seconds.
    pub wal_seconds: f64,
    /// Both together.
    pub total_seconds: f64,
    /// "assumed", or where and when the rates were measured.
    pub basis: String,
}

/// Estimates for so many bytes of files and of WAL, by the notes of the repository. Where they cannot be read, rates
/// are assumed.
pub(super) async fn estimate(system: &System, files: u64, wal: u64) -> Estimate {
    let notes = system.restore_notes(NOTES).await.unwrap_or_else(|error| {
        tracing::debug!(%error, "no notes of restores");
        Vec::new()
    });
    by_notes(&notes, files, wal)
}

fn by_notes(notes: &[RestoreNote], files: u64, wal: u64) -> Estimate {
    let files_seconds = seconds(files, FILES, notes.iter().filter_map(|n| n.files));
    let wal_seconds = seconds(wal, WAL, notes.iter().filter_map(|n| n.wal));
    let measured = notes.iter().find(|n| n.files.is_some() || n.wal.is_some());
    Estimate {
        files_seconds,
        wal_seconds,
        total_seconds: files_seconds + wal_seconds,
        basis: measured.map_or_else(
            || "assumed".to_owned(),
            |note| format!("measured on {} at {}", note.host, note.done.format("%Y-%m-%d %H:%M:%S UTC")),
        ),
    }
}

/// How long that many bytes take, when others took what was measured.
fn seconds(bytes: u64, assumed: f64, measured: impl Iterator<Item = Measured>) -> f64 {
    let usable = measured.filter(|m| m.bytes > 0 && m.seconds > 0.0);
    let (count, sum) = usable.fold((0_u32, Measured::default()), |(count, sum), m| {
        (count + 1, Measured { bytes: sum.bytes + m.bytes, seconds: sum.seconds + m.seconds })
    });
    let by_rate = bytes as f64 / assumed;
    if count == 0 {
        return by_rate;
    }
    let scaled = sum.seconds * bytes as f64 / sum.bytes as f64;
    if sum.bytes >= ENOUGH { scaled } else { scaled.min(sum.seconds / f64::from(count) + by_rate) }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;

    fn note(files: Option<(u64, f64)>, wal: Option<(u64, f64)>) -> RestoreNote {
        let measured = |(bytes, seconds)| Measured { bytes, seconds };
        RestoreNote {
            format: 1,
            done: DateTime::UNIX_EPOCH,
            host: "db2".into(),
            walden: "1".into(),
            backup: "20261121T014500Z".parse().unwrap(),
            files: files.map(measured),
            wal: wal.map(measured),
            estimated_seconds: None,
        }
    }

    #[test]
    fn what_was_measured_comes_before_what_is_assumed() {
        let nothing = by_notes(&[], 100_000_000, 40_000_000);
        assert_eq!((nothing.files_seconds, nothing.wal_seconds, nothing.total_seconds), (2.0, 1.0, 3.0));
        assert_eq!(nothing.basis, "assumed");

        let notes = [note(Some((1_000_000_000, 10.0)), None), note(Some((2_000_000_000, 10.0)), Some((1 << 30, 32.0)))];
        let measured = by_notes(&notes, 6_000_000_000, 1 << 31);
        assert_eq!((measured.files_seconds, measured.wal_seconds), (40.0, 64.0));
        assert_eq!(measured.basis, "measured on db2 at 1970-01-01 00:00:00 UTC");
    }

    #[test]
    fn a_small_restore_does_not_tell_the_rate_of_a_large_one() {
        let small = [note(Some((1_000_000, 2.0)), None)];
        assert_eq!(by_notes(&small, 1_000_000, 0).files_seconds, 2.0);
        assert_eq!(by_notes(&small, 100_000_000_000, 0).files_seconds, 2002.0);
    }
}
