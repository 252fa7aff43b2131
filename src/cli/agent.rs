//! `walden agent`.

use super::{
    Context,
    exit::{Codes, End},
};
use crate::{agent::Agent, error::Result};

/// The arguments.
#[derive(Debug, clap::Args)]
pub struct Args {}

pub async fn run(_: &Args, context: &Context) -> Result<End> {
    let agent = Agent {
        config: context.config()?.clone(),
        clock: context.clock.clone(),
        random: context.random.clone(),
        push_status: |kind| Codes::Push.of_error(kind),
        fetch_status: |kind| Codes::Fetch.of_error(kind),
    };
    agent.run(context.interrupt()).await?;
    Ok(End::Done)
}
