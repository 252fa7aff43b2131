//! An archive of a million segments, simulated: how many requests a survey of it takes, a plan, a listing; and, in the
//! long run, how many seconds and how much memory where each request takes 20 ms. The same of verification, and of an
//! expiry that lets go of nearly all of it.
//!
//! `cargo test --release --test million -- --ignored --nocapture` prints the figures.
#![allow(clippy::unwrap_used, reason = "helpers of a test may panic like the test")]

#[path = "million/scene.rs"]
mod scene;
#[path = "million/store.rs"]
mod store;
#[path = "million/wal.rs"]
mod wal;

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use chrono::TimeDelta;
use proptest::prelude::*;
use scene::{FIRST, Scene, many_backups, scene, scene_with, watch};
use store::Asked;
use walden::{
    keep::{Policy, plan::SystemPlan, ranges::Ranges},
    plan::{self, window::Depth},
    postgres::Lsn,
    wal::Summarizer,
};

use wal::{COMMITS, SIZE, Writer, Wrong};

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
    let writer = Writer { timeline: 1, began: scene::began(), wrong: None };
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
    plan::window::timelines(&scene.system, Depth::Records, &watch()).await.unwrap();
    let drawn = scene.store.asked();
    let report = scene.verify().await;
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
    assert_eq!(last, scene.main().writer.ended(scene.store.layout(), number, COMMITS - 1));
    let found = scene.store.asked();
    assert!(found.requests <= 2, "{found:?}");

    // The stop is before the first commit that is later.
    let number = scene.main().numbers.end - 300;
    let wanted = scene.main().writer.time(number, 117) + TimeDelta::microseconds(1);
    let plan = scene.plan(&wanted.format("%Y-%m-%dT%H:%M:%S%.6fZ").to_string(), Some(1)).await.unwrap();
    let stop = plan.stop.unwrap();
    assert_eq!((stop.lsn, stop.inclusive), (scene.main().writer.ended(scene.store.layout(), number, 118).lsn, false));
    assert_eq!(plan.first_segment.number(SIZE).unwrap(), scene.newest());
    let planned = scene.store.asked();
    // The heads of the log that is not complete, and roll-ups of those from the newest backup on.
    let logs = (scene.main().numbers.end - scene.newest()) / SIZE.per_log() + 1;
    assert!(planned.requests <= listed.requests + SIZE.per_log() + logs + 20, "{planned:?}");

    let report = scene.verify_deep(0.01).await;
    let deep = report.deep.unwrap();
    assert!((1..10).contains(&deep.objects) && deep.of_objects > COUNT, "{deep:?}");
    let looked = scene.store.asked();
    assert!(looked.requests <= verified.requests + logs_of(&scene) + 2 * deep.objects + 40, "{looked:?} {verified:?}");

    let_nearly_everything_go(&scene, |_, _, _| {}).await;
}

/// How many logs there are to list.
fn logs_of(scene: &Scene) -> u64 {
    scene.lines.iter().map(|line| (line.numbers.end - line.numbers.start) / SIZE.per_log() + 2).sum()
}

/// Expires all but two backups, and the WAL since one of them. `told` what each step took.
async fn let_nearly_everything_go(scene: &Scene, mut told: impl FnMut(&str, Instant, Asked)) {
    // The youngest timeline goes on from a backup of its own. The others have ended.
    let base = scene.back_up(2).await;
    let newest = scene.taken.last().unwrap();
    let policy = Policy { last: 2, window: Some(Duration::from_secs(100)), ..Policy::default() };
    let now = scene.end_of(2);
    let _ = scene.store.asked();

    let begun = Instant::now();
    let plan = scene.plan_expiry(&policy, now).await;
    let planned = scene.store.asked();
    told("dry run of an expiry", begun, planned);
    assert!(!plan.has_doubts(), "{:?}", plan.systems[0].doubts);
    assert!(planned.requests <= logs_of(scene) + scene.store.roll_ups() as u64 / 1000 + 60, "{planned:?}");

    let begun = Instant::now();
    let deleted = scene.expire(&plan).await;
    let expired = scene.store.asked();
    told(&format!("expiry of {deleted} objects"), begun, expired);
    assert_eq!(deleted, plan.systems.iter().map(SystemPlan::objects).sum::<u64>());
    assert!(expired.requests <= deleted / 1000 + 60, "{expired:?}");

    let since = Ranges::of(base.number, scene.lines[2].numbers.end);
    let left = [0, 1, 2].map(|line| scene.store.there(line));
    assert_eq!(left, [Ranges::of(newest.number, newest.number + 1), Ranges::default(), since]);
    let of_backups = scene.store.keys().into_iter().filter(|key| key.contains("/backups/")).collect::<BTreeSet<_>>();
    let kept = [newest, &base].map(|taken| taken.objects(&scene.system.folder, &scene.lines[taken.line]));
    assert_eq!(of_backups, kept.iter().flatten().map(|(key, _)| key.to_string()).collect());

    let _ = scene.store.asked();
    let begun = Instant::now();
    let again = scene.plan_expiry(&policy, now).await;
    told("a second expiry", begun, scene.store.asked());
    assert!(again.systems.iter().all(SystemPlan::is_empty), "{again:?}");

    let plan = scene.plan("latest", Some(3)).await.unwrap();
    assert_eq!(plan.first_segment.number(SIZE).unwrap(), base.number);
    assert_eq!(plan.last_segment.number(SIZE).unwrap(), scene.lines[2].numbers.end - 1);
    let report = scene.verify().await;
    assert!(report.damage.is_empty(), "{:?}", report.damage);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_backups_are_looked_at_side_by_side() {
    survey_many_backups(&many_backups(300, Duration::ZERO).await, |_, _, _| {}).await;
}

/// Lists many backups that share parts, verifies them, and expires all but the thirtieth part of them.
async fn survey_many_backups(scene: &Scene, mut told: impl FnMut(&str, Instant, Asked)) {
    let count = scene.taken.len();
    let each = count as u64;
    let begun = Instant::now();
    let timelines = plan::window::timelines(&scene.system, Depth::Ends, &watch()).await.unwrap();
    assert_eq!(timelines.backups().len(), count);
    let listed = scene.store.asked();
    told("list", begun, listed);
    // The folder of each and its document, and a few for the timeline.
    assert!(listed.requests <= 2 * each + each / 100 + 60 && listed.parallel >= 16, "{listed:?}");

    let begun = Instant::now();
    let report = scene.verify().await;
    assert!(report.damage.is_empty(), "{:?}", report.damage);
    assert_eq!(report.looked.parts, scene.parts().len() as u64);
    let verified = scene.store.asked();
    told("fast verification", begun, verified);
    // Folders and documents once more, because an expiry may have come between, and each manifest.
    let logs = logs_of(scene) + SIZE.per_log();
    assert!(verified.requests <= listed.requests + 4 * each + logs, "{verified:?} {listed:?}");

    let (gone, kept) = scene.taken.split_at(count - count / 30);
    let policy = Policy { last: kept.len() as u32, ..Policy::default() };
    let now = scene.end_of(0);
    let begun = Instant::now();
    let plan = scene.plan_expiry(&policy, now).await;
    let planned = scene.store.asked();
    told("dry run of an expiry", begun, planned);
    assert!(planned.requests <= 2 * each + kept.len() as u64 + logs + 60, "{planned:?}");

    let begun = Instant::now();
    let deleted = scene.expire(&plan).await;
    let expired = scene.store.asked();
    told(&format!("expiry of {deleted} objects"), begun, expired);
    // Whether a compaction has put another document of it meanwhile.
    assert!(expired.requests <= gone.len() as u64 + deleted / 1000 + 60, "{expired:?}");
    assert!(expired.parallel >= 16, "{expired:?}");

    let mut segments = Ranges::from_on(scene.newest()).and(&scene.lines[0].there());
    kept.iter().for_each(|taken| segments.add(taken.number, taken.number + 1));
    assert_eq!(scene.store.there(0), segments);
    let needed = kept.iter().flat_map(|taken| taken.parts(&scene.system.folder)).map(|key| key.to_string());
    assert_eq!(scene.parts().into_iter().collect::<BTreeSet<_>>(), needed.collect());
    let found = scene.system.backups().await.unwrap();
    assert!(found.iter().map(|backup| backup.id).eq(kept.iter().map(|taken| taken.id)));
    let again = scene.plan_expiry(&policy, now).await;
    assert!(again.systems.iter().all(SystemPlan::is_empty), "{again:?}");
    let report = scene.verify().await;
    assert!(report.damage.is_empty(), "{:?}", report.damage);
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
                let time = scene.main().writer.time(number, commit) + TimeDelta::microseconds(micros);
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

/// Says what a step took since the one before, whose peak of memory must be bounded.
#[expect(clippy::print_stdout, reason = "the figures are for people")]
fn teller() -> impl FnMut(&str, Instant, Asked) {
    let mut before = used();
    move |what, begun, Asked { requests, bytes, parallel }| {
        println!(
            "{what}: {:.2} s ({:.2} s of processor), {requests} requests ({parallel} at a time at most), {} MB of answers, peak {} MB",
            begun.elapsed().as_secs_f64(),
            used() - before,
            bytes >> 20,
            peak() >> 20
        );
        before = used();
        assert!(peak() < 256 << 20, "{} MB for: {what}", peak() >> 20);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "it takes a minute, and its figures are for people"]
async fn a_million_segments() {
    const COUNT: u64 = 1_000_000;
    let begun = Instant::now();
    let scene = scene(COUNT, Duration::from_millis(20)).await;
    let mut told = teller();
    println!("{} logs have a roll-up", scene.store.roll_ups());
    println!("they were made in {:.2} s", begun.elapsed().as_secs_f64());
    forget_peak();

    let begun = Instant::now();
    let segments = scene.segments().await;
    assert_eq!(segments.len() as u64, COUNT - 3);
    told("list all segments", begun, scene.store.asked());

    let begun = Instant::now();
    let (count, ..) = scene.survey(segments).await;
    assert_eq!(count, COUNT - 3);
    told("summaries of all segments", begun, scene.store.asked());

    let number = scene.newest() + 10_000;
    let wanted = scene.main().writer.time(number, 117) + TimeDelta::microseconds(1);
    let begun = Instant::now();
    let wanted = wanted.format("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
    let plan = scene.plan(&wanted, Some(1)).await.unwrap();
    assert_eq!(plan.stop.unwrap().lsn, scene.main().writer.ended(scene.store.layout(), number, 118).lsn);
    assert_eq!(plan.segments, 10_001);
    told("plan by time, 10 000 segments after the newest backup", begun, scene.store.asked());

    let begun = Instant::now();
    let plan = scene.plan("latest", Some(1)).await.unwrap();
    assert_eq!(plan.last_segment.number(SIZE).unwrap(), scene.main().numbers.end - 1);
    told("plan for latest", begun, scene.store.asked());

    // On the branches that time lies before the first commit: a person has to choose.
    let begun = Instant::now();
    scene.plan(&wanted, None).await.unwrap_err();
    told("the same time on all three timelines", begun, scene.store.asked());

    for depth in [Depth::Ends, Depth::Records] {
        let begun = Instant::now();
        let timelines = plan::window::timelines(&scene.system, depth, &watch()).await.unwrap();
        assert_eq!(timelines.timelines[0].segments, COUNT - 3);
        assert_eq!(timelines.timelines[0].windows.len(), 2);
        told(&format!("timeline of everything, {depth:?}"), begun, scene.store.asked());
    }
    let begun = Instant::now();
    let report = scene.verify().await;
    assert_eq!(report.damage.len(), 1, "{:?}", report.damage);
    told("fast verification", begun, scene.store.asked());
    let begun = Instant::now();
    let deep = scene.verify_deep(0.01).await.deep.unwrap();
    told(&format!("deep verification of {} of {} objects", deep.objects, deep.of_objects), begun, scene.store.asked());

    let_nearly_everything_go(&scene, &mut told).await;
    let begun = Instant::now();
    scene.verify().await;
    told("fast verification afterwards", begun, scene.store.asked());
    let begun = Instant::now();
    let deep = scene.verify_deep(0.1).await.deep.unwrap();
    told(&format!("deep verification of {} of {} objects", deep.objects, deep.of_objects), begun, scene.store.asked());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "it takes a minute, and its figures are for people"]
async fn thousands_of_backups() {
    let scene = many_backups(3_000, Duration::from_millis(20)).await;
    println!("{} backups with {} parts", scene.taken.len(), scene.parts().len());
    forget_peak();
    survey_many_backups(&scene, teller()).await;
}
