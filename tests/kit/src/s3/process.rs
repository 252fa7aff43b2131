//! The S3 server as a process of its own, which can be killed and started again with what it had.

use std::{
    env,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

/// The server's process, on the same port through all its lives; killed when this is dropped.
#[derive(Debug)]
pub struct S3Process {
    folder: PathBuf,
    port: u16,
    child: Option<Child>,
}

impl S3Process {
    /// Starts one that keeps its objects in that folder.
    ///
    /// # Panics
    /// When it was not built, or does not start.
    #[must_use]
    pub fn start(folder: PathBuf) -> Self {
        let mut server = Self { folder, port: 0, child: None };
        server.revive();
        server
    }

    /// Starts it again.
    ///
    /// # Panics
    /// When it does not start.
    pub fn revive(&mut self) {
        let program = env::current_exe().expect("the path of the test").with_file_name("../s3-server");
        let mut command = Command::new(&program);
        command.args(["--port", &self.port.to_string(), "--folder"]).arg(&self.folder).stdout(Stdio::piped());
        let started = command.spawn();
        let mut child = started.unwrap_or_else(|error| panic!("{}: {error}: cargo build --bins", program.display()));
        let mut said = String::new();
        let stdout = child.stdout.take().expect("a pipe was asked for");
        BufReader::new(stdout).read_line(&mut said).expect("the server's first line");
        let port = said.trim().rsplit(':').next().and_then(|port| port.parse().ok());
        self.port = port.unwrap_or_else(|| panic!("the server does not say where it listens: {said:?}"));
        self.child = Some(child);
    }

    /// Kills it with SIGKILL; nothing answers until it is [started again](Self::revive).
    pub fn kill9(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().and_then(|()| child.wait()).expect("a child to kill");
        }
    }

    /// The URL to talk to. Bucket and keys are those of [`S3Server`](super::S3Server).
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

impl Drop for S3Process {
    fn drop(&mut self) {
        self.kill9();
    }
}
