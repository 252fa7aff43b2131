//! Names that changed since the last backup: what a search says of them is right, or it gives the numbers.
#![allow(clippy::unwrap_used, reason = "helpers of a test may panic like the test")]

use serde_json::Value;
use walden_testkit::{
    postgres::{Installation, for_each_version},
    protected::{Place, Protected},
};

fn words(p: &Protected, arguments: &[&str]) -> Vec<String> {
    let ran = p.walden([&["--json", "find"], arguments].concat());
    let report: Value = serde_json::from_str(ran.ok()).unwrap();
    report["findings"].as_array().unwrap().iter().map(|f| f["what"].as_str().unwrap().to_owned()).collect()
}

/// The kinds of `wal_compression` that this build knows.
fn compressions(installation: &Installation, p: &Protected) -> Vec<&'static str> {
    let known = p.cluster.psql("select enumvals::text from pg_settings where name = 'wal_compression'");
    let all = if installation.major >= 15 { vec!["off", "pglz", "lz4", "zstd"] } else { vec!["off", "on"] };
    all.into_iter().filter(|kind| installation.major < 15 || *kind == "off" || known.contains(kind)).collect()
}

#[test]
fn what_is_renamed_since_the_backup_is_called_as_it_was_when_it_was_lost() {
    for_each_version(|installation| {
        let p = Protected::new(installation, Place::Directory, |b| b);
        let kinds = compressions(installation, &p);
        p.cluster.psql("create database shop");
        let shop = |sql: &str| p.cluster.psql_db("shop", sql);
        for kind in &kinds {
            shop(&format!(
                "create schema {kind}_a; set search_path to {kind}_a;
                 create table orders (n int primary key); create table orders_new (n int primary key);
                 create table lines (n int primary key, t text); create table kept (n int); create table x (n int);
                 create table emptied (n int)"
            ));
        }
        let _ = p.backup();
        for kind in &kinds {
            p.cluster.psql(&format!("alter system set wal_compression = '{kind}'"));
            p.cluster.reload();
            p.cluster.wait_for("show wal_compression", kind);
            // The next change of each page is logged with the page.
            let shop = |sql: &str| shop(&format!("set search_path to {kind}_a; {sql}"));
            let fresh = |sql: &str| {
                p.cluster.psql("checkpoint");
                shop(sql)
            };
            for with_page in [true, false] {
                let shop = |sql: &str| if with_page { fresh(sql) } else { shop(sql) };
                shop("begin; alter table orders rename to orders_old; alter table orders_new rename to orders; commit");
                shop("drop table orders_old");
                shop("create table made (n int)");
                shop("alter table made rename to made_later");
                shop("drop table made_later");
                shop("create table pk (n int constraint k primary key)");
                shop("alter table pk rename constraint k to o");
                shop("drop table pk");
                shop("begin; alter table kept rename to lost; rollback");
                shop("truncate kept");
                shop("begin; alter table x rename to y; drop table y; commit");
                shop("truncate emptied");
                shop("drop table emptied");
                shop("alter table orders rename to orders_new");
                shop("create table orders (n int primary key); create table x (n int); create table emptied (n int)");
            }
            shop(&format!("create schema {kind}_other"));
            shop(&format!("alter table lines set schema {kind}_other"));
            shop(&format!("drop table {kind}_other.lines"));
        }
        let _ = p.archive();
        let found = words(&p, &["--kind", "drop,truncate"]);
        let mut expected = Vec::new();
        for kind in &kinds {
            for _ in 0..2 {
                for (verb, table) in [
                    ("dropped", "orders_old"),
                    ("dropped", "made_later"),
                    ("dropped", "pk"),
                    ("truncated", "kept"),
                    ("dropped", "x"),
                    ("truncated", "emptied"),
                    ("dropped", "emptied"),
                ] {
                    expected.push(format!("{verb} table shop.{kind}_a.{table}"));
                }
            }
            expected.push(format!("dropped table shop.{kind}_other.lines"));
        }
        assert_eq!(found, expected, "PostgreSQL {}", installation.major);
    });
}

#[test]
fn what_may_be_called_otherwise_is_shown_by_its_numbers() {
    for_each_version(|installation| {
        let p = Protected::new(installation, Place::Directory, |b| b);
        for database in ["shop", "second", "third"] {
            p.cluster.psql(&format!("create database {database}"));
        }
        let shop = |sql: &str| p.cluster.psql_db("shop", sql);
        shop("create schema app; create schema crm; create schema unlike; create table app.t (n int)");
        shop("create table crm.t (n int); create table unlike.t (n int)");
        shop("create table a (n int); create table b (n int); create table c (n int); create table d (n int)");
        let _ = p.backup();
        // Which of two schemas of three letters it is, the log does not tell.
        shop("alter schema app rename to app_old");
        shop("drop table app_old.t");
        shop("drop table unlike.t");
        p.cluster.psql("alter database second rename to seconds");
        p.cluster.psql("drop database seconds");
        p.cluster.psql("drop database third");
        // The catalogue in another file.
        shop("drop table c");
        shop("vacuum full pg_class");
        shop("alter table a rename to a2");
        shop("drop table a2");
        shop("drop table b");
        shop("create table made (n int)");
        shop("drop table made");
        let _ = p.archive();
        let found = words(&p, &["--kind", "drop,drop-database"]);
        let may_be = [
            &["dropped table shop.?.t", "dropped table shop.app_old.t"][..],
            &["dropped table shop.unlike.t", "dropped table shop.?.t"],
            &["dropped database seconds", "dropped database NUMBER"],
            &["dropped database third", "dropped database NUMBER"],
            &["dropped table shop.public.c", "dropped table shop.?.c"],
            &["dropped relation NUMBER of database shop"],
            &["dropped table shop.public.b", "dropped table shop.?.b"],
            &["dropped relation NUMBER of database shop"],
        ];
        let plain = |what: &String| {
            let word = |w: &str| if w.bytes().all(|b| b.is_ascii_digit()) { "NUMBER".to_owned() } else { w.to_owned() };
            what.split(' ').map(word).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(found.len(), may_be.len(), "{found:?}");
        for (what, allowed) in found.iter().map(plain).zip(may_be) {
            assert!(allowed.contains(&what.as_str()), "PostgreSQL {}: {what}, of {found:?}", installation.major);
        }
        // A backup has the names again, and what is renamed in the file that it found is told by numbers.
        let _ = p.backup();
        shop("alter table d rename to e");
        shop("drop table e");
        shop("drop table crm.t");
        let _ = p.archive();
        let found = words(&p, &["--kind", "drop"]);
        assert!(found[found.len() - 2].starts_with("dropped relation "), "{found:?}");
        assert_eq!(found[found.len() - 1], "dropped table shop.crm.t");
    });
}
