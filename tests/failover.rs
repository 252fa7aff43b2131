//! A standby is promoted while the primary goes on, and then another that has not heard of it: the archive has one owner
//! for each name, and recovery goes where it is told.
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

use std::{fs, path::PathBuf};

use walden_testkit::{
    postgres::{Cluster, Stop, for_each_version},
    protected::{Place, Protected},
    run::{Ran, run},
};

/// `walden-archive`, as that server starts it.
fn push(p: &Protected, server: &Cluster, file: &str) -> Ran {
    run(p.small_program("walden-archive").current_dir(server.pgdata()).arg(format!("pg_wal/{file}")))
}

fn object(p: &Protected, name: &str) -> PathBuf {
    let system = p.cluster.psql("select system_identifier from pg_control_system()");
    let wal = p.repository.join(format!("main/{system}-1/wal/{}", &name[..8]));
    if name.ends_with(".history") { wal.join(name) } else { wal.join(&name[8..16]).join(name) }
}

fn promote(standby: &Cluster, who: &str) -> String {
    standby.psql("select pg_promote()");
    standby.wait_for("select pg_is_in_recovery()", "f");
    standby.psql(&format!("insert into t values ('{who}')"));
    standby.switch_wal()
}

/// What stands in the table at the end of that timeline.
fn restored(p: &Protected, timeline: &str) -> String {
    let pgdata = p.scene.path().join(format!("restored-{timeline}"));
    let end = ["-q", "restore", "--yes", "--clone", "--start", "--then", "promote", "--to", "latest"];
    let where_to = ["--timeline", timeline, "--pgdata", pgdata.to_str().unwrap()];
    p.walden([&end[..], &where_to].concat()).expect_code(0);
    let mut copy = Cluster::attach(&pgdata, p.cluster.installation());
    copy.wait_for("select pg_is_in_recovery()", "f");
    let rows = copy.psql("select string_agg(who, ',' order by who) from t");
    copy.stop(Stop::Immediate);
    rows
}

#[test]
fn of_those_who_claim_a_timeline_the_first_has_it_and_recovery_follows_the_one_that_is_chosen() {
    for_each_version(|installation| {
        let mut p = Protected::new(installation, Place::Directory, |b| b.wal_segment_size(1));
        p.cluster.psql("create table t (who text)");
        let _ = p.backup();
        p.cluster.psql("insert into t values ('both')");
        let mut first = p.cluster.standby(p.scene.path().join("first"));
        let mut second = p.cluster.standby(p.scene.path().join("second"));
        p.cluster.wait_replayed_by(&first);
        p.cluster.wait_replayed_by(&second);

        // It archives on a timeline of its own while the primary goes on.
        let won = promote(&first, "first");
        first.wait_archived(&won);
        assert!(won.starts_with("00000002"), "{won}");
        p.cluster.psql("insert into t values ('primary')");

        // The other one takes the same timeline, and has other WAL under the same name.
        p.cluster.wait_replayed_by(&second);
        let before = [fs::read(object(&p, &won)).unwrap(), fs::read(object(&p, "00000002.history")).unwrap()];
        let lost = promote(&second, "second");
        assert_eq!(lost, won);
        second.wait_for("select failed_count > 0 from pg_stat_archiver", "t");
        for file in ["00000002.history", &lost] {
            let refused = push(&p, &second, file);
            refused.expect_code(4);
            assert!(refused.stderr.contains("two servers write the same WAL"), "{refused}");
        }
        let after = [fs::read(object(&p, &won)).unwrap(), fs::read(object(&p, "00000002.history")).unwrap()];
        assert!(before == after, "what was archived must not change");
        push(&p, &first, &won).expect_code(0);

        let _ = p.archive();
        for server in [&mut p.cluster, &mut first, &mut second] {
            server.stop(Stop::Fast);
        }
        assert_eq!(restored(&p, "1"), "both,primary", "PostgreSQL {}", installation.major);
        assert_eq!(restored(&p, "2"), "both,first", "PostgreSQL {}", installation.major);
    });
}
