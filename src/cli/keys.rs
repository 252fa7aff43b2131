//! `walden keys`: to whom the repository is encrypted.

mod recipients;
mod rewrap;

use std::path::PathBuf;

use serde_json::json;

use super::{Context, Paint, exit::End};
use crate::{
    error::{Error, Result},
    keys,
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
    let old = match (replaced, edit.recipients.as_slice()) {
        (Some(old), all) if all.iter().any(|known| known == old) => old.to_owned(),
        (Some(old), _) => return Err(recipients::stranger(old, &edit.recipients)),
        (None, [one]) => one.clone(),
        (None, []) => {
            return Err(Error::invalid("nothing is encrypted: there is no recipient to take the place of")
                .hint("begin with: walden keys generate, then walden keys add RECIPIENT"));
        }
        (None, all) => {
            return Err(Error::invalid("there are several recipients")
                .hint(format!("choose which one goes with --replace: {}", all.join(", "))));
        }
    };
    let recipient = keys::write_new(output, context.clock.now())?;
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

/// What a new identity is worth, and where it belongs.
fn tell_where_to_keep(output: &std::path::Path, context: &Context) {
    let out = &context.output;
    out.remark(format_args!(
        "{} holds the identity: without it nothing that is encrypted to it can ever be read. Keep it in two places, \
         neither of them the repository, and take it off the host that backs up: that one needs the recipient alone",
        out.paint(Paint::Strong, output.display())
    ));
}
