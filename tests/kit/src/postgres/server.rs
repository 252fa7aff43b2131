//! One running postmaster: how it is started, known to be ready, and stopped.

use std::{
    fs,
    path::Path,
    process::{Child, Command},
    thread::sleep,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use super::processes::{SharedMemory, kill_tree};

/// Enough for a slow machine that replays a few hundred segments; no test waits for it to pass.
const START: Duration = Duration::from_secs(300);
const END: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(20);

/// How a server is asked to stop, as in `pg_ctl stop -m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Waits for clients to leave.
    Smart,
    /// Ends the sessions, writes a shutdown checkpoint.
    Fast,
    /// No checkpoint: recovery at the next start.
    Immediate,
}

/// A postmaster.
#[derive(Debug)]
pub(super) struct Server {
    pid: Pid,
    /// Absent for a server that somebody else started.
    child: Option<Child>,
}

impl Server {
    /// Starts a postmaster and waits until it takes connections; says why not otherwise.
    ///
    /// It stays in the process group of the test, so that an interrupted test takes its servers along.
    pub(super) fn start(command: &mut Command, pgdata: &Path) -> Result<Self, String> {
        let child = command.spawn().map_err(|error| format!("{command:?}: {error}"))?;
        let mut server = Self { pid: Pid::from_child(&child), child: Some(child) };
        let begun = Instant::now();
        loop {
            if let Some(status) = server.ended() {
                return Err(format!("the server did not start: {status}"));
            }
            // The eighth line is its state; "standby" is a server in recovery that takes no connections.
            let lines = pid_file(pgdata);
            let own = lines.first().is_some_and(|line| line.trim() == server.pid.as_raw_pid().to_string());
            if own && lines.get(7).is_some_and(|state| ["ready", "standby"].contains(&state.trim())) {
                return Ok(server);
            }
            if begun.elapsed() > START {
                server.kill9();
                return Err(format!("the server was not ready after {} s", START.as_secs()));
            }
            sleep(PAUSE);
        }
    }

    /// The postmaster that runs on a data directory, with the port and the socket folder it wrote down.
    pub(super) fn attach(pgdata: &Path) -> Option<(Self, u16, String)> {
        let lines = pid_file(pgdata);
        let pid = Pid::from_raw(lines.first()?.trim().parse().ok()?)?;
        test_kill_process(pid).ok()?;
        Some((Self { pid, child: None }, lines.get(3)?.trim().parse().ok()?, lines.get(4)?.trim().to_owned()))
    }

    /// Its process id.
    pub(super) fn pid(&self) -> Pid {
        self.pid
    }

    /// How it ended, when it has.
    pub(super) fn ended(&mut self) -> Option<String> {
        match &mut self.child {
            Some(child) => child.try_wait().ok().flatten().map(|status| status.to_string()),
            None => test_kill_process(self.pid).is_err().then(|| "gone".to_owned()),
        }
    }

    /// Asks it to stop and waits until it is gone; kills it and says so when it does not go.
    pub(super) fn stop(mut self, how: Stop) -> Result<(), String> {
        let signal = match how {
            Stop::Smart => Signal::TERM,
            Stop::Fast => Signal::INT,
            Stop::Immediate => Signal::QUIT,
        };
        let _ = kill_process(self.pid, signal);
        if self.wait(END).is_some() {
            return Ok(());
        }
        self.kill9();
        Err(format!("the server did not stop within {} s and was killed", END.as_secs()))
    }

    /// Waits for its end; `None` when it still runs.
    pub(super) fn wait(&mut self, patience: Duration) -> Option<String> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.ended() {
                return Some(status);
            }
            if begun.elapsed() > patience {
                return None;
            }
            sleep(PAUSE);
        }
    }

    /// Kills the postmaster and all its children; hands back the memory that this leaves behind.
    pub(super) fn kill9(mut self) -> SharedMemory {
        let memory = SharedMemory::of(self.pid);
        kill_tree(self.pid);
        let _ = self.wait(END);
        memory
    }
}

fn pid_file(pgdata: &Path) -> Vec<String> {
    let text = fs::read_to_string(pgdata.join("postmaster.pid")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}
