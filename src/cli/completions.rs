//! `walden completions SHELL`.

use super::{Context, exit::End};
use crate::error::Result;

/// The arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The shell to print for
    shell: clap_complete::Shell,
}

pub fn run(args: &Args, context: &Context) -> Result<End> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::command(), "walden", &mut script);
    context.output.raw(&script);
    Ok(End::Done)
}
