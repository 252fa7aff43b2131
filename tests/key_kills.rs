//! Whoever changes the keys of a repository is killed at each step, or meets a store that fails: every object stays
//! readable by the old identity or by the new one, and the same command run again ends the work.
//!
//! Calls of the store, requests and system calls are counted, not time. `WALDEN_TEST_SEED` repeats a run.
#![allow(clippy::unwrap_used, reason = "helpers of a test may panic like the test")]
#![allow(clippy::print_stderr, reason = "what a test machine lacks is said where the test's other output goes")]

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    thread::sleep,
    time::{Duration, Instant},
};

use tempfile::TempDir;
use walden::{
    Result,
    clock::{Clock, Random, SystemClock},
    interrupt::Interrupter,
    keys::{Rewrapped, Rewrapping},
    pace::Throttle,
    progress::Unwatched,
    repository::SEALING,
    seal::age::{Identities, Recipients},
    store::{
        self, Key, Put, Store,
        dir::DirStore,
        faulty::{Faulty, Trouble},
        sealed::{Keys, Sealed},
    },
};
use walden_testkit::{
    postgres::any,
    protected::{Place, Protected},
    run::{Ran, run},
    s3::{Fault, S3Server, What},
    scene::Scene,
};

/// An identity in a file of its own.
fn identity(folder: &Path, name: &str) -> PathBuf {
    let (text, _) = Identities::generate(SystemClock.now());
    let path = folder.join(name);
    fs::write(&path, age::secrecy::ExposeSecret::expose_secret(&text)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

/// Objects that are for the holder of one identity, and are to be for that of another.
struct Sealing {
    folder: TempDir,
    old: PathBuf,
    new: PathBuf,
    content: BTreeMap<Key, Vec<u8>>,
}

impl Sealing {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (old, new) = (identity(folder.path(), "old"), identity(folder.path(), "new"));
        let this = Self { folder, old, new, content: BTreeMap::new() };
        let place = this.folder.path().join("repository");
        DirStore::create(place.clone(), Arc::new(Random::seeded(1))).unwrap();
        let store = this.sealed(dir(&place), &[&this.old]);
        let mut content = BTreeMap::new();
        for (key, length) in [
            ("wal/00000001/00000000/000000010000000000000001", 300_000),
            ("wal/00000001/00000002.history", 60),
            ("backups/20261121T014500Z/part-00001.tar.zst", 200_000),
            ("backups/20261121T014500Z/manifest-1.json.zst", 900),
            ("backups/20261121T014500Z/backup-1.json", 500),
        ] {
            let key = Key::new(format!("main/7-1/{key}")).unwrap();
            let bytes: Vec<u8> = (0..length).map(|at: u32| (at / 7) as u8).collect();
            assert_eq!(store.put(&key, bytes.clone().into()).await.unwrap(), Put::Created);
            content.insert(key, bytes);
        }
        Self { content, ..this }
    }

    /// A store that opens with these identities, and seals to the last of them.
    fn sealed(&self, store: Arc<dyn Store>, identities: &[&PathBuf]) -> Arc<dyn Store> {
        let all: Vec<u8> = identities.iter().flat_map(|file| fs::read(file).unwrap()).collect();
        let file = self.folder.path().join(format!("{} identities", identities.len()));
        fs::write(&file, all).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        let recipients = identities.last().map(|file| recipients(file)).unwrap_or_default();
        Arc::new(Sealed::new(store, SEALING, Keys::new(recipients, Some(file))))
    }

    /// A copy of the repository as it was made.
    fn copy(&self) -> TempDir {
        let copy = tempfile::tempdir_in(self.folder.path()).unwrap();
        let from = self.folder.path().join("repository/.");
        assert!(Command::new("cp").arg("-a").arg(from).arg(copy.path()).status().unwrap().success());
        copy
    }

    async fn rewrap(&self, store: Arc<dyn Store>) -> Result<Rewrapped> {
        let (identities, to) = (Identities::read(&self.old).unwrap(), recipients(&self.new));
        let rewrapping = Rewrapping {
            identities: &identities,
            recipients: &to,
            parallel: 1,
            throttle: Arc::new(Throttle::new(None)),
            progress: &Unwatched,
            interrupt: &Interrupter::new().listen(),
        };
        rewrapping.all(&self.sealed(store, &[&self.old])).await
    }

    /// How many objects these identities open; what they open is what was written.
    async fn readable(&self, place: &Path, identities: &[&PathBuf]) -> usize {
        let store = self.sealed(dir(place), identities);
        let mut count = 0;
        for (key, bytes) in &self.content {
            if let Ok(read) = store::read(&*store, key, u64::MAX).await {
                assert!(read == bytes, "{key} is another");
                count += 1;
            }
        }
        count
    }
}

fn recipients(identity: &Path) -> Recipients {
    Identities::read(identity).unwrap().recipients()
}

fn dir(place: &Path) -> Arc<dyn Store> {
    Arc::new(DirStore::open(place.to_path_buf(), Arc::new(Random::seeded(1))).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whichever_call_of_the_store_fails_each_object_is_for_the_old_or_for_the_new() {
    let s = Sealing::new().await;
    let all = s.content.len();
    for trouble in [Trouble::Fail, Trouble::LoseAnswer, Trouble::Die] {
        for at in 0.. {
            let copy = s.copy();
            let faulty = Arc::new(Faulty::new(dir(copy.path()), at, trouble));
            let ended = s.rewrap(faulty.clone()).await;
            let what = format!("{trouble:?} at call {at}: {ended:?}");
            let (old, new) = (s.readable(copy.path(), &[&s.old]).await, s.readable(copy.path(), &[&s.new]).await);
            // The document, which is not encrypted, is readable by both.
            assert_eq!(old + new, all + 1, "{what}");
            assert_eq!(s.readable(copy.path(), &[&s.old, &s.new]).await, all, "{what}");
            if !faulty.met() {
                assert!(at > 3 * all && ended.is_ok(), "{what}");
                break;
            }
            let again = s.rewrap(dir(copy.path())).await.unwrap();
            assert!(again.problems.is_empty() && again.objects + again.already == all as u64 - 1, "{what}: {again:?}");
            assert_eq!(s.readable(copy.path(), &[&s.new]).await, all, "{what}");
            assert_eq!(s.readable(copy.path(), &[&s.old]).await, 1, "{what}");
        }
    }
}

#[test]
fn a_rewrapping_that_is_killed_or_refused_at_any_request_is_ended_by_the_next() {
    let seed = std::env::var("WALDEN_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    let mut rng = fastrand::Rng::with_seed(seed);
    let server = S3Server::start();
    let p = Protected::new(any(), Place::Bucket(&server), |b| b.wal_segment_size(1).setting("autovacuum", "off"));
    let safe = p.scene.folder("safe");
    let [old, new] = ["old", "new"].map(|name| safe.join(name));
    let output = |path: &Path| format!("--output={}", path.display());
    let recipient = p.walden(["-q", "keys", "generate", &output(&old)]).ok().to_owned();
    p.walden(["keys", "add", &recipient]).expect_code(0);
    let text = fs::read_to_string(&p.config).unwrap();
    p.scene.write("walden.toml", format!("{text}\n[archive]\nparallel = 1\n"));
    p.cluster.psql("create table t as select n, md5(n::text) from generate_series(1, 20000) as n");
    let _ = p.backup();
    let _ = p.archive();
    p.walden(["keys", "rotate", &output(&new)]).expect_code(0);
    let both = p.scene.write("both", [fs::read(&old).unwrap(), fs::read(&new).unwrap()].concat());
    fs::set_permissions(&both, fs::Permissions::from_mode(0o600)).unwrap();
    let whole = |identity: &Path, what: &str| {
        let mut verify = p.command(["verify", "--deep", "--anew"]);
        let ran = run(verify.env("WALDEN_ENCRYPTION_IDENTITY_FILE", identity));
        assert!(ran.code == Some(0) && !ran.stdout.contains("were not read"), "seed {seed}, {what}: {ran}");
    };
    let mut rewrap = p.command(["keys", "rewrap", &format!("--identity={}", old.display())]);
    rewrap.stdout(Stdio::null()).stderr(Stdio::null());
    let (mut at, mut kills, mut refusals) = (0, 0, 0);
    loop {
        let before = server.requests().len();
        let killed = rng.bool();
        let refused = || Fault::new(What::Error(403, "AccessDenied")).skip(at);
        server.fault(match (killed, rng.bool()) {
            (true, _) => Fault::new(What::Stall).skip(at),
            (false, true) => refused().times(1),
            (false, false) => refused(),
        });
        let mut child = rewrap.spawn().unwrap();
        let patience = Instant::now();
        let ended = loop {
            if let Some(ended) = child.try_wait().unwrap() {
                break Some(ended);
            }
            if killed && server.requests().len() > before + at {
                child.kill().unwrap();
                child.wait().unwrap();
                break None;
            }
            assert!(patience.elapsed() < Duration::from_secs(60), "seed {seed}: it does not end");
            sleep(Duration::from_millis(5));
        };
        server.heal();
        match ended {
            None => kills += 1,
            Some(ended) if ended.success() => break,
            Some(_) => refusals += 1,
        }
        whole(&both, &format!("request {at}, killed: {killed}"));
        at += rng.usize(1..5);
    }
    assert!(kills + refusals > 5, "seed {seed}: {kills} kills, {refusals} refusals");
    eprintln!("seed {seed}: {kills} kills, {refusals} refusals");
    assert_eq!(server.open_uploads(), 0);
    whole(&new, "at the end");
    let listed: serde_json::Value =
        serde_json::from_str(p.walden(["--json", "keys", "list", "--objects"]).ok()).unwrap();
    assert_eq!(listed["objects"]["encrypted"].as_array().unwrap().len(), 1, "{listed}");
}

/// A host's configuration, and a folder for identities; no server, no repository.
struct Host {
    scene: Scene,
    config: PathBuf,
    recipient: String,
}

impl Host {
    fn new() -> Self {
        let scene = Scene::new();
        let (etc, _) = (scene.folder("etc"), scene.folder("safe"));
        let text = "# the shop\n[repository]\nurl = \"file:///nowhere\"\n";
        let config = scene.write("etc/walden.toml", text);
        assert!(etc.exists());
        let mut host = Self { scene, config, recipient: String::new() };
        host.recipient = host.walden(&["-q", "keys", "generate", &host.output("old")]).ok().to_owned();
        host.walden(&["keys", "add", &host.recipient]).expect_code(0);
        host
    }

    fn output(&self, name: &str) -> String {
        format!("--output={}", self.scene.path().join("safe").join(name).display())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.scene.walden();
        command.arg("--config").arg(&self.config).args(arguments);
        command
    }

    fn walden(&self, arguments: &[&str]) -> Ran {
        run(&mut self.command(arguments))
    }

    /// The recipients of new objects.
    fn recipients(&self) -> Vec<String> {
        let listed: serde_json::Value = serde_json::from_str(self.walden(&["--json", "keys", "list"]).ok()).unwrap();
        listed["recipients"].as_array().unwrap().iter().map(|one| one.as_str().unwrap().to_owned()).collect()
    }

    /// The recipient of an identity in the safe, if it is there.
    fn recipient_of(&self, name: &str) -> Option<String> {
        let path = self.scene.path().join("safe").join(name);
        path.exists().then(|| recipients(&path).texts().next().unwrap())
    }
}

#[test]
fn a_rotation_whose_configuration_cannot_be_written_goes_on_with_its_identity() {
    let host = Host::new();
    let etc = host.config.parent().unwrap();
    let rotate = ["keys", "rotate", &host.output("new")];
    fs::set_permissions(etc, fs::Permissions::from_mode(0o555)).unwrap();
    let failed = host.walden(&rotate);
    assert!(failed.code != Some(0), "{failed}");
    assert_eq!(host.recipients(), std::slice::from_ref(&host.recipient), "the old one is still there");
    fs::set_permissions(etc, fs::Permissions::from_mode(0o755)).unwrap();
    // An identity that was made for something else does not take its place.
    let foreign = host.walden(&["keys", "rotate", &host.output("old")]);
    assert!(foreign.expect_code(4).stderr.contains("never overwritten"), "{foreign}");
    let written = host.recipient_of("new").unwrap();
    assert!(host.walden(&rotate).expect_code(0).stderr.contains("goes on"));
    assert_eq!(host.recipients(), [written]);
    let done = host.walden(&rotate);
    assert!(done.expect_code(4).stderr.contains("that rotation is done"), "{done}");
    assert!(host.walden(&["keys", "rotate", &host.output("newer")]).code == Some(0));
}

/// What changes files, so that between any two of these calls there is a state that a kill can leave.
const CALLS: [&str; 4] = ["linkat", "rename", "unlink", "fsync"];

#[test]
fn whoever_is_killed_at_a_system_call_leaves_keys_that_are_old_or_new() {
    if Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_err() {
        eprintln!("SKIPPED: strace is not installed, which kills a program at a system call");
        return;
    }
    let mut kills = 0;
    for (name, again) in [("add", &[0][..]), ("remove", &[0, 2]), ("rotate", &[0, 4])] {
        for call in CALLS {
            for number in 1.. {
                let host = Host::new();
                let other = host.walden(&["-q", "keys", "generate", &host.output("other")]).ok().to_owned();
                if name == "remove" {
                    host.walden(&["keys", "add", &other]).expect_code(0);
                }
                let before = host.recipients();
                let output = host.output("new");
                let arguments = ["keys", name, if name == "rotate" { &output } else { &other }];
                let killed = killed_at(&host, call, number, &arguments);
                if !killed {
                    break;
                }
                kills += 1;
                // Whichever recipient is named, its identity is there.
                let known = ["old", "other", "new"].map(|name| host.recipient_of(name));
                let now = host.recipients();
                assert!(now.iter().all(|one| known.contains(&Some(one.clone()))), "{name}, {call} {number}");
                let ended = host.walden(&arguments);
                assert!(ended.code.is_some_and(|code| again.contains(&code)), "{name}, {call} {number}: {ended}");
                if ended.code != Some(0) {
                    assert!(now != before, "{name}, {call} {number}: it was refused, and not done: {ended}");
                }
                let wanted = match name {
                    "add" => vec![host.recipient.clone(), other],
                    "remove" => vec![host.recipient.clone()],
                    _ => vec![host.recipient_of("new").unwrap()],
                };
                assert_eq!(host.recipients(), wanted, "{name}, {call} {number}");
                assert!(fs::read_to_string(&host.config).unwrap().starts_with("# the shop\n"));
            }
        }
    }
    assert!(kills > 10, "{kills} kills");
    eprintln!("{kills} kills");
}

/// Has it killed when it makes that system call for the `number`th time. False when it did not.
fn killed_at(host: &Host, call: &str, number: u32, arguments: &[&str]) -> bool {
    let mut command = host.scene.owner().command("strace");
    command.current_dir(host.scene.path()).env("HOME", host.scene.path());
    command.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}"), "-e"]);
    command.arg(format!("inject={call}:signal=KILL:when={number}"));
    command.arg(host.scene.program("walden")).arg("--config").arg(&host.config).args(arguments);
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
    !status.success() && status.code().is_none_or(|code| code == 137)
}
