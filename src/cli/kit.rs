//! `walden kit`.

mod export;
mod key;
mod print;
mod stored;

use std::{
    io::Read as _,
    path::{Path, PathBuf},
};

use serde_json::json;

use self::{key::Unlock, stored::Place};
use super::{Context, Paint, exit::End};
use crate::{
    error::{Error, Result},
    human,
    kit::{self, Deed, How, Locked, Manifest, Opened, Owner, Step, Target, envelope, page::Sheet},
};

/// The arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Write a kit: the configuration, the addresses, and if asked the secrets
    Export(export::Args),
    /// Open a kit and tell what is in it, without its secrets
    Show(Show),
    /// Put what is in a kit onto this host
    Import(Import),
    /// The kits that are stored in the repository, the newest first
    List(stored::List),
    /// Get a kit that is stored in the repository, as the file that it is
    Fetch(stored::Fetch),
}

/// A kit that is at hand, or stored in a repository.
#[derive(Debug, clap::Args)]
struct Given {
    /// The kit, or the text of its printed page; - is standard input. With --from what walden kit list calls it
    /// [default: the newest]
    #[arg(required_unless_present = "from")]
    kit: Option<PathBuf>,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    unlock: Unlock,
}

/// The arguments of `walden kit show`.
#[derive(Debug, clap::Args)]
struct Show {
    #[command(flatten)]
    given: Given,
    /// Print it: text to FILE or to standard output (-); a page with QR codes where FILE ends in .html
    #[arg(long, value_name = "FILE")]
    print: Option<PathBuf>,
}

/// The arguments of `walden kit import`.
#[derive(Debug, clap::Args)]
struct Import {
    #[command(flatten)]
    given: Given,
    /// The folder to write into [default: that of --config, else of $WALDEN_CONFIG, else /etc/walden]
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
    /// Replace files that are there; the old ones are kept beside, with the time in their names
    #[arg(long)]
    overwrite: bool,
    /// Add to files that are there what only the kit has; contradictions are refused
    #[arg(long, conflicts_with = "overwrite")]
    merge: bool,
    /// Who is to own the secrets [default: the user that archived on the kit's host]
    #[arg(long, value_name = "USER")]
    owner: Option<String>,
    /// Tell what would be done, and change nothing
    #[arg(long)]
    dry_run: bool,
}

pub async fn run(args: &Args, context: &Context) -> Result<End> {
    match &args.command {
        Command::Export(args) => export::run(args, context).await,
        Command::Show(args) => show(args, context).await,
        Command::Import(args) => import(args, context).await,
        Command::List(args) => stored::list(args, context).await,
        Command::Fetch(args) => stored::fetch(args, context).await,
    }
}

impl Args {
    /// Whether it reads the repository and nothing else.
    pub fn reads(&self) -> bool {
        matches!(self.command, Command::List(_) | Command::Fetch(_))
    }
}

async fn show(args: &Show, context: &Context) -> Result<End> {
    let bytes = args.given.read(context).await?;
    let Opened { contents, locked } = args.given.open(&bytes, context).await?;
    let manifest = &contents.manifest;
    if let Some(to) = &args.print {
        print::print(&Sheet { manifest, locked, bytes: &bytes }, to, context)?;
        return Ok(End::Done);
    }
    if context.output.json {
        context.output.document(&json!({ "locked": word(locked), "manifest": manifest }));
    } else {
        tell(manifest, locked, context);
    }
    Ok(End::Done)
}

async fn import(args: &Import, context: &Context) -> Result<End> {
    let target = target(args, context)?;
    let opened = args.given.open(&args.given.read(context).await?, context).await?;
    let how = match (args.overwrite, args.merge) {
        (true, _) => How::Overwrite,
        (_, true) => How::Merge,
        _ => How::Untouched,
    };
    let manifest = &opened.contents.manifest;
    let (owner, remark) = Owner::choose(args.owner.as_deref(), &manifest.account)?;
    let steps = kit::plan(&opened.contents, &target, how, context.clock.now())?;
    if !args.dry_run {
        kit::carry_out(&steps, &owner, &mut || Ok(()))?;
    }
    let out = &context.output;
    if out.json {
        out.document(
            &json!({ "dry_run": args.dry_run, "files": steps, "missing": manifest.missing, "manifest": manifest }),
        );
        return Ok(End::Done);
    }
    for step in &steps {
        out.line(sentence(step));
    }
    if let Some(remark) = remark.filter(|_| opened.contents.is_secret()) {
        out.remark(format_args!("{} {remark}", out.paint(Paint::Warning, "note:")));
    }
    tell_missing(manifest, context);
    if args.dry_run {
        out.remark("nothing was changed: this was a dry run");
    } else {
        let config =
            if target == Target::system()? { String::new() } else { format!(" --config {}", target.path().display()) };
        let cluster = if manifest.clusters.len() > 1 { " --cluster NAME" } else { "" };
        out.remark(format_args!("next:  walden{config}{cluster} restore --to latest --pgdata DIR --start"));
    }
    Ok(End::Done)
}

fn target(args: &Import, context: &Context) -> Result<Target> {
    let variable = std::env::var_os("WALDEN_CONFIG").filter(|value| !value.is_empty()).map(PathBuf::from);
    match (&args.to, &context.global.config) {
        (Some(_), Some(_)) => {
            Err(Error::invalid("--to and --config both say where to write").hint("leave one of them out"))
        }
        (Some(folder), None) => Target::folder(folder),
        (None, Some(file)) => Target::configuration(file),
        (None, None) => variable.map_or_else(Target::system, |file| Target::configuration(&file)),
    }
}

impl Given {
    /// Its bytes, wherever they are.
    async fn read(&self, context: &Context) -> Result<Vec<u8>> {
        match (&self.kit, &self.place.from) {
            (Some(file), None) => read(file),
            (wanted, _) => self.place.take(wanted.as_deref(), context).await,
        }
    }

    async fn open(&self, bytes: &[u8], context: &Context) -> Result<Opened> {
        let key = self.unlock.key(envelope::locked(bytes)?, context).await?;
        envelope::open(bytes, &key)
    }
}

/// The bytes of a kit in a file, in whatever form it is given.
fn read(file: &Path) -> Result<Vec<u8>> {
    let given = if file == Path::new("-") {
        let mut bytes = Vec::new();
        let most = 8 * envelope::LIMIT as u64;
        std::io::stdin()
            .take(most)
            .read_to_end(&mut bytes)
            .map(|_| bytes)
            .map_err(|e| Error::failed("read the kit").source(e))
    } else {
        match std::fs::metadata(file) {
            Ok(found) if found.len() > 8 * envelope::LIMIT as u64 => {
                return Err(Error::invalid(format!("{} is too long to be a recovery kit", file.display())));
            }
            _ => std::fs::read(file).map_err(|e| Error::io("read the kit", file, e)),
        }
    };
    envelope::bytes_of(given?).map_err(|e| e.context(file.display()))
}

fn word(locked: Locked) -> &'static str {
    match locked {
        Locked::Open => "open",
        Locked::Passphrase => "passphrase",
        Locked::Recipients => "recipients",
    }
}

fn sentence(step: &Step) -> String {
    let path = step.path.display();
    match &step.deed {
        Deed::Write => format!("write    {path}"),
        Deed::Keep => format!("keep     {path}: it is there already"),
        Deed::Replace { kept } => format!("replace  {path}; the old one is kept as {}", kept.display()),
        Deed::Merge { added, kept } => {
            format!("merge    {path}: {} added; the old one is kept as {}", added.join(", "), kept.display())
        }
    }
}

fn tell(manifest: &Manifest, locked: Locked, context: &Context) {
    let out = &context.output;
    let row = |name: &str, text: &str| out.line(format_args!("{name:<14}{text}"));
    row("made", &format!("{} on {} by Walden {}", human::exact_time(manifest.made), manifest.host, manifest.walden));
    row(
        "locked",
        match locked {
            Locked::Open => "no: it holds no secret",
            Locked::Passphrase => "with a passphrase",
            Locked::Recipients => "to recipients",
        },
    );
    for repository in &manifest.repositories {
        let at = repository.endpoint.as_ref().map(|endpoint| format!(" at {endpoint}")).unwrap_or_default();
        row("repository", &format!("{} ({}){at}", repository.url, repository.name));
    }
    row("clusters", &manifest.clusters.join(", "));
    manifest.recipients.iter().for_each(|recipient| row("recipient", recipient));
    row("identity", if manifest.identity { "is in it" } else { "is not in it" });
    row("credentials", if manifest.credentials { "are in it" } else { "are not in it" });
    for member in &manifest.members {
        let secret = if member.secret { ", secret" } else { "" };
        row("file", &format!("{} ({} bytes{secret}), SHA-256 {}", member.name, member.bytes, member.sha256));
    }
    tell_missing(manifest, context);
}

/// What a person has to fill in.
fn tell_missing(manifest: &Manifest, context: &Context) {
    let out = &context.output;
    for missing in &manifest.missing {
        let label = out.paint(Paint::Warning, "fill in:");
        out.line(format_args!("{label} {}: {} ({})", missing.file, missing.key, missing.what));
    }
}
