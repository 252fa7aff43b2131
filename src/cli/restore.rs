//! `walden restore`.

use std::{path::PathBuf, time::Duration};

use clap::ValueEnum;
use serde_json::json;

use super::{
    Context, Output, Paint,
    backup::rate_limit,
    exit::End,
    plan::{self, Wish},
    programs,
};
use crate::{
    error::{Error, Kind, Result},
    human,
    plan::{Difference, Host, Plan, Watch},
    postgres::Conninfo,
    repository::{
        System,
        hold::{Held, Hold},
    },
    restore::{self, Configuration, Outcome, Owner, Reached, Restore, RestoreRequest, Restored, StartRequest, Took},
};

/// The arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    wish: Wish,
    /// The data directory to make
    #[arg(long, value_name = "DIR")]
    pgdata: PathBuf,
    /// Put a tablespace elsewhere than where it was
    #[arg(long, value_name = "OLD=NEW", value_parser = map)]
    map: Vec<(PathBuf, PathBuf)>,
    /// Put pg_wal elsewhere
    #[arg(long, value_name = "DIR")]
    waldir: Option<PathBuf>,
    /// Make a standby that follows the archive (with --to latest)
    #[arg(long, conflicts_with = "then")]
    standby: bool,
    /// What the server does at the target [default: promote for latest, else pause]
    #[arg(long, value_enum)]
    then: Option<Then>,
    /// Start PostgreSQL, wait, and report what was reached
    #[arg(long)]
    start: bool,
    /// Make an independent copy, whose archiving is off for good
    #[arg(long)]
    clone: bool,
    /// Mend the copy that is there: keep files that are right, rewrite the others
    #[arg(long, conflicts_with = "force")]
    delta: bool,
    /// Remove what is in the directory first
    #[arg(long)]
    force: bool,
    /// The most bytes of files to fetch in a second, such as 50MB; the configuration's [restore] rate_limit otherwise
    #[arg(long, value_name = "SIZE")]
    rate_limit: Option<String>,
    /// Who is to own the files [default: the owner of the directory, or of the folder it is in]
    #[arg(long, value_name = "USER")]
    owner: Option<String>,
    /// Where files go that lay outside the data directory, such as /etc/postgresql
    #[arg(long, value_enum, default_value = "beside", value_name = "WHERE")]
    extra_files: ExtraFiles,
    /// A setting for the copy until it is adopted, such as port=5433; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = setting)]
    set: Vec<(String, String)>,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

/// Where files go that lay outside the data directory.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum ExtraFiles {
    /// Into the folder PGDATA.walden-extra, to be looked at
    Beside,
    /// To where they were; those that differ are replaced with --force alone
    InPlace,
    /// Nowhere
    LeaveOut,
}

/// What the server does at the target.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Then {
    /// Stay read-only until somebody has looked
    Pause,
    /// Open a new timeline and accept writes
    Promote,
    /// Shut down
    Shutdown,
}

fn map(text: &str) -> std::result::Result<(PathBuf, PathBuf), String> {
    match text.split_once('=') {
        Some((old, new)) if old.starts_with('/') && !new.is_empty() => Ok((old.into(), new.into())),
        _ => Err("write it like /old/place=/new/place".into()),
    }
}

fn setting(text: &str) -> std::result::Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value))
            if name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'.') && !name.is_empty() =>
        {
            Ok((name.into(), value.into()))
        }
        _ => Err("write it like port=5433".into()),
    }
}

pub async fn run(args: &Args, context: &Context) -> Result<End> {
    let request = request(args, context)?;
    let (plan, system) = match restore::resumable(&request)? {
        Some(plan) => {
            let store = context.reading().await?;
            let system = System::open(store, &plan.cluster, plan.incarnation).await?;
            (plan, system)
        }
        None => plan::make(&args.wish, context).await?,
    };
    // Put before anything is read: no expiry takes it away then.
    let mut hold = Hold::take(&system, held(&plan, &system), context.clock.clone(), &context.random).await;
    let work = recover(args, context, request, plan, system);
    let done = match &mut hold {
        Some(hold) => hold.during(work).await,
        None => work.await,
    };
    match hold {
        Some(hold) if matches!(done, Ok(End::Done)) && !args.start => hold.leave(REPLAYED_WITHIN).await,
        Some(hold) => hold.release().await,
        None => {}
    }
    done
}

/// A copy that is started later has this long to read its WAL, whatever an expiry would remove.
const REPLAYED_WITHIN: chrono::Duration = chrono::Duration::days(1);

/// What a restore reads.
fn held(plan: &Plan, system: &System) -> Held {
    let mut backups = plan.backup.references.clone();
    backups.push(plan.backup.id);
    Held { work: "restore".into(), backups, wal: plan.rows(system.document.segment_size) }
}

async fn recover(
    args: &Args,
    context: &Context,
    mut request: RestoreRequest,
    plan: Plan,
    system: System,
) -> Result<End> {
    let archive = system.clone();
    let config = context.config()?;
    let cluster = context.cluster()?;
    // A standby is served no pieces, and goes on when the segment is whole.
    let until = match request.standby {
        true => plan.last_whole_segment(system.document.segment_size)?,
        false => plan.last_segment,
    };
    request.restore_command = programs::restore_command(config, &cluster, plan.incarnation.number, until)?;
    if args.start {
        restore::find_programs(plan.backup.postgres)?;
    }
    let host = Host::compare(&system, &plan.backup, &args.set).await?;
    if args.start {
        refuse_obstacles(&host)?;
    }
    let watch = plan::watch(context);
    let prepared =
        Restore::prepare(system, plan.clone(), request.clone(), context.clock.now()).await.map_err(unplanned)?;
    let owner = prepared.owner().clone();
    // Whoever wants it quiet and has said yes has read the plan, or never will.
    if !(context.output.json || context.output.quiet && args.yes) {
        show(&prepared, &host, args, &context.output);
        if config.file.is_none() {
            plan::warn(
                "the configuration comes from the environment: the server needs the same variables for restore_command",
                &context.output,
            );
        }
    }
    if !args.yes && !context.output.confirm("Go on?", "--yes").await? {
        context.output.remark("nothing was done");
        return Ok(End::NeedsPerson);
    }
    let restored = match prepared.run(&watch).await {
        Err(error) if error.kind() == Kind::Damaged => return Err(another_way(error, &plan, &args.wish, context).await),
        ended => ended.map_err(unplanned)?,
    };
    let configuration = Configuration::find(&plan, &restored)?;
    if !context.output.json {
        tell_restored(&restored, &plan, &context.output);
        tell_start(configuration.as_ref(), args.start, &owner, &context.output);
    }
    let reached = match args.start {
        true => {
            let start_request = start_request(&request, &restored, owner, configuration.as_ref(), user(context))?;
            Some(start(&plan, &start_request, &restored, request.clone, &watch, &context.output).await?)
        }
        false => None,
    };
    let took = restore::remember(&archive, &plan, &restored, reached.as_ref(), context.clock.now()).await;
    if context.output.json {
        let plan = plan::Shown { plan: &plan, host: &host };
        context.output.document(&json!({ "plan": plan, "restored": restored, "configuration": configuration, "reached": reached, "took": took }));
    } else {
        tell_took(&took, &context.output);
    }
    Ok(End::Done)
}

/// Damage that was met in the middle, with the backup that leads to the same place without it, if there is one.
async fn another_way(error: Error, plan: &Plan, wish: &Wish, context: &Context) -> Error {
    let wish = Wish { to: wish.to.clone(), backup: None, timeline: wish.timeline };
    match plan::make_without(&wish, vec![plan.backup.id], context).await {
        Ok((other, _)) => error.hint(format!(
            "backup {0} leads there as well: repeat the command with --backup {0} --force; or bring the damaged object back from another copy of the repository and repeat it as it was",
            other.backup.id
        )),
        Err(_) => error,
    }
}

/// How the server of the copy is started.
fn start_request(
    request: &RestoreRequest,
    restored: &Restored,
    owner: Owner,
    configuration: Option<&Configuration>,
    user: Option<String>,
) -> Result<StartRequest> {
    let settings = match configuration {
        Some(configuration) => configuration.provide(&owner, user.as_deref())?,
        None => Vec::new(),
    };
    let (pgdata, then, standby) = (restored.pgdata.clone(), request.then, request.standby);
    Ok(StartRequest { pgdata, owner, then, standby, user, settings })
}

/// Starts the server, and waits until it has reached what was planned.
async fn start(
    plan: &Plan,
    request: &StartRequest,
    restored: &Restored,
    clone: bool,
    watch: &Watch,
    output: &Output,
) -> Result<Reached> {
    let started = restore::start(plan, request, watch).await.map_err(unplanned)?;
    if let Some(server) = started.server {
        server.leave_running();
    }
    if !output.json {
        tell_reached(&started.reached, restored, clone, plan, output);
    }
    Ok(started.reached)
}

/// Refuses to go on to a server that could not start.
fn refuse_obstacles(host: &Host) -> Result<()> {
    match host.obstacles().next() {
        None => Ok(()),
        Some(obstacle) => Err(Error::refused(format!("{}: {}", obstacle.what, obstacle.follows))
            .hint(format!("{}; without --start the copy is made all the same", obstacle.mend))),
    }
}

/// Only the planner says that a target cannot be reached.
fn unplanned(error: Error) -> Error {
    match (error.kind(), error.hint_text()) {
        (Kind::NotFound, Some(hint)) => Error::failed(error.to_string()).hint(hint),
        (Kind::NotFound, None) => Error::failed(error.to_string()),
        _ => error,
    }
}

fn request(args: &Args, context: &Context) -> Result<RestoreRequest> {
    let latest = args.wish.to.trim() == "latest";
    if args.standby && !latest {
        return Err(
            Error::invalid("a standby follows the archive, and stops nowhere").hint("use --to latest with --standby")
        );
    }
    let limit = rate_limit("restore", args.rate_limit.as_ref());
    let config = context.load(limit.as_slice())?.restore;
    let mut request = RestoreRequest {
        wish: restore::Wish {
            to: args.wish.to.trim().to_owned(),
            backup: args.wish.backup,
            timeline: args.wish.timeline,
        },
        pgdata: args.pgdata.clone(),
        maps: args.map.clone(),
        waldir: args.waldir.clone(),
        standby: args.standby,
        then: match args.then {
            Some(Then::Pause) => restore::Then::Pause,
            Some(Then::Promote) => restore::Then::Promote,
            Some(Then::Shutdown) => restore::Then::Shutdown,
            None if latest => restore::Then::Promote,
            None => restore::Then::Pause,
        },
        clone: args.clone,
        delta: args.delta,
        force: args.force,
        owner: args.owner.clone(),
        restore_command: String::new(),
        settings: args.set.clone(),
        extra_files: match args.extra_files {
            ExtraFiles::Beside => restore::ExtraFiles::Beside,
            ExtraFiles::InPlace => restore::ExtraFiles::InPlace,
            ExtraFiles::LeaveOut => restore::ExtraFiles::LeaveOut,
        },
        parallel: config.parallel,
        rate_limit: config.rate_limit,
    };
    request.resolve()?;
    Ok(request)
}

/// The role that is configured, if one is.
pub fn user(context: &Context) -> Option<String> {
    let cluster = context.cluster().ok()?;
    let conninfo: Conninfo = cluster.connection().ok()?.reveal().parse().ok()?;
    conninfo.user().map(str::to_owned)
}

fn show(prepared: &Restore, host: &Host, args: &Args, output: &Output) {
    plan::show(prepared.plan(), host, output);
    let mut name = "will";
    for step in prepared.steps() {
        output.line(format_args!("  {name:10} {step}"));
        name = "";
    }
    if args.start {
        output.line(format_args!("  {name:10} start PostgreSQL as {}, and wait", prepared.owner().name));
    }
    let differences = host.differences.iter().map(Difference::words);
    for warning in prepared.plan().warnings.iter().chain(prepared.warnings()).cloned().chain(differences) {
        plan::warn(&warning, output);
    }
    output.flush();
}

fn tell_restored(restored: &Restored, plan: &Plan, output: &Output) {
    let kept = if restored.kept > 0 { format!(", {} of them kept", restored.kept) } else { String::new() };
    output.line(format_args!(
        "{} backup {} into {}: {} files, {}{kept}, in {}",
        output.paint(Paint::Good, "restored"),
        plan.backup.id,
        restored.pgdata.display(),
        restored.files,
        human::size(restored.bytes),
        human::duration(restored.took)
    ));
    if restored.wal_pushed > 0 {
        output.line(format_args!("  {} WAL files of the old directory were pushed", restored.wal_pushed));
    }
    if let Some(aside) = &restored.aside {
        output.line(format_args!("  {} WAL files of the old directory lie in {}", restored.wal_aside, aside.display()));
    }
    if let Some(extra) = &restored.extra {
        let kept = if extra.kept > 0 { format!(", {} of them were there", extra.kept) } else { String::new() };
        let where_to = match extra.folder.parent() {
            None => "are in their places".to_owned(),
            Some(_) => format!("lie in {}", extra.folder.display()),
        };
        output.line(format_args!("  {} files from outside the data directory {where_to}{kept}", extra.files));
        for remark in &extra.remarks {
            plan::warn(remark, output);
        }
    }
    output.flush();
}

/// Says with which configuration the copy starts, where that does not go without saying.
fn tell_took(took: &Took, output: &Output) {
    if let Some(estimated) = took.estimated {
        let [estimated, took] = [estimated, took.seconds].map(|s| human::duration(Duration::from_secs_f64(s.max(0.0))));
        output.line(format_args!("estimated {estimated}, took {took}"));
    }
}

fn tell_start(configuration: Option<&Configuration>, starts: bool, owner: &Owner, output: &Output) {
    match (configuration, starts) {
        (None, true) => {}
        (None, false) => output.line("start PostgreSQL there: it recovers up to the target"),
        (Some(configuration), _) if configuration.made.is_empty() => {
            let begin = if starts { "starting PostgreSQL there with" } else { "start PostgreSQL there with" };
            output.line(format_args!("{begin} the configuration that was saved: {}", configuration.options()));
        }
        (Some(configuration), true) => {
            output.line(format_args!(
                "starting PostgreSQL there with the least of a configuration, because the backup does not hold all of it: {}",
                configuration.options()
            ));
            output.line(format_args!("  only user {} can connect, by the socket", owner.name));
        }
        (Some(_), false) => {
            output.line("put a postgresql.conf there, then start PostgreSQL: it recovers up to the target")
        }
    }
    output.flush();
}

fn tell_reached(reached: &Reached, restored: &Restored, clone: bool, plan: &Plan, output: &Output) {
    let last =
        reached.last_transaction.map(|t| format!(", last transaction {}", human::exact_time(t))).unwrap_or_default();
    let seconds = human::duration(Duration::from_secs_f64(reached.seconds.max(0.0)));
    let (good, lsn) = (output.paint(Paint::Good, "reached"), output.paint(Paint::Strong, reached.lsn));
    let planned = if reached.outcome == Outcome::Following { "" } else { ", as planned" };
    output.line(format_args!("{good} {lsn} on timeline {}{planned}{last}, in {seconds}", plan.timeline));
    let pgdata = restored.pgdata.display();
    let port = reached.port.map(|port| format!(" on port {port}")).unwrap_or_default();
    let next = match clone {
        true => "  it is an independent copy: it archives nothing, and never becomes the cluster".to_owned(),
        false => format!("  make it the cluster:  walden adopt --pgdata {pgdata}"),
    };
    match reached.outcome {
        Outcome::Paused => {
            output.line(format_args!("PostgreSQL runs{port}, read-only. Look whether it is what you want; then"));
            if !reached.locked.is_empty() {
                plan::warn(
                    &format!(
                        "{} cannot be read before it is open for writing: a transaction that was under way has locked it",
                        reached.locked.join(", ")
                    ),
                    output,
                );
            }
            output.line("  open it for writing:  select pg_wal_replay_resume()");
            output.line(next);
        }
        Outcome::Promoted => {
            output.line(format_args!("PostgreSQL runs{port}, on the new timeline {}", reached.timeline));
            output.line(next);
        }
        Outcome::ShutDown => output.line("PostgreSQL has shut down; started again, it stops at the same place"),
        Outcome::Following => output.line(format_args!("PostgreSQL runs{port}, and follows the archive")),
    }
}
