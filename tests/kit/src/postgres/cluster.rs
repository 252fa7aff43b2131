//! A real PostgreSQL cluster.

use std::{
    fs::{self, OpenOptions},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::{
    Builder, Installation,
    processes::SharedMemory,
    server::{Server, Stop},
};
use crate::{
    owner::Owner,
    run::{run, run_with_input},
    scene::temporary_folder,
};

/// Enough for a slow machine; no test waits for it to pass.
const PATIENCE: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(50);
/// Each cluster has a folder of its own for its socket, so that they can all have the same port.
const PORT: u16 = 5432;

/// A cluster and its server. When this is dropped, the server is stopped and what `initdb` made is removed; a data
/// directory that somebody else made stays.
#[derive(Debug)]
pub struct Cluster {
    installation: Installation,
    owner: Owner,
    folder: TempDir,
    pgdata: PathBuf,
    socket_dir: PathBuf,
    pub(super) port: u16,
    /// Given to each start. For a data directory whose files are not ours to edit.
    options: Vec<String>,
    /// Of the server alone.
    pub(super) environment: Vec<(String, String)>,
    server: Option<Server>,
    leftover: SharedMemory,
}

impl Cluster {
    /// A new cluster of that version.
    pub fn builder(installation: &Installation) -> Builder {
        Builder::new(installation)
    }

    /// A data directory that a restore made, not started yet. It gets a socket folder of its own through options of
    /// the server; its files are not edited.
    #[must_use]
    pub fn adopt(pgdata: impl Into<PathBuf>, installation: &Installation) -> Self {
        let mut cluster = Self::empty(installation, Some(pgdata.into()));
        let socket_dir = cluster.socket_dir.display().to_string();
        for setting in
            [format!("unix_socket_directories={socket_dir}"), format!("port={PORT}"), "listen_addresses=".to_owned()]
        {
            cluster.options.extend(["-c".to_owned(), setting]);
        }
        cluster
    }

    /// A server that somebody else, such as `walden restore --start`, runs on that data directory. It is stopped when
    /// this is dropped.
    ///
    /// # Panics
    /// When none runs there.
    #[must_use]
    pub fn attach(pgdata: impl Into<PathBuf>, installation: &Installation) -> Self {
        let mut cluster = Self::empty(installation, Some(pgdata.into()));
        let (server, port, socket_dir) = Server::attach(&cluster.pgdata)
            .unwrap_or_else(|| panic!("{}: no server runs here", cluster.pgdata.display()));
        (cluster.server, cluster.port, cluster.socket_dir) = (Some(server), port, socket_dir.into());
        cluster
    }

    pub(super) fn empty(installation: &Installation, pgdata: Option<PathBuf>) -> Self {
        let owner = Owner::of_servers();
        let folder = temporary_folder(&owner);
        let socket_dir = folder.path().join("s");
        owner.make_folder(&socket_dir);
        Self {
            installation: installation.clone(),
            owner,
            pgdata: pgdata.unwrap_or_else(|| folder.path().join("data")),
            folder,
            socket_dir,
            port: PORT,
            options: Vec::new(),
            environment: Vec::new(),
            server: None,
            leftover: SharedMemory::default(),
        }
    }

    /// Gives every later start of the server one more setting, such as `config_file=/etc/postgresql.conf`.
    pub fn option(&mut self, setting: &str) {
        self.options.extend(["-c".to_owned(), setting.to_owned()]);
    }

    /// Starts the server and waits until it takes connections.
    ///
    /// # Panics
    /// With the end of its log, when it does not start.
    #[track_caller]
    pub fn start(&mut self) {
        if let Err(why) = self.try_start() {
            panic!("{why}");
        }
    }

    /// Starts the server and waits until it takes connections, in recovery or after it. A server that ends instead,
    /// as `recovery_target_action = shutdown` makes it do, is an error with the end of its log.
    ///
    /// # Errors
    /// When it does not start.
    ///
    /// # Panics
    /// When it runs already.
    pub fn try_start(&mut self) -> Result<(), String> {
        assert!(!self.is_running(), "{}: already running", self.pgdata.display());
        let log = OpenOptions::new().create(true).append(true).open(self.log_path()).expect("the log of a cluster");
        let mut command = self.pg("postgres");
        command.arg("-D").arg(&self.pgdata).args(&self.options);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdout(log.try_clone().expect("another handle of the log")).stderr(log);
        match Server::start(&mut command, &self.pgdata) {
            Ok(server) => {
                // PostgreSQL clears what a killed predecessor left in shared memory when it starts.
                self.leftover = SharedMemory::default();
                self.server = Some(server);
                Ok(())
            }
            Err(why) => Err(format!("{}: {why}\n{}", self.pgdata.display(), self.log_tail())),
        }
    }

    /// Stops the server; nothing happens when it does not run.
    ///
    /// # Panics
    /// When it does not stop.
    pub fn stop(&mut self, how: Stop) {
        if let Some(Err(why)) = self.server.take().map(|server| server.stop(how)) {
            panic!("{}: {why}\n{}", self.pgdata.display(), self.log_tail());
        }
    }

    /// Kills the postmaster and everything under it, archive commands included, with SIGKILL.
    pub fn kill9(&mut self) {
        if let Some(server) = self.server.take() {
            self.leftover = server.kill9();
        }
    }

    /// Waits until the server ends by itself.
    ///
    /// # Panics
    /// When it does not.
    pub fn wait_stopped(&mut self) {
        if let Some(mut server) = self.server.take() {
            let end = server.wait(PATIENCE);
            assert!(end.is_some(), "{}: still running\n{}", self.pgdata.display(), self.log_tail());
        }
    }

    /// Whether the server runs.
    pub fn is_running(&mut self) -> bool {
        self.server.as_mut().is_some_and(|server| server.ended().is_none())
    }

    /// Starts the server, which is to end by itself sooner or later, and gives its log.
    ///
    /// # Panics
    /// When it goes on running.
    #[track_caller]
    pub fn start_to_fail(&mut self) -> String {
        if self.try_start().is_ok() {
            self.wait_stopped();
        }
        self.log()
    }

    /// The process id of the postmaster.
    #[must_use]
    pub fn postmaster_pid(&self) -> Option<i32> {
        self.server.as_ref().map(|server| server.pid().as_raw_pid())
    }

    /// Runs SQL in the database `postgres`, each statement in a transaction of its own, and hands back the rows:
    /// columns joined by `|`, rows by line ends.
    ///
    /// # Panics
    /// With the error's text, at the first statement that fails.
    #[track_caller]
    pub fn psql(&self, sql: &str) -> String {
        self.psql_db("postgres", sql)
    }

    /// The same in another database.
    ///
    /// # Panics
    /// With the error's text, at the first statement that fails.
    #[track_caller]
    pub fn psql_db(&self, database: &str, sql: &str) -> String {
        match self.try_psql_db(database, sql) {
            Ok(rows) => rows,
            Err(why) => panic!("{sql}\n{why}\n{}", self.log_tail()),
        }
    }

    /// The same, with the error's text for the caller.
    ///
    /// # Errors
    /// At the first statement that fails, or when nobody answers.
    pub fn try_psql(&self, sql: &str) -> Result<String, String> {
        self.try_psql_db("postgres", sql)
    }

    /// The same in another database.
    ///
    /// # Errors
    /// At the first statement that fails, or when nobody answers.
    pub fn try_psql_db(&self, database: &str, sql: &str) -> Result<String, String> {
        let mut psql = self.pg("psql");
        psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-f", "-", "-d", database]);
        let ran = run_with_input(&mut psql, sql);
        if ran.code == Some(0) { Ok(ran.ok().to_owned()) } else { Err(ran.stderr) }
    }

    /// Asks until the answer is the one that is waited for.
    ///
    /// # Panics
    /// When it never is.
    #[track_caller]
    pub fn wait_for(&self, sql: &str, answer: &str) {
        let begun = Instant::now();
        loop {
            let last = self.try_psql(sql);
            if last.as_deref() == Ok(answer) {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "{sql}\nis not {answer:?} but {last:?}\n{}", self.log_tail());
            sleep(PAUSE);
        }
    }

    /// Ends the current WAL segment, even one that nothing was written to, and names it.
    #[track_caller]
    pub fn switch_wal(&self) -> String {
        let name = self.psql(
            "SELECT pg_logical_emit_message(false, 'test', 'a record, so that there is something to switch')\\g /dev/null
             SELECT pg_walfile_name(pg_switch_wal())",
        );
        assert_eq!(name.len(), 24, "the name of a segment: {name:?}");
        name
    }

    /// Waits until PostgreSQL holds that segment, or history file, for archived.
    ///
    /// # Panics
    /// With what `pg_stat_archiver` says, when that does not come.
    #[track_caller]
    pub fn wait_archived(&self, name: &str) {
        let (mut begun, mut last) = (Instant::now(), None);
        let done = self.pgdata.join("pg_wal/archive_status").join(format!("{name}.done"));
        // A checkpoint may have removed the segment, and its mark with it.
        let sql = format!("SELECT last_archived_wal >= '{name}' COLLATE \"C\" FROM pg_stat_archiver");
        while !done.exists() && self.try_psql(&sql).as_deref() != Ok("t") {
            // A backlog may take long: as long as it becomes less.
            let archived = self.try_psql("SELECT archived_count FROM pg_stat_archiver").ok();
            if archived != last {
                (begun, last) = (Instant::now(), archived);
            }
            assert!(
                begun.elapsed() < PATIENCE,
                "{name} was not archived: {:?}\n{}",
                self.try_psql("SELECT * FROM pg_stat_archiver"),
                self.log_tail()
            );
            sleep(PAUSE);
        }
    }

    /// Any program of this version (`pg_waldump`, `pgbench`, `pg_amcheck`, ...), as the user the server runs as and
    /// with this server as its default.
    #[must_use]
    pub fn pg(&self, program: &str) -> Command {
        let mut command = self.owner.command(self.installation.program(program));
        command.current_dir(self.folder.path()).stdin(Stdio::null()).env("HOME", self.folder.path());
        command.env("PGHOST", &self.socket_dir).env("PGPORT", self.port.to_string());
        command.env("PGUSER", "postgres").env("PGDATABASE", "postgres");
        command
    }

    /// Runs one of those programs to its end and hands back what it wrote.
    ///
    /// # Panics
    /// With all it said, when it fails.
    #[track_caller]
    pub fn pg_run<S: AsRef<std::ffi::OsStr>>(&self, program: &str, arguments: impl IntoIterator<Item = S>) -> String {
        run(self.pg(program).args(arguments)).ok().to_owned()
    }

    /// Makes the server read its configuration again.
    pub fn reload(&self) {
        self.psql("SELECT pg_reload_conf()");
    }

    /// The data directory.
    #[must_use]
    pub fn pgdata(&self) -> &Path {
        &self.pgdata
    }

    /// The folder of the Unix socket.
    #[must_use]
    pub fn socket_dir(&self) -> &Path {
        &self.socket_dir
    }

    /// The port, for TCP and in the name of the Unix socket.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// How tokio-postgres, and `connection` in `walden.toml`, reach the server.
    #[must_use]
    pub fn conninfo(&self) -> String {
        format!("host={} port={} user=postgres dbname=postgres", self.socket_dir.display(), self.port)
    }

    /// The installation it runs on.
    #[must_use]
    pub fn installation(&self) -> &Installation {
        &self.installation
    }

    /// The user it runs as.
    #[must_use]
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// The server's log since the cluster was made.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read(self.log_path()).map(|log| String::from_utf8_lossy(&log).into_owned()).unwrap_or_default()
    }

    /// Its last lines, for messages.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        format!("--- log of the server\n{}", lines[lines.len().saturating_sub(30)..].join("\n"))
    }

    pub(super) fn log_path(&self) -> PathBuf {
        self.folder.path().join("log")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(server) = self.server.take()
            && let Err(why) = server.stop(Stop::Immediate)
        {
            eprintln!("{}: {why}", self.pgdata.display());
        }
        std::mem::take(&mut self.leftover).remove();
    }
}
