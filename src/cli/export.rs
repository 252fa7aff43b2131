//! `walden export`.

use std::path::PathBuf;

use super::{Context, exit::End, plan::watch};
use crate::{
    error::{Error, Result},
    human,
    repository::{
        BackupId, System,
        hold::{Held, Hold},
    },
    restore,
};

/// The arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The backup, as walden list shows it
    #[arg(long, value_name = "ID")]
    backup: BackupId,
    /// The folder to write to; it must be absent or empty
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
}

pub async fn run(args: &Args, context: &Context) -> Result<End> {
    let (cluster, store) = (context.cluster()?, context.reading().await?);
    let parallel = context.config()?.backup.parallel;
    let mut found = None;
    for system in System::all(&store, &cluster.name).await? {
        let (backups, damaged) = system.readable_backups().await?;
        if let Some((_, error)) = damaged.into_iter().find(|(id, _)| *id == args.backup) {
            return Err(error);
        }
        if let Some(backup) = backups.into_iter().find(|backup| backup.id == args.backup) {
            found = Some((system, backup));
        }
    }
    let (system, backup) = found.ok_or_else(|| {
        Error::not_found(format!("there is no backup {} of cluster {}", args.backup, cluster.name))
            .hint("walden list shows the backups")
    })?;
    let mut backups = backup.references.clone();
    backups.push(backup.id);
    let wal = vec![(backup.first_segment, backup.last_segment)];
    let held = Held { work: "export".into(), backups, wal };
    let mut hold = Hold::take(&system, held, context.clock.clone(), &context.random).await;
    let watch = watch(context);
    let work = restore::export(&system, &backup, &args.to, parallel, &watch);
    let exported = match &mut hold {
        Some(hold) => hold.during(work).await,
        None => work.await,
    };
    if let Some(hold) = hold {
        hold.release().await;
    }
    let exported = exported?;
    let out = &context.output;
    if out.json {
        out.document(&exported);
    } else {
        let (to, files, size) = (exported.to.display(), exported.written.join(", "), human::size(exported.bytes));
        out.line(format_args!("{to}: {files}; {size}"));
    }
    Ok(End::Done)
}
