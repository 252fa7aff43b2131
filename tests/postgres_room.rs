//! The postgres room held against PostgreSQL itself: `pg_controldata`, `pg_basebackup`, `pg_verifybackup` and
//! `pg_checksums` of every version are the judges.

#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{BufWriter, Write},
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    time::Duration,
};

use walden::postgres::{
    Conninfo, ControlFile, Lsn, TimelineId, Version,
    backup_label::{BACKUP_LABEL, BackupLabel, TABLESPACE_MAP, TablespaceMap},
    backup_manifest::{BACKUP_MANIFEST, ManifestWriter, WalRange},
    control::{CONTROL_FILE, WalLevel, guard},
    datadir::{FileKind, Rules, Walk, walk},
    installation,
    page::{Verdict, verify_page},
    server::{Came, Running, Server, Start, StopMode, running},
    settings::{self, AUTO_CONF, Archiving, RECOVERY_SIGNAL, RecoverySettings, RecoveryTarget, TargetAction},
    sql::{ArchiveMode, BackupStop, Session},
};
use walden_testkit::{
    postgres::{Cluster, Installation, Stop, any, for_each_version},
    run::run,
    scene::Scene,
};

const PATIENCE: Duration = Duration::from_secs(120);

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Runtime::new().unwrap().block_on(future)
}

fn connect(cluster: &Cluster) -> Conninfo {
    cluster.conninfo().parse().unwrap()
}

/// A cluster with one of everything that a base backup treats differently.
fn motley(pg: &Installation, scene: &Scene) -> Cluster {
    let archive = scene.folder("archive");
    let cluster = Cluster::builder(pg)
        .wal_segment_size(1)
        .archiving(format!("cp %p {}/%f", archive.display()))
        .setting("max_connections", 37)
        .setting("track_commit_timestamp", "on")
        .setting("wal_level", "logical")
        .start();
    let space = scene.folder("odd\\space");
    cluster.psql(&format!("CREATE TABLESPACE outside LOCATION '{}'", space.display()));
    cluster.psql(
        "CREATE TABLE kept AS SELECT g, md5(g::text) FROM generate_series(1, 20000) g;
         CREATE TABLE far TABLESPACE outside AS SELECT g FROM generate_series(1, 5000) g;
         CREATE UNLOGGED TABLE fleeting AS SELECT g FROM generate_series(1, 5000) g;
         CREATE UNLOGGED TABLE fleeting_far TABLESPACE outside AS SELECT 1;
         CREATE DATABASE other TABLESPACE outside;
         VACUUM kept;
         CHECKPOINT;",
    );
    cluster
}

#[test]
fn control_files_say_what_pg_controldata_says() {
    for_each_version(|pg| {
        let scene = Scene::new();
        let mut cluster = motley(pg, &scene);
        cluster.stop(Stop::Fast);
        let said = cluster.pg_run("pg_controldata", [cluster.pgdata()]);
        let said: BTreeMap<_, _> = said.lines().filter_map(|l| l.split_once(':')).map(|(k, v)| (k, v.trim())).collect();
        let control = ControlFile::read(cluster.pgdata()).unwrap();
        let flag = |on: bool| if on { "on" } else { "off" }.to_owned();
        let copy = &control.checkpoint_copy;
        for (name, value) in [
            ("pg_control version number", control.control_version.to_string()),
            ("Catalog version number", control.catalog_version.to_string()),
            ("Database system identifier", control.system.to_string()),
            ("Database cluster state", control.state.to_string()),
            ("Latest checkpoint location", control.checkpoint.to_string()),
            ("Latest checkpoint's REDO location", copy.redo.to_string()),
            ("Latest checkpoint's TimeLineID", copy.timeline.to_string()),
            ("Latest checkpoint's PrevTimeLineID", copy.previous_timeline.to_string()),
            ("Latest checkpoint's NextXID", format!("{}:{}", copy.next_xid >> 32, copy.next_xid as u32)),
            ("Time of latest checkpoint", copy.time.format("%a %b %e %H:%M:%S %Y").to_string()),
            ("pg_control last modified", control.modified.format("%a %b %e %H:%M:%S %Y").to_string()),
            ("Minimum recovery ending location", control.minimum_recovery.to_string()),
            ("Backup start location", control.backup_start.to_string()),
            ("Backup end location", control.backup_end.to_string()),
            ("wal_level setting", control.wal_level.to_string()),
            ("wal_log_hints setting", flag(control.wal_log_hints)),
            ("max_connections setting", control.required.max_connections.to_string()),
            ("max_worker_processes setting", control.required.max_worker_processes.to_string()),
            ("max_wal_senders setting", control.required.max_wal_senders.to_string()),
            ("max_prepared_xacts setting", control.required.max_prepared_transactions.to_string()),
            ("max_locks_per_xact setting", control.required.max_locks_per_transaction.to_string()),
            ("track_commit_timestamp setting", flag(control.track_commit_timestamp)),
            ("Database block size", control.block_size.to_string()),
            ("Blocks per segment of large relation", control.relation_segment_blocks.to_string()),
            ("WAL block size", control.wal_block_size.to_string()),
            ("Bytes per WAL segment", control.segment_size.bytes().to_string()),
            ("Data page checksum version", control.data_checksum_version.to_string()),
        ] {
            assert_eq!(said.get(name).copied(), Some(value.as_str()), "{name}");
        }
        assert_eq!(control.version, Version(pg.major.into()));
        assert_eq!(control.required.max_connections, 37);
        assert_eq!(installation::version_of(cluster.pgdata()).unwrap(), control.version);
    });
}

#[test]
fn a_server_tells_its_facts() {
    for_each_version(|pg| {
        let scene = Scene::new();
        let cluster = motley(pg, &scene);
        block_on(async {
            let session = Session::open(&connect(&cluster)).await.unwrap();
            let facts = session.server_facts().await.unwrap();
            let control = ControlFile::read(cluster.pgdata()).unwrap();
            assert_eq!((facts.system, facts.version), (control.system, control.version));
            assert_eq!(facts.data_directory.as_deref(), Some(cluster.pgdata()));
            assert_eq!(facts.config_files[0], cluster.pgdata().join("postgresql.conf"));
            assert_eq!((facts.wal_level, facts.archive_mode), (WalLevel::Logical, ArchiveMode::On));
            assert!(facts.archive_command.starts_with("cp %p"));
            assert_eq!((facts.segment_size, facts.block_size), (control.segment_size, 8192));
            assert!(facts.data_checksums && !facts.in_recovery);
            assert_eq!(facts.timeline, TimelineId::FIRST);
            assert_eq!(facts.stats_temp_directory.is_some(), pg.major == 14);

            let before = session.current_wal_lsn().await.unwrap();
            let point = session.create_restore_point("here").await.unwrap();
            assert!(point > before && session.switch_wal().await.unwrap() >= point);
            cluster.wait_archived(&cluster.switch_wal());
            // The counters of 14 come late.
            cluster.wait_for("SELECT last_archived_wal IS NOT NULL FROM pg_stat_archiver", "t");
            let archiver = session.archiver().await.unwrap();
            assert!(archiver.archived > 0 && archiver.last_archived.is_some(), "{archiver:?}");
            let rows = session.query("SELECT 1, NULL; SELECT 'a'").await.unwrap();
            assert_eq!(rows, [vec![Some("1".to_owned()), None], vec![Some("a".to_owned())]]);

            let error = session.query("SELECT 1/0").await.unwrap_err();
            assert!(error.to_string().contains("division by zero"), "{error}");
            assert!(matches!(running(cluster.pgdata()).unwrap(), Running::Yes(p) if p.status == "ready"));
            cluster.psql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'walden'");
            assert!(session.in_recovery().await.is_err());
            // The server's last words come before the end of the connection.
            tokio::time::timeout(PATIENCE, async {
                while session.is_alive() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            })
            .await
            .unwrap();
        });
    });
}

#[test]
fn roles_without_rights_and_wrong_passwords_are_told_the_mend() {
    let mut cluster = Cluster::builder(any()).tcp().setting("password_encryption", "scram-sha-256").start();
    cluster.psql("CREATE ROLE weak LOGIN PASSWORD 'right'");
    fs::write(cluster.pgdata().join("pg_hba.conf"), "local all all trust\nhost all all all scram-sha-256\n").unwrap();
    cluster.reload();
    let port = cluster.port();
    let conninfo = |password: &str| -> Conninfo {
        let text = format!("host=127.0.0.1 port={port} user=weak dbname=postgres password={password}");
        Conninfo::parse(&text, &|_| None).unwrap()
    };
    block_on(async {
        let error = Session::open(&conninfo("hunter2")).await.unwrap_err();
        assert!(error.to_string().contains("password authentication failed"), "{error}");
        assert!(!format!("{error:?}").contains("hunter2") && error.hint_text().is_some());
        let session = Session::open(&conninfo("right")).await.unwrap();
        let facts = session.server_facts().await.unwrap();
        assert_eq!((facts.data_directory, facts.config_files), (None, Vec::new()));
        let error = session.backup_start("x", true).await.unwrap_err();
        assert!(error.hint_text().is_some_and(|h| h.contains("grant")), "{error}");
    });
    cluster.stop(Stop::Fast);
    let error = block_on(Session::open(&conninfo("right"))).unwrap_err();
    assert!(error.to_string().contains("refused") && error.hint_text().is_some(), "{error}");
}

#[test]
fn tls_verifies_as_much_as_sslmode_says() {
    let scene = Scene::new();
    let (key, certificate) = (scene.path().join("server.key"), scene.path().join("server.crt"));
    let mut openssl = scene.owner().command("openssl");
    openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]);
    openssl.args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]);
    if openssl.arg("-keyout").arg(&key).arg("-out").arg(&certificate).output().is_err() {
        eprintln!("openssl is not here: TLS was not tested");
        return;
    }
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let cluster = Cluster::builder(any())
        .tcp()
        .setting("ssl", "on")
        .setting("ssl_cert_file", certificate.display())
        .setting("ssl_key_file", key.display())
        .start();
    fs::write(cluster.pgdata().join("pg_hba.conf"), "local all all trust\nhostssl all all all trust\n").unwrap();
    cluster.reload();
    let encrypted = |more: &str| {
        let text = format!("hostaddr=127.0.0.1 port={} user=postgres dbname=postgres {more}", cluster.port());
        let conninfo = Conninfo::parse(&text, &|_| None).unwrap();
        block_on(async {
            let session = Session::open(&conninfo).await?;
            let rows = session.query("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").await?;
            Ok::<_, walden::Error>(rows[0][0].as_deref() == Some("t"))
        })
    };
    let root = format!("sslrootcert={}", certificate.display());
    assert!(encrypted("sslmode=disable").is_err(), "pg_hba.conf wants TLS");
    assert!(encrypted("").unwrap() && encrypted("sslmode=require").unwrap());
    assert!(encrypted(&format!("sslmode=verify-ca host=elsewhere {root}")).unwrap());
    assert!(encrypted(&format!("sslmode=verify-full host=localhost {root}")).unwrap());
    let error = encrypted(&format!("sslmode=verify-full host=elsewhere {root}")).unwrap_err();
    assert!(error.to_string().contains("not valid for name"), "{error}");
    let foreign = scene.path().join("foreign.crt");
    let mut openssl = scene.owner().command("openssl");
    openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]);
    let made = openssl.args(["-subj", "/CN=x", "-keyout", "/dev/null", "-out"]).arg(&foreign);
    run(made).expect_code(0);
    for mode in ["require", "verify-ca"] {
        assert!(encrypted(&format!("sslmode={mode} sslrootcert={}", foreign.display())).is_err(), "{mode}");
    }
}

/// Takes a base backup of `cluster` into `to`, with its tablespaces beside it, as this room's parts say.
async fn back_up(cluster: &Cluster, scene: &Scene, to: &Path) -> (BackupStop, Walk) {
    let session = Session::open(&connect(cluster)).await.unwrap();
    let start = session.backup_start("a label\nof two lines", true).await.unwrap();
    let rules = Rules::of(&ControlFile::read(cluster.pgdata()).unwrap());
    let found = walk(cluster.pgdata(), &rules).unwrap();
    let own = |path: &Path| scene.owner().own(path);
    let mut map = TablespaceMap::default();
    for directory in &found.directories {
        let mut parts = directory.path.components();
        let new = to.join(&directory.path);
        let oid = parts.next().zip(parts.next()).filter(|(top, _)| top.as_os_str() == "pg_tblspc");
        if let (Some((_, oid)), None) = (oid, parts.next()) {
            let location = scene.folder(&format!("restored {}\n", oid.as_os_str().display()));
            symlink(&location, &new).unwrap();
            map.entries.push((oid.as_os_str().to_str().unwrap().parse().unwrap(), location));
        } else {
            fs::create_dir_all(&new).unwrap();
            fs::set_permissions(&new, fs::Permissions::from_mode(directory.mode)).unwrap();
            own(&new);
        }
    }
    let manifest = BufWriter::new(fs::File::create(to.join(BACKUP_MANIFEST)).unwrap());
    let control = ControlFile::read(cluster.pgdata()).unwrap();
    let mut manifest = ManifestWriter::new(manifest, control.version, control.system).unwrap();
    let mut store = |path: &Path, bytes: &[u8]| {
        fs::write(to.join(path), bytes).unwrap();
        own(&to.join(path));
        manifest.file(path, bytes.len() as u64, chrono::DateTime::UNIX_EPOCH, crc32c::crc32c(bytes)).unwrap();
    };
    for file in found.files.iter().filter(|f| f.kind() != FileKind::Control) {
        store(&file.path, &fs::read(cluster.pgdata().join(&file.path)).unwrap());
    }
    let (_, mut bytes) = ControlFile::read_with_bytes(cluster.pgdata()).unwrap();
    guard(&mut bytes).unwrap();
    store(Path::new(CONTROL_FILE), &bytes);
    let stop = session.backup_stop().await.unwrap();
    let label = BackupLabel::parse(&stop.label).unwrap();
    assert_eq!(label.to_string(), stop.label);
    assert_eq!((label.start, label.label.as_str()), (start, "a label\nof two lines"));
    let original = TablespaceMap::parse(stop.tablespace_map.as_bytes()).unwrap();
    assert_eq!(original.to_bytes(), stop.tablespace_map.as_bytes());
    assert_eq!(original.entries.len(), found.tablespaces.len());
    assert_eq!(original.entries[0], (found.tablespaces[0].oid, found.tablespaces[0].location.clone()));
    store(Path::new(BACKUP_LABEL), stop.label.as_bytes());
    store(Path::new(TABLESPACE_MAP), &map.to_bytes());
    let range = WalRange { timeline: label.timeline, start, end: stop.stop };
    manifest.finish(&[range]).unwrap().into_inner().unwrap().sync_all().unwrap();
    (stop, found)
}

fn start(pg: &Installation, pgdata: &Path, scene: &Scene) -> Server {
    let directory = scene.folder("socket").display().to_string();
    let overrides = [("unix_socket_directories", directory.as_str()), ("listen_addresses", "")];
    Server::start(&Start {
        bin: pg.bin.clone(),
        pgdata: pgdata.to_owned(),
        log: scene.path().join("server.log"),
        settings: overrides.map(|(n, v)| (n.to_owned(), v.to_owned())).to_vec(),
    })
    .unwrap()
}

#[test]
fn a_backup_of_our_parts_is_verified_and_recovers_to_an_lsn() {
    for_each_version(|pg| {
        let scene = Scene::new();
        let cluster = motley(pg, &scene);
        // Settings of the source that would lead recovery astray.
        cluster.psql("ALTER SYSTEM SET recovery_target_time = '2020-01-01 00:00:00+00'");
        cluster.psql("ALTER SYSTEM SET recovery_min_apply_delay = '1h'");
        let pgdata = scene.folder("restored");
        fs::set_permissions(&pgdata, fs::Permissions::from_mode(0o700)).unwrap();
        let (_, _) = block_on(back_up(&cluster, &scene, &pgdata));
        cluster.psql("INSERT INTO far VALUES (-1)");
        let target: Lsn = cluster.psql("SELECT pg_current_wal_insert_lsn()").parse().unwrap();
        cluster.psql("DROP TABLE kept");
        cluster.wait_archived(&cluster.switch_wal());

        let verify = |expected| {
            run(cluster.pg("pg_verifybackup").arg("-n").arg(&pgdata)).expect_code(expected);
        };
        verify(0);
        // Without its backup_label the guarded copy does not start.
        let label = pgdata.join(BACKUP_LABEL);
        fs::rename(&label, scene.path().join("label")).unwrap();
        let error = start(pg, &pgdata, &scene).wait(PATIENCE).unwrap_err();
        assert!(error.to_string().contains("could not locate a valid checkpoint record"), "{error}");
        fs::rename(scene.path().join("label"), &label).unwrap();

        let settings = RecoverySettings {
            restore_command: format!("cp '{}/%f' \"%p\"", scene.path().join("archive").display()),
            target: RecoveryTarget::Lsn { lsn: target, inclusive: false },
            timeline: Some(TimelineId::FIRST),
            action: TargetAction::Pause,
            required: Some(ControlFile::read(&pgdata).unwrap().required),
            archiving: Archiving::HeldBack { command: "echo held back; false".to_owned() },
            further: Vec::new(),
        };
        let auto_conf = pgdata.join(AUTO_CONF);
        let before = fs::read_to_string(&auto_conf).unwrap();
        fs::write(&auto_conf, settings.apply(&before, Version(pg.major.into())).unwrap()).unwrap();
        scene.write(&format!("restored/{RECOVERY_SIGNAL}"), "");
        let mut server = start(pg, &pgdata, &scene);
        assert_eq!(server.wait(PATIENCE).unwrap(), Came::Ready);
        block_on(inspect_recovered(&server, target));

        let altered = fs::read_to_string(&auto_conf).unwrap();
        assert!(settings::is_applied(&altered), "ALTER SYSTEM keeps the block");
        let after = settings::remove(&altered).unwrap();
        for there in ["recovery_target_time = '2020", "work_mem = '7MB'", "max_connections = '50'"] {
            assert!(after.contains(there), "{there}\n{after}");
        }
        assert!(!after.contains("restore_command") && !after.contains("walden"), "{after}");
        fs::write(&auto_conf, after).unwrap();
        server.stop(StopMode::Fast, PATIENCE).unwrap();
        assert_eq!(running(&pgdata).unwrap(), Running::No);
    });
}

async fn inspect_recovered(server: &Server, target: Lsn) {
    let conninfo = server.conninfo("postgres", "postgres").unwrap();
    let session = Session::open(&conninfo).await.unwrap();
    let status = loop {
        let status = session.recovery().await.unwrap();
        if status.paused {
            break status;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert!(status.in_recovery && status.replayed.is_some_and(|lsn| lsn <= target), "{status:?}");
    let one = async |sql: &str| session.query(sql).await.unwrap()[0][0].clone().unwrap();
    assert_eq!(one("SELECT count(*) FROM public.kept").await, "20000");
    assert_eq!(one("SELECT min(g) FROM public.far").await, "-1");
    let facts = session.server_facts().await.unwrap();
    assert!(facts.in_recovery);
    assert_eq!(facts.archive_command, "echo held back; false");
    session.query("ALTER SYSTEM SET work_mem = '7MB'").await.unwrap();
    session.query("ALTER SYSTEM SET max_connections = 50").await.unwrap();
    session.resume_recovery().await.unwrap();
    while session.in_recovery().await.unwrap() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(one("SELECT count(*) FROM public.fleeting").await, "0", "an unlogged table is empty after recovery");
    assert_eq!(session.server_facts().await.unwrap().timeline.get(), 2);
    assert_eq!(session.recovery().await.unwrap().replayed.map(|lsn| lsn <= target), Some(true));
}

#[test]
fn the_walk_finds_what_pg_basebackup_takes() {
    for_each_version(|pg| {
        let scene = Scene::new();
        let cluster = motley(pg, &scene);
        // A temporary relation lives as long as its session.
        let session = block_on(async {
            let session = Session::open(&connect(&cluster)).await.unwrap();
            session.query("CREATE TEMPORARY TABLE t AS SELECT 1").await.unwrap();
            let found = walk(cluster.pgdata(), &Rules::of(&ControlFile::read(cluster.pgdata()).unwrap())).unwrap();
            let to = scene.path().join("taken");
            let space = scene.path().join("odd\\space");
            let mut command = cluster.pg("pg_basebackup");
            command.args(["-X", "none", "-c", "fast", "-D"]).arg(&to).arg("-T");
            command.arg(format!("{}={}", space.display(), scene.path().join("taken space").display()));
            run(&mut command).expect_code(0);
            let manifest: serde_json::Value =
                serde_json::from_slice(&fs::read(to.join(BACKUP_MANIFEST)).unwrap()).unwrap();
            let taken: BTreeSet<PathBuf> = manifest["Files"]
                .as_array()
                .unwrap()
                .iter()
                .map(|file| PathBuf::from(file["Path"].as_str().unwrap()))
                .filter(|path| path != Path::new(BACKUP_LABEL))
                .collect();
            let ours: BTreeSet<PathBuf> = found.files.iter().map(|f| f.path.clone()).collect();
            assert_eq!(ours, taken);
            assert!(found.skipped.is_empty(), "{:?}", found.skipped);
            let owner = scene.owner();
            assert_eq!(found.owner, (owner.uid, owner.gid));
            session
        });
        drop(session);
    });
}

/// Every page of every relation file that is not good: path, block within the file, verdict.
fn bad_pages(pgdata: &Path) -> Vec<(PathBuf, usize)> {
    let control = ControlFile::read(pgdata).unwrap();
    let mut bad = Vec::new();
    for file in walk(pgdata, &Rules::of(&control)).unwrap().files {
        let FileKind::Relation(relation) = file.kind() else { continue };
        let bytes = fs::read(pgdata.join(&file.path)).unwrap();
        for (i, page) in bytes.chunks(control.block_size as usize).enumerate() {
            let block = relation.first_block(control.relation_segment_blocks) + i as u32;
            match verify_page(page, block, Lsn(u64::MAX)) {
                Verdict::Good | Verdict::New => {}
                Verdict::TooNew | Verdict::Bad { .. } => bad.push((file.path.clone(), i)),
            }
        }
    }
    bad
}

#[test]
fn page_checksums_agree_with_pg_checksums() {
    for_each_version(|pg| {
        let scene = Scene::new();
        let mut cluster = motley(pg, &scene);
        let files =
            "SELECT pg_relation_filepath('kept'), pg_relation_filepath('far'), pg_relation_filepath('pg_class')";
        let files = cluster.psql(files);
        cluster.stop(Stop::Fast);
        assert_eq!(bad_pages(cluster.pgdata()), []);
        cluster.pg_run("pg_checksums", [Path::new("--check"), cluster.pgdata()]);

        let mut flipped = Vec::new();
        for (i, file) in files.split('|').enumerate() {
            let path = cluster.pgdata().join(file);
            let mut bytes = fs::read(&path).unwrap();
            let at = 8192 * i + 4000 + i;
            bytes[at] ^= 1 << i;
            fs::File::options().write(true).open(&path).unwrap().write_all(&bytes).unwrap();
            flipped.push((PathBuf::from(file), i));
        }
        flipped.sort();
        assert_eq!(bad_pages(cluster.pgdata()), flipped);
        let judged = run(cluster.pg("pg_checksums").arg("--check").arg(cluster.pgdata()));
        assert!(judged.stdout.contains("Bad checksums:  3"), "{judged}");
    });
}
