//! `walden expire` and `walden delete`: what goes is told first, and then it goes.

use std::sync::Arc;

use serde_json::json;

use super::{Align, Context, Paint, Table, compact, exit::End};
use crate::{
    error::{Kind, Result},
    human,
    keep::{
        self, Done, ExpiryPlan, Policy,
        mirrors::Mirrored,
        plan::{Litter, SystemPlan, Why},
        remain::Remains,
    },
    mirror::{self, Mirror},
    report,
    repository::{BackupId, ClusterName},
};

/// The arguments of `walden expire`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Tell what would go, and remove nothing
    #[arg(long)]
    dry_run: bool,
}

/// The arguments of `walden delete`.
#[derive(Debug, clap::Args)]
pub struct DeleteArgs {
    /// The backup, as walden list shows it
    #[arg(value_name = "ID")]
    backup: BackupId,
    /// Remove it though what the rules promise is lost by it
    #[arg(long)]
    force: bool,
    /// Tell what would go, and remove nothing
    #[arg(long)]
    dry_run: bool,
}

/// What the configuration says is to be kept.
fn policy(context: &Context) -> Result<Policy> {
    let keep = &context.config()?.keep;
    let (last, daily, weekly, monthly, yearly) = (keep.last, keep.daily, keep.weekly, keep.monthly, keep.yearly);
    Ok(Policy { last, daily, weekly, monthly, yearly, window: keep.window, zone: keep.zone })
}

pub async fn run(args: &Args, context: &Context) -> Result<End> {
    let (cluster, store, policy) = (context.cluster()?, context.store().await?, policy(context)?);
    let plan = keep::plan_expiry(&store, &cluster.name, &policy, context.clock.now()).await?;
    if policy.is_empty() {
        context.output.remark(
            "[keep] has no rules: no backup and no WAL is removed, only what nothing can ever need; \
             docs/CONFIGURATION.md tells of last, daily, weekly, monthly, yearly and window",
        );
    }
    let compaction = compaction(&plan, &cluster.name, context).await?;
    carry_out(plan, compaction, args.dry_run, context).await
}

/// What is to be written anew besides, where the configuration asks for that. A host that cannot read the manifests
/// expires all the same.
async fn compaction(plan: &ExpiryPlan, cluster: &ClusterName, context: &Context) -> Result<Option<compact::Plans>> {
    let (config, store) = (context.config()?, context.store().await?);
    if config.keep.compact.is_none() {
        return Ok(None);
    }
    let how = compact::how(&config.keep, config.backup.compression);
    let gone: Vec<BackupId> = plan.systems.iter().flat_map(|system| system.condemned.backups.clone()).collect();
    match compact::Plans::make(&store, cluster, how, &gone, context).await {
        Ok(plans) => Ok(Some(plans)),
        Err(error) if error.kind() == Kind::Unavailable => Err(error),
        Err(error) => {
            let out = &context.output;
            out.remark(format_args!("{} nothing is written anew: {error}", out.paint(Paint::Warning, "warning:")));
            Ok(None)
        }
    }
}

pub async fn delete(args: &DeleteArgs, context: &Context) -> Result<End> {
    let (cluster, store, policy) = (context.cluster()?, context.store().await?, policy(context)?);
    let now = context.clock.now();
    let plan = keep::plan_deletion(&store, &cluster.name, args.backup, &policy, now, args.force).await?;
    for cost in &plan.costs {
        let out = &context.output;
        out.remark(format_args!("{} {cost} cannot be recovered any more", out.paint(Paint::Warning, "warning:")));
    }
    carry_out(plan, None, args.dry_run, context).await
}

/// Tells the plan, and carries it out unless it is a dry run.
async fn carry_out(
    plan: ExpiryPlan,
    compaction: Option<compact::Plans>,
    dry_run: bool,
    context: &Context,
) -> Result<End> {
    let out = &context.output;
    let mirrors = mirror::configured(context.config()?, &context.random);
    if !out.json {
        tell(&plan, &mirrors, context);
        compaction.iter().for_each(|plans| plans.tell(context));
        out.flush();
    }
    let (mut done, mut compacted) = (Vec::new(), Vec::new());
    if !dry_run {
        let (clock, interrupt) = (context.clock.clone(), context.interrupt());
        done = keep::carry_out(&plan, &mirrors, clock, &context.random, &interrupt).await?;
        done.iter().for_each(|done| tell_done(done, context));
        // What could not be removed is still condemned, and nothing that is gets copied.
        if let Some(plans) = compaction.as_ref().filter(|_| !done.iter().any(Done::needs_person)) {
            compacted = plans.carry_out(&context.store().await?, context).await?;
        }
    }
    if out.json {
        let (done, compacted) = ((!dry_run).then_some(&done), (!dry_run).then_some(&compacted));
        let names: Vec<_> = mirrors.iter().map(|mirror| &mirror.name).collect();
        let compaction = compaction.map(|plans| json!({ "plan": plans, "done": compacted }));
        out.document(&json!({ "plan": plan, "mirrors": names, "done": done, "compaction": compaction }));
    }
    compacted.iter().for_each(|done| compact::tell_done(done, context));
    Ok(match done.iter().any(Done::needs_person) {
        true => End::NeedsPerson,
        false if plan.has_doubts() => End::DamageFound,
        false => End::Done,
    })
}

fn tell(plan: &ExpiryPlan, mirrors: &[Arc<Mirror>], context: &Context) {
    let out = &context.output;
    out.line(format_args!("to be kept: {}", plan.rules));
    if let Some(from) = plan.window_from {
        out.line(format_args!("the window begins at {}", human::time(from)));
    }
    for system in &plan.systems {
        if plan.systems.len() > 1 {
            out.line(format_args!("\n{}", out.paint(Paint::Strong, format!("system {}", system.system))));
        }
        tell_system(system, context);
        for mirror in mirrors {
            let owes = system.condemned.owed.get(&mirror.name).is_some_and(|owed| !owed.is_empty());
            let words = match (system.objects() > 0, owes) {
                (false, false) => continue,
                (true, false) => "the same goes from",
                (false, true) => "what went before goes from",
                (true, true) => "the same, and what went before, goes from",
            };
            out.line(format_args!("{words} {}, as far as it is there", mirror.name));
        }
    }
}

fn tell_system(plan: &SystemPlan, context: &Context) {
    let out = &context.output;
    for doubt in &plan.doubts {
        out.line(format_args!("{} {doubt}", out.paint(Paint::Bad, "doubt:")));
    }
    if !plan.backups.is_empty() {
        out.line("");
        out.line(backups(plan, context));
    }
    out.line("");
    for wal in &plan.wal {
        let rows = if wal.segments == 1 { wal.first.to_string() } else { format!("{} to {}", wal.first, wal.last) };
        out.line(format_args!("goes: {rows}, {}, {}", human::count(wal.segments, "segment"), human::size(wal.bytes)));
    }
    for parts in &plan.parts {
        let why = match parts.why {
            Why::Expired => "of a backup that goes",
            Why::Unneeded => "that no backup needs any more",
            Why::Attempt => "of an attempt that became no backup",
        };
        out.line(format_args!(
            "goes: {} in {}, {why}, {}",
            human::count(parts.parts, "part"),
            parts.backup,
            human::size(parts.bytes)
        ));
    }
    if plan.litter != Litter::default() {
        out.line(format_args!(
            "goes: {}, {}",
            human::count(plan.litter.objects, "small object"),
            human::size(plan.litter.bytes)
        ));
    }
    match plan.objects() {
        0 => out.line("nothing goes"),
        objects => out.line(format_args!("in all: {}, {}", human::count(objects, "object"), human::size(plan.bytes()))),
    }
    plan.held.iter().for_each(|held| out.line(format_args!("stays for now: {held}")));
    plan.remains.iter().for_each(|remains| out.line(recoverable(remains)));
    if plan.remains.is_empty() {
        out.line(out.paint(Paint::Warning, "nothing can be recovered"));
    }
}

fn backups(plan: &SystemPlan, context: &Context) -> Table {
    let mut table = Table::new([("BACKUP", Align::Left), ("STAYS", Align::Left), ("LABEL", Align::Left)]);
    for fate in &plan.backups {
        let kept = fate.kept.iter().map(|reason| reason.word()).collect::<Vec<_>>().join(", ");
        let kept = if kept.is_empty() { context.output.paint(Paint::Warning, "goes") } else { kept };
        table.row([fate.id.to_string(), kept, fate.label.as_deref().map(report::plain).unwrap_or_default()]);
    }
    table
}

fn recoverable(remains: &Remains) -> String {
    let Remains { timeline, since, from, to, backups, goes_on, .. } = remains;
    let to = if *goes_on { format!("{to}, the end of the archive") } else { to.to_string() };
    let many = if *backups > 1 { format!(", with {backups} backups") } else { String::new() };
    format!("recoverable on timeline {timeline}: from {} ({from}) up to {to}{many}", human::time(*since))
}

fn tell_done(done: &Done, context: &Context) {
    let out = &context.output;
    for spared in &done.spared {
        out.remark(format_args!("stays for now: {spared}"));
    }
    for locked in &done.told {
        out.remark(format_args!("{} {locked}", out.paint(Paint::Warning, "not deleted:")));
    }
    if done.locked > 0 {
        out.remark(format_args!(
            "{} objects are locked, or may not be deleted by these credentials; the next walden expire tries again",
            done.locked
        ));
    }
    for Mirrored { name, deleted, owes, .. } in &done.mirrors {
        if let Some(why) = owes {
            out.remark(format_args!(
                "{} {name} has still to remove some of it: {why}; the next walden expire tries again",
                out.paint(Paint::Warning, "warning:")
            ));
        }
        if *deleted > 0 {
            out.remark(format_args!("{} removed from {name}", human::count(*deleted, "object")));
        }
    }
    if done.deleted > 0 {
        out.remark(format_args!("{} removed", human::count(done.deleted, "object")));
    }
}
