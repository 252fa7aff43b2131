//! A roll-up: the summaries of one log of one timeline (the middle 8 digits of the names: 4 GiB of WAL) in one document,
//! so that an archive of a million segments is surveyed with thousands of requests. Pure: what goes into one, and which
//! of it may be used where.
//!
//! A roll-up never decides anything by itself. An entry counts only while the object has the length that it had then, and
//! only on a path on which the same segments follow: elsewhere the heads are read.

use std::{
    collections::BTreeSet,
    io::{Read, Write},
};

use chrono::{DurationRound, TimeDelta};
use serde::{Deserialize, Serialize};

use super::{Stored, documents::FORMAT, names::EndedRow};
use crate::{
    error::{Error, Result},
    postgres::{SegmentName, SegmentSize, TimelineId, Version},
    seal::FrameWriter,
    wal::{Ending, Fact, Joined, List, RowCounts, Summary, Tail, Told, summary::SUMMARY_FORMAT},
};

/// zstd's level: it is written once, and read for years.
const LEVEL: i32 = 6;
/// The most bytes of JSON that make sense.
const LONGEST: u64 = 64 << 20;
/// About how many bytes of JSON all lists of a roll-up may take.
const LISTS: u64 = 3 << 20;
/// The most bytes of JSON that the lists of one segment may take.
const ENTRY: u64 = 6 << 10;
/// How many counts of rows are kept of a segment.
const ROWS: usize = 16;

/// The document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollUp {
    /// The format of the repository.
    pub format: u32,
    /// The timeline.
    pub timeline: TimelineId,
    /// The middle eight digits of the names.
    pub log: u32,
    /// The segments in their order. Some can be missing.
    pub segments: Vec<Entry>,
}

/// One segment in a roll-up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its name.
    pub name: SegmentName,
    /// The length of its object in bytes.
    pub length: u64,
    /// With how many of the entries after it the summary was joined.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub joined: u32,
    /// What it holds.
    pub summary: Summary,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl Entry {
    /// Its summary, joined with what is behind it as far as that goes: a record that goes on is one of which nothing is known.
    fn end(&self, behind: Option<Summary>, version: Version) -> Summary {
        let mut joined = self.summary.clone();
        if behind.is_some_and(|mut behind| joined.join(&mut behind, version) == Joined::Whole) {
            return joined;
        }
        let tail = self.summary.tail.clone().map(|tail| Tail { unknown: true, ..tail });
        Summary { tail, ..self.summary.clone() }
    }
}

/// What only searches need of a segment.
#[derive(Debug, Serialize, Deserialize)]
struct Details {
    #[serde(default, skip_serializing_if = "List::is_empty")]
    changes: List<Told>,
    #[serde(default, skip_serializing_if = "RowCounts::is_empty")]
    rows: RowCounts,
}

impl Details {
    /// Takes them out of a summary, which is left with lists that are cut where something was in them.
    fn take(summary: &mut Summary) -> Self {
        let (rows, changes) = (summary.rows.emptied(), List { items: Vec::new(), cut: !summary.changes.is_empty() });
        Self {
            changes: std::mem::replace(&mut summary.changes, changes),
            rows: std::mem::replace(&mut summary.rows, rows),
        }
    }
}

/// What a roll-up has of a segment.
#[derive(Clone, Debug, PartialEq)]
pub enum Served {
    /// Its summary.
    Summary(Box<Summary>),
    /// Its summary without the record that it begins with, which the segment before it on this path needs.
    WithoutLead(Box<Summary>),
    /// Nothing. With `joined` the record that it begins with is in the summary of the segment before it already.
    Nothing {
        /// Whether that is so.
        joined: bool,
    },
}

impl RollUp {
    /// Makes one of the segments of one log, in their order.
    #[must_use]
    pub fn new(
        (timeline, log): (TimelineId, u32),
        segments: Vec<(SegmentName, u64, Summary)>,
        size: SegmentSize,
        version: Version,
    ) -> Self {
        let entry = |(name, length, summary)| Entry { name, length, joined: 0, summary };
        let mut segments: Vec<Entry> = segments.into_iter().map(entry).collect();
        for at in 0..segments.len() {
            let (before, after) = segments.split_at_mut(at + 1);
            if let Some(first) = before.last_mut() {
                join(first, after, version);
            }
        }
        let room = (LISTS / size.per_log()).clamp(256, ENTRY);
        segments.iter_mut().for_each(|entry| shorten(&mut entry.summary, room as usize));
        Self { format: FORMAT, timeline, log, segments }
    }

    /// The last unbroken row of its segments, and until when it goes; `behind` is the summary of the segment after the log. None
    /// where that is not certain, where no transaction ended, and where one is left prepared: whoever passes over the row
    /// then loses nothing.
    #[must_use]
    pub fn row(&self, behind: Option<Summary>, version: Version) -> Option<EndedRow> {
        let broken = self.segments.windows(2).rposition(|pair| !follows(pair[0].name, pair[1].name));
        let row = self.segments.get(broken.map_or(0, |at| at + 1)..)?;
        let (last, others) = row.split_last()?;
        let end = last.end(behind, version);
        let (mut greatest, mut prepared) = (None, BTreeSet::new());
        for summary in others.iter().map(|entry| &entry.summary).chain([&end]) {
            let joined = summary.tail.as_ref().is_none_or(|tail| tail.unknown);
            let sound = matches!(summary.ending, Ending::Full | Ending::Switch);
            if !joined || !sound || !summary.suffices(false) {
                return None;
            }
            greatest = greatest.max(summary.times.map(|(_, greatest)| greatest));
            for told in &summary.turns.items {
                match &told.fact {
                    Fact::Prepare(transaction) => drop(prepared.insert(transaction.xid)),
                    Fact::Commit(end) | Fact::Abort(end) => drop(prepared.remove(&end.xid)),
                    _ => {}
                }
            }
        }
        let second = TimeDelta::seconds(1);
        let until = greatest.filter(|_| prepared.is_empty())? + second - TimeDelta::microseconds(1);
        Some(EndedRow {
            first: row.first()?.name.segment,
            last: last.name.segment,
            until: until.duration_trunc(second).ok()?,
        })
    }

    /// The document as it is stored: in two lines, the second of which has what only searches need.
    pub fn to_bytes(mut self) -> Result<Vec<u8>> {
        let failed = |e| Error::internal("write a roll-up").source(e);
        let details: Vec<Details> = self.segments.iter_mut().map(|entry| Details::take(&mut entry.summary)).collect();
        let mut frames = FrameWriter::new(Vec::new(), LEVEL).map_err(failed)?;
        let json = |e| Error::internal("write a roll-up as JSON").source(e);
        let mut line = serde_json::to_vec(&self).map_err(json)?;
        line.push(b'\n');
        frames.write_all(&line).map_err(failed)?;
        let mut line = serde_json::to_vec(&details).map_err(json)?;
        line.push(b'\n');
        frames.write_all(&line).map_err(failed)?;
        frames.finish().map(|(object, _, _)| object).map_err(failed)
    }

    /// Reads one, the second line only for searching. An error when it is damaged, or of a later format: then the heads
    /// are read.
    pub fn from_bytes(bytes: &[u8], searching: bool) -> Result<Self> {
        let bad = |e: std::io::Error| Error::damaged("it cannot be read").source(e);
        let mut text = Vec::new();
        zstd::Decoder::new(bytes).map_err(bad)?.take(LONGEST).read_to_end(&mut text).map_err(bad)?;
        let mut lines = text.split(|byte| *byte == b'\n');
        let (first, second) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
        let mut roll_up: Self = serde_json::from_slice(first).map_err(|e| bad(e.into()))?;
        if roll_up.format > FORMAT {
            return Err(Error::refused(format!("it has format {}", roll_up.format)));
        }
        if searching {
            let details: Vec<Details> = serde_json::from_slice(second).map_err(|e| bad(e.into()))?;
            if details.len() != roll_up.segments.len() {
                return Err(Error::damaged("its two lines are of different segments"));
            }
            for (entry, Details { changes, rows }) in roll_up.segments.iter_mut().zip(details) {
                (entry.summary.changes, entry.summary.rows) = (changes, rows);
            }
        }
        Ok(roll_up)
    }

    /// What it has for `path`: segments of its log that follow each other, with the lengths that were listed. `begins`:
    /// nothing is before them on the path. With `searching` what does not suffice for searches is not served.
    #[must_use]
    pub fn serve(mut self, path: &[(SegmentName, Stored)], begins: bool, searching: bool) -> Vec<Served> {
        let place = |(name, stored): &(SegmentName, Stored)| {
            let at = self.segments.binary_search_by_key(name, |entry| entry.name).ok()?;
            (Stored::Whole(self.segments[at].length) == *stored).then_some(at)
        };
        let places: Vec<Option<usize>> = path.iter().map(place).collect();
        let usable = |on_path: usize| {
            let at = places[on_path]?;
            let Entry { joined, summary, .. } = &self.segments[at];
            let follow = (1..=*joined as usize).all(|n| places.get(on_path + n) == Some(&Some(at + n)));
            (follow && summary.format <= SUMMARY_FORMAT && summary.suffices(searching)).then_some(at)
        };
        let used: Vec<Option<usize>> = (0..path.len()).map(usable).collect();
        let takers = self.takers();
        // What became of the record that a segment begins with: whether it was joined into one that is used here.
        let joined = |on_path: usize| {
            let at = places[on_path]?;
            let before = at - takers[at]?;
            Some(if before > on_path { begins } else { used[on_path - before] == Some(at - before) })
        };
        let joined: Vec<Option<bool>> = (0..path.len()).map(joined).collect();
        used.iter()
            .zip(joined)
            .map(|(at, joined)| match at.map(|at| Box::new(std::mem::take(&mut self.segments[at].summary))) {
                None => Served::Nothing { joined: joined == Some(true) },
                Some(summary) if joined == Some(false) => Served::WithoutLead(summary),
                Some(summary) => Served::Summary(summary),
            })
            .collect()
    }

    /// By which entry the record was taken that each one begins with.
    fn takers(&self) -> Vec<Option<usize>> {
        let mut takers = vec![None; self.segments.len()];
        for (at, entry) in self.segments.iter().enumerate() {
            for taken in takers.iter_mut().skip(at + 1).take(entry.joined as usize) {
                taken.get_or_insert(at);
            }
        }
        takers
    }
}

/// Joins an entry with those after it, or leaves all as they are where that cannot be done here.
fn join(first: &mut Entry, after: &mut [Entry], version: Version) {
    if first.summary.first.is_none() && first.summary.lead.is_some() {
        // It lies within a record that began in another log, and the next one belongs to that record as well.
        return;
    }
    let (before, mut leads) = (first.summary.clone(), Vec::new());
    let mut name = first.name;
    for entry in after.iter_mut() {
        if !follows(name, entry.name) {
            break;
        }
        name = entry.name;
        leads.push(entry.summary.lead.clone());
        match first.summary.join(&mut entry.summary, version) {
            Joined::Whole => {
                first.joined = leads.len() as u32;
                return;
            }
            Joined::GoesOn => {}
            Joined::Broken { .. } => break,
        }
    }
    first.summary = before;
    after.iter_mut().zip(leads).for_each(|(entry, lead)| entry.summary.lead = lead);
}

/// Whether the names are neighbours within one log.
fn follows(first: SegmentName, second: SegmentName) -> bool {
    SegmentName { segment: first.segment + 1, ..first } == second
}

/// Cuts the lists to so many bytes of JSON: what most readers do not need goes first.
fn shorten(summary: &mut Summary, room: usize) {
    summary.rows.truncate(ROWS);
    let fits = |summary: &Summary| {
        let lists = (&summary.turns, &summary.changes, &summary.rows);
        serde_json::to_vec(&lists).is_ok_and(|json| json.len() <= room)
    };
    if !fits(summary) {
        summary.rows.truncate(0);
    }
    if !fits(summary) {
        summary.changes = List { items: Vec::new(), cut: true };
    }
    if !fits(summary) {
        summary.turns = List { items: Vec::new(), cut: true };
    }
}
