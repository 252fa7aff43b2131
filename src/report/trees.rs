//! Trees of timelines for tests of drawings.
#![expect(missing_docs, reason = "the names of these tell all there is")]

use chrono::{DateTime, Utc};

use crate::{
    plan::window::{BackupMark, Broken, Fork, Gap, Instant, Row, Timeline, Timelines, Window, WindowEnd},
    postgres::{Lsn, SegmentName, SegmentSize, TimelineId, Version},
    repository::SystemDocument,
};

/// `21 09:58` is that time on the 21st of November 2026.
pub fn at(text: &str) -> DateTime<Utc> {
    let text = text.replace(' ', "T");
    let seconds = if text.len() > 8 { "" } else { ":00" };
    format!("2026-11-{text}{seconds}Z").parse().unwrap()
}

fn lsn(segment: u64, offset: u64) -> Lsn {
    Lsn(segment * SegmentSize::DEFAULT.bytes() + offset)
}

fn name(timeline: u32, number: u64) -> SegmentName {
    SegmentName::from_number(TimelineId::new(timeline).unwrap(), number, SegmentSize::DEFAULT).unwrap()
}

fn instant(lsn: Lsn, time: &str) -> Instant {
    Instant { lsn, time: Some(at(time)) }
}

pub fn system(number: u64, first_seen: &str, postgres: u32, timelines: Vec<Timeline>) -> Timelines {
    let system = SystemDocument {
        format: 1,
        cluster: "main".parse().unwrap(),
        incarnation: format!("{number}-1").parse().unwrap(),
        postgres: Version(postgres),
        segment_size: SegmentSize::DEFAULT,
        block_size: 8192,
        first_seen: at(first_seen),
    };
    Timelines { system, timelines, unreadable: Vec::new(), suspensions: Vec::new(), unread: None }
}

pub fn timeline(number: u32) -> Timeline {
    Timeline {
        timeline: TimelineId::new(number).unwrap(),
        live: false,
        fork: None,
        lost_history: None,
        segments: 0,
        stored: 0,
        rows: Vec::new(),
        gaps: Vec::new(),
        windows: Vec::new(),
        backups: Vec::new(),
    }
}

impl Timeline {
    pub fn live(mut self) -> Self {
        self.live = true;
        self
    }

    pub fn row(mut self, first: u64, from: &str, last: u64, to: &str) -> Self {
        let number = self.timeline.get();
        self.segments += last - first + 1;
        self.rows.push(Row {
            first: name(number, first),
            last: name(number, last),
            segments: last - first + 1,
            in_pieces: false,
            from: instant(lsn(first, 0), from),
            to: instant(lsn(last + 1, 0), to),
        });
        self
    }

    pub fn gap(mut self, first: u64, from: &str, last: u64, to: &str) -> Self {
        let number = self.timeline.get();
        self.gaps.push(Gap {
            first: name(number, first),
            last: name(number, last),
            segments: last - first + 1,
            from: instant(lsn(first, 0), from),
            to: instant(lsn(last + 1, 0), to),
            suspended: None,
        });
        self
    }

    pub fn forked(mut self, parent: u32, segment: u64, left: &str, promoted: &str) -> Self {
        self.fork = Some(Fork {
            parent: TimelineId::new(parent).unwrap(),
            lsn: lsn(segment, 0x28),
            reason: "after LSN 0/5000000".into(),
            left: Some(at(left)),
            promoted: Some(at(promoted)),
        });
        self
    }

    pub fn backup(mut self, segment: u64, stopped: &str, label: Option<&str>) -> Self {
        let stopped = at(stopped);
        self.backups.push(BackupMark {
            id: stopped.format("%Y%m%dT%H%M%SZ").to_string().parse().unwrap(),
            label: label.map(str::to_owned),
            timeline: self.timeline,
            from_standby: false,
            start_lsn: lsn(segment, 0x28),
            stop_lsn: lsn(segment, 0x100),
            started: stopped,
            stopped,
            size: 3 << 30,
            stored: 1 << 30,
            bad_pages: 0,
            broken: None,
            from: Instant { lsn: lsn(segment, 0x100), time: Some(stopped) },
            recoverable_to: None,
            until: None,
        });
        self
    }

    pub fn broken(mut self) -> Self {
        let number = self.timeline.get();
        if let Some(backup) = self.backups.last_mut() {
            let missing = vec![name(number, SegmentSize::DEFAULT.number_of(backup.start_lsn))];
            let why = format!("segment {}, which it needs itself, is missing", missing[0]);
            backup.broken = Some(Broken { why, missing });
        }
        self
    }

    pub fn window(mut self, first: u64, from: &str, last: u64, to: &str, end: WindowEnd) -> Self {
        let number = self.timeline.get();
        self.windows.push(Window {
            from: instant(lsn(first, 0x100), from),
            to: instant(lsn(last + 1, 0), to),
            last_xid: Some(777),
            backups: Vec::new(),
            first_segment: name(1, first),
            last_segment: name(number, last),
            segments: last - first + 1,
            unread: false,
            from_pieces: 0,
            end,
        });
        self
    }
}

pub fn single() -> Vec<Timelines> {
    let one = timeline(1)
        .live()
        .row(1, "20 22:10", 40, "21 09:58")
        .backup(3, "20 23:00:07", Some("nightly"))
        .backup(30, "21 05:00", None)
        .window(3, "20 23:00:07", 40, "21 09:58", WindowEnd::Archive);
    vec![system(7_412_345_678_901_234_567, "20 22:00", 17, vec![one])]
}

pub fn branch() -> Vec<Timelines> {
    let one = timeline(1).row(1, "20 22:10", 20, "21 04:10").backup(3, "20 23:00:07", None).window(
        3,
        "20 23:00:07",
        20,
        "21 04:10",
        WindowEnd::Archive,
    );
    let two = timeline(2)
        .live()
        .forked(1, 15, "21 03:00", "21 04:40")
        .row(15, "21 02:50", 40, "21 09:58")
        .backup(17, "21 05:00", Some("after the mishap"))
        .window(3, "20 23:00:07", 40, "21 09:58", WindowEnd::Archive);
    vec![system(7_412_345_678_901_234_567, "20 22:00", 17, vec![one, two])]
}

pub fn branches() -> Vec<Timelines> {
    let mut all = branch();
    let timelines = &mut all[0].timelines;
    timelines[1].live = false;
    timelines.push(
        timeline(3)
            .forked(2, 22, "21 06:30", "21 10:10")
            .row(22, "21 06:30", 50, "21 11:40")
            .window(3, "20 23:00:07", 50, "21 11:40", WindowEnd::Archive)
            .live(),
    );
    timelines.push(timeline(4).forked(1, 8, "21 01:00", "21 05:30").row(8, "21 01:00", 12, "21 07:00").window(
        3,
        "20 23:00:07",
        12,
        "21 07:00",
        WindowEnd::Archive,
    ));
    all
}

pub fn gap() -> Vec<Timelines> {
    let one = timeline(1)
        .live()
        .row(1, "20 22:10", 14, "21 01:30")
        .gap(15, "21 01:30", 17, "21 02:40")
        .row(18, "21 02:40", 40, "21 09:58")
        .backup(3, "20 23:00:07", None)
        .backup(22, "21 05:00", None)
        .window(3, "20 23:00:07", 14, "21 01:30", WindowEnd::Missing { segment: name(1, 15), suspended: None })
        .window(22, "21 05:00", 40, "21 09:58", WindowEnd::Archive);
    vec![system(7_412_345_678_901_234_567, "20 22:00", 17, vec![one])]
}

pub fn unusable() -> Vec<Timelines> {
    let one = timeline(1)
        .live()
        .row(1, "20 22:10", 2, "20 22:50")
        .gap(3, "20 22:50", 3, "20 23:10")
        .row(4, "20 23:10", 9, "21 02:00")
        .backup(3, "20 23:00:07", Some("<b>\u{1b}[31m\"&'</b>"))
        .broken();
    vec![system(7_412_345_678_901_234_567, "20 22:00", 17, vec![one])]
}

pub fn empty() -> Vec<Timelines> {
    vec![system(7_412_345_678_901_234_567, "20 22:00", 17, Vec::new())]
}

pub fn upgraded() -> Vec<Timelines> {
    let mut all = single();
    let one = timeline(1)
        .live()
        .row(1, "21 10:30", 5, "21 14:00")
        .backup(2, "21 10:45", Some("after pg_upgrade"))
        .window(2, "21 10:45", 5, "21 14:00", WindowEnd::Archive);
    all.push(system(7_498_765_432_109_876_543, "21 10:20", 18, vec![one]));
    all
}
