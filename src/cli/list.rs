//! `walden list`.

use chrono::{DateTime, Utc};
use serde_json::json;

use super::{Align, Context, Output, Paint, Table, exit::End, plan::watch};
use crate::{
    config::ClusterConfig,
    error::Result,
    human,
    plan::window::{self, BackupMark, Depth, Timelines},
    postgres::Lsn,
    report::{self, look, words},
    repository::{BackupDocument, BackupId, Stock, System, Unneeded},
};

/// The arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Tell of each backup what would come free without it and which older ones it needs, and which parts none needs.
    /// Reads the manifest of every backup; ends with 6 where one is damaged
    #[arg(long)]
    space: bool,
}

/// A system: its timelines, the documents of its backups where they are told, those that are pinned, and with `--space`
/// what they need.
type Found = (Timelines, Vec<BackupDocument>, Vec<BackupId>, Option<Stock>);

pub async fn run(args: &Args, context: &Context) -> Result<End> {
    let cluster = context.cluster()?;
    let store = context.reading().await?;
    let weaker = context.config()?.repository()?.check_then_put;
    let mut found = Vec::new();
    for system in System::all(&store, &cluster.name).await? {
        let stock = if args.space { Some(system.stock().await?) } else { None };
        let backups = match &stock {
            Some(stock) => stock.backups.clone(),
            None if context.output.json => system.readable_backups().await?.0,
            None => Vec::new(),
        };
        let pins = system.pins().await?.into_iter().map(|pin| pin.backup).collect();
        found.push((timelines(&system, Depth::Ends, &cluster, context).await?, backups, pins, stock));
    }
    let mirrors = context.mirror_states(&cluster.name).await?;
    let is_damaged = found.iter().any(|(.., stock)| stock.as_ref().is_some_and(|stock| !stock.unknown.is_empty()));
    let end = if is_damaged { End::DamageFound } else { End::Done };
    let out = &context.output;
    if out.json {
        let systems: Vec<_> = found.iter().map(document).collect();
        out.document(&json!({
            "repository": store.url(),
            "cluster": cluster.name,
            "conditional_writes": !weaker,
            "systems": systems,
            "mirrors": mirrors,
        }));
        return Ok(end);
    }
    if weaker {
        out.remark(format_args!(
            "{} {} does not honour put-if-absent: two servers that share this archive by mistake could damage each other's WAL",
            out.paint(Paint::Warning, "warning:"),
            store.url()
        ));
    }
    for (number, (timelines, _, pins, stock)) in found.iter().enumerate() {
        let incarnation = timelines.system.incarnation;
        if found.len() > 1 {
            let gap = if number > 0 { "\n" } else { "" };
            let title = format!("system {incarnation} (PostgreSQL {})", timelines.system.postgres);
            out.line(format_args!("{gap}{}", out.paint(Paint::Strong, title)));
        }
        if timelines.backups().is_empty() && timelines.unreadable.is_empty() {
            out.line(format_args!("no backup of system {incarnation} yet; take one: walden backup"));
        } else {
            sum_up(timelines, context.clock.now(), context);
            out.line("");
            out.line(table(timelines, pins, context));
        }
        if let Some(stock) = stock {
            tell_space(stock, context);
        }
    }
    for mirror in &mirrors {
        out.line(format_args!("repository {}: {}", mirror.name, mirror.words(context.clock.now())));
    }
    if found.is_empty() {
        out.line(format_args!("cluster {} is not in {} yet; begin with: walden init", cluster.name, store.url()));
    }
    Ok(end)
}

/// The timelines of a system, as far as this host can tell.
pub async fn timelines(system: &System, depth: Depth, cluster: &ClusterConfig, context: &Context) -> Result<Timelines> {
    look::timelines(system, depth, cluster, &watch(context)).await
}

/// One line for the timeline that the cluster writes, one for each other that goes on beside it.
fn sum_up(timelines: &Timelines, now: DateTime<Utc>, context: &Context) {
    let out = &context.output;
    let several = timelines.timelines.len() > 1;
    for timeline in timelines.timelines.iter().rev() {
        // What an ancestor holds beyond the fork is told where there is something.
        let beside = !timeline.live && !timeline.windows.is_empty() && several;
        if timeline.live || beside {
            let name = if several { format!("timeline {}: ", timeline.timeline) } else { String::new() };
            let words = words::recoverable(timeline, now);
            let paint = if timeline.windows.is_empty() { Paint::Bad } else { Paint::Strong };
            out.line(format_args!("{name}{}", if timeline.live { out.paint(paint, words) } else { words }));
        }
        for gap in &timeline.gaps {
            out.line(format_args!("{} {}", out.paint(Paint::Bad, "gap:"), words::missing(gap)));
        }
        for end in timeline.windows.iter().filter_map(|w| match w.end {
            window::WindowEnd::Missing { .. } => None,
            _ => words::end(&w.end),
        }) {
            out.line(format_args!("{} {end}", out.paint(Paint::Bad, "broken:")));
        }
    }
    for lost in &timelines.unreadable {
        out.line(format_args!("{} backup {}: {}", out.paint(Paint::Bad, "damaged:"), lost.id, lost.why));
    }
    tell_suspensions(timelines, out);
    tell_unread(timelines, out);
}

/// That of the WAL no more is known than the names of its segments.
pub fn tell_unread(timelines: &Timelines, out: &Output) {
    if let Some(why) = &timelines.unread {
        out.remark(format_args!("times of the archive are not known here: {}", report::plain(why)));
    }
}

/// Suspensions of archiving that no gap tells of.
pub fn tell_suspensions(timelines: &Timelines, out: &Output) {
    for note in timelines.untold_suspensions() {
        out.line(format_args!("{} {}", out.paint(Paint::Bad, "suspended:"), words::suspension(note)));
    }
}

/// The system with its backups' documents, each with how far recovery from it reaches on its own timeline.
fn document((timelines, backups, pins, stock): &Found) -> serde_json::Value {
    let marks = timelines.backups();
    let document = |backup: &BackupDocument| {
        let mark = marks.iter().find(|mark| mark.id == backup.id);
        let mut document = json!(backup);
        document["recoverable_to"] = json!(mark.and_then(|m| m.recoverable_to));
        document["until"] = json!(mark.and_then(|m| m.until));
        document["pinned"] = json!(pins.contains(&backup.id));
        document["broken"] = json!(mark.and_then(|m| m.broken.as_ref()));
        if let Some(stock @ Stock { references, .. }) = stock {
            let needed = references
                .needed(backup.id)
                .map(|(of, needed)| json!({ "backup": of, "parts": needed.parts, "bytes": needed.bytes }));
            document["freed_without"] = json!(freed(stock, backup));
            document["needs"] = needed.collect();
        }
        document
    };
    let ways: Vec<_> = timelines
        .timelines
        .iter()
        .map(|t| json!({ "timeline": t.timeline, "live": t.live, "windows": t.windows, "gaps": t.gaps }))
        .collect();
    let mut system = json!({
        "system": timelines.system,
        "timelines": ways,
        "unreadable": timelines.unreadable,
        "suspensions": timelines.suspensions,
        "backups": backups.iter().map(document).collect::<Vec<_>>(),
    });
    if let Some(stock) = stock {
        system["parts"] = json!(stock.references.total());
        // While it is not known what some backup needs, nothing can be called unneeded.
        system["unneeded"] = if stock.unknown.is_empty() { json!(stock.unneeded) } else { serde_json::Value::Null };
        let unknown = stock.unknown.iter().map(|(id, why)| json!({ "backup": id, "why": why }));
        system["unknown_needs"] = unknown.collect();
    }
    system
}

/// The bytes that would come free without a backup; unknown where another may need them of which that is not known.
fn freed(stock: &Stock, backup: &BackupDocument) -> Option<u64> {
    stock.unknown.is_empty().then(|| stock.references.freed_without(backup))
}

/// What each backup costs, and what no backup needs.
fn tell_space(stock: &Stock, context: &Context) {
    let Stock { backups, references, unneeded, unknown } = stock;
    let out = &context.output;
    if !backups.is_empty() {
        let mut table = Table::new([
            ("BACKUP", Align::Left),
            ("SIZE", Align::Right),
            ("STORED", Align::Right),
            ("FREES", Align::Right),
            ("NEEDS", Align::Left),
        ]);
        for backup in backups {
            let needed = references.needed(backup.id);
            let needed: Vec<_> = needed.map(|(of, needed)| format!("{of} ({})", human::size(needed.bytes))).collect();
            table.row([
                backup.id.to_string(),
                human::size(backup.size),
                human::size(backup.stored),
                freed(stock, backup).map_or_else(|| "not known".into(), human::size),
                needed.join(", "),
            ]);
        }
        let total = references.total();
        let living = (total.living * 100).checked_div(total.content).unwrap_or(100);
        out.line(format_args!("\n{table}"));
        out.line(format_args!("{} parts, {}, {living}% of them living", total.parts, human::size(total.bytes)));
    }
    for (id, why) in unknown {
        out.line(format_args!("{} what backup {id} needs is not known: {why}", out.paint(Paint::Bad, "damaged:")));
    }
    for Unneeded { backup, begun, exists, parts, bytes } in unneeded {
        let of = if *exists { "backup" } else { "attempt" };
        let begun = begun.map(|begun| format!(", begun at {}", human::time(begun))).unwrap_or_default();
        let size = human::size(*bytes);
        out.line(format_args!("no backup needs {} parts, {size}, of {of} {backup}{begun}", parts.len()));
    }
}

fn table(timelines: &Timelines, pins: &[BackupId], context: &Context) -> Table {
    let mut table = Table::new([
        ("BACKUP", Align::Left),
        ("TL", Align::Right),
        ("SIZE", Align::Right),
        ("STORED", Align::Right),
        ("RECOVERABLE FROM", Align::Left),
        ("TO", Align::Left),
        ("FROM LSN", Align::Left),
        ("TO LSN", Align::Left),
        ("LABEL", Align::Left),
    ]);
    for backup in timelines.backups() {
        let (to, lsn) = reach(backup, timelines, context);
        let mut label = backup.label.as_deref().map(report::plain).unwrap_or_default();
        if pins.contains(&backup.id) {
            label = format!("(pinned) {label}").trim_end().to_owned();
        }
        if backup.from_standby {
            label = format!("(standby) {label}").trim_end().to_owned();
        }
        if backup.bad_pages > 0 {
            label =
                format!("{} {label}", context.output.paint(Paint::Bad, format!("{} damaged pages", backup.bad_pages)));
        }
        table.row([
            backup.id.to_string(),
            backup.timeline.to_string(),
            human::size(backup.size),
            human::size(backup.stored),
            backup.from.time.map(human::time).unwrap_or_default(),
            to,
            backup.stop_lsn.to_string(),
            lsn,
            label,
        ]);
    }
    table
}

/// How far recovery from a backup reaches: in time, and in the log.
fn reach(backup: &BackupMark, timelines: &Timelines, context: &Context) -> (String, String) {
    match (&backup.broken, backup.until) {
        (None, Some(until)) => {
            let unknown = if timelines.unread.is_some() { "not known here" } else { "no commit since" };
            // A later window of the same row of segments may have ended before this backup began.
            let time = until.time.filter(|time| *time >= backup.stopped).map_or_else(|| unknown.into(), human::time);
            (time, until.lsn.max(Lsn(backup.stop_lsn.0)).to_string())
        }
        (Some(broken), _) if broken.missing.is_empty() => {
            (context.output.paint(Paint::Bad, "cannot be restored"), String::new())
        }
        _ => (context.output.paint(Paint::Bad, "its WAL is missing"), String::new()),
    }
}
