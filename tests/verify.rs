//! What verification is for: damage is told with what it costs and how it is mended, plans go round it, and nothing that
//! is restored is wrong.
#![allow(clippy::unwrap_used, reason = "helpers of a test may panic like the test")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    thread::sleep,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use walden_testkit::{
    postgres::any,
    protected::{Place, Protected},
    run::{Ran, run},
};

const DEEP: [&str; 3] = ["--json", "verify", "--deep"];

/// A cluster with a state folder of its own, and perhaps a second repository.
fn protected(second: bool) -> Protected {
    let p = Protected::new(any(), Place::Directory, |b| b.setting("autovacuum", "off"));
    let text = fs::read_to_string(&p.config).unwrap();
    let (state, offsite) = (p.scene.path().join("state"), p.scene.path().join("offsite"));
    let second =
        if second { format!("[repository.offsite]\nurl = \"file://{}\"\n", offsite.display()) } else { String::new() };
    p.scene.write("walden.toml", format!("{text}\n{second}[archive]\nstate_dir = \"{}\"\n", state.display()));
    p.walden(["init"]).expect_code(0);
    p.cluster.psql("create table t as select n, md5(n::text) as text from generate_series(1, 20000) as n");
    p.cluster.psql("vacuum (freeze) t; checkpoint");
    p
}

fn part(p: &Protected, backup: &str) -> PathBuf {
    let system = p.cluster.psql("select system_identifier from pg_control_system()");
    p.repository.join(format!("main/{system}-1/backups/{backup}/part-00001.tar.zst"))
}

fn key(p: &Protected, path: &Path) -> String {
    path.strip_prefix(&p.repository).unwrap().to_str().unwrap().to_owned()
}

/// Changes a bit in the middle of a file; gives back what it was.
fn flip(path: &Path) -> Vec<u8> {
    let before = fs::read(path).unwrap();
    let mut bytes = before.clone();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
    before
}

/// What `--json` tells of the first system of the first repository.
fn system(ran: &Ran) -> Value {
    let told: Value = serde_json::from_str(&ran.stdout).unwrap();
    told["repositories"][0]["systems"][0].clone()
}

fn rows(p: &Protected, folder: &str, more: &[&str]) -> String {
    let mut copy = p.restored("latest", folder, more);
    let rows = copy.psql("select count(*), min(text), max(text) from t");
    copy.stop(walden_testkit::postgres::Stop::Fast);
    rows
}

#[test]
fn damage_is_gone_round_and_healed_by_the_next_backup() {
    let p = protected(false);
    let first = p.backup();
    p.cluster.psql("update t set text = 'changed' where n % 10 = 7");
    let second = p.backup();
    p.cluster.psql("insert into t values (0, 'last')");
    p.archive();
    let wanted = p.cluster.psql("select count(*), min(text), max(text) from t");
    p.walden(["verify"]).expect_code(0);
    p.walden(["verify", "--deep"]).expect_code(0);

    // Missing: the plan itself finds it.
    let own = part(&p, &second);
    let away = own.with_extension("away");
    fs::rename(&own, &away).unwrap();
    let found = p.walden(["--json", "verify"]);
    found.expect_code(6);
    let told = system(&found);
    assert_eq!(told["damage"][0]["object"], key(&p, &own), "{found}");
    assert_eq!(told["damage"][0]["wrong"], "missing");
    assert_eq!(told["lost_backups"][0]["id"], second.as_str());
    let planned = p.walden(["plan", "--to", "latest"]);
    assert!(planned.ok().contains(&first), "{planned}");
    let said = format!("{}{}", planned.stdout, planned.stderr);
    assert!(said.contains(&format!("backup {second} is passed over")), "{planned}");
    let asked = p.walden(["plan", "--to", "latest", "--backup", &second]);
    asked.expect_code(6);
    assert!(asked.stderr.contains("part 1 of backup"), "{asked}");
    assert_eq!(rows(&p, "round", &["--clone"]), wanted);
    fs::rename(&away, &own).unwrap();
    p.walden(["verify"]).expect_code(0);

    // Damaged within: a restore meets it, names it, and knows another way.
    let whole = flip(&own);
    p.walden(["verify"]).expect_code(0);
    let copy = p.scene.path().join("copy");
    let restore = |more: &[&str]| {
        let arguments = [&["-q", "restore", "--yes", "--to", "latest", "--pgdata", copy.to_str().unwrap()], more];
        p.walden(arguments.concat())
    };
    let met = restore(&[]);
    met.expect_code(6);
    assert!(met.stderr.contains(&format!("part 1 of backup {second}")), "{met}");
    assert!(met.stderr.contains(&format!("--backup {first} --force")), "{met}");
    restore(&["--backup", &first, "--force"]).expect_code(0);
    let found = p.walden(DEEP);
    found.expect_code(6);
    assert_eq!(system(&found)["damage"][0]["object"], key(&p, &own), "{found}");

    // From now on everybody knows of it.
    let planned = p.walden(["plan", "--to", "latest"]);
    assert!(planned.ok().contains(&first), "{planned}");
    let listed = p.walden(["list"]);
    assert!(listed.ok().contains("cannot be restored"), "{listed}");
    assert_eq!(rows(&p, "again", &["--clone"]), wanted);
    p.walden(["verify"]).expect_code(6);
    let third = p.backup();
    p.archive();
    let planned = p.walden(["plan", "--to", "latest"]);
    assert!(planned.ok().contains(&third), "{planned}");
    assert_eq!(rows(&p, "healed", &["--clone"]), wanted);

    // Brought back, it is found whole, and taken off the note.
    fs::write(&own, whole).unwrap();
    p.walden(["verify", "--deep", "--sample", "0.001%"]).expect_code(0);
    p.walden(["verify"]).expect_code(0);
    assert!(!p.walden(["list"]).ok().contains("cannot be restored"));
}

#[test]
fn a_damaged_segment_costs_instants_that_are_told() {
    let p = protected(false);
    let first = p.backup();
    p.cluster.psql("insert into t values (0, 'before')");
    p.archive();
    p.cluster.psql("insert into t values (0, 'within')");
    let name = p.archive();
    p.cluster.psql("insert into t values (0, 'behind')");
    p.archive();
    let second = p.backup();
    p.cluster.psql("insert into t values (0, 'after')");
    p.archive();
    let system_id = p.cluster.psql("select system_identifier from pg_control_system()");
    let segment = p.repository.join(format!("main/{system_id}-1/wal/{}/{}/{name}", &name[..8], &name[8..16]));
    let whole = flip(&segment);
    // Its head is whole: by names, lengths and links nothing is wrong with it.
    p.walden(["verify"]).expect_code(0);
    let found = p.walden(DEEP);
    found.expect_code(6);
    let told = system(&found);
    assert_eq!(told["damage"][0]["object"], key(&p, &segment), "{found}");
    assert_eq!(told["lost_backups"], serde_json::json!([]));
    let (lost, windows) = (&told["lost_instants"][0], &told["recoverable"][0]["windows"]);
    assert_eq!(windows.as_array().unwrap().len(), 2, "{found}");
    assert_eq!(lost["from"], windows[0]["to"]);
    assert_eq!(lost["to"], windows[1]["from"]);
    assert_eq!(windows[0]["backups"][0], first.as_str());
    assert_eq!(windows[1]["backups"][0], second.as_str());
    let shown = p.walden(["verify"]);
    shown.expect_code(6);
    for said in [&name, "cannot be recovered:", "can be recovered:", "walden wal push", " UTC"] {
        assert!(shown.stdout.contains(said), "\"{said}\" is not said: {shown}");
    }
    // What lies behind it is reached from the second backup, what lies within is not.
    p.walden(["plan", "--to", "latest"]).expect_code(0);
    let refused = p.walden(["plan", "--to", "latest", "--backup", &first]);
    refused.expect_code(6);
    assert!(refused.stderr.contains(&name), "{refused}");
    fs::write(&segment, whole).unwrap();
    p.walden(["verify", "--deep", "--sample", "0.001%"]).expect_code(0);
    p.walden(["plan", "--to", "latest", "--backup", &first]).expect_code(0);
}

#[test]
fn a_deep_look_goes_on_where_it_was_and_a_sample_comes_to_everything() {
    let p = protected(false);
    let _ = p.backup();
    p.archive();
    let every = system(p.walden(DEEP).expect_code(0))["deep"]["objects"].as_u64().unwrap();
    assert!(every > 5);
    // So slow that it is interrupted in the midst of it.
    let mut slow = p.command(["--json", "verify", "--deep", "--parallel", "1", "--rate-limit", "300kB"]);
    let child = slow.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let journal = |p: &Protected| {
        let mut found = vec![p.scene.path().join("state/verify")];
        while let Some(at) = found.pop() {
            if at.is_file() {
                return fs::read_to_string(at).unwrap();
            }
            found.extend(fs::read_dir(at).into_iter().flatten().flatten().map(|entry| entry.path()));
        }
        String::new()
    };
    // How many objects the round has that is not over; there are segments among them, which come first.
    let under_way = |text: &str| {
        let last = text.rsplit("round ").next().unwrap();
        if last.contains("done ") { 0 } else { last.lines().filter(|line| line.split(' ').count() == 3).count() }
    };
    while under_way(&journal(&p)) < 1 {
        sleep(Duration::from_millis(50));
    }
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(130), "{}", String::from_utf8_lossy(&ended.stderr));
    let first: Value = serde_json::from_slice(&ended.stdout).unwrap();
    let first = &first["repositories"][0]["systems"][0]["deep"];
    assert_eq!(first["interrupted"], true);
    let done = first["objects"].as_u64().unwrap();
    assert!((1..every).contains(&done), "{first}");
    let rest = system(p.walden(DEEP).expect_code(0))["deep"].clone();
    assert!(rest["goes_on_from"].is_string(), "{rest}");
    assert_eq!(rest["objects"].as_u64().unwrap() + done, every, "{rest}");

    // A third of it, three times: what was read the longest ago comes first.
    fs::remove_dir_all(p.scene.path().join("state/verify")).unwrap();
    let mut never = every;
    for _ in 0..20 {
        let told = system(p.walden(["--json", "verify", "--deep", "--sample", "34%"]).expect_code(0))["deep"].clone();
        let left = told["never_checked"].as_u64().unwrap();
        assert!(left < never || left == 0, "{told}");
        never = left;
    }
    assert_eq!(never, 0);
    let none = system(p.walden(["--json", "verify", "--deep", "--not-checked-for", "1d"]).expect_code(0));
    assert_eq!(none["deep"]["objects"], 0);
}

#[test]
fn of_several_repositories_each_is_looked_at_and_a_whole_copy_is_named() {
    let p = protected(true);
    let backup = p.backup();
    p.archive();
    p.walden(["sync"]).expect_code(0);
    p.walden(["verify", "--deep"]).expect_code(0);
    let own = part(&p, &backup);
    let offsite = p.scene.path().join("offsite").join(key(&p, &own));
    let whole = flip(&own);
    let found = p.walden(DEEP);
    found.expect_code(6);
    let told: Value = serde_json::from_str(&found.stdout).unwrap();
    let damage = |number: usize| told["repositories"][number]["systems"][0]["damage"].clone();
    assert_eq!(damage(0)[0]["whole_in"], serde_json::json!(["offsite"]), "{found}");
    assert_eq!(damage(1), serde_json::json!([]), "{found}");
    // The commands that it gives mend it.
    for step in damage(0)[0]["mend"].as_array().unwrap() {
        let words: Vec<&str> = step.as_str().unwrap().split(' ').collect();
        run(p.cluster.owner().command(words[0]).args(&words[1..])).expect_code(0);
    }
    assert!(fs::read(&own).unwrap() == whole);
    p.walden(["verify", "--deep"]).expect_code(0);

    // The other way round the first gives it again.
    flip(&offsite);
    let found = p.walden([&DEEP[..], &["--repository", "offsite"]].concat());
    found.expect_code(6);
    let mend = system(&found)["damage"][0]["mend"].clone();
    assert_eq!(mend, serde_json::json!([format!("rm {}", offsite.display()), "walden sync offsite"]), "{found}");
    run(p.cluster.owner().command("rm").arg(&offsite)).expect_code(0);
    p.walden(["sync", "offsite"]).expect_code(0);
    p.walden(["verify", "--deep"]).expect_code(0);
    assert!(fs::read(&offsite).unwrap() == whole);
}
