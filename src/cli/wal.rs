//! `walden wal`: the archive by hand. `push` and `fetch` are what the small programs call.

mod receive;
mod show;
mod summarize;
mod suspend;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use serde_json::json;

use super::{Context, exit::End};
use crate::{
    archive::{self, Fetch, Fetcher, Fetching, Lifetime, OpenStore, Pushed, Shipper, Shipping, Suspensions},
    config::{ClusterConfig, WaitFor},
    error::{Kind, Result},
    human,
    mirror::{self, Extent, Mirror, Patience, Round},
    pace::{self, Cores},
    postgres::{SegmentName, WalFile, server},
    progress::Unwatched,
    repository::Suspended,
};

/// The arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Archive a file of pg_wal; answers when it is durable in the repository
    Push {
        /// The file, as archive_command's %p
        path: PathBuf,
    },
    /// Fetch a file from the archive, verified
    Fetch {
        /// The file's name, as restore_command's %f
        name: WalFile,
        /// Where to put it, as restore_command's %p
        destination: PathBuf,
        /// The recovery needs every segment on its way up to this one: none of them is ever answered "absent"
        #[arg(long, value_name = "SEGMENT")]
        until: Option<SegmentName>,
    },
    /// Receive WAL by streaming replication and store it as it comes, every second; runs until it is stopped
    Receive(receive::Args),
    /// Show what a segment holds: its records, commits and aborts, restore points and the like
    Show(show::Args),
    /// Roll up what the heads of segments tell, so that plans and searches need few requests; every backup does some of it
    Summarize(summarize::Args),
    /// Save the server's disk: PostgreSQL is told "archived" for WAL that is stored nowhere, until archiving is resumed
    Suspend(suspend::SuspendArgs),
    /// Archive again, note what is missing, and take a backup: recovery goes on from there
    Resume(suspend::ResumeArgs),
}

impl Args {
    /// Whether it reads the repository and nothing else.
    pub fn reads(&self) -> bool {
        matches!(self.command, Command::Fetch { .. } | Command::Show(_))
    }
}

pub async fn run(args: &Args, context: &Context) -> Result<End> {
    match &args.command {
        Command::Push { path } => push(path, context).await,
        Command::Fetch { name, destination, until } => fetch(*name, destination, *until, context).await,
        Command::Receive(args) => receive::run(args, context).await,
        Command::Show(args) => show::run(args, context).await,
        Command::Summarize(args) => summarize::run(args, context).await,
        Command::Suspend(args) => suspend::suspend(args, context).await,
        Command::Resume(args) => suspend::resume(args, context).await,
    }
}

async fn push(path: &Path, context: &Context) -> Result<End> {
    let (config, cluster) = (context.config()?, context.cluster()?);
    let mirrors = mirror::configured(config, &context.random);
    let ends = Instant::now() + config.archive.timeout;
    let suspensions = Suspensions::of(config, &cluster)?;
    if let Some(suspended) = suspensions.skip(path).await {
        return Ok(not_stored(path, &suspended, context));
    }
    for why in pace::lower(config.archive.nice, None) {
        tracing::warn!("the priority of archiving could not be lowered: {why}");
    }
    let work = async {
        let cores = Arc::new(Cores::new(config.archive.cpu));
        let waited_for = if config.archive.wait_for == WaitFor::All { mirrors.clone() } else { Vec::new() };
        let shipping = Shipping::of(config, &cluster);
        let shipper = Arc::new(Shipper::new(context.store().await?, waited_for, shipping, cores));
        let (along, asked) = (shipper.clone(), path.to_path_buf());
        // Who pushes a file by hand means that file: what a restored copy holds back is not taken along.
        let asks = shipper.pgdata(path).is_ok_and(|pgdata| server::started(&pgdata, std::process::id().cast_signed()));
        let most = if asks { config.archive.parallel - 1 } else { 0 };
        let along = tokio::spawn(async move { along.ahead(&asked, most).await });
        Ok((shipper.push(path).await?, along))
    };
    let (pushed, along) = match within(config.archive.timeout, work).await {
        Ok(pushed) => pushed,
        Err(error) => match suspensions.keep_after(path, &error).await {
            Some(suspended) => return Ok(not_stored(path, &suspended, context)),
            None => return Err(error),
        },
    };
    // Whatever becomes of the others, PostgreSQL will ask for them.
    match tokio::time::timeout_at(ends.into(), along).await {
        Ok(Ok(Ok(count))) => tracing::info!("{count} shipped along"),
        Ok(Ok(Err(error))) => tracing::info!("not all that are ready were shipped along: {error}"),
        Ok(Err(_)) | Err(_) => tracing::info!("what was shipped along took too long"),
    }
    if config.archive.wait_for == WaitFor::First {
        join_all(mirrors.iter().map(|mirror| take_along(mirror, &cluster, ends, context))).await;
    }
    tell(&pushed, context);
    if suspensions.has_ended() {
        suspend::settle(&suspensions, context).await;
    }
    Ok(End::Done)
}

fn tell(pushed: &Pushed, context: &Context) {
    if context.output.json {
        context.output.document(&json!({
            "file": pushed.file,
            "stored_bytes": pushed.stored,
            "already_there": pushed.already,
            "suspended": null,
        }));
    } else {
        tracing::info!(
            "{} {} ({})",
            pushed.file,
            if pushed.already { "is in the repository already" } else { "archived" },
            human::size(pushed.stored)
        );
    }
}

/// Copies a few objects to a mirror that is not waited for, where no agent does: not for long, and one that does not
/// answer is left alone for a while.
async fn take_along(mirror: &Mirror, cluster: &ClusterConfig, ends: Instant, context: &Context) {
    const LONGEST: Duration = Duration::from_secs(5);
    let Ok(config) = context.config() else { return };
    let patience = Patience::with(&config.archive.state_dir, &mirror.name);
    if !patience.is_over(context.clock.now()) {
        return;
    }
    let work = async {
        let store = context.store().await?;
        let round = Round {
            first: &store,
            cluster: &cluster.name,
            state_dir: &config.archive.state_dir,
            extent: Extent::Since,
            parallel: config.archive.parallel,
            limit: 2 * config.archive.parallel,
            wait: false,
            progress: &Unwatched,
            interrupt: None,
            clock: &*context.clock,
        };
        round.of(mirror).await
    };
    let ends = ends.min(Instant::now() + LONGEST);
    match tokio::time::timeout_at(ends.into(), work).await {
        Ok(Ok(done)) => {
            patience.answered();
            done.problems.iter().for_each(|problem| tracing::warn!("not copied to {}: {problem}", mirror.name));
        }
        Ok(Err(error)) => {
            patience.failed(context.clock.now(), &context.random);
            tracing::warn!("{error}; it catches up later");
        }
        Err(_) => {
            patience.failed(context.clock.now(), &context.random);
            tracing::warn!("repository {} takes too long; it catches up later", mirror.name);
        }
    }
}

/// PostgreSQL is told "archived", and everybody else that it is not.
fn not_stored(path: &Path, suspended: &Suspended, context: &Context) -> End {
    tracing::error!("{}", suspended.of_file(path));
    if context.output.json {
        let file = path.file_name().map(|name| name.to_string_lossy());
        context.output.document(&json!({
            "file": file,
            "stored_bytes": null,
            "already_there": false,
            "suspended": suspended,
        }));
    }
    End::Done
}

async fn fetch(file: WalFile, destination: &Path, until: Option<SegmentName>, context: &Context) -> Result<End> {
    let (config, cluster) = (context.config()?, context.cluster()?);
    let request = Fetch {
        file,
        destination: destination.to_path_buf(),
        until,
        pgdata: cluster.pgdata().ok().map(PathBuf::from),
        incarnation: cluster.incarnation,
    };
    let (all, only, random) = (config.clone(), context.global.repository.clone(), context.random.clone());
    let open: OpenStore = Box::new(move || {
        let (all, only, random) = (all.clone(), only.clone(), random.clone());
        Box::pin(async move { mirror::reading(&all, only.as_ref(), &random).await })
    });
    let lifetime = Lifetime::OneCall(context.clock.now().into());
    let fetched = Fetcher::new(open, Fetching::of(config, &cluster)?, lifetime).fetch(&request).await;
    let size = archive::answer(fetched, &request, config.restore.promote_despite_doubt).inspect_err(|error| {
        // walden-restore believes the status only with this word beside it.
        if error.kind() == Kind::NotFound {
            context.output.raw(b"absent\n");
        }
    })?;
    if context.output.json {
        context.output.document(&json!({ "file": file, "bytes": size }));
    } else {
        tracing::info!("{file} delivered ({})", human::size(size));
    }
    Ok(End::Done)
}

async fn within<T>(limit: Duration, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| Err(archive::out_of_time(limit)))
}
