//! `walden-archive %p`: the program that PostgreSQL's `archive_command` runs. It finds `walden` and has it push the
//! segment.
//!
//! PostgreSQL acts on the exit status: 0 removes the segment, anything else keeps it, and above 125 (a signal too)
//! the archiver gives up and is started anew. So `walden` is waited for rather than become: however it ends, killed
//! for want of memory or not there at all, the answer stays in 0, 1, 2 and 4.

use std::{
    env,
    ffi::OsString,
    io::{self, ErrorKind, Write},
    path::PathBuf,
    process::{Command, ExitCode},
};

const HELP: &str = "\
Archives one WAL segment; for archive_command in postgresql.conf:

  archive_command = '/usr/bin/walden-archive %p'

Usage: walden-archive [--config FILE] [--cluster NAME] PATH

Arguments:
  PATH            the segment, history or backup file: %p

Options:
  --config FILE   the configuration file [default: $WALDEN_CONFIG, /etc/walden/walden.toml]
  --cluster NAME  the cluster; may be left out when the configuration names one
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

fn run(arguments: impl Iterator<Item = OsString>) -> u8 {
    match parse(arguments) {
        Ok(Wish::Push(arguments)) => push(&arguments),
        Ok(Wish::Tell(text)) => {
            // A reader that went away has seen enough.
            _ = io::stdout().write_all(text.as_bytes());
            0
        }
        Err(what) => {
            complain(&what, "usage: walden-archive [--config FILE] [--cluster NAME] %p");
            CONFIGURATION
        }
    }
}

/// What the arguments ask for.
enum Wish {
    /// Run `walden` with these arguments.
    Push(Vec<OsString>),
    /// Print this.
    Tell(String),
}

fn parse(mut arguments: impl Iterator<Item = OsString>) -> Result<Wish, String> {
    let mut for_walden: Vec<OsString> = vec!["wal".into(), "push".into(), "--no-local-config".into()];
    let mut path = None;
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("--help" | "-h") => return Ok(Wish::Tell(HELP.into())),
            Some("--version" | "-V") => {
                return Ok(Wish::Tell(format!("walden-archive {}\n", env!("CARGO_PKG_VERSION"))));
            }
            Some(flag @ ("--config" | "--cluster")) => {
                let value = arguments.next().ok_or_else(|| format!("{flag} needs a value"))?;
                for_walden.extend([argument, value]);
            }
            Some(flag) if flag.starts_with("--config=") || flag.starts_with("--cluster=") => for_walden.push(argument),
            Some(flag) if flag.starts_with('-') => return Err(format!("unknown option {flag}")),
            Some("") => return Err("the path is empty".into()),
            _ if path.is_some() => return Err("more than one path".into()),
            _ => path = Some(argument),
        }
    }
    for_walden.extend(["--".into(), path.ok_or("the path of the segment is missing")?]);
    Ok(Wish::Push(for_walden))
}

fn push(arguments: &[OsString]) -> u8 {
    let walden = beside("walden").unwrap_or_else(|| "walden".into());
    match Command::new(&walden).args(arguments).status() {
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

/// The program of that name beside this one; its companions are installed together.
fn beside(name: &str) -> Option<PathBuf> {
    let path = env::current_exe().ok()?.with_file_name(name);
    path.is_file().then_some(path)
}

fn complain(what: &str, hint: &str) {
    // Nothing can be done when standard error is gone; the status still tells.
    _ = writeln!(io::stderr(), "walden-archive: {what}\nhint: {hint}");
}
