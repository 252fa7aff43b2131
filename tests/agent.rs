//! The agent beside a real server: the same answers as without it, whatever happens to it, and never a segment that
//! PostgreSQL holds for archived and the repository does not have.

#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    thread::sleep,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use walden_testkit::{
    agent::Agent,
    postgres::{any, for_each_version},
    protected::{Place, Protected},
    run::{Ran, run},
};

/// A cluster whose configuration has a place for an agent; its `archive_command` is `walden-archive` once
/// [`Protected::archive_through_agent`] was called, and holds everything back before.
fn protected(installation: &walden_testkit::postgres::Installation) -> Protected {
    let p = Protected::new(installation, Place::Directory, |b| {
        b.setting("archive_command", "false").setting("wal_keep_size", "4GB")
    });
    p.with_agent("parallel = 3");
    p
}

/// `walden-archive`, started by the server as its archiver starts it.
#[track_caller]
fn server_pushes(p: &Protected, name: &str) {
    p.cluster.psql(&format!("copy (select) to program '{} pg_wal/{name}'", p.agent_command()));
}

/// `walden-archive`, run by hand.
fn push(p: &Protected, name: &str) -> Ran {
    run(p.small_program("walden-archive").arg("--agent").arg(p.socket()).arg(format!("pg_wal/{name}")))
}

fn system(p: &Protected) -> PathBuf {
    let system = p.cluster.psql("select system_identifier from pg_control_system()");
    p.repository.join(format!("main/{system}-1"))
}

fn object(p: &Protected, name: &str) -> PathBuf {
    system(p).join(format!("wal/{}/{}/{name}", &name[..8], &name[8..16]))
}

fn records(p: &Protected) -> Vec<String> {
    fn below(folder: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.file_type().unwrap().is_dir() {
                true => below(&entry.path(), found),
                false => found.push(entry.file_name().into_string().unwrap()),
            }
        }
    }
    let mut found = Vec::new();
    below(&p.scene.path().join("state"), &mut found);
    found.sort();
    found
}

/// Whatever PostgreSQL holds for archived is in the repository.
#[track_caller]
fn nothing_is_lost(p: &Protected) -> usize {
    let mut proven = BTreeSet::new();
    p.nothing_is_lost(&mut proven);
    proven.len()
}

#[test]
fn the_agent_answers_and_walden_does_where_it_is_gone() {
    for_each_version(|installation| {
        let p = protected(installation);
        p.archive_through_agent();
        let agent = Agent::start(&p);
        for _ in 0..3 {
            let name = p.archive();
            assert!(agent.says(&format!("{name} is durable")), "the agent did not do it\n{}", agent.log());
        }
        let ended = agent.end(Signal::KILL);
        assert!(!ended.success() && p.socket().exists());
        p.archive();
        // What the killed one left behind is no hindrance.
        let agent = Agent::start(&p);
        let second = p.walden(["agent"]);
        second.expect_code(4);
        assert!(second.stderr.contains("another agent listens"), "{second}");
        let name = p.archive();
        assert!(agent.says(&format!("{name} is durable")), "{}", agent.log());
        assert_eq!(agent.end(Signal::TERM).code(), Some(0));
        assert!(!p.socket().exists());
        p.archive();
        assert!(nothing_is_lost(&p) >= 6);
    });
}

#[test]
fn a_backlog_is_shipped_before_postgresql_asks() {
    let p = protected(any());
    let names: Vec<String> = (0..12).map(|_| p.cluster.switch_wal()).collect();
    let agent = Agent::start(&p);
    sleep(Duration::from_millis(500));
    assert!(!object(&p, &names[0]).exists(), "PostgreSQL has not called");
    // Who pushes one by hand means that one.
    push(&p, &names[1]).expect_code(0);
    sleep(Duration::from_millis(500));
    assert!(object(&p, &names[1]).exists() && !object(&p, &names[2]).exists(), "{}", agent.log());
    // A first call of the server, and what it sets going.
    server_pushes(&p, &names[0]);
    let begun = Instant::now();
    while names[1..].iter().any(|name| !records(&p).contains(name)) {
        assert!(begun.elapsed() < Duration::from_secs(60), "{:?}\n{}", records(&p), agent.log());
        sleep(Duration::from_millis(50));
    }
    p.archive_through_agent();
    p.cluster.wait_archived(&names[11]);
    for name in &names[1..] {
        assert!(agent.says(&format!("{name} was shipped before")), "{name}\n{}", agent.log());
    }
    p.archive();
    let begun = Instant::now();
    while records(&p).iter().any(|name| names.contains(name)) {
        assert!(begun.elapsed() < Duration::from_secs(30), "records of what is archived stay: {:?}", records(&p));
        sleep(Duration::from_millis(50));
    }
    assert!(nothing_is_lost(&p) >= 12);
}

#[test]
fn without_an_agent_a_push_takes_others_along() {
    let p = protected(any());
    let names: Vec<String> = (0..5).map(|_| p.cluster.switch_wal()).collect();
    push(&p, &names[4]).expect_code(0);
    assert!(records(&p).is_empty() && !object(&p, &names[0]).exists(), "who pushes one by hand means that one");
    server_pushes(&p, &names[0]);
    assert_eq!(records(&p), names[1..3], "as many as are shipped at a time");
    assert!(names[..3].iter().all(|name| object(&p, name).exists()) && !object(&p, &names[3]).exists());
    let json = p.walden(["--json", "wal", "push", p.cluster.pgdata().join("pg_wal").join(&names[1]).to_str().unwrap()]);
    let json: serde_json::Value = serde_json::from_str(json.ok()).unwrap();
    assert_eq!(json["already_there"], true);
    // Another repository in the same place: what is remembered of the old one counts for nothing.
    let kept = p.scene.path().join("kept");
    fs::rename(&p.repository, &kept).unwrap();
    p.walden(["init"]).expect_code(0);
    assert!(records(&p).contains(&names[2]));
    server_pushes(&p, &names[2]);
    assert!(object(&p, &names[2]).exists());
    // A segment that was changed after it was shipped is another one.
    server_pushes(&p, &names[2]);
    assert!(records(&p).contains(&names[3]));
    let file = p.cluster.pgdata().join("pg_wal").join(&names[3]);
    let mut bytes = fs::read(&file).unwrap();
    bytes[4000] ^= 1;
    fs::write(&file, bytes).unwrap();
    push(&p, &names[3]).expect_code(4);
}

#[test]
fn what_is_refused_is_refused_in_the_same_words() {
    let p = protected(any());
    let (name, other) = (p.cluster.switch_wal(), p.cluster.switch_wal());
    push(&p, &name).expect_code(0);
    let file = p.cluster.pgdata().join("pg_wal").join(&name);
    fs::copy(p.cluster.pgdata().join("pg_wal").join(&other), &file).unwrap();
    let by_walden = push(&p, &name);
    by_walden.expect_code(4);
    let agent = Agent::start(&p);
    let by_agent = push(&p, &name);
    assert_eq!((by_agent.code, &by_agent.stderr), (Some(4), &by_walden.stderr));
    // The configuration changes under the agent: its next answer goes by what stands there.
    let text = fs::read_to_string(&p.config).unwrap();
    p.scene.write("walden.toml", text.replace("repository\"", "elsewhere\""));
    push(&p, &other).expect_code(2);
    p.scene.write("walden.toml", text.replace("url", "ulr"));
    let wrong = push(&p, &other);
    wrong.expect_code(2);
    assert!(wrong.stderr.contains("did you mean"), "{wrong}");
    p.scene.write("walden.toml", &text);
    push(&p, &other).expect_code(0);
    // One that is stuck is not waited for.
    agent.signal(Signal::STOP);
    push(&p, &other).expect_code(0);
    agent.signal(Signal::CONT);
}

#[test]
fn what_another_run_of_the_server_holds_back_is_not_shipped() {
    let mut p = protected(any());
    p.archive_through_agent();
    let agent = Agent::start(&p);
    p.archive();
    // As after a recovery in place: another server in the same directory, which holds its WAL back.
    p.cluster.psql("ALTER SYSTEM SET archive_command = 'false'");
    p.cluster.stop(walden_testkit::postgres::Stop::Fast);
    p.cluster.start();
    let names: Vec<String> = (0..3).map(|_| p.cluster.switch_wal()).collect();
    sleep(Duration::from_secs(2));
    assert!(names.iter().all(|name| !object(&p, name).exists()), "{}", agent.log());
    p.archive_through_agent();
    p.cluster.wait_archived(&names[2]);
    nothing_is_lost(&p);
}
