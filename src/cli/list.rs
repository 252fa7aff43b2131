//! `walden list`.

use serde_json::json;

use super::{Align, Context, Paint, Table, exit::End};
use crate::{
    error::Result,
    human, plan,
    postgres::Lsn,
    repository::{BackupDocument, System},
};

/// The arguments.
#[derive(Debug, clap::Args)]
pub struct Args {}

pub async fn run(_: &Args, context: &Context) -> Result<End> {
    let cluster = context.cluster()?;
    let store = context.store().await?;
    let weaker = context.config()?.repository()?.check_then_put;
    let mut found = Vec::new();
    for system in System::all(&store, &cluster.name).await? {
        let mut backups = Vec::new();
        for backup in system.backups().await? {
            let reach = plan::reach(&system, &backup).await?;
            backups.push((backup, reach));
        }
        found.push((system, backups));
    }
    let out = &context.output;
    if out.json {
        let systems: Vec<_> = found
            .iter()
            .map(|(system, backups)| json!({ "system": system.document, "backups": documents(backups) }))
            .collect();
        out.document(&json!({
            "repository": store.url(),
            "cluster": cluster.name,
            "conditional_writes": !weaker,
            "systems": systems,
        }));
        return Ok(End::Done);
    }
    if weaker {
        out.remark(format_args!(
            "{} {} does not honour put-if-absent: two servers that share this archive by mistake could damage each other's WAL",
            out.paint(Paint::Warning, "warning:"),
            store.url()
        ));
    }
    for (system, backups) in &found {
        if found.len() > 1 {
            out.line(out.paint(
                Paint::Strong,
                format_args!("system {} (PostgreSQL {})", system.folder.incarnation, system.document.postgres),
            ));
        }
        if backups.is_empty() {
            out.line(format_args!("no backup of system {} yet; take one: walden backup", system.folder.incarnation));
        } else {
            out.line(table(backups, context));
        }
    }
    if found.is_empty() {
        out.line(format_args!("cluster {} is not in {} yet; begin with: walden init", cluster.name, store.url()));
    }
    Ok(End::Done)
}

/// The documents, each with `recoverable_to`: the end of the unbroken WAL after it, on its own timeline.
fn documents(backups: &[(BackupDocument, Option<Lsn>)]) -> Vec<serde_json::Value> {
    let document = |(backup, reach): &(BackupDocument, Option<Lsn>)| {
        let mut document = json!(backup);
        document["recoverable_to"] = json!(reach);
        document
    };
    backups.iter().map(document).collect()
}

fn table(backups: &[(BackupDocument, Option<Lsn>)], context: &Context) -> Table {
    let mut table = Table::new([
        ("BACKUP", Align::Left),
        ("TAKEN", Align::Left),
        ("SIZE", Align::Right),
        ("STORED", Align::Right),
        ("TL", Align::Right),
        ("RECOVERABLE FROM", Align::Left),
        ("TO", Align::Left),
        ("LABEL", Align::Left),
    ]);
    for (backup, reach) in backups {
        let mut label = backup.label.clone().unwrap_or_default();
        if !backup.bad_pages.is_empty() {
            let bad = format!("{} damaged pages", backup.bad_pages.len());
            label = format!("{} {label}", context.output.paint(Paint::Bad, bad));
        }
        table.row([
            backup.id.to_string(),
            human::time(backup.stopped),
            human::size(backup.size),
            human::size(backup.stored),
            backup.timeline.to_string(),
            backup.stop_lsn.to_string(),
            reach.map_or_else(|| context.output.paint(Paint::Bad, "its WAL is missing"), |lsn| lsn.to_string()),
            label,
        ]);
    }
    table
}
