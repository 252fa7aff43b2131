//! What a backup records of its host, and how a host that it is restored to is compared with that.
#![allow(clippy::unwrap_used, reason = "helpers of a test may panic like the test")]

use serde_json::{Value, json};
use walden_testkit::{
    postgres::{Installation, for_each_version},
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
    let p = Protected::new(walden_testkit::postgres::any(), Place::Directory, |b| b);
    p.cluster.psql("create role backup login replication; revoke connect on database template1 from public");
    let config = std::fs::read_to_string(&p.config).unwrap();
    std::fs::write(&p.config, config.replace("user=postgres", "user=backup")).unwrap();
    let document = document(&p.walden(["backup", "--remote", "--json"]));
    let environment = &document["environment"];
    assert!(environment.get("shared_preload_libraries").is_none(), "{environment}");
    assert_eq!(environment["unknown"][0]["database"], 1, "{environment}");
}
