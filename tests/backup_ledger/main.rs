//! The ledger over backups: a random history of a cluster and of its backups, of which some are deleted again. What was
//! committed by the end of each is written down outside the database, and each that is left must restore exactly that.
//!
//! `WALDEN_TEST_LONG=1` takes four dozen backups on every version instead of eight on two of them, another number
//! as many; `WALDEN_TEST_SEED` repeats a run.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "helpers of a test may panic and tell like the test")]

mod acts;
mod proof;
mod truth;
mod writer;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;
use walden_testkit::{
    postgres::{Installation, installed},
    protected::{Place, Protected},
};

use self::truth::Truth;

/// A backup, and what was committed by its end.
struct Taken {
    id: String,
    truth: Truth,
    /// How it came to be, for messages.
    how: String,
}

/// A restore point on the way to where the cluster is, and what was committed by then.
struct Point {
    name: String,
    truth: Truth,
    /// A backup from before it.
    base: String,
}

/// One cluster and its history.
struct History<'a> {
    p: Protected,
    installation: &'a Installation,
    rng: fastrand::Rng,
    /// Of this run, for messages.
    told: String,
    /// Where the only tablespace lies.
    space: PathBuf,
    /// The folder of backups in the repository.
    folder: PathBuf,
    taken: Vec<Taken>,
    deleted: BTreeSet<String>,
    points: Vec<Point>,
    /// The databases that were made, besides `postgres`.
    databases: BTreeSet<String>,
    /// Numbers that no name has had.
    number: u64,
}

impl<'a> History<'a> {
    fn new(installation: &'a Installation) -> Self {
        let seed = std::env::var("WALDEN_TEST_SEED").ok().and_then(|s| s.parse().ok());
        let seed = seed.unwrap_or_else(|| fastrand::u64(..));
        let told = format!("PostgreSQL {}, seed {seed}", installation.major);
        eprintln!("{told}");
        let p = Protected::new(installation, Place::Directory, |b| {
            // What was promoted may have to be rewound.
            let b = b.setting("wal_keep_size", "1GB").setting("autovacuum_naptime", "1s");
            // What a server knows of changed blocks must not mislead, whatever happened to it.
            if installation.major >= 17 { b.setting("summarize_wal", "on") } else { b }
        });
        let space = p.scene.folder("space");
        p.cluster.psql(&format!("create tablespace apart location '{}'", space.display()));
        let system = p.cluster.psql("select system_identifier from pg_control_system()");
        let folder = p.repository.join(format!("main/{system}-1/backups"));
        let mut history = Self {
            p,
            installation,
            rng: fastrand::Rng::with_seed(seed),
            told,
            space,
            folder,
            taken: Vec::new(),
            deleted: BTreeSet::new(),
            points: Vec::new(),
            databases: BTreeSet::new(),
            number: 0,
        };
        writer::prepare(&history.p.cluster);
        acts::prepare(&history.p.cluster, "postgres");
        history.create_database("template0");
        history
    }

    fn next(&mut self) -> u64 {
        self.number += 1;
        self.number
    }

    fn say(&self, what: &str) {
        eprintln!("{}: {what}", self.told);
    }

    /// Takes a backup while transactions go on, by either way.
    fn backup(&mut self) {
        let remote = self.rng.u32(0..4) == 0;
        let arguments: &[&str] = if remote { &["-q", "backup", "--remote"] } else { &["-q", "backup"] };
        let mut truth = Truth::of(&self.p.cluster);
        let rng = self.rng.fork();
        let (p, first) = (&self.p, truth.next_transaction());
        let (ran, written) = writer::during(&p.cluster, first, rng, || p.walden(arguments));
        assert!(ran.code == Some(0), "{}: {ran}", self.told);
        let id = ran.stdout.trim().to_owned();
        let document = self.document(&id);
        let lsn = |name: &str| document[name].as_str().unwrap().parse().unwrap();
        let timeline = document["timeline"].as_u64().unwrap();
        let ended = writer::commits(&p.cluster, timeline, lsn("start_lsn"));
        let stop = lsn("stop_lsn");
        // What was committed before the backup's start is not told.
        let by_then = written.iter().filter(|(_, xid)| ended.get(xid).is_none_or(|lsn| *lsn < stop));
        truth.add(by_then.map(|(n, _)| *n));
        let references = document["references"].as_array().unwrap().len();
        let way = if remote { "remote" } else { "local" };
        let how = format!("{way} backup {id} on timeline {timeline}, which refers to {references}");
        self.say(&how);
        self.taken.push(Taken { id, truth, how });
    }

    fn document(&self, id: &str) -> Value {
        serde_json::from_slice(&fs::read(self.folder.join(id).join("backup-1.json")).unwrap()).unwrap()
    }

    /// Deletes one of the backups, as an expiry would: its documents, and all parts that no manifest points into any
    /// more.
    fn delete(&mut self) {
        let gone = self.taken.remove(self.rng.usize(..self.taken.len()));
        self.say(&format!("delete {}", gone.id));
        for name in ["backup-1.json", "manifest-1.json.zst"] {
            fs::remove_file(self.folder.join(&gone.id).join(name)).unwrap();
        }
        self.deleted.insert(gone.id);
        let kept: BTreeSet<PathBuf> = self.taken.iter().flat_map(|taken| self.parts(&taken.id)).collect();
        for id in &self.deleted {
            for entry in fs::read_dir(self.folder.join(id)).unwrap() {
                let path = entry.unwrap().path();
                let is_part = path.file_name().unwrap().to_str().unwrap().starts_with("part-");
                if is_part && !kept.contains(&path) {
                    fs::remove_file(path).unwrap();
                }
            }
        }
    }

    /// The parts that the manifest of a backup points into.
    fn parts(&self, id: &str) -> Vec<PathBuf> {
        let stored = fs::read(self.folder.join(id).join("manifest-1.json.zst")).unwrap();
        let manifest: Value = serde_json::from_slice(&zstd::decode_all(&stored[..]).unwrap()).unwrap();
        let path = |part: &Value| {
            let (backup, number) = (part["backup"].as_str().unwrap(), part["number"].as_u64().unwrap());
            self.folder.join(backup).join(format!("part-{number:05}.tar.zst"))
        };
        manifest["parts"].as_array().unwrap().iter().map(path).collect()
    }

    fn listed(&self) -> BTreeSet<String> {
        let listed: Value = serde_json::from_str(self.p.walden(["list", "--json"]).ok()).unwrap();
        let backups = listed["systems"][0]["backups"].as_array().unwrap();
        backups.iter().map(|b| b["id"].as_str().unwrap().to_owned()).collect()
    }
}

/// Makes an empty folder of the servers' user, or nothing at all, of what was there.
fn removed(path: &Path) -> &Path {
    let _ = fs::remove_dir_all(path);
    path
}

fn the_ledger_holds(installation: &Installation, backups: usize) {
    let mut history = History::new(installation);
    for number in 0..backups {
        for _ in 0..history.rng.usize(1..4) {
            history.act();
        }
        history.backup();
        if number > 2 && history.rng.u32(0..3) == 0 {
            history.delete();
        }
    }
    history.is_frozen_as_postgresql_copies_it();
    let known: BTreeSet<String> = history.taken.iter().map(|taken| taken.id.clone()).collect();
    assert_eq!(history.listed(), known, "{}", history.told);
    for (number, taken) in history.taken.iter().enumerate() {
        history.check(number, taken);
    }
    history.say(&format!("{} backups restored of {backups} and more", history.taken.len()));
}

#[test]
fn every_backup_that_is_left_restores_what_was_committed_by_its_end() {
    let long = std::env::var("WALDEN_TEST_LONG").ok().and_then(|n| n.parse().ok()).filter(|n| *n > 0);
    let versions = installed();
    match long {
        Some(long) => versions.iter().for_each(|pg| the_ledger_holds(pg, if long == 1 { 48 } else { long })),
        None => {
            let ends: BTreeSet<u16> =
                [versions.first(), versions.last()].into_iter().flatten().map(|v| v.major).collect();
            versions.iter().filter(|v| ends.contains(&v.major)).for_each(|pg| the_ledger_holds(pg, 8));
        }
    }
}
