//! A repository with every kind of object, and copies of it to be tampered with.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use chrono::Duration;
use walden::{
    clock::{Clock, Random, SystemClock},
    interrupt::Interrupter,
    plan::Watch,
    postgres::SegmentName,
    progress::Unwatched,
    repository::{
        self, GapNote, SEALING, Suspended, System,
        hold::{Held, Hold},
    },
    seal::age::Identities,
    store::{
        Store,
        dir::DirStore,
        sealed::{Keys, Sealed},
    },
    verify::{self, DeepRequest, Report},
};
use walden_testkit::{
    postgres::{Cluster, Stop, any},
    protected::{Place, Protected},
    run::run,
};

use crate::kind::Kind;

/// What was really made.
pub struct Scene {
    pub p: Protected,
    /// The file that opens it, where it is encrypted.
    identity: Option<PathBuf>,
    /// What was there at one time or another: small objects.
    earlier: BTreeMap<String, Vec<u8>>,
    /// Restore points, each with the rows that there were.
    pub points: Vec<(&'static str, String)>,
}

/// What tells the rows of the table.
pub const ROWS: &str = "select count(*) || ' rows, ' || sum(hashtext(t::text)::bigint) from t";

/// Restores to the end and promotes: a new timeline, which is adopted.
fn branch(p: &Protected, name: &str) -> Cluster {
    let pgdata = p.scene.path().join(name);
    let path = pgdata.to_str().unwrap();
    p.walden(["-q", "restore", "--yes", "--then", "promote", "--pgdata", path, "--to", "latest"]).expect_code(0);
    let mut copy = Cluster::adopt(&pgdata, p.cluster.installation());
    copy.start();
    copy.wait_for("select pg_is_in_recovery()", "f");
    let config = fs::read_to_string(&p.config)
        .unwrap()
        .replace(p.cluster.pgdata().to_str().unwrap(), path)
        .replace(&p.cluster.conninfo(), &copy.conninfo());
    let config = p.scene.write(&format!("{name}.toml"), config);
    run(p.scene.walden().arg("--config").arg(&config).args(["adopt", "--pgdata", path])).expect_code(0);
    copy
}

fn archive(cluster: &Cluster) -> String {
    let name = cluster.switch_wal();
    cluster.wait_archived(&name);
    name
}

/// Archives a segment that PostgreSQL still has as it does with the one in which it leaves a timeline.
fn partial(p: &Protected, name: &str) {
    let wal = p.cluster.pgdata().join("pg_wal");
    let partial = wal.join(format!("{name}.partial"));
    fs::copy(wal.join(name), &partial).unwrap();
    p.cluster.owner().own(&partial);
    run(p.command(["wal", "push", &format!("pg_wal/{name}.partial")]).current_dir(p.cluster.pgdata())).expect_code(0);
    fs::remove_file(partial).unwrap();
}

impl Scene {
    /// In the clear, or encrypted.
    pub fn new(sealed: bool) -> Self {
        // Segments of one megabyte, from the last ones of a log on, so that it is complete soon.
        let p = Protected::new(any(), Place::Directory, |b| {
            b.wal_segment_size(1).first_segment("000000010000000000000FE8").setting("autovacuum", "off")
        });
        let mut scene = Self { p, identity: None, earlier: BTreeMap::new(), points: Vec::new() };
        scene.configure(sealed);
        let text = fs::read_to_string(&scene.p.config).unwrap();
        let extra = |name: &str, content: &str| {
            let file = scene.p.scene.write(name, content);
            scene.p.scene.write("walden.toml", format!("{text}\n[backup]\nfiles = [\"{}\"]\n", file.display()));
        };
        let p = &scene.p;
        extra("extra.conf", "an extra file\n");
        p.cluster
            .psql("create table great as select n, repeat(md5(n::text), 8) as text from generate_series(1, 9000) n");
        p.cluster.psql("create table t as select n, md5(n::text) as text from generate_series(1, 20000) as n");
        p.cluster.psql("vacuum (freeze) t; checkpoint");
        let _expired = p.backup();
        p.cluster.psql("drop table great; update t set text = 'first' where n % 400 = 3; checkpoint");
        let _ = p.archive();
        let first = p.backup();
        extra("other.conf", "another file, which is longer\n");
        p.cluster.psql("update t set text = 'changed' where n % 400 = 7");
        scene.remember();
        scene.expire(&text);
        let second = scene.p.backup();
        scene.notes(&[&first, &second]);
        scene.go_on();
        scene
    }

    /// Where this host remembers what it did, and who may read what it stores.
    fn configure(&mut self, sealed: bool) {
        let scene = &self.p.scene;
        let text = fs::read_to_string(&self.p.config).unwrap();
        let mut text = format!("{text}\n[archive]\nstate_dir = \"{}\"\n", scene.path().join("state").display());
        if sealed {
            let (identity, recipient) = Identities::generate(SystemClock.now());
            let file = scene.write("identity", age::secrecy::ExposeSecret::expose_secret(&identity));
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
            text += &format!("[encryption]\nrecipients = [\"{recipient}\"]\nidentity_file = \"{}\"\n", file.display());
            self.identity = Some(file);
        }
        scene.write("walden.toml", text);
    }

    /// Expires the first backup and its WAL, has what is living of its parts written anew, and leaves nothing over.
    fn expire(&mut self, text: &str) {
        let _ = self.p.archive();
        let before = fs::read_to_string(&self.p.config).unwrap();
        self.p.scene.write("walden.toml", format!("{text}\n[keep]\nlast = 1\ncompact = 95\n"));
        for _ in 0..2 {
            self.p.walden(["expire"]).expect_code(0);
            self.remember();
        }
        self.p.scene.write("walden.toml", before);
    }

    /// Notes of every kind, where there can be two of them two.
    fn notes(&mut self, backups: &[&str]) {
        for backup in backups {
            self.p.walden(["pin", backup]).expect_code(0);
            self.remember();
        }
        for _ in 0..2 {
            self.p.walden(["kit", "export", "--to-repository"]).expect_code(0);
        }
        // A part that cannot be read for a while.
        let part =
            below(&self.p.repository).into_iter().find(|path| path.to_str().unwrap().contains("/part-")).unwrap();
        let whole = fs::read(&part).unwrap();
        let mut changed = whole.clone();
        changed[whole.len() / 2] ^= 1;
        for (content, code) in [(changed, 6), (whole, 0)] {
            fs::write(&part, content).unwrap();
            self.p.walden(["verify", "--deep", "--anew"]).expect_code(code);
            self.remember();
        }
        self.by_the_library(async |system| {
            for id in ["a", "b"] {
                let (who, host) = ("postgres".to_owned(), "here".to_owned());
                let (suspended, resumed) = (SystemClock.now(), Some(SystemClock.now()));
                let suspended = Suspended { id: id.into(), reason: None, who, host, suspended, resumed };
                let note = GapNote { format: 1, suspended, missing: Vec::new(), from: None, to: None };
                system.add_gap_note(&note).await.unwrap();
            }
            for seed in [1, 2] {
                let (held, clock) = (Held { work: "restore".into(), ..Held::default() }, Arc::new(SystemClock));
                let hold = Hold::take(system, held, clock, &Random::seeded(seed)).await.unwrap();
                hold.leave(Duration::hours(1)).await;
            }
        });
    }

    /// The log ends, its timeline is left for another one, and that goes on in pieces.
    fn go_on(&mut self) {
        let p = &self.p;
        self.points.push(point(&p.cluster, "one"));
        let mut last = String::new();
        while last.get(8..16) != Some("00000001") {
            p.cluster.psql("insert into t select n, 'more' from generate_series(1, 3000) as n");
            last = archive(&p.cluster);
        }
        p.walden(["wal", "summarize"]).expect_code(0);
        partial(p, &last);
        self.p.cluster.stop(Stop::Fast);
        let mut second = branch(&self.p, "second");
        second.psql("insert into t select n, 'second' from generate_series(1, 3000) as n");
        self.points.push(point(&second, "two"));
        let _ = archive(&second);
        second.stop(Stop::Fast);
        self.pieces(&second);
        self.remember();
    }

    /// Keeps what is there of documents and manifests.
    fn remember(&mut self) {
        for path in below(&self.p.repository) {
            let key = path.strip_prefix(&self.p.repository).unwrap().to_str().unwrap().to_owned();
            if key.contains(".json")
                && let Ok(bytes) = fs::read(&path)
            {
                self.earlier.insert(key, bytes);
            }
        }
    }

    /// Puts the beginning of the segment that is not archived into pieces.
    fn pieces(&self, cluster: &Cluster) {
        let wal = cluster.pgdata().join("pg_wal");
        self.by_the_library(async |system| {
            let timeline = system.timelines().await.unwrap().into_iter().max().unwrap();
            let last: SegmentName = system.segments(timeline, None, None).await.unwrap().last().unwrap().0;
            let next = last.next(system.document.segment_size).unwrap();
            let bytes = fs::read(wal.join(next.to_string())).unwrap();
            for (from, to) in [(0, 8192), (8192, 16384)] {
                system.put_piece(next, from as u64, bytes[from..to].to_vec().into(), 1).await.unwrap();
            }
        });
    }

    fn by_the_library(&self, work: impl AsyncFnOnce(&System)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let store = open(&self.p.repository, self.identity.as_deref());
        runtime.block_on(async {
            let system = System::all(&store, &"main".parse().unwrap()).await.unwrap().pop().unwrap();
            work(&system).await;
        });
        own(&self.p, &self.p.repository);
    }
}

fn point(cluster: &Cluster, name: &'static str) -> (&'static str, String) {
    let rows = cluster.psql(ROWS);
    cluster.psql(&format!("select pg_create_restore_point('{name}')"));
    (name, rows)
}

/// Gives everything below a folder to the servers' user.
fn own(p: &Protected, folder: &Path) {
    p.cluster.owner().own(folder);
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        match entry.file_type().unwrap().is_dir() {
            true => own(p, &entry.path()),
            false => p.cluster.owner().own(&entry.path()),
        }
    }
}

/// All files below a folder.
fn below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        match entry.file_type().unwrap().is_dir() {
            true => found.extend(below(&entry.path())),
            false => found.push(entry.path()),
        }
    }
    found
}

fn open(folder: &Path, identity: Option<&Path>) -> Arc<dyn Store> {
    let store = Arc::new(DirStore::open(folder.to_path_buf(), Arc::new(Random::seeded(1))).unwrap());
    let recipients = identity.map(|file| Identities::read(file).unwrap().recipients()).unwrap_or_default();
    Arc::new(Sealed::new(store, SEALING, Keys::new(recipients, identity.map(Path::to_path_buf))))
}

/// A copy of the repository.
pub struct Copy<'a> {
    scene: &'a Scene,
    folder: PathBuf,
    repository: PathBuf,
}

/// What became of a restore.
#[derive(Debug, PartialEq, Eq)]
pub enum Restored {
    /// The server has these rows.
    Rows(String),
    /// There is no server, for this reason.
    Refused(String),
}

impl<'a> Copy<'a> {
    pub fn of(scene: &'a Scene, name: &str) -> Self {
        let folder = scene.p.scene.folder(name);
        let repository = folder.join("repository");
        let copied = std::process::Command::new("cp").arg("-a").arg(&scene.p.repository).arg(&repository).status();
        assert!(copied.unwrap().success());
        Self { scene, folder, repository }
    }

    /// An object of that kind: not the last one, which nothing comes after.
    pub fn object(&self, kind: Kind) -> Option<PathBuf> {
        let all = self.of_kind(kind);
        assert!(!all.is_empty() || self.scene.identity.is_none() && kind == Kind::About, "there is no {kind:?}");
        // A segment in the midst of those that the last backup needs, or that come after it.
        all.get(all.len() / 2).cloned()
    }

    fn of_kind(&self, kind: Kind) -> Vec<PathBuf> {
        // Restores add notes of theirs, and clear old ones.
        let mut all = below(&self.repository);
        all.sort();
        let manifests = all.iter().filter(|object| Kind::Manifest.is(&self.key(object), true));
        let backups: BTreeSet<PathBuf> = manifests.map(|object| object.parent().unwrap().to_path_buf()).collect();
        all.retain(|object| kind.is(&self.key(object), backups.contains(object.parent().unwrap())));
        all
    }

    pub fn key(&self, object: &Path) -> String {
        object.strip_prefix(&self.repository).unwrap().to_str().unwrap().to_owned()
    }

    pub fn read(&self, object: &Path) -> Vec<u8> {
        fs::read(object).unwrap()
    }

    pub fn put(&self, object: &Path, bytes: &[u8]) {
        fs::write(object, bytes).unwrap();
    }

    pub fn remove(&self, object: &Path) {
        fs::remove_file(object).unwrap();
    }

    /// Has the notes of damage be those of the repository: every deep look writes what it has found.
    pub fn forget_damage(&self) {
        let original = &self.scene.p.repository;
        let notes = below(original).into_iter().filter(|path| Kind::Damage.is(path.to_str().unwrap(), false));
        let notes: Vec<PathBuf> = notes.collect();
        let there = |path: &Path| self.repository.join(path.strip_prefix(original).unwrap());
        let folder = there(notes[0].parent().unwrap());
        fs::remove_dir_all(&folder).unwrap();
        fs::create_dir(&folder).unwrap();
        for note in notes {
            fs::copy(&note, there(&note)).unwrap();
        }
        own(&self.scene.p, &folder);
    }

    /// Another object of that kind.
    pub fn another(&self, kind: Kind, object: &Path) -> Option<PathBuf> {
        self.of_kind(kind).into_iter().find(|other| other != object)
    }

    /// An object of that kind of which there was an older version, and that.
    pub fn older(&self, kind: Kind) -> Option<(PathBuf, Vec<u8>)> {
        self.of_kind(kind).into_iter().find_map(|object| {
            let key = self.key(&object);
            let (folder, name) = key.rsplit_once('/')?;
            let at = name.find(|c: char| c.is_ascii_digit())?;
            let (number, rest) = name[at..].split_once('.')?;
            let before = number.parse::<u32>().ok()?.checked_sub(1)?;
            let older = self.scene.earlier.get(&format!("{folder}/{}{before}.{rest}", &name[..at]))?;
            Some((object, older.clone()))
        })
    }

    /// What a fast look finds damaged: keys.
    pub fn fast(&self) -> BTreeSet<String> {
        self.look(false)
    }

    /// What a deep look finds damaged: keys.
    pub fn deep(&self) -> BTreeSet<String> {
        self.look(true)
    }

    fn look(&self, deep: bool) -> BTreeSet<String> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let store = open(&self.repository, self.scene.identity.as_deref());
        let state_dir = self.folder.join("looked");
        let request = DeepRequest {
            sample: None,
            not_checked_for: None,
            anew: true,
            parallel: 2,
            rate_limit: None,
            state_dir: state_dir.clone(),
        };
        let watch = Watch { progress: Arc::new(Unwatched), interrupt: Interrupter::new().listen() };
        let looked: walden::Result<Vec<Report>> = runtime.block_on(async {
            let document = repository::open(&*store).await?;
            let mut reports = Vec::new();
            for system in System::all(&store, &"main".parse().unwrap()).await? {
                reports.push(match deep {
                    true => verify::deep(&system, &document, &request, &SystemClock, &watch).await?,
                    false => verify::fast(&system, &watch).await?,
                });
            }
            Ok(reports)
        });
        _ = fs::remove_dir_all(state_dir);
        match looked {
            Ok(reports) => {
                let remarks =
                    reports.iter().flat_map(|report| &report.remarks).filter_map(|told| told.split(' ').next());
                let remarks: Vec<String> = remarks.map(str::to_owned).collect();
                reports
                    .iter()
                    .flat_map(|report| &report.damage)
                    .map(|found| found.object.clone())
                    .chain(remarks)
                    .collect()
            }
            // Without `system.json` nothing can be looked at: the error names it.
            Err(error) => error.to_string().split([':', ' ']).map(str::to_owned).collect(),
        }
    }

    /// Restores to a restore point on another host, which has nothing but the configuration and this copy.
    pub fn restored(&self, point: &str) -> Restored {
        let p = &self.scene.p;
        let name = self.folder.file_name().unwrap().to_str().unwrap();
        // With what a restore that was refused on the way keeps beside it.
        let place = p.scene.folder(&format!("{name}/place"));
        let pgdata = place.join("data");
        let text = fs::read_to_string(&p.config).unwrap();
        let text = text.replace(p.repository.to_str().unwrap(), self.repository.to_str().unwrap());
        let text = text
            .replace(&*p.scene.path().join("state").to_string_lossy(), &self.folder.join("state").to_string_lossy());
        let config = p.scene.write(&format!("{name}.toml"), text);
        let sockets = p.scene.folder(&format!("{name}-sockets"));
        let (to, sockets) = (format!("name:{point}"), format!("--set=unix_socket_directories={}", sockets.display()));
        let arguments =
            ["-q", "restore", "--to", &to, "--yes", "--start", "--set=listen_addresses=", &sockets, "--pgdata"];
        let ran = run(p.elsewhere(&config, arguments).arg(&pgdata));
        let ended = match ran.code {
            Some(0) => Restored::Rows(Cluster::attach(&pgdata, p.cluster.installation()).psql(ROWS)),
            _ => {
                assert!(!pgdata.join("postmaster.pid").exists(), "it was refused, and a server runs: {ran}");
                Restored::Refused(ran.stderr)
            }
        };
        fs::remove_dir_all(&place).unwrap();
        ended
    }
}
