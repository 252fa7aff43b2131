//! `walden-restore %f %p`: the program that PostgreSQL's `restore_command` runs. It asks the agent for the file, where one
//! listens, and renames it into place; else it has `walden` fetch it: the answers are the same.
//!
//! PostgreSQL takes any status from 1 to 125 for "there is no such file" and ends recovery there, so 1 is passed on
//! only with the word that `walden` says beside it for proven absence, and everything else becomes 200: PostgreSQL then
//! stops with the truth. That is why `walden` is waited for rather than become: another program of that name, a wrapper or
//! a loader that fails would answer in codes of its own.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::{self, ErrorKind, Write},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use walden_companion::{Answer, Request, Wish};

const HELP: &str = "\
Fetches one WAL segment or history file; for restore_command in postgresql.conf:

  restore_command = '/usr/bin/walden-restore %f %p'

Usage: walden-restore [--config FILE] [--cluster NAME] [--until SEGMENT] [--agent SOCKET] NAME DESTINATION

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

const USAGE: &str = "usage: walden-restore [--config FILE] [--cluster NAME] [--until SEGMENT] [--agent SOCKET] %f %p";
const FLAGS: [&str; 4] = ["--config", "--cluster", "--until", "--agent"];
const ABSENT: u8 = 1;
const DOUBT: u8 = 200;
/// What `walden wal fetch` says on standard output beside its status 1, and nothing else says by chance.
const SAYS_ABSENT: &[u8] = b"absent\n";

fn main() -> ExitCode {
    // Rust's own code of a panic is 101: "there is no such file".
    let code = std::panic::catch_unwind(|| run(env::args_os().skip(1)));
    ExitCode::from(code.unwrap_or(DOUBT))
}

fn run(arguments: impl Iterator<Item = OsString>) -> u8 {
    match walden_companion::parse(&FLAGS, arguments).and_then(Arguments::of) {
        Ok(Asked::Fetch(arguments)) => fetch(&arguments),
        Ok(Asked::Tell(text)) => {
            walden_companion::tell(&text);
            0
        }
        Err(what) => doubt(&what, USAGE),
    }
}

/// What the arguments ask for.
enum Asked {
    /// Fetch this file.
    Fetch(Arguments),
    /// Print this.
    Tell(String),
}

struct Arguments {
    flags: Vec<(&'static str, OsString)>,
    file: OsString,
    destination: PathBuf,
}

impl Arguments {
    fn of(wish: Wish) -> Result<Asked, String> {
        let (flags, names) = match wish {
            Wish::Help => return Ok(Asked::Tell(HELP.into())),
            Wish::Version => return Ok(Asked::Tell(format!("walden-restore {}\n", env!("CARGO_PKG_VERSION")))),
            Wish::Work(flags, names) => (flags, names),
        };
        let needed =
            |names: Vec<_>| format!("{} arguments, where the file's name and its destination are needed", names.len());
        let [file, destination] = <[OsString; 2]>::try_from(names).map_err(needed)?;
        Ok(Asked::Fetch(Self { flags, file, destination: destination.into() }))
    }

    fn value(&self, flag: &str) -> Option<OsString> {
        walden_companion::value(&self.flags, flag)
    }
}

fn fetch(arguments: &Arguments) -> u8 {
    match ask(arguments) {
        Some(Answer { status: 0, text }) if take(Path::new(OsStr::from_bytes(&text)), &arguments.destination) => 0,
        Some(Answer { status: status @ (ABSENT | DOUBT), text }) => {
            _ = io::stderr().write_all(&text);
            status
        }
        _ => fetch_by_walden(arguments),
    }
}

fn ask(arguments: &Arguments) -> Option<Answer> {
    let request = Request {
        verb: "fetch".into(),
        cwd: env::current_dir().ok()?,
        config: walden_companion::configuration(arguments.value("--config")),
        cluster: arguments.value("--cluster"),
        path: arguments.destination.clone(),
        file: Some(arguments.file.clone()),
        until: arguments.value("--until"),
        environment: walden_companion::environment(),
    };
    walden_companion::ask(&walden_companion::socket(arguments.value("--agent")), &request)
}

/// Puts the agent's file to its destination; whether that went well. On another file system it is copied.
fn take(file: &Path, destination: &Path) -> bool {
    let folder = destination.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let put = match fs::rename(file, destination) {
        Err(error) if error.kind() == ErrorKind::CrossesDevices => {
            // PostgreSQL itself removes files of such names when it starts.
            let temporary = folder.join(format!("xlogtemp.walden.{}", std::process::id()));
            let copied = fs::copy(file, &temporary).and_then(|_| File::open(&temporary)?.sync_all());
            let put = copied.and_then(|()| fs::rename(&temporary, destination));
            // The agent removes its own.
            put.inspect_err(|_| _ = fs::remove_file(&temporary))
        }
        renamed => renamed,
    };
    // PostgreSQL itself makes this one durable under the name that it keeps.
    let by_postgres = destination.file_name().is_some_and(|name| name == "RECOVERYXLOG");
    put.and_then(|()| if by_postgres { Ok(()) } else { File::open(folder)?.sync_all() }).is_ok()
}

fn fetch_by_walden(arguments: &Arguments) -> u8 {
    let walden = walden_companion::companion("walden");
    let mut command = Command::new(&walden);
    command.args(["wal", "fetch", "--no-local-config"]);
    for (flag, value) in arguments.flags.iter().filter(|(flag, _)| *flag != "--agent") {
        command.args([OsStr::new(flag), value]);
    }
    command.arg("--").arg(&arguments.file).arg(&arguments.destination);
    match command.stderr(Stdio::inherit()).output() {
        Ok(output) => match output.status.code() {
            // PostgreSQL would take a file that is not there for the end of the log.
            Some(0) if arguments.destination.is_file() => 0,
            Some(1) if output.stdout == SAYS_ABSENT => ABSENT,
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
