//! `walden plan`, and how a plan is shown.

use std::time::Duration;

use serde::Serialize;

use super::{Context, Output, Paint, exit::End};
use crate::{
    error::{Error, Result},
    human,
    plan::{self, Difference, Host, Moment, Passed, Plan, PlanRequest, Target, Watch},
    postgres::TimelineId,
    repository::{BackupId, System},
};

/// So many things are named that could not be compared.
const UNKNOWN: usize = 3;

/// The arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    wish: Wish,
}

/// What is wished for.
#[derive(Debug, clap::Args)]
pub struct Wish {
    /// What to reach: latest, immediate, a time with its zone, an LSN, xid:N, name:N, before: one of the last
    /// four, before-drop:TABLE, before-drop-database:NAME
    #[arg(long, value_name = "TARGET")]
    pub to: String,
    /// Begin with this backup
    #[arg(long, value_name = "ID")]
    pub backup: Option<BackupId>,
    /// Follow this timeline
    #[arg(long, value_name = "N")]
    pub timeline: Option<TimelineId>,
}

pub async fn run(args: &Args, context: &Context) -> Result<End> {
    let (plan, system) = make(&args.wish, context).await?;
    let host = Host::compare(&system, &plan.backup, &[]).await?;
    if context.output.json {
        context.output.document(&Shown { plan: &plan, host: &host });
    } else {
        show(&plan, &host, &context.output);
        for warning in plan.warnings.iter().cloned().chain(host.differences.iter().map(Difference::words)) {
            warn(&warning, &context.output);
        }
    }
    Ok(End::Done)
}

/// A plan with the host that it was made on: what `--json` prints.
#[derive(Debug, Serialize)]
pub struct Shown<'a> {
    /// The plan.
    #[serde(flatten)]
    pub plan: &'a Plan,
    /// How the host compares.
    pub host: &'a Host,
}

/// Makes the plan, and gives the system along that it leads through.
pub async fn make(wish: &Wish, context: &Context) -> Result<(Plan, System)> {
    make_without(wish, Vec::new(), context).await
}

/// The same without these backups.
pub async fn make_without(wish: &Wish, without: Vec<BackupId>, context: &Context) -> Result<(Plan, System)> {
    let now = context.clock.now();
    let target = Target::parse(&wish.to, now)?;
    let cluster = context.cluster()?;
    let mut systems = System::all(&context.reading().await?, &cluster.name).await?;
    let request = PlanRequest { target, backup: wish.backup, timeline: wish.timeline, without, now };
    let plan = plan::plan(&systems, &request, &watch(context)).await?;
    let at = systems.iter().position(|s| s.folder.incarnation == plan.incarnation);
    let at = at.ok_or_else(|| Error::internal("a plan through an unknown system"))?;
    Ok((plan, systems.swap_remove(at)))
}

/// Progress on the terminal, Ctrl-C heard.
pub fn watch(context: &Context) -> Watch {
    Watch { progress: context.progress(), interrupt: context.interrupt() }
}

/// Shows a plan: what will be there, and what it takes.
pub fn show(plan: &Plan, host: &Host, output: &Output) {
    let line = |name: &str, text: String| output.line(format_args!("  {name:10} {text}"));
    let strong = |text: String| output.paint(Paint::Strong, text);
    output.line(format_args!("{}", strong(format!("{} of cluster {}", plan.target, plan.cluster))));
    let timeline = plan.timeline;
    line(
        "stops",
        match plan.stop {
            Some(stop) if stop.inclusive => {
                format!("after the record at {}, on timeline {timeline}", strong(stop.lsn.to_string()))
            }
            Some(stop) => format!("just before {}, on timeline {timeline}", strong(stop.lsn.to_string())),
            None => format!(
                "as soon as the backup is consistent, at {}, on timeline {timeline}",
                strong(plan.backup.stop_lsn.to_string())
            ),
        },
    );
    match &plan.last_commit {
        Some(moment) => line("last in", transaction(moment)),
        None if plan.stop.is_some() => line("last in", "no commit after the backup began".into()),
        None => {}
    }
    if let Some(moment) = &plan.first_left_out {
        line("first out", transaction(moment));
    }
    if let Some(behind) = plan.behind_seconds {
        let ago = human::duration(Duration::from_secs_f64(behind.max(0.0)));
        let lost = "a crash of the server now would lose what came after it";
        line("archive", format!("the last commit in the archive was {} ago; {lost}", strong(ago)));
    }
    show_means(plan, &line);
    show_host(host, &line);
}

/// Shows how the host compares; what differs comes as warnings.
fn show_host(host: &Host, line: &impl Fn(&str, String)) {
    let same = if host.differences.is_empty() && host.unknown.is_empty() { ": as the backup needs it" } else { "" };
    let described = host.describe();
    line("host", if described.is_empty() { "not known".to_owned() } else { format!("{described}{same}") });
    for unknown in host.unknown.iter().take(UNKNOWN) {
        line("", format!("not compared: {unknown}"));
    }
    if host.unknown.len() > UNKNOWN {
        line("", format!("not compared: {} things more, which --json names", host.unknown.len() - UNKNOWN));
    }
}

/// Shows what recovery reads and needs.
fn show_means(plan: &Plan, line: &impl Fn(&str, String)) {
    let backup = &plan.backup;
    let (size, fetch) = (human::size(backup.size), human::size(plan.backup_bytes));
    line(
        "backup",
        format!("{} (PostgreSQL {}), {size} in {} files, {fetch} to fetch", backup.id, backup.postgres, backup.files),
    );
    let segments = match plan.segments {
        1 => "1 segment".to_owned(),
        many => format!("{many} segments"),
    };
    line(
        "WAL",
        format!(
            "{segments}, {} to fetch, {} to {}: all there",
            human::size(plan.wal_bytes),
            plan.first_segment,
            plan.last_segment
        ),
    );
    if plan.from_pieces > 0 {
        line("", format!("{} is in pieces: {} bytes of it are there and needed", plan.last_segment, plan.from_pieces));
    }
    if plan.path.len() > 1 {
        let passed = |p: &Passed| match p.left {
            Some(left) => format!("timeline {} up to {left}", p.timeline),
            None => format!("timeline {}", p.timeline),
        };
        line("path", plan.path.iter().map(passed).collect::<Vec<_>>().join(", then "));
    }
    line("disk", format!("{} must be free", human::size(plan.disk_bytes)));
    let setting = |(name, value): (&str, u32)| match plan.raised.iter().find(|r| r.setting == name) {
        Some(raised) => format!("{name} {value} (raised from {} at {})", raised.from, raised.lsn),
        None => format!("{name} {value}"),
    };
    line("settings", format!("at least {}", plan.required.each().map(setting).join(", ")));
    for tablespace in plan.created_tablespaces.iter().filter(|t| !t.path.is_empty()) {
        line("creates", format!("tablespace {} in {}: replay needs that folder", tablespace.oid, tablespace.path));
    }
    if let Some(estimate) = &plan.estimate {
        let [total, files, wal] = [estimate.total_seconds, estimate.files_seconds, estimate.wal_seconds]
            .map(|seconds| human::duration(Duration::from_secs_f64(seconds.max(0.0))));
        line("takes", format!("about {total}: {files} for the files, {wal} for the WAL ({})", estimate.basis));
    }
    for name in &plan.prepared {
        line("prepared", format!("\"{name}\" is unfinished at the stop"));
    }
}

/// Shows a warning.
pub fn warn(text: &str, output: &Output) {
    output.line(format_args!("  {:10} {text}", output.paint(Paint::Warning, "warning")));
}

fn transaction(moment: &Moment) -> String {
    let how = if moment.aborted { "rolled back" } else { "committed" };
    let time = human::exact_time(moment.time);
    match moment.xid {
        Some(xid) => format!("transaction {xid} at {}, {how} {time}", moment.lsn),
        None => format!("restore point at {}, written {time}", moment.lsn),
    }
}
