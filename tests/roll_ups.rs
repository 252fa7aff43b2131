//! Rolling up the summaries of a log, on a real archive in a bucket: a plan then asks for less and tells the same, and
//! tells the same without the roll-up and with a damaged one.
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

use serde_json::Value;
use walden_testkit::{
    postgres::any,
    protected::{Place, Protected},
    s3::S3Server,
};

/// The last segments of the first log, at 1 MB each.
const FIRST: &str = "000000010000000000000FE4";

/// A plan without the moment at which it was made, and which objects were read for it: segments, and roll-ups.
fn plan(p: &Protected, server: &S3Server, to: &str) -> (Value, usize, usize) {
    let before = server.requests().len();
    let ran = p.walden(["--json", "plan", "--to", to]);
    let mut plan: Value = serde_json::from_str(ran.ok()).unwrap();
    plan.as_object_mut().unwrap().remove("planned");
    let asked = server.requests().split_off(before);
    let read = |part: &str| asked.iter().filter(|r| r.operation == "GetObject" && r.path.contains(part)).count();
    (plan, read("/wal/00000001/0"), read("/notes/summaries/"))
}

/// Fills the first log to its end, plans for a time near there, lets `roll_up` do its work, and plans again.
fn a_plan_is_the_same(roll_up: impl Fn(&Protected)) {
    let server = S3Server::start();
    let p = Protected::new(any(), Place::Bucket(&server), |b| b.wal_segment_size(1).first_segment(FIRST));
    p.cluster.psql("create table t (n int)");
    let _ = p.backup();
    let (mut last, mut wanted) = (String::new(), String::new());
    for n in 0.. {
        p.cluster.psql(&format!("insert into t values ({n})"));
        if last.is_empty() || last.as_str() < "000000010000000000000FFD" {
            wanted = p.cluster.psql("select clock_timestamp() at time zone 'UTC' || ' UTC'");
        }
        last = p.archive();
        if last.as_str() > "000000010000000100000001" {
            break;
        }
    }
    let roll_ups = || server.keys().into_iter().filter(|key| key.contains("/notes/summaries/")).collect::<Vec<_>>();
    assert_eq!(roll_ups(), [""; 0]);
    let (expected, many, none) = plan(&p, &server, &wanted);
    assert!(many > 20 && none == 0, "{many} segments, {none} roll-ups");

    roll_up(&p);
    let [key] = roll_ups().try_into().unwrap();
    // Its name tells that all has ended to the end of the log.
    let (_, name) = key.split_once("/notes/summaries/00000001/00000000-1-").unwrap();
    assert!(name.starts_with("00000FE") && name.contains("-00000FFF-2"), "{key}");
    let (same, few, one) = plan(&p, &server, &wanted);
    assert_eq!(same, expected);
    assert!(few + 10 < many && one == 1, "{few} segments of {many}, {one} roll-ups");

    let whole = server.object(&key).unwrap().bytes.to_vec();
    let half = whole[..whole.len() / 2].to_vec();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 4;
    for damaged in [Some(half), Some(flipped), Some(Vec::new()), None] {
        server.replace(&key, damaged);
        let (same, again, _) = plan(&p, &server, &wanted);
        assert_eq!(same, expected);
        assert!(again >= many, "{again} segments of {many}");
    }
    assert_eq!(roll_ups(), [""; 0]);
    // Whoever comes next writes it again.
    p.walden(["wal", "summarize"]).expect_code(0);
    assert_eq!(roll_ups(), [key]);
}

#[test]
fn summarize_rolls_up_what_has_come_to_an_end() {
    a_plan_is_the_same(|p| {
        let ran = p.walden(["--json", "wal", "summarize"]);
        let told: Value = serde_json::from_str(ran.ok()).unwrap();
        let system = &told["systems"][0];
        assert_eq!(
            (&system["logs"], &system["left"], &system["damaged"]),
            (&1.into(), &0.into(), &Value::Array(vec![]))
        );
        assert!(system["segments"].as_u64().unwrap() > 20, "{told}");
        assert!(p.walden(["wal", "summarize"]).ok().contains("0 logs with 0 segments rolled up"));
    });
}

#[test]
fn each_backup_rolls_up_what_has_come_to_an_end() {
    a_plan_is_the_same(|p| drop(p.backup()));
}
