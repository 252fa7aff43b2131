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

/// The objects below a prefix, and whether the server holds them locked.
async fn objects(server: &SeaweedFs, prefix: &str) -> Vec<(String, bool)> {
    let keys = aws_credential_types::Credentials::new(&server.access_key, &server.secret_key, None, None, "test");
    let config = aws_sdk_s3::Config::builder()
        .behavior_version_latest()
        .region(aws_sdk_s3::config::Region::new("us-east-1"))
        .endpoint_url(&server.endpoint)
        .force_path_style(true)
        .credentials_provider(keys)
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .build();
    let client = aws_sdk_s3::Client::from_conf(config);
    let listed = client.list_objects_v2().bucket(&server.bucket).prefix(prefix).send().await.unwrap();
    let mut found = Vec::new();
    for key in listed.contents().iter().filter_map(|object| object.key()) {
        let object = client.head_object().bucket(&server.bucket).key(key).send().await.unwrap();
        found.push((key.to_owned(), object.object_lock_mode().is_some()));
    }
    found
}

#[test]
fn what_is_stored_is_locked_and_a_bucket_without_lock_is_refused() {
    let Some(server) = SeaweedFs::start() else {
        eprintln!("SeaweedFS was not found: this test did not run");
        return;
    };
    let locked = server.locked();
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
