//! kill -9 of everything that takes part in archiving, under load, again and again: whatever was acknowledged is in the
//! repository, byte for byte, and the rest comes after it. `WALDEN_TEST_LONG` takes many more rounds.
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

use std::{
    collections::BTreeSet,
    env, fs,
    process::{Child, Stdio},
    thread::sleep,
    time::Duration,
};

use rustix::process::Signal;
use walden_testkit::{
    agent::Agent,
    postgres::installed,
    protected::{Place, Protected},
    s3::S3Process,
    scene::Scene,
};

/// How often each is killed.
fn rounds() -> usize {
    if env::var("WALDEN_TEST_LONG").is_ok_and(|long| long != "0") { 200 } else { 5 }
}

fn protected(place: Place<'_>) -> Protected {
    let p = Protected::new(installed().last().unwrap(), place, |b| {
        b.wal_segment_size(1).setting("wal_keep_size", "16GB").setting("max_wal_size", "1GB")
    });
    p.cluster.psql("create table t (n int, filler text)");
    p.with_agent("parallel = 4");
    p.archive_through_agent();
    p
}

/// A client that writes some segments a second until it is killed, or the server is.
struct Load(Child);

impl Load {
    fn start(p: &Protected) -> Self {
        let line = "insert into t select n, repeat(md5(random()::text), 20) from generate_series(1, 1000) n;\n\
                    select pg_sleep(0.1);\n";
        let script = p.scene.write("load.sql", line.repeat(1000));
        let mut psql = p.cluster.pg("psql");
        psql.arg("-Xqf").arg(script).stdout(Stdio::null()).stderr(Stdio::null());
        Self(psql.spawn().unwrap())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// Has `kill` happen at random instants under load, and proves after each that nothing is lost, and in the end that all
/// the rest has come.
fn survives(mut p: Protected, mut kill: impl FnMut(&mut Protected, &mut fastrand::Rng)) {
    let (mut proven, mut random) = (BTreeSet::new(), fastrand::Rng::with_seed(7));
    for _ in 0..rounds() {
        let load = Load::start(&p);
        sleep(Duration::from_millis(random.u64(200..700)));
        kill(&mut p, &mut random);
        drop(load);
        p.nothing_is_lost(&mut proven);
    }
    let last = p.cluster.switch_wal();
    p.cluster.wait_archived(&last);
    p.nothing_is_lost(&mut proven);
    let first = proven.first().unwrap();
    let number = |name: &str| usize::from_str_radix(&name[16..], 16).unwrap();
    assert_eq!(proven.len(), number(&last) - number(first) + 1, "every one from {first} to {last}");
    assert!(proven.len() > rounds(), "there was load: {proven:?}");
    let waits = fs::read_dir(p.cluster.pgdata().join("pg_wal/archive_status")).unwrap();
    assert!(waits.flatten().all(|file| file.path().extension().is_some_and(|e| e == "done")));
}

#[test]
fn the_agent_is_killed() {
    let p = protected(Place::Directory);
    let mut agent = Some(Agent::start(&p));
    survives(p, |p, random| {
        // One in three is asked to end.
        let signal = if random.u8(0..3) == 0 { Signal::TERM } else { Signal::KILL };
        _ = agent.take().unwrap().end(signal);
        sleep(Duration::from_millis(random.u64(0..300)));
        agent = Some(Agent::start(p));
    });
}

#[test]
fn the_push_is_killed() {
    let mut killed = 0;
    survives(protected(Place::Directory), |p, random| {
        for _ in 0..8 {
            let program = ["walden", "walden", "walden-archive"][random.usize(0..3)];
            killed += p.scene.kill9(program);
            sleep(Duration::from_millis(random.u64(0..60)));
        }
    });
    assert!(killed > 0);
}

#[test]
fn postgresql_is_killed() {
    let p = protected(Place::Directory);
    let _agent = Agent::start(&p);
    survives(p, |p, _| {
        p.cluster.kill9();
        p.cluster.start();
    });
}

#[test]
fn the_s3_server_is_killed() {
    let scene = Scene::new();
    let mut server = S3Process::start(scene.path().join("objects"));
    let p = protected(Place::Process(&server));
    let _agent = Agent::start(&p);
    survives(p, |_, random| {
        server.kill9();
        sleep(Duration::from_millis(random.u64(0..800)));
        server.revive();
    });
}
