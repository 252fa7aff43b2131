//! Encryption on real servers: who has the recipients can archive, who has an identity can recover, who has neither learns
//! no name and no row; and everything comes back by the reference program, without Walden.

#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]
#![allow(clippy::print_stderr, reason = "what a test machine lacks is said where the test's other output goes")]

use std::{
    collections::BTreeMap,
    fs,
    io::Read,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use walden::{clock::Clock, seal::age::Identities};
use walden_testkit::{
    postgres::{Cluster, any},
    protected::{Place, Protected},
    run::{Ran, run},
    s3::S3Server,
    scene::Scene,
};

/// What must be found nowhere.
const SECRETS: [&str; 3] = ["secretbase", "quitesecret", "the-butler-did-it"];

/// A cluster that archives with recipients alone, and an identity that it does not know.
struct Sealed {
    p: Protected,
    identity: PathBuf,
}

impl Sealed {
    fn new(place: Place<'_>) -> Self {
        let p = Protected::new(any(), place, |b| b.setting("wal_keep_size", "1GB"));
        let (identity, recipient) = new_identity(&p.scene, "identity");
        let text = fs::read_to_string(&p.config).unwrap();
        let state = p.scene.path().join("state").display().to_string();
        let tables = format!("[archive]\nstate_dir = \"{state}\"\n[encryption]\nrecipients = [\"{recipient}\"]\n");
        p.scene.write("walden.toml", format!("{text}\n{tables}"));
        p.scene.write("reader.toml", format!("{text}\n{tables}identity_file = \"{}\"\n", identity.display()));
        p.cluster.psql("create database secretbase");
        Self { p, identity }
    }

    /// Rows that are secret, and a segment that is archived.
    fn write(&self, rows: u32) -> String {
        self.p.cluster.psql_db(
            "secretbase",
            &format!(
                "create table if not exists quitesecret (n serial, what text);
                 insert into quitesecret (what) select 'the-butler-did-it ' || n from generate_series(1, {rows}) as n"
            ),
        );
        self.p.archive()
    }

    /// `walden` with that identity.
    fn with(&self, identity: &Path, arguments: &[&str]) -> Command {
        let mut command = self.p.command(arguments);
        command.env("WALDEN_ENCRYPTION_IDENTITY_FILE", identity);
        command
    }

    fn backup(&self) -> String {
        run(&mut self.with(&self.identity, &["-q", "backup"])).ok().to_owned()
    }

    /// What was stored.
    fn objects(&self) -> BTreeMap<String, Vec<u8>> {
        let mut found = BTreeMap::new();
        below(&self.p.repository, &self.p.repository, &mut found);
        found
    }

    fn push(&self, name: &str, state: &str) -> Ran {
        let mut command = self.p.small_program("walden-archive");
        command.env("WALDEN_ARCHIVE_STATE_DIR", self.p.scene.path().join(state));
        run(command.arg(format!("pg_wal/{name}")))
    }

    /// Restores as a new host would, whose configuration names the identity.
    fn restored(&mut self, folder: &str) -> Cluster {
        let reader = self.p.scene.path().join("reader.toml");
        let writer = std::mem::replace(&mut self.p.config, reader);
        let copy = self.p.restored("latest", folder, &[]);
        self.p.config = writer;
        copy
    }
}

fn new_identity(scene: &Scene, name: &str) -> (PathBuf, String) {
    let (text, recipient) = Identities::generate(walden::clock::SystemClock.now());
    let path = scene.write(name, age::secrecy::ExposeSecret::expose_secret(&text));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    (path, recipient)
}

fn below(root: &Path, folder: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => below(root, &path, found),
            false => {
                let key = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                found.insert(key, fs::read(&path).unwrap());
            }
        }
    }
}

/// Which secrets are in it, as it is or compressed.
fn told(bytes: &[u8]) -> Vec<&'static str> {
    let mut content = Vec::new();
    // What is no row of frames is searched as it is.
    let _ = zstd::Decoder::new(bytes).and_then(|mut frames| frames.read_to_end(&mut content));
    let holds =
        |secret: &&str| [bytes, &content].iter().any(|b| b.windows(secret.len()).any(|w| w == secret.as_bytes()));
    SECRETS.into_iter().filter(holds).collect()
}

fn count(cluster: &Cluster) -> String {
    cluster.psql_db("secretbase", "select count(*) from quitesecret where what like 'the-butler%'")
}

#[test]
fn who_has_the_recipients_archives_and_who_has_the_identity_recovers() {
    let mut s = Sealed::new(Place::Directory);
    let segment = s.write(1000);
    s.backup();
    s.write(500);
    let second = s.backup();
    let last = s.write(7);
    nothing_is_readable(&s);

    // The same again is a success without an identity, other content is refused; whoever remembers nothing compares.
    assert!(s.push(&segment, "forgetful").expect_code(0).stderr.is_empty());
    let file = s.p.cluster.pgdata().join("pg_wal").join(&segment);
    let mut bytes = fs::read(&file).unwrap();
    bytes[4000] ^= 1;
    fs::write(&file, &bytes).unwrap();
    let refused = s.push(&segment, "forgetful too");
    refused.expect_code(4);
    assert!(refused.stderr.contains("other content") && refused.stderr.contains("BLAKE3"), "{refused}");

    // Without the identity, or with another one, nothing is read, and restore_command never says "absent".
    let (stranger, _) = new_identity(&s.p.scene, "stranger");
    let open = s.p.scene.path().join("open");
    fs::copy(&s.identity, &open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o644)).unwrap();
    let to = s.p.scene.path().join("fetched");
    let fetch = ["wal", "fetch", last.as_str(), to.to_str().unwrap()];
    for (mut command, why) in [
        (s.p.command(fetch), "no identity is given here"),
        (s.with(&stranger, &fetch), "does not open it"),
        (s.with(&open, &fetch), "can be read by others"),
        (s.with(&s.p.scene.path().join("nowhere"), &fetch), "is not there"),
    ] {
        let ran = run(&mut command);
        ran.expect_code(200);
        assert!(ran.stderr.contains(why) && ran.stderr.contains(&last) && ran.stderr.contains("hint"), "{ran}");
    }
    assert!(!to.exists());
    run(&mut s.with(&s.identity, &fetch)).expect_code(0);
    assert!(fs::read(&to).unwrap() == fs::read(s.p.cluster.pgdata().join("pg_wal").join(&last)).unwrap());
    let copy = s.p.scene.path().join("none");
    let restore = ["restore", "--to", "latest", "--yes", "--pgdata", copy.to_str().unwrap()];
    let refused = run(&mut s.p.command(restore));
    refused.expect_code(4);
    assert!(refused.stderr.contains("identity_file") && !copy.exists(), "{refused}");

    assert_eq!(count(&s.restored("copy")), "1507");
    by_the_reference_program(&s, &second, &last);
}

/// Objects are sealed, or documents that hold no name and no row.
#[track_caller]
fn nothing_is_readable(s: &Sealed) {
    let objects = s.objects();
    for (key, bytes) in &objects {
        assert_eq!(told(bytes), [""; 0], "{key}");
        assert!(!SECRETS.iter().any(|secret| key.contains(secret)));
        let is_sealed = bytes.starts_with(b"age-encryption.org/v1\n");
        assert!(is_sealed || key.ends_with(".json"), "{key} is readable");
        assert_eq!(key.ends_with(".age"), is_sealed && !key.contains("/wal/"), "{key}");
    }
    for kind in ["/part-", "/manifest-", "/catalogue-", "/backup-", "/wal/"] {
        assert!(objects.keys().any(|key| key.contains(kind)), "there is nothing like {kind}");
    }
}

/// The way back without Walden, and the proof that the secrets would have been found.
fn by_the_reference_program(s: &Sealed, backup: &str, segment: &str) {
    if Command::new("age").arg("--version").output().is_err() {
        eprintln!("SKIPPED: the reference program age is not installed (Debian's package age)");
        return;
    }
    let objects = s.objects();
    let shell = |key: &str, then: &str| {
        let object = s.p.repository.join(key);
        let line = format!("age -d -i {} {} | {then}", s.identity.display(), object.display());
        run(Command::new("bash").args(["-o", "pipefail", "-c", &line])).expect_code(0);
    };
    let (files, out) = (s.p.scene.path().join("by-hand"), s.p.scene.path().join("out"));
    fs::create_dir(&files).unwrap();
    for key in objects.keys().filter(|key| key.contains("/part-")) {
        shell(key, &format!("zstd -dcq | tar x -C {}", files.display()));
    }
    let mut found = BTreeMap::new();
    below(&files, &files, &mut found);
    let major = s.p.cluster.installation().major;
    assert_eq!(found["PG_VERSION"], format!("{major}\n").as_bytes());
    assert!(found.values().any(|bytes| told(bytes).contains(&SECRETS[2])), "no row in any file");
    let wal = objects.keys().find(|key| key.ends_with(segment)).unwrap();
    shell(wal, &format!("zstd -dcq > {}", out.display()));
    assert!(fs::read(&out).unwrap() == fs::read(s.p.cluster.pgdata().join("pg_wal").join(segment)).unwrap());
    let catalogue = objects.keys().find(|key| key.contains(&format!("{backup}/catalogue"))).unwrap();
    shell(catalogue, &format!("zstd -dcq > {}", out.display()));
    assert!(told(&fs::read(&out).unwrap()).contains(&SECRETS[1]));
}

#[test]
fn a_bucket_is_read_with_the_identity_range_by_range() {
    let server = S3Server::start();
    let mut s = Sealed::new(Place::Bucket(&server));
    s.write(2000);
    s.backup();
    s.write(10);
    for key in server.keys() {
        let bytes = server.object(&key).unwrap().bytes;
        assert_eq!(told(&bytes), [""; 0], "{key}");
        assert!(key.ends_with(".json") || bytes.starts_with(b"age-encryption.org/v1\n"), "{key}");
    }
    assert_eq!(count(&s.restored("copy")), "2010");
}

#[test]
fn what_was_streamed_is_sealed_in_pieces_and_recovered_from_them() {
    let mut s = Sealed::new(Place::Directory);
    s.write(100);
    s.backup();
    let mut receiver = s.p.command(["wal", "receive"]).spawn().unwrap();
    let begun = Instant::now();
    let pieces = |s: &Sealed| s.objects().into_iter().filter(|(key, _)| key.contains(".pieces/")).collect::<Vec<_>>();
    while pieces(&s).len() < 2 {
        s.p.cluster.psql_db("secretbase", "insert into quitesecret (what) values ('the-butler-did-it again')");
        assert!(begun.elapsed() < Duration::from_secs(60), "no pieces came");
        sleep(Duration::from_millis(300));
    }
    kill_process(Pid::from_child(&receiver), Signal::TERM).unwrap();
    receiver.wait().unwrap();
    for (key, bytes) in pieces(&s) {
        assert!(bytes.starts_with(b"age-encryption.org/v1\n"), "{key}");
    }
    nothing_is_readable(&s);
    let rows: u32 = count(&s.p.cluster).parse().unwrap();
    let copy: u32 = count(&s.restored("copy")).parse().unwrap();
    assert!((101..=rows).contains(&copy), "{copy} of {rows}");
}

#[test]
fn a_mirror_gets_the_bytes_as_they_are_stored() {
    let mut s = Sealed::new(Place::Directory);
    s.write(50);
    s.backup();
    let offsite = s.p.scene.path().join("offsite");
    for file in ["walden.toml", "reader.toml"] {
        let text = fs::read_to_string(s.p.scene.path().join(file)).unwrap();
        s.p.scene.write(file, format!("{text}\n[repository.offsite]\nurl = \"file://{}\"\n", offsite.display()));
    }
    run(&mut s.p.command(["init"])).expect_code(0);
    run(&mut s.with(&s.identity, &["sync"])).expect_code(0);
    let first = s.objects();
    let before = std::mem::replace(&mut s.p.repository, offsite);
    let mirror = s.objects();
    let own = ["/lease/", "/probe/", "/notes/restores/", "walden.json"];
    for (key, bytes) in first.iter().filter(|(key, _)| !own.iter().any(|part| key.contains(part))) {
        assert!(mirror.get(key) == Some(bytes), "{key}");
    }
    // A changed byte does not get into a mirror, though whoever copies cannot read it.
    let (key, bytes) = first.iter().find(|(key, _)| key.contains("/wal/")).unwrap();
    fs::remove_file(s.p.repository.join(key)).unwrap();
    let mut changed = bytes.clone();
    *changed.last_mut().unwrap() ^= 1;
    fs::write(before.join(key), &changed).unwrap();
    let ran = run(&mut s.with(&s.identity, &["sync"]));
    assert!(ran.code != Some(0) && ran.stderr.contains("does not have the hash"), "{ran}");
    assert!(!s.p.repository.join(key).exists());
}

#[test]
fn a_changed_byte_of_a_sealed_object_is_found_and_never_restored() {
    let s = Sealed::new(Place::Directory);
    s.write(300);
    s.backup();
    s.write(30);
    let verify = |deep: &[&str]| run(&mut s.with(&s.identity, &[&["verify"], deep].concat()));
    verify(&["--deep"]).expect_code(0);
    // Who has no identity says what was not looked at, and holds nothing for damaged because of that.
    let keyless = s.p.walden(["verify"]);
    assert!(keyless.ok().contains("no identity is given here"), "{keyless}");
    let objects = s.objects();
    for kind in ["/part-00001", "/manifest-", "/catalogue-", "/about-", "/wal/00000001/"] {
        let (key, bytes) = objects.iter().rfind(|(key, _)| key.contains(kind)).unwrap();
        let path = s.p.repository.join(key);
        // In the header, in its stanza, in the first chunk and at the end; and a file that ends early.
        let mut changed: Vec<Vec<u8>> = [30, 1000, 2048 + 16 + 40, bytes.len() - 1]
            .map(|at| {
                let mut changed = bytes.clone();
                changed[at] ^= 1;
                changed
            })
            .into();
        changed.push(bytes[..bytes.len() - 20].to_vec());
        for (number, bytes) in changed.into_iter().enumerate() {
            fs::write(&path, bytes).unwrap();
            let found = verify(&["--deep", "--anew"]);
            let name = key.trim_end_matches(".age");
            assert!(found.code == Some(6) && found.stdout.contains(name), "{key}, change {number}: {found}");
            let copy = s.p.scene.path().join("damaged");
            let restore = ["restore", "--to", "latest", "--yes", "--pgdata", copy.to_str().unwrap()];
            let restored = run(&mut s.with(&s.identity, &restore));
            // The catalogue only says what things are called.
            if kind != "/catalogue-" && kind != "/about-" {
                assert!(restored.code != Some(0), "{key}, change {number}: {restored}");
                assert!(!copy.join("global/pg_control").exists(), "{key}, change {number}");
            }
            let _ = fs::remove_dir_all(&copy);
        }
        fs::write(&path, objects.get(key).unwrap()).unwrap();
    }
    verify(&["--deep", "--anew"]).expect_code(0);
}
