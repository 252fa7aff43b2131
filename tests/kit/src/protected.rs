//! A cluster that Walden protects: archiving on, the repository made.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    postgres::{Builder, Cluster, Installation},
    run::{Ran, run},
    s3::{ACCESS_KEY, BUCKET, S3Process, S3Server, SECRET_KEY},
    scene::Scene,
    seaweedfs::SeaweedFs,
};

/// Where the repository is to be.
#[derive(Clone, Copy, Debug)]
pub enum Place<'a> {
    /// A directory in the scene.
    Directory,
    /// The bucket of an S3 server.
    Bucket(&'a S3Server),
    /// The bucket of one that can be killed.
    Process(&'a S3Process),
    /// A prefix of its own in the bucket of a server that we did not write.
    SeaweedFs(&'a SeaweedFs),
}

impl Place<'_> {
    /// The `[repository]` table for a place that is a bucket, and the keys to it.
    fn bucket(self, scene: &Scene) -> Option<(String, [(&'static str, String); 2])> {
        let (bucket, prefix, endpoint, id, secret) = match self {
            Place::Directory => return None,
            Place::Bucket(s) => {
                (s.bucket(), "walden".to_owned(), s.endpoint(), s.access_key().to_owned(), s.secret_key().to_owned())
            }
            Place::Process(s) => {
                (BUCKET, "walden".to_owned(), s.endpoint(), ACCESS_KEY.to_owned(), SECRET_KEY.to_owned())
            }
            Place::SeaweedFs(s) => {
                let prefix = scene.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
                (s.bucket.as_str(), prefix, s.endpoint.clone(), s.access_key.clone(), s.secret_key.clone())
            }
        };
        let table = format!(
            "[repository]\nurl = \"s3://{bucket}/{prefix}\"\nendpoint = \"{endpoint}\"\nregion = \"us-east-1\"\npath_style = true\n"
        );
        Some((table, [("AWS_ACCESS_KEY_ID", id), ("AWS_SECRET_ACCESS_KEY", secret)]))
    }
}

/// A running cluster, `walden.toml`, and a repository that archives it. Fields are dropped in this order.
#[derive(Debug)]
pub struct Protected {
    /// The server.
    pub cluster: Cluster,
    /// `walden.toml`; its cluster is called `main`.
    pub config: PathBuf,
    /// The repository's folder, when it is a directory.
    pub repository: PathBuf,
    /// Everything lies in it.
    pub scene: Scene,
    environment: Vec<(&'static str, String)>,
    /// Without the path.
    archive_command: String,
}

impl Protected {
    /// A new cluster with archiving into a new repository. `settings` may change the cluster before it is made.
    #[must_use]
    pub fn new(installation: &Installation, place: Place<'_>, settings: impl FnOnce(Builder) -> Builder) -> Self {
        let scene = Scene::new();
        let repository = scene.path().join("repository");
        let (repository_table, environment) = match place.bucket(&scene) {
            Some((table, keys)) => (table, keys.to_vec()),
            None => (format!("[repository]\nurl = \"file://{}\"\n", repository.display()), Vec::new()),
        };
        let config = scene.path().join("walden.toml");
        let variables: String = environment.iter().fold(String::new(), |all, (k, v)| format!("{all}{k}={v} "));
        let archive_command =
            format!("{variables}{} --config {}", scene.program("walden-archive").display(), config.display());
        let archiving = Cluster::builder(installation).archiving(format!("{archive_command} %p"));
        let mut cluster = settings(archiving).create();
        scene.write(
            "walden.toml",
            format!(
                "{repository_table}\n[cluster.main]\npgdata = \"{}\"\nconnection = \"{}\"\n",
                cluster.pgdata().display(),
                cluster.conninfo()
            ),
        );
        cluster.start();
        let protected = Self { cluster, config, repository, scene, environment, archive_command };
        protected.walden(["init"]).expect_code(0);
        protected
    }

    /// A run of `walden` with this configuration, as the servers' user.
    #[must_use]
    pub fn command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        self.elsewhere(&self.config, arguments)
    }

    /// A run of `walden` with another host's configuration, as the servers' user.
    #[must_use]
    pub fn elsewhere<S: AsRef<OsStr>>(&self, config: &Path, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = self.scene.walden();
        command.arg("--config").arg(config).args(arguments);
        command.envs(self.environment.iter().map(|(k, v)| (k, v)));
        // Whatever is installed besides: what it starts is the version under test.
        command.env("WALDEN_PG_BIN", &self.cluster.installation().bin);
        command
    }

    /// A run of `walden-archive` or `walden-restore` as PostgreSQL starts them: from the data directory.
    #[must_use]
    pub fn small_program(&self, name: &str) -> Command {
        let mut command = self.scene.command(name);
        command.current_dir(self.cluster.pgdata()).arg("--config").arg(&self.config);
        command.envs(self.environment.iter().map(|(k, v)| (k, v)));
        command
    }

    /// Moves to a new repository in that folder; what this host remembers lies there, too.
    pub fn move_to(&mut self, folder: &Path) {
        let repository = folder.join("repository");
        let (old, new) = (self.repository.display().to_string(), repository.display().to_string());
        let text = fs::read_to_string(&self.config).expect("the configuration").replace(&old, &new);
        let text = text.split("\n[archive]").next().unwrap_or_default();
        let state = folder.join("state");
        self.scene.write("walden.toml", format!("{text}\n[archive]\nstate_dir = \"{}\"\n", state.display()));
        self.repository = repository;
        self.walden(["init"]).expect_code(0);
    }

    /// Runs `walden` with this configuration.
    pub fn walden<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Ran {
        run(&mut self.command(arguments))
    }

    /// Runs `walden` with this configuration and the keys of somebody else.
    pub fn walden_as<S: AsRef<OsStr>>(&self, who: &SeaweedFs, arguments: impl IntoIterator<Item = S>) -> Ran {
        let mut command = self.command(arguments);
        command.env("AWS_ACCESS_KEY_ID", &who.access_key).env("AWS_SECRET_ACCESS_KEY", &who.secret_key);
        run(&mut command)
    }

    /// Takes a backup and gives its id.
    #[must_use]
    pub fn backup(&self) -> String {
        self.walden(["-q", "backup"]).ok().to_owned()
    }

    /// The server of a copy that was restored to `to`, in a folder of that name in the scene.
    pub fn restored(&self, to: &str, folder: &str, more: &[&str]) -> Cluster {
        let pgdata = self.scene.path().join(folder);
        let sockets = self.scene.folder(&format!("{folder}-sockets"));
        let sockets = format!("--set=unix_socket_directories={}", sockets.display());
        let mut command =
            self.command(["restore", "--to", to, "--yes", "--start", "--set=listen_addresses=", &sockets]);
        run(command.args(more).arg("--pgdata").arg(&pgdata)).expect_code(0);
        Cluster::attach(&pgdata, self.cluster.installation())
    }

    /// Ends the segment in use and waits until it is archived; gives its name.
    pub fn archive(&self) -> String {
        let name = self.cluster.switch_wal();
        self.cluster.wait_archived(&name);
        name
    }

    /// Makes place for an agent, which [`Agent::start`](crate::agent::Agent::start) starts; `more` goes into `[archive]`.
    pub fn with_agent(&self, more: &str) {
        let (state, socket) = (self.scene.path().join("state"), self.socket());
        let text = fs::read_to_string(&self.config).expect("the configuration");
        let tables = format!(
            "{text}\n[archive]\nstate_dir = \"{}\"\n{more}\n[agent]\nsocket = \"{}\"\n",
            state.display(),
            socket.display()
        );
        self.scene.write("walden.toml", tables);
    }

    /// `walden-archive` as it asks that agent, without the path.
    #[must_use]
    pub fn agent_command(&self) -> String {
        format!("{} --agent {}", self.archive_command, self.socket().display())
    }

    /// Has PostgreSQL archive through that agent from now on.
    pub fn archive_through_agent(&self) {
        self.cluster.psql(&format!("ALTER SYSTEM SET archive_command = '{} %p'", self.agent_command()));
        self.cluster.reload();
    }

    /// Where the agent listens.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.scene.path().join("agent.sock")
    }

    /// Proves that whatever PostgreSQL holds for archived is in the repository, byte for byte, and remembers what was
    /// `proven`. PostgreSQL must have kept it (`wal_keep_size`).
    ///
    /// # Panics
    /// When a segment is missing or another.
    #[track_caller]
    pub fn nothing_is_lost(&self, proven: &mut BTreeSet<String>) {
        let wal = self.cluster.pgdata().join("pg_wal");
        let status = fs::read_dir(wal.join("archive_status")).expect("the status of archiving");
        let names = status.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let done = names.filter_map(|name| name.strip_suffix(".done").filter(|n| n.len() == 24).map(str::to_owned));
        for name in done.filter(|name| !proven.contains(name)).collect::<Vec<_>>() {
            let back = self.scene.path().join("back");
            _ = fs::remove_file(&back);
            self.walden([OsStr::new("wal"), "fetch".as_ref(), name.as_ref(), back.as_ref()]).expect_code(0);
            let is_same = fs::read(&back).expect("what was fetched") == fs::read(wal.join(&name)).expect("a segment");
            assert!(is_same, "{name} is not what was archived");
            proven.insert(name);
        }
    }
}
