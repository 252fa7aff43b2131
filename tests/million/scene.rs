//! What lies in the simulated archive: a system with its timelines and backups, and what is asked of it.

use std::{io::Write, sync::Arc, time::Duration};

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use walden::{
    clock::{ManualClock, Random},
    interrupt::Interrupter,
    keep::{self, ExpiryPlan, Policy},
    plan::{self, PlanRequest, Target, Watch},
    postgres::{Lsn, SegmentName, TimelineId},
    progress::Unwatched,
    repository::{self, BackupId, FORMAT, Stored, System, SystemFolder, summaries::Need},
    seal::{Blake3, blake3},
    store::{Key, Store},
    verify,
};

use super::{
    store::{Line, Simulated},
    wal::{self, SIZE, Writer, Wrong},
};

/// The number of the first segment.
pub const FIRST: u64 = 0x1000;

/// The bytes of every part.
static PART: [u8; 100_000] = [0; 100_000];

/// Segments from one backup to the next, where there are many.
const BETWEEN: u64 = 8;
/// So many backups build on each other, where there are many.
const CHAIN: usize = 30;

/// A simulated archive, and what is known of it.
pub struct Scene {
    pub store: Arc<Simulated>,
    pub system: System,
    pub lines: Vec<Line>,
    /// Its backups, oldest first.
    pub taken: Vec<Taken>,
}

/// A backup that is to be there.
#[derive(Clone, Debug)]
pub struct Taken {
    pub id: BackupId,
    /// The line on which it was taken, and the segment in which it lies.
    pub line: usize,
    pub number: u64,
    /// How many parts it needs of which folder, its own at the end.
    pub needed: Vec<(BackupId, u32)>,
}

pub fn began() -> DateTime<Utc> {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

/// `count` segments on timeline 1 with a gap in the first part, and two branches of a twentieth each.
pub async fn scene(count: u64, delay: Duration) -> Scene {
    scene_with(count, delay, &[FIRST + count - count / 20 - count / 100], None).await
}

/// The same with these backups behind two others, the newest last, and a clock that was wrong.
pub async fn scene_with(count: u64, delay: Duration, backups: &[u64], wrong: Option<Wrong>) -> Scene {
    let gap = FIRST + count / 10..FIRST + count / 10 + 3;
    let main = Line {
        writer: Writer { timeline: 1, began: began(), wrong },
        numbers: FIRST..FIRST + count,
        gaps: vec![gap.clone()],
    };
    let branch = |timeline, fork: u64| Line {
        writer: Writer { timeline, began: began() + TimeDelta::days(1000 * i64::from(timeline)), wrong: None },
        numbers: fork..fork + count / 20,
        gaps: Vec::new(),
    };
    let lines = vec![main, branch(2, FIRST + count / 3), branch(3, FIRST + count / 2 + 77)];
    let numbers = [FIRST, gap.end + 5].into_iter().chain(backups.iter().copied());
    let taken = (0..).zip(numbers).map(|(day, number)| {
        let id = BackupId::at(began() + TimeDelta::days(day));
        Taken { id, line: 0, number, needed: vec![(id, 1)] }
    });
    Scene::new(lines, taken.collect(), delay).await
}

/// So many backups a few segments apart: each needs parts of those before it, up to the last one that needs its own alone.
pub async fn many_backups(count: usize, delay: Duration) -> Scene {
    let writer = Writer { timeline: 1, began: began(), wrong: None };
    let numbers = FIRST..FIRST + count as u64 * BETWEEN;
    let mut chain: Vec<(BackupId, u32)> = Vec::new();
    let taken = (0..count).map(|at| {
        let number = numbers.start + at as u64 * BETWEEN + BETWEEN / 2;
        let id = BackupId::at(writer.time(number, 0));
        if at % CHAIN == 0 {
            chain.clear();
        }
        chain.push((id, if chain.is_empty() { 20 } else { 2 }));
        Taken { id, line: 0, number, needed: chain.clone() }
    });
    let taken = taken.collect();
    Scene::new(vec![Line { writer, numbers, gaps: Vec::new() }], taken, delay).await
}

impl Scene {
    async fn new(lines: Vec<Line>, taken: Vec<Taken>, delay: Duration) -> Self {
        let folder = SystemFolder { cluster: "main".parse().unwrap(), incarnation: "7-1".parse().unwrap() };
        let repository = json!({ "format": FORMAT, "id": "x", "made": began() });
        let mut others = vec![
            (Key::new("walden.json").unwrap(), repository.to_string().into()),
            (folder.system().unwrap(), system_json().to_string().into()),
        ];
        others.extend(taken.iter().flat_map(|taken| taken.objects(&folder, &lines[taken.line])));
        for branch in &lines[1..] {
            let timeline = TimelineId::new(branch.writer.timeline).unwrap();
            let text = format!("1\t{}\tsimulated\n", Lsn(branch.numbers.start * SIZE.bytes()));
            others.push((folder.history(timeline).unwrap(), frames(text.as_bytes()).into()));
        }
        let store = Simulated::new(lines.clone(), others, folder, delay);
        Self::open(store, lines, taken).await
    }

    async fn open(store: Arc<Simulated>, lines: Vec<Line>, taken: Vec<Taken>) -> Self {
        let system = System::open(store.clone(), &"main".parse().unwrap(), "7-1".parse().unwrap()).await.unwrap();
        let _ = store.asked();
        Self { store, system, lines, taken }
    }

    /// The same with roll-ups whose names tell no time.
    pub async fn without_times(&self) -> Self {
        Self::open(self.store.without_times(), self.lines.clone(), self.taken.clone()).await
    }

    /// The timeline that has the most segments.
    pub fn main(&self) -> &Line {
        &self.lines[0]
    }

    /// The number of the segment in which the newest backup lies.
    pub fn newest(&self) -> u64 {
        self.taken.last().unwrap().number
    }

    /// When the last segment of a line ended.
    pub fn end_of(&self, line: usize) -> DateTime<Utc> {
        let line = &self.lines[line];
        line.writer.time(line.numbers.end, 0)
    }

    /// Takes a backup in the midst of a line.
    pub async fn back_up(&self, line: usize) -> Taken {
        let of = &self.lines[line];
        let number = of.numbers.start.midpoint(of.numbers.end);
        let id = BackupId::at(of.writer.time(number, 0));
        let taken = Taken { id, line, number, needed: vec![(id, 1)] };
        for (key, bytes) in taken.objects(&self.system.folder, of) {
            self.store.put(&key, bytes).await.unwrap();
        }
        taken
    }

    pub async fn segments(&self) -> Vec<(SegmentName, Stored)> {
        self.system.segments_and_pieces(TimelineId::FIRST, None, None).await.unwrap()
    }

    /// Walks all summaries of timeline 1 on both sides of the gap: how many segments, commits and faults.
    pub async fn survey(&self, segments: Vec<(SegmentName, Stored)>) -> (u64, u64, u64) {
        let (mut count, mut commits, mut faults) = (0, 0, 0);
        let mut summaries = self.system.summaries(segments, Need::Planning);
        while let Some(segment) = summaries.next().await.unwrap() {
            count += 1;
            commits += segment.summary.commits;
            faults += u64::from(segment.fault.is_some());
        }
        (count, commits, faults)
    }

    pub async fn plan(&self, to: &str, timeline: Option<u32>) -> walden::Result<plan::Plan> {
        let request = PlanRequest {
            target: Target::parse(to, began()).unwrap(),
            backup: None,
            timeline: timeline.map(|t| TimelineId::new(t).unwrap()),
            without: Vec::new(),
            now: self.end_of(0),
        };
        plan::plan(std::slice::from_ref(&self.system), &request, &watch()).await
    }

    pub async fn verify(&self) -> verify::Report {
        verify::fast(&self.system, &watch()).await.unwrap()
    }

    /// Reads this share of all bytes, in percent.
    pub async fn verify_deep(&self, share: f64) -> verify::Report {
        let state_dir = tempfile::tempdir().unwrap();
        let request = verify::DeepRequest {
            sample: Some(share),
            not_checked_for: None,
            anew: false,
            parallel: 2,
            rate_limit: None,
            state_dir: state_dir.path().into(),
        };
        let repository = repository::open(&*self.store).await.unwrap();
        let clock = ManualClock::at(self.end_of(0));
        verify::deep(&self.system, &repository, &request, &clock, &watch()).await.unwrap()
    }

    /// What is to go by these rules at that instant.
    pub async fn plan_expiry(&self, policy: &Policy, now: DateTime<Utc>) -> ExpiryPlan {
        let store: Arc<dyn Store> = self.store.clone();
        keep::plan_expiry(&store, &self.system.folder.cluster, policy, now).await.unwrap()
    }

    /// Has it go; how many objects were deleted.
    pub async fn expire(&self, plan: &ExpiryPlan) -> u64 {
        let (clock, random) = (Arc::new(ManualClock::at(plan.planned)), Random::seeded(7));
        let done = keep::carry_out(plan, &[], clock, &random, &Interrupter::new().listen()).await.unwrap();
        let [done] = &done[..] else { panic!("{done:?}") };
        assert!(done.spared.is_empty() && done.locked == 0, "{done:?}");
        done.deleted
    }

    /// The parts that lie in the folders of backups.
    pub fn parts(&self) -> Vec<String> {
        self.store.keys().into_iter().filter(|key| key.contains("/part-")).collect()
    }
}

pub fn watch() -> Watch {
    Watch { progress: Arc::new(Unwatched), interrupt: Interrupter::new().listen() }
}

fn system_json() -> Value {
    json!({
        "format": FORMAT, "cluster": "main", "incarnation": "7-1", "postgres": wal::VERSION, "segment_size": SIZE,
        "block_size": 8192, "first_seen": began(),
    })
}

impl Taken {
    /// The parts that it needs, by their keys.
    pub fn parts(&self, folder: &SystemFolder) -> impl Iterator<Item = Key> {
        let all = self.needed.iter().flat_map(|(of, count)| (1..=*count).map(move |number| (*of, number)));
        all.map(|(of, number)| folder.part(of, number).unwrap())
    }

    /// Its document, its manifest and its own parts.
    pub fn objects(&self, folder: &SystemFolder, line: &Line) -> Vec<(Key, Bytes)> {
        let manifest = self.manifest().to_string();
        let document = self.document(line, blake3(manifest.as_bytes()));
        let mut objects = vec![
            (folder.backup_document(self.id, 1).unwrap(), document.to_string().into()),
            (folder.manifest(self.id, 1).unwrap(), frames(manifest.as_bytes()).into()),
        ];
        let own = folder.backup(self.id);
        let parts = self.parts(folder).filter(|key| key.as_str().starts_with(&own));
        objects.extend(parts.map(|key| (key, Bytes::from_static(&PART))));
        objects
    }

    /// The manifest of a backup of nothing.
    fn manifest(&self) -> Value {
        let length = PART.len();
        let part = |(of, number): (BackupId, u32)| {
            json!({
                "backup": of, "number": number, "length": length, "blake3": wal::any_hash(),
                "frames": [[length, 1_000_000]],
            })
        };
        let parts = self.needed.iter().flat_map(|(of, count)| (1..=*count).map(move |number| (*of, number))).map(part);
        json!({ "format": FORMAT, "parts": parts.collect::<Vec<_>>(), "files": [] })
    }

    fn document(&self, line: &Line, manifest: Blake3) -> Value {
        let (own, others) = self.needed.split_last().unwrap();
        let start = Lsn(self.number * SIZE.bytes() + 40);
        let segment = wal::name(line.writer.timeline, self.number);
        let parts = (1..=own.1).map(|number| json!({ "number": number, "length": PART.len() })).collect::<Vec<_>>();
        json!({
            "format": FORMAT, "id": self.id, "cluster": "main", "incarnation": "7-1", "postgres": wal::VERSION,
            "server_version_num": 170_000, "catalog_version": 202_406_281, "timeline": line.writer.timeline,
            "start_lsn": start, "checkpoint_lsn": start, "stop_lsn": Lsn(start.0 + 500_000),
            "started": line.writer.time(self.number, 0), "stopped": line.writer.time(self.number, 50),
            "first_segment": segment, "last_segment": segment, "size": 1_000_000, "files": 10, "stored": PART.len(),
            "parts": parts, "references": others.iter().map(|(of, _)| *of).collect::<Vec<_>>(),
            "manifest": 1, "manifest_blake3": manifest, "data_checksums": true,
            "required": {
                "max_connections": 100, "max_worker_processes": 8, "max_wal_senders": 10,
                "max_prepared_transactions": 0, "max_locks_per_transaction": 64,
            },
            "host": "h", "walden": "0",
        })
    }
}

/// An object without a head, which proves itself.
fn frames(content: &[u8]) -> Vec<u8> {
    let mut frames = walden::seal::FrameWriter::new(Vec::new(), 1).unwrap();
    frames.write_all(content).unwrap();
    frames.finish().unwrap().0
}
