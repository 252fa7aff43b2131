//! The replication connection held against real servers: who gets in, what commands answer, what a base backup brings.
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

use std::{fs, path::PathBuf};

use walden::{
    error::Result,
    postgres::{
        Conninfo, ControlFile,
        replication::{
            Replication,
            base_backup::{Options, Piece},
        },
    },
};
use walden_testkit::{
    postgres::{Cluster, Installation, Stop, any, for_each_version},
    s3::{CERTIFICATE, CERTIFICATE_KEY},
    scene::Scene,
};

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Runtime::new().unwrap().block_on(future)
}

fn options() -> Options {
    Options { label: "it's a test".to_owned(), incremental: false, rate_limit: None }
}

/// A cluster that listens on TCP with TLS, where roles come in by the way that they are named for.
fn guarded(installation: &Installation, scene: &Scene) -> Cluster {
    let key = scene.write("server.key", CERTIFICATE_KEY);
    fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let certificate = scene.write("server.pem", CERTIFICATE);
    let cluster = Cluster::builder(installation)
        .tcp()
        .setting("ssl", "on")
        .setting("ssl_key_file", key.display())
        .setting("ssl_cert_file", certificate.display())
        .start();
    cluster.psql(
        "create role scram replication login password 'it is \"me\"';
         create role plain replication login password 'it is \"me\"';
         create role nobody login password 'it is \"me\"';
         set password_encryption = md5;
         create role md5 replication login password 'it is \"me\"'",
    );
    let hba: String = ["scram scram-sha-256", "nobody scram-sha-256", "plain password", "md5 md5"]
        .iter()
        .map(|line| line.replacen(' ', " 127.0.0.1/32 ", 1))
        .fold("local all all trust\nlocal replication all trust\n".to_owned(), |all, line| {
            format!("{all}host replication {line}\n")
        });
    fs::write(cluster.pgdata().join("pg_hba.conf"), hba).unwrap();
    cluster.reload();
    cluster.wait_for("select count(*) > 2 from pg_hba_file_rules where auth_method <> 'trust'", "t");
    cluster
}

/// The name of what the session uses: `tls`, `plain`.
fn enter(cluster: &Cluster, role: &str, more: &str) -> Result<()> {
    let text = format!("host=127.0.0.1 port={} user={role} password='it is \"me\"' {more}", cluster.port());
    let conninfo = Conninfo::parse(&text, &|_| None)?;
    block_on(async {
        let mut connection = Replication::open(&conninfo).await?;
        let identity = connection.identify_system().await?;
        let control = ControlFile::read(cluster.pgdata())?;
        assert_eq!((identity.system, identity.timeline), (control.system, control.checkpoint_copy.timeline));
        let how = cluster.psql("select ssl from pg_stat_ssl join pg_stat_replication using (pid)");
        assert_eq!(how, if more.contains("sslmode=disable") { "f" } else { "t" }, "{text}");
        Ok(())
    })
}

#[test]
fn every_way_to_prove_who_one_is_works_and_no_wrong_one() {
    let scene = Scene::new();
    let cluster = guarded(any(), &scene);
    let root = format!("sslrootcert={}", scene.write("root.crt", CERTIFICATE).display());
    for role in ["scram", "plain", "md5"] {
        for more in ["", "sslmode=disable", "sslmode=require", &format!("sslmode=verify-full {root}")] {
            enter(&cluster, role, more).unwrap_or_else(|e| panic!("{role} {more}: {e}"));
        }
    }
    for more in ["channel_binding=require", "channel_binding=disable"] {
        enter(&cluster, "scram", more).unwrap_or_else(|e| panic!("{more}: {e}"));
    }
    let refused = |role: &str, more: &str, says: &str| {
        let error = enter(&cluster, role, more).unwrap_err();
        let text = format!("{error} {}", error.hint_text().unwrap_or_default());
        assert!(text.contains(says), "{role} {more}: {text}");
        assert!(!text.contains("it is") && !text.contains("wrong!"), "{text}");
    };
    refused("scram", "password=wrong!", "SQLSTATE 28P01");
    refused("md5", "password=wrong!", "SQLSTATE 28P01");
    refused("nobody", "", "the role needs the attribute REPLICATION");
    refused("stranger", "", "pg_hba.conf needs a line");
    for role in ["scram", "plain", "md5"] {
        refused(role, "channel_binding=require sslmode=disable", "channel_binding=require");
    }
    refused("md5", "channel_binding=require", "channel_binding=require");
    refused(
        "scram",
        &format!("sslmode=verify-full {root} host=localhost hostaddr=127.0.0.1 dbname=x port=1"),
        "refused",
    );
    // The root is another one: the certificate is not the server's.
    let other = scene.write("other.crt", include_bytes!("kit/src/s3/tls/authority.pem"));
    let issued_by_it = enter(&cluster, "scram", &format!("sslmode=verify-ca sslrootcert={}", other.display()));
    issued_by_it.unwrap();
}

#[test]
fn a_server_without_tls_is_told_apart_and_the_next_host_is_tried() {
    let cluster = Cluster::builder(any()).tcp().start();
    let open = |text: &str| block_on(Replication::open(&Conninfo::parse(text, &|_| None).unwrap())).map(drop);
    let port = cluster.port();
    let error = open(&format!("host=127.0.0.1 port={port} user=postgres sslmode=require")).unwrap_err();
    assert!(error.to_string().contains("does not offer TLS"), "{error}");
    open(&format!("host=127.0.0.1,127.0.0.1 port=1,{port} user=postgres")).unwrap();
    open(&format!("host=/nonexistent,127.0.0.1 port={port} user=postgres target_session_attrs=read-write")).unwrap();
    let error = open(&format!("host=127.0.0.1 port={port} user=postgres target_session_attrs=read-only")).unwrap_err();
    assert!(error.to_string().contains("allows writes"), "{error}");
}

#[test]
fn commands_are_answered_and_an_error_leaves_the_connection_whole() {
    for_each_version(|installation| {
        let mut cluster = Cluster::builder(installation).wal_segment_size(4).start();
        cluster.psql("create table t as select 1");
        cluster.stop(Stop::Fast);
        fs::write(cluster.pgdata().join("standby.signal"), "").unwrap();
        cluster.append_configuration("restore_command = 'false'\n");
        cluster.start();
        cluster.psql("select pg_promote()");
        block_on(async {
            let mut connection = Replication::open(&cluster.conninfo().parse().unwrap()).await.unwrap();
            assert_eq!(connection.version_number() / 10_000, u32::from(installation.major));
            assert_eq!(connection.show("wal_segment_size").await.unwrap(), "4MB");
            let error = connection.show("nothing_like_it").await.unwrap_err();
            assert!(error.to_string().contains("SQLSTATE 42704"), "{error}");
            let identity = connection.identify_system().await.unwrap();
            assert_eq!(identity.timeline.get(), 2);
            let history = connection.timeline_history(identity.timeline).await.unwrap();
            assert_eq!(&history[..], fs::read(cluster.pgdata().join("pg_wal/00000002.history")).unwrap());
        });
    });
}

#[test]
fn a_base_backup_brings_every_archive_and_the_manifest() {
    for_each_version(|installation| {
        let (scene, cluster) = (Scene::new(), Cluster::builder(installation).start());
        let space = scene.folder("space");
        cluster.psql(&format!("create tablespace apart location '{}'", space.display()));
        cluster.psql("create table t tablespace apart as select generate_series(1, 100000) as n");
        let (mut streams, ended, archives) = block_on(async {
            let mut connection = Replication::open(&cluster.conninfo().parse().unwrap()).await.unwrap();
            let mut backup = connection.base_backup(&options()).await.unwrap();
            let archives = backup.archives.clone();
            let mut streams: Vec<Vec<u8>> = Vec::new();
            while let Some(piece) = backup.next().await.unwrap() {
                match piece {
                    Piece::Archive(number) => {
                        assert_eq!(number, streams.len());
                        streams.push(Vec::new());
                    }
                    Piece::Manifest => streams.push(Vec::new()),
                    Piece::Data(bytes) => streams.last_mut().unwrap().extend_from_slice(&bytes),
                }
            }
            let start = backup.start;
            let ended = backup.finish().await.unwrap();
            assert!(ended.stop.lsn > start.lsn && ended.stop.timeline == start.timeline && !ended.damaged);
            // The connection is as good as new.
            connection.identify_system().await.unwrap();
            (streams, ended, archives)
        });
        assert_eq!(archives.len(), 2);
        assert_eq!((archives[0].location.clone(), archives[1].tablespace), (space, None));
        let manifest: serde_json::Value = serde_json::from_slice(&streams.pop().unwrap()).unwrap();
        assert_eq!(manifest["WAL-Ranges"][0]["End-LSN"], ended.stop.lsn.to_string());
        let names: Vec<Vec<PathBuf>> = streams
            .iter()
            .map(|tar| {
                let mut archive = tar::Archive::new(&tar[..]);
                archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().into_owned()).collect()
            })
            .collect();
        assert!(names[0].iter().any(|n| n.to_string_lossy().starts_with("PG_")), "{:?}", names[0]);
        assert_eq!(names[1][0], PathBuf::from("backup_label"));
        assert_eq!(names[1].last().unwrap(), &PathBuf::from("global/pg_control"));
    });
}

#[test]
fn a_backup_that_is_cancelled_ends_with_an_error_and_the_server_is_free() {
    let cluster = Cluster::builder(any()).start();
    cluster.psql("create table t as select generate_series(1, 500000) as n");
    block_on(async {
        let mut connection = Replication::open(&cluster.conninfo().parse().unwrap()).await.unwrap();
        let canceller = connection.canceller();
        // Slow enough not to be over before it is cancelled.
        let slow = Options { rate_limit: Some(64 << 10), ..options() };
        let mut backup = connection.base_backup(&slow).await.unwrap();
        backup.next().await.unwrap();
        canceller.cancel().await.unwrap();
        let error = loop {
            match backup.next().await {
                Ok(piece) => assert!(piece.is_some(), "the backup must not end well"),
                Err(error) => break error,
            }
        };
        assert!(error.to_string().contains("SQLSTATE 57014"), "{error}");
        connection.identify_system().await.unwrap();
        // One that nobody reads any more.
        let mut backup = connection.base_backup(&slow).await.unwrap();
        backup.next().await.unwrap();
        connection.cancel().await.unwrap();
        connection.identify_system().await.unwrap();
        // Where nothing is to be ended, nothing is waited for.
        connection.cancel().await.unwrap();
        connection.identify_system().await.unwrap();
    });
    assert_eq!(cluster.psql("select count(*) from pg_stat_progress_basebackup"), "0");
    assert_eq!(cluster.log().matches("canceling statement due to user request").count(), 2, "{}", cluster.log_tail());
}
