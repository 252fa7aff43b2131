//! `walden wal suspend` and `walden wal resume`.

use std::{sync::Arc, time::Duration};

use serde_json::json;

use super::super::{Context, Paint, backup, exit::End, plan::watch};
use crate::{
    archive::{Record, Suspensions},
    config,
    error::{Error, Result},
    human,
    postgres::Account,
    report::{look, status::Status},
    repository::{BackupDocument, GapNote, Suspended},
    store::Store,
};

/// How long the repository may take to tell what it has, and to be told.
const PATIENCE: Duration = Duration::from_secs(15);

/// The arguments of `suspend`.
#[derive(Debug, clap::Args)]
pub struct SuspendArgs {
    /// Why, for people: it is shown wherever the gap is
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

/// The arguments of `resume`.
#[derive(Debug, clap::Args)]
pub struct ResumeArgs {
    /// Do not take a backup: nothing behind the gap can be recovered until one is taken
    #[arg(long)]
    no_backup: bool,
}

pub async fn suspend(args: &SuspendArgs, context: &Context) -> Result<End> {
    let (config, cluster, out) = (context.config()?, context.cluster()?, &context.output);
    cluster.pgdata()?;
    let suspensions = Suspensions::of(config, &cluster)?;
    if args.reason.as_ref().is_some_and(|r| r.chars().any(char::is_control) || r.len() > 200 || r.trim().is_empty()) {
        return Err(Error::invalid("a reason is one line of at most 200 bytes"));
    }
    if let Some(record) = suspensions.current()? {
        return Ok(told(&record, false, context));
    }
    let store = config::open_store(config.repository()?, context.random.clone());
    let status = look::status(config, &cluster, store, Some(PATIENCE), &*context.clock, &watch(context)).await?;
    warn(&status, context);
    if !args.yes && !out.confirm("Suspend archiving?", "--yes").await? {
        out.remark("nothing was done");
        return Ok(End::NeedsPerson);
    }
    let suspended = Suspended {
        id: context.random.name(),
        reason: args.reason.clone(),
        who: who(),
        host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        suspended: context.clock.now(),
        resumed: None,
    };
    let (record, new) = suspensions.begin(suspended, status.lag.durable_lsn)?;
    let end = told(&record, new, context);
    out.flush();
    settle(&suspensions, context).await;
    Ok(end)
}

/// The person, as far as the system tells.
fn who() -> String {
    let own = Account::own().name;
    match std::env::var("SUDO_USER").ok().filter(|user| !user.is_empty() && *user != own) {
        Some(user) => format!("{user} (as {own})"),
        None => own,
    }
}

/// What it costs, and whether it is needed.
fn warn(status: &Status, context: &Context) {
    let out = &context.output;
    let lag = &status.lag;
    out.remark(match &status.unreachable {
        Some(why) => format!("the repository cannot be reached: {why}"),
        None => "the repository answers".into(),
    });
    if let (Some(segments), Some(bytes)) = (lag.waiting_segments, lag.waiting_bytes) {
        out.remark(format_args!("{segments} segments ({}) wait to be archived", human::size(bytes)));
    }
    if let Some(free) = lag.pg_wal_free_bytes {
        let full = lag.pg_wal_full_seconds.and_then(|full| Duration::try_from_secs_f64(full).ok());
        let full = full.map(|full| format!(": full in {} at the present rate", human::duration(full)));
        out.remark(format_args!("pg_wal's file system has {} free{}", human::size(free), full.unwrap_or_default()));
    }
    let from = match lag.durable_lsn {
        Some(durable) => format!("no instant after {durable} can be recovered"),
        None => "no instant after the last archived segment can be recovered".into(),
    };
    out.remark(format_args!(
        "{} from now on PostgreSQL removes WAL that is stored nowhere: {from} until archiving is resumed and the next backup is complete",
        out.paint(Paint::Bad, "cost:")
    ));
}

fn told(record: &Record, new: bool, context: &Context) -> End {
    let out = &context.output;
    if out.json {
        out.document(&json!({ "suspended": record.begun.suspended, "new": new, "skipped": record.skipped.len() }));
        return End::Done;
    }
    let already = if new { "" } else { " already" };
    out.line(format_args!("{}{already}: {}", out.paint(Paint::Warning, "suspended"), record.begun.suspended));
    out.line("archive again with: walden wal resume");
    End::Done
}

pub async fn resume(args: &ResumeArgs, context: &Context) -> Result<End> {
    let (config, cluster, out) = (context.config()?, context.cluster()?, &context.output);
    cluster.pgdata()?;
    let suspensions = Suspensions::of(config, &cluster)?;
    let ended = suspensions.end(context.clock.now())?;
    let pending = suspensions.pending()?;
    if ended.is_none() && pending.is_empty() {
        out.remark("archiving is not suspended");
        if out.json {
            out.document(&json!({ "resumed": false, "stored": 0, "gaps": [], "backup": null }));
        }
        return Ok(End::Done);
    }
    out.remark(match &ended {
        Some(record) => format!("archiving is resumed; {} files were not archived", record.skipped.len()),
        None => "archiving was resumed before; what was left to do is done now".into(),
    });
    let mut end = End::Done;
    let (stored, gaps) = match note(&suspensions, &pending, context).await {
        Ok(noted) => noted,
        Err(error) => {
            end = End::NeedsPerson;
            tell_error("what is missing could not be noted in the repository", &error);
            out.remark("it is noted as soon as the repository answers");
            (0, Vec::new())
        }
    };
    for gap in gaps.iter().filter(|gap| gap.is_gap()) {
        tell_gap(gap, context);
    }
    let noted = !gaps.is_empty() && !gaps.iter().any(GapNote::is_gap);
    let backup = if noted {
        out.remark("nothing is missing: all of it was stored after all, and no backup is needed");
        None
    } else if args.no_backup {
        tracing::warn!("no instant behind the gap can be recovered until a backup is taken: walden backup");
        None
    } else {
        let taken = take_backup(context).await;
        if taken.is_none() {
            end = End::NeedsPerson;
        }
        taken
    };
    if out.json {
        out.document(&json!({ "resumed": ended.is_some(), "stored": stored, "gaps": gaps, "backup": backup }));
    } else if let Some(backup) = &backup {
        out.line(format_args!("backup {}: recovery goes on from {}", backup.id, backup.stop_lsn));
    }
    Ok(end)
}

/// The backup from which recovery goes on; `None`, and told why, where it failed.
async fn take_backup(context: &Context) -> Option<BackupDocument> {
    match backup::take(&backup::Args::default(), context).await {
        Ok(taken) => Some(taken.document),
        Err(error) => {
            tell_error("the backup failed", &error);
            context.output.remark("archiving is resumed, but no instant behind the gap can be recovered until a backup succeeds: walden backup");
            None
        }
    }
}

/// Stores what still lies in `pg_wal`, then the notes.
async fn note(suspensions: &Suspensions, pending: &[Record], context: &Context) -> Result<(usize, Vec<GapNote>)> {
    let store = context.store().await?;
    let mut stored = 0;
    for record in pending {
        stored += suspensions.catch_up(&store, record).await?;
    }
    if stored > 0 {
        context.output.remark(format_args!("{stored} files still lay in pg_wal, and are archived now"));
    }
    Ok((stored, suspensions.settle(&store).await?))
}

fn tell_gap(gap: &GapNote, context: &Context) {
    let rows: Vec<String> = gap.missing.iter().map(|row| format!("{} to {}", row.first, row.last)).collect();
    if let (Some(from), Some(to)) = (gap.from, gap.to) {
        let missing = rows.join(", ");
        let gap = context.output.paint(Paint::Bad, "gap:");
        context.output.remark(format_args!("{gap} nothing from {from} to {to} can be recovered ({missing})"));
    }
}

fn tell_error(what: &str, error: &Error) {
    match error.hint_text() {
        Some(hint) => tracing::error!("{what}: {error}; hint: {hint}"),
        None => tracing::error!("{what}: {error}"),
    }
}

/// Tells the repository what it does not know yet, if it answers soon.
pub async fn settle(suspensions: &Suspensions, context: &Context) {
    let work = async {
        let store: Arc<dyn Store> = context.store().await?;
        suspensions.settle(&store).await
    };
    let late = || Error::unavailable("it does not answer");
    let settled = tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(|_| Err(late()));
    if let Err(error) = settled {
        tracing::warn!("this is not noted in the repository yet: {error}");
    }
}
