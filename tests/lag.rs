//! How far the repository is behind, told honestly: figures that grow and shrink with what is not stored, nothing that
//! passes for 0 because nobody could see it, and archiving that only seems to work found out.

#![allow(clippy::unwrap_used, reason = "helpers of a test may panic like the test")]

use std::{
    collections::HashMap,
    fs::{self, File, Permissions},
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use walden_testkit::{
    postgres::{Cluster, Stop, any, for_each_version},
    protected::{Place, Protected},
    s3::{Fault, S3Server, What},
};

/// A cluster with a table and a backup.
fn protected(installation: &walden_testkit::postgres::Installation, place: Place<'_>) -> Protected {
    let p = Protected::new(installation, place, |b| b.setting("max_wal_size", "64MB").setting("min_wal_size", "32MB"));
    let text = fs::read_to_string(&p.config).unwrap();
    let state = p.scene.path().join("state");
    let socket = p.scene.path().join("agent.sock");
    let more = format!(
        "\n[archive]\ntimeout = \"5s\"\nstate_dir = \"{}\"\n[agent]\nsocket = \"{}\"\n",
        state.display(),
        socket.display()
    );
    let text = text.replace("[repository]\n", "[repository]\ndeadline = \"3s\"\nrequest_timeout = \"2s\"\n");
    p.scene.write("walden.toml", format!("{text}{more}"));
    p.cluster.psql("create table t (n int)");
    let _ = p.backup();
    p
}

/// The state of the only cluster, whatever the exit code.
fn status(p: &Protected, code: i32) -> Value {
    let ran = p.walden(["--json", "status"]);
    ran.expect_code(code);
    serde_json::from_str::<Value>(&ran.stdout).unwrap()["clusters"][0].clone()
}

#[track_caller]
fn number(status: &Value, name: &str) -> f64 {
    status["lag"][name].as_f64().unwrap_or_else(|| panic!("{name} is not known: {}", status["lag"]))
}

/// Absent, and said why.
#[track_caller]
fn unknown(status: &Value, name: &str) -> String {
    assert!(status["lag"][name].is_null(), "{name}: {}", status["lag"]);
    status["lag"]["unknown"][name]
        .as_str()
        .unwrap_or_else(|| panic!("{name}: no reason in {}", status["lag"]))
        .to_owned()
}

#[track_caller]
fn concern(status: &Value, words: &str) {
    assert!(status["concerns"].to_string().contains(words), "\"{words}\" is not said: {status:#}");
}

fn fill(p: &Protected, segments: usize) -> Vec<String> {
    (0..segments)
        .map(|n| {
            p.cluster.psql(&format!("insert into t select {n} from generate_series(1, 1000)"));
            p.cluster.switch_wal()
        })
        .collect()
}

/// Lets nobody write in the repository any more, or again.
fn writable(p: &Protected, yes: bool) {
    fn each(folder: &Path, mode: u32) {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            if entry.file_type().unwrap().is_dir() {
                each(&entry.path(), mode);
            }
        }
        fs::set_permissions(folder, Permissions::from_mode(mode)).unwrap();
    }
    each(&p.repository, if yes { 0o700 } else { 0o500 });
}

#[test]
fn lag_grows_while_nothing_can_be_stored_and_is_gone_when_it_has_caught_up() {
    const SEGMENT: f64 = 16.0 * 1024.0 * 1024.0;
    for_each_version(|installation| {
        let p = protected(installation, Place::Directory);
        p.archive();
        let well = status(&p, 0);
        assert!(number(&well, "not_durable_bytes") < SEGMENT, "{well:#}");
        assert_eq!((number(&well, "waiting_segments"), number(&well, "oldest_waiting_seconds")), (0.0, 0.0));
        assert_eq!((&well["failing"], &well["not_arrived"]["segments"]), (&Value::Bool(false), &Value::from(0)));
        writable(&p, false);
        fill(&p, 2);
        p.cluster.wait_for("select failed_count > 0 from pg_stat_archiver", "t");
        let behind = status(&p, 1);
        concern(&behind, "archive_command fails");
        assert_eq!(number(&behind, "waiting_segments"), 2.0);
        assert_eq!(number(&behind, "waiting_bytes"), 2.0 * SEGMENT);
        let bytes = number(&behind, "not_durable_bytes");
        assert!((2.0 * SEGMENT..3.0 * SEGMENT).contains(&bytes), "{behind:#}");
        assert!(number(&behind, "wal_bytes_per_second") > 0.0 && number(&behind, "pg_wal_full_seconds") > 0.0);
        let seconds = number(&behind, "not_durable_seconds");
        assert!(seconds > 0.0 && behind["failing"] == true);
        fill(&p, 1);
        let further = status(&p, 1);
        assert!(number(&further, "not_durable_bytes") >= bytes + SEGMENT, "{further:#}");
        assert!(number(&further, "not_durable_seconds") > seconds, "{further:#}");
        writable(&p, true);
        p.archive();
        // PostgreSQL 14 tells its statistics with a delay.
        p.cluster.wait_for("select last_archived_time > last_failed_time from pg_stat_archiver", "t");
        let again = status(&p, 0);
        assert!(
            number(&again, "not_durable_bytes") < SEGMENT && number(&again, "waiting_segments") == 0.0,
            "{again:#}"
        );
        let said = p.walden(["status"]);
        assert!(said.ok().contains("not durable") && said.stdout.contains("free; "), "{said}");
    });
}

#[test]
fn what_does_not_answer_is_not_taken_for_nothing() {
    let s3 = S3Server::start();
    let mut p = protected(any(), Place::Bucket(&s3));
    p.archive();
    s3.fault(Fault::new(What::Close));
    p.cluster.switch_wal();
    let alone = status(&p, 5);
    concern(&alone, "the repository could not be read");
    assert!(unknown(&alone, "not_durable_bytes").contains("could not be read"), "{alone:#}");
    unknown(&alone, "durable_lsn");
    assert_eq!(number(&alone, "waiting_segments"), 1.0);
    assert!(alone["lag"]["server_lsn"].is_string() && alone["backups"].is_null() && alone["not_arrived"].is_null());
    let metrics = p.walden(["status", "--metrics"]);
    metrics.expect_code(5);
    let metrics = samples(&metrics.stdout);
    assert_eq!(metrics["walden_repository_reachable{cluster=\"main\"}"], 0.0);
    assert!(!metrics.contains_key("walden_archive_not_durable_bytes{cluster=\"main\"}"));
    s3.heal();
    p.cluster.wait_for("select last_archived_time > last_failed_time from pg_stat_archiver", "t");
    p.cluster.stop(Stop::Fast);
    let stopped = status(&p, 0);
    unknown(&stopped, "not_durable_bytes");
    unknown(&stopped, "wal_bytes_per_second");
    assert!(stopped["lag"]["durable_lsn"].is_string() && stopped["failing"].is_null(), "{stopped:#}");
    assert!(stopped["notes"].to_string().contains("the server could not be asked"), "{stopped:#}");
}

#[test]
fn archiving_that_only_says_so_is_found_out() {
    let p = protected(any(), Place::Directory);
    p.archive();
    let command = p.cluster.psql("show archive_command");
    let set = |command: &str| {
        p.cluster.psql(&format!("alter system set archive_command = '{command}'"));
        p.cluster.reload();
    };
    // What was let go stays in pg_wal, so that it can be put right.
    p.cluster.psql("alter system set wal_keep_size = '1GB'");
    set("/bin/true");
    p.cluster.wait_for("show archive_command", "/bin/true");
    concern(&status(&p, 1), "stored nowhere");
    let lost = fill(&p, 2);
    p.cluster.wait_archived(&lost[1]);
    let lying = status(&p, 1);
    assert_eq!(lying["not_arrived"]["segments"], 2, "{lying:#}");
    assert_eq!(
        (&lying["not_arrived"]["first"], &lying["not_arrived"]["last"]),
        (&lost[0].clone().into(), &lost[1].clone().into())
    );
    concern(&lying, "but they are not in the repository");
    // Something else that does nothing, whose name tells nothing.
    p.scene.write("idle", "#!/bin/sh\nexit 0\n");
    let idle = p.scene.path().join("idle");
    fs::set_permissions(&idle, Permissions::from_mode(0o755)).unwrap();
    set(idle.to_str().unwrap());
    let before = status(&p, 1);
    assert!(before["notes"].to_string().contains("does not name walden-archive"), "{before:#}");
    // What is put right in time is lost nowhere.
    set(&command);
    p.archive();
    concern(&status(&p, 1), "but they are not in the repository");
    for name in &lost {
        p.walden(["wal", "push", p.cluster.pgdata().join("pg_wal").join(name).to_str().unwrap()]).expect_code(0);
    }
    assert_eq!(status(&p, 0)["not_arrived"]["segments"], 0);
    set("");
    concern(&status(&p, 1), "archive_command is empty");
}

#[test]
fn wal_that_a_slot_holds_back_is_told() {
    let p = protected(any(), Place::Directory);
    p.cluster.psql("select pg_create_physical_replication_slot('nobody', true)");
    fill(&p, 6);
    p.cluster.psql("checkpoint");
    p.cluster.wait_for("select wal_status from pg_replication_slots", "extended");
    let told = status(&p, 1);
    concern(&told, "replication slot nobody, by which nobody receives, holds back");
    assert!(told["slots"][0]["bytes"].as_u64().unwrap() > 5 << 24, "{told:#}");
    let metrics = p.walden(["status", "--metrics"]);
    metrics.expect_code(1);
    let held = samples(&metrics.stdout)["walden_replication_slot_held_bytes{cluster=\"main\",slot=\"nobody\"}"];
    assert!(held > f64::from(5 << 24));
}

/// The samples of a page of metrics; each has a name that HELP and TYPE lines told of before.
#[track_caller]
fn samples(page: &str) -> HashMap<String, f64> {
    let mut told: HashMap<&str, usize> = HashMap::new();
    let mut samples = HashMap::new();
    for line in page.lines() {
        let mut words = line.split_whitespace();
        if let Some(rest) = line.strip_prefix("# ") {
            let (what, name) = (words.nth(1).unwrap(), words.next().unwrap());
            assert!(["HELP", "TYPE"].contains(&what) && rest.len() > what.len() + name.len() + 2, "{line}");
            assert!(what != "TYPE" || ["gauge", "counter"].contains(&words.next().unwrap()), "{line}");
            *told.entry(name).or_default() += 1;
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let name = series.split('{').next().unwrap();
            assert_eq!(told.get(name), Some(&2), "{line}: no HELP and TYPE");
            assert!(series.matches('"').count() % 2 == 0 && (name == series || series.ends_with('}')), "{line}");
            assert!(samples.insert(series.to_owned(), value.parse().unwrap()).is_none(), "{line} comes twice");
        }
    }
    assert!(!samples.is_empty());
    samples
}

#[test]
fn metrics_agree_with_the_status() {
    let p = protected(any(), Place::Directory);
    p.archive();
    writable(&p, false);
    fill(&p, 2);
    p.cluster.wait_for("select failed_count > 2 from pg_stat_archiver", "t");
    let told = status(&p, 1);
    let page = p.walden(["status", "--metrics"]);
    page.expect_code(1);
    let metrics = samples(&page.stdout);
    let metric = |name: &str| metrics[&format!("{name}{{cluster=\"main\"}}")];
    for (name, field) in [
        ("walden_archive_waiting_segments", "waiting_segments"),
        ("walden_archive_waiting_bytes", "waiting_bytes"),
        ("walden_archive_not_durable_bytes", "not_durable_bytes"),
    ] {
        assert_eq!(metric(name), number(&told, field), "{name}");
    }
    assert!(metric("walden_archive_not_durable_seconds") >= number(&told, "not_durable_seconds"));
    assert_eq!((metric("walden_needs_person"), metric("walden_archive_failing")), (1.0, 1.0));
    assert_eq!((metric("walden_backups"), metric("walden_repository_reachable")), (1.0, 1.0));
    let backup = told["newest_backup"]["stopped"].as_str().unwrap();
    let seconds: f64 = p.cluster.psql(&format!("select extract(epoch from '{backup}'::timestamptz)")).parse().unwrap();
    assert!((metric("walden_backup_last_timestamp_seconds") - seconds).abs() < 0.01);
    writable(&p, true);
    p.walden(["--json", "status", "--metrics"]).expect_code(2);
}

/// An agent that runs; killed when it is dropped.
struct Agent(Child);

impl Agent {
    fn start(p: &Protected) -> Self {
        let log = p.scene.path().join("agent.log");
        let child = p.command(["-v", "agent"]).stderr(File::create(&log).unwrap()).spawn().unwrap();
        let begun = Instant::now();
        while !fs::read_to_string(&log).unwrap().contains("listening on") {
            assert!(begun.elapsed() < Duration::from_secs(30), "{}", fs::read_to_string(&log).unwrap());
            sleep(Duration::from_millis(20));
        }
        Self(child)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The head and the body of an answer.
fn ask(port: u16, request: &str) -> (String, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(format!("{request} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

#[test]
fn the_agent_answers_metrics_where_it_is_told_to() {
    let p = protected(any(), Place::Directory);
    let (port, text) = (free_port(), fs::read_to_string(&p.config).unwrap());
    let listen = |address: &str| {
        p.scene.write("walden.toml", text.replace("[agent]\n", &format!("[agent]\nlisten = \"{address}\"\n")));
    };
    listen(&format!("0.0.0.0:{port}"));
    let open = p.walden(["agent"]);
    open.expect_code(2);
    assert!(open.stderr.contains("listen_beyond_loopback"), "{open}");
    listen(&format!("127.0.0.1:{port}"));
    let agent = Agent::start(&p);
    let socket = p.scene.path().join("agent.sock");
    let name = p.cluster.switch_wal();
    p.cluster.wait_archived(&name);
    let mut push = p.small_program("walden-archive");
    let push = push.arg("--agent").arg(&socket).arg(format!("pg_wal/{name}"));
    walden_testkit::run::run(push).expect_code(0);
    let (head, body) = ask(port, "GET /metrics");
    assert!(head.starts_with("HTTP/1.1 200 OK") && head.contains("text/plain; version=0.0.4"), "{head}");
    assert!(head.contains(&format!("Content-Length: {}", body.len())), "{head}");
    let metrics = samples(&body);
    assert_eq!(metrics["walden_agent_pushes_total{cluster=\"main\",result=\"already\"}"], 1.0, "{body}");
    assert_eq!(metrics["walden_repository_reachable{cluster=\"main\"}"], 1.0);
    assert_eq!(metrics["walden_archive_waiting_segments{cluster=\"main\"}"], 0.0);
    assert!(
        ask(port, "GET /").0.starts_with("HTTP/1.1 404") && ask(port, "POST /metrics").0.starts_with("HTTP/1.1 405")
    );
    kill_process(Pid::from_child(&agent.0), Signal::TERM).unwrap();
    let mut agent = agent;
    assert_eq!(agent.0.wait().unwrap().code(), Some(0));
    // Without the key nobody listens.
    p.scene.write("walden.toml", &text);
    let _agent = Agent::start(&p);
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
}

fn object(p: &Protected, name: &str) -> PathBuf {
    let system = p.cluster.psql("select system_identifier from pg_control_system()");
    let log = if name.len() == 24 { format!("{}/", &name[8..16]) } else { String::new() };
    p.repository.join(format!("main/{system}-1/wal/{}/{log}{name}", &name[..8]))
}

fn now(p: &Protected) -> String {
    p.cluster.psql("select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || ' UTC'")
}

/// Has the server write, and remove, until a segment is gone from its `pg_wal`.
fn until_gone(p: &Protected, name: &str) {
    let file = p.cluster.pgdata().join("pg_wal").join(name);
    let begun = Instant::now();
    while file.exists() {
        assert!(begun.elapsed() < Duration::from_secs(60), "{name} is still there\n{}", p.cluster.log_tail());
        let last = fill(p, 2).pop().unwrap();
        p.cluster.wait_archived(&last);
        p.cluster.psql("checkpoint");
    }
}

#[test]
fn suspended_archiving_saves_the_disk_and_the_next_backup_mends_it() {
    for_each_version(|installation| {
        let p = protected(installation, Place::Directory);
        p.archive();
        writable(&p, false);
        let first = fill(&p, 1).remove(0);
        p.cluster.wait_for("select failed_count > 0 from pg_stat_archiver", "t");
        let unasked = p.walden(["wal", "suspend"]);
        unasked.expect_code(2);
        assert!(unasked.stderr.contains("--yes") && unasked.stderr.contains("cost:"), "{unasked}");
        assert_eq!(status(&p, 1)["suspended"], false);
        let said = p.walden(["wal", "suspend", "--yes", "--reason", "the disk is full"]);
        said.expect_code(0);
        assert!(said.stdout.contains("suspended: archiving is suspended since"), "{said}");
        p.walden(["wal", "suspend", "--yes"]).expect_code(0);
        until_gone(&p, &first);
        let (inside, lsn) = (now(&p), p.cluster.psql("select pg_current_wal_lsn()"));
        until_gone(&p, &fill(&p, 1).remove(0));
        let suspended = status(&p, 1);
        concern(&suspended, "the disk is full");
        assert_eq!((&suspended["suspended"], &suspended["not_arrived"]["segments"]), (&true.into(), &0.into()));
        assert!(suspended["suspension"]["skipped"].as_u64().unwrap() >= 2, "{suspended:#}");
        assert!(p.cluster.log().contains("is NOT archived, though PostgreSQL is told so"), "{}", p.cluster.log_tail());
        assert!(!object(&p, &first).exists());
        writable(&p, true);
        let resumed = p.walden(["--json", "wal", "resume"]);
        let resumed: Value = serde_json::from_str(resumed.ok()).unwrap();
        let gap = &resumed["gaps"][0];
        assert_eq!((&gap["missing"][0]["first"], &gap["reason"]), (&first.clone().into(), &"the disk is full".into()));
        assert!(gap["resumed"].is_string() && resumed["backup"]["id"].is_string(), "{resumed:#}");
        p.cluster.psql("insert into t values (4711)");
        p.archive();
        let well = status(&p, 0);
        assert_eq!(well["suspended"], false);
        assert!(well["notes"].to_string().contains("the disk is full"), "{well:#}");
        for command in ["list", "timeline"] {
            let told = p.walden(["--json", command]);
            assert!(told.ok().contains("the disk is full"), "{told}");
        }
        assert!(p.walden(["list"]).ok().contains("the disk is full"));
        for target in [&inside, &lsn] {
            let refused = p.walden(["plan", "--to", target]);
            refused.expect_code(3);
            assert!(refused.stderr.contains("the disk is full"), "{refused}");
        }
        let copy = p.scene.path().join("copy");
        p.walden(["restore", "--yes", "--to", "latest", "--pgdata", copy.to_str().unwrap()]).expect_code(0);
        let mut copy = Cluster::adopt(copy, installation);
        copy.start();
        copy.wait_for("select pg_is_in_recovery()", "f");
        let rows = "select count(*), count(*) filter (where n = 4711) from t";
        assert_eq!(copy.psql(rows), p.cluster.psql(rows));
    });
}

/// Starts it, and kills it after a while.
fn killed(p: &Protected, arguments: &[&str], after: Duration) {
    let mut child = p.command(arguments).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    sleep(after);
    _ = child.kill();
    child.wait().unwrap();
}

#[test]
fn whoever_is_killed_while_suspending_or_resuming_leaves_one_or_the_other() {
    let p = protected(any(), Place::Directory);
    p.archive();
    let mut seen = HashMap::new();
    for round in 0..16 {
        let (suspend, after) = (round % 2 == 0, Duration::from_millis(round * 40));
        match suspend {
            true => killed(&p, &["wal", "suspend", "--yes", "--reason", "a test"], after),
            false => killed(&p, &["wal", "resume", "--no-backup"], after),
        }
        let told = p.walden(["--json", "status"]);
        let told: Value = serde_json::from_str::<Value>(&told.stdout).unwrap()["clusters"][0].clone();
        let suspended = told["suspended"].as_bool().unwrap_or_else(|| panic!("{told:#}"));
        *seen.entry((suspend, suspended)).or_insert(0) += 1;
        let name = fill(&p, 1).remove(0);
        p.cluster.wait_archived(&name);
        assert_eq!(object(&p, &name).exists(), !suspended, "{name}, round {round}: {told:#}");
    }
    assert!(seen.contains_key(&(true, true)), "{seen:?}");
    // A last one to end, whatever there was.
    p.walden(["wal", "suspend", "--yes"]).expect_code(0);
    let name = fill(&p, 1).remove(0);
    p.cluster.wait_archived(&name);
    p.walden(["wal", "resume"]).expect_code(0);
    assert!(object(&p, &name).exists(), "it still lay in pg_wal");
    let _ = p.backup();
    let well = status(&p, 0);
    assert_eq!((&well["suspended"], &well["not_arrived"]["segments"]), (&false.into(), &0.into()), "{well:#}");
    let list: Value = serde_json::from_str(p.walden(["--json", "list"]).ok()).unwrap();
    let notes = list["systems"][0]["suspensions"].as_array().unwrap();
    assert!(!notes.is_empty() && notes.iter().all(|note| note["resumed"].is_string()), "{notes:#?}");
}

#[test]
fn the_agent_lets_wal_go_as_well_and_tells_the_repository_when_it_can() {
    let p = protected(any(), Place::Directory);
    p.archive();
    let socket = p.scene.path().join("agent.sock");
    let command = format!(
        "{} --config {} --agent {} %p",
        p.scene.program("walden-archive").display(),
        p.config.display(),
        socket.display()
    );
    p.cluster.psql(&format!("alter system set archive_command = '{command}'"));
    p.cluster.reload();
    let agent = Agent::start(&p);
    writable(&p, false);
    let late = p.walden(["wal", "suspend", "--yes"]);
    late.expect_code(0);
    assert!(late.stderr.contains("not noted in the repository yet"), "{late}");
    // What tells of the ways between timelines is not let go: it is kept until it can be stored.
    let history = p.cluster.pgdata().join("pg_wal/00000002.history");
    fs::write(&history, "1\t0/3000000\tno recovery target specified\n").unwrap();
    let mut push = p.small_program("walden-archive");
    walden_testkit::run::run(push.arg("--agent").arg(&socket).arg("pg_wal/00000002.history")).expect_code(0);
    fs::remove_file(history).unwrap();
    writable(&p, true);
    let name = fill(&p, 1).remove(0);
    p.cluster.wait_archived(&name);
    let log = fs::read_to_string(p.scene.path().join("agent.log")).unwrap();
    assert!(log.contains(&format!("{name} is NOT archived")) && !object(&p, &name).exists(), "{log}");
    let begun = Instant::now();
    while !object(&p, "00000002.history").exists() {
        assert!(begun.elapsed() < Duration::from_secs(30), "the repository is told nothing\n{log}");
        sleep(Duration::from_millis(50));
    }
    drop(agent);
    fs::remove_file(object(&p, "00000002.history")).unwrap();
    let told = p.walden(["--json", "list"]);
    assert!(told.ok().contains("\"suspended\""), "{told}");
    p.walden(["wal", "resume", "--no-backup"]).expect_code(0);
    assert!(object(&p, &name).exists());
    assert_eq!(status(&p, 0)["suspended"], false);
}
