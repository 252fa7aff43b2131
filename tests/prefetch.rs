//! Segments that lie ready before a recovery asks for them: with the agent and without it the same is delivered, never
//! anything but what was proven, and nothing stays behind.

#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    thread::sleep,
    time::{Duration, SystemTime},
};

use rustix::process::Signal;
use walden_testkit::{
    agent::Agent,
    postgres::{Cluster, Installation, any, for_each_version},
    protected::{Place, Protected},
    run::{Ran, run},
};

/// A cluster with a backup, and with so many segments in the archive after it. Each holds a hundred rows.
fn archived(installation: &Installation, megabytes: u32, segments: usize, more: &str) -> (Protected, Vec<String>) {
    let p = Protected::new(installation, Place::Directory, |b| {
        b.wal_segment_size(megabytes).setting("wal_keep_size", "4GB")
    });
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
        let (p, names) = archived(installation, 16, 10, "prefetch = 4");
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
        assert!(agent.says(&format!("{} is ready", names[9])), "{}", agent.log());
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
