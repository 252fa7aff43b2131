//! Notes of suspended archiving: which WAL is missing because a person let it go, who, and why. They explain what is
//! missing; that it is, the listing tells, and nothing's safety rests on a note.

use std::{collections::BTreeSet, fmt, path::Path};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{System, document, documents, notes};
use crate::{
    error::{Error, Kind, Result},
    human,
    postgres::{Lsn, SegmentName, SegmentSize},
    store::Put,
};

/// The folder below `notes/`.
const GAPS: &str = "gaps";

/// That archiving was suspended, by whom and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suspended {
    /// A random name of this suspension: its later notes have the same.
    pub id: String,
    /// Why, in the words of whoever did it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The user of the operating system who did it.
    pub who: String,
    /// The host.
    pub host: String,
    /// When it began.
    pub suspended: DateTime<Utc>,
    /// When it ended; none while it lasts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resumed: Option<DateTime<Utc>>,
}

impl Suspended {
    /// What is told of a file that PostgreSQL was told is archived.
    #[must_use]
    pub fn of_file(&self, path: &Path) -> String {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        format!("{name} is NOT archived, though PostgreSQL is told so: {self}; end it with: walden wal resume")
    }
}

impl fmt::Display for Suspended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Whoever may write in the repository may have written this.
        let plain = |text: &str| text.chars().filter(|c| !c.is_control()).take(200).collect::<String>();
        let from = human::time(self.suspended);
        match self.resumed {
            Some(resumed) => write!(f, "archiving was suspended from {from} to {}", human::time(resumed))?,
            None => write!(f, "archiving is suspended since {from}")?,
        }
        write!(f, " by {}", plain(&self.who))?;
        match &self.reason {
            Some(reason) => write!(f, ": {}", plain(reason)),
            None => f.write_str(", without a reason given"),
        }
    }
}

/// An unbroken row of segments that were not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingRow {
    /// The first.
    pub first: SegmentName,
    /// The last.
    pub last: SegmentName,
}

/// A note of suspended archiving.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GapNote {
    /// The format of the repository.
    pub format: u32,
    /// When, who and why.
    #[serde(flatten)]
    pub suspended: Suspended,
    /// The start of the first missing segment; while it lasts, where the archive ended when it began, if that was known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Lsn>,
    /// The end of the last missing segment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Lsn>,
    /// What PostgreSQL was told is archived, and is not in the repository. Known when it has ended.
    #[serde(default)]
    pub missing: Vec<MissingRow>,
}

impl GapNote {
    /// Whether that segment is missing because of it.
    #[must_use]
    pub fn holds(&self, name: SegmentName) -> bool {
        self.missing.iter().any(|row| (row.first..=row.last).contains(&name))
    }

    /// Whether one of these segments, all of one timeline, is missing because of it.
    #[must_use]
    pub fn touches(&self, first: SegmentName, last: SegmentName) -> bool {
        let meets = |row: &MissingRow| row.first <= last && first <= row.last;
        self.missing.iter().any(|row| row.first.timeline == first.timeline && meets(row))
    }

    /// Whether WAL is missing, or will be.
    #[must_use]
    pub fn is_gap(&self) -> bool {
        self.suspended.resumed.is_none() || !self.missing.is_empty()
    }
}

/// Unbroken rows of segments.
#[must_use]
pub fn rows(segments: &BTreeSet<SegmentName>, size: SegmentSize) -> Vec<MissingRow> {
    let mut rows: Vec<MissingRow> = Vec::new();
    for &name in segments {
        match rows.last_mut().filter(|row| row.last.next(size).is_ok_and(|next| next == name)) {
            Some(row) => row.last = name,
            None => rows.push(MissingRow { first: name, last: name }),
        }
    }
    rows
}

impl System {
    /// The newest note of each suspension, the oldest suspension first. One that cannot be read is left out.
    pub async fn gap_notes(&self) -> Result<Vec<GapNote>> {
        let folder = self.folder.notes(GAPS);
        let mut found: Vec<GapNote> = Vec::new();
        for number in self.note_numbers(&folder).await? {
            match document::<GapNote>(&*self.store, &notes::key(&folder, number)?).await {
                Ok(note) => {
                    found.retain(|known| known.suspended.id != note.suspended.id);
                    found.push(note);
                }
                Err(error) if matches!(error.kind(), Kind::Unavailable | Kind::Denied) => return Err(error),
                Err(error) => tracing::debug!(%error, "a note of a gap is left out"),
            }
        }
        found.sort_by_key(|note| note.suspended.suspended);
        Ok(found)
    }

    /// Adds a note, unless the newest of that suspension says the same.
    pub async fn add_gap_note(&self, note: &GapNote) -> Result<()> {
        if self.gap_notes().await?.contains(note) {
            return Ok(());
        }
        let folder = self.folder.notes(GAPS);
        for _ in 0..4 {
            let next = self.note_numbers(&folder).await?.last().map_or(1, |last| last + 1);
            let key = notes::key(&folder, next)?;
            if self.store.put(&key, documents::to_bytes(&key, note)?.into()).await? == Put::Created {
                return Ok(());
            }
        }
        Err(Error::unavailable(format!("the notes in {folder} change faster than one can be added")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> BTreeSet<SegmentName> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    #[test]
    fn segments_are_told_in_rows_and_found_again() {
        let all = names(&["000000010000000000000003", "000000010000000000000004", "000000010000000100000000"]);
        let suspended = Suspended {
            id: "a".into(),
            reason: Some("disk\u{1b}[31m full".into()),
            who: "root".into(),
            host: "db1".into(),
            suspended: "2026-11-21T10:00:00Z".parse().unwrap(),
            resumed: None,
        };
        let note = GapNote { format: 1, suspended, from: None, to: None, missing: rows(&all, SegmentSize::DEFAULT) };
        assert_eq!(note.missing.len(), 2);
        assert!(all.iter().all(|name| note.holds(*name)) && !note.holds("000000010000000000000005".parse().unwrap()));
        let touches = |a: &str, b: &str| note.touches(a.parse().unwrap(), b.parse().unwrap());
        assert!(touches("000000010000000000000001", "000000010000000000000003"));
        assert!(!touches("000000020000000000000001", "000000020000000000000009"));
        assert_eq!(
            note.suspended.to_string(),
            "archiving is suspended since 2026-11-21 10:00:00 UTC by root: disk[31m full"
        );
        let text = serde_json::to_string(&note).unwrap();
        assert_eq!(serde_json::from_str::<GapNote>(&text).unwrap(), note);
    }
}
