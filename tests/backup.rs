//! Backups of a server that goes on working.

use walden_testkit::{
    postgres::{any, for_each_version},
    protected::{Place, Protected},
};

#[test]
fn a_backup_is_listed_with_what_it_opens() {
    for_each_version(|installation| {
        let p = Protected::new(installation, Place::Directory, |b| b);
        p.cluster.psql("create table t as select generate_series(1, 100000) as n");
        let taken = p.walden(["backup", "--label", "first of all"]);
        let id = taken.ok().lines().last().unwrap_or_default().to_owned();
        let listed = p.walden(["list"]);
        assert!(listed.ok().contains(&id) && listed.ok().contains("first of all"), "{listed}");
        let json = p.walden(["list", "--json"]);
        let document: serde_json::Value = serde_json::from_str(json.ok()).unwrap();
        let backup = &document["systems"][0]["backups"][0];
        assert_eq!(backup["id"], id.as_str());
        assert!(backup["size"].as_u64().unwrap() > 20_000_000);
    });
}

#[test]
fn a_second_backup_at_the_same_time_is_refused() {
    let p = Protected::new(any(), Place::Directory, |b| b);
    p.cluster.psql("create table t as select generate_series(1, 3000000) as n");
    let mut slow = p.command(["-q", "backup"]);
    let mut slow = slow.env("WALDEN_BACKUP_RATE_LIMIT", "20MB").stdout(std::process::Stdio::null()).spawn().unwrap();
    let leases = || {
        let system = p.cluster.psql("select system_identifier from pg_control_system()");
        p.repository.join(format!("main/{system}-1/lease/backup")).exists()
    };
    while !leases() {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let refused = p.walden(["backup"]);
    refused.expect_code(4);
    assert!(refused.stderr.contains("another backup is running"), "{refused}");
    // A killed one does not block the next.
    slow.kill().unwrap();
    slow.wait().unwrap();
    let id = p.backup();
    assert_eq!(p.walden(["list"]).ok().matches("20").count().min(1), 1);
    assert!(p.walden(["list"]).ok().contains(&id));
}
