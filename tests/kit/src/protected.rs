//! A cluster that Walden protects: archiving on, the repository made.

use std::{ffi::OsStr, path::PathBuf, process::Command};

use crate::{
    postgres::{Builder, Cluster, Installation},
    run::{Ran, run},
    s3::S3Server,
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
        let command =
            format!("{variables}{} --config {} %p", scene.program("walden-archive").display(), config.display());
        let mut cluster = settings(Cluster::builder(installation).archiving(command)).create();
        scene.write(
            "walden.toml",
            format!(
                "{repository_table}\n[cluster.main]\npgdata = \"{}\"\nconnection = \"{}\"\n",
                cluster.pgdata().display(),
                cluster.conninfo()
            ),
        );
        cluster.start();
        let protected = Self { cluster, config, repository, scene, environment };
        protected.walden(["init"]).expect_code(0);
        protected
    }

    /// A run of `walden` with this configuration, as the servers' user.
    #[must_use]
    pub fn command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = self.scene.walden();
        command.arg("--config").arg(&self.config).args(arguments);
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

    /// Runs `walden` with this configuration.
    pub fn walden<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Ran {
        run(&mut self.command(arguments))
    }

    /// Takes a backup and gives its id.
    #[must_use]
    pub fn backup(&self) -> String {
        self.walden(["-q", "backup"]).ok().to_owned()
    }

    /// Ends the segment in use and waits until it is archived; gives its name.
    pub fn archive(&self) -> String {
        let name = self.cluster.switch_wal();
        self.cluster.wait_archived(&name);
        name
    }
}
