//! The kit's clusters do what the tests that stand on them take for granted.

use std::{fs, os::unix::fs::MetadataExt};

use walden_testkit::{
    postgres::{Cluster, Stop, any, for_each_version},
    run::run,
    scene::Scene,
};

#[test]
fn a_cluster_of_each_version_archives_dies_and_comes_back() {
    for_each_version(|pg| {
        let scene = Scene::new();
        let archive = scene.folder("archive");
        let mut cluster = Cluster::builder(pg)
            .wal_segment_size(1)
            .checksums(false)
            .archiving(format!("cp '%p' '{}/%f'", archive.display()))
            .setting("log_line_prefix", "it's %p ")
            .start();
        assert!(cluster.psql("SHOW server_version").starts_with(&format!("{}.", pg.major)));
        assert_eq!(cluster.psql("SHOW data_checksums; SHOW wal_segment_size"), "off\n1MB");
        assert_eq!(cluster.psql("SHOW log_line_prefix"), "it's %p ");

        let (first, second) = (cluster.switch_wal(), cluster.switch_wal());
        assert!(first < second, "{first} {second}");
        cluster.wait_archived(&second);
        assert_eq!(fs::metadata(archive.join(&first)).unwrap().len(), 1 << 20);

        cluster.psql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n");
        let postmaster = cluster.postmaster_pid().unwrap();
        cluster.kill9();
        assert!(!fs::exists(format!("/proc/{postmaster}")).unwrap());
        cluster.start();
        assert_eq!(cluster.psql("SELECT count(*) FROM t"), "1000");

        cluster.stop(Stop::Fast);
        assert!(!cluster.is_running());
        assert!(cluster.log().contains("database system is shut down"));
        let state = cluster.pg_run("pg_controldata", [cluster.pgdata()]);
        assert!(state.contains("shut down"), "{state}");
    });
}

#[test]
fn a_copied_data_directory_is_adopted_without_an_edit() {
    let scene = Scene::new();
    let mut cluster = Cluster::builder(any()).tcp().start();
    cluster.psql("CREATE TABLE t AS SELECT 42 AS n");
    cluster.psql("CREATE DATABASE other");
    let copy = scene.path().join("copy");
    run(cluster.pg("pg_basebackup").args(["--checkpoint=fast", "-D"]).arg(&copy)).expect_code(0);
    let before = fs::read(copy.join("postgresql.conf")).unwrap();

    let mut adopted = Cluster::adopt(&copy, any());
    adopted.start();
    assert_eq!(adopted.psql("SELECT n FROM t"), "42");
    assert_eq!(adopted.psql_db("other", "SELECT current_database()"), "other");
    assert_eq!(fs::read(copy.join("postgresql.conf")).unwrap(), before);
    assert_eq!(fs::metadata(&copy).unwrap().uid(), scene.owner().uid);
    cluster.stop(Stop::Immediate);
    drop(adopted);
    assert!(!fs::exists(copy.join("postmaster.pid")).unwrap());
    assert!(fs::exists(copy.join("PG_VERSION")).unwrap());
}

#[test]
fn a_server_that_cannot_start_says_why() {
    let mut cluster = Cluster::builder(any()).create();
    cluster.append_configuration("shared_buffers = 'plenty'\n");
    let why = cluster.try_start().unwrap_err();
    assert!(why.contains("shared_buffers"), "{why}");
}

#[test]
fn a_failed_statement_shows_its_error() {
    let cluster = Cluster::builder(any()).start();
    let why = cluster.try_psql("SELECT 1; SELECT nothing FROM nowhere; SELECT 2").unwrap_err();
    assert!(why.contains("nowhere"), "{why}");
}
