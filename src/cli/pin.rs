//! `walden pin` and `walden unpin`.

use serde_json::json;

use super::{Context, exit::End};
use crate::{error::Result, keep, repository::BackupId};

/// The arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The backup, as walden list shows it
    #[arg(value_name = "ID")]
    backup: BackupId,
}

/// Keeps a backup until that is taken back.
pub async fn pin(args: &Args, context: &Context) -> Result<End> {
    let (cluster, store) = (context.cluster()?, context.store().await?);
    let system = keep::system_of(&store, &cluster.name, args.backup).await?;
    let new = system.pin(args.backup, context.clock.now()).await?;
    tell(args.backup, true, new, context);
    Ok(End::Done)
}

/// Lets the rules decide about a backup again.
pub async fn unpin(args: &Args, context: &Context) -> Result<End> {
    let (cluster, store) = (context.cluster()?, context.store().await?);
    let system = keep::system_of(&store, &cluster.name, args.backup).await?;
    let new = system.unpin(args.backup).await?;
    tell(args.backup, false, new, context);
    Ok(End::Done)
}

fn tell(backup: BackupId, pinned: bool, new: bool, context: &Context) {
    let out = &context.output;
    if out.json {
        return out.document(&json!({ "backup": backup, "pinned": pinned, "changed": new }));
    }
    out.line(match (pinned, new) {
        (true, true) => format!("backup {backup} stays until walden unpin {backup}"),
        (true, false) => format!("backup {backup} was pinned before"),
        (false, true) => format!("backup {backup} stays as long as the rules of [keep] say"),
        (false, false) => format!("backup {backup} was not pinned"),
    });
}
