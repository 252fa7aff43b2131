//! `walden keys`: to whom the repository is encrypted.

mod recipients;
mod rewrap;

use std::path::{Path, PathBuf};

use serde_json::json;

use super::{Context, Paint, exit::End};
use crate::{
    error::{Error, Result},
    keys::{self, Rotation},
};

/// The arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Make an identity: its file, which opens what is encrypted to it, and its recipient, which is printed
    Generate {
        /// The file, which must not be there
        #[arg(long, value_name = "FILE", default_value = DEFAULT)]
        output: PathBuf,
    },
    /// Encrypt new objects to this recipient as well: walden.toml is changed
    Add {
        /// The recipient: age1...
        recipient: String,
    },
    /// Encrypt new objects to this recipient no longer: walden.toml is changed. Old ones stay as they are: keys rewrap
    Remove {
        /// The recipient: age1...
        recipient: String,
        /// Though it is the last one, so that nothing is encrypted any more
        #[arg(long)]
        last: bool,
    },
    /// The recipients, and what the identity on this host opens
    List {
        /// Read the header of every object, and tell how many are for whom
        #[arg(long)]
        objects: bool,
    },
    /// Make a new identity that takes the place of an old one for new objects: walden.toml is changed
    Rotate {
        /// The recipient that it takes the place of; may be left out when there is one
        #[arg(long, value_name = "RECIPIENT")]
        replace: Option<String>,
        /// The file of the new identity, which must not be there
        #[arg(long, value_name = "FILE", default_value = DEFAULT)]
        output: PathBuf,
    },
    /// Have old objects be for the recipients of walden.toml and nobody else, in every repository. Needs an identity
    /// that opens them. Can be stopped and run again
    Rewrap(rewrap::Args),
}

/// Where a new identity is written to.
const DEFAULT: &str = "walden-identity.txt";

pub async fn run(args: &Args, context: &Context) -> Result<End> {
    match &args.command {
        Command::Generate { output } => generate(output, context),
        Command::Add { recipient } => recipients::add(recipient, context),
        Command::Remove { recipient, last } => recipients::remove(recipient, *last, context),
        Command::List { objects } => recipients::list(*objects, context).await,
        Command::Rotate { replace, output } => rotate(replace.as_deref(), output, context),
        Command::Rewrap(args) => rewrap::run(args, context).await,
    }
}

fn generate(output: &PathBuf, context: &Context) -> Result<End> {
    let recipient = keys::write_new(output, context.clock.now())?;
    tell_where_to_keep(output, context);
    let out = &context.output;
    out.remark(format_args!("to encrypt to it: walden keys add {recipient}"));
    if out.json {
        out.document(&json!({ "identity_file": output, "recipient": recipient }));
    } else {
        out.line(recipient);
    }
    Ok(End::Done)
}

fn rotate(replaced: Option<&str>, output: &PathBuf, context: &Context) -> Result<End> {
    let edit = recipients::Edit::begin(context)?;
    let Rotation { recipient, replaced: old } = match begun(replaced, output, &edit.recipients)? {
        Some(begun) => {
            context.output.remark(format_args!("{}: the rotation that was interrupted goes on", output.display()));
            begun
        }
        None => Rotation::begin(output, &to_replace(replaced, &edit.recipients)?, context.clock.now())?,
    };
    let new =
        edit.recipients.iter().map(|known| if *known == old { recipient.clone() } else { known.clone() }).collect();
    let file = edit.finish(new, context)?;
    tell_where_to_keep(output, context);
    let out = &context.output;
    out.remark(format_args!(
        "{} new objects are encrypted to it instead of {old}; change every other host's walden.toml as well",
        out.paint(Paint::Strong, format_args!("{}:", file.display()))
    ));
    out.remark(format_args!(
        "keep the old identity: it alone opens what was stored before, until walden keys rewrap, on a host that has it, \
         has gone through all repositories"
    ));
    if out.json {
        out.document(&json!({ "identity_file": output, "recipient": recipient, "replaced": old }));
    } else {
        out.line(recipient);
    }
    Ok(End::Done)
}

/// The rotation that this very command began, and that was interrupted before walden.toml named the new recipient.
fn begun(replaced: Option<&str>, output: &Path, recipients: &[String]) -> Result<Option<Rotation>> {
    let is_one = |recipient: &str| recipients.iter().any(|known| known == recipient);
    Ok(match Rotation::begun(output)? {
        Some(begun) if is_one(&begun.recipient) && !is_one(&begun.replaced) => {
            return Err(Error::refused(format!(
                "that rotation is done: {} holds the identity that took the place of {}",
                output.display(),
                begun.replaced
            ))
            .hint("for another one name another file with --output"));
        }
        begun => begun.filter(|begun| {
            is_one(&begun.replaced) && !is_one(&begun.recipient) && replaced.is_none_or(|old| old == begun.replaced)
        }),
    })
}

/// The recipient whose place is taken.
fn to_replace(replaced: Option<&str>, recipients: &[String]) -> Result<String> {
    Ok(match (replaced, recipients) {
        (Some(old), all) if all.iter().any(|known| known == old) => old.to_owned(),
        (Some(old), _) => return Err(recipients::stranger(old, recipients)),
        (None, [one]) => one.clone(),
        (None, []) => {
            return Err(Error::invalid("nothing is encrypted: there is no recipient to take the place of")
                .hint("begin with: walden keys generate, then walden keys add RECIPIENT"));
        }
        (None, all) => {
            return Err(Error::invalid("there are several recipients")
                .hint(format!("choose which one goes with --replace: {}", all.join(", "))));
        }
    })
}

/// What a new identity is worth, and where it belongs.
fn tell_where_to_keep(output: &Path, context: &Context) {
    let out = &context.output;
    out.remark(format_args!(
        "{} holds the identity: without it nothing that is encrypted to it can ever be read. Keep it in two places, \
         neither of them the repository, and take it off the host that backs up: that one needs the recipient alone",
        out.paint(Paint::Strong, output.display())
    ));
}
