//! Files from outside the data directory: a server whose configuration lies elsewhere, as Debian's packages put it.
#![allow(clippy::unwrap_used, reason = "helpers of a test may panic like the test")]

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use rustix::fs::XattrFlags;
use walden_testkit::{
    postgres::{Cluster, Installation, Stop, any, for_each_version},
    protected::{Place, Protected},
    run::{Ran, run},
};

const ATTRIBUTE: &str = "user.walden.test";

/// A server with its configuration in `etc` of the scene.
struct Debian {
    p: Protected,
    etc: PathBuf,
    /// Whether the file system has extended attributes.
    attributes: bool,
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

impl Debian {
    fn new() -> Self {
        Self::on(any())
    }

    fn on(pg: &Installation) -> Self {
        let mut p = Protected::new(pg, Place::Directory, |b| b);
        p.cluster.stop(Stop::Fast);
        let etc = p.scene.folder("etc/postgresql/main");
        let _ = p.scene.folder("etc/postgresql/main/conf.d");
        fs::set_permissions(&etc, fs::Permissions::from_mode(0o2750)).unwrap();
        for name in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
            fs::rename(p.cluster.pgdata().join(name), etc.join(name)).unwrap();
        }
        let write = |name: &str, text: &str| p.scene.write(&format!("etc/postgresql/{name}"), text);
        let main = fs::read_to_string(etc.join("postgresql.conf")).unwrap();
        let more = format!(
            "data_directory = '{}'\nhba_file = '{}'\nident_file = '{}'\ninclude_dir 'conf.d'\ninclude_if_exists 'nowhere.conf'\n",
            p.cluster.pgdata().display(),
            etc.join("pg_hba.conf").display(),
            etc.join("pg_ident.conf").display()
        );
        write("main/postgresql.conf", &format!("{main}\n{more}"));
        let memory = write("main/conf.d/10-memory.conf", "work_mem = '5MB'\n");
        write("main/conf.d/notes.txt", "no setting");
        write("shared.conf", "maintenance_work_mem = '77MB'\n");
        symlink("../../shared.conf", etc.join("conf.d/20-shared.conf")).unwrap();
        fs::set_permissions(&memory, fs::Permissions::from_mode(0o604)).unwrap();
        let set = rustix::fs::setxattr(&memory, ATTRIBUTE, b"two\nlines\0", XattrFlags::empty());
        if is_root() {
            chown(&memory, Some(0), Some(0)).unwrap();
        }
        let keys = p.scene.folder("keys");
        fs::write(keys.join("one.key"), "password=hush").unwrap();
        fs::write(keys.join("two.pub"), "").unwrap();
        let config = fs::read_to_string(&p.config).unwrap();
        let files = format!("\n[backup]\nfiles = [\"{0}/keys/*.key\", \"{0}/nothing*\"]\n", p.scene.path().display());
        fs::write(&p.config, config + &files).unwrap();
        p.cluster.option(&format!("config_file={}", etc.join("postgresql.conf").display()));
        p.cluster.start();
        assert_eq!(p.cluster.psql("show work_mem; show maintenance_work_mem"), "5MB\n77MB");
        Self { p, etc, attributes: set.is_ok() }
    }

    fn backup(&self) -> (String, Ran) {
        let ran = self.p.walden(["backup"]);
        let id = ran.ok().lines().last().unwrap().to_owned();
        (id, ran)
    }

    fn restore(&self, pgdata: &Path, more: &[&str]) -> Ran {
        self.p.walden([&["restore", "--to", "latest", "--yes", "--json", "--pgdata", text(pgdata)], more].concat())
    }

    /// That what lies below `root` is what lies in `etc`, as far as a server needs it.
    fn same(&self, root: &Path, as_root: bool) {
        let there = |path: &Path| root.join(path.strip_prefix("/").unwrap());
        for name in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf", "conf.d/10-memory.conf", "../shared.conf"] {
            let (ours, theirs) = (there(&self.etc.join(name)), self.etc.join(name));
            assert_eq!(fs::read(&ours).unwrap(), fs::read(&theirs).unwrap(), "{name}");
            let [a, b] = [&ours, &theirs].map(|p| fs::metadata(p).unwrap());
            assert_eq!((mode(&ours), a.mtime(), a.mtime_nsec()), (mode(&theirs), b.mtime(), b.mtime_nsec()), "{name}");
            if as_root {
                assert_eq!((a.uid(), a.gid()), (b.uid(), b.gid()), "{name}");
            }
        }
        let link = there(&self.etc.join("conf.d/20-shared.conf"));
        assert_eq!(fs::read_link(link).unwrap(), Path::new("../../shared.conf"));
        assert!(!there(&self.etc.join("conf.d/notes.txt")).exists() || root == Path::new("/"));
        if self.attributes {
            let mut value = [0; 64];
            let memory = there(&self.etc.join("conf.d/10-memory.conf"));
            let length = rustix::fs::getxattr(memory, ATTRIBUTE, value.as_mut_slice()).unwrap();
            assert_eq!(&value[..length], b"two\nlines\0");
        }
    }
}

fn json(ran: &Ran) -> serde_json::Value {
    serde_json::from_str(ran.ok()).unwrap()
}

#[test]
fn the_configuration_is_saved_unnamed_and_lies_beside_the_copy() {
    let d = Debian::new();
    let (id, ran) = d.backup();
    assert!(ran.stderr.contains("nothing is called so"), "{ran}");
    assert!(!format!("{ran}").contains("hush"));
    let listed = json(&d.p.walden(["list", "--json"]));
    let backup = &listed["systems"][0]["backups"][0];
    // Three files, two that they take in, and a key.
    assert_eq!(backup["extra"]["files"], 6, "{backup}");
    assert_eq!(backup["extra_left_out"].as_array().unwrap().len(), 1);

    // By hand.
    let system = d.p.cluster.psql("select system_identifier from pg_control_system()");
    let object = d.p.repository.join(format!("main/{system}-1/backups/{id}/extra-1.tar.zst"));
    let by_hand = tempfile::tempdir().unwrap();
    let archive = by_hand.path().join("extra.tar");
    fs::write(&archive, zstd::decode_all(&fs::read(&object).unwrap()[..]).unwrap()).unwrap();
    let mut tar = Command::new("tar");
    let unpacked = by_hand.path().join("unpacked");
    fs::create_dir(&unpacked).unwrap();
    let attributes = if is_root() { ["--xattrs", "--xattrs-include=*"] } else { ["-p", "--xattrs"] };
    run(tar.args(["-x", "-f", text(&archive), "-C", text(&unpacked)]).args(attributes)).expect_code(0);
    d.same(&unpacked, is_root());
    assert_eq!(mode(&unpacked.join(d.etc.strip_prefix("/").unwrap())), 0o2750);

    // By the servers' user.
    let copy = d.p.scene.path().join("copy");
    let ran = d.restore(&copy, &[]);
    let beside = d.p.scene.path().join(format!("copy.walden-extra/{id}"));
    assert_eq!(json(&ran)["restored"]["extra"]["folder"], text(&beside));
    d.same(&beside, false);
    assert_eq!(mode(beside.parent().unwrap()), 0o700);
    let key = beside.join(d.p.scene.path().join("keys/one.key").strip_prefix("/").unwrap());
    assert_eq!(fs::read_to_string(key).unwrap(), "password=hush");
    assert!(!format!("{ran}").contains("hush"));
    let verify = d.p.cluster.installation().program("pg_verifybackup");
    run(d.p.cluster.owner().command(verify).arg("-n").arg(&copy)).expect_code(0);

    // It is what the copy needs to start.
    let mut server = Cluster::adopt(&copy, d.p.cluster.installation());
    server.option(&format!(
        "config_file={}",
        beside.join(d.etc.strip_prefix("/").unwrap()).join("postgresql.conf").display()
    ));
    server.option(&format!("data_directory={}", copy.display()));
    server.start();
    assert_eq!(server.psql("show work_mem; show maintenance_work_mem"), "5MB\n77MB");
    drop(server);

    // What somebody changed there is not lost.
    fs::remove_dir_all(&copy).unwrap();
    fs::write(beside.join(d.etc.strip_prefix("/").unwrap()).join("pg_ident.conf"), "mine").unwrap();
    let refused = d.restore(&copy, &[]);
    refused.expect_code(4);
    assert!(refused.stderr.contains("pg_ident.conf: what is there differs") && !copy.exists(), "{refused}");
    d.restore(&copy, &["--extra-files", "leave-out"]).expect_code(0);

    if is_root() {
        let copy = d.p.scene.path().join("roots");
        let mut command = Command::new(d.p.scene.program("walden"));
        command.arg("--config").arg(&d.p.config).env("WALDEN_PG_BIN", &d.p.cluster.installation().bin);
        command.args(["restore", "--to", "latest", "--yes", "--owner", &d.p.cluster.owner().name]);
        run(command.args(["--pgdata", text(&copy)])).expect_code(0);
        d.same(&d.p.scene.path().join(format!("roots.walden-extra/{id}")), true);
    }
}

#[test]
fn files_go_back_to_their_places_and_never_over_others() {
    let d = Debian::new();
    let (_, _) = d.backup();
    let memory = d.etc.join("conf.d/10-memory.conf");
    let place = ["--extra-files", "in-place"];
    let copy = |n: u32| d.p.scene.path().join(format!("copy{n}"));

    let ran = d.restore(&copy(1), &place);
    let extra = &json(&ran)["restored"]["extra"];
    assert_eq!((&extra["files"], &extra["kept"]), (&6.into(), &6.into()), "{ran}");

    fs::write(&memory, "work_mem = '6MB'\n").unwrap();
    let refused = d.restore(&copy(2), &place);
    refused.expect_code(4);
    assert!(refused.stderr.contains("10-memory.conf: what is there differs from the backup"), "{refused}");
    assert!(!copy(2).exists());
    assert_eq!(fs::read_to_string(&memory).unwrap(), "work_mem = '6MB'\n");
    d.restore(&copy(2), &["--extra-files", "in-place", "--force"]).expect_code(0);
    assert_eq!(fs::read_to_string(&memory).unwrap(), "work_mem = '5MB'\n");
    assert_eq!(mode(&memory), 0o604);

    // All is gone, as on a new host.
    fs::rename(d.p.scene.path().join("etc"), d.p.scene.path().join("old")).unwrap();
    let ran = d.restore(&copy(3), &place);
    assert_eq!(json(&ran)["restored"]["extra"]["kept"], 1, "{ran}");
    assert_eq!(fs::read_to_string(&memory).unwrap(), "work_mem = '5MB'\n");
    assert_eq!(mode(&d.etc) & 0o777, 0o750);
    let left: Vec<_> = fs::read_dir(d.etc.join("conf.d")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");

    // Nothing is written through a link, or into the copy.
    fs::remove_dir_all(d.p.scene.path().join("etc")).unwrap();
    symlink("old", d.p.scene.path().join("etc")).unwrap();
    let refused = d.restore(&copy(4), &["--extra-files", "in-place", "--force"]);
    refused.expect_code(4);
    assert!(refused.stderr.contains("something else is called so") && !copy(4).exists(), "{refused}");
    fs::remove_file(d.p.scene.path().join("etc")).unwrap();
    let refused = d.restore(&d.p.scene.path().join("etc"), &place);
    refused.expect_code(4);
    assert!(refused.stderr.contains("would lie in"), "{refused}");
}

#[test]
fn a_remote_backup_says_what_it_cannot_have() {
    let d = Debian::new();
    let ran = d.p.walden(["backup", "--remote", "--json"]);
    let document = json(&ran);
    assert!(document.get("extra").is_none(), "{ran}");
    let left_out = document["extra_left_out"].to_string();
    assert!(left_out.contains("postgresql.conf") && left_out.contains("*.key"), "{ran}");
    let restored = d.restore(&d.p.scene.path().join("copy"), &[]);
    assert!(json(&restored)["restored"]["extra"].is_null(), "{restored}");
}

#[test]
fn a_copy_starts_with_the_configuration_that_lay_elsewhere() {
    for_each_version(|pg| {
        let d = Debian::on(pg);
        d.p.cluster.psql("create table t as select generate_series(1, 100) as n");
        // For the next start.
        fs::write(d.etc.join("conf.d/30-more.conf"), "max_connections = 177\n").unwrap();
        let (id, _) = d.backup();
        d.p.archive();
        let socket = format!("unix_socket_directories={}", d.p.scene.path().display());
        let start = |name: &str, more: &[&str]| {
            let copy = d.p.scene.path().join(name);
            let ran = d.restore(&copy, &[&["--start", "--set", &socket, "--set", "port=5499"], more].concat());
            let configuration = json(&ran)["configuration"].clone();
            let server = Cluster::attach(&copy, pg);
            assert_eq!(server.psql("select count(*), sum(n) from t"), "100|5050");
            assert_eq!(server.psql("show data_directory"), text(&copy));
            (server, configuration)
        };

        let (mut server, configuration) = start("copy", &[]);
        let beside = d.p.scene.path().join(format!("copy.walden-extra/{id}"));
        let there = beside.join(d.etc.strip_prefix("/").unwrap());
        for name in ["config_file", "hba_file", "ident_file"] {
            assert!(Path::new(&server.psql(&format!("show {name}"))).starts_with(&there), "{name} {configuration}");
        }
        assert_eq!(configuration["made"], serde_json::json!([]));
        assert_eq!(server.psql("show work_mem; show maintenance_work_mem; show max_connections"), "5MB\n77MB\n177");
        server.stop(Stop::Fast);
        drop(server);

        // Nothing is saved, or wanted: the least that lets it recover.
        let least = |name: &str, more: &[&str]| {
            let (mut server, configuration) = start(name, more);
            let own = d.p.scene.path().join(format!(".{name}.walden-config"));
            assert_eq!(Path::new(&server.psql("show config_file")), own.join("postgresql.conf"), "{configuration}");
            assert_eq!(
                server.psql("select current_setting('work_mem'), current_setting('listen_addresses') = ''"),
                "4MB|t"
            );
            assert_eq!(mode(&own), 0o700);
            assert_eq!(configuration["made"].as_array().unwrap().len(), 3);
            server.stop(Stop::Fast);
        };
        least("least", &["--extra-files", "leave-out"]);
        d.p.walden(["backup", "--remote"]).expect_code(0);
        d.p.archive();
        least("remote", &["--then", "pause"]);
    });
}
