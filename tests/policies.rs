//! The policies of docs/policies, carried out on a server that enforces them: each key can do its work, and no other.

#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

use std::{fs, sync::Arc};

use walden::{
    clock::Random,
    error::Kind,
    store::{
        Key, Put, Store,
        s3::{Keys, S3Options, S3Store},
    },
};
use walden_testkit::{
    postgres::{Cluster, any},
    protected::{Place, Protected},
    seaweedfs::SeaweedFs,
};

/// The repository's store with the keys of that role.
async fn store(server: &SeaweedFs, prefix: &str) -> S3Store {
    let options = S3Options {
        endpoint: Some(server.endpoint.clone()),
        region: Some("us-east-1".into()),
        path_style: true,
        keys: Some(Keys { id: server.access_key.clone(), secret: server.secret_key.clone(), session_token: None }),
        ..S3Options::new(&server.bucket, prefix)
    };
    S3Store::open(options, Arc::new(Random::from_system())).await.unwrap()
}

#[test]
fn each_key_can_do_its_work_and_no_other() {
    let Some(server) = SeaweedFs::start() else {
        eprintln!("SeaweedFS was not found: this test did not run");
        return;
    };
    let [writer, expirer, restorer] = ["writer", "expirer", "restorer"].map(|role| server.seen_by(role));
    // The writer makes the repository, archives, checks and backs up.
    let p = Protected::new(any(), Place::SeaweedFs(&writer), |b| b);
    p.cluster.psql("create table t as select n from generate_series(1, 1000) as n");
    let check: serde_json::Value = serde_json::from_str(p.walden(["check", "--json"]).ok()).unwrap();
    // That such a bucket keeps no versions is worth a warning.
    assert_ne!(check["verdict"], "fail", "{check:#}");
    let first = p.backup();
    p.cluster.psql("insert into t select n from generate_series(1001, 2000) as n");
    p.archive();
    let second = p.backup();
    p.cluster.psql("insert into t select n from generate_series(2001, 2500) as n");
    p.archive();

    let prefix = p.scene.path().file_name().unwrap().to_str().unwrap().to_owned();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let objects: Vec<Key> = runtime.block_on(async {
        let store = store(&writer, &prefix).await;
        store.list("", None, usize::MAX).await.unwrap().into_iter().map(|object| object.key).collect()
    });
    let data = |key: &&Key| !key.as_str().contains("/lease/");
    runtime.block_on(async {
        let (writer, restorer) = (store(&writer, &prefix).await, store(&restorer, &prefix).await);
        for key in objects.iter().filter(data) {
            for thief in [&writer, &restorer] {
                assert_eq!(thief.delete(key).await.unwrap_err().kind(), Kind::Denied, "{key}");
            }
            // What is there is not overwritten by Walden's own way of writing.
            assert_eq!(writer.put(key, "other".into()).await.unwrap(), Put::Exists, "{key}");
        }
        let kept = writer.delete_many(&objects[..2]).await.unwrap();
        assert_eq!(kept.len(), 2, "a batch is refused as well");
        let new = Key::new("new").unwrap();
        assert_eq!(restorer.put(&new, "x".into()).await.unwrap_err().kind(), Kind::Denied);
        // Beside the prefix there is nothing for them.
        let beside = S3Store::open(
            S3Options {
                endpoint: Some(server.endpoint.clone()),
                path_style: true,
                keys: Some(Keys {
                    id: server.seen_by("writer").access_key,
                    secret: server.seen_by("writer").secret_key,
                    session_token: None,
                }),
                ..S3Options::new(&server.bucket, "other")
            },
            Arc::new(Random::from_system()),
        );
        assert_eq!(beside.await.unwrap().put(&new, "x".into()).await.unwrap_err().kind(), Kind::Denied);
    });
    let delete = p.walden(["delete", &first]);
    assert_ne!(delete.code, Some(0), "{delete}");
    assert!(p.walden(["list"]).ok().contains(&first), "the writer removed nothing");

    // The restorer restores; it has nothing to write anywhere.
    let restored = |name: &str| {
        let (pgdata, sockets) = (p.scene.path().join(name), p.scene.folder(&format!("{name}-sockets")));
        let sockets = format!("--set=unix_socket_directories={}", sockets.display());
        let path = pgdata.to_str().unwrap();
        let arguments =
            ["restore", "--to", "latest", "--yes", "--start", "--set=listen_addresses=", &sockets, "--pgdata", path];
        p.walden_as(&restorer, arguments).expect_code(0);
        Cluster::attach(&pgdata, any()).psql("select count(*) from t")
    };
    assert_eq!(restored("before"), "2500");
    let text = fs::read_to_string(&p.config).unwrap();
    p.scene.write("walden.toml", format!("{text}\n[keep]\nlast = 1\n"));
    assert_ne!(p.walden_as(&restorer, ["expire"]).code, Some(0));
    assert!(p.walden(["list"]).ok().contains(&first));

    // The expirer removes what the rules do not keep.
    p.walden_as(&expirer, ["expire"]).expect_code(0);
    let list = p.walden(["list"]);
    assert!(!list.ok().contains(&first) && list.stdout.contains(&second), "{list}");
    assert_eq!(restored("after"), "2500");
}
