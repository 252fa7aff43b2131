//! A cluster that Walden protects: archiving on, the repository made.

use std::{ffi::OsStr, fmt::Write as _, path::PathBuf, process::Command};

use crate::{
    postgres::{Builder, Cluster, Installation},
    run::{Ran, run},
    s3::S3Server,
    scene::Scene,
};

/// Where the repository is to be.
#[derive(Clone, Copy, Debug)]
pub enum Place<'a> {
    /// A directory in the scene.
    Directory,
    /// The bucket of an S3 server.
    Bucket(&'a S3Server),
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
        let (mut repository_table, mut environment) = (String::from("[repository]\n"), Vec::new());
        match place {
            Place::Directory => {
                let _ = writeln!(repository_table, "url = \"file://{}\"", repository.display());
            }
            Place::Bucket(server) => {
                let _ = writeln!(
                    repository_table,
                    "url = \"s3://{}/walden\"\nendpoint = \"{}\"\nregion = \"us-east-1\"\npath_style = true",
                    server.bucket(),
                    server.endpoint()
                );
                environment.push(("AWS_ACCESS_KEY_ID", server.access_key().to_owned()));
                environment.push(("AWS_SECRET_ACCESS_KEY", server.secret_key().to_owned()));
            }
        }
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
