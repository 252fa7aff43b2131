//! A host that holds recipients and no identity does everything that a database's host has to do, and another one, which
//! holds the identity, reads what it stored; and whoever held an old identity reads nothing more once all is rewrapped.
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

mod archiving;
mod backups;
mod keeping;
mod scene;
mod streaming;

use std::{
    fs,
    thread::sleep,
    time::{Duration, Instant},
};

use scene::{Keyless, SECRET, bytes_below, holds};
use walden_testkit::{
    postgres::any,
    protected::Place,
    run::run,
    s3::{Conditions, S3Server},
};

#[test]
fn a_host_without_identity_backs_up_and_another_restores_in_a_directory() {
    let k = Keyless::new(any(), Place::Directory);
    works(&k);
    for (path, bytes) in bytes_below(&k.p.repository) {
        assert!(!holds(&bytes, SECRET), "{}", path.display());
    }
}

#[test]
fn a_host_without_identity_backs_up_and_another_restores_in_a_bucket() {
    let server = S3Server::start();
    let k = Keyless::new(any(), Place::Bucket(&server));
    works(&k);
    for key in server.keys() {
        assert!(!holds(&server.object(&key).unwrap().bytes, SECRET), "{key}");
    }
    // Where an object would be replaced that is not the one that was read, none is.
    server.set_conditions(Conditions::Ignored);
    let identity = format!("--identity={}", k.identity.display());
    let (before, refused) = (server.keys(), k.p.walden(["keys", "rewrap", &identity]));
    assert!(refused.expect_code(4).stderr.contains("does not honour If-Match"), "{refused}");
    assert_eq!(server.keys(), before);
}

fn works(k: &Keyless) {
    let p = &k.p;
    p.cluster.psql(&format!("create table {SECRET} as select n, repeat('x', 500) from generate_series(1, 20000) n"));
    p.archive();
    let first = k.backup(&format!("before {SECRET}"));
    p.cluster.psql(&format!("delete from {SECRET} where n % 5000 = 0"));
    let second = k.backup("second");
    assert!(second.stored * 5 < first.stored, "{} after {}", second.stored, first.stored);
    p.archive();

    let status = p.walden(["status"]).stdout;
    assert!(status.contains("times of the archive are not known here"), "{status}");
    p.walden(["check"]).expect_code(0);
    let list = p.walden(["list"]).ok().to_owned();
    assert!(list.contains(&first.id) && list.contains(&second.id) && !list.contains(SECRET), "{list}");
    p.walden(["timeline"]).expect_code(0);
    let listed = k.json(&["list"]);
    let system = &listed["systems"][0];
    assert_eq!(system["timelines"][0]["windows"].as_array().unwrap().len(), 1, "{listed}");
    assert!(system["backups"].as_array().unwrap().iter().all(|backup| backup["broken"].is_null()), "{listed}");

    // Without what it has kept, everything is stored again, and the host says so in one line.
    fs::remove_dir_all(p.scene.path().join("state/comparison")).unwrap();
    let third = k.backup("third");
    assert!(third.stored * 2 > first.stored, "{} after {}", third.stored, first.stored);
    assert_eq!(third.said.matches("everything is stored again").count(), 1, "{}", third.said);
    p.archive();

    let config = k.host_with(&k.identity);
    let list = run(&mut p.elsewhere(&config, ["list"])).ok().to_owned();
    assert!(list.contains(&format!("before {SECRET}")), "{list}");

    p.archive();

    // A server that sends its files is compared with in the same way.
    let sent = k.json(&["backup", "--remote"]);
    assert!(sent["stored"].as_u64().unwrap() * 5 < first.stored, "{sent}");

    // What the documents tell is enough to know what nobody needs.
    let text = fs::read_to_string(&p.config).unwrap();
    p.scene.write("walden.toml", format!("{text}\n[keep]\nlast = 1\n"));
    let plan = p.walden(["expire", "--dry-run"]).ok().to_owned();
    assert!(plan.contains(&first.id) && plan.contains(&second.id), "{plan}");
    p.walden(["expire"]).expect_code(0);
    let left = k.json(&["list"]);
    let left: Vec<_> = left["systems"][0]["backups"].as_array().unwrap().iter().map(|backup| &backup["id"]).collect();
    assert_eq!(left, [&sent["id"]]);
    assert_eq!(k.rows_by(&k.identity, "restored"), "19996");

    let segment = p.archive();
    for command in [&["find"][..], &["plan", "--to=latest"], &["list", "--space"], &["wal", "show", &segment]] {
        let refused = p.walden(command);
        assert!(refused.expect_code(4).stderr.contains("no identity is given here"), "{refused}");
    }
    let refused = k.restore(&p.config);
    assert!(refused.expect_code(4).stderr.contains("no identity is given here"), "{refused}");
    let wrong = p.scene.path().join("safe/wrong");
    p.walden(["keys", "generate", &format!("--output={}", wrong.display())]).expect_code(0);
    let refused = k.restore(&k.host_with(&wrong));
    assert!(refused.expect_code(4).stderr.contains("does not open it"), "{refused}");
}

#[test]
fn after_a_rotation_and_a_rewrapping_that_was_killed_the_old_identity_opens_nothing() {
    let k = Keyless::new(any(), Place::Directory);
    let p = &k.p;
    let (text, offsite) = (fs::read_to_string(&p.config).unwrap(), p.scene.path().join("offsite"));
    let mirror = format!("[repository.offsite]\nurl = \"file://{}\"\n\n[cluster.main]", offsite.display());
    p.scene.write("walden.toml", text.replace("[cluster.main]", &mirror));
    p.walden(["init"]).expect_code(0);
    p.cluster.psql(&format!("create table {SECRET} as select n from generate_series(1, 1000) n"));
    for _ in 0..6 {
        p.archive();
    }
    k.backup("old");
    let new = p.scene.path().join("safe/new");
    p.walden(["keys", "rotate", &format!("--output={}", new.display())]).expect_code(0);
    p.archive();
    let before: u64 = k.sealed_to().iter().map(|(_, objects)| objects).sum();
    assert_eq!(k.sealed_to().len(), 2);

    let identity = format!("--identity={}", k.identity.display());
    let mut rewrapping = p.command(["keys", "rewrap", &identity, "--rate-limit=200kB"]);
    let mut child = rewrapping.spawn().unwrap();
    let begun = k.sealed_to();
    let patience = Instant::now();
    while k.sealed_to() == begun {
        assert!(patience.elapsed() < Duration::from_secs(60), "nothing is rewrapped");
        sleep(Duration::from_millis(100));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let half = k.sealed_to();
    assert!(half.len() == 2 && half != begun, "{half:?}");

    // Each object is old or new, and whole.
    let both = [fs::read(&k.identity).unwrap(), fs::read(&new).unwrap()].concat();
    let both = p.scene.write("both", both);
    fs::set_permissions(&both, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    assert_eq!(k.rows_by(&both, "half"), "1000");
    let told = k.restore(&k.host_with(&k.identity));
    assert!(told.expect_code(4).stderr.contains("does not open it"), "{told}");

    let done = k.json(&["keys", "rewrap", &identity]);
    let mirror = &done["repositories"][1];
    assert!(mirror["name"] == "offsite" && mirror["rewrapped"]["objects"].as_u64() > Some(0), "{done}");
    let done = &done["repositories"][0]["rewrapped"];
    let count = |name: &str| done[name].as_u64().unwrap();
    assert!(count("already") > 0 && count("objects") > 0 && count("objects") + count("already") == before, "{done}");
    assert_eq!(k.sealed_to(), [(1, before)]);
    assert_eq!(k.json(&["keys", "rewrap", &identity])["repositories"][0]["rewrapped"]["objects"], 0);

    // The mirror was rewrapped by itself: behind its headers it has the same bytes, and nothing is to be copied.
    for (path, bytes) in bytes_below(&p.repository.join("main")) {
        if path.to_str().unwrap().contains("/backups/") {
            let there = fs::read(offsite.join(path.strip_prefix(&p.repository).unwrap())).unwrap();
            assert!(there.get(2048..) == bytes.get(2048..), "{}", path.display());
        }
    }
    let synced = p.walden(["sync"]);
    assert!(synced.expect_code(0).stderr.contains("nothing was missing"), "{synced}");

    assert_eq!(k.rows_by(&new, "whole"), "1000");
    let config = k.host_with(&k.identity);
    k.restore(&config).expect_code(4);
    for (path, bytes) in [bytes_below(&p.repository), bytes_below(&offsite)].concat() {
        let is_document = path.extension().is_some_and(|extension| extension == "json");
        // What a killed writer had begun is no object.
        let is_begun = path.components().any(|part| part.as_os_str() == "~writing");
        assert!(is_document || is_begun || bytes.starts_with(b"age-encryption.org/v1\n"), "{}", path.display());
    }
    let segment = p.cluster.psql("select pg_walfile_name('0/2000028')");
    let show = run(&mut p.elsewhere(&config, ["wal", "show", &segment]));
    assert!(show.expect_code(4).stderr.contains("does not open it"), "{show}");
}

#[test]
fn the_last_recipient_goes_only_when_that_is_said() {
    let k = Keyless::new(any(), Place::Directory);
    let one = k.json(&["keys", "list"])["recipients"][0].as_str().unwrap().to_owned();
    assert!(k.p.walden(["keys", "remove", &one]).expect_code(4).stderr.contains("last recipient"));
    let other = k.p.scene.path().join("safe/other");
    let other = k.p.walden(["-q", "keys", "generate", &format!("--output={}", other.display())]).ok().to_owned();
    k.p.walden(["keys", "add", &other]).expect_code(0);
    k.p.walden(["keys", "remove", &one]).expect_code(0);
    assert_eq!(k.json(&["keys", "list"])["recipients"], serde_json::json!([other]));
    let secret = "AGE-SECRET-KEY-1QQPQYQSZQGPQYQSZQGPQYQSZQGPQYQSZQGPQYQSZQGPQYQSZQGPQSQQQQQ";
    for command in ["add", "remove"] {
        let told = k.p.walden(["keys", command, secret]);
        assert!(!told.expect_code(2).stderr.contains("QQPQYQ"), "{told}");
    }
    k.p.walden(["keys", "remove", &other, "--last"]).expect_code(0);
    assert_eq!(k.json(&["keys", "list"])["recipients"], serde_json::json!([]));
}
