//! `walden-restore %f %p`: the program that PostgreSQL's `restore_command` runs. It finds `walden` and has it fetch
//! the segment.
//!
//! PostgreSQL takes any status from 1 to 125 for "there is no such file" and ends recovery there, so 1 is passed on
//! only with the word that `walden` says beside it for proven absence, and everything else becomes 200: PostgreSQL then
//! stops with the truth. That is why `walden` is waited for rather than become: another program of that name, a wrapper or
//! a loader that fails would answer in codes of its own.

use std::{
    env,
    ffi::OsString,
    io::{self, Write},
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
};

const HELP: &str = "\
Fetches one WAL segment or history file; for restore_command in postgresql.conf:

  restore_command = '/usr/bin/walden-restore %f %p'

Usage: walden-restore [--config FILE] [--cluster NAME] [--until SEGMENT] NAME DESTINATION

Arguments:
  NAME             the file's name: %f
  DESTINATION      where to put it: %p

Options:
  --config FILE    the configuration file [default: $WALDEN_CONFIG, /etc/walden/walden.toml]
  --cluster NAME   the cluster; may be left out when the configuration names one
  --until SEGMENT  up to this segment nothing on the plan's path is ever answered \"absent\"
  --help           print this
  --version        print the version

EXIT STATUS
  0    delivered, verified, whole
  1    proven absent from the repository
  200  anything else: PostgreSQL stops rather than end recovery early
";

const USAGE: &str = "usage: walden-restore [--config FILE] [--cluster NAME] [--until SEGMENT] %f %p";
const DOUBT: u8 = 200;
/// What `walden wal fetch` says on standard output beside its status 1, and nothing else says by chance.
const ABSENT: &[u8] = b"absent\n";

fn main() -> ExitCode {
    // Rust's own code of a panic is 101: "there is no such file".
    let code = std::panic::catch_unwind(|| run(env::args_os().skip(1)));
    ExitCode::from(code.unwrap_or(DOUBT))
}

fn run(arguments: impl Iterator<Item = OsString>) -> u8 {
    match parse(arguments) {
        Ok(Wish::Fetch(arguments)) => fetch(&arguments),
        Ok(Wish::Tell(text)) => {
            // A reader that went away has seen enough.
            _ = io::stdout().write_all(text.as_bytes());
            0
        }
        Err(what) => doubt(&what, USAGE),
    }
}

/// What the arguments ask for.
enum Wish {
    /// Run `walden` with these arguments.
    Fetch(Vec<OsString>),
    /// Print this.
    Tell(String),
}

fn parse(mut arguments: impl Iterator<Item = OsString>) -> Result<Wish, String> {
    let mut for_walden: Vec<OsString> = vec!["wal".into(), "fetch".into(), "--no-local-config".into()];
    let mut names = Vec::new();
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("--help" | "-h") => return Ok(Wish::Tell(HELP.into())),
            Some("--version" | "-V") => {
                return Ok(Wish::Tell(format!("walden-restore {}\n", env!("CARGO_PKG_VERSION"))));
            }
            Some(flag @ ("--config" | "--cluster" | "--until")) => {
                let value = arguments.next().ok_or_else(|| format!("{flag} needs a value"))?;
                for_walden.extend([argument, value]);
            }
            Some(flag) if ["--config=", "--cluster=", "--until="].iter().any(|known| flag.starts_with(known)) => {
                for_walden.push(argument);
            }
            Some(flag) if flag.starts_with('-') => return Err(format!("unknown option {flag}")),
            Some("") => return Err("an argument is empty".into()),
            _ => names.push(argument),
        }
    }
    if names.len() != 2 {
        return Err(format!("{} arguments, where the file's name and its destination are needed", names.len()));
    }
    for_walden.push("--".into());
    for_walden.extend(names);
    Ok(Wish::Fetch(for_walden))
}

fn fetch(arguments: &[OsString]) -> u8 {
    let walden = walden_companion::companion("walden");
    let delivered = || arguments.last().is_some_and(|destination| PathBuf::from(destination).is_file());
    match Command::new(&walden).args(arguments).stderr(Stdio::inherit()).output() {
        Ok(output) => match output.status.code() {
            // PostgreSQL would take a file that is not there for the end of the log.
            Some(0) if delivered() => 0,
            Some(1) if output.stdout == ABSENT => 1,
            // It has told why.
            Some(code) if code == i32::from(DOUBT) => DOUBT,
            _ => {
                let end = output.status;
                doubt(&format!("{} ended with {end}", walden.display()), "look in the log for why, then start again")
            }
        },
        Err(error) => {
            doubt(&format!("run {}: {error}", walden.display()), "install walden beside walden-restore or on PATH")
        }
    }
}

fn doubt(what: &str, hint: &str) -> u8 {
    // Nothing can be done when standard error is gone; the status still tells.
    _ = writeln!(io::stderr(), "walden-restore: {what}\nhint: {hint}");
    DOUBT
}
