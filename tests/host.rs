//! What a backup records of its host, and how a host that it is restored to is compared with that.
#![allow(clippy::unwrap_used, reason = "helpers of a test may panic like the test")]

use std::fs;

use serde_json::{Value, json};
use walden_testkit::{
    postgres::{Cluster, Installation, Stop, any, for_each_version},
    protected::{Place, Protected},
    run::Ran,
};

fn has_icu(p: &Protected) -> bool {
    p.cluster.psql("select count(*) > 0 from pg_collation where collname = 'de-x-icu'") == "t"
}

fn document(ran: &Ran) -> Value {
    serde_json::from_str(ran.ok()).unwrap()
}

/// A server with a preloaded library, a database `shop` with an extension, and a database that takes no connections. Where
/// it has ICU, there is an index in German order, and on 15 and later `shop` has an order of its own.
fn shop(pg: &Installation) -> (Protected, u32) {
    let p = Protected::new(pg, Place::Directory, |b| {
        b.setting("shared_preload_libraries", "pg_stat_statements, auto_explain")
    });
    let icu = has_icu(&p);
    let own =
        if icu && pg.major >= 15 { "locale_provider icu icu_locale 'sv' locale 'C' template template0" } else { "" };
    p.cluster.psql(&format!("create database shop {own}; create database closed allow_connections false"));
    let index = if icu { "create index on t (a collate \"de-x-icu\")" } else { "" };
    p.cluster.psql_db("shop", &format!("create extension pg_trgm; create table t (a text); {index}"));
    let oid = p.cluster.psql("select oid from pg_database where datname = 'shop'").parse().unwrap();
    (p, oid)
}

#[test]
fn a_backup_records_what_the_server_needs_of_its_host() {
    for_each_version(|pg| {
        let (p, shop) = shop(pg);
        let machine =
            String::from_utf8(std::process::Command::new("uname").arg("-m").output().unwrap().stdout).unwrap();
        for way in [&["backup", "--json"][..], &["backup", "--remote", "--json"]] {
            let environment = &document(&p.walden(way))["environment"];
            assert_eq!(environment["version"], p.cluster.psql("select version()"), "{environment}");
            assert_eq!(
                (environment["architecture"].as_str(), &environment["word_bits"]),
                (Some(machine.trim()), &64.into())
            );
            assert_eq!(environment["block_size"], 8192);
            assert_eq!(environment["shared_preload_libraries"], json!(["pg_stat_statements", "auto_explain"]));
            assert_eq!(environment["session_preload_libraries"], json!([]));
            assert_eq!(environment["extensions"], json!([{"name": "pg_trgm", "version": "1.6", "databases": [shop]}]));
            assert_eq!(environment["libraries"], json!([{"path": "$libdir/pg_trgm", "databases": [shop]}]));
            if has_icu(&p) {
                let version = "select pg_collation_actual_version(oid) from pg_collation where collname = 'de-x-icu'";
                let german = json!([{"name": "pg_catalog.\"de-x-icu\"", "provider": "icu", "locale": if pg.major >= 15 { "de" } else { "de-x-icu" }, "version": p.cluster.psql(version), "databases": [shop]}]);
                assert_eq!(environment["collations"], german);
            } else {
                assert_eq!(environment["collations"], json!([]));
            }
            let locales = environment["locales"].as_array().unwrap();
            let of_shop = locales.iter().find(|l| l["databases"].as_array().unwrap().contains(&shop.into())).unwrap();
            if has_icu(&p) && pg.major >= 15 {
                assert_eq!((&of_shop["provider"], &of_shop["locale"]), (&"icu".into(), &"sv".into()));
                assert!(of_shop["version"].is_string(), "{environment}");
            } else {
                assert_eq!((&of_shop["provider"], &of_shop["collate"]), (&"libc".into(), &"C".into()));
            }
            let unknown = environment["unknown"].as_array().unwrap();
            assert_eq!(unknown.len(), 1, "{environment}");
            assert!(unknown[0]["why"].as_str().unwrap().contains("takes no connections"));
            assert!(environment.get("configuration").is_none());
            // The server's own libraries can be looked at from its host alone.
            if way.contains(&"--remote") {
                assert!(environment.get("icu").is_none(), "{environment}");
            } else {
                assert_eq!(environment.get("icu").is_some(), has_icu(&p), "{environment}");
                assert!(environment["libc"]["name"].is_string(), "{environment}");
            }
        }
    });
}

#[test]
fn a_role_that_may_see_little_still_makes_a_backup() {
    let p = Protected::new(any(), Place::Directory, |b| b);
    p.cluster.psql("create role backup login replication; revoke connect on database template1 from public");
    let config = fs::read_to_string(&p.config).unwrap();
    fs::write(&p.config, config.replace("user=postgres", "user=backup")).unwrap();
    let document = document(&p.walden(["backup", "--remote", "--json"]));
    let environment = &document["environment"];
    assert!(environment.get("shared_preload_libraries").is_none(), "{environment}");
    assert_eq!(environment["unknown"][0]["database"], 1, "{environment}");
}

/// Changes what the backup's document says of its host.
fn rewrite(p: &Protected, id: &str, change: impl FnOnce(&mut Value)) {
    let system = p.cluster.psql("select system_identifier from pg_control_system()");
    let path = p.repository.join(format!("main/{system}-1/backups/{id}/backup-1.json"));
    let mut document: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut document);
    // As an older Walden wrote it: with its checksum it would be damaged.
    document.as_object_mut().unwrap().remove("lines_sha256");
    fs::write(&path, document.to_string()).unwrap();
}

fn differences(plan: &Value) -> &Vec<Value> {
    plan["host"]["differences"].as_array().unwrap()
}

#[test]
fn a_plan_says_what_differs_here_and_how_to_mend_it() {
    for_each_version(|pg| {
        let (p, shop) = shop(pg);
        p.cluster.psql("drop database closed");
        let id = p.backup();
        p.archive();
        let text = || p.walden(["plan", "--to", "latest"]).ok().to_owned();
        let plan = || document(&p.walden(["plan", "--to", "latest", "--json"]));

        // Where it came from all is well, in one line.
        let said = text();
        let host = said.lines().find(|l| l.trim_start().starts_with("host ")).unwrap();
        assert!(
            host.contains(&format!("PostgreSQL {}.", pg.major)) && host.ends_with(": as the backup needs it"),
            "{said}"
        );
        assert!(!said.contains("warning") && !said.contains("not compared"), "{said}");
        assert_eq!(plan()["host"]["programs"].as_str(), pg.bin.to_str());

        // Another C library, and an index of shop's that goes by it.
        rewrite(&p, &id, |d| {
            d["environment"]["libc"] = json!({"name": "glibc", "version": "2.27"});
            d["environment"]["collations"] = json!([{"name": "public.german", "provider": "libc", "locale": "de_DE.UTF-8", "version": "2.27", "databases": [shop]}]);
        });
        let said = text();
        assert!(
            said.contains("was glibc 2.27 (database \"shop\")") && said.contains("REINDEX DATABASE \"shop\""),
            "{said}"
        );
        assert_eq!(said.contains("ALTER DATABASE \"shop\" REFRESH COLLATION VERSION"), pg.major >= 15, "{said}");
        let planned = plan();
        let difference = &differences(&planned)[0];
        assert_eq!((&difference["about"], &difference["prevents_start"]), (&"libc".into(), &false.into()));
        assert_eq!(difference["databases"], json!([{"oid": shop, "name": "shop"}]));
        assert_eq!(difference["commands"][0], json!({"database": "shop", "sql": "REINDEX DATABASE \"shop\""}));

        // Another ICU counts where something sorts by it.
        rewrite(&p, &id, |d| {
            d["environment"]["collations"] = json!([]);
            d["environment"]["icu"] = "60.2".into();
        });
        let by_icu = has_icu(&p) && pg.major >= 15;
        assert_eq!(text().contains("and was 60.2 (database \"shop\")"), by_icu);
        assert_eq!(differences(&plan()).len(), usize::from(by_icu));

        // A document from before says nothing.
        rewrite(&p, &id, |d| drop(d.as_object_mut().unwrap().remove("environment")));
        let said = text();
        assert!(said.contains("not compared: the backup does not tell") && !said.contains("warning"), "{said}");
        assert!(!said.contains("as the backup needs it"), "{said}");
    });
}

#[test]
fn what_a_copy_cannot_start_without_is_named_before_anything_is_written() {
    for_each_version(|pg| {
        let (p, shop) = shop(pg);
        let id = p.backup();
        p.archive();
        let pgdata = p.scene.path().join("copy");
        let copy = pgdata.to_str().unwrap();
        let restore =
            |more: &[&str]| p.walden([&["restore", "--to", "latest", "--yes", "--pgdata", copy], more].concat());
        rewrite(&p, &id, |d| {
            let e = &mut d["environment"];
            e["shared_preload_libraries"] = json!(["pg_stat_statements", "not_there"]);
            e["libraries"] = json!([{"path": "$libdir/gone", "databases": [shop]}, {"path": "$libdir/pg_trgm", "databases": [shop]}]);
            e["extensions"] = json!([{"name": "gone", "version": "2", "databases": [shop]}, {"name": "pg_trgm", "version": "1.6", "databases": [shop]}]);
        });
        let plan = document(&p.walden(["plan", "--to", "latest", "--json"]));
        let about: Vec<_> = differences(&plan).iter().map(|d| d["about"].as_str().unwrap()).collect();
        assert_eq!(about, ["shared-preload", "library", "extension"], "{plan}");
        assert!(!differences(&plan)[0]["what"].to_string().contains("pg_stat_statements"), "{plan}");
        assert_eq!(differences(&plan)[2]["databases"][0]["name"], "shop");

        let refused = restore(&["--start"]);
        refused.expect_code(4);
        assert!(refused.stderr.contains("not_there") && refused.stderr.contains("does not start"), "{refused}");
        assert!(!pgdata.exists());
        // Without it, it does.
        let socket = format!("unix_socket_directories={}", p.scene.path().display());
        let without = ["--start", "--clone", "--set", "shared_preload_libraries=pg_stat_statements", "--set", &socket];
        let started = restore(&without);
        let mut server = Cluster::attach(&pgdata, pg);
        assert!(started.ok().contains("extension gone 2 is not on this host (database \"shop\")"), "{started}");
        assert_eq!(server.psql("show shared_preload_libraries"), "pg_stat_statements");
        server.stop(Stop::Fast);
        drop(server);
        fs::remove_dir_all(&pgdata).unwrap();

        rewrite(&p, &id, |d| d["environment"]["architecture"] = "s390x".into());
        let refused = restore(&["--start", "--set", "shared_preload_libraries="]);
        refused.expect_code(4);
        assert!(refused.stderr.contains("was for s390x") && !pgdata.exists(), "{refused}");
        let made = restore(&[]);
        assert!(made.ok().contains("was for s390x") && pgdata.exists(), "{made}");
    });
}
