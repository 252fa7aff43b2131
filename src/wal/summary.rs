//! The summary of one segment: what plans and searches need to know of it without reading it. It is computed while the
//! segment is pushed, from bytes that are in memory anyway, and stored in the object's head.
//!
//! A record that straddles segments belongs to the one it starts in. That one's summary carries what it has of it
//! ([`Summary::tail`]), the next one's what is left ([`Summary::lead`]); [`Summary::join`] makes the record of both, which
//! counts only when its CRC is right. The CRC of a record whose bytes are too many is carried from piece to piece.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

mod add;
mod bounds;
mod join;
mod rest;
mod summarizer;
mod tally;

pub use self::{join::Joined, rest::Rest, summarizer::Summarizer};
use super::{Ended, Fact, RelFile, decode::Interest, record::RecordHeader};
use crate::postgres::Lsn;

/// The format of the summaries that are written. One of a later format is passed over, and the records are read.
pub const SUMMARY_FORMAT: u32 = 1;

/// A transaction that ended in a segment and changed fewer rows of a table there than these is listed in the segment's
/// head only as long as there are not many like it.
pub const FEW: u64 = 20;

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
    /// What a plan needs to know, by LSN: restore points, checkpoints, ends of recovery, ends of base backups, parameter
    /// changes, prepared transactions and their ends (whatever these remove), tablespaces, overwritten records.
    #[serde(default, skip_serializing_if = "List::is_empty")]
    pub turns: List<Told>,
    /// What a search needs to know besides, by LSN: commits and aborts that remove or drop something or have
    /// subtransactions, commits that change catalogues (which lead from the transactions that `rows` and locks name to the top ones), files made and cut
    /// off, databases made and dropped, locks, maps, names, messages, and updates and deletions of rows of shared catalogues.
    /// The files that the making of a database fills in the same segment are left out, here and in `rows`.
    #[serde(default, skip_serializing_if = "List::is_empty")]
    pub changes: List<Told>,
    /// How many rows were changed.
    #[serde(default, skip_serializing_if = "RowCounts::is_empty")]
    pub rows: RowCounts,
}

/// How many rows were changed, by file and transaction.
///
/// In the head of an object the catalogues are left out as `initdb` made them, and subtransactions are counted with their
/// top one where the segment tells which that is. Where it is cut, transactions are missing that ended in the segment after
/// fewer than [`FEW`] changes of a table, and such as there was no room for: those with the most updates and deletions were
/// kept, and of those that go on past the segment the ones that were first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowCounts {
    /// Those with the most changes first.
    pub items: Vec<RowCount>,
    /// Whether there are more than that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cut: bool,
    /// Those that are missing in `items`, in sum; not known where it is cut and this is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rest: Option<Rest>,
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

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_none_of_them(count: &u64) -> bool {
    *count == 0
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
    #[serde(default, skip_serializing_if = "is_none_of_them")]
    pub inserted: u64,
    /// Rows updated.
    #[serde(default, skip_serializing_if = "is_none_of_them")]
    pub updated: u64,
    /// Rows deleted.
    #[serde(default, skip_serializing_if = "is_none_of_them")]
    pub deleted: u64,
    /// Pages written without rows: a relation that is written anew, or an index that is built.
    #[serde(default, skip_serializing_if = "is_none_of_them")]
    pub images: u64,
    /// The transaction, as far as the segment tells, did not end in it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unended: bool,
}

/// The first bytes of a segment, which continue a record. None of it is left once that was joined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lead {
    /// How many bytes of that record are left where the segment begins (`xlp_rem_len`).
    pub left: u32,
    /// How many of those lie in this segment. Fewer when the record goes on in the next segment as well, or was given up
    /// after a crash.
    pub here: u32,
    /// The CRC-32C of those.
    pub crc: u32,
    /// Where the next record may start.
    pub end: Lsn,
    /// Where the segment ends.
    pub until: Lsn,
    /// The first of those bytes, page headers removed; in JSON base64.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "base64")]
    pub bytes: Option<Vec<u8>>,
}

/// The record at the end of a segment that is not whole there. None of it is left once it was joined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tail {
    /// Where it starts.
    pub start: Lsn,
    /// The start of the last whole record before it in this segment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prev: Option<Lsn>,
    /// How many of its bytes lie in this segment.
    pub here: u32,
    /// The CRC-32C of those behind its header of 24 bytes.
    pub crc: u32,
    /// The first of its bytes, page headers removed; in JSON base64. No more than its header when it tells nothing that
    /// plans and searches need.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "base64")]
    pub bytes: Option<Vec<u8>>,
    /// The record is whole and counts, but what it tells is not known, because these bytes are too few: the records must
    /// be read. Only joining finds this out.
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

pub(super) mod base64 {
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

impl Summary {
    /// Whether a transaction of that number ended in the segment, as far as the summary tells.
    #[must_use]
    pub fn may_end(&self, xid: u32) -> bool {
        self.xids.is_some_and(|(first, last)| xid.wrapping_sub(first) <= last.wrapping_sub(first))
    }

    /// Whether the summary, once it was joined with the next one, tells all that a plan needs; with `searching` all that a
    /// search needs too, except that [`Summary::rows`] may be cut: what is missing there is told by [`Rest`]. If not, the records must be read: those of this segment, and of the following ones for the end of the last.
    #[must_use]
    pub fn suffices(&self, searching: bool) -> bool {
        let needed = if searching { Interest::Search } else { Interest::Plan };
        let unknown = self.tail.as_ref().filter(|tail| tail.unknown);
        let cut = self.turns.cut || searching && self.changes.cut;
        !cut && unknown.is_none_or(|tail| tail.interest() < needed)
    }
}

impl Tail {
    /// What the record matters to: when its header is not whole, perhaps everything.
    fn interest(&self) -> Interest {
        let header = self.bytes.as_deref().and_then(<[u8]>::first_chunk).and_then(RecordHeader::parse);
        header.map_or(Interest::Plan, |header| Interest::of(header.rmid, header.info))
    }
}

#[cfg(test)]
mod tests;
