//! The recovery kit: the way back when the machine is gone, what a kit without secrets says, and that nothing changes
//! when something is wrong with it.

#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use walden_testkit::{
    postgres::{Cluster, any},
    protected::{Place, Protected},
    run::{Ran, run},
    s3::S3Server,
    scene::Scene,
};

const PASSPHRASE: &str = "lamp ocean velvet tractor mint";

/// Every file of a folder with its content; nothing where there is no folder.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap())).collect()
}

fn passphrase(scene: &Scene) -> PathBuf {
    scene.write("passphrase", format!("{PASSPHRASE}\n"))
}

fn import(scene: &Scene, kit: &Path, more: &[&str]) -> Ran {
    let mut command = scene.walden();
    command.args(["kit", "import"]).arg(kit).args(more);
    run(&mut command)
}

/// A cluster whose kit was made, with everything on the machine taken away since: the bucket alone is left.
fn lost_machine(s3: &S3Server) -> (Scene, PathBuf) {
    let p = Protected::new(any(), Place::Bucket(s3), |b| b);
    p.cluster.psql("create table t as select n from generate_series(1, 1000) as n");
    let _ = p.backup();
    p.cluster.psql("insert into t select n from generate_series(1001, 1500) as n");
    p.archive();
    let safe = Scene::new();
    let kit = safe.path().join("kit.age");
    let made = safe.path().join("made.age");
    fs::set_permissions(safe.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let mut export = p.command(["kit", "export", "--with-credentials", "--output"]);
    export.arg(&made).arg("--passphrase-file").arg(passphrase(&p.scene));
    let ran = run(&mut export);
    assert!(ran.ok().contains("locked with the passphrase"), "{ran}");
    assert!(!ran.stderr.contains(s3.secret_key()) && !ran.stdout.contains(s3.secret_key()), "{ran}");
    fs::rename(made, &kit).unwrap();
    (safe, kit)
}

#[test]
fn the_machine_is_gone_and_a_kit_and_a_bucket_bring_it_back() {
    let s3 = S3Server::start();
    let (safe, kit) = lost_machine(&s3);
    // Another machine: no configuration, no keys in the environment, nothing in its home.
    let empty = Scene::new();
    let etc = empty.path().join("etc");
    let shown = run(empty.walden().args(["kit", "show"]).arg(&kit).arg("--passphrase-file").arg(passphrase(&safe)));
    assert!(shown.ok().contains("credentials   are in it") && !shown.stdout.contains(s3.secret_key()), "{shown}");
    let passphrase = passphrase(&safe).display().to_string();
    let imported = import(&empty, &kit, &["--to", etc.to_str().unwrap(), "--passphrase-file", &passphrase]);
    imported.expect_code(0);
    let mode = fs::metadata(etc.join("credentials")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let pgdata = empty.path().join("data");
    let sockets = format!("--set=unix_socket_directories={}", empty.folder("sockets").display());
    let mut restore = empty.walden();
    restore.arg("--config").arg(etc.join("walden.toml"));
    restore.args(["restore", "--to", "latest", "--yes", "--start", "--set=listen_addresses=", &sockets]);
    run(restore.arg("--pgdata").arg(&pgdata)).expect_code(0);
    let copy = Cluster::attach(&pgdata, any());
    assert_eq!(copy.psql("select count(*), sum(n) from t"), "1500|1125750");
}

#[test]
fn a_kit_that_is_not_right_changes_nothing() {
    let s3 = S3Server::start();
    let (safe, kit) = lost_machine(&s3);
    let bytes = fs::read(&kit).unwrap();
    let right = passphrase(&safe).display().to_string();
    let to = safe.path().join("etc");
    let refused = |bytes: &[u8], passphrase: &str, code: i32| {
        let kit = safe.write("other", bytes);
        let ran = import(&safe, &kit, &["--to", to.to_str().unwrap(), "--passphrase-file", passphrase]);
        ran.expect_code(code);
        assert_eq!(ran.stderr.lines().filter(|line| line.starts_with("walden: ")).count(), 1, "{ran}");
        assert_eq!(ran.stdout, "", "{ran}");
        assert!(!to.exists(), "{ran}");
    };
    let wrong = safe.write("wrong", "lamp ocean velvet tractor salt\n").display().to_string();
    refused(&bytes, &wrong, 5);
    let header = bytes.windows(3).position(|w| w == b"---").unwrap();
    for at in [0, 10, header + 5, header + 60, bytes.len() / 2, bytes.len() - 1] {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        refused(&changed, &right, 6);
    }
    for length in [0, 30, header, bytes.len() / 2, bytes.len() - 1] {
        refused(&bytes[..length], &right, 6);
    }
}

#[test]
fn a_kit_without_secrets_says_what_has_to_be_filled_in_and_so_do_the_commands() {
    let s3 = S3Server::start();
    let scene = Scene::new();
    let authority = scene.write("our ca.pem", fs::read(S3Server::authority()).unwrap());
    let config = scene.write(
        "walden.toml",
        format!(
            "# ours\n[repository]\nurl = \"s3://{}/walden\"\nendpoint = \"{}\"\npath_style = true\nregion = \"eu\"\nca_file = \"{}\"\n\n[cluster.main]\nconnection = \"host=127.0.0.1 port=1 password=hush\"\n",
            s3.bucket(), s3.endpoint(), authority.display()
        ),
    );
    let export = |more: &[&str]| run(scene.walden().arg("--config").arg(&config).args(["kit", "export"]).args(more));
    let ran = export(&["--output", "kit"]);
    let said = ran.ok();
    assert!(said.contains("not locked") && said.contains("fill in: walden.toml: cluster.main.connection"), "{ran}");
    assert!(said.contains("fill in: credentials: aws_access_key_id in [default]"), "{ran}");
    assert!(!ran.stdout.contains("hush") && !ran.stderr.contains("hush"), "{ran}");
    let (kit, to) = (scene.path().join("kit"), scene.path().join("etc"));
    import(&scene, &kit, &["--to", to.to_str().unwrap()]).expect_code(0);
    let new = to.join("walden.toml");
    let text = fs::read_to_string(&new).unwrap();
    assert!(text.starts_with("# ours\n") && text.contains(&format!("{}/our_ca.pem", to.display())), "{text}");
    let walden = |arguments: &[&str]| run(scene.walden().arg("--config").arg(&new).args(arguments));
    let plan = walden(&["restore", "--to", "latest", "--pgdata", "data", "--yes"]);
    assert!(plan.expect_code(5).stderr.contains("hint: fill in "), "{plan}");
    assert!(plan.stderr.contains("credentials: aws_access_key_id in [default], line 2"), "{plan}");
    let check = walden(&["check"]);
    assert!(
        check.stdout.contains("FILL-ME-IN in walden.toml") || check.stderr.contains("FILL-ME-IN in walden.toml"),
        "{check}"
    );
    assert!(check.stdout.contains("fill in ") || check.stderr.contains("fill in "), "{check}");
    // Filled in, the repository answers: nobody has made one there yet.
    let keys = fs::read_to_string(to.join("credentials")).unwrap();
    let keys = keys.replacen("FILL-ME-IN", s3.access_key(), 1).replacen("FILL-ME-IN", s3.secret_key(), 1);
    fs::write(to.join("credentials"), keys).unwrap();
    let list = walden(&["list"]);
    assert!(list.expect_code(2).stderr.contains("is not a repository"), "{list}");

    for (more, code, said) in [
        (&["--with-credentials", "--output", "k"] as &[&str], 5, "no credentials"),
        (&["--with-identity", "--output", "k"], 2, "names no identity"),
        (&["--output", "kit"], 4, "exists already"),
    ] {
        let ran = export(more);
        assert!(ran.expect_code(code).stderr.contains(said), "{ran}");
    }
    let export = |passphrase: &str, more: &[&str]| {
        let mut command = scene.walden();
        command
            .env("AWS_ACCESS_KEY_ID", "A")
            .env("AWS_SECRET_ACCESS_KEY", "b")
            .env("WALDEN_KIT_PASSPHRASE", passphrase);
        run(command.arg("--config").arg(&config).args(["kit", "export", "--with-credentials"]).args(more))
    };
    assert!(export("", &["--output", "k"]).expect_code(4).stderr.contains("holds a secret"));
    assert!(export("password1234", &["--output", "k"]).expect_code(2).stderr.contains("too weak"));
    assert!(!scene.path().join("k").exists());
    export(PASSPHRASE, &["--output", "k"]).expect_code(0);
    let generated = export("", &["--output", "k2", "--generate-passphrase", "--passphrase-file", "words"]);
    generated.expect_code(0);
    let words = fs::read_to_string(scene.path().join("words")).unwrap();
    let shown = format!("{}{}", generated.stdout, generated.stderr);
    assert!(words.trim().len() == 29 && !shown.contains(words.trim()), "{generated}");
    import(&scene, &scene.path().join("k2"), &["--to", "again", "--passphrase-file", "words"]).expect_code(0);
}

#[test]
fn what_is_printed_is_imported_again() {
    let scene = Scene::new();
    let config =
        scene.write("walden.toml", "[repository]\nurl = \"file:///srv/walden\"\n\n[cluster.main]\npgdata = \"/d\"\n");
    let walden = |arguments: &[&str]| run(scene.walden().arg("--config").arg(&config).args(arguments));
    let printed = walden(&["kit", "export", "--print", "-"]);
    let paper = scene.write("typed", printed.ok().to_lowercase());
    import(&scene, &paper, &["--to", "etc"]).expect_code(0);
    assert_eq!(fs::read(scene.path().join("etc/walden.toml")).unwrap(), fs::read(&config).unwrap());
    let page = walden(&["kit", "export", "--print", "page.html"]);
    page.expect_code(0);
    let page = fs::read_to_string(scene.path().join("page.html")).unwrap();
    assert!(page.contains("<svg") && page.contains("WALDEN KIT 1"), "{page}");
    // One letter wrong: its line is named.
    let line = printed.stdout.lines().position(|line| line.starts_with("002 ")).unwrap();
    let mut lines: Vec<String> = printed.stdout.lines().map(str::to_owned).collect();
    let other = if lines[line].as_bytes()[4] == b'7' { "8" } else { "7" };
    lines[line].replace_range(4..5, other);
    let ran = import(&scene, &scene.write("typed", lines.join("\n")), &["--to", "other"]);
    assert!(ran.expect_code(6).stderr.contains(&format!("002 (line {} of the text)", line + 1)), "{ran}");
    assert!(!scene.path().join("other").exists());
}

#[test]
fn kits_in_the_repository_are_kept_as_many_as_is_wished() {
    let s3 = S3Server::start();
    let p = Protected::new(any(), Place::Bucket(&s3), |b| b);
    let text = fs::read_to_string(&p.config).unwrap();
    p.scene.write("walden.toml", format!("{text}\n[kit]\nkeep = 2\n"));
    let passphrase = passphrase(&p.scene).display().to_string();
    for _ in 0..3 {
        p.walden(["kit", "export", "--to-repository", "--with-credentials", "--passphrase-file", &passphrase])
            .expect_code(0);
    }
    p.walden(["kit", "export", "--output", "elsewhere"]).expect_code(0);
    let kits: Vec<String> = s3.keys().into_iter().filter(|key| key.contains("/notes/kits/")).collect();
    let names: Vec<&str> = kits.iter().map(|key| key.rsplit_once('/').unwrap().1).collect();
    assert_eq!(names, ["2.json", "2.tar.zst.age", "3.json", "3.tar.zst.age", "4.json"]);
    let note = s3.object(&kits[0]).unwrap().bytes.to_vec();
    let note: serde_json::Value = serde_json::from_slice(&note).unwrap();
    assert_eq!((&note["locked"], &note["credentials"]), (&"passphrase".into(), &true.into()));
    let kit = p.scene.write("stored", &s3.object(&kits[3]).unwrap().bytes);
    import(&p.scene, &kit, &["--to", "etc", "--passphrase-file", &passphrase]).expect_code(0);
    assert_eq!(fs::read(p.scene.path().join("etc/walden.toml")).unwrap(), fs::read(&p.config).unwrap());
    assert!(fs::read_to_string(p.scene.path().join("etc/credentials")).unwrap().contains(s3.secret_key()));
}

#[test]
fn killed_at_any_step_an_import_leaves_old_or_new_and_the_same_command_finishes() {
    let strace = Path::new("/usr/bin/strace");
    if !strace.exists() {
        eprintln!("strace is not on this machine: this test did not run");
        return;
    }
    let scene = Scene::new();
    let ca = scene.write("ca.pem", "-----BEGIN CERTIFICATE-----\n");
    let new = format!("[repository]\nurl = \"s3://new\"\nca_file = \"{}\"\n", ca.display());
    let config = scene.write("walden.toml", new);
    run(scene.walden().arg("--config").arg(&config).args(["kit", "export", "--output", "kit"])).expect_code(0);
    let kit = scene.path().join("kit");
    let reference = scene.path().join("reference");
    import(&scene, &kit, &["--to", "reference"]).expect_code(0);
    let (mut kills, old) = (0, "[repository]\nurl = \"s3://old\"\n");
    for call in ["fchmod", "fsync", "linkat", "rename", "unlink"] {
        for number in 1.. {
            let name = format!("{call}-{number}");
            let folder = scene.folder(&name);
            scene.write(&format!("{name}/walden.toml"), old);
            let arguments = ["kit", "import", "kit", "--overwrite", "--to", &name];
            let mut traced = scene.owner().command(strace);
            traced.current_dir(scene.path()).env("HOME", scene.path());
            let inject = format!("inject={call}:signal=KILL:when={number}");
            traced.args(["-qq", "-f", "-o", "/dev/null", "-e", &format!("trace={call}"), "-e", &inject]);
            let ran = run(traced.arg(scene.program("walden")).args(arguments));
            let there = files(&folder);
            let expected = |name: &str, found: &[u8]| {
                let text = String::from_utf8_lossy(found).replace(&folder.display().to_string(), "DIR");
                let new =
                    fs::read_to_string(reference.join(name)).unwrap().replace(&reference.display().to_string(), "DIR");
                assert!(text == new || (name == "walden.toml" && text == old), "{name} after {call} {number}: {text}");
            };
            for (name, found) in
                there.iter().filter(|(name, _)| ["walden.toml", "credentials", "ca.pem"].contains(&name.as_str()))
            {
                expected(name, found);
            }
            assert!(there.contains_key("walden.toml"), "{call} {number}: the old one or the new one");
            import(&scene, &kit, &["--overwrite", "--to", &name]).expect_code(0);
            let text = fs::read_to_string(folder.join("walden.toml")).unwrap();
            assert!(text.contains("s3://new"), "{text}");
            assert!(!files(&folder).keys().any(|name| name.starts_with('.')), "{call} {number}");
            let kept: Vec<String> =
                files(&folder).into_keys().filter(|name| name.starts_with("walden.toml.2")).collect();
            assert!(kept.iter().any(|name| fs::read_to_string(folder.join(name)).unwrap() == old), "{kept:?}");
            if ran.code == Some(0) {
                break;
            }
            kills += 1;
        }
    }
    assert!(kills >= 8, "only {kills} kills");
}
