//! The oracle: where PostgreSQL's own stop rule ends recovery for a target, from what `pg_waldump` says of the log.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, NaiveDateTime, TimeDelta, Utc};
use walden::postgres::Lsn;
use walden_testkit::{postgres::Cluster, protected::Protected};

/// A commit or abort, as pg_waldump tells it.
#[derive(Clone, Debug)]
pub struct Ended {
    pub lsn: Lsn,
    pub xid: u32,
    pub time: DateTime<Utc>,
    pub committed: bool,
}

/// A backup that recovery can begin with.
#[derive(Clone, Debug)]
pub struct Backup {
    pub id: String,
    pub start: Lsn,
    pub stop: Lsn,
}

/// What happened, and what it put into the table.
pub struct Ledger {
    /// In the order of the log.
    pub ended: Vec<Ended>,
    /// Starts of all records.
    records: BTreeSet<Lsn>,
    /// Restore points by name.
    names: BTreeMap<String, Lsn>,
    /// Rows by the transaction that inserted them.
    rows: BTreeMap<u32, Vec<String>>,
    /// Subtransactions and their top transactions.
    subs: BTreeMap<u32, u32>,
    /// Oldest first.
    pub backups: Vec<Backup>,
}

/// Where recovery stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stop {
    pub lsn: Lsn,
    pub inclusive: bool,
}

impl Stop {
    fn after(lsn: Lsn) -> Self {
        Self { lsn, inclusive: true }
    }

    fn before(lsn: Lsn) -> Self {
        Self { lsn, inclusive: false }
    }

    /// What begins here or later is not there.
    pub fn limit(self) -> Lsn {
        Lsn(self.lsn.0 + u64::from(self.inclusive))
    }
}

/// What is right for a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// All there is.
    All,
    /// This place.
    At(Stop),
    /// It cannot be reached.
    No,
    /// It cannot be reached for sure, because no transaction at or before that time is in the log after the backup; but if
    /// it is, then at this place.
    Perhaps(Stop),
    /// The clock went back, so that replay from different backups, with these ids, would stop at different places.
    Several(Vec<(String, Stop)>),
}

impl Ledger {
    /// What pg_waldump says of the whole archive; `told` are the rows with their transactions and subtransactions.
    pub fn read(p: &Protected, told: Vec<(u32, u32, String)>) -> Self {
        let listed: serde_json::Value = serde_json::from_str(p.walden(["list", "--json"]).ok()).unwrap();
        let lsn = |value: &serde_json::Value| value.as_str().unwrap().parse().unwrap();
        let backups: Vec<_> = listed["systems"][0]["backups"]
            .as_array()
            .unwrap()
            .iter()
            .map(|b| Backup {
                id: b["id"].as_str().unwrap().to_owned(),
                start: lsn(&b["start_lsn"]),
                stop: lsn(&b["stop_lsn"]),
            })
            .collect();
        let (ended, records, names) = witness(&p.cluster, &backups[0].start.to_string());
        let mut ledger = Self { ended, records, names, rows: BTreeMap::new(), subs: BTreeMap::new(), backups };
        for (top, sub, row) in told {
            ledger.rows.entry(top).or_default().push(row);
            if sub != top {
                ledger.subs.insert(sub, top);
            }
        }
        ledger
    }

    fn earliest(&self) -> Lsn {
        self.backups[0].stop
    }

    /// What can be reached: places after the first backup was consistent.
    fn at(&self, stop: Stop) -> Answer {
        if stop.lsn >= self.earliest() { Answer::At(stop) } else { Answer::No }
    }

    /// The first record that starts there or later.
    fn record(&self, from: Lsn) -> Option<Lsn> {
        self.records.range(from..).next().copied()
    }

    /// Where replay from that backup stops for a time, and whether that means the time: it does when the backup was
    /// consistent by then and a transaction has ended before.
    fn reading(&self, backup: &Backup, past: impl Fn(DateTime<Utc>) -> bool) -> Option<(Stop, bool)> {
        let mut replayed = self.ended.iter().filter(|e| e.lsn >= backup.start);
        let first = replayed.clone().next()?;
        let end = replayed.find(|e| past(e.time))?;
        (end.lsn >= backup.stop).then(|| (Stop::before(end.lsn), first.lsn < end.lsn))
    }

    /// The first in the order of the log decides; with a clock that went back it matters where replay begins.
    fn time(&self, past: impl Fn(DateTime<Utc>) -> bool) -> Answer {
        let readings: Vec<_> = self.backups.iter().filter_map(|b| Some((b, self.reading(b, &past)?))).collect();
        let sure: Vec<_> = readings.iter().filter(|(_, (_, sure))| *sure).map(|(b, (stop, _))| (b, *stop)).collect();
        let places: BTreeSet<Stop> = sure.iter().map(|(_, stop)| *stop).collect();
        let earliest = self.reading(&self.backups[0], &past);
        match (places.first(), earliest) {
            _ if places.len() > 1 => Answer::Several(sure.into_iter().map(|(b, stop)| (b.id.clone(), stop)).collect()),
            (Some(_), Some((stop, true))) => Answer::At(stop),
            (Some(stop), _) => Answer::Perhaps(*stop),
            (None, Some((stop, _))) => Answer::Perhaps(stop),
            (None, None) => readings.first().map_or(Answer::No, |(_, (stop, _))| Answer::Perhaps(*stop)),
        }
    }

    /// A random target of any kind.
    pub fn draw(&self, rng: &mut fastrand::Rng) -> (String, Answer) {
        let kind = rng.u32(0..12);
        if (1..4).contains(&kind) {
            return self.draw_time(rng);
        }
        let after: Vec<&Ended> = self.ended.iter().filter(|e| e.lsn >= self.earliest()).collect();
        let one = after[rng.usize(..after.len())];
        let wanted = Lsn(one.lsn.0 + rng.u64(0..3) * 8);
        match kind {
            0 => ("latest".into(), Answer::All),
            4 | 5 => (wanted.to_string(), self.record(wanted).map_or(Answer::No, |at| Answer::At(Stop::after(at)))),
            6 => {
                (format!("before:{wanted}"), self.record(wanted).map_or(Answer::No, |at| Answer::At(Stop::before(at))))
            }
            7 => (format!("xid:{}", one.xid), Answer::At(Stop::after(one.lsn))),
            8 => (format!("before:xid:{}", one.xid), Answer::At(Stop::before(one.lsn))),
            9 => {
                let (sub, top) = self.subs.iter().nth(rng.usize(..self.subs.len())).unwrap();
                let end = self.ended.iter().find(|e| e.xid == *top).unwrap_or_else(|| panic!("{top} did not end"));
                (format!("xid:{sub}"), self.at(Stop::after(end.lsn)))
            }
            kind => {
                let (name, lsn) = self.names.iter().nth(rng.usize(..self.names.len())).unwrap();
                if kind == 10 {
                    (format!("name:{name}"), self.at(Stop::after(*lsn)))
                } else {
                    (format!("before:name:{name}"), self.at(Stop::before(*lsn)))
                }
            }
        }
    }

    /// A random time, close to a commit.
    pub fn draw_time(&self, rng: &mut fastrand::Rng) -> (String, Answer) {
        let one = &self.ended[rng.usize(..self.ended.len())];
        let text = |time: DateTime<Utc>| time.format("%Y-%m-%d %H:%M:%S%.6f UTC").to_string();
        if rng.u32(0..3) == 0 {
            return (format!("before:{}", text(one.time)), self.time(|time| time >= one.time));
        }
        let wanted = one.time + TimeDelta::microseconds(rng.i64(-300..300));
        (text(wanted), self.time(|time| time > wanted))
    }

    /// The rows that are there.
    pub fn rows(&self, limit: Lsn) -> Vec<String> {
        let there = self.ended.iter().filter(|e| e.committed && e.lsn < limit);
        let mut rows: Vec<String> = there.flat_map(|e| self.rows.get(&e.xid).cloned().unwrap_or_default()).collect();
        rows.sort();
        rows
    }
}

/// What pg_waldump says of all WAL from there on.
fn witness(cluster: &Cluster, start: &str) -> (Vec<Ended>, BTreeSet<Lsn>, BTreeMap<String, Lsn>) {
    let pg_wal = cluster.pgdata().join("pg_wal");
    let mut waldump = cluster.pg("pg_waldump");
    waldump.args(["-p", pg_wal.to_str().unwrap(), "-t", "1", "-s", start]).env("TZ", "UTC");
    // It ends with an error where the log ends.
    let said = walden_testkit::run::run(&mut waldump).stdout;
    let (mut ended, mut records, mut names) = (Vec::new(), BTreeSet::new(), BTreeMap::new());
    for line in said.lines() {
        let field = |from: &str, to: &str| line.split_once(from)?.1.split_once(to).map(|(value, _)| value.trim());
        let Some(lsn) = field("lsn: ", ",").and_then(|lsn| lsn.parse::<Lsn>().ok()) else { continue };
        let desc = line.split_once("desc: ").map_or("", |(_, desc)| desc);
        records.insert(lsn);
        if let Some(name) = desc.strip_prefix("RESTORE_POINT ") {
            names.entry(name.split(';').next().unwrap_or(name).trim().to_owned()).or_insert(lsn);
        }
        let (kind, rest) = desc.split_once(' ').unwrap_or((desc, ""));
        let committed = match kind {
            "COMMIT" | "COMMIT_PREPARED" => true,
            "ABORT" | "ABORT_PREPARED" => false,
            _ => continue,
        };
        let mut xid = field("tx: ", ",").and_then(|xid| xid.parse().ok()).unwrap_or(0);
        let mut time = rest;
        if kind.ends_with("PREPARED") {
            let (prepared, after) = rest.split_once(": ").unwrap_or_else(|| panic!("{line}"));
            xid = prepared.trim().parse().unwrap_or_else(|_| panic!("{line}"));
            time = after;
        }
        let time = time.split(" UTC").next().unwrap_or_default();
        let time =
            NaiveDateTime::parse_from_str(time, "%Y-%m-%d %H:%M:%S%.f").unwrap_or_else(|e| panic!("{line}: {e}"));
        ended.push(Ended { lsn, xid, time: time.and_utc(), committed });
    }
    assert!(ended.len() > 200 && !names.is_empty(), "pg_waldump says too little:\n{said}");
    (ended, records, names)
}
