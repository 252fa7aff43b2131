//! Mishaps are found in the archive, each with the target that stops just before it; and that target brings back what
//! was lost.
#![allow(clippy::unwrap_used, reason = "helpers of a test may panic like the test")]

use serde_json::Value;
use walden_testkit::{
    postgres::{Cluster, Stop, any, for_each_version},
    protected::{Place, Protected},
};

fn find(p: &Protected, arguments: &[&str]) -> Vec<Value> {
    let ran = p.walden([&["--json", "find"], arguments].concat());
    let report: Value = serde_json::from_str(ran.ok()).unwrap();
    report["findings"].as_array().unwrap().clone()
}

fn words(findings: &[Value]) -> Vec<&str> {
    findings.iter().map(|f| f["what"].as_str().unwrap()).collect()
}

/// The `--to` of what is told in these words, which is told once.
fn to(findings: &[Value], what: &str) -> String {
    let found: Vec<_> = findings.iter().filter(|f| f["what"] == what).collect();
    assert_eq!(found.len(), 1, "{what}: {:?}", words(findings));
    found[0]["to"].as_str().unwrap().to_owned()
}

/// Stops the server, restores to `to`, promotes, and asks there.
fn restored<T>(p: &mut Protected, name: &str, to: &str, ask: impl FnOnce(&Cluster) -> T) -> T {
    p.cluster.stop(Stop::Fast);
    let pgdata = p.scene.path().join(name);
    let arguments = ["-q", "restore", "--yes", "--clone", "--start", "--then", "promote", "--to", to, "--pgdata"];
    p.walden(arguments.into_iter().chain([pgdata.to_str().unwrap()])).expect_code(0);
    let mut copy = Cluster::attach(&pgdata, p.cluster.installation());
    copy.wait_for("select pg_is_in_recovery()", "f");
    let answer = ask(&copy);
    copy.stop(Stop::Immediate);
    answer
}

fn rows(cluster: &Cluster, table: &str) -> String {
    cluster.psql_db("shop", &format!("select count(*) from {table}"))
}

#[test]
fn each_mishap_of_tables_is_found_and_undone() {
    for_each_version(|installation| {
        let mut p = Protected::new(installation, Place::Directory, |b| b.setting("max_prepared_transactions", 2));
        p.cluster.psql("create database shop");
        let shop = |sql: &str| p.cluster.psql_db("shop", sql);
        shop(
            "create table orders (id serial primary key, t text); insert into orders (t) select 'x' from generate_series(1, 3000)",
        );
        shop(
            "create table lines (id int primary key, t text); insert into lines select n, 'y' from generate_series(1, 10) n",
        );
        shop(
            "create table big (id int primary key, t text); insert into big select n, 'y' from generate_series(1, 6000) n",
        );
        shop("create schema old; create table old.a as select 1 as n; create table old.b as select 2 as n");
        shop("create view old.v as select * from old.a; create table \"Two Phase\" (n int)");
        let _ = p.backup();
        let begun = shop("select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || ' UTC'");
        shop("begin; drop table orders; rollback");
        shop("select pg_create_restore_point('before deploy')");
        shop("select pg_logical_emit_message(false, 'deploy', 'version 7')");
        // What no backup has a name for has one in the log.
        shop("create schema \"New\"; create table \"New\".later (id serial primary key, t text)");
        shop("insert into \"New\".later (t) select 'z' from generate_series(1, 7)");
        shop("checkpoint");
        shop("create table short (n int)");
        shop("begin; drop table short; create table short (n int, m int); commit");
        shop("drop table \"New\".later");
        shop("truncate lines");
        shop("vacuum full big");
        shop(
            "begin; savepoint a; delete from big where id <= 1000; savepoint b; delete from big where id <= 2000; commit",
        );
        shop("update big set t = 'z' where id <= 4500");
        shop("delete from big where id <= 2010");
        shop("alter table big alter id type bigint");
        shop("begin; delete from big; rollback");
        shop("create temp table passing (n int primary key, t text)");
        shop("reindex table big");
        shop("begin; drop table \"Two Phase\"; prepare transaction 'p'");
        shop("drop schema old cascade");
        shop("commit prepared 'p'");
        let dropper = shop("begin; drop table orders; select txid_current() % (2^32)::bigint; commit");
        let dropper = dropper.lines().find(|l| l.parse::<u32>().is_ok()).unwrap().to_owned();
        let _ = p.archive();

        let found = find(&p, &[]);
        let expected = [
            "restore point \"before deploy\"",
            "dropped table shop.public.short",
            "dropped table shop.\"New\".later",
            "truncated table shop.public.lines",
            "rewrote table shop.public.big",
            "deleted 2000 rows of shop.public.big",
            "updated 2500 rows of shop.public.big",
            "rewrote table shop.public.big",
            "dropped tables shop.old.a and shop.old.b",
            "dropped table shop.public.\"Two Phase\"",
            "dropped table shop.public.orders",
        ];
        assert_eq!(words(&found), expected, "PostgreSQL {}", installation.major);
        let drop = found.last().unwrap();
        assert_eq!((drop["xid"].to_string(), &drop["database"]["name"]), (dropper.clone(), &"shop".into()));

        // By table, database, transaction, time, kind.
        assert_eq!(words(&find(&p, &["--table", "public.Lines"])), ["truncated table shop.public.lines"]);
        let all = words(&find(&p, &["--table", "big", "--kind", "delete"])).len();
        assert_eq!(all, 2, "small ones too");
        assert!(find(&p, &["--table", "other.public.orders"]).is_empty());
        assert!(find(&p, &["--database", "postgres"]).is_empty());
        assert_eq!(words(&find(&p, &["--xid", &dropper])), ["dropped table shop.public.orders"]);
        assert_eq!(find(&p, &["--from", &begun]).len(), expected.len());
        assert!(find(&p, &["--to", &begun]).is_empty());
        assert_eq!(words(&find(&p, &["--kind", "message"]))[0], "message deploy: version 7");
        assert_eq!(find(&p, &["--kind", "drop", "--limit", "1"]), std::slice::from_ref(drop));

        // Each way leads to just before it: not a row less, and nothing of it.
        assert_eq!(restored(&mut p, "lines", &to(&found, expected[3]), |c| rows(c, "lines")), "10");
        let later = |c: &Cluster| rows(c, "\"New\".later");
        assert_eq!(restored(&mut p, "later", "before-drop:\"New\".later", later), "7");
        let before_delete = to(&found, expected[5]);
        assert_eq!(
            restored(&mut p, "big", &before_delete, |c| (rows(c, "big"), rows(c, "lines"))),
            ("6000".into(), "0".into())
        );
        let plan = p.walden(["plan", "--to", "before-drop:orders"]);
        assert!(plan.ok().contains("--then promote"), "{plan}");
        let counts = |c: &Cluster| (rows(c, "orders"), rows(c, "big"));
        assert_eq!(restored(&mut p, "orders", "before-drop:orders", counts), ("3000".into(), "3990".into()));
        // It was truncated, which is as bad.
        let json: Value =
            serde_json::from_str(p.walden(["--json", "plan", "--to", "before-drop:shop.public.lines"]).ok()).unwrap();
        assert_eq!(format!("before:{}", json["stop"]["lsn"].as_str().unwrap()), to(&found, expected[3]));
        let none = p.walden(["plan", "--to", "before-drop:nothing"]);
        none.expect_code(3);
        assert!(none.stderr.contains("no drop of nothing") && none.stderr.contains("walden find"), "{none}");
        // What was searched, and what may have been meant: first what was dropped, then what is there.
        let backup = &json["backup"];
        let none = p.walden(["plan", "--to", "before-drop:shop.public.Orderz"]);
        none.expect_code(3);
        for said in [
            "no drop of shop.public.orderz",
            &format!("from {} (", backup["start_lsn"].as_str().unwrap()),
            "dropped or truncated was shop.public.orders (",
        ] {
            assert!(none.stderr.contains(said), "{said}: {none}");
        }
        let none = p.walden(["plan", "--to", "before-drop:big"]);
        assert!(none.stderr.contains("known, and neither dropped nor truncated, is shop.public.big"), "{none}");
    });
}

#[test]
fn a_dropped_database_comes_back_with_its_rows() {
    for_each_version(|installation| {
        let mut p = Protected::new(installation, Place::Directory, |b| b);
        let psql = |sql: &str| p.cluster.psql(sql);
        let (space, second) = (p.scene.folder("space"), p.scene.folder("second"));
        psql(&format!("create tablespace apart location '{}'", space.display()));
        psql(&format!("create tablespace empty location '{}'", second.display()));
        psql("create role keeper");
        // The owner makes a dependency that goes before the mark does.
        let strategies = if installation.major >= 15 { ["strategy wal_log", "strategy file_copy"] } else { ["", ""] };
        psql(&format!("create database first {}", strategies[0]));
        psql(&format!("create database second owner keeper {}", strategies[1]));
        psql("create database moved");
        for database in ["first", "second", "moved"] {
            p.cluster.psql_db(database, "create table t as select generate_series(1, 10) as n");
        }
        let _ = p.backup();
        p.cluster.psql_db("first", "vacuum freeze");
        psql("alter database moved set tablespace apart");
        psql("drop database second");
        p.cluster.psql_db("first", "insert into t values (11)");
        psql("drop database first");
        psql("create database fresh");
        p.cluster.psql_db("fresh", "create table t as select generate_series(1, 5) as n");
        psql("drop database fresh");
        psql("drop tablespace empty");
        let _ = p.archive();
        p.cluster.stop(Stop::Fast);
        p.cluster.append_configuration("max_connections = 123\n");
        p.cluster.start();
        let _ = p.archive();

        let found = find(&p, &[]);
        let told = words(&found);
        let dropped = ["second", "first", "fresh"].map(|name| format!("dropped database {name}"));
        assert_eq!(told[..3], dropped);
        assert_eq!(told[3], "dropped tablespace empty");
        assert!(told[4].contains("max_connections") && told[4].contains("123"), "{told:?}");
        assert_eq!(told.len(), 5, "{told:?}");
        assert_eq!(words(&find(&p, &["--database", "first"])), ["dropped database first"]);
        for (name, said) in [
            ("moved", "known, and neither dropped nor truncated, is moved"),
            ("frist", "dropped or truncated was first ("),
            ("MOVE", "known, and neither dropped nor truncated, is moved"),
        ] {
            let none = p.walden(["plan", "--to", &format!("before-drop-database:{name}")]);
            none.expect_code(3);
            assert!(none.stderr.contains(said) && none.stderr.contains("no drop of the database"), "{none}");
        }
        for (name, rows) in [("first", "11"), ("second", "10"), ("fresh", "5")] {
            // The tablespaces of the copy would be those of the server.
            p.cluster.stop(Stop::Fast);
            let maps = [&space, &second].map(|s| {
                format!(
                    "{}={}",
                    s.display(),
                    p.scene.path().join(format!("{name}-{}", s.file_name().unwrap().display())).display()
                )
            });
            let pgdata = p.scene.path().join(name);
            let to = format!("before-drop-database:{name}");
            let arguments = [
                "-q",
                "restore",
                "--yes",
                "--clone",
                "--start",
                "--then",
                "promote",
                "--to",
                &to,
                "--pgdata",
                pgdata.to_str().unwrap(),
                "--map",
                &maps[0],
                "--map",
                &maps[1],
            ];
            p.walden(arguments).expect_code(0);
            let mut copy = Cluster::attach(&pgdata, installation);
            copy.wait_for("select pg_is_in_recovery()", "f");
            assert_eq!(copy.psql_db(name, "select count(*) from t"), rows, "PostgreSQL {}", installation.major);
            copy.psql(&format!("drop database {name}"));
            copy.stop(Stop::Immediate);
            p.cluster.start();
        }
    });
}

#[test]
fn a_name_that_means_several_tables_is_for_a_person_to_choose() {
    let p = Protected::new(any(), Place::Directory, |b| b);
    p.cluster
        .psql("create schema a; create schema b; create table a.t as select 1 as n; create table b.t as select 2 as n");
    let _ = p.backup();
    p.cluster.psql("drop table a.t");
    p.cluster.psql("drop table b.t");
    let _ = p.archive();
    let refused = p.walden(["plan", "--to", "before-drop:t"]);
    refused.expect_code(3);
    for said in ["postgres.a.t", "postgres.b.t", "--to before:", "before-drop:DATABASE.SCHEMA.TABLE"] {
        assert!(refused.stderr.contains(said), "{said}: {refused}");
    }
    let found = find(&p, &["--table", "t"]);
    assert_eq!(words(&found), ["dropped table postgres.a.t", "dropped table postgres.b.t"]);
    let plan: Value = serde_json::from_str(p.walden(["--json", "plan", "--to", "before-drop:a.t"]).ok()).unwrap();
    assert_eq!(format!("before:{}", plan["stop"]["lsn"].as_str().unwrap()), to(&found, "dropped table postgres.a.t"));
}
