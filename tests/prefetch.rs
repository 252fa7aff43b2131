//! Segments that lie ready before a recovery asks for them: with the agent and without it the same is delivered, never
//! anything but what was proven, and nothing stays behind.

#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

use std::{
    fs,
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::Command,
    thread::{self, sleep},
    time::{Duration, SystemTime},
};

use rustix::process::{Pid, Signal, kill_process_group};
use walden_testkit::{
    agent::Agent,
    owner::Owner,
    postgres::{Cluster, Installation, any, for_each_version},
    protected::{Place, Protected},
    run::{Ran, run},
    s3::{Fault, S3Server, What},
};

/// A cluster with a backup, and with so many segments in the archive after it. Each holds a hundred rows.
fn archived(installation: &Installation, megabytes: u32, segments: usize, more: &str) -> (Protected, Vec<String>) {
    archived_in(Place::Directory, installation, megabytes, segments, more)
}

fn archived_in(
    place: Place<'_>,
    installation: &Installation,
    megabytes: u32,
    segments: usize,
    more: &str,
) -> (Protected, Vec<String>) {
    let p = Protected::new(installation, place, |b| b.wal_segment_size(megabytes).setting("wal_keep_size", "4GB"));
    let text = fs::read_to_string(&p.config).unwrap();
    let (state, socket) = (p.scene.path().join("state"), p.scene.path().join("agent.sock"));
    let tables = format!(
        "[archive]\nstate_dir = \"{}\"\n[agent]\nsocket = \"{}\"\n[restore]\n{more}\n",
        state.display(),
        socket.display()
    );
    p.scene.write("walden.toml", format!("{text}\n{tables}"));
    p.cluster.psql("create table t(n int)");
    let _ = p.backup();
    let names = more_segments(&p, segments);
    (p, names)
}

fn more_segments(p: &Protected, segments: usize) -> Vec<String> {
    let next = || {
        p.cluster.psql("insert into t select generate_series(1, 100)");
        p.cluster.switch_wal()
    };
    let names: Vec<String> = (0..segments).map(|_| next()).collect();
    p.cluster.wait_archived(names.last().unwrap());
    names
}

/// `walden-restore` as PostgreSQL runs it in the data directory of the cluster itself.
fn program(p: &Protected, name: &str, destination: &str) -> Command {
    let mut command = p.small_program("walden-restore");
    command.arg("--agent").arg(p.scene.path().join("agent.sock")).args([name, destination]);
    command
}

fn ask(p: &Protected, name: &str) -> Ran {
    run(&mut program(p, name, "pg_wal/RECOVERYXLOG"))
}

fn recovered(p: &Protected) -> PathBuf {
    p.cluster.pgdata().join("pg_wal/RECOVERYXLOG")
}

#[track_caller]
fn is_delivered(p: &Protected, name: &str) {
    ask(p, name).expect_code(0);
    let original = fs::read(p.cluster.pgdata().join("pg_wal").join(name)).unwrap();
    assert!(fs::read(recovered(p)).unwrap() == original, "{name} is not what was archived");
    fs::remove_file(recovered(p)).unwrap();
}

#[track_caller]
fn is_not_delivered(p: &Protected, name: &str) {
    ask(p, name).expect_code(200);
    assert!(!recovered(p).exists());
}

/// The spool of a data directory.
fn spool(pgdata: &Path) -> PathBuf {
    pgdata.with_file_name(format!(".{}.walden-prefetch", pgdata.file_name().unwrap().to_str().unwrap()))
}

fn entries(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = names.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn segments_in(folder: &Path) -> Vec<String> {
    entries(folder).into_iter().filter(|name| name.len() == 24).collect()
}

/// As if the repository could not be reached.
fn without_repository(p: &Protected, work: impl FnOnce()) {
    let away = p.repository.with_extension("away");
    fs::rename(&p.repository, &away).unwrap();
    work();
    fs::rename(&away, &p.repository).unwrap();
}

/// A copy that is restored to the newest record, with its server not yet started.
fn copy(p: &Protected, name: &str, more: &[&str]) -> Cluster {
    let pgdata = p.scene.path().join(name);
    let mut arguments = vec!["restore", "--to", "latest", "--pgdata", pgdata.to_str().unwrap(), "--yes"];
    arguments.extend(more);
    p.walden(arguments).expect_code(0);
    Cluster::adopt(pgdata, p.cluster.installation())
}

#[track_caller]
fn is_complete(copy: &Cluster, segments: usize) {
    copy.wait_for("select pg_is_in_recovery()", "f");
    assert_eq!(copy.psql("select count(*) from t"), (segments * 100).to_string());
    let left = entries(&copy.pgdata().join("pg_wal"));
    assert!(!left.iter().any(|name| name.contains("RECOVERY") || name.contains("xlogtemp")), "{left:?}");
    assert!(entries(&spool(copy.pgdata())).is_empty(), "{:?}", entries(&spool(copy.pgdata())));
}

#[test]
fn a_recovery_goes_through_prefetched_segments_with_an_agent_and_without() {
    for_each_version(|installation| {
        let (p, names) = archived(installation, 16, 6, "prefetch = 4");
        let mut alone = copy(&p, "alone", &[]);
        alone.start();
        is_complete(&alone, names.len());
        assert!(!spool(alone.pgdata()).exists());
        let agent = Agent::start(&p);
        let mut helped = copy(&p, "helped", &[]);
        helped.start();
        is_complete(&helped, names.len());
        let ready = names.iter().filter(|name| agent.says(&format!("{name} was ready"))).count();
        assert!(ready >= names.len() - 2, "{ready} of {}\n{}", names.len(), agent.log());
        assert!(agent.says(&format!("{} is ready", names[5])), "{}", agent.log());
        assert_eq!(agent.end(Signal::TERM).code(), Some(0));
        assert!(!spool(helped.pgdata()).exists());
    });
}

#[test]
fn one_call_fetches_the_next_ones_along_and_gives_up_what_is_behind() {
    let (p, names) = archived(any(), 16, 7, "prefetch = 3");
    let spool = spool(p.cluster.pgdata());
    is_delivered(&p, &names[0]);
    assert_eq!(segments_in(&spool), names[1..4]);
    assert_eq!(fs::metadata(&spool).unwrap().permissions().mode() & 0o777, 0o700);
    without_repository(&p, || {
        is_delivered(&p, &names[1]);
        is_delivered(&p, &names[2]);
        is_not_delivered(&p, &names[5]);
    });
    // The plan ends there: nothing past it is fetched.
    let until = program(&p, &names[4], "pg_wal/RECOVERYXLOG").args(["--until", &names[5]]).output().unwrap();
    assert!(until.status.success());
    assert_eq!(segments_in(&spool), names[5..6]);
    // The history of a timeline is asked for when a recovery begins and when it ends.
    run(&mut program(&p, "00000002.history", "pg_wal/RECOVERYHISTORY")).expect_code(1);
    assert!(!spool.exists());
}

#[test]
fn only_a_replaying_server_has_segments_fetched_ahead() {
    let (p, names) = archived(any(), 16, 4, "");
    let (spool, there) = (spool(p.cluster.pgdata()), p.scene.path().join("there"));
    for destination in [format!("pg_wal/{}.new", names[0]), there.display().to_string()] {
        run(&mut program(&p, &names[0], &destination)).expect_code(0);
        assert!(!spool.exists(), "{destination}");
    }
    let agent = Agent::start(&p);
    for destination in [format!("pg_wal/{}.new", names[0]), there.display().to_string()] {
        run(&mut program(&p, &names[0], &destination)).expect_code(0);
        let file = p.cluster.pgdata().join(destination);
        assert!(fs::read(file).unwrap() == fs::read(p.cluster.pgdata().join("pg_wal").join(&names[0])).unwrap());
    }
    assert_eq!((segments_in(&spool), agent.says("fetched ahead")), (vec![], false), "{}", agent.log());
    is_delivered(&p, &names[0]);
    agent.wait_for(&format!("{} was fetched ahead", names[1]));
}

#[test]
fn what_was_put_or_changed_in_the_spool_is_never_delivered() {
    let (p, names) = archived(any(), 1, 8, "prefetch = 7");
    let spool = spool(p.cluster.pgdata());
    let (wal, at) = (p.cluster.pgdata().join("pg_wal"), |name: &String| spool.join(name));
    let proof = |name: &String| spool.join(format!("{name}.proven"));
    is_delivered(&p, &names[0]);
    assert_eq!(segments_in(&spool), names[1..]);
    sleep(Duration::from_millis(20));
    // Other content, of the same length and with the same time; a part of it; another segment; the same bytes in another
    // file; no proof, another's proof.
    let kept = fs::metadata(at(&names[1])).unwrap().modified().unwrap();
    let mut bytes = fs::read(at(&names[1])).unwrap();
    bytes[5000] ^= 1;
    fs::write(at(&names[1]), bytes).unwrap();
    fs::File::options().write(true).open(at(&names[1])).unwrap().set_modified(kept).unwrap();
    fs::File::options().write(true).open(at(&names[2])).unwrap().set_len(500_000).unwrap();
    fs::rename(at(&names[4]), at(&names[3])).unwrap();
    fs::rename(proof(&names[4]), proof(&names[3])).unwrap();
    fs::write(at(&names[4]), fs::read(wal.join(&names[4])).unwrap()).unwrap();
    fs::write(proof(&names[4]), fs::read(proof(&names[5])).unwrap()).unwrap();
    fs::remove_file(proof(&names[5])).unwrap();
    fs::File::options().write(true).open(proof(&names[6])).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    fs::create_dir(spool.join("000000010000000000000099")).unwrap();
    fs::write(spool.join("junk"), "").unwrap();
    without_repository(&p, || {
        names[1..7].iter().for_each(|name| is_not_delivered(&p, name));
        is_delivered(&p, &names[7]);
        assert!(!spool.join("junk").exists() && !spool.join("000000010000000000000099").exists());
    });
    names.iter().for_each(|name| is_delivered(&p, name));
    // Another repository, or another incarnation: what came from the first is not for it.
    is_delivered(&p, &names[0]);
    let text = fs::read_to_string(&p.config).unwrap();
    let away = p.repository.with_extension("away");
    p.scene.write("walden.toml", text.replace(p.repository.to_str().unwrap(), away.to_str().unwrap()));
    is_not_delivered(&p, &names[1]);
    p.scene.write("walden.toml", &text);
    is_delivered(&p, &names[0]);
    p.scene.write("walden.toml", text.replace("[cluster.main]\n", "[cluster.main]\nincarnation = 2\n"));
    is_not_delivered(&p, &names[1]);
}

#[test]
fn a_call_killed_at_any_instant_leaves_nothing_wrong() {
    let (p, names) = archived(any(), 1, 24, "prefetch = 6");
    let wal = p.cluster.pgdata().join("pg_wal");
    let before = entries(&wal);
    let mut random = fastrand::Rng::with_seed(5);
    for name in &names {
        let mut child = program(&p, name, "pg_wal/RECOVERYXLOG").process_group(0).spawn().unwrap();
        sleep(Duration::from_millis(random.u64(0..150)));
        // The small program and what it runs; one that has ended already is as good.
        _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
        child.wait().unwrap();
        let there = fs::read(recovered(&p)).ok();
        assert!(there.is_none_or(|bytes| bytes == fs::read(wal.join(name)).unwrap()), "half of {name}");
        _ = fs::remove_file(recovered(&p));
        assert_eq!(entries(&wal), before);
        if random.bool() {
            is_delivered(&p, name);
        }
    }
    names.iter().for_each(|name| is_delivered(&p, name));
}

#[test]
fn agents_killed_in_a_recovery_from_a_slow_store_leave_nothing_wrong() {
    let server = S3Server::start();
    let (p, names) = archived_in(Place::Bucket(&server), any(), 1, 60, "prefetch = 8");
    let mut copy = copy(&p, "killed", &[]);
    let (restore, socket) = (p.scene.program("walden-restore"), p.scene.path().join("agent.sock"));
    copy.option(&format!(
        "restore_command=AWS_ACCESS_KEY_ID={} AWS_SECRET_ACCESS_KEY={} {} --config {} --agent {} %f %p",
        server.access_key(),
        server.secret_key(),
        restore.display(),
        p.config.display(),
        socket.display()
    ));
    server.fault(Fault::new(What::Delay(Duration::from_millis(20))).on("GetObject"));
    let mut random = fastrand::Rng::with_seed(11);
    let (mut kills, mut helped) = (0, 0);
    thread::scope(|scope| {
        let started = scope.spawn(|| copy.start());
        while !started.is_finished() {
            let agent = Agent::start(&p);
            sleep(Duration::from_millis(random.u64(0..700)));
            helped += agent.log().matches(" was ready").count();
            drop(agent);
            kills += 1;
        }
    });
    is_complete(&copy, names.len());
    assert!(kills > 0 && helped > 0, "{kills} kills, {helped} segments were ready");
}

#[test]
fn a_standby_asks_again_for_what_was_absent_and_follows() {
    let (p, names) = archived(any(), 1, 5, "");
    let agent = Agent::start(&p);
    let mut standby = copy(&p, "standby", &["--standby"]);
    standby.option("wal_retrieve_retry_interval=100ms");
    standby.start();
    let mut segments = names.len();
    let follows = |segments: usize| standby.wait_for("select count(*) from t", &(segments * 100).to_string());
    follows(segments);
    for round in 0..3 {
        if round == 1 {
            // Silence is not absence, and the standby does not end its recovery either.
            without_repository(&p, || sleep(Duration::from_secs(2)));
        }
        segments += more_segments(&p, 3).len();
        follows(segments);
    }
    assert_eq!(standby.psql("select pg_is_in_recovery()"), "t");
    assert!(agent.says("was ready") && agent.says("is not in the archive"), "{}", agent.log());
    standby.psql("select pg_promote()");
    is_complete(&standby, segments);
}

#[test]
fn segments_of_any_size_are_fetched_ahead_within_bounds() {
    for (megabytes, segments, bound) in [(1, 40, 4), (64, 3, 64)] {
        let (p, names) = archived(any(), megabytes, segments, &format!("prefetch = 16\nprefetch_size = \"{bound}MB\""));
        let agent = Agent::start(&p);
        let mut copy = copy(&p, "copy", &[]);
        let folder = spool(copy.pgdata());
        let mut most = 0;
        thread::scope(|scope| {
            let started = scope.spawn(|| copy.start());
            while !started.is_finished() {
                let length = |name| fs::metadata(folder.join(name)).map_or(0, |found| found.len());
                most = most.max(entries(&folder).into_iter().map(length).sum::<u64>() >> 20);
                sleep(Duration::from_millis(5));
            }
        });
        is_complete(&copy, names.len());
        assert!(agent.says(" was ready"), "{}", agent.log());
        // The one that PostgreSQL is being given comes on top, and one that was given up may just be going.
        assert!(most > 0 && most <= u64::from(bound + 2 * megabytes), "{most} MB in the spool");
        drop(agent);
    }
}

#[test]
fn an_agent_that_was_stopped_does_not_come_late() {
    let (p, names) = archived(any(), 1, 3, "");
    let agent = Agent::start(&p);
    is_delivered(&p, &names[0]);
    agent.wait_for("was fetched ahead");
    agent.signal(Signal::STOP);
    ask(&p, &names[1]).expect_code(0);
    fs::remove_file(recovered(&p)).unwrap();
    agent.signal(Signal::CONT);
    sleep(Duration::from_millis(500));
    assert!(!recovered(&p).exists(), "PostgreSQL would take it for the next one");
    is_delivered(&p, &names[2]);
}

#[test]
fn the_spool_is_on_the_file_system_of_pg_wal_or_else_in_the_state_folder() {
    let (p, names) = archived(any(), 1, 6, "prefetch = 2");
    let (hand, shared) = (p.scene.folder("hand"), tempfile::tempdir_in("/dev/shm").unwrap());
    Owner::of_servers().own(shared.path());
    let wal = shared.path().join("wal");
    Owner::of_servers().make_folder(&wal);
    Owner::of_servers().make_folder(&hand.join("global"));
    fs::copy(p.cluster.pgdata().join("global/pg_control"), hand.join("global/pg_control")).unwrap();
    fs::set_permissions(hand.join("global/pg_control"), fs::Permissions::from_mode(0o644)).unwrap();
    std::os::unix::fs::symlink(&wal, hand.join("pg_wal")).unwrap();
    let spools = || [shared.path().join(".wal.walden-prefetch"), p.scene.path().join("state/prefetch")];
    let take = |name: &String| {
        run(program(&p, name, "pg_wal/RECOVERYXLOG").current_dir(&hand)).expect_code(0);
        let there = wal.join("RECOVERYXLOG");
        assert!(fs::read(&there).unwrap() == fs::read(p.cluster.pgdata().join("pg_wal").join(name)).unwrap());
        assert_eq!(fs::metadata(&there).unwrap().uid(), fs::metadata(&wal).unwrap().uid());
        fs::remove_file(there).unwrap();
        assert_eq!(entries(&wal), Vec::<String>::new());
    };
    take(&names[0]);
    assert_eq!(segments_in(&spools()[0]), names[1..3]);
    assert!(!spools()[1].exists() && !spool(&hand).exists());
    fs::remove_dir_all(&spools()[0]).unwrap();
    // Nobody may make a folder beside it.
    fs::set_permissions(shared.path(), fs::Permissions::from_mode(0o555)).unwrap();
    take(&names[0]);
    without_repository(&p, || take(&names[1]));
    let agent = Agent::start(&p);
    take(&names[2]);
    agent.wait_for(&format!("{} was fetched ahead", names[4]));
    take(&names[3]);
    assert!(agent.says(&format!("{} was ready", names[3])) && !spools()[0].exists(), "{}", agent.log());
    assert_eq!(agent.end(Signal::TERM).code(), Some(0));
    assert_eq!(entries(&spools()[1]), Vec::<String>::new());
    fs::set_permissions(shared.path(), fs::Permissions::from_mode(0o755)).unwrap();
}
