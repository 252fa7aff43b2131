//! How much would be lost if the server's machine were gone now, and how long it can go on as it does: what waits in
//! `pg_wal`, what WAL is not durable in the repository yet, when the disk is full. Pure: what was seen comes in.
//!
//! What cannot be known is absent, with the reason beside it; it is never 0.

use std::{collections::BTreeMap, time::Duration};

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::status::Seen;
use crate::{
    plan::window::{Row, Timelines},
    postgres::{Lsn, SegmentName, SegmentSize, TimelineId, WalFile, pg_wal::PgWal},
};

/// The rate of WAL is that of this time, where segments were complete in it.
const WINDOW: Duration = Duration::from_secs(300);

/// How far the repository is behind the server.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Lag {
    /// How many segments wait in `pg_wal`: PostgreSQL has not been told that they are archived.
    pub waiting_segments: Option<u64>,
    /// Their bytes.
    pub waiting_bytes: Option<u64>,
    /// How long ago the oldest of them was complete, in seconds; 0 when none waits.
    pub oldest_waiting_seconds: Option<u64>,
    /// The end of the WAL that the server has written.
    pub server_lsn: Option<Lsn>,
    /// The end of the WAL that is durable in the repository without a gap.
    pub durable_lsn: Option<Lsn>,
    /// The bytes between the two: what a loss of the server's machine would lose.
    pub not_durable_bytes: Option<u64>,
    /// How long ago the first of these bytes was written at most, in seconds; 0 when there are none.
    pub not_durable_seconds: Option<f64>,
    /// The WAL that is written, in bytes a second.
    pub wal_bytes_per_second: Option<f64>,
    /// In the last how many seconds.
    pub wal_rate_seconds: Option<f64>,
    /// The bytes that are free on the file system of `pg_wal`.
    pub pg_wal_free_bytes: Option<u64>,
    /// The bytes of segments that PostgreSQL has at hand to write into: they take no more room.
    pub pg_wal_spare_bytes: Option<u64>,
    /// After how many seconds the file system is full at that rate, if nothing can be removed from `pg_wal`.
    pub pg_wal_full_seconds: Option<f64>,
    /// Why what is absent cannot be known, by its name.
    pub unknown: BTreeMap<&'static str, String>,
}

/// What the server and its files tell together.
const FILLING: [&str; 4] = ["wal_bytes_per_second", "wal_rate_seconds", "pg_wal_spare_bytes", "pg_wal_full_seconds"];

/// What the figures are made of.
struct Place<'a> {
    timeline: TimelineId,
    size: SegmentSize,
    /// The end of what the server has written.
    lsn: Lsn,
    wal: Option<&'a PgWal>,
}

impl Lag {
    /// Figures from what was seen. `system` is the one that the server writes, where the repository knows it.
    pub(super) fn of(seen: &Seen<'_>, system: Option<&Timelines>) -> Self {
        let mut lag = Self::default();
        match &seen.wal {
            Ok(wal) => lag.waits(wal),
            Err(not) => lag.not_known(
                &["waiting_segments", "waiting_bytes", "oldest_waiting_seconds", "pg_wal_free_bytes"],
                &not.why,
            ),
        }
        let wal = seen.wal.as_ref().ok();
        let server = match &seen.server {
            Ok(server) => server,
            Err(not) => {
                lag.not_known(&["server_lsn", "not_durable_bytes", "not_durable_seconds"], &not.why);
                lag.not_known(&FILLING, &not.why);
                let timeline = system.and_then(|system| Some((system, system.live()?.timeline)));
                match timeline.and_then(|(system, timeline)| durable(system, timeline, wal)) {
                    Some((lsn, _)) => lag.durable_lsn = Some(lsn),
                    None => lag.not_known(&["durable_lsn"], &not_archived(seen)),
                }
                return lag;
            }
        };
        lag.server_lsn = Some(server.lsn);
        let place = Place { timeline: server.timeline, size: server.segment_size, lsn: server.lsn, wal };
        match system.and_then(|system| durable(system, server.timeline, wal)) {
            Some((durable, row)) => lag.not_durable(&place, durable, row, seen.now),
            None => {
                lag.not_known(&["durable_lsn", "not_durable_bytes", "not_durable_seconds"], &not_archived(seen));
            }
        }
        match &seen.wal {
            Ok(wal) => lag.fills(&place, wal),
            Err(not) => lag.not_known(&FILLING, &not.why),
        }
        lag
    }

    fn not_known(&mut self, names: &[&'static str], why: &str) {
        self.unknown.extend(names.iter().map(|name| (*name, why.to_owned())));
    }

    fn waits(&mut self, wal: &PgWal) {
        let segments = || wal.ready.iter().filter(|marked| matches!(marked.file, WalFile::Segment(_)));
        self.waiting_segments = Some(segments().count() as u64);
        self.waiting_bytes = Some(wal.waiting_bytes());
        self.oldest_waiting_seconds = Some(segments().map(|marked| marked.age.as_secs()).max().unwrap_or(0));
        self.pg_wal_free_bytes = wal.free;
        if wal.free.is_none() {
            self.not_known(&["pg_wal_free_bytes"], "the file system of pg_wal does not tell");
        }
    }

    fn not_durable(&mut self, place: &Place<'_>, durable: Lsn, row: &Row, now: DateTime<Utc>) {
        self.durable_lsn = Some(durable);
        let bytes = place.lsn.since(durable);
        self.not_durable_bytes = Some(bytes);
        // The last durable segment was written to until what follows began; one in pieces is written to still.
        let last = SegmentName::holding(place.timeline, Lsn(durable.0.saturating_sub(1)), place.size);
        let file = place.wal.and_then(|wal| wal.segments.iter().find(|segment| segment.name == last));
        let file = file.filter(|_| !ends_in(row, last));
        self.not_durable_seconds = match (bytes, file, row.to.time) {
            (0, ..) => Some(0.0),
            (_, Some(file), _) => Some(file.age.as_secs_f64()),
            (_, None, Some(time)) => Some((now - time).to_std().unwrap_or_default().as_secs_f64()),
            (_, None, None) => None,
        };
        if self.not_durable_seconds.is_none() {
            let why = format!("neither the file {last} nor a time in the archive tells when that was");
            self.not_known(&["not_durable_seconds"], &why);
        }
    }

    fn fills(&mut self, place: &Place<'_>, wal: &PgWal) {
        let spare = wal.spare_bytes(place.timeline, place.lsn, place.size);
        self.pg_wal_spare_bytes = Some(spare);
        let Some((bytes, time)) = wal.written(place.timeline, place.lsn, place.size, WINDOW) else {
            let why = "no complete segment lies in pg_wal to measure from";
            return self.not_known(&["wal_bytes_per_second", "wal_rate_seconds", "pg_wal_full_seconds"], why);
        };
        let seconds = time.as_secs_f64().max(0.001);
        #[expect(clippy::cast_precision_loss, reason = "a rate, and a time to the second")]
        let (rate, room) = (bytes as f64 / seconds, wal.free.map(|free| (free + spare) as f64));
        (self.wal_bytes_per_second, self.wal_rate_seconds) = (Some(rate), Some(seconds));
        match room {
            Some(room) if rate > 0.0 => self.pg_wal_full_seconds = Some(room / rate),
            Some(_) => self.not_known(&["pg_wal_full_seconds"], "no WAL is being written: it does not fill up"),
            None => self.not_known(&["pg_wal_full_seconds"], "how much is free cannot be told"),
        }
    }
}

/// Why nothing is known of what is durable.
fn not_archived(seen: &Seen<'_>) -> String {
    match &seen.unreachable {
        Some(why) => format!("the repository could not be read: {why}"),
        None => "nothing of the timeline that the server writes is in the repository".into(),
    }
}

/// The end of what is durable without a gap on the way to a timeline, and the row of segments that ends there. A
/// segment that still waits in `pg_wal` is no gap, though later ones may have been stored before it.
fn durable<'a>(system: &'a Timelines, timeline: TimelineId, wal: Option<&PgWal>) -> Option<(Lsn, &'a Row)> {
    let size = system.system.segment_size;
    let (row, end) = last_row(system, timeline)?;
    let end = Lsn(end);
    let waiting = wal.into_iter().flat_map(|wal| &wal.ready).filter_map(|marked| match marked.file {
        WalFile::Segment(name) if name.timeline == timeline && !is_stored(system, name) && !ends_in(row, name) => {
            name.start(size).ok()
        }
        _ => None,
    });
    let durable = waiting.min().map_or(end, |first| first.min(end));
    let own = system.get(timeline).map_or(&[][..], |t| &t.rows);
    let holds = own.iter().rfind(|row| row.from.lsn < durable);
    Some((durable, holds.unwrap_or(row)))
}

/// Whether a row ends in pieces of that segment.
fn ends_in(row: &Row, name: SegmentName) -> bool {
    row.in_pieces && row.last == name
}

/// The last row on the way to a timeline, and where what of it is on that way ends.
fn last_row(system: &Timelines, timeline: TimelineId) -> Option<(&Row, u64)> {
    let size = system.system.segment_size;
    let timeline = system.get(timeline)?;
    let end = |row: &Row| match row.in_pieces {
        // As far as its last whole record: what is behind that in the pieces is of no use alone.
        true => Some(row.to.lsn.0),
        false => Some((row.last.number(size).ok()? + 1) * size.bytes()),
    };
    match (timeline.rows.last(), &timeline.fork) {
        (Some(row), _) => Some((row, end(row)?)),
        (None, Some(fork)) => {
            let parent = system.get(fork.parent)?;
            let row = parent.rows.iter().rfind(|row| row.from.lsn < fork.lsn)?;
            Some((row, end(row)?.min(fork.lsn.0)))
        }
        (None, None) => None,
    }
}

/// Whether the repository has a segment, whole.
pub(super) fn is_stored(system: &Timelines, name: SegmentName) -> bool {
    let holds = |row: &Row| (row.first..=row.last).contains(&name) && !ends_in(row, name);
    system.get(name.timeline).is_some_and(|t| t.rows.iter().any(holds))
}

/// Segments that PostgreSQL holds for archived and that are in none of these systems, which are all of the same
/// identifier: whoever answered "archived" has not stored them here.
///
/// What was complete before the repository knew the system does not count, nor what is not on the way to the timeline
/// that the server writes.
pub(super) fn not_arrived(seen: &Seen<'_>, systems: &[&Timelines]) -> Vec<SegmentName> {
    let Some(first_seen) = systems.iter().map(|system| system.system.first_seen).min() else { return Vec::new() };
    let server = seen.server.as_ref().ok().filter(|server| !server.in_recovery);
    let (Some(server), Some(newest)) = (server, systems.last()) else { return Vec::new() };
    let told = server.archiver.last_archived;
    let done = seen.wal.iter().flat_map(|wal| &wal.done);
    let done = done.map(|marked| (marked.file, seen.now - marked.age));
    let mut missing: Vec<SegmentName> = told
        .into_iter()
        .chain(done)
        .filter(|(_, at)| *at >= first_seen)
        .filter_map(|(file, _)| if let WalFile::Segment(name) = file { Some(name) } else { None })
        .filter(|name| is_on_the_way(newest, server.timeline, *name))
        .filter(|name| !systems.iter().any(|system| is_stored(system, *name)))
        .filter(|name| !was_let_go(seen, systems, *name))
        .collect();
    missing.sort_unstable();
    missing.dedup();
    missing
}

/// Whether a person let that segment go.
fn was_let_go(seen: &Seen<'_>, systems: &[&Timelines], name: SegmentName) -> bool {
    let here = seen.suspended.iter().flat_map(|here| here.current.iter().chain(&here.not_noted));
    here.into_iter().any(|(_, skipped)| skipped.contains(&name))
        || systems.iter().flat_map(|system| &system.suspensions).any(|note| note.holds(name))
}

fn is_on_the_way(system: &Timelines, to: TimelineId, name: SegmentName) -> bool {
    let (size, left) = (system.system.segment_size, system.get(to).and_then(|to| system.left(to, name.timeline)));
    match left {
        Some(Some((lsn, _))) => name.number(size).is_ok_and(|number| number < size.number_of(lsn)),
        Some(None) => true,
        None => name.timeline == to,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        postgres::pg_wal::{Marked, Written},
        report::{
            status::testing::{seen, server},
            trees::{self, at},
        },
    };

    const SIZE: SegmentSize = SegmentSize::DEFAULT;

    fn name(number: u64) -> SegmentName {
        SegmentName::from_number(TimelineId::FIRST, number, SIZE).unwrap()
    }

    fn marked(number: u64, seconds: u64) -> Marked {
        Marked { file: WalFile::Segment(name(number)), age: Duration::from_secs(seconds) }
    }

    fn written(number: u64, seconds: u64) -> Written {
        Written { name: name(number), bytes: SIZE.bytes(), age: Duration::from_secs(seconds) }
    }

    /// The archive has segments 1 to 40.
    fn lag(wal: PgWal, lsn: Lsn) -> Lag {
        let systems = trees::single();
        let mut seen = seen(&systems);
        seen.wal = Ok(wal);
        seen.server = Ok(crate::report::status::ServerSeen { lsn, ..server() });
        Lag::of(&seen, systems.last())
    }

    #[test]
    fn what_waits_and_what_is_not_durable_have_their_figures() {
        let mb = 1 << 20;
        let wal = PgWal {
            segments: vec![written(40, 80), written(41, 60), written(42, 20), written(43, 0), written(50, 9000)],
            ready: vec![marked(41, 60), marked(42, 20)],
            done: Vec::new(),
            free: Some(544 * mb),
        };
        let lag = lag(wal, Lsn(43 * SIZE.bytes()));
        assert_eq!(
            (lag.waiting_segments, lag.waiting_bytes, lag.oldest_waiting_seconds),
            (Some(2), Some(32 * mb), Some(60))
        );
        assert_eq!((lag.durable_lsn, lag.not_durable_bytes), (Some(Lsn(41 * SIZE.bytes())), Some(32 * mb)));
        assert_eq!(lag.not_durable_seconds, Some(80.0));
        // 32 MB in 80 s, and room for 560.
        assert_eq!((lag.wal_bytes_per_second, lag.wal_rate_seconds), (Some(0.4 * mb as f64), Some(80.0)));
        assert_eq!((lag.pg_wal_spare_bytes, lag.pg_wal_full_seconds), (Some(16 * mb), Some(1400.0)));
        assert!(lag.unknown.is_empty(), "{lag:?}");
    }

    #[test]
    fn what_was_shipped_behind_one_that_waits_is_not_durable_yet() {
        let wal = PgWal { ready: vec![marked(41, 60)], ..PgWal::default() };
        let mut systems = trees::single();
        let row = systems[0].timelines[0].rows[0].clone();
        systems[0].timelines[0].rows.push(Row {
            first: name(42),
            last: name(43),
            from: crate::plan::window::Instant { lsn: Lsn(42 * SIZE.bytes()), time: None },
            ..row
        });
        let durable =
            |wal: &PgWal| durable(&systems[0], TimelineId::FIRST, Some(wal)).map(|(lsn, row)| (lsn, row.last));
        assert_eq!(durable(&wal), Some((Lsn(41 * SIZE.bytes()), name(40))));
        // It is nowhere any more: a gap, behind which the archive goes on.
        assert_eq!(durable(&PgWal::default()), Some((Lsn(44 * SIZE.bytes()), name(43))));
    }

    #[test]
    fn pieces_of_the_last_segment_count_as_far_as_they_go() {
        let mut systems = trees::single();
        let row = systems[0].timelines[0].rows.last_mut().unwrap();
        (row.last, row.in_pieces, row.to.lsn) = (name(41), true, Lsn(41 * SIZE.bytes() + 500));
        let waits = PgWal { ready: vec![marked(41, 1)], segments: vec![written(41, 0)], ..PgWal::default() };
        let mut seen = seen(&systems);
        seen.wal = Ok(waits);
        seen.server = Ok(crate::report::status::ServerSeen { lsn: Lsn(41 * SIZE.bytes() + 700), ..server() });
        let lag = Lag::of(&seen, systems.last());
        assert_eq!((lag.durable_lsn, lag.not_durable_bytes), (Some(Lsn(41 * SIZE.bytes() + 500)), Some(200)));
        assert_eq!(lag.not_durable_seconds, Some(420.0), "by the last commit in them: the file is written to still");
    }

    #[test]
    fn what_cannot_be_known_is_absent_with_its_reason_and_never_nothing() {
        let systems = trees::single();
        let nobody = Lag::of(&seen(&systems), systems.last());
        assert_eq!(nobody.durable_lsn, Some(Lsn(41 * SIZE.bytes())));
        assert_eq!((nobody.waiting_segments, nobody.not_durable_bytes, nobody.not_durable_seconds), (None, None, None));
        assert!(nobody.unknown["not_durable_bytes"].contains("no connection"), "{nobody:?}");
        let mut alone = seen(&[]);
        alone.server = Ok(server());
        alone.unreachable = Some("no answer".into());
        let alone = Lag::of(&alone, None);
        assert!(alone.server_lsn.is_some() && alone.not_durable_bytes.is_none());
        assert!(alone.unknown["durable_lsn"].contains("no answer"), "{alone:?}");
        let idle =
            lag(PgWal { segments: vec![written(40, 500)], free: Some(1), ..PgWal::default() }, Lsn(41 * SIZE.bytes()));
        assert_eq!((idle.not_durable_bytes, idle.not_durable_seconds), (Some(0), Some(0.0)));
        assert!(idle.pg_wal_full_seconds.is_none() && idle.unknown.contains_key("pg_wal_full_seconds"));
    }

    #[test]
    fn a_segment_that_is_held_for_archived_must_be_here() {
        let systems = trees::single();
        let missing = |seen: &Seen<'_>| not_arrived(seen, &systems.iter().collect::<Vec<_>>());
        let mut seen = seen(&systems);
        seen.server = Ok(server());
        seen.wal = Ok(PgWal { done: vec![marked(39, 90), marked(41, 60)], ..PgWal::default() });
        assert_eq!(missing(&seen), [name(41)]);
        // From a time before the repository knew the system.
        seen.wal = Ok(PgWal { done: vec![marked(41, 90 * 86400)], ..PgWal::default() });
        assert!(missing(&seen).is_empty());
        let mut told = server();
        told.archiver.last_archived = Some((WalFile::Segment(name(44)), at("21 10:00")));
        seen.server = Ok(told.clone());
        assert_eq!(missing(&seen), [name(44)]);
        told.in_recovery = true;
        seen.server = Ok(told);
        assert!(missing(&seen).is_empty(), "a standby holds for archived what it received");
    }
}
