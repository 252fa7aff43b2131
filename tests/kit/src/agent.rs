//! A running `walden agent`.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Child, ExitStatus},
    thread::sleep,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::protected::Protected;

/// An agent that runs; killed when it is dropped.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    log: PathBuf,
}

impl Agent {
    /// Starts one with that configuration, and waits until it listens.
    ///
    /// # Panics
    /// When it does not.
    #[must_use]
    pub fn start(p: &Protected) -> Self {
        let log =
            p.scene.path().join(format!("agent-{}.log", fs::read_dir(p.scene.path()).expect("the scene").count()));
        let mut command = p.command(["-vv", "agent"]);
        let child = command.stderr(File::create(&log).expect("a log")).spawn().expect("walden agent");
        let agent = Self { child, log };
        agent.wait_for("listening on");
        agent
    }

    /// Whether it has logged that.
    #[must_use]
    pub fn says(&self, what: &str) -> bool {
        self.log().contains(what)
    }

    /// What it has logged.
    ///
    /// # Panics
    /// When that cannot be read.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).expect("the log")
    }

    /// Waits until it has logged that.
    ///
    /// # Panics
    /// When it never does.
    #[track_caller]
    pub fn wait_for(&self, what: &str) {
        let begun = Instant::now();
        while !self.says(what) {
            assert!(begun.elapsed() < Duration::from_secs(30), "no {what:?} in\n{}", self.log());
            sleep(Duration::from_millis(20));
        }
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// When it is gone.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("an agent that runs");
    }

    /// Ends it with a signal, and waits.
    ///
    /// # Panics
    /// When it is gone.
    #[must_use]
    pub fn end(mut self, signal: Signal) -> ExitStatus {
        self.signal(signal);
        self.child.wait().expect("the agent's end")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}
