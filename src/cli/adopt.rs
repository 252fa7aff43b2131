//! `walden adopt`.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::{Context, Paint, backup, exit::End, plan, programs, restore::user};
use crate::{
    error::{Error, Result},
    restore::{self, AdoptRequest, Adopted},
};

/// The arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The data directory of the copy, which runs and has left recovery
    #[arg(long, value_name = "DIR")]
    pgdata: PathBuf,
    /// Do not take a backup
    #[arg(long)]
    no_backup: bool,
}

pub async fn run(args: &Args, context: &Context) -> Result<End> {
    let (config, cluster) = (context.config()?, context.cluster()?);
    let pgdata = std::fs::canonicalize(&args.pgdata).map_err(|e| Error::io("find", &args.pgdata, e))?;
    let request = AdoptRequest {
        pgdata: pgdata.clone(),
        user: user(context),
        incarnation: cluster.incarnation,
        level: config.archive.compression.fast,
        archive_command: programs::archive_command(config, &cluster.name)?,
        timeout: config.archive.timeout,
    };
    let adopted = restore::adopt(context.store().await?, &cluster.name, &request, &context.interrupt()).await?;
    if !context.output.json {
        tell(&adopted, &pgdata, context);
    }
    let is_configured = cluster.pgdata().ok().and_then(|p| p.canonicalize().ok()).as_deref() == Some(&pgdata);
    let taken = match (is_configured, args.no_backup) {
        (true, false) => Some(backup::take(&backup::Args::default(), context).await?.document),
        _ => None,
    };
    if context.output.json {
        context.output.document(&json!({ "adopted": adopted, "backup": taken }));
    } else if let Some(backup) = &taken {
        context.output.line(format_args!("backup {}: the window of the new timeline opens there", backup.id));
    } else if is_configured {
        context.output.line("take a backup, which opens the window of the new timeline: walden backup");
    } else {
        let name = &cluster.name;
        context.output.line(format_args!(
            "set pgdata = \"{}\" and connection under [cluster.{name}], then open the window of the new timeline: walden backup",
            pgdata.display()
        ));
    }
    let whole = adopted.missing.is_empty() && adopted.proof.is_some();
    Ok(if whole { End::Done } else { End::NeedsPerson })
}

fn tell(adopted: &Adopted, pgdata: &Path, context: &Context) {
    let out = &context.output;
    out.line(format_args!(
        "{} {}: timeline {} from {} on is in the archive ({} files were held back)",
        out.paint(Paint::Good, "adopted"),
        pgdata.display(),
        adopted.timeline,
        adopted.switch,
        adopted.pushed
    ));
    if let (Some(first), Some(last)) = (adopted.missing.first(), adopted.missing.last()) {
        plan::warn(
            &format!(
                "{} segments are gone, {first} to {last}: no instant between them and the next backup can be recovered",
                adopted.missing.len()
            ),
            out,
        );
    }
    match adopted.proof {
        Some(name) => out.line(format_args!("the server archives by itself again: {name} has arrived")),
        None => plan::warn("no segment has arrived since; the server's log says why archive_command fails", out),
    }
    out.flush();
}
