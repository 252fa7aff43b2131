//! The summary of one segment: what plans and searches need to know of it without reading it. It is computed while the
//! segment is pushed, from bytes that are in memory anyway, and stored in the object's head.
//!
//! A record that straddles two segments belongs to the one it starts in. That one's summary carries the bytes it has of
//! it ([`Summary::tail`]), the next one's those that are left ([`Summary::lead`]); [`Summary::join`] makes the record of
//! both, which counts only when its CRC is right.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{Ended, Fact, Reader, Record, RelFile};
use crate::postgres::{Lsn, Version};

/// The format of the summaries that are written. One of a later format is passed over, and the records are read.
pub const SUMMARY_FORMAT: u32 = 1;

/// What one segment holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// [`SUMMARY_FORMAT`] of the Walden that wrote it.
    pub format: u32,
    /// How many records start in the segment and are whole (a joined one counts).
    pub records: u64,
    /// The start of the first record that starts in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first: Option<Lsn>,
    /// The start of the record before that one (`xl_prev`): it links the segment to those before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prev: Option<Lsn>,
    /// The start of the last record that starts in it, whole or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<Lsn>,
    /// The end of the last whole record; the segment's end after a switch.
    pub end: Lsn,
    /// What its first bytes continue: a record that started in an earlier segment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lead: Option<Lead>,
    /// The record at its end that goes on in the next segment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tail: Option<Tail>,
    /// How its records end.
    pub ending: Ending,
    /// Commits, prepared ones included.
    pub commits: u64,
    /// Aborts, prepared ones included.
    pub aborts: u64,
    /// The least and the greatest time of commits and aborts. In between they need not rise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<(DateTime<Utc>, DateTime<Utc>)>,
    /// The transactions that ended, their subtransactions included: from the first to the second on the circle of 2^32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub xids: Option<(u32, u32)>,
    /// The first commit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_commit: Option<Ended>,
    /// The last commit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_commit: Option<Ended>,
    /// What a plan needs to know: restore points, checkpoints, ends of recovery, parameter changes, prepared
    /// transactions and their ends, tablespaces, overwritten records.
    #[serde(default, skip_serializing_if = "List::is_empty")]
    pub turns: List<Told>,
    /// What a search needs to know besides: commits and aborts that remove or drop something or have subtransactions,
    /// files made and cut off, databases made and dropped, locks, maps, messages, and changes of rows of shared
    /// catalogues.
    #[serde(default, skip_serializing_if = "List::is_empty")]
    pub changes: List<Told>,
    /// How many rows were changed, by file and transaction; those with the most changes first.
    #[serde(default, skip_serializing_if = "List::is_empty")]
    pub rows: List<RowCount>,
}

/// A list, or the part of it that there was room for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct List<T> {
    /// What is in it.
    pub items: Vec<T>,
    /// Whether more than that would belong into it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cut: bool,
}

impl<T> Default for List<T> {
    fn default() -> Self {
        Self { items: Vec::new(), cut: false }
    }
}

impl<T> List<T> {
    /// Whether nothing belongs into it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty() && !self.cut
    }
}

/// A fact, and where it is recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// Where its record starts.
    pub lsn: Lsn,
    /// The first byte after the record.
    pub end: Lsn,
    /// The transaction that wrote it; 0 when none did.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub xid: u32,
    /// What it says.
    pub fact: Fact,
}

fn is_zero(xid: &u32) -> bool {
    *xid == 0
}

/// How many rows one transaction changed in one table, within one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowCount {
    /// The table's file.
    pub file: RelFile,
    /// The transaction, or subtransaction, that the records name.
    pub xid: u32,
    /// Where the first of the records starts.
    pub lsn: Lsn,
    /// Rows inserted.
    #[serde(default)]
    pub inserted: u64,
    /// Rows updated.
    #[serde(default)]
    pub updated: u64,
    /// Rows deleted.
    #[serde(default)]
    pub deleted: u64,
    /// Pages written without rows, in a file that this transaction made: a table that is written anew.
    #[serde(default)]
    pub images: u64,
}

/// The first bytes of a segment, which continue a record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lead {
    /// How many bytes of that record are left where the segment begins (`xlp_rem_len`).
    pub left: u32,
    /// Those of them that lie in this segment, page headers removed; in JSON base64. None when they are too many, or
    /// were joined.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "base64")]
    pub bytes: Option<Vec<u8>>,
}

/// The record at the end of a segment that is not whole there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tail {
    /// Where it starts.
    pub start: Lsn,
    /// Its bytes in this segment, page headers removed; in JSON base64. None when they are too many, or tell nothing
    /// that plans and searches need, or were joined.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "base64")]
    pub bytes: Option<Vec<u8>>,
    /// Whether the record may tell something, and its bytes are not here: then the records must be read.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unknown: bool,
}

/// How the records of a segment end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ending {
    /// At its last byte, or in a record that goes on.
    #[default]
    Full,
    /// At a switch: the rest is empty.
    Switch,
    /// At zeros: nothing was written further (a partial segment).
    Zeros,
    /// At bytes that are no sound record.
    Broken {
        /// Where.
        at: Lsn,
        /// What is wrong with them.
        why: String,
    },
}

mod base64 {
    //! Bytes in JSON.

    use base64::{Engine, engine::general_purpose::STANDARD};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    #[expect(clippy::ref_option, reason = "serde calls it so")]
    pub fn serialize<S: Serializer>(bytes: &Option<Vec<u8>>, to: S) -> Result<S::Ok, S::Error> {
        match bytes {
            Some(bytes) => to.serialize_some(&STANDARD.encode(bytes)),
            None => to.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<u8>>, D::Error> {
        let text = Option::<String>::deserialize(from)?;
        text.map(|text| STANDARD.decode(text).map_err(D::Error::custom)).transpose()
    }
}

/// Computes the summary of one segment from its bytes.
#[derive(Debug)]
pub struct Summarizer {
    reader: Reader,
    summary: Summary,
    bounded: bool,
}

impl Summarizer {
    /// For the segment that begins at `start`. Its lists are cut so that the summary fits into the head of an object.
    #[must_use]
    pub fn new(start: Lsn) -> Self {
        let summary = Summary { format: SUMMARY_FORMAT, end: start, ..Summary::default() };
        Self { reader: Reader::new(start), summary, bounded: true }
    }

    /// The same with whole lists, whatever their length.
    #[must_use]
    pub fn whole(start: Lsn) -> Self {
        Self { bounded: false, ..Self::new(start) }
    }

    /// Takes the next bytes of the segment.
    pub fn feed(&mut self, bytes: &[u8]) {
        for record in self.reader.read(bytes) {
            self.summary.add(&record);
        }
    }

    /// The summary, when all bytes were fed.
    #[must_use]
    pub fn finish(self) -> Summary {
        let _ = self.bounded;
        self.summary
    }
}

impl Summary {
    fn add(&mut self, record: &Record) {
        self.records += 1;
        self.first.get_or_insert(record.start);
        self.prev.get_or_insert(record.prev);
        self.last = Some(record.start);
        self.end = record.end;
    }

    /// Makes the record that straddles this segment and `next`, the one after it on the path, and adds what it tells to
    /// this summary. `version` is that of the segments.
    pub fn join(&mut self, next: &mut Self, version: Version) {
        let _ = (next, version);
    }

    /// Whether a transaction of that number ended in the segment, as far as the summary tells.
    #[must_use]
    pub fn may_end(&self, xid: u32) -> bool {
        self.xids.is_some_and(|(first, last)| xid.wrapping_sub(first) <= last.wrapping_sub(first))
    }
}
