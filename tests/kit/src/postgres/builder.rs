//! Makes a cluster with `initdb`.

use std::{
    fmt::Write as _,
    fs::{self, OpenOptions},
    io::Write as _,
    net::TcpListener,
};

use super::{Cluster, Installation};
use crate::{clock::Clock, run::run};

/// What a new cluster is like. The defaults are PostgreSQL's own but for `fsync`, which is off for speed, page
/// checksums, which are on for every version, and TCP, which is not listened on.
#[derive(Clone, Debug)]
#[must_use]
pub struct Builder {
    installation: Installation,
    segment_mb: u32,
    first_segment: Option<String>,
    checksums: bool,
    tcp: bool,
    settings: Vec<(String, String)>,
    environment: Vec<(String, String)>,
}

impl Builder {
    pub(super) fn new(installation: &Installation) -> Self {
        Self {
            installation: installation.clone(),
            segment_mb: 16,
            first_segment: None,
            checksums: true,
            tcp: false,
            settings: Vec::new(),
            environment: Vec::new(),
        }
    }

    /// The size of a WAL segment in MB, a power of two from 1 to 1024.
    pub fn wal_segment_size(mut self, mb: u32) -> Self {
        self.segment_mb = mb;
        self
    }

    /// The segment that the server writes first, by its name: what is archived begins there.
    pub fn first_segment(mut self, name: &str) -> Self {
        self.first_segment = Some(name.to_owned());
        self
    }

    /// Whether data pages carry checksums.
    pub fn checksums(mut self, on: bool) -> Self {
        self.checksums = on;
        self
    }

    /// Listens on 127.0.0.1, too, on a port that was free.
    pub fn tcp(mut self) -> Self {
        self.tcp = true;
        self
    }

    /// One line of `postgresql.conf`; the value is quoted here.
    pub fn setting(mut self, key: &str, value: impl ToString) -> Self {
        self.settings.push((key.to_owned(), value.to_string()));
        self
    }

    /// The server goes by that clock.
    pub fn clock(mut self, clock: &Clock) -> Self {
        self.environment = clock.environment();
        self
    }

    /// Turns archiving on with that command.
    pub fn archiving(self, archive_command: impl ToString) -> Self {
        self.setting("archive_mode", "on").setting("archive_command", archive_command)
    }

    /// Makes the cluster, without starting it.
    ///
    /// # Panics
    /// With the words of `initdb`, when that fails.
    #[must_use]
    pub fn create(self) -> Cluster {
        let mut cluster = Cluster::empty(&self.installation, None);
        cluster.environment = self.environment;
        let mut initdb = cluster.pg("initdb");
        initdb.args(["--no-sync", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C"]);
        initdb.arg(format!("--wal-segsize={}", self.segment_mb)).arg("--pgdata").arg(cluster.pgdata());
        match (self.checksums, self.installation.major) {
            (true, ..18) => drop(initdb.arg("--data-checksums")),
            (false, 18..) => drop(initdb.arg("--no-data-checksums")),
            _ => {}
        }
        run(&mut initdb).expect_code(0);
        if let Some(name) = &self.first_segment {
            run(cluster.pg("pg_resetwal").args(["-l", name, "--pgdata"]).arg(cluster.pgdata())).expect_code(0);
        }
        if self.tcp {
            cluster.port = free_port();
        }
        let listen = if self.tcp { "127.0.0.1" } else { "" };
        let mut text = format!(
            "\nfsync = off\nport = {}\nlisten_addresses = '{listen}'\nunix_socket_directories = '{}'\n",
            cluster.port(),
            cluster.socket_dir().display()
        );
        for (key, value) in &self.settings {
            let _ = writeln!(text, "{key} = '{}'", value.replace('\'', "''"));
        }
        cluster.append_configuration(&text);
        cluster
    }

    /// Makes the cluster and starts it.
    ///
    /// # Panics
    /// With the end of its log, when it does not start.
    #[must_use]
    pub fn start(self) -> Cluster {
        let tcp = self.tcp;
        let mut cluster = self.create();
        // Somebody may take a free port before we do; a Unix socket lies in a folder of its own.
        for _ in 0..5 {
            match cluster.try_start() {
                Err(_) if tcp && cluster.log().contains("Address already in use") => {
                    cluster.port = free_port();
                    cluster.append_configuration(&format!("port = {}\n", cluster.port()));
                    fs::write(cluster.log_path(), "").expect("the log of a cluster just made");
                }
                Err(why) => panic!("{why}"),
                Ok(()) => return cluster,
            }
        }
        panic!("five ports that were free were taken before PostgreSQL could listen on them")
    }
}

impl Cluster {
    /// Adds lines to `postgresql.conf`; `reload` or a start makes them count.
    ///
    /// # Panics
    /// When the file cannot be written.
    pub fn append_configuration(&self, lines: &str) {
        let path = self.pgdata().join("postgresql.conf");
        let file = OpenOptions::new().append(true).open(&path);
        file.and_then(|mut file| file.write_all(lines.as_bytes()))
            .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port to listen on");
    listener.local_addr().expect("the port that was chosen").port()
}
