//! A store that is slow, fails now and then, breaks requests and answers in the middle, and goes away for a while:
//! nothing that was acknowledged is missing, and the backlog drains. `WALDEN_TEST_LONG` makes it last ten minutes, five
//! of them without the store.
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

use std::{
    collections::BTreeSet,
    env, fs,
    thread::sleep,
    time::{Duration, Instant},
};

use walden_testkit::{
    agent::Agent,
    postgres::any,
    protected::{Place, Protected},
    s3::{Fault, S3Server, What},
};

/// Every hundredth request.
fn storm(server: &S3Server) {
    server.heal();
    server.fault(Fault::new(What::CutRequest).on("PutObject").every(50));
    for what in [What::Error(500, "InternalError"), What::Error(503, "SlowDown"), What::LoseAnswer, What::CutBody] {
        server.fault(Fault::new(what).every(200));
    }
}

fn write_for(p: &Protected, time: Duration) {
    let begun = Instant::now();
    while begun.elapsed() < time {
        p.cluster.psql("insert into t select n, repeat(md5(random()::text), 20) from generate_series(1, 1000) n");
        sleep(Duration::from_millis(150));
    }
}

fn outlast(with_agent: bool) {
    let long = env::var("WALDEN_TEST_LONG").is_ok_and(|long| long != "0");
    let (time, outage) = if long { (75, 150) } else { (2, 4) };
    let (time, outage) = (Duration::from_secs(time), Duration::from_secs(outage));
    let server = S3Server::start();
    let p = Protected::new(any(), Place::Bucket(&server), |b| b.wal_segment_size(1).setting("wal_keep_size", "16GB"));
    p.with_agent("parallel = 4");
    p.archive_through_agent();
    if !long {
        // So that it is given up in the short time as well.
        let text = fs::read_to_string(&p.config).unwrap();
        let soon = "path_style = true\nrequest_timeout = \"1s\"\ndeadline = \"2s\"";
        p.scene.write("walden.toml", text.replace("path_style = true", soon));
    }
    let agent = with_agent.then(|| Agent::start(&p));
    p.cluster.psql("create table t (n int, filler text)");
    server.set_latency(Duration::from_millis(100));
    storm(&server);
    write_for(&p, time);
    // It breaks every connection, and then it takes them and says nothing.
    for what in [What::Close, What::Stall] {
        server.heal();
        server.fault(Fault::new(what.clone()));
        let before = server.requests().len();
        let begun = Instant::now();
        write_for(&p, outage);
        let (asked, seconds) = (server.requests().len() - before, begun.elapsed().as_secs_f64());
        assert!((asked as f64) < 20.0 + 5.0 * seconds, "{asked} requests in {seconds} s to a store that is not there");
    }
    storm(&server);
    write_for(&p, time);
    let last = p.cluster.switch_wal();
    p.cluster.wait_archived(&last);
    server.heal();
    let mut proven = BTreeSet::new();
    p.nothing_is_lost(&mut proven);
    assert!(proven.contains(&last) && proven.len() > 10, "{proven:?}");
    assert_eq!(server.open_uploads(), 0);
    if let Some(agent) = agent {
        assert!(agent.says(&format!("{last} is durable")) || agent.says("was shipped before"), "{}", agent.log());
    }
}

#[test]
fn the_agent_outlasts_a_storm_and_an_outage() {
    outlast(true);
}

#[test]
fn pushes_outlast_a_storm_and_an_outage() {
    outlast(false);
}
