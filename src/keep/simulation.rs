//! Years of a cluster in a model: backups that build on others, WAL with gaps, promotions, ways back, killed attempts,
//! upgrades, pins, compactions; and expiries by random rules in between. After each what was promised is asked of a simple oracle
//! that knows nothing of how plans are made: every instant that was promised and could be recovered before can be
//! recovered still, and nothing is there that nothing needs.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Datelike, Duration, Utc};
use fastrand::Rng;
use proptest::prelude::*;

use super::{
    choose::choose,
    inventory::{Attempt, Backup, Folder, Inventory, Line},
    plan::{SystemPlan, horizons},
    planning::{manifests_wanted, plan},
    policy::{Policy, Reason},
};
use crate::{
    postgres::{Lsn, SegmentName, SegmentSize, TimelineHistory, TimelineId, history::HistoryEntry},
    repository::{BackupId, BackupObject, Condemned, Incarnation},
};

const SIZE: SegmentSize = SegmentSize::DEFAULT;

/// Parts by the folders they lie in.
type Parts = BTreeMap<BackupId, BTreeSet<u32>>;

/// One system as it lies in the repository, and the server that writes it.
#[derive(Clone)]
struct Model {
    incarnation: Incarnation,
    first_seen: DateTime<Utc>,
    timeline: TimelineId,
    lsn: u64,
    histories: BTreeMap<TimelineId, TimelineHistory>,
    /// When each segment that is there was written.
    wal: BTreeMap<(TimelineId, u64), DateTime<Utc>>,
    backups: BTreeMap<BackupId, (Backup, Parts)>,
    folders: Parts,
    attempts: BTreeMap<BackupId, Attempt>,
    pins: BTreeSet<BackupId>,
    /// Compactions that came to their end, and attempts that will never be backups.
    given_up: BTreeSet<BackupId>,
}

impl Model {
    fn new(system: u64, now: DateTime<Utc>) -> Self {
        let first = TimelineId::FIRST;
        Self {
            incarnation: format!("{system}-1").parse().unwrap(),
            first_seen: now,
            timeline: first,
            lsn: SIZE.bytes(),
            histories: BTreeMap::from([(first, TimelineHistory::root(first))]),
            wal: BTreeMap::new(),
            backups: BTreeMap::new(),
            folders: Parts::new(),
            attempts: BTreeMap::new(),
            pins: BTreeSet::new(),
            given_up: BTreeSet::new(),
        }
    }

    /// The server writes up to there.
    fn write(&mut self, to: u64, now: DateTime<Utc>, rng: &mut Rng) {
        for number in self.lsn / SIZE.bytes()..to / SIZE.bytes() {
            // Some get lost.
            if rng.u32(..300) > 0 {
                self.wal.insert((self.timeline, number), now);
            }
        }
        self.lsn = to;
    }

    fn backup(&mut self, now: DateTime<Utc>, rng: &mut Rng) {
        let id = BackupId::at(now);
        let start = self.lsn + rng.u64(..SIZE.bytes());
        let stop = start + rng.u64(1..3 * SIZE.bytes());
        self.write((stop / SIZE.bytes() + 1) * SIZE.bytes(), now, rng);
        let own: BTreeSet<u32> = (1..=rng.u32(1..5)).collect();
        let history = &self.histories[&self.timeline];
        let mut needed = self.backups.values().rfind(|(b, _)| b.lies_on(history)).map(|(_, n)| n.clone());
        let needed = needed.get_or_insert_default();
        if let Some((attempt, _)) = self.attempts.iter().rfind(|(_, a)| a.publishes.is_empty()).filter(|_| rng.bool()) {
            needed.entry(*attempt).or_default().extend(self.folders[attempt].iter().copied());
        }
        needed.values_mut().for_each(|numbers| numbers.retain(|_| rng.u32(..4) > 0));
        needed.retain(|_, numbers| !numbers.is_empty());
        self.folders.insert(id, own.clone());
        let references = needed.keys().copied().collect();
        needed.insert(id, own.clone());
        let backup = Backup {
            id,
            label: None,
            timeline: self.timeline,
            start: Lsn(start),
            stop: Lsn(stop),
            started: now,
            stopped: now + Duration::minutes(30),
            bad: rng.u32(..30) == 0,
            references,
            parts: own.iter().map(|number| (*number, 100)).collect(),
            numbers: (1, None, None),
        };
        self.backups.insert(id, (backup, std::mem::take(needed)));
    }

    fn attempt(&mut self, now: DateTime<Utc>) {
        let (id, timeline) = (BackupId::at(now), self.timeline);
        self.folders.insert(id, BTreeSet::from([1, 2]));
        self.attempts.insert(id, Attempt { timeline, references: BTreeSet::from([id]), publishes: BTreeMap::new() });
    }

    /// Some part is written anew in a folder of its own; killed on the way not all backups point there.
    fn compact(&mut self, now: DateTime<Utc>, rng: &mut Rng) {
        let parts: Vec<_> = self.folders.iter().flat_map(|(id, all)| all.iter().map(move |n| (*id, *n))).collect();
        let Some((folder, number)) = rng.choice(parts) else { return };
        let id = BackupId::at(now);
        let (mut publishes, killed) = (BTreeMap::new(), rng.bool());
        for (backup, needed) in self.backups.values_mut() {
            if !needed.get(&folder).is_some_and(|numbers| numbers.contains(&number)) {
                continue;
            }
            publishes.insert(backup.id, 2);
            if killed && rng.bool() {
                continue;
            }
            needed.get_mut(&folder).unwrap().remove(&number);
            needed.retain(|_, numbers| !numbers.is_empty());
            needed.insert(id, BTreeSet::from([1]));
            backup.references = needed.keys().copied().filter(|of| *of != backup.id).collect();
            if folder == backup.id {
                backup.parts.retain(|(own, _)| *own != number);
            }
        }
        if publishes.is_empty() {
            return;
        }
        self.folders.insert(id, BTreeSet::from([1, 2]));
        if killed {
            let references = BTreeSet::from([id, folder]);
            self.attempts.insert(id, Attempt { timeline: self.timeline, references, publishes });
        } else {
            self.given_up.insert(id);
        }
    }

    /// A standby is promoted, or the cluster goes back a while: a new timeline.
    fn promote(&mut self, now: DateTime<Utc>, rng: &mut Rng) {
        let Some((last, _)) = self.backups.values().next_back() else { return };
        let Some(timeline) = self.histories.keys().next_back().and_then(|t| TimelineId::new(t.get() + 1).ok()) else {
            return;
        };
        let mut ancestors = self.histories[&self.timeline].ancestors.clone();
        let begin = ancestors.last().map_or(0, |entry| entry.switch.0).max(last.stop.0);
        let switch = if rng.bool() && begin < self.lsn { rng.u64(begin..self.lsn) } else { self.lsn.max(begin) };
        ancestors.push(HistoryEntry { timeline: self.timeline, switch: Lsn(switch), reason: String::new() });
        // The old server goes on for a while, sometimes.
        if rng.bool() {
            self.write(self.lsn + rng.u64(..3) * SIZE.bytes(), now, rng);
        }
        self.histories.insert(timeline, TimelineHistory { timeline, ancestors });
        (self.timeline, self.lsn) = (timeline, switch);
    }

    fn inventory(&self) -> Inventory {
        let line = |(timeline, history): (&TimelineId, &TimelineHistory)| {
            let mut line = Line {
                history: history.clone(),
                rows: Vec::new(),
                last: self
                    .wal
                    .keys()
                    .rfind(|(t, _)| t == timeline)
                    .and_then(|(t, n)| SegmentName::from_number(*t, *n, SIZE)),
                written: self.wal.iter().filter(|((t, _), _)| t == timeline).map(|(_, at)| *at).max(),
                beside: Vec::new(),
                roll_ups: Vec::new(),
            };
            self.wal.keys().filter(|(t, _)| t == timeline).for_each(|(_, number)| line.add(*number, 10));
            (*timeline, line)
        };
        let folder = |(id, parts): (&BackupId, &BTreeSet<u32>)| {
            let objects: &[BackupObject] = match self.attempts.contains_key(id) {
                true => &[BackupObject::Intent(1)],
                false if self.given_up.contains(id) => &[BackupObject::Document(1)],
                false if self.backups.contains_key(id) => &[BackupObject::Document(1), BackupObject::Manifest(1)],
                false => &[],
            };
            let objects = objects.iter().map(|object| (*object, 1)).collect();
            let parts = parts.iter().map(|number| (*number, 100)).collect();
            (*id, Folder { objects, parts, given_up: self.given_up.contains(id), strangers: 0 })
        };
        Inventory {
            incarnation: self.incarnation,
            first_seen: self.first_seen,
            segment_size: SIZE,
            backups: self.backups.values().map(|(backup, _)| backup.clone()).collect(),
            lines: self.histories.iter().map(line).collect(),
            folders: self.folders.iter().map(folder).collect(),
            attempts: self.attempts.clone(),
            pins: self.pins.clone(),
            holds: Vec::new(),
            backing_up: false,
            compacting: false,
            condemned: (0, Condemned::default()),
            needed: BTreeMap::new(),
            doubts: Vec::new(),
        }
    }

    /// Does what a plan says.
    fn carry_out(&mut self, plan: &SystemPlan) {
        for (id, work) in &plan.folders {
            if !work.documents.is_empty() {
                self.backups.remove(id);
            }
            if work.give_up {
                self.attempts.remove(id);
                self.given_up.insert(*id);
            }
            let numbers = work.parts.iter().flat_map(|(first, last)| *first..=*last).collect::<Vec<_>>();
            let folder = self.folders.get_mut(id).unwrap();
            numbers.iter().for_each(|number| assert!(folder.remove(number)));
            if folder.is_empty() && !self.backups.contains_key(id) {
                self.folders.remove(id);
            }
        }
        for (timeline, work) in &plan.archive {
            for number in work.segments.iter().flat_map(|(first, end)| first..end) {
                assert!(self.wal.remove(&(*timeline, number)).is_some());
            }
        }
    }

    // The oracle.

    /// The timeline whose copy of a segment recovery along `timeline` reads.
    fn on(&self, timeline: TimelineId, number: u64) -> TimelineId {
        let end = Lsn((number + 1) * SIZE.bytes());
        let ancestors = &self.histories[&timeline].ancestors;
        ancestors.iter().find(|entry| end <= entry.switch).map_or(timeline, |entry| entry.timeline)
    }

    fn lies_on(&self, backup: &Backup, timeline: TimelineId) -> bool {
        let left = |t| self.histories[&timeline].ancestors.iter().find(|e| e.timeline == t).map(|e| e.switch);
        backup.timeline == timeline || left(backup.timeline).is_some_and(|switch| backup.stop <= switch)
    }

    fn has_parts(&self, id: BackupId) -> bool {
        let has = |(of, numbers): (&BackupId, &BTreeSet<u32>)| {
            self.folders.get(of).is_some_and(|there| numbers.is_subset(there))
        };
        self.backups[&id].1.iter().all(has)
    }

    /// Whether recovery along `timeline` from that backup reaches the end of that segment.
    fn reaches(&self, backup: &Backup, timeline: TimelineId, number: u64) -> bool {
        let first = backup.start.0 / SIZE.bytes();
        self.lies_on(backup, timeline)
            && backup.stop.0 <= (number + 1) * SIZE.bytes()
            && (first..=number).all(|n| self.wal.contains_key(&(self.on(timeline, n), n)))
    }

    /// Whether the end of that segment can be recovered.
    fn recoverable(&self, timeline: TimelineId, number: u64) -> bool {
        let mut backups = self.backups.values().filter(|(backup, _)| !backup.bad);
        backups.any(|(backup, _)| self.reaches(backup, timeline, number) && self.has_parts(backup.id))
    }

    /// Whether a backup can be restored, as it is.
    fn restorable(&self, id: BackupId) -> bool {
        let Some((backup, _)) = self.backups.get(&id) else { return false };
        let last = (backup.stop.0 - 1) / SIZE.bytes();
        self.has_parts(id) && self.histories.keys().any(|timeline| self.reaches(backup, *timeline, last))
    }

    /// Ends of segments that are promised: all within the window.
    fn promised(&self, policy: &Policy, now: DateTime<Utc>) -> Vec<(TimelineId, u64)> {
        let Some(window) = policy.window else { return Vec::new() };
        let since = now - Duration::from_std(window).unwrap();
        let within = self.wal.iter().filter(|(_, at)| **at >= since).map(|(key, _)| *key);
        within.filter(|(timeline, number)| self.recoverable(*timeline, *number)).collect()
    }

    /// The end of the newest timeline, if it can be recovered.
    fn newest(&self) -> Vec<(TimelineId, u64)> {
        let newest = self.wal.keys().rfind(|(timeline, _)| *timeline == self.timeline);
        newest.into_iter().copied().filter(|(timeline, number)| self.recoverable(*timeline, *number)).collect()
    }
}

/// The backups that the counts of the rules name, of all systems together, counted in the plainest way.
fn named(models: &[Model], policy: &Policy) -> BTreeSet<(usize, BackupId)> {
    let all = |at: usize| {
        let good = models[at].backups.values().filter(move |(b, _)| !b.bad && models[at].restorable(b.id));
        good.map(move |(b, _)| (b.id, at))
    };
    let all: BTreeSet<(BackupId, usize)> = (0..models.len()).flat_map(all).collect();
    let mut named: BTreeSet<(usize, BackupId)> = BTreeSet::new();
    let mut count = |most: u32, period: fn(DateTime<Utc>) -> (i32, u32)| {
        let mut newest: BTreeMap<(i32, u32), (BackupId, usize)> = BTreeMap::new();
        all.iter().for_each(|(id, at)| _ = newest.insert(period(id.instant()), (*id, *at)));
        named.extend(newest.values().rev().take(most as usize).map(|(id, at)| (*at, *id)));
    };
    count(policy.daily, |at| (at.year(), at.ordinal()));
    count(policy.weekly, |at| (at.iso_week().year(), at.iso_week().week()));
    count(policy.monthly, |at| (at.year(), at.month()));
    count(policy.yearly, |at| (at.year(), 0));
    named.extend(all.iter().rev().take(policy.last as usize).map(|(id, at)| (*at, *id)));
    named.extend(models.iter().enumerate().flat_map(|(at, model)| model.pins.iter().map(move |id| (at, *id))));
    named
}

fn plans(models: &[Model], policy: &Policy, now: DateTime<Utc>) -> Vec<SystemPlan> {
    let mut found: Vec<Inventory> = models.iter().map(Model::inventory).collect();
    let chosen = choose(&found, policy, now);
    for ((found, chosen), model) in found.iter_mut().zip(&chosen).zip(models) {
        for id in manifests_wanted(found, chosen) {
            found.needed.insert(id, Ok(model.backups[&id].1.clone()));
        }
    }
    found.iter().zip(&chosen).map(|(found, chosen)| plan(found, chosen, policy, now)).collect()
}

fn expire(models: &mut [Model], policy: &Policy, now: DateTime<Utc>, what: &str) {
    // After an upgrade the new system's end counts, as soon as it has a backup.
    let has_backups = |m: &Model| m.backups.values().any(|(b, _)| !b.bad && m.restorable(b.id));
    let youngest = models.iter().rposition(has_backups);
    let promised: Vec<_> = models.iter().map(|model| model.promised(policy, now)).collect();
    let newest = youngest.map(|at| (at, models[at].newest()));
    let named = named(models, policy);
    let restorable = |models: &[Model]| models.iter().any(|m| m.backups.keys().any(|id| m.restorable(*id)));
    let before = restorable(models);
    let plans = plans(models, policy, now);
    for (model, plan) in models.iter_mut().zip(&plans) {
        model.carry_out(plan);
        for horizon in horizons(plan, SIZE) {
            let gone = |name: SegmentName| plan.wal.iter().any(|wal| (wal.first..=wal.last).contains(&name));
            let last = SegmentName::from_number(horizon.timeline, horizon.number(SIZE).unwrap() - 1, SIZE).unwrap();
            assert!(gone(last) && !gone(horizon), "{what}");
        }
    }
    assert!(!before || restorable(models), "{what}: nothing can be restored any more");
    for (at, id) in named {
        assert!(models[at].backups.contains_key(&id), "{what}: backup {id} is gone, which the rules name");
        assert!(models[at].restorable(id) || models[at].pins.contains(&id), "{what}: backup {id} cannot be restored");
    }
    for (at, promised) in promised.into_iter().enumerate().chain(newest) {
        let model = &models[at];
        for (timeline, number) in promised {
            assert!(
                model.recoverable(timeline, number),
                "{what}: segment {number} of timeline {timeline} is lost by {policy:?}, {:?}, {:?}, {:?}",
                model.histories,
                model.backups.values().map(|(b, _)| (b.id, b.timeline, b.span(SIZE), b.bad)).collect::<Vec<_>>(),
                plans.iter().map(|p| (&p.backups, &p.wal, &p.remains)).collect::<Vec<_>>()
            );
        }
    }
    for (model, plan) in models.iter().zip(&plans) {
        nothing_unneeded(model, plan, policy, now, what);
    }
    let again = self::plans(models, policy, now);
    assert!(again.iter().all(|plan| plan.is_empty()), "{what}: a second run finds more: {again:?}");
}

fn nothing_unneeded(model: &Model, plan: &SystemPlan, policy: &Policy, now: DateTime<Utc>, what: &str) {
    if policy.is_empty() {
        return;
    }
    let needed = |id: BackupId, number: u32| {
        model.attempts.contains_key(&id)
            || model.backups.values().any(|(_, needed)| needed.get(&id).is_some_and(|n| n.contains(&number)))
    };
    for (id, numbers) in &model.folders {
        assert!(numbers.iter().all(|number| needed(*id, *number)), "{what}: parts in {id} that nobody needs");
    }
    let since = now - policy.window.map_or(Duration::zero(), |w| Duration::from_std(w).unwrap());
    let spans: Vec<_> =
        model.backups.values().map(|(b, _)| (b, b.start.0 / SIZE.bytes(), (b.stop.0 - 1) / SIZE.bytes())).collect();
    // From each backup that the window or what comes needs WAL is kept for good.
    let goes_on = |b: &Backup| {
        let fate = plan.backups.iter().find(|fate| fate.id == b.id).unwrap();
        fate.kept.contains(&Reason::Window) || fate.kept.contains(&Reason::Newest)
    };
    let leads_over = |to: &TimelineId, over: &TimelineId| {
        to == over || model.histories[to].ancestors.iter().any(|entry| entry.timeline == *over)
    };
    for ((timeline, number), written) in &model.wal {
        let mut ways = model.histories.keys().filter(|to| leads_over(to, timeline));
        let serves = |b: &Backup, first: u64, last: u64| {
            *number >= first && (*number <= last || goes_on(b)) && ways.clone().any(|to| model.lies_on(b, *to))
        };
        let one_of = spans.iter().any(|(b, first, last)| serves(b, *first, *last));
        // A way without any sound backup keeps what it has: the next one comes.
        let sound =
            |to: TimelineId| spans.iter().any(|(b, ..)| !b.bad && model.restorable(b.id) && model.lies_on(b, to));
        let bare = ways.any(|to| !sound(*to));
        assert!(one_of || *written >= since || bare, "{what}: segment {number} of timeline {timeline} serves nothing");
    }
}

fn policy(rng: &mut Rng) -> Policy {
    let mut count = |most: u32| if rng.bool() { rng.u32(1..most) } else { 0 };
    let (last, daily, weekly, monthly, yearly) = (count(5), count(10), count(6), count(6), count(3));
    let window = (rng.u32(..3) > 0).then(|| std::time::Duration::from_secs(86_400 * rng.u64(1..30)));
    Policy { last, daily, weekly, monthly, yearly, window, ..Policy::default() }
}

fn years(seed: u64, days: u32) {
    let mut rng = Rng::with_seed(seed);
    let mut now: DateTime<Utc> = "2025-12-28T00:00:00Z".parse().unwrap();
    let mut models = vec![Model::new(1, now)];
    let rules = policy(&mut rng);
    for day in 0..days {
        for _ in 0..4 {
            now += Duration::hours(6);
            let count = models.len() as u64;
            let model = models.last_mut().unwrap();
            model.write(model.lsn + rng.u64(..2 * SIZE.bytes()), now, &mut rng);
            match rng.u32(..206) {
                0..50 => model.backup(now, &mut rng),
                50..53 => model.attempt(now),
                53..56 => model.promote(now, &mut rng),
                56 => models.push(Model::new(count + 1, now)),
                57..60 => model.pins.extend(model.backups.keys().next_back()),
                60..63 => model.pins = BTreeSet::new(),
                63..80 => expire(&mut models, &rules, now, &format!("seed {seed}, day {day}")),
                200.. => model.compact(now, &mut rng),
                80 => expire(&mut models, &policy(&mut rng), now, &format!("seed {seed}, day {day}, other rules")),
                _ => {}
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if std::env::var("WALDEN_TEST_LONG").is_ok_and(|n| n != "0") { 1000 } else { 48 }))]

    #[test]
    fn what_is_promised_stays_and_nothing_else(seed in any::<u64>()) {
        years(seed, 120);
    }
}
