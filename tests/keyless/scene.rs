//! A host that holds recipients and no identity, and another one that holds the identity.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use serde_json::Value;
use walden_testkit::{
    postgres::{Builder, Cluster, Installation},
    protected::{Place, Protected},
    run::{Ran, run},
};

/// A name that nobody may find in the repository.
pub const SECRET: &str = "acme_orders";

/// A host without an identity, and where its identity is kept.
pub struct Keyless {
    pub p: Protected,
    pub identity: PathBuf,
}

impl Keyless {
    pub fn new(installation: &Installation, place: Place<'_>) -> Self {
        Self::with(installation, place, "", |b| b)
    }

    /// One in whose configuration `more` follows the keys of `[archive]`.
    pub fn with(
        installation: &Installation,
        place: Place<'_>,
        more: &str,
        settings: impl FnOnce(Builder) -> Builder,
    ) -> Self {
        let p = Protected::new(installation, place, |b| settings(b.setting("autovacuum", "off")));
        let text = fs::read_to_string(&p.config).unwrap();
        let state = p.scene.path().join("state");
        let text = format!("# the shop\n{text}\n[archive] # ours\nstate_dir = \"{}\"\n{more}", state.display());
        p.scene.write("walden.toml", &text);
        let identity = p.scene.folder("safe").join("identity");
        let output = format!("--output={}", identity.display());
        let recipient = p.walden(["-q", "keys", "generate", &output]).ok().to_owned();
        assert!(p.walden(["keys", "generate", &output]).expect_code(4).stderr.contains("never overwritten"));
        p.walden(["keys", "add", &recipient]).expect_code(0);
        let edited = fs::read_to_string(&p.config).unwrap();
        assert_eq!(edited, format!("{text}\n[encryption]\nrecipients = [\"{recipient}\"]\n"));
        Self { p, identity }
    }

    /// The configuration of a host that holds that identity, and nothing of what the other one remembers.
    pub fn host_with(&self, identity: &Path) -> PathBuf {
        let text = fs::read_to_string(&self.p.config).unwrap();
        let (start, _) = text.split_once("\n[archive]").unwrap();
        let (_, encryption) = text.split_once("\n[encryption]\n").unwrap();
        let identity = format!("identity_file = \"{}\"", identity.display());
        self.p.scene.write("elsewhere.toml", format!("{start}\n[encryption]\n{identity}\n{encryption}"))
    }

    /// Rows `from` to `to` of the table that is secret.
    pub fn write(&self, from: u32, to: u32) {
        self.p.cluster.psql(&format!(
            "create table if not exists {SECRET} (n int, text text);
             insert into {SECRET} select n, repeat(md5(n::text), 8) from generate_series({from}, {to}) n"
        ));
    }

    pub fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(self.p.walden([&["--json"], arguments].concat()).ok()).unwrap()
    }

    pub fn backup(&self, label: &str) -> Backup {
        self.backup_by(self.p.command(["--json", "backup", "--label", label]))
    }

    /// What that command, which tells it in JSON, takes.
    pub fn backup_by(&self, mut command: Command) -> Backup {
        let ran = run(&mut command);
        let document: Value = serde_json::from_str(ran.ok()).unwrap();
        let (id, stored) = (document["id"].as_str().unwrap().to_owned(), document["stored"].as_u64().unwrap());
        Backup { id, stored, said: ran.stderr }
    }

    /// Restores with that identity, starts, and counts rows.
    pub fn rows_by(&self, identity: &Path, name: &str) -> String {
        self.copy_by(identity, name, &[]).psql(&format!("select count(*) from {SECRET}"))
    }

    /// Restores with that identity, and starts.
    pub fn copy_by(&self, identity: &Path, name: &str, more: &[&str]) -> Cluster {
        let (config, pgdata) = (self.host_with(identity), self.p.scene.path().join(name));
        let sockets = self.p.scene.folder(&format!("{name}-sockets"));
        let sockets = format!("--set=unix_socket_directories={}", sockets.display());
        let arguments = ["restore", "--to=latest", "--yes", "--start", "--set=listen_addresses=", &sockets, "--pgdata"];
        run(self.p.elsewhere(&config, arguments).arg(&pgdata).args(more)).expect_code(0);
        Cluster::attach(&pgdata, self.p.cluster.installation())
    }

    /// Runs `walden` on the host that holds the identity.
    pub fn owner(&self, arguments: &[&str]) -> Ran {
        run(&mut self.p.elsewhere(&self.host_with(&self.identity), arguments))
    }

    pub fn restore(&self, config: &Path) -> Ran {
        let pgdata = self.p.scene.path().join("not-restored");
        let ran = run(self.p.elsewhere(config, ["restore", "--to=latest", "--yes", "--pgdata"]).arg(&pgdata));
        assert!(!pgdata.join("PG_VERSION").exists());
        ran
    }

    /// How many objects are for how many recipients.
    pub fn sealed_to(&self) -> Vec<(usize, u64)> {
        let listed = self.json(&["keys", "list", "--objects"]);
        let all = listed["objects"]["encrypted"].as_array().unwrap();
        all.iter().map(|of| (of["to"].as_array().unwrap().len(), of["objects"].as_u64().unwrap())).collect()
    }
}

pub struct Backup {
    pub id: String,
    pub stored: u64,
    pub said: String,
}

/// Waits until it holds.
#[track_caller]
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(60), "in vain: {what}");
        sleep(Duration::from_millis(20));
    }
}

/// All bytes below a folder.
pub fn bytes_below(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(bytes_below(&path)),
            false => found.push((path.clone(), fs::read(&path).unwrap())),
        }
    }
    found
}

pub fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}
