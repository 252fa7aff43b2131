//! `walden backup`.

use std::path::PathBuf;

use super::{Context, Paint, exit::End, sync};
use crate::{
    backup::{self, BackupOutcome, BackupRequest, Surroundings, Way},
    config::Override,
    error::{Error, Result},
    human, mirror, pace,
    repository::System,
};

/// The arguments.
#[derive(Debug, Default, clap::Args)]
pub struct Args {
    /// Ask the server for its files over the replication protocol. Needs a role with REPLICATION, a line for the
    /// database "replication" in its pg_hba.conf, and no access to its host
    #[arg(long)]
    remote: bool,
    /// The most bytes to read in a second, such as 50MB; the configuration's [backup] rate_limit otherwise
    #[arg(long, value_name = "SIZE")]
    rate_limit: Option<String>,
    /// Keep it whatever the rules of retention say, until walden unpin
    #[arg(long)]
    pin: bool,
    /// What to call it, for people
    #[arg(long, value_name = "TEXT")]
    label: Option<String>,
}

pub async fn run(args: &Args, context: &Context) -> Result<End> {
    tell(&take(args, context).await?, context)
}

/// Takes a backup.
pub async fn take(args: &Args, context: &Context) -> Result<BackupOutcome> {
    let config = context.load(rate_limit("backup", args.rate_limit.as_ref()).as_slice())?;
    let (label, cluster) = (args.label.clone(), config.cluster(context.global.cluster.as_deref())?);
    if label.as_ref().is_some_and(|l| l.chars().any(char::is_control) || l.len() > 200) {
        return Err(Error::invalid("a label is one line of at most 200 bytes"));
    }
    let request = BackupRequest {
        label,
        way: match args.remote {
            true => Way::Remote,
            false => Way::Local(cluster.pgdata().map_err(without_files)?.to_path_buf()),
        },
        conninfo: cluster.connection()?.reveal().parse()?,
        primary: cluster.primary.as_ref().map(|c| c.reveal().parse()).transpose()?,
        incarnation: cluster.incarnation,
        parallel: config.backup.parallel,
        level: config.backup.compression,
        rate_limit: config.backup.rate_limit,
        wal_summaries: config.backup.wal_summaries,
        exclude: config.backup.exclude.iter().map(PathBuf::from).collect(),
        files: config.backup.files.clone(),
        archive_timeout: config.archive.timeout,
        keep_copies: (!config.encryption.recipients.is_empty()).then(|| config.archive.state_dir.clone()),
    };
    for why in pace::lower(config.backup.nice, config.backup.io_priority) {
        tracing::warn!("{why}");
    }
    let around = Surroundings {
        clock: context.clock.clone(),
        random: context.random.clone(),
        progress: context.progress(),
        interrupt: context.interrupt(),
    };
    let store = context.store().await?;
    let outcome = backup::backup(store.clone(), &cluster.name, &request, &around).await;
    around.progress.finish();
    let outcome = outcome?;
    if args.pin {
        let system = System::open(store.clone(), &cluster.name, outcome.document.incarnation).await?;
        system.pin(outcome.document.id, context.clock.now()).await?;
    }
    for mirror in mirror::configured(&config, &context.random) {
        match sync::bring_up(&mirror, &store, &cluster, &config, context).await {
            Ok(done) => sync::tell(&mirror, &done, context),
            // The backup exists. What is missing elsewhere is copied when that is there again.
            Err(error) => context.output.remark(format_args!(
                "{} the backup is in the first repository alone: {error}; {} catches up later",
                context.output.paint(Paint::Warning, "warning:"),
                mirror.name
            )),
        }
    }
    Ok(outcome)
}

/// What `--rate-limit` sets in that table.
pub fn rate_limit(table: &'static str, value: Option<&String>) -> Option<Override> {
    let value = value?.clone();
    Some(Override { flag: "--rate-limit", table, cluster: None, name: "rate_limit", value })
}

/// A backup host has no data directory.
fn without_files(error: Error) -> Error {
    let hint = error.hint_text().unwrap_or_default().to_owned();
    error.hint(format!("{hint}; on another host than the server's: walden backup --remote"))
}

fn tell(outcome: &BackupOutcome, context: &Context) -> Result<End> {
    let (out, document) = (&context.output, &outcome.document);
    for skipped in &outcome.skipped {
        out.remark(format_args!("left out: {skipped}"));
    }
    for unnamed in &outcome.unnamed {
        out.remark(format_args!("{} {unnamed}", out.paint(Paint::Warning, "warning:")));
    }
    for note in &outcome.notes {
        out.remark(format_args!("note: {note}"));
    }
    for bad in &document.bad_pages {
        out.remark(format_args!(
            "{} page {} of {} has a wrong checksum",
            out.paint(Paint::Bad, "damaged:"),
            bad.block,
            bad.path
        ));
    }
    if out.json {
        out.document(document);
    } else {
        let seconds = (document.stopped - document.started).to_std().unwrap_or_default();
        out.remark(format_args!(
            "{} in {} files, {} added to the repository, in {}; consistent at {} on timeline {}",
            human::size(document.size),
            document.files,
            human::size(document.stored),
            human::duration(seconds),
            document.stop_lsn,
            document.timeline,
        ));
        if let Some(extra) = &document.extra {
            let size = human::size(extra.size);
            out.remark(format_args!("{} files from outside the data directory are saved with it, {size}", extra.files));
        }
        out.line(document.id);
    }
    Ok(if document.bad_pages.is_empty() { End::Done } else { End::DamageFound })
}
