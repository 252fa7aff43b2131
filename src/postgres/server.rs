//! The server of a data directory: whether one runs there, starting one, waiting for it, stopping it.
//!
//! A server is started as the owner of its data directory, never as root, straight from the program `postgres`: its
//! end and its exit are seen at once, and it outlives this process when it is [left running](Server::leave_running).

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Seek, SeekFrom},
    os::unix::{
        fs::{MetadataExt, OpenOptionsExt, fchown},
        process::{CommandExt, ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use super::Conninfo;
use crate::error::{Error, Result};

/// How often a server is looked at while something is waited for.
const PAUSE: Duration = Duration::from_millis(50);
/// How much of the log an error shows, in bytes.
const LOG_TAIL: u64 = 2000;

/// What `postmaster.pid` says (`src/include/utils/pidfile.h`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Postmaster {
    /// Its process.
    pub pid: i32,
    /// Its port.
    pub port: u16,
    /// Its first socket directory; empty when it has none.
    pub socket_directory: PathBuf,
    /// `starting`, `stopping`, `ready` or `standby` (up, but without connections).
    pub status: String,
}

/// Whether a server runs in a data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Running {
    /// There is no `postmaster.pid`.
    No,
    /// There is one, but no such server on this machine: it crashed, or it runs in another container or on another
    /// host that shares the directory. That cannot be told apart from here.
    Stale(Postmaster),
    /// There is one, and its server runs.
    Yes(Postmaster),
}

/// Whether a server runs in the data directory `pgdata`. The directory may be missing.
pub fn running(pgdata: &Path) -> Result<Running> {
    let path = pgdata.join("postmaster.pid");
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            return Ok(Running::No);
        }
        Err(e) => return Err(Error::io("read", &path, e)),
    };
    let postmaster = parse(&text).ok_or_else(|| {
        Error::refused(format!("{} does not say which process it stands for", path.display()))
            .hint("make sure that no server runs in this directory, then remove the file")
    })?;
    Ok(if is_alive(&postmaster, pgdata) { Running::Yes(postmaster) } else { Running::Stale(postmaster) })
}

/// What tells one run of a server from any other: its process, directory and start, as `postmaster.pid` has them.
/// `None` where no server runs.
pub fn run_of(pgdata: &Path) -> Option<String> {
    let text = fs::read_to_string(pgdata.join("postmaster.pid")).ok()?;
    let lines: Vec<&str> = text.lines().take(3).collect();
    (lines.len() == 3).then(|| lines.join("\n"))
}

/// Whether a process was started by the server that runs in `pgdata`, as what its archiver runs is, or by what that
/// started. Where it cannot be told, it was not.
pub fn started(pgdata: &Path, pid: i32) -> bool {
    /// `archive_command` is run by a shell, and may be a script that runs another.
    const GENERATIONS: usize = 16;
    let Ok(Running::Yes(postmaster)) = running(pgdata) else { return false };
    std::iter::successors(Some(pid), |pid| parent_of(*pid)).take(GENERATIONS).any(|pid| pid == postmaster.pid)
}

/// The fourth field of `/proc/PID/stat`; the second, the program's name in brackets, may hold anything.
fn parent_of(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok().filter(|parent| *parent > 1)
}

fn parse(text: &str) -> Option<Postmaster> {
    let lines: Vec<&str> = text.lines().collect();
    let line = |number: usize| lines.get(number - 1).copied().unwrap_or_default();
    // A stand-alone backend writes its process id with a minus sign.
    let pid: i32 = line(1).trim().parse().ok().filter(|pid| *pid != 0 && *pid != i32::MIN)?;
    Some(Postmaster {
        pid: pid.abs(),
        port: line(4).trim().parse().unwrap_or_default(),
        socket_directory: line(5).into(),
        status: line(8).trim().to_owned(),
    })
}

/// Whether the process lives and works in that directory: after a restart of the machine another process may have its
/// number. Where that cannot be seen, a living process counts.
fn is_alive(postmaster: &Postmaster, pgdata: &Path) -> bool {
    let Some(pid) = Pid::from_raw(postmaster.pid) else { return false };
    if test_kill_process(pid) == Err(rustix::io::Errno::SRCH) {
        return false;
    }
    let directory = fs::read_link(format!("/proc/{}/cwd", postmaster.pid));
    directory.ok().zip(fs::canonicalize(pgdata).ok()).is_none_or(|(works_in, pgdata)| works_in == pgdata)
}

/// How to start a server.
#[derive(Clone, Debug)]
pub struct Start {
    /// The directory of PostgreSQL's programs.
    pub bin: PathBuf,
    /// The data directory.
    pub pgdata: PathBuf,
    /// Where it logs before (and unless) its own logging takes over; appended to.
    pub log: PathBuf,
    /// Settings that override the configuration files, name and value.
    pub settings: Vec<(String, String)>,
}

/// What a server has become while it was waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Came {
    /// It takes connections: it is consistent, in recovery or past it.
    Ready,
    /// It ended in order, as `recovery_target_action = 'shutdown'` has it.
    Ended,
    /// Neither within the time given.
    StillStarting,
}

/// How a server is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// Connections are closed, and a checkpoint is written.
    Fast,
    /// At once; the next start recovers.
    Immediate,
}

/// A server that was started here. When dropped it is stopped at once, unless it was left running.
#[derive(Debug)]
pub struct Server {
    child: Child,
    pgdata: PathBuf,
    log: PathBuf,
    /// How long the log was before the start.
    log_start: u64,
    ended: Option<ExitStatus>,
    left: bool,
}

impl Server {
    /// Starts a server as the owner of its data directory. It does not wait.
    pub fn start(start: &Start) -> Result<Self> {
        let owner = fs::metadata(&start.pgdata).map_err(|e| Error::io("open the data directory", &start.pgdata, e))?;
        let (uid, gid) = (owner.uid(), owner.gid());
        if uid == 0 {
            return Err(Error::refused(format!("{} belongs to root", start.pgdata.display()))
                .hint("PostgreSQL does not run as root: give the directory to another user, for instance postgres"));
        }
        if let Running::Yes(postmaster) = running(&start.pgdata)? {
            let (pgdata, pid) = (start.pgdata.display(), postmaster.pid);
            return Err(Error::refused(format!("a server runs in {pgdata} already (process {pid})")));
        }
        let log = open_log(&start.log, uid, gid)?;
        let log_start = log.metadata().map_or(0, |m| m.len());
        let failed = |e| Error::io("start PostgreSQL in", &start.pgdata, e);
        let program = start.bin.join("postgres");
        let mut command = Command::new(&program);
        command.arg("-D").arg(&start.pgdata);
        for (name, value) in &start.settings {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        // A process group of its own: Ctrl-C in the terminal is not for the server.
        command.stdin(Stdio::null()).stdout(log.try_clone().map_err(failed)?).stderr(log).process_group(0);
        command.current_dir("/");
        if rustix::process::geteuid().is_root() {
            command.uid(uid).gid(gid);
        }
        let child = command.spawn().map_err(|e| Error::io("start", &program, e))?;
        let (pgdata, log) = (start.pgdata.clone(), start.log.clone());
        Ok(Self { child, pgdata, log, log_start, ended: None, left: false })
    }

    /// Waits until the server takes connections or ends, at most `limit`. An error with the end of the log when it
    /// fails.
    pub fn wait(&mut self, limit: Duration) -> Result<Came> {
        let since = Instant::now();
        loop {
            if let Some(status) = self.status()? {
                return if status.success() { Ok(Came::Ended) } else { Err(self.failure(status)) };
            }
            if self.postmaster().is_some_and(|p| p.status == "ready") {
                return Ok(Came::Ready);
            }
            if since.elapsed() >= limit {
                return Ok(Came::StillStarting);
            }
            thread::sleep(PAUSE);
        }
    }

    /// Waits until the server ends by itself, at most `limit`; whether it did. An error when it failed.
    pub fn wait_ended(&mut self, limit: Duration) -> Result<bool> {
        let since = Instant::now();
        while self.status()?.is_none() {
            if since.elapsed() >= limit {
                return Ok(false);
            }
            thread::sleep(PAUSE);
        }
        match self.ended {
            Some(status) if !status.success() => Err(self.failure(status)),
            _ => Ok(true),
        }
    }

    /// What its `postmaster.pid` says; `None` while it has not written all of it.
    #[must_use]
    pub fn postmaster(&self) -> Option<Postmaster> {
        let text = fs::read_to_string(self.pgdata.join("postmaster.pid")).ok()?;
        parse(&text).filter(|p| p.pid.unsigned_abs() == self.child.id())
    }

    /// How to connect to it by its socket as `user`.
    pub fn conninfo(&self, user: &str, dbname: &str) -> Result<Conninfo> {
        let postmaster = self.postmaster().filter(|p| !p.socket_directory.as_os_str().is_empty());
        let postmaster = postmaster.ok_or_else(|| {
            Error::failed(format!("the server in {} has no socket", self.pgdata.display()))
                .hint("unix_socket_directories is empty in its configuration")
        })?;
        let directory = self.pgdata.join(postmaster.socket_directory);
        let quoted = |text: &str| format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"));
        let host = quoted(&directory.to_string_lossy());
        let text = format!("host={host} port={} user={} dbname={}", postmaster.port, quoted(user), quoted(dbname));
        // Nothing of the environment: PGPASSWORD and PGSSLMODE are for another server.
        Conninfo::parse(&text, &|_| None)
    }

    /// Stops the server and waits, at most `limit`.
    pub fn stop(&mut self, mode: StopMode, limit: Duration) -> Result<()> {
        if self.status()?.is_some() {
            return Ok(());
        }
        self.signal(if mode == StopMode::Fast { Signal::INT } else { Signal::QUIT })?;
        if self.wait_ended(limit)? {
            return Ok(());
        }
        Err(Error::failed(format!("PostgreSQL in {} did not stop within {} s", self.pgdata.display(), limit.as_secs()))
            .hint(format!("see its log {}", self.log.display())))
    }

    /// Lets the server run on when this is dropped and when this process ends.
    pub fn leave_running(mut self) {
        self.left = true;
    }

    /// What the server has logged last, since its start.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let mut text = Vec::new();
        if let Ok(mut file) = File::open(&self.log) {
            let length = file.metadata().map_or(0, |m| m.len());
            let from = length.saturating_sub(LOG_TAIL).max(self.log_start.min(length));
            if file.seek(SeekFrom::Start(from)).is_ok() {
                // What was read so far is shown; a log that cannot be read must not hide why the server failed.
                let _ = file.read_to_end(&mut text);
            }
            if from > self.log_start {
                let line = text.iter().position(|&b| b == b'\n').map_or(0, |at| at + 1);
                text.drain(..line);
            }
        }
        String::from_utf8_lossy(&text).trim_end().to_owned()
    }

    fn status(&mut self) -> Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().map_err(|e| Error::io("wait for PostgreSQL in", &self.pgdata, e))?;
        }
        Ok(self.ended)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        // A child that was not waited for keeps its number, so that no other process is hit.
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).map_err(|e| Error::io("signal PostgreSQL in", &self.pgdata, e.into()))
    }

    fn failure(&self, status: ExitStatus) -> Error {
        let how = match (status.code(), status.signal()) {
            (Some(code), _) => format!("ended with exit code {code}"),
            (None, Some(signal)) => format!("was ended by signal {signal}"),
            (None, None) => "ended".to_owned(),
        };
        let log = self.log_tail();
        Error::failed(format!("PostgreSQL in {} {how}; its log says:\n{log}", self.pgdata.display()))
            .hint(format!("the whole log is {}", self.log.display()))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !self.left && matches!(self.status(), Ok(None)) && self.signal(Signal::QUIT).is_ok() {
            // PostgreSQL itself kills its processes five seconds after an immediate stop that does not work.
            let _ = self.wait_ended(Duration::from_secs(10));
        }
    }
}

/// Opens a log for appending; one that is made here belongs to the server's user. Links are not followed: their owner
/// may be somebody who must not append to files of root.
fn open_log(path: &Path, uid: u32, gid: u32) -> Result<File> {
    let failed = |e| Error::io("open the log", path, e);
    let no_links = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
    let log = OpenOptions::new().create(true).append(true).mode(0o600).custom_flags(no_links).open(path);
    let log = log.map_err(failed)?;
    let metadata = log.metadata().map_err(failed)?;
    if rustix::process::geteuid().is_root() && metadata.uid() == 0 && metadata.len() == 0 && metadata.nlink() == 1 {
        fchown(&log, Some(uid), Some(gid)).map_err(failed)?;
    }
    Ok(log)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pgdata(pid_file: &str) -> tempfile::TempDir {
        let pgdata = tempfile::tempdir().unwrap();
        fs::write(pgdata.path().join("postmaster.pid"), pid_file).unwrap();
        pgdata
    }

    #[test]
    fn a_dead_process_and_one_that_works_elsewhere_are_no_server() {
        let nobody = pgdata("2147483647\n/x\n1700000000\n5433\n/run/it's here\n*\n1 2\nready   \n");
        let Running::Stale(postmaster) = running(nobody.path()).unwrap() else { panic!("no such process") };
        assert_eq!((postmaster.port, postmaster.status.as_str()), (5433, "ready"));
        assert_eq!(postmaster.socket_directory, Path::new("/run/it's here"));
        let recycled = pgdata(&format!("{}\n", std::process::id()));
        assert!(matches!(running(recycled.path()).unwrap(), Running::Stale(_)));
        assert_eq!(running(Path::new("/nonexistent")).unwrap(), Running::No);
    }

    #[test]
    fn a_process_that_works_there_is_a_server() {
        let there = tempfile::tempdir().unwrap();
        let mut child = Command::new("sleep").arg("60").current_dir(there.path()).spawn().unwrap();
        fs::write(there.path().join("postmaster.pid"), format!("-{}\n", child.id())).unwrap();
        assert!(matches!(running(there.path()).unwrap(), Running::Yes(_)));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(matches!(running(there.path()).unwrap(), Running::Stale(_)));
    }

    #[test]
    fn a_pid_file_that_says_nothing_is_left_to_people() {
        for text in ["", "x\n", "0\n", "-2147483648\n"] {
            assert!(running(pgdata(text).path()).is_err(), "{text:?}");
        }
    }
}
