//! `walden-archive %p`: the program that PostgreSQL's `archive_command` runs. It asks the agent, where one listens, and
//! else has `walden` push the segment: the answers are the same.
//!
//! PostgreSQL acts on the exit status: 0 removes the segment, anything else keeps it, and above 125 (a signal too)
//! the archiver gives up and is started anew. So `walden` is waited for rather than become: however it ends, killed
//! for want of memory or not there at all, the answer stays in 0, 1, 2 and 4.

use std::{
    env,
    ffi::{OsStr, OsString},
    io::{self, ErrorKind, Write},
    process::{Command, ExitCode},
};

use walden_companion::{Answer, Request, Wish};

const HELP: &str = "\
Archives one WAL segment; for archive_command in postgresql.conf:

  archive_command = '/usr/bin/walden-archive %p'

Usage: walden-archive [--config FILE] [--cluster NAME] [--agent SOCKET] PATH

Arguments:
  PATH            the segment, history or backup file: %p

Options:
  --config FILE   the configuration file [default: $WALDEN_CONFIG, /etc/walden/walden.toml]
  --cluster NAME  the cluster; may be left out when the configuration names one
  --agent SOCKET  where `walden agent` listens [default: $WALDEN_AGENT_SOCKET, /run/walden/agent.sock];
                  without an agent there `walden wal push` does the same
  --help          print this
  --version       print the version

EXIT STATUS
  0    the file is durable in the repository
  1    try again: unreachable, out of time, interrupted
  2    wrong usage or configuration, credentials refused, walden not found
  4    refused: other content under this name, a foreign system, not a valid segment
";

const TRY_AGAIN: u8 = 1;
const CONFIGURATION: u8 = 2;

fn main() -> ExitCode {
    // A panic would be 101, which says nothing of the above; there is nothing here that should.
    let code = std::panic::catch_unwind(|| run(env::args_os().skip(1)));
    ExitCode::from(code.unwrap_or(TRY_AGAIN))
}

const FLAGS: [&str; 3] = ["--config", "--cluster", "--agent"];

fn run(arguments: impl Iterator<Item = OsString>) -> u8 {
    match walden_companion::parse(&FLAGS, arguments).and_then(Arguments::of) {
        Ok(Asked::Push(arguments)) => push(&arguments),
        Ok(Asked::Tell(text)) => {
            walden_companion::tell(&text);
            0
        }
        Err(what) => {
            complain(&what, "usage: walden-archive [--config FILE] [--cluster NAME] [--agent SOCKET] %p");
            CONFIGURATION
        }
    }
}

/// What the arguments ask for.
enum Asked {
    /// Push this segment.
    Push(Arguments),
    /// Print this.
    Tell(String),
}

struct Arguments {
    config: Option<OsString>,
    cluster: Option<OsString>,
    agent: Option<OsString>,
    path: OsString,
}

impl Arguments {
    fn of(wish: Wish) -> Result<Asked, String> {
        let (flags, names) = match wish {
            Wish::Help => return Ok(Asked::Tell(HELP.into())),
            Wish::Version => return Ok(Asked::Tell(format!("walden-archive {}\n", env!("CARGO_PKG_VERSION")))),
            Wish::Work(flags, names) => (flags, names),
        };
        let value = |flag| walden_companion::value(&flags, flag);
        let [path] = <[OsString; 1]>::try_from(names).map_err(|names| match names.len() {
            0 => "the path of the segment is missing",
            _ => "more than one path",
        })?;
        let (config, cluster, agent) = (value("--config"), value("--cluster"), value("--agent"));
        Ok(Asked::Push(Self { config, cluster, agent, path }))
    }
}

fn push(arguments: &Arguments) -> u8 {
    match ask(arguments) {
        Some(Answer { status: status @ (0 | 1 | 2 | 4), text }) => {
            _ = io::stderr().write_all(&text);
            status
        }
        _ => push_by_walden(arguments),
    }
}

fn ask(arguments: &Arguments) -> Option<Answer> {
    let request = Request {
        verb: "push".into(),
        cwd: env::current_dir().ok()?,
        config: walden_companion::configuration(arguments.config.clone()),
        cluster: arguments.cluster.clone(),
        path: arguments.path.clone().into(),
        environment: walden_companion::environment(),
        ..Request::default()
    };
    walden_companion::ask(&walden_companion::socket(arguments.agent.clone()), &request)
}

fn push_by_walden(arguments: &Arguments) -> u8 {
    let walden = walden_companion::companion("walden");
    let mut command = Command::new(&walden);
    command.args(["wal", "push", "--no-local-config"]);
    for (flag, value) in [("--config", &arguments.config), ("--cluster", &arguments.cluster)] {
        value.iter().for_each(|value| _ = command.args([OsStr::new(flag), value]));
    }
    match command.arg("--").arg(&arguments.path).status() {
        Ok(status) => match status.code() {
            Some(code @ (0 | 1 | 2 | 4)) => u8::try_from(code).unwrap_or(TRY_AGAIN),
            _ => {
                complain(&format!("{} ended with {status}", walden.display()), "PostgreSQL will try again");
                TRY_AGAIN
            }
        },
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) => {
            complain(&format!("run {}: {error}", walden.display()), "install walden beside walden-archive or on PATH");
            CONFIGURATION
        }
        Err(error) => {
            complain(&format!("run {}: {error}", walden.display()), "PostgreSQL will try again");
            TRY_AGAIN
        }
    }
}

fn complain(what: &str, hint: &str) {
    // Nothing can be done when standard error is gone; the status still tells.
    _ = writeln!(io::stderr(), "walden-archive: {what}\nhint: {hint}");
}
