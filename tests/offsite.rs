//! Two repositories: both get everything, whatever happens to one of them in between, and nothing is called archived
//! that is not where it was promised to be.

#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    thread::sleep,
    time::{Duration, Instant},
};

use walden_testkit::{
    postgres::{Cluster, Installation, Stop, any, for_each_version},
    protected::{Place, Protected},
    run::{Ran, run},
    s3::{Fault, S3Server, What},
};

/// A cluster with two repositories.
struct Two {
    p: Protected,
    offsite: PathBuf,
}

/// The second one in a directory.
fn two(installation: &Installation, place: Place<'_>, archive: &str) -> Two {
    let offsite = |p: &Protected| format!("url = \"file://{}\"\n", p.scene.path().join("offsite").display());
    let p = with_second(installation, place, archive, offsite);
    Two { offsite: p.scene.path().join("offsite"), p }
}

/// The second one wherever that table says. Archiving begins when both are there.
fn with_second(
    installation: &Installation,
    place: Place<'_>,
    archive: &str,
    table: impl FnOnce(&Protected) -> String,
) -> Protected {
    let p = Protected::new(installation, place, |b| b.setting("archive_timeout", "0"));
    p.cluster.psql("alter system set archive_command = 'false'");
    p.cluster.reload();
    let (config, state) = (fs::read_to_string(&p.config).unwrap(), p.scene.path().join("state"));
    let second = table(&p);
    let text = format!(
        "{config}\n[repository.offsite]\n{second}deadline = \"2s\"\n[archive]\nstate_dir = \"{}\"\n{archive}\n",
        state.display()
    );
    p.scene.write("walden.toml", text);
    p.walden(["init"]).expect_code(0);
    p.cluster.psql("alter system reset archive_command");
    p.cluster.reload();
    p
}

impl Two {
    /// Takes the offsite repository away: its folder, as when it is not mounted.
    fn away(&self) {
        fs::rename(&self.offsite, self.elsewhere()).unwrap();
    }

    fn back(&self) {
        fs::rename(self.elsewhere(), &self.offsite).unwrap();
    }

    fn elsewhere(&self) -> PathBuf {
        self.p.scene.path().join("elsewhere")
    }

    fn push(&self, name: &str) -> Ran {
        run(self.p.small_program("walden-archive").arg(format!("pg_wal/{name}")))
    }

    #[track_caller]
    fn are_equal(&self) {
        same(&objects(&self.p.repository), &objects(&self.offsite));
    }
}

/// Rows, and a segment that is archived.
fn work(p: &Protected) -> String {
    p.cluster.psql("create table if not exists t (n int); insert into t select generate_series(1, 1000)");
    p.archive()
}

/// What a mirror is to hold: everything but what is one repository's own.
fn is_mirrored(key: &str) -> bool {
    let own = ["/lease/", "/probe/", "/notes/restores/"];
    key != "walden.json" && !key.starts_with('~') && !own.iter().any(|part| key.contains(part))
}

type Objects = BTreeMap<String, Vec<u8>>;

fn objects(root: &Path) -> Objects {
    fn below(root: &Path, folder: &Path, found: &mut Objects) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                below(root, &path, found);
            } else {
                let key = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                found.insert(key, fs::read(&path).unwrap());
            }
        }
    }
    let mut found = Objects::new();
    below(root, root, &mut found);
    found.retain(|key, _| is_mirrored(key));
    found
}

fn in_bucket(server: &S3Server) -> Objects {
    let keys = server.keys().into_iter().filter_map(|key| Some((key.strip_prefix("walden/")?.to_owned(), key)));
    let found = keys.filter_map(|(name, key)| Some((name, server.object(&key)?.bytes.to_vec())));
    found.filter(|(name, _)| is_mirrored(name)).collect()
}

#[track_caller]
fn same(first: &Objects, mirror: &Objects) {
    let names = |objects: &Objects| objects.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(first), names(mirror));
    for (key, bytes) in first {
        assert!(mirror[key] == *bytes, "{key} is another object there");
    }
}

#[track_caller]
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(60), "in vain: {what}");
        sleep(Duration::from_millis(100));
    }
}

fn sync(p: &Protected) -> serde_json::Value {
    let ran = p.walden(["sync", "--json"]);
    let document: serde_json::Value = serde_json::from_str(ran.ok()).unwrap();
    document["mirrors"][0]["copied"].clone()
}

#[test]
fn both_get_everything() {
    for_each_version(|installation| {
        let two = two(installation, Place::Directory, "");
        let p = &two.p;
        work(p);
        let full = p.walden(["backup"]);
        full.expect_code(0);
        assert!(full.stderr.contains("offsite is in step with the first"), "{full}");
        two.are_equal();
        work(p);
        let second = p.backup();
        let last = work(p);
        two.are_equal();
        // A document names its mirror's own repository, and the one that it is of.
        let id = |root: &Path| -> serde_json::Value {
            serde_json::from_slice(&fs::read(root.join("walden.json")).unwrap()).unwrap()
        };
        let (first, mirror) = (id(&p.repository), id(&two.offsite));
        assert_eq!(mirror["mirror_of"], first["id"]);
        assert_ne!(mirror["id"], first["id"]);
        // What is there is not copied again.
        assert_eq!(sync(p)["objects"], 0);
        assert!(objects(&two.offsite).keys().any(|key| key.ends_with(&last)));
        assert!(objects(&two.offsite).keys().any(|key| key.ends_with(&format!("{second}/backup-1.json"))));
        p.walden(["check"]).expect_code(0);
        p.walden(["init"]).expect_code(0);
    });
}

#[test]
fn a_bucket_and_a_directory_stand_in_for_each_other() {
    let server = S3Server::start();
    let two = two(any(), Place::Bucket(&server), "");
    work(&two.p);
    let _ = two.p.backup();
    work(&two.p);
    same(&in_bucket(&server), &objects(&two.offsite));

    let server = S3Server::start();
    server.set_page(3);
    let p = with_second(any(), Place::Directory, "wait_for = \"first\"", |p| bucket(&server, p));
    p.cluster.psql("alter system set archive_command = 'false'");
    work_unarchived(&p);
    let config = format!("HOME={} ", p.scene.path().display());
    let command = format!("{config}{} --config {} %p", p.scene.program("walden-archive").display(), p.config.display());
    p.cluster.psql(&format!("alter system set archive_command = '{command}'"));
    p.cluster.reload();
    work(&p);
    let _ = p.backup();
    same(&objects(&p.repository), &in_bucket(&server));
}

/// The table of a second repository in a bucket, to which a profile has the keys.
fn bucket(server: &S3Server, p: &Protected) -> String {
    let _ = p.scene.folder(".aws");
    let (id, secret) = (server.access_key(), server.secret_key());
    let keys = format!("[away]\naws_access_key_id = {id}\naws_secret_access_key = {secret}\n");
    p.scene.write(".aws/credentials", keys);
    let (bucket, endpoint) = (server.bucket(), server.endpoint());
    format!(
        "url = \"s3://{bucket}/walden\"\nendpoint = \"{endpoint}\"\nregion = \"us-east-1\"\npath_style = true\nprofile = \"away\"\n"
    )
}

/// Rows, and a segment that waits.
fn work_unarchived(p: &Protected) -> String {
    p.cluster.reload();
    p.cluster.psql("create table if not exists t (n int); insert into t select generate_series(1, 1000)");
    p.cluster.switch_wal()
}

#[test]
fn what_waits_for_all_is_not_acknowledged_while_one_is_away() {
    let two = two(any(), Place::Directory, "");
    let p = &two.p;
    work(p);
    p.cluster.psql("alter system set archive_command = 'false'");
    let name = work_unarchived(p);
    two.away();
    let refused = two.push(&name);
    assert!(!matches!(refused.code, Some(0)) && refused.stderr.contains("repository offsite"), "{refused}");
    // The first has it all the same, and a second try does not take it for archived.
    assert!(objects(&p.repository).keys().any(|key| key.ends_with(&name)));
    assert_ne!(two.push(&name).code, Some(0));
    two.back();
    two.push(&name).expect_code(0);
    assert!(objects(&two.offsite).keys().any(|key| key.ends_with(&name)));
    two.are_equal();
}

#[test]
fn what_waits_for_the_first_goes_on_and_the_other_catches_up() {
    let two = two(any(), Place::Directory, "wait_for = \"first\"");
    let p = &two.p;
    work(p);
    two.away();
    work(p);
    let alone = p.walden(["backup"]);
    alone.expect_code(0);
    assert!(alone.stderr.contains("in the first repository alone"), "{alone}");
    p.walden(["sync"]).expect_code(5);
    for _ in 0..5 {
        work(p);
    }
    two.back();
    // Pushes alone bring it up, as long as there are some.
    until("pushes bring the mirror up", || {
        work(p);
        objects(&p.repository) == objects(&two.offsite)
    });
}

#[test]
fn a_kill_in_the_middle_leaves_nothing_that_is_not_whole() {
    let server = S3Server::start();
    let p = with_second(any(), Place::Directory, "wait_for = \"first\"", |p| bucket(&server, p));
    p.cluster.psql("alter system set archive_command = 'false'");
    p.cluster.reload();
    work_unarchived(&p);
    server.fault(Fault::new(What::Error(503, "SlowDown")));
    p.cluster.psql("alter system reset archive_command");
    p.cluster.reload();
    for _ in 0..3 {
        work(&p);
    }
    let _ = p.backup();
    server.heal();
    let (ours, before) = (objects(&p.repository), in_bucket(&server).len());
    let mut kills = 0;
    server.fault(Fault::new(What::Delay(Duration::from_millis(60))).on("PutObject"));
    loop {
        // As soon as it has put something: others are under way then.
        let there = server.keys().len();
        let mut running = p.command(["-q", "sync"]).spawn().unwrap();
        while server.keys().len() == there && running.try_wait().unwrap().is_none() {
            sleep(Duration::from_millis(2));
        }
        let ended = running.try_wait().unwrap();
        if ended.is_none() {
            running.kill().unwrap();
            running.wait().unwrap();
            kills += 1;
        }
        let theirs = in_bucket(&server);
        theirs.iter().for_each(|(key, bytes)| assert!(ours[key] == *bytes, "{key}"));
        if let Some(document) = theirs.keys().find(|key| key.contains("/backup-1.json")) {
            let folder = document.trim_end_matches("backup-1.json");
            let parts = |objects: &Objects| objects.keys().filter(|key| key.starts_with(folder)).count();
            assert_eq!(parts(&theirs), parts(&ours), "a document before what it needs");
        }
        if let Some(status) = ended {
            assert!(status.success());
            break;
        }
    }
    assert!(kills > 1 && before < ours.len(), "{kills} kills, {before} of {} were there", ours.len());
    same(&ours, &in_bucket(&server));
}

#[test]
fn a_wiped_mirror_is_found_out_and_filled_again() {
    let two = two(any(), Place::Directory, "");
    let p = &two.p;
    work(p);
    let _ = p.backup();
    p.cluster.psql("alter system set archive_command = 'false'");
    let name = work_unarchived(p);
    two.push(&name).expect_code(0);
    fs::remove_dir_all(&two.offsite).unwrap();
    let refused = two.push(&name);
    assert!(!matches!(refused.code, Some(0)) && refused.stderr.contains("repository offsite"), "{refused}");
    p.walden(["init"]).expect_code(0);
    // What was remembered was remembered of the mirror that is gone.
    two.push(&name).expect_code(0);
    assert!(objects(&two.offsite).keys().any(|key| key.ends_with(&name)));
    assert!(sync(p)["objects"].as_u64().unwrap() > 3);
    two.are_equal();
}

#[test]
fn a_strange_mirror_is_refused() {
    let two = two(any(), Place::Directory, "");
    let p = &two.p;
    p.cluster.psql("alter system set archive_command = 'false'");
    let name = work_unarchived(p);
    let another = |mirror_of: &str| {
        let document = format!("{{\"format\":1,\"id\":\"c0ffee\",\"made\":\"2026-01-01T00:00:00Z\"{mirror_of}}}");
        fs::write(two.offsite.join("walden.json"), document).unwrap();
    };
    let own = fs::read(two.offsite.join("walden.json")).unwrap();
    for (mirror_of, what) in [("", "a repository of its own"), (",\"mirror_of\":\"beef\"", "a copy of another")] {
        another(mirror_of);
        for ran in [two.push(&name), p.walden(["sync"]), p.walden(["init"])] {
            assert!(ran.expect_code(4).stderr.contains(what), "{ran}");
        }
    }
    // The first made anew beside a mirror of the lost one: what is left must not be taken for its copy.
    fs::write(two.offsite.join("walden.json"), own).unwrap();
    fs::remove_file(p.repository.join("walden.json")).unwrap();
    let refused = p.walden(["init"]);
    assert!(refused.expect_code(4).stderr.contains("exchange the tables"), "{refused}");
}

#[test]
fn what_is_damaged_in_the_first_is_not_copied() {
    let two = two(any(), Place::Directory, "wait_for = \"first\"");
    let p = &two.p;
    work(p);
    two.away();
    let segment = work(p);
    let id = p.backup();
    let part = objects(&p.repository).into_keys().find(|key| key.ends_with("part-00001.tar.zst")).unwrap();
    let key = objects(&p.repository).into_keys().find(|key| key.ends_with(&segment)).unwrap();
    let spoil = |key: &str| {
        let path = p.repository.join(key);
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&path, bytes).unwrap();
    };
    spoil(&part);
    spoil(&key);
    two.back();
    p.cluster.psql("alter system set archive_command = 'false'");
    p.cluster.reload();
    let found = p.walden(["sync"]);
    assert!(found.expect_code(6).stderr.contains(&part) && found.stderr.contains(&key), "{found}");
    let theirs = objects(&two.offsite);
    assert!(!theirs.contains_key(&part) && !theirs.contains_key(&key));
    assert!(!theirs.keys().any(|key| key.ends_with(&format!("{id}/backup-1.json"))));
    // Everything else is there, and what is mended follows.
    assert_eq!(theirs.len() + 3, objects(&p.repository).len());
    spoil(&part);
    spoil(&key);
    assert_eq!(sync(p)["objects"], 3);
    two.are_equal();
}

/// Restores to the end of the archive beside the cluster, starts the copy, and counts its rows.
fn restored_rows(p: &Protected, name: &str) -> (Ran, String) {
    let pgdata = p.scene.path().join(name);
    let sockets = p.scene.folder(&format!("{name}-sockets"));
    let ran = p.walden([
        "restore",
        "--to",
        "latest",
        "--pgdata",
        pgdata.to_str().unwrap(),
        "--yes",
        "--start",
        "--clone",
        &format!("--set=unix_socket_directories={}", sockets.display()),
        "--set=listen_addresses=",
    ]);
    ran.expect_code(0);
    let mut copy = Cluster::attach(&pgdata, p.cluster.installation());
    let rows = copy.psql("select count(*) from t");
    copy.stop(Stop::Fast);
    (ran, rows)
}

#[test]
fn when_the_first_is_lost_recovery_goes_on_from_the_other() {
    for_each_version(|installation| {
        let two = two(installation, Place::Directory, "");
        let p = &two.p;
        work(p);
        let id = p.backup();
        work(p);
        p.cluster.psql("alter system set archive_command = 'false'");
        p.cluster.reload();
        fs::rename(&p.repository, p.scene.path().join("lost")).unwrap();
        let listed = p.walden(["list"]);
        assert!(listed.ok().contains(&id) && listed.stderr.contains("repository first"), "{listed}");
        let status = p.walden(["status"]);
        assert!(status.expect_code(1).stdout.contains("the first repository does not answer"), "{status}");
        let (_, rows) = restored_rows(p, "copy");
        assert_eq!(rows, "2000");
        // What writes does not go to the other instead.
        let before = objects(&two.offsite);
        p.walden(["backup"]).expect_code(5);
        same(&before, &objects(&two.offsite));
    });
}

#[test]
fn a_damaged_object_is_taken_from_the_other() {
    let two = two(any(), Place::Directory, "");
    let p = &two.p;
    work(p);
    let _ = p.backup();
    let segment = work(p);
    for ending in ["part-00001.tar.zst", &segment, "manifest-1.json.zst"] {
        let key = objects(&p.repository).into_keys().find(|key| key.ends_with(ending)).unwrap();
        let path = p.repository.join(key);
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&path, bytes).unwrap();
    }
    let (ran, rows) = restored_rows(p, "copy");
    assert_eq!(rows, "2000");
    for ending in ["part-00001.tar.zst", "manifest-1.json.zst"] {
        let told = format!("{ending} in repository first is damaged");
        assert!(ran.stderr.contains(&told), "{ran}");
    }
    // From the first alone it cannot be had.
    let pgdata = p.scene.path().join("another");
    let arguments =
        ["--repository", "first", "restore", "--to", "latest", "--yes", "--pgdata", pgdata.to_str().unwrap()];
    p.walden(arguments).expect_code(6);
}

#[test]
fn absence_is_proven_by_all_that_are_configured() {
    let two = two(any(), Place::Directory, "");
    let p = &two.p;
    let names = [work(p), work(p), work(p)];
    let to = p.scene.path().join("fetched");
    let fetch = |name: &str, more: &[&str]| {
        let arguments = ["wal", "fetch", name, to.to_str().unwrap()];
        let ran = p.walden(arguments.iter().chain(more));
        ran.code.unwrap()
    };
    let remove = |root: &Path, name: &str| {
        let key = objects(root).into_keys().find(|key| key.ends_with(name)).unwrap();
        fs::remove_file(root.join(key)).unwrap();
    };
    let unknown = "000000010000000900000009";
    assert_eq!(fetch(unknown, &[]), 1);
    remove(&p.repository, &names[1]);
    assert_eq!(fetch(&names[1], &[]), 0, "the other has it");
    assert_eq!(fetch(&names[1], &["--repository", "first"]), 200, "a hole");
    remove(&two.offsite, &names[1]);
    assert_eq!(fetch(&names[1], &[]), 200, "a hole in both");
    two.away();
    assert_eq!(fetch(unknown, &[]), 200, "the other may have it");
    assert_eq!(fetch(unknown, &["--repository", "first"]), 1);
    assert_eq!(fetch(&names[2], &[]), 0);
    // With a plan nothing that it needs is called absent, and what it does not need may be.
    assert_eq!(fetch("00000009.history", &["--until", &names[2]]), 1);
    assert_eq!(fetch(&names[1], &["--until", &names[2]]), 200);
    let refused = p.walden(["--repository", "first", "backup"]);
    assert!(refused.expect_code(2).stderr.contains("for commands that read"), "{refused}");
    p.walden(["--repository", "second", "list"]).expect_code(2);
}

#[test]
fn list_and_status_tell_how_far_the_other_is_behind() {
    let two = two(any(), Place::Directory, "wait_for = \"first\"");
    let p = &two.p;
    work(p);
    let _ = p.backup();
    assert!(p.walden(["list"]).ok().contains("offsite: has everything"), "{}", p.walden(["list"]));
    two.away();
    work(p);
    let id = p.backup();
    let away = p.walden(["status"]);
    assert!(away.expect_code(1).stdout.contains("offsite"), "{away}");
    p.cluster.psql("alter system set archive_command = 'false'");
    p.cluster.reload();
    two.back();
    let listed = p.walden(["list"]);
    assert!(listed.ok().contains(&format!("backup {id} is not there")), "{listed}");
    let document: serde_json::Value = serde_json::from_str(p.walden(["list", "--json"]).ok()).unwrap();
    let behind = &document["mirrors"][0]["behind"];
    assert!(behind["segments"].as_u64().unwrap() > 0 && behind["since"].is_string(), "{behind}");
    p.walden(["sync"]).expect_code(0);
    assert!(p.walden(["list"]).ok().contains("offsite: has everything"));
}
