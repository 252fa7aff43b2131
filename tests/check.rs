//! `walden check`: what is well is called well, and what is not is named with its mend.

#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    process::Command,
};

use serde_json::Value;
use walden_testkit::{
    postgres::{Builder, any, for_each_version},
    protected::{Place, Protected},
    run::{Ran, run},
    s3::{Conditions, Fault, S3Server, What},
};

/// What a server needs so that nothing is to be said against it.
fn sound(builder: Builder) -> Builder {
    builder.setting("fsync", "on").setting("archive_timeout", "60s")
}

/// The verdict of a check in a report, with its text and mend for messages.
fn verdict<'a>(report: &'a Value, name: &str) -> (&'a str, String) {
    let line = report["checks"].as_array().unwrap().iter().find(|line| line["name"] == name);
    let line = line.unwrap_or_else(|| panic!("no line {name} in {report:#}"));
    (line["verdict"].as_str().unwrap(), format!("{} | {} | {}", line["text"], line["mend"], line["log"]))
}

fn report(ran: &Ran) -> Value {
    serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}\n{ran}"))
}

/// `walden check --json` with further variables, and how it must end.
#[track_caller]
fn check(p: &Protected, variables: &[(&str, &str)], code: i32) -> Value {
    let mut command: Command = p.command(["check", "--json"]);
    let ran = run(command.envs(variables.iter().copied()));
    ran.expect_code(code);
    assert!(!format!("{}{}", ran.stdout, ran.stderr).contains("test/secret+key"), "a secret is told: {ran}");
    report(&ran)
}

#[track_caller]
fn expect(report: &Value, name: &str, wanted: &str, words: &[&str]) {
    let (found, text) = verdict(report, name);
    assert_eq!(found, wanted, "{name}: {text}\n{report:#}");
    for word in words {
        assert!(text.contains(word), "{name}: no {word:?} in {text}");
    }
}

#[test]
fn a_healthy_cluster_is_all_ok() {
    for_each_version(|installation| {
        let p = Protected::new(installation, Place::Directory, sound);
        let healthy = check(&p, &[], 0);
        assert_eq!(healthy["verdict"], "ok", "PostgreSQL {}: {healthy:#}", installation.major);
        expect(&healthy, "archiving", "ok", &["was read back whole"]);
        let ran = p.walden(["check"]);
        assert!(ran.ok().contains("archiving works, and all is well"), "{ran}");
        // Nothing is left but the segments: what probed the store is gone.
        let system = p.cluster.psql("select system_identifier from pg_control_system()");
        let probes = p.repository.join(format!("main/{system}-1/probe"));
        assert!(!probes.exists() || probes.read_dir().unwrap().next().is_none(), "{}", probes.display());
        // What works, but is not as it should be.
        p.cluster.append_configuration("archive_timeout = 0\nfsync = off\nfull_page_writes = off\n");
        p.cluster.reload();
        p.cluster.wait_for("show fsync", "off");
        let warned = check(&p, &[], 0);
        assert_eq!(warned["verdict"], "warn", "{warned:#}");
        for name in ["archive-timeout", "fsync", "full-page-writes"] {
            expect(&warned, name, "warn", &["postgresql.conf"]);
        }
    });
}

#[test]
fn archive_mode_off_names_the_lines_to_set() {
    for_each_version(|installation| {
        let p = Protected::new(installation, Place::Directory, |b| sound(b).setting("archive_mode", "off"));
        let off = check(&p, &[], 1);
        expect(&off, "archive-mode", "fail", &["archive_mode = on", "walden-archive --config", "restart"]);
        expect(&off, "archiving", "fail", &["not tried", "archive-mode"]);
        p.cluster.append_configuration("archive_mode = on\n");
        p.cluster.reload();
        p.cluster.wait_for("select pending_restart from pg_settings where name = 'archive_mode'", "t");
        expect(&check(&p, &[], 1), "archive-mode", "fail", &["restart the server"]);
    });
}

#[test]
fn an_archive_command_that_fails_is_found_out_before_the_time_is_up() {
    for_each_version(|installation| {
        let p = Protected::new(installation, Place::Directory, |b| sound(b).setting("archive_command", "false"));
        let failing = check(&p, &[("WALDEN_ARCHIVE_TIMEOUT", "10min")], 1);
        expect(&failing, "archive-command", "warn", &["'false'", "walden-archive"]);
        expect(&failing, "archiving", "fail", &["failed", "archive command failed with exit code 1"]);
        expect(&failing, "archiver", "fail", &["archive_command failed last, on 0000000100000000"]);
        // One that says yes and does nothing.
        p.cluster.append_configuration("archive_command = 'true'\n");
        p.cluster.reload();
        p.cluster.wait_for("show archive_command", "true");
        let lying = check(&p, &[("WALDEN_ARCHIVE_TIMEOUT", "10min")], 1);
        expect(&lying, "archiving", "fail", &["holds segment", "for archived, but it is not in file:///"]);
        p.cluster.append_configuration("archive_command = ''\n");
        p.cluster.reload();
        p.cluster.wait_for("show archive_command", "");
        expect(&check(&p, &[], 1), "archive-command", "fail", &["empty", "walden-archive --config"]);
    });
}

#[test]
fn what_will_not_help_on_the_day_of_need_is_told_before() {
    let p = Protected::new(any(), Place::Directory, sound);
    let goals = [("WALDEN_GOALS_RPO", "10s"), ("WALDEN_GOALS_BACKUP_AGE", "1ms"), ("WALDEN_KEEP_DAILY", "7")];
    let configuration = p.config.clone();
    let text = fs::read_to_string(&configuration).unwrap();
    fs::write(&configuration, text.replacen("connection = \"", "connection = \"password=hidden ", 1)).unwrap();
    fs::set_permissions(&configuration, Permissions::from_mode(0o644)).unwrap();
    let _ = p.backup();
    let told = check(&p, &goals, 0);
    expect(&told, "recent-backup", "warn", &["old, more than 1 ms", "walden backup"]);
    expect(&told, "tried-restore", "warn", &["no restore", "--clone"]);
    expect(&told, "loss", "warn", &["10 s", "archive_timeout lets a segment wait", "walden wal receive"]);
    expect(&told, "no-window", "warn", &["window ="]);
    expect(&told, "configuration-modes", "warn", &["a password stands in it", "chmod 640"]);
    // The same for whoever looks every minute: what is grave needs a person, the rest is advice.
    let mut status: Command = p.command(["status", "--json"]);
    let ran = run(status.envs(goals));
    ran.expect_code(1);
    let status = &report(&ran)["clusters"][0];
    let count = |list: &str| status[list].as_array().unwrap().len();
    assert_eq!((count("concerns"), count("advice")), (3, 2), "{status:#}");
    assert!(!ran.stdout.contains("hidden"), "{ran}");
    fs::set_permissions(&configuration, Permissions::from_mode(0o640)).unwrap();
    p.restored("latest", "copy", &["--clone"]);
    let well = check(&p, &[], 0);
    assert_eq!(well["verdict"], "ok", "{well:#}");
}

#[test]
fn another_repository_than_the_servers_is_noticed() {
    let p = Protected::new(any(), Place::Directory, sound);
    // Nothing is there at all; something is there, but no repository; a repository that knows another cluster.
    let nothing = check(&p, &[("WALDEN_REPOSITORY_URL", "file:///nowhere/at/all")], 5);
    expect(&nothing, "repository", "fail", &["/nowhere/at/all"]);
    expect(&nothing, "archiving", "fail", &["not tried"]);
    let folder = p.scene.folder("empty");
    let empty = format!("file://{}", folder.display());
    // Empty like the folder of a file system that is not mounted.
    expect(&check(&p, &[("WALDEN_REPOSITORY_URL", &empty)], 5), "repository", "fail", &["mounted"]);
    p.scene.write("empty/something", "else");
    expect(
        &check(&p, &[("WALDEN_REPOSITORY_URL", &empty)], 1),
        "repository",
        "fail",
        &["not a repository", "walden init"],
    );
    let q = Protected::new(any(), Place::Directory, sound);
    let theirs = format!("file://{}", q.repository.display());
    expect(&check(&p, &[("WALDEN_REPOSITORY_URL", &theirs)], 1), "system", "fail", &["walden init"]);
    // Made ready there, too: only the proof can tell that the server archives elsewhere.
    run(p.command(["init"]).env("WALDEN_REPOSITORY_URL", &empty)).expect_code(0);
    let elsewhere = check(&p, &[("WALDEN_REPOSITORY_URL", &empty)], 1);
    expect(&elsewhere, "environment", "warn", &["WALDEN_REPOSITORY_URL"]);
    expect(&elsewhere, "archiving", "fail", &["holds segment", "another place"]);
}

#[test]
fn a_foreign_data_directory_is_noticed_and_no_server_is_touched() {
    for_each_version(|installation| {
        let p = Protected::new(installation, Place::Directory, sound);
        let q = Protected::new(installation, Place::Directory, sound);
        let before = p.cluster.psql("select pg_walfile_name(pg_current_wal_lsn())");
        let foreign = check(&p, &[("WALDEN_CLUSTER_MAIN_PGDATA", q.cluster.pgdata().to_str().unwrap())], 1);
        expect(&foreign, "identity", "fail", &["belongs to system", "connection or pgdata"]);
        assert_eq!(p.cluster.psql("select pg_walfile_name(pg_current_wal_lsn())"), before, "the WAL was switched");
        let missing = check(&p, &[("WALDEN_CLUSTER_MAIN_PGDATA", "/nowhere")], 1);
        expect(&missing, "data-directory", "fail", &["/nowhere"]);
    });
}

#[test]
fn a_role_without_rights_is_told_what_to_grant() {
    for_each_version(|installation| {
        let p = Protected::new(installation, Place::Directory, sound);
        p.cluster.psql("create role clerk login");
        let as_clerk = p.cluster.conninfo().replace("user=postgres", "user=clerk");
        let as_clerk = [("WALDEN_CLUSTER_MAIN_CONNECTION", as_clerk.as_str())];
        let poor = check(&p, &as_clerk, 1);
        expect(&poor, "role", "fail", &["GRANT EXECUTE ON FUNCTION", "TO clerk;"]);
        // The mend mends, word for word.
        let lines = poor["checks"].as_array().unwrap();
        let grant = lines.iter().find(|l| l["name"] == "role").unwrap()["mend"].as_str().unwrap();
        p.cluster.psql(grant);
        let better = check(&p, &as_clerk, 0);
        expect(&better, "role", "warn", &["GRANT pg_read_all_settings"]);
        expect(&better, "archiving", "ok", &[]);
        p.cluster.psql("grant pg_read_all_settings to clerk");
        assert_eq!(check(&p, &as_clerk, 0)["verdict"], "ok");
        let nobody = p.cluster.conninfo().replace("user=postgres", "user=nobody_there");
        let unknown = check(&p, &[("WALDEN_CLUSTER_MAIN_CONNECTION", &nobody)], 1);
        expect(&unknown, "connection", "fail", &["nobody_there"]);
    });
}

#[test]
fn a_standby_is_told_to_ask_the_primary() {
    let mut p = Protected::new(any(), Place::Directory, sound);
    p.cluster.stop(walden_testkit::postgres::Stop::Fast);
    fs::write(p.cluster.pgdata().join("standby.signal"), "").unwrap();
    p.cluster.start();
    expect(&check(&p, &[], 1), "recovery", "fail", &["primary"]);
}

#[test]
fn a_store_that_ignores_conditions_is_refused_unless_it_was_accepted_by_name() {
    let server = S3Server::start();
    let p = Protected::new(any(), Place::Bucket(&server), sound);
    assert_eq!(check(&p, &[], 0)["verdict"], "ok");
    server.set_conditions(Conditions::Ignored);
    expect(&check(&p, &[], 1), "conditional-writes", "fail", &["does not honour put-if-absent", "check-then-put"]);
    let refused = p.walden(["init"]);
    refused.expect_code(4);
    assert!(refused.stderr.contains("check-then-put"), "{refused}");
    let config = fs::read_to_string(&p.config).unwrap();
    p.scene.write("walden.toml", config.replace("path_style", "conditional_writes = \"check-then-put\"\npath_style"));
    let accepted = p.walden(["init"]);
    accepted.expect_code(0);
    assert!(accepted.stderr.contains("accepted by conditional_writes"), "{accepted}");
    let warned = check(&p, &[], 0);
    expect(&warned, "conditional-writes", "warn", &["does not honour put-if-absent", "accepted by"]);
    expect(&warned, "archiving", "ok", &[]);
    let listed = p.walden(["list"]);
    assert!(listed.stderr.contains("does not honour put-if-absent"), "{listed}");
    let listed: Value = serde_json::from_str(p.walden(["list", "--json"]).ok()).unwrap();
    assert_eq!(listed["conditional_writes"], false);
    // What is there is not written over, though the store would let it happen.
    let name = p.archive();
    let object = || server.keys().into_iter().find(|key| key.ends_with(&name)).and_then(|key| server.object(&key));
    let before = object().unwrap().bytes;
    let file = p.cluster.pgdata().join("pg_wal").join(&name);
    let mut bytes = fs::read(&file).unwrap();
    bytes[4000] ^= 1;
    fs::write(&file, &bytes).unwrap();
    p.walden(["wal", "push", file.to_str().unwrap()]).expect_code(4);
    assert_eq!(object().unwrap().bytes, before);
    // PostgreSQL tells the failed command in its log, keys and all; it is not repeated here.
    server.fault(Fault::new(What::Error(403, "AccessDenied")).on("PutObject"));
    let denied = check(&p, &[("WALDEN_ARCHIVE_TIMEOUT", "10min")], 1);
    expect(&denied, "archiving", "fail", &["refused access", "hint: "]);
    assert!(p.cluster.log().contains("test/secret+key"), "what is hidden here is not even there");
    server.heal();
    // A store that has learnt it since.
    server.set_conditions(Conditions::Honoured);
    expect(&check(&p, &[], 0), "conditional-writes", "warn", &["remove conditional_writes"]);
}
