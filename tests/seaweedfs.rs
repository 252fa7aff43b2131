//! The whole road over an S3 server that we did not write: archive, back up, check, recover.

#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

use walden_testkit::{
    postgres::{Cluster, any},
    protected::{Place, Protected},
    run::run,
    seaweedfs::SeaweedFs,
};

#[test]
fn what_was_archived_and_backed_up_comes_back() {
    let Some(server) = SeaweedFs::for_test() else { return };
    let p = Protected::new(any(), Place::SeaweedFs(&server), |b| {
        b.setting("fsync", "on").setting("archive_timeout", "60s")
    });
    let check: serde_json::Value = serde_json::from_str(p.walden(["check", "--json"]).ok()).unwrap();
    let other: Vec<_> = check["checks"].as_array().unwrap().iter().filter(|line| line["verdict"] != "ok").collect();
    assert!(matches!(other[..], [bucket] if bucket["name"] == "bucket"), "{other:#?}");
    // Enough for an upload of several parts, and not to be compressed away.
    p.cluster.psql("create table t as select n, sha512(n::text::bytea) as hash from generate_series(1, 200000) as n");
    let id = p.backup();
    assert!(p.walden(["list"]).ok().contains(&id));
    p.cluster.psql("insert into t select n, sha512(n::text::bytea) from generate_series(200001, 200100) as n");
    p.archive();
    let hash = "select md5(string_agg(t::text, ',' order by n)) from t";
    let before = p.cluster.psql(hash);

    let copy = p.scene.path().join("copy");
    let sockets = format!("--set=unix_socket_directories={}", p.scene.folder("sockets").display());
    let mut restore = p.command(["restore", "--to", "latest", "--yes", "--start", "--set=listen_addresses=", &sockets]);
    let ran = run(restore.arg("--pgdata").arg(&copy));
    assert!(ran.ok().contains("as planned"), "{ran}");
    let copy = Cluster::attach(&copy, any());
    assert_eq!(copy.psql(hash), before);

    // The same segment again is a success, and what the archive does not have is proven absent.
    let name = p.archive();
    run(p.small_program("walden-archive").arg(format!("pg_wal/{name}"))).expect_code(0);
    let next = format!("{}F0", &name[..22]);
    run(p.small_program("walden-restore").args([&next, "pg_wal/RECOVERYXLOG"])).expect_code(1);
    run(p.small_program("walden-restore").args([&name, "pg_wal/RECOVERYXLOG"])).expect_code(0);
}
