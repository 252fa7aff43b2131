//! Recovery kits that lie in the repository: found and fetched by its address alone, never readable, and the way back to
//! an encrypted cluster. Besides, what a person meets who makes and opens a kit at a terminal, or as root.

#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

use std::{
    fs,
    io::{Read, Write},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use walden::{clock::Clock, seal::age::Identities};
use walden_testkit::{
    postgres::{Cluster, any},
    protected::{Place, Protected},
    run::{Ran, run},
    s3::S3Server,
    scene::Scene,
};

const PASSPHRASE: &str = "lamp ocean velvet tractor mint";

/// What the rows of a table are, all of them.
const ROWS: &str = "select count(*), md5(string_agg(n || what, ',' order by n)) from quitesecret";

fn new_identity(scene: &Scene, name: &str) -> (PathBuf, String) {
    let (text, recipient) = Identities::generate(walden::clock::SystemClock.now());
    let path = scene.write(name, age::secrecy::ExposeSecret::expose_secret(&text));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    (path, recipient)
}

/// A cluster whose repository is encrypted to an identity that its configuration does not name.
fn sealed(place: Place<'_>) -> (Protected, PathBuf) {
    let p = Protected::new(any(), place, |b| b);
    let (identity, recipient) = new_identity(&p.scene, "identity");
    let text = fs::read_to_string(&p.config).unwrap();
    let state = p.scene.path().join("state").display().to_string();
    let tables = format!("[archive]\nstate_dir = \"{state}\"\n[encryption]\nrecipients = [\"{recipient}\"]\n");
    p.scene.write("walden.toml", format!("{text}\n{tables}"));
    (p, identity)
}

fn walden(scene: &Scene, arguments: &[&str]) -> Ran {
    run(scene.walden().args(arguments))
}

fn holds(bytes: &[u8], secret: &str) -> bool {
    bytes.windows(secret.len()).any(|window| window == secret.as_bytes())
}

/// An encrypted cluster in a bucket whose kit was stored beside it, all of its machine gone since; and what its rows were.
fn lost_machine(s3: &S3Server) -> String {
    let (p, identity) = sealed(Place::Bucket(s3));
    p.cluster.psql("create table quitesecret as select n, 'row ' || n as what from generate_series(1, 1000) as n");
    let _ = p.backup();
    p.cluster.psql("insert into quitesecret select n, 'later ' || n from generate_series(1001, 1500) as n");
    p.archive();
    let passphrase = p.scene.write("passphrase", format!("{PASSPHRASE}\n"));
    let mut export = p.command(["kit", "export", "--to-repository", "--with-credentials", "--passphrase-file"]);
    let ran = run(export.arg(passphrase).arg(format!("--with-identity={}", identity.display())));
    assert!(ran.ok().contains("in the repository") && ran.stdout.contains("locked with the passphrase"), "{ran}");
    for secret in [s3.secret_key(), "AGE-SECRET-KEY-", PASSPHRASE, "quitesecret"] {
        let readable = |key: &&String| holds(&s3.object(key).unwrap().bytes, secret);
        assert_eq!(s3.keys().iter().find(readable), None, "{secret} can be read");
    }
    p.cluster.psql(ROWS)
}

#[test]
fn an_encrypted_cluster_comes_back_by_an_address_two_keys_and_a_passphrase() {
    let s3 = S3Server::start();
    let rows = lost_machine(&s3);
    let empty = Scene::new();
    let passphrase = empty.write("passphrase", format!("{PASSPHRASE}\n")).display().to_string();
    let etc = empty.path().join("etc");
    let import = |url: &str, passphrase: &str| {
        let mut command = empty.walden();
        command.env("AWS_ACCESS_KEY_ID", s3.access_key()).env("AWS_SECRET_ACCESS_KEY", s3.secret_key());
        command.args(["kit", "import", "--from", url, "--endpoint", &s3.endpoint(), "--path-style", "--to", "etc"]);
        run(command.args(["--passphrase-file", passphrase]))
    };
    let url = format!("s3://{}/walden", s3.bucket());
    let wrong = empty.write("wrong", "lamp ocean velvet tractor salt\n").display().to_string();
    for (url, passphrase, code, said) in [
        (url.as_str(), wrong.as_str(), 5, "the passphrase is not the kit's"),
        ("s3://nowhere/walden", &passphrase, 5, "there is no bucket nowhere"),
        (&format!("s3://{}", s3.bucket()), &passphrase, 2, &format!("hint: there is one at {url}")),
        (&format!("s3://{}/wal", s3.bucket()), &passphrase, 2, "is not a repository"),
    ] {
        let ran = import(url, passphrase);
        assert!(ran.expect_code(code).stderr.contains(said) && !etc.exists(), "{ran}");
    }
    let ran = import(&url, &passphrase);
    assert!(
        ran.expect_code(0).stderr.contains("of cluster main, made on ") && !ran.stderr.contains("whoever"),
        "{ran}"
    );
    for name in ["credentials", "identity.txt"] {
        let found = fs::metadata(etc.join(name)).unwrap();
        assert_eq!((found.mode() & 0o777, found.uid()), (0o600, empty.owner().uid), "{name}");
    }
    // A kit that is not there is no more than a configuration: that of the runbook does as well.
    let identity = etc.join("identity.txt").display().to_string();
    let by_hand = format!(
        "[repository]\nurl = \"{url}\"\nendpoint = \"{}\"\npath_style = true\n[encryption]\nidentity_file = \"{identity}\"\n[cluster.main]\n",
        s3.endpoint()
    );
    let mut plan = empty.walden();
    plan.env("AWS_ACCESS_KEY_ID", s3.access_key()).env("AWS_SECRET_ACCESS_KEY", s3.secret_key());
    plan.arg("--config").arg(empty.write("by-hand.toml", by_hand)).args(["plan", "--to", "latest"]);
    run(&mut plan).expect_code(0);
    // The keys of the environment are not needed any more.
    let pgdata = empty.path().join("data");
    let sockets = format!("--set=unix_socket_directories={}", empty.folder("sockets").display());
    let mut restore = empty.walden();
    restore.arg("--config").arg(etc.join("walden.toml"));
    restore.args(["restore", "--to", "latest", "--yes", "--start", "--set=listen_addresses=", &sockets]);
    run(restore.arg("--pgdata").arg(&pgdata)).expect_code(0);
    assert_eq!(Cluster::attach(&pgdata, any()).psql(ROWS), rows);
}

/// A directory with two kits to recipients, the second the newer one.
fn two_kits() -> (Protected, PathBuf, String) {
    let (p, identity) = sealed(Place::Directory);
    for _ in 0..2 {
        let ran = p.walden(["kit", "export", "--to-repository"]);
        assert!(ran.ok().contains("locked to the recipients"), "{ran}");
    }
    let url = format!("file://{}", p.repository.display());
    (p, identity, url)
}

/// The folder of the kits of the one system there is.
fn kits_of(repository: &Path) -> PathBuf {
    let systems = fs::read_dir(repository.join("main")).unwrap().flatten().map(|entry| entry.path().join("notes/kits"));
    systems.into_iter().find(|folder| folder.exists()).unwrap()
}

#[test]
fn kits_are_listed_fetched_and_opened_with_an_identity() {
    let (p, identity, url) = two_kits();
    let list: serde_json::Value = serde_json::from_str(p.walden(["kit", "list", "--json"]).ok()).unwrap();
    let kits = list["kits"].as_array().unwrap();
    assert_eq!((kits.len(), &kits[0]["number"], &kits[0]["locked"]), (2, &2.into(), &"recipients".into()), "{list:#}");
    let [newest, older] = [0, 1].map(|at| kits[at]["id"].as_str().unwrap().to_owned());
    // From here on there is nothing but the address.
    let empty = Scene::new();
    let listed = walden(&empty, &["kit", "list", "--from", &url]);
    let lines: Vec<&str> = listed.ok().lines().collect();
    assert!(lines[1].starts_with(&newest) && lines[2].starts_with(&older) && lines[1].contains("age1"), "{listed}");
    for (more, file, stored) in [(&[] as &[&str], "a", 2), (&["latest"], "b", 2), (&[&older], "c", 1)] {
        let arguments = [&["kit", "fetch", "--from", &url, "-o", file], more].concat();
        assert!(walden(&empty, &arguments).ok().contains("locked: age1"));
        let there = kits_of(&p.repository).join(format!("{stored}.tar.zst.age"));
        assert_eq!(fs::read(empty.path().join(file)).unwrap(), fs::read(there).unwrap());
    }
    assert!(
        walden(&empty, &["kit", "fetch", "--from", &url, "-o", "a"]).expect_code(4).stderr.contains("exists already")
    );

    let other = new_identity(&empty, "other").0.display().to_string();
    let identity = empty.write("identity", fs::read(&identity).unwrap()).display().to_string();
    for kit in [&["--from", &url] as &[&str], &["a"]] {
        for (more, code, said) in [
            (&["--identity", &other] as &[&str], 5, "not locked to this identity"),
            (&[], 2, "hint: add --identity FILE"),
            (&["--identity", "nowhere"], 1, "nowhere"),
        ] {
            let ran = walden(&empty, &[&["kit", "import", "--to", "etc"], kit, more].concat());
            assert!(ran.expect_code(code).stderr.contains(said) && !empty.path().join("etc").exists(), "{ran}");
        }
    }
    let ran = walden(&empty, &["kit", "import", "--from", &url, &older, "--identity", &identity, "--to", "etc"]);
    assert!(ran.expect_code(0).stderr.contains("whoever may write to the repository"), "{ran}");
    assert_eq!(fs::read(empty.path().join("etc/walden.toml")).unwrap(), fs::read(&p.config).unwrap());
    let shown = walden(&empty, &["kit", "show", "--from", &url, "--identity", &identity]);
    assert!(shown.ok().contains("to recipients") && shown.stdout.contains("fill in: identity.txt"), "{shown}");
}

#[test]
fn what_cannot_be_fetched_is_said_clearly() {
    let (p, _, url) = two_kits();
    let (empty, kits) = (Scene::new(), kits_of(&p.repository));
    let fetch = |more: &[&str], code: i32, said: &str| {
        _ = fs::remove_file(empty.path().join("kit"));
        let ran = walden(&empty, &[&["kit", "fetch", "--from", &url, "-o", "kit"], more].concat());
        assert!(ran.expect_code(code).stderr.contains(said), "{said}: {ran}");
        assert_eq!(empty.path().join("kit").exists(), code == 0, "{ran}");
    };
    fetch(&["00000000"], 1, "there is no kit 00000000 in");
    fetch(&["0"], 1, "walden kit list shows those there are");
    fetch(&["--cluster", "shop"], 1, "hint: the clusters there: main");
    let parent = format!("file://{}", p.scene.path().display());
    let ran = walden(&empty, &["kit", "list", "--from", &parent]);
    assert!(ran.expect_code(2).stderr.contains(&format!("hint: there is one at {url}")), "{ran}");
    // A document that is damaged, of anything but the kit, is not needed.
    fs::write(p.repository.join("walden.json"), "{").unwrap();
    fs::write(kits.join("../../system.json"), "{").unwrap();
    fetch(&[], 0, "next:  walden kit import kit");
    let away = p.scene.path().join("away");
    fs::rename(&kits, &away).unwrap();
    fetch(&[], 6, "walden.json");
    fs::rename(&away, &kits).unwrap();
    // Another cluster beside it. A note that tells no key is one of an older Walden.
    let shop = p.repository.join("shop").join(kits.ancestors().nth(2).unwrap().file_name().unwrap()).join("notes/kits");
    fs::create_dir_all(&shop).unwrap();
    fs::write(shop.join("2.tar.zst.age"), fs::read(kits.join("2.tar.zst.age")).unwrap()).unwrap();
    let mut note: serde_json::Value = serde_json::from_slice(&fs::read(kits.join("2.json")).unwrap()).unwrap();
    for field in ["key", "lines_sha256"] {
        note.as_object_mut().unwrap().remove(field).unwrap();
    }
    fs::write(shop.join("2.json"), note.to_string()).unwrap();
    fetch(&[], 2, "there are kits of several clusters in");
    fetch(&["--cluster", "shop"], 0, "");
    // The newest one's note is damaged: that is told, and an older one is taken.
    fs::write(kits.join("2.json"), "{").unwrap();
    fetch(&["--cluster", "main"], 0, "notes/kits/2.json tells of a kit cannot be read");
    let mut bytes = fs::read(kits.join("1.tar.zst.age")).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(kits.join("1.tar.zst.age"), &bytes).unwrap();
    fetch(&["--cluster", "main"], 6, "1.tar.zst.age is not the kit that was stored there");
}

#[test]
fn verification_proves_stored_kits_and_a_change_of_recipients_leaves_them() {
    let (p, identity, url) = two_kits();
    let passphrase = p.scene.write("passphrase", format!("{PASSPHRASE}\n"));
    run(p.command(["kit", "export", "--to-repository", "--passphrase-file"]).arg(passphrase)).expect_code(0);
    let with_identity = |arguments: &[&str]| {
        run(p.command(arguments.iter().copied()).env("WALDEN_ENCRYPTION_IDENTITY_FILE", &identity))
    };
    let _ = p.backup();
    p.archive();
    with_identity(&["verify", "--deep"]).expect_code(0);
    let (_, recipient) = new_identity(&p.scene, "second");
    p.walden(["keys", "add", &recipient]).expect_code(0);
    let rewrapped = with_identity(&["keys", "rewrap"]);
    assert!(rewrapped.expect_code(0).stderr.contains("3 recovery kits stay locked as before"), "{rewrapped}");
    let empty = Scene::new();
    walden(&empty, &["kit", "fetch", "--from", &url, "-o", "kit"]).expect_code(0);
    let stored = kits_of(&p.repository).join("2.tar.zst.age");
    let bytes = fs::read(&stored).unwrap();
    fs::write(&stored, &bytes[..bytes.len() - 1]).unwrap();
    let damaged = with_identity(&["verify", "--deep"]);
    assert!(damaged.expect_code(6).stdout.contains("notes/kits/2.tar.zst"), "{damaged}");
}

#[test]
fn another_repository_has_the_same_kits_and_loses_the_same() {
    let (p, _, url) = two_kits();
    let offsite = p.scene.path().join("offsite");
    let text = fs::read_to_string(&p.config).unwrap();
    let mirror = format!("[repository.offsite]\nurl = \"file://{}\"\n[kit]\nkeep = 1\n", offsite.display());
    p.scene.write("walden.toml", format!("{text}\n{mirror}"));
    p.walden(["init"]).expect_code(0);
    p.walden(["sync"]).expect_code(0);
    let empty = Scene::new();
    for (from, file) in [(url, "a"), (format!("file://{}", offsite.display()), "b")] {
        walden(&empty, &["kit", "fetch", "--from", &from, "-o", file]).expect_code(0);
    }
    assert_eq!(fs::read(empty.path().join("a")).unwrap(), fs::read(empty.path().join("b")).unwrap());
    p.walden(["kit", "export", "--to-repository"]).expect_code(0);
    let names = |repository: &Path| {
        let mut names: Vec<String> =
            fs::read_dir(kits_of(repository)).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort_unstable();
        names
    };
    assert_eq!(names(&p.repository), ["3.json", "3.tar.zst.age"]);
    assert_eq!(names(&offsite), ["2.json", "2.tar.zst.age"], "the newest there stays until the next comes");
}

/// Runs a command at a pseudo terminal. After each text that it shows an answer is typed. Gives its exit code, and all
/// that was to be seen.
fn at_terminal(command: &Command, dialogue: &[(&str, &str)]) -> (Option<i32>, String) {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let line: Vec<String> = words.map(|word| format!("'{}'", word.to_str().unwrap())).collect();
    let scene = Scene::new();
    let mut script = scene.owner().command("/usr/bin/script");
    script.current_dir(command.get_current_dir().unwrap());
    script.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    script.args(["-qec", &line.join(" "), "/dev/null"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = script.spawn().unwrap();
    let (mut keys, mut screen) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut shown = Vec::new();
    let mut from = 0;
    for (prompt, answer) in dialogue {
        let mut byte = [0];
        while !holds(&shown[from..], prompt) {
            assert_eq!(screen.read(&mut byte).unwrap(), 1, "{prompt}: {}", String::from_utf8_lossy(&shown));
            shown.push(byte[0]);
        }
        from = shown.len();
        keys.write_all(format!("{answer}\n").as_bytes()).unwrap();
    }
    // A pseudo terminal that is gone answers with an error on Linux.
    _ = screen.read_to_end(&mut shown);
    drop(keys);
    (child.wait().unwrap().code(), String::from_utf8_lossy(&shown).into_owned())
}

#[test]
fn at_a_terminal_a_passphrase_is_asked_for_twice_and_never_shown() {
    if !Path::new("/usr/bin/script").exists() {
        eprintln!("script is not on this machine: this test did not run");
        return;
    }
    let scene = Scene::new();
    let config = scene.write(
        "walden.toml",
        "[repository]\nurl = \"file:///nowhere\"\n[cluster.main]\nconnection = \"host=h password=hush\"\n",
    );
    let mut export = scene.walden();
    export.arg("--config").arg(&config).args(["kit", "export", "--with-credentials", "--output", "kit"]);
    let first = "passphrase for the kit (empty: one is made and shown): ";
    let kit = scene.path().join("kit");
    for (again, said) in [("lamp ocean velvet tractor salt", "the two passphrases differ"), ("", "differ")] {
        let (code, shown) = at_terminal(&export, &[(first, PASSPHRASE), ("the same again: ", again)]);
        assert!(code == Some(2) && shown.contains(said) && !kit.exists(), "{code:?} {shown}");
    }
    let (code, shown) = at_terminal(&export, &[(first, "password1234")]);
    assert!(code == Some(2) && shown.contains("too weak") && !kit.exists(), "{code:?} {shown}");
    let (code, shown) = at_terminal(&export, &[(first, PASSPHRASE), ("the same again: ", PASSPHRASE)]);
    assert!(code == Some(0) && !shown.contains("velvet") && !shown.contains("hush"), "{code:?} {shown}");
    let mut import = scene.walden();
    import.args(["kit", "import", "kit", "--to", "etc"]);
    let (code, shown) = at_terminal(&import, &[("passphrase of the kit: ", "lamp ocean velvet tractor salt")]);
    assert!(code == Some(5) && !shown.contains("velvet") && !scene.path().join("etc").exists(), "{code:?} {shown}");
    let (code, shown) = at_terminal(&import, &[("passphrase of the kit: ", PASSPHRASE)]);
    assert!(code == Some(0) && !shown.contains("velvet"), "{code:?} {shown}");
    assert_eq!(fs::read(scene.path().join("etc/walden.toml")).unwrap(), fs::read(&config).unwrap());
}

#[test]
fn root_hands_the_secrets_to_their_owner_and_nobody_else_can() {
    let scene = Scene::new();
    let owner = scene.owner().clone();
    let (identity, recipient) = new_identity(&scene, "identity.txt");
    let config = scene.write(
        "walden.toml",
        format!(
            "[repository]\nurl = \"file:///nowhere\"\n[encryption]\nrecipients = [\"{recipient}\"]\nidentity_file = \"{}\"\n",
            identity.display()
        ),
    );
    let passphrase = scene.write("passphrase", format!("{PASSPHRASE}\n")).display().to_string();
    let mut export = scene.walden();
    export.arg("--config").arg(&config).args(["kit", "export", "--with-identity", "--output", "kit"]);
    run(export.args(["--passphrase-file", &passphrase])).expect_code(0);
    let arguments = ["kit", "import", "kit", "--passphrase-file", &passphrase];
    let ran = walden(&scene, &[&arguments[..], &["--to", "etc", "--owner", "root"]].concat());
    assert!(ran.expect_code(2).stderr.contains("only root can write files that belong to root"), "{ran}");
    let ran = walden(&scene, &[&arguments[..], &["--to", "etc", "--owner", "no-such-user"]].concat());
    assert!(ran.code != Some(0) && ran.stderr.contains("no-such-user") && !scene.path().join("etc").exists(), "{ran}");
    if !rustix::process::geteuid().is_root() {
        eprintln!("this test does not run as root: who owns what root imports was not seen");
        return;
    }
    let mut import = Command::new(scene.program("walden"));
    import.current_dir(scene.path()).args(arguments).args(["--to", "etc", "--owner", &owner.name]);
    run(&mut import).expect_code(0);
    let is = |name: &str| {
        let found = fs::metadata(scene.path().join("etc").join(name)).unwrap();
        (found.uid(), found.gid(), found.mode() & 0o777)
    };
    assert_eq!(is("identity.txt"), (owner.uid, owner.gid, 0o600));
    assert_eq!(is("walden.toml"), (0, 0, 0o644));
    // The user that archived on the kit's host is the owner without being named.
    let mut import = Command::new(scene.program("walden"));
    run(import.current_dir(scene.path()).args(arguments).args(["--to", "again"])).expect_code(0);
    assert_eq!(fs::metadata(scene.path().join("again/identity.txt")).unwrap().uid(), owner.uid);
}
