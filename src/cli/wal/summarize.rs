//! `walden wal summarize`: rolls up the summaries of complete logs, so that plans and searches need few requests.

use serde_json::json;

use super::super::{Context, Paint, exit::End};
use crate::{
    error::Result,
    repository::{RolledUp, System},
};

/// The arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Roll up this many logs (4 GB of WAL each) at most, the newest first
    #[arg(long, value_name = "N", default_value_t = usize::MAX, hide_default_value = true)]
    limit: usize,
}

pub async fn run(args: &Args, context: &Context) -> Result<End> {
    let cluster = context.cluster()?;
    let store = context.store().await?;
    let (progress, interrupt) = (context.progress(), context.interrupt());
    let mut all = Vec::new();
    for system in System::all(&store, &cluster.name).await? {
        let rolled = system.roll_up(args.limit, &*progress, &interrupt).await;
        progress.finish();
        all.push((system, rolled?));
    }
    let out = &context.output;
    if out.json {
        let systems: Vec<_> = all.iter().map(|(system, rolled)| document(system, rolled)).collect();
        out.document(&json!({ "cluster": cluster.name, "systems": systems }));
    } else {
        all.iter().for_each(|(system, rolled)| tell(system, rolled, all.len() > 1, context));
    }
    let damaged = all.iter().any(|(_, rolled)| !rolled.damaged.is_empty());
    Ok(if damaged { End::DamageFound } else { End::Done })
}

fn document(system: &System, rolled: &RolledUp) -> serde_json::Value {
    let damaged: Vec<_> = rolled.damaged.iter().map(|(name, why)| json!({ "segment": name, "why": why })).collect();
    json!({
        "system": system.folder.incarnation,
        "logs": rolled.logs,
        "segments": rolled.segments,
        "left": rolled.left,
        "damaged": damaged,
    })
}

fn tell(system: &System, rolled: &RolledUp, named: bool, context: &Context) {
    let out = &context.output;
    for (name, why) in &rolled.damaged {
        out.remark(format_args!("{} {name}: {why}", out.paint(Paint::Bad, "damaged:")));
    }
    let of = if named { format!(" of system {}", system.folder.incarnation) } else { String::new() };
    let left = match rolled.left {
        0 => "no complete log is without a roll-up".to_owned(),
        left => format!("{left} complete logs are left for another run"),
    };
    out.line(format_args!("{} logs with {} segments{of} rolled up; {left}", rolled.logs, rolled.segments));
}
