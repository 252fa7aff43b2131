//! Object lock, on a server that has it and on one that has not.

#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

use std::fs;

use walden_testkit::{
    postgres::any,
    protected::{Place, Protected},
    run::run,
    s3::S3Server,
    scene::Scene,
    seaweedfs::SeaweedFs,
};

fn client(server: &SeaweedFs) -> aws_sdk_s3::Client {
    let keys = aws_credential_types::Credentials::new(&server.access_key, &server.secret_key, None, None, "test");
    let config = aws_sdk_s3::Config::builder()
        .behavior_version_latest()
        .region(aws_sdk_s3::config::Region::new("us-east-1"))
        .endpoint_url(&server.endpoint)
        .force_path_style(true)
        .credentials_provider(keys)
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .build();
    aws_sdk_s3::Client::from_conf(config)
}

/// The objects below a prefix, and whether the server holds them locked.
async fn objects(server: &SeaweedFs, prefix: &str) -> Vec<(String, bool)> {
    let client = client(server);
    let listed = client.list_objects_v2().bucket(&server.bucket).prefix(prefix).send().await.unwrap();
    let mut found = Vec::new();
    for key in listed.contents().iter().filter_map(|object| object.key()) {
        let object = client.head_object().bucket(&server.bucket).key(key).send().await.unwrap();
        found.push((key.to_owned(), object.object_lock_mode().is_some()));
    }
    found
}

/// How many versions lie below others, and how many delete markers above.
async fn hidden(server: &SeaweedFs, bucket: &str, prefix: &str) -> (usize, usize) {
    let all = client(server).list_object_versions().bucket(bucket).prefix(prefix).send().await.unwrap();
    let below = all.versions().iter().filter(|version| version.is_latest() == Some(false)).count();
    (below, all.delete_markers().len())
}

#[test]
fn what_is_stored_is_locked_and_a_bucket_without_lock_is_refused() {
    let Some(server) = SeaweedFs::start() else {
        eprintln!("SeaweedFS was not found: this test did not run");
        return;
    };
    let locked = server.locked_seen_by("writer");
    let p = Protected::new(any(), Place::SeaweedFs(&locked), |b| b);
    let text = fs::read_to_string(&p.config).unwrap();
    let with_lock = |text: &str| text.replacen("[repository]\n", "[repository]\nlock = \"30 days\"\n", 1);
    p.scene.write("walden.toml", with_lock(&text));
    let check: serde_json::Value = serde_json::from_str(p.walden(["check", "--json"]).ok()).unwrap();
    assert_ne!(check["verdict"], "fail", "{check:#}");
    let line = check["checks"].as_array().unwrap().iter().find(|line| line["name"] == "object-lock");
    assert!(line.unwrap()["text"].as_str().unwrap().contains("30 d"), "{check:#}");
    let id = p.backup();
    p.archive();
    assert!(p.walden(["list"]).ok().contains(&id));
    let prefix = format!("{}/main/", p.scene.path().file_name().unwrap().to_str().unwrap());
    let found = tokio::runtime::Runtime::new().unwrap().block_on(objects(&locked, &prefix));
    let is_locked =
        |part: &str| found.iter().filter(|(key, _)| key.contains(part)).map(|(_, locked)| *locked).collect::<Vec<_>>();
    for part in ["/wal/00000001/00000000/", "/part-", "/manifest-1", "/backup-1.json"] {
        let locked = is_locked(part);
        assert!(!locked.is_empty() && locked.iter().all(|locked| *locked), "{part}: {found:?}");
    }
    assert!(is_locked("/intent-").into_iter().chain(is_locked("/lease/")).all(|locked| !locked), "{found:?}");

    // The same server's other bucket was not made for it.
    let plain = p.scene.write("plain.toml", with_lock(&text).replace("walden-locked", "walden-test"));
    let mut init = p.scene.walden();
    let writer = server.seen_by("writer");
    init.env("AWS_ACCESS_KEY_ID", writer.access_key).env("AWS_SECRET_ACCESS_KEY", writer.secret_key);
    let init = run(init.arg("--config").arg(&plain).arg("init"));
    assert!(init.expect_code(4).stderr.contains("no object lock") && init.stderr.contains("hint: "), "{init}");
}

#[test]
fn what_is_locked_is_rewrapped_expired_and_compacted_by_who_may_and_stays_whole_where_nobody_may() {
    let Some(server) = SeaweedFs::start() else {
        eprintln!("SeaweedFS was not found: this test did not run");
        return;
    };
    let [writer, expirer] = ["writer", "expirer"].map(|role| server.locked_seen_by(role));
    let p = Protected::new(any(), Place::SeaweedFs(&writer), |b| b.setting("autovacuum", "off"));
    let text = fs::read_to_string(&p.config).unwrap();
    let state = p.scene.path().join("state").display().to_string();
    let locked = text.replacen("[repository]\n", "[repository]\nlock = \"30 days\"\n", 1);
    p.scene.write("walden.toml", format!("{locked}\n[archive]\nstate_dir = \"{state}\"\n"));
    let [old, new] = ["old", "new"].map(|name| p.scene.path().join(name).display().to_string());
    let recipient = p.walden(["-q", "keys", "generate", &format!("--output={old}")]).ok().to_owned();
    p.walden(["keys", "add", &recipient]).expect_code(0);
    p.cluster
        .psql("create table great as select n, repeat(md5(n::text), 8) as text from generate_series(1, 30000) as n");
    p.cluster.psql("create table small as select n, md5(n::text) as text from generate_series(1, 1000) as n");
    let first = p.backup();
    p.cluster.psql("drop table great; checkpoint");
    p.archive();
    let second = p.backup();
    p.archive();

    // Who may not lock cannot replace what is to be locked: each object is named, and stays what it was.
    p.walden(["keys", "rotate", &format!("--output={new}")]).expect_code(0);
    let sealed = || p.walden(["keys", "list", "--objects"]).ok().to_owned();
    let before = sealed();
    let rewrap = ["--json", "keys", "rewrap", "--identity", &old];
    let refused = p.walden_as(&server, rewrap);
    refused.expect_code(4);
    let document: serde_json::Value = serde_json::from_str(&refused.stdout).unwrap();
    let problems = document["repositories"][0]["rewrapped"]["problems"].as_array().unwrap().len();
    assert!(problems > 10 && refused.stdout.matches("does not let it be replaced").count() == problems, "{refused}");
    assert_eq!(sealed(), before);
    // Who may goes on with all of them.
    for left in [problems, 0] {
        let rewrapped = p.walden_as(&expirer, rewrap);
        let document: serde_json::Value = serde_json::from_str(rewrapped.ok()).unwrap();
        assert_eq!(document["repositories"][0]["rewrapped"]["objects"], left, "{rewrapped}");
    }
    assert!(!sealed().contains("not a recipient"), "{}", sealed());

    let text = fs::read_to_string(&p.config).unwrap();
    let named = text.replace("[encryption]\n", &format!("[encryption]\nidentity_file = \"{new}\"\n"));
    p.scene.write("walden.toml", format!("{named}\n[keep]\nlast = 1\ncompact = 90\n"));
    let is_whole = || {
        let verified = p.walden(["verify", "--deep", "--anew"]);
        assert!(verified.ok().contains("nothing is damaged") && !verified.stdout.contains("not read"), "{verified}");
    };
    is_whole();
    // Who may not delete removes nothing.
    let refused = p.walden(["expire"]);
    refused.expect_code(1);
    assert!(refused.stderr.contains("not deleted: ") && refused.stderr.contains("tries again"), "{refused}");
    assert!(p.walden(["list"]).ok().contains(&first));
    is_whole();
    // Who may lifts it from sight, and what is written anew is locked as well.
    let expired = p.walden_as(&expirer, ["expire"]);
    assert!(
        expired.ok().contains("written anew: part") && expired.stderr.contains("1 parts written anew"),
        "{expired}"
    );
    is_whole();
    let again = p.walden_as(&expirer, ["expire"]);
    assert!(again.ok().contains("that no backup needs any more"), "{again}");
    is_whole();
    let list = p.walden(["list"]);
    assert!(!list.ok().contains(&first) && list.stdout.contains(&second), "{list}");
    let prefix = format!("{}/main/", p.scene.path().file_name().unwrap().to_str().unwrap());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let found = runtime.block_on(objects(&writer, &prefix));
    // The general key may list versions; none of the policies may.
    let (below, markers) = runtime.block_on(hidden(&server, &writer.bucket, &prefix));
    assert!(
        below >= problems && markers > 10,
        "{below} versions below {problems} that were replaced, {markers} markers"
    );
    let data = |key: &str| key.contains("/part-") || key.contains("/manifest-") || key.contains("/wal/");
    let (data, open): (Vec<_>, Vec<_>) = found.iter().filter(|(key, _)| data(key)).partition(|(_, locked)| *locked);
    assert!(data.len() > 4 && open.is_empty(), "{found:?}");
    p.cluster.psql("insert into small values (0, 'the last')");
    p.archive();
    assert_eq!(p.restored("latest", "copy", &["--clone"]).psql("select count(*) from small"), "1001");
}

#[test]
fn where_nothing_can_lock_it_is_said_before_anything_is_written() {
    let server = S3Server::start();
    let scene = Scene::new();
    let table = |url: &str| {
        format!(
            "[repository]\nurl = \"{url}\"\nlock = \"30 days\"\nendpoint = \"{}\"\npath_style = true\n\n[cluster.main]\npgdata = \"/nowhere\"\n",
            server.endpoint()
        )
    };
    let config = scene.write("walden.toml", table(&format!("s3://{}/p", server.bucket())));
    let mut init = scene.walden();
    init.env("AWS_ACCESS_KEY_ID", server.access_key()).env("AWS_SECRET_ACCESS_KEY", server.secret_key());
    let ran = run(init.arg("--config").arg(&config).arg("init"));
    assert!(ran.expect_code(4).stderr.contains("does not tell whether its bucket has object lock"), "{ran}");
    assert!(server.keys().is_empty(), "{:?}", server.keys());
    let config = scene.write("walden.toml", table("file:///srv/walden"));
    let ran = run(scene.walden().arg("--config").arg(&config).arg("config"));
    assert!(ran.expect_code(2).stderr.contains("a directory cannot lock"), "{ran}");
}
