//! The command line: arguments in, calls down, words and tables out. No logic.
//!
//! One file a subcommand, each with its arguments (`Args`) and `run`. To add one: `mod name;`, a variant of
//! [`Command`] and its line in `dispatch`. What every subcommand needs (configuration, clock, output) comes in the
//! [`Context`]; what its end means as an exit status is settled in [`exit`]. An error is returned, and told once, here.

mod adopt;
mod agent;
mod backup;
mod check;
mod compact;
mod completions;
mod config;
mod context;
mod demo;
mod events;
pub mod exit;
mod expire;
mod export;
mod find;
mod init;
mod keys;
mod kit;
mod list;
mod man;
mod output;
mod pin;
mod plan;
mod programs;
mod progress;
mod restore;
mod status;
mod sync;
mod table;
mod timeline;
mod verify;
mod wal;

use std::{ffi::OsString, path::PathBuf, sync::Arc, time::Duration};

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};
use tokio::sync::oneshot;

use self::exit::{Codes, End};
pub use self::{
    context::Context,
    output::{Output, Paint},
    table::{Align, Table},
};
use crate::{
    error::{Error, Result},
    interrupt::{Interrupt, Interrupter},
    repository::RepositoryName,
    store::s3,
};

/// PostgreSQL continuous archiving and point-in-time recovery.
#[derive(Debug, Parser)]
#[command(
    name = "walden",
    version,
    propagate_version = true,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// The flags that every subcommand takes.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// The configuration file [default: $WALDEN_CONFIG, ./walden.toml, /etc/walden/walden.toml]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The cluster; may be left out when the configuration names one
    #[arg(long, global = true, value_name = "NAME")]
    pub cluster: Option<String>,
    /// Read from this repository alone: the name of [repository.NAME], or first. For commands that read
    #[arg(long, global = true, value_name = "NAME")]
    pub repository: Option<RepositoryName>,
    /// Print one JSON document on standard output
    #[arg(long, global = true)]
    pub json: bool,
    /// Log more; may be repeated
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Print the answer and errors only
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// How logs are written to standard error
    #[arg(long, global = true, value_enum, value_name = "FORMAT", default_value_t)]
    pub log_format: LogFormat,
    /// When to use colours
    #[arg(long, global = true, value_enum, value_name = "WHEN", default_value_t)]
    pub color: Color,
    /// Do not look for ./walden.toml: PostgreSQL's working directory is the data directory
    #[arg(long, global = true, hide = true)]
    pub no_local_config: bool,
}

/// The flags of [`Global`] that are followed by a value: needed to find the subcommand in bare arguments.
const VALUE_FLAGS: [&str; 5] = ["--config", "--cluster", "--repository", "--log-format", "--color"];

/// How logs are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// When colours are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless `NO_COLOR` is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// What can be asked of Walden, in the order of the help.
#[derive(Debug, Subcommand)]
enum Command {
    /// Make the repository ready for a cluster, and print the lines for postgresql.conf
    Init(init::Args),
    /// Prove that archiving works: configuration, connection, rights, settings, and then end to end
    Check(check::Args),
    /// Take one complete backup; prints its id last
    Backup(backup::Args),
    /// One screen: what can be recovered, how archiving does, what needs a person
    Status(status::Args),
    /// The backups there are
    List(list::Args),
    /// Search the archived WAL: what was dropped or deleted when, and the --to that stops just before it
    Find(find::Args),
    /// The tree of timelines with backups, windows and gaps, drawn
    Timeline(timeline::Args),
    /// Show how a target would be reached; nothing is touched
    Plan(plan::Args),
    /// Recover the cluster, as it was at any instant, into a directory
    Restore(restore::Args),
    /// Make a restored copy the cluster: its WAL goes to the archive from now on
    Adopt(adopt::Args),
    /// Write a backup as pg_basebackup would have: tar files with their backup_manifest
    Export(export::Args),
    /// Prove that everything is there that the backups and the archive need, and with --deep that it is what was written
    Verify(verify::Args),
    /// Have the other repositories catch up with the first: everything is compared, what is missing is copied
    Sync(sync::Args),
    /// Remove what the configured rules do not keep; tells first what goes, and what can be recovered afterwards
    Expire(expire::Args),
    /// Write parts anew of which only a little is still needed; the next expiry removes the old ones
    Compact(compact::Args),
    /// Keep a backup whatever the rules say, until it is unpinned
    Pin(pin::Args),
    /// Let the rules decide about a backup again
    Unpin(pin::Args),
    /// Remove one backup; its WAL stays as long as the rules say
    Delete(expire::DeleteArgs),
    /// To whom the repository is encrypted: identities, recipients, and old objects for new ones
    Keys(keys::Args),
    /// The recovery kit: one file with what is needed when the machine is gone
    Kit(kit::Args),
    /// The archive by hand
    Wal(wal::Args),
    /// Serve this host's servers: ship WAL over warm connections, and before PostgreSQL asks; runs until it is stopped
    Agent(agent::Args),
    /// Watch a table be dropped by mistake and come back, on a server of the demo's own
    Demo(demo::Args),
    /// Show the configuration that holds and where each value came from
    Config(config::Args),
    /// Print a shell's completion script
    Completions(completions::Args),
    /// Write the manual pages
    Man(man::Args),
}

impl Command {
    /// An error where one repository is chosen for what writes: that goes where the configuration says.
    fn prove_reads(&self, chosen: Option<&RepositoryName>) -> Result<()> {
        let reads = match self {
            Self::Status(_) | Self::List(_) | Self::Find(_) | Self::Timeline(_) | Self::Plan(_) => true,
            Self::Restore(_) | Self::Export(_) | Self::Verify(_) => true,
            Self::Wal(args) => args.reads(),
            Self::Kit(args) => args.reads(),
            _ => false,
        };
        if reads || chosen.is_none() {
            return Ok(());
        }
        Err(Error::invalid("--repository is for commands that read")
            .hint("leave it out: what writes goes to the repositories of the configuration"))
    }
}

async fn dispatch(command: Command, context: &Context) -> Result<End> {
    command.prove_reads(context.global.repository.as_ref())?;
    match command {
        Command::Init(args) => init::run(&args, context).await,
        Command::Check(args) => check::run(&args, context).await,
        Command::Backup(args) => backup::run(&args, context).await,
        Command::Status(args) => status::run(&args, context).await,
        Command::List(args) => list::run(&args, context).await,
        Command::Find(args) => find::run(&args, context).await,
        Command::Timeline(args) => timeline::run(&args, context).await,
        Command::Plan(args) => plan::run(&args, context).await,
        Command::Restore(args) => restore::run(&args, context).await,
        Command::Adopt(args) => adopt::run(&args, context).await,
        Command::Export(args) => export::run(&args, context).await,
        Command::Verify(args) => verify::run(&args, context).await,
        Command::Sync(args) => sync::run(&args, context).await,
        Command::Expire(args) => expire::run(&args, context).await,
        Command::Compact(args) => compact::run(&args, context).await,
        Command::Pin(args) => pin::pin(&args, context).await,
        Command::Unpin(args) => pin::unpin(&args, context).await,
        Command::Delete(args) => expire::delete(&args, context).await,
        Command::Keys(args) => keys::run(&args, context).await,
        Command::Kit(args) => kit::run(&args, context).await,
        Command::Wal(args) => wal::run(&args, context).await,
        Command::Agent(args) => agent::run(&args, context).await,
        Command::Demo(args) => demo::run(&args, context).await,
        Command::Config(args) => config::run(&args, context),
        Command::Completions(args) => completions::run(&args, context),
        Command::Man(args) => man::run(&args, context),
    }
}

/// How long work that heard the wish to stop is given to tidy up.
const TIDY_UP: Duration = Duration::from_secs(30);

/// How long the end of the program waits for the store to forget uploads that were given up.
const CLEAR_AWAY: Duration = Duration::from_secs(5);

/// Does what the arguments (the program's name first) ask for, tells the error if there is one, and answers with
/// the exit code.
#[must_use]
pub fn run(arguments: Vec<OsString>) -> u8 {
    let codes = Codes::of_arguments(&arguments);
    let Cli { global, command } = match parse(arguments) {
        Ok(cli) => cli,
        Err(error) => return tell_usage(&error, codes),
    };
    output::start_logging(&global);
    let as_json = global.json || global.log_format == LogFormat::Json;
    let ended = in_runtime(global, command, codes).map(|end| codes.of_end(end));
    ended.unwrap_or_else(|error| {
        output::tell_error(&error, as_json);
        codes.of_error(error.kind())
    })
}

/// Prints one line for a panic, wherever it happens. The exit code of a panic is [`Codes::of_panic`].
pub fn tell_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(|l| format!(" at {}:{}", l.file(), l.line())).unwrap_or_default();
        let what = panic.payload_as_str().unwrap_or("panic");
        output::tell_error(
            &Error::internal(format!("internal error{place}: {what}"))
                .hint("this is a bug in walden: please report it with this line"),
            false,
        );
    }));
}

/// The whole command tree, its exit codes in every help.
#[must_use]
pub fn command() -> clap::Command {
    let mut root = Cli::command();
    root.build();
    with_exit_status(root, &mut vec!["walden".into()])
}

fn with_exit_status(command: clap::Command, path: &mut Vec<OsString>) -> clap::Command {
    let command = command.after_help(Codes::of_arguments(path).help());
    command.mut_subcommands(|below| {
        path.push(below.get_name().into());
        let below = with_exit_status(below, path);
        path.pop();
        below
    })
}

fn parse(arguments: Vec<OsString>) -> Result<Cli, clap::Error> {
    let mut matches = command().try_get_matches_from(arguments)?;
    Cli::from_arg_matches_mut(&mut matches)
}

/// Prints help, the version, or what is wrong with the arguments.
fn tell_usage(error: &clap::Error, codes: Codes) -> u8 {
    if !error.use_stderr() {
        // A reader that went away has seen enough.
        _ = error.print();
        return 0;
    }
    if error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        _ = error.print();
    } else {
        let text = error.render().to_string();
        let text = text.strip_prefix("error: ").unwrap_or(&text).trim_end();
        output::tell_error(&Error::invalid(text), false);
    }
    codes.of_usage()
}

fn in_runtime(global: Global, command: Command, codes: Codes) -> Result<End> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|e| Error::failed("start the runtime").source(e))?;
    let interrupter = Arc::new(Interrupter::new());
    let ended = runtime.block_on(async {
        let dropped = watch_signals(interrupter.clone(), codes)?;
        let context = Context::new(global, interrupter);
        let work = async {
            let ended = dispatch(command, &context).await;
            context.output.finish().and(ended)
        };
        tokio::select! {
            ended = work => ended,
            Ok(()) = dropped => Err(Interrupt::error()),
        }
    });
    // What was given up is cleared away, unless the store does not answer.
    _ = runtime.block_on(async { tokio::time::timeout(CLEAR_AWAY, s3::settle()).await });
    // Blocking calls that are still under way are not waited for: everything they write is temporary.
    runtime.shutdown_background();
    ended
}

/// On SIGINT or SIGTERM asks the work to stop, or answers that it may be dropped if it does not listen. Work that
/// has not stopped in time, or at a second signal, ends with the process.
fn watch_signals(interrupter: Arc<Interrupter>, codes: Codes) -> Result<oneshot::Receiver<()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let watch = |kind| signal(kind).map_err(|e| Error::failed("watch for signals").source(e));
    let (mut int, mut term) = (watch(SignalKind::interrupt())?, watch(SignalKind::terminate())?);
    let (drop_it, dropped) = oneshot::channel();
    tokio::spawn(async move {
        let mut signalled = async || tokio::select! { _ = int.recv() => {}, _ = term.recv() => {} };
        signalled().await;
        interrupter.ask();
        if !interrupter.is_heard() {
            _ = drop_it.send(());
        }
        tokio::select! { () = signalled() => {}, () = tokio::time::sleep(TIDY_UP) => {} }
        let error = Interrupt::error();
        output::tell_error(&error, false);
        #[expect(clippy::disallowed_methods, reason = "main is stuck in a call that does not return")]
        std::process::exit(codes.of_error(error.kind()).into())
    });
    Ok(dropped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_is_sound_and_every_help_tells_the_exit_status() {
        fn each(command: &clap::Command) {
            let help = command.clone().render_long_help().to_string();
            assert!(help.contains("EXIT STATUS"), "{}", command.get_name());
            command.get_subcommands().filter(|c| c.get_name() != "help").for_each(each);
        }
        Cli::command().debug_assert();
        each(&command());
    }

    #[test]
    fn every_flag_with_a_value_is_known_before_parsing() {
        let command = Cli::command();
        let taking: Vec<String> = command
            .get_arguments()
            .filter(|a| a.is_global_set() && a.get_action().takes_values())
            .filter_map(|a| a.get_long().map(|long| format!("--{long}")))
            .collect();
        assert_eq!(taking, VALUE_FLAGS);
    }
}
