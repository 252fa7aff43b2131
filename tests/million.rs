//! An archive of a million segments, simulated: how many requests a survey of it takes, a plan, a listing; and, in the
//! long run, how many seconds and how much memory where each request takes 20 ms.
//!
//! `cargo test --release --test million -- --ignored --nocapture` prints the figures.
#![allow(clippy::unwrap_used, reason = "helpers of a test may panic like the test")]

#[path = "million/store.rs"]
mod store;
#[path = "million/wal.rs"]
mod wal;

use std::{
    io::Write,
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::{DateTime, TimeDelta, Utc};
use proptest::prelude::*;
use serde_json::json;
use store::{Asked, Line, Simulated};
use walden::{
    interrupt::Interrupter,
    plan::{self, PlanRequest, Target, Watch, window::Depth},
    postgres::{Lsn, SegmentName, TimelineId},
    progress::Unwatched,
    repository::{FORMAT, Stored, System, SystemFolder, summaries::Need},
    seal::{Blake3, blake3},
    store::Key,
    wal::Summarizer,
};

use wal::{COMMITS, SIZE, Writer, Wrong};

/// The number of the first segment.
const FIRST: u64 = 0x1000;

/// A simulated archive, and what is known of it.
struct Scene {
    store: Arc<Simulated>,
    system: System,
    main: Line,
    /// The number of the segment in which the newest backup lies.
    newest: u64,
}

fn began() -> DateTime<Utc> {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

/// `count` segments on timeline 1 with a gap in the first part, and two branches of a twentieth each.
async fn scene(count: u64, delay: Duration) -> Scene {
    scene_with(count, delay, &[FIRST + count - count / 20 - count / 100], None).await
}

/// The same with these backups behind two others, the newest last, and a clock that was wrong.
async fn scene_with(count: u64, delay: Duration, backups: &[u64], wrong: Option<Wrong>) -> Scene {
    let folder = SystemFolder { cluster: "main".parse().unwrap(), incarnation: "7-1".parse().unwrap() };
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
    let branches = [branch(2, FIRST + count / 3), branch(3, FIRST + count / 2 + 77)];
    let mut others = vec![
        (Key::new("walden.json").unwrap(), json!({ "format": FORMAT, "id": "x", "made": began() }).to_string().into()),
        (folder.system().unwrap(), system_json().to_string().into()),
    ];
    let newest = backups.last().copied().unwrap_or(FIRST);
    for (day, number) in [FIRST, gap.end + 5].into_iter().chain(backups.iter().copied()).enumerate() {
        let id = format!("202601{:02}T000000Z", day + 1).parse().unwrap();
        let name = format!("202601{:02}T000000Z", day + 1);
        let manifest = manifest_json(&name);
        let document = backup_json(&main, number, &name, blake3(manifest.as_bytes()));
        others.push((folder.backup_document(id, 1).unwrap(), document.to_string().into()));
        others.push((folder.manifest(id, 1).unwrap(), frames(manifest.as_bytes())));
        others.push((folder.part(id, 1).unwrap(), vec![0; PART as usize]));
    }
    for branch in &branches {
        let timeline = TimelineId::new(branch.writer.timeline).unwrap();
        let text = format!("1\t{}\tsimulated\n", Lsn(branch.numbers.start * SIZE.bytes()));
        others.push((folder.history(timeline).unwrap(), frames(text.as_bytes())));
    }
    let lines = [vec![main.clone()], branches.to_vec()].concat();
    let store = Simulated::new(lines, others, folder.clone(), delay);
    let system = System::open(store.clone(), &folder.cluster, folder.incarnation).await.unwrap();
    let _ = store.asked();
    Scene { store, system, main, newest }
}

fn system_json() -> serde_json::Value {
    json!({
        "format": FORMAT, "cluster": "main", "incarnation": "7-1", "postgres": wal::VERSION, "segment_size": SIZE,
        "block_size": 8192, "first_seen": began(),
    })
}

/// The length of the only part of a backup.
const PART: u64 = 100_000;

/// The manifest of a backup of nothing.
fn manifest_json(id: &str) -> String {
    let part =
        json!({ "backup": id, "number": 1, "length": PART, "blake3": wal::any_hash(), "frames": [[PART, 1_000_000]] });
    json!({ "format": FORMAT, "parts": [part], "files": [] }).to_string()
}

/// A backup that lies in one segment.
fn backup_json(line: &Line, number: u64, id: &str, manifest: Blake3) -> serde_json::Value {
    let (start, name) = (Lsn(number * SIZE.bytes() + 40), wal::name(line.writer.timeline, number));
    json!({
        "format": FORMAT, "id": id, "cluster": "main", "incarnation": "7-1", "postgres": wal::VERSION,
        "server_version_num": 170_000, "catalog_version": 202_406_281, "timeline": line.writer.timeline,
        "start_lsn": start, "checkpoint_lsn": start, "stop_lsn": Lsn(start.0 + 500_000),
        "started": line.writer.time(number, 0), "stopped": line.writer.time(number, 50),
        "first_segment": name, "last_segment": name, "size": 1_000_000, "files": 10, "stored": 100_000,
        "parts": [{ "number": 1, "length": PART }], "manifest": 1, "manifest_blake3": manifest,
        "data_checksums": true,
        "required": {
            "max_connections": 100, "max_worker_processes": 8, "max_wal_senders": 10, "max_prepared_transactions": 0,
            "max_locks_per_transaction": 64,
        },
        "host": "h", "walden": "0",
    })
}

/// An object without a head, which proves itself.
fn frames(content: &[u8]) -> Vec<u8> {
    let mut frames = walden::seal::FrameWriter::new(Vec::new(), 1).unwrap();
    frames.write_all(content).unwrap();
    frames.finish().unwrap().0
}

impl Scene {
    /// The same with roll-ups whose names tell no time.
    async fn without_times(&self) -> Self {
        let store = self.store.without_times();
        let folder = &self.system.folder;
        let system = System::open(store.clone(), &folder.cluster, folder.incarnation).await.unwrap();
        let _ = store.asked();
        Self { store, system, main: self.main.clone(), newest: self.newest }
    }

    async fn segments(&self) -> Vec<(SegmentName, Stored)> {
        self.system.segments_and_pieces(TimelineId::FIRST, None, None).await.unwrap()
    }

    /// Walks all summaries of timeline 1 on both sides of the gap: how many segments, commits and faults.
    async fn survey(&self, segments: Vec<(SegmentName, Stored)>) -> (u64, u64, u64) {
        let (mut count, mut commits, mut faults) = (0, 0, 0);
        let mut summaries = self.system.summaries(segments, Need::Planning);
        while let Some(segment) = summaries.next().await.unwrap() {
            count += 1;
            commits += segment.summary.commits;
            faults += u64::from(segment.fault.is_some());
        }
        (count, commits, faults)
    }

    async fn plan(&self, to: &str, timeline: Option<u32>) -> walden::Result<plan::Plan> {
        let request = PlanRequest {
            target: Target::parse(to, began()).unwrap(),
            backup: None,
            timeline: timeline.map(|t| TimelineId::new(t).unwrap()),
            without: Vec::new(),
            now: self.main.writer.time(self.main.numbers.end, 0),
        };
        let watch = Watch { progress: Arc::new(Unwatched), interrupt: Interrupter::new().listen() };
        plan::plan(std::slice::from_ref(&self.system), &request, &watch).await
    }
}

/// The greatest memory that this process has held, in bytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// The processor time that this process has used, in seconds.
fn used() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let ticks: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    // utime and stime, in hundredths.
    [ticks[11], ticks[12]].iter().map(|ticks| ticks.parse::<f64>().unwrap() / 100.0).sum()
}

/// Forgets the greatest memory so far.
fn forget_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

#[test]
fn the_simulation_is_like_real_wal() {
    let writer = Writer { timeline: 1, began: began(), wrong: None };
    let layout = wal::Layout::new();
    for number in [FIRST, FIRST + 7] {
        let bytes = writer.segment(number);
        walden::wal::check_segment(wal::name(1, number), &bytes).unwrap();
        let mut summarizer = Summarizer::new(Lsn(number * SIZE.bytes()));
        summarizer.feed(&bytes);
        assert_eq!(summarizer.finish(), writer.summary(&layout, number));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_few() {
    const COUNT: u64 = 20_000;
    let scene = scene(COUNT, Duration::ZERO).await;
    let segments = scene.segments().await;
    assert_eq!(segments.len() as u64, COUNT - 3);
    let listed = scene.store.asked();
    // A page holds a thousand names; each stretch ends in the midst of one.
    assert!(listed.requests <= COUNT / 1000 + 33, "{listed:?}");

    let (count, commits, faults) = scene.survey(segments.clone()).await;
    assert_eq!((count, commits), (COUNT - 3, (COUNT - 3) * COMMITS));
    // Behind the gap the records do not go on from those before it.
    assert_eq!(faults, 1);
    let surveyed = scene.store.asked();
    let logs = COUNT / SIZE.per_log() + 1;
    // One for each roll-up and one for their list; the log that is not complete, and both sides of the gap, from heads.
    assert!(surveyed.requests <= logs + SIZE.per_log() + 8, "{surveyed:?}");

    // A fast verification needs hardly more than the drawing of all timelines.
    let watch = Watch { progress: Arc::new(Unwatched), interrupt: Interrupter::new().listen() };
    plan::window::timelines(&scene.system, Depth::Records, &watch).await.unwrap();
    let drawn = scene.store.asked();
    let report = walden::verify::fast(&scene.system, &watch).await.unwrap();
    let verified = scene.store.asked();
    assert!(verified.requests <= drawn.requests + 32, "{verified:?} {drawn:?}");
    assert_eq!(
        (report.looked.segments, report.looked.backups, report.looked.parts),
        (COUNT - 3 + 2 * (COUNT / 20), 3, 3)
    );
    // The three segments that are missing, and where the way behind them begins.
    let found: Vec<_> = report.damage.iter().map(|found| (found.wrong, found.objects)).collect();
    assert_eq!(found, [(walden::verify::Wrong::Missing, 3)], "{:?}", report.damage);

    let last = scene.system.last_commit(&segments[..9_000]).await.unwrap().unwrap();
    let number = segments[8_999].0.number(SIZE).unwrap();
    assert_eq!(last, scene.main.writer.ended(scene.store.layout(), number, COMMITS - 1));
    let found = scene.store.asked();
    assert!(found.requests <= 2, "{found:?}");

    // The stop is before the first commit that is later.
    let number = scene.main.numbers.end - 300;
    let wanted = scene.main.writer.time(number, 117) + TimeDelta::microseconds(1);
    let plan = scene.plan(&wanted.format("%Y-%m-%dT%H:%M:%S%.6fZ").to_string(), Some(1)).await.unwrap();
    let stop = plan.stop.unwrap();
    assert_eq!((stop.lsn, stop.inclusive), (scene.main.writer.ended(scene.store.layout(), number, 118).lsn, false));
    assert_eq!(plan.first_segment.number(SIZE).unwrap(), scene.newest);
    let planned = scene.store.asked();
    // The heads of the log that is not complete, and roll-ups of those from the newest backup on.
    let logs = (scene.main.numbers.end - scene.newest) / SIZE.per_log() + 1;
    assert!(planned.requests <= listed.requests + SIZE.per_log() + logs + 20, "{planned:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 0, ..ProptestConfig::with_cases(4) })]

    /// Where the clock went back as well: a plan that passes over logs by the names of their roll-ups is the plan that
    /// comes of all summaries.
    #[test]
    fn what_is_passed_over_by_its_name_changes_no_plan(
        mut backups in prop::collection::vec(400..2_500_u64, 1..6),
        wrong in prop::option::weighted(0.9, (any::<prop::sample::Index>(), 1..400_u64, 1..400_u64, 0..1_500_i64)),
        anywhere in prop::collection::vec(0..2_560_u64, 2),
        behind_a_backup in prop::collection::vec((any::<prop::sample::Index>(), 0..300_u64), 6),
        (commit, micros) in (0..COMMITS, -2..3_i64),
    ) {
        backups.sort_unstable();
        let backups: Vec<u64> = backups.into_iter().map(|number| FIRST + number).collect();
        // Around a backup, so that from there on the log tells another story than from earlier ones on.
        let wrong = wrong.map(|(backup, before, behind, by)| {
            let backup = *backup.get(&backups);
            Wrong { from: backup - before, to: backup + behind, by: TimeDelta::seconds(by) }
        });
        let near = behind_a_backup.iter().map(|(backup, behind)| backup.get(&backups) + behind);
        let wanted: Vec<u64> = anywhere.iter().map(|number| FIRST + number).chain(near).collect();
        tokio::runtime::Runtime::new().unwrap().block_on(async {
            let scene = scene_with(2_560, Duration::ZERO, &backups, wrong).await;
            let all = scene.without_times().await;
            for number in wanted {
                let time = scene.main.writer.time(number, commit) + TimeDelta::microseconds(micros);
                let wanted = time.format("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
                let (plan, same) = (scene.plan(&wanted, Some(1)).await, all.plan(&wanted, Some(1)).await);
                let told = |plan: walden::Result<plan::Plan>| plan.map_err(|e| format!("{e} {:?}", e.hint_text()));
                assert_eq!(told(plan), told(same), "{wanted}");
            }
            let (few, many) = (scene.store.asked(), all.store.asked());
            // Where nothing was committed behind what was passed over, the search begins again at the oldest backup.
            assert!(few.requests <= 2 * many.requests, "{few:?} {many:?}");
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "it takes a minute, and its figures are for people"]
async fn a_million_segments() {
    const COUNT: u64 = 1_000_000;
    let begun = Instant::now();
    let scene = scene(COUNT, Duration::from_millis(20)).await;
    let mut before = 0.0;
    let mut told = |what: &str, begun: Instant, asked: Asked| {
        let Asked { requests, bytes, parallel } = asked;
        println!(
            "{what}: {:.2} s ({:.2} s of processor), {requests} requests ({parallel} at a time at most), {} MB of answers, peak {} MB",
            begun.elapsed().as_secs_f64(),
            used() - before,
            bytes >> 20,
            peak() >> 20
        );
        before = used();
    };
    println!("{} logs have a roll-up", scene.store.roll_ups());
    told("make it", begun, scene.store.asked());
    forget_peak();

    let begun = Instant::now();
    let segments = scene.segments().await;
    assert_eq!(segments.len() as u64, COUNT - 3);
    told("list all segments", begun, scene.store.asked());

    let begun = Instant::now();
    let (count, ..) = scene.survey(segments).await;
    assert_eq!(count, COUNT - 3);
    told("summaries of all segments", begun, scene.store.asked());
    assert!(peak() < 256 << 20, "{} MB", peak() >> 20);

    let number = scene.newest + 10_000;
    let wanted = scene.main.writer.time(number, 117) + TimeDelta::microseconds(1);
    let begun = Instant::now();
    let wanted = wanted.format("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
    let plan = scene.plan(&wanted, Some(1)).await.unwrap();
    assert_eq!(plan.stop.unwrap().lsn, scene.main.writer.ended(scene.store.layout(), number, 118).lsn);
    assert_eq!(plan.segments, 10_001);
    told("plan by time, 10 000 segments after the newest backup", begun, scene.store.asked());

    let begun = Instant::now();
    let plan = scene.plan("latest", Some(1)).await.unwrap();
    assert_eq!(plan.last_segment.number(SIZE).unwrap(), scene.main.numbers.end - 1);
    told("plan for latest", begun, scene.store.asked());

    // On the branches that time lies before the first commit: a person has to choose.
    let begun = Instant::now();
    scene.plan(&wanted, None).await.unwrap_err();
    told("the same time on all three timelines", begun, scene.store.asked());

    for depth in [Depth::Ends, Depth::Records] {
        let watch = Watch { progress: Arc::new(Unwatched), interrupt: Interrupter::new().listen() };
        let begun = Instant::now();
        let timelines = plan::window::timelines(&scene.system, depth, &watch).await.unwrap();
        assert_eq!(timelines.timelines[0].segments, COUNT - 3);
        assert_eq!(timelines.timelines[0].windows.len(), 2);
        told(&format!("timeline of everything, {depth:?}"), begun, scene.store.asked());
    }
    let watch = Watch { progress: Arc::new(Unwatched), interrupt: Interrupter::new().listen() };
    let begun = Instant::now();
    let report = walden::verify::fast(&scene.system, &watch).await.unwrap();
    assert_eq!(report.damage.len(), 1, "{:?}", report.damage);
    told("fast verification", begun, scene.store.asked());
    assert!(peak() < 256 << 20, "{} MB", peak() >> 20);
}
