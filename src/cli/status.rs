//! `walden status`.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde_json::json;

use super::{Context, Paint, exit::End, list};
use crate::{
    config::ClusterConfig,
    error::Result,
    plan::window::Depth,
    postgres::{
        ControlFile,
        archive_status::Waiting,
        sql::{ArchiveMode, Session},
    },
    report::{
        status::{Seen, ServerSeen, Status, Verdict},
        words,
    },
    repository::{Incarnation, System},
    store::Store,
};

/// The arguments.
#[derive(Debug, clap::Args)]
pub struct Args {}

pub async fn run(_: &Args, context: &Context) -> Result<End> {
    let config = context.config()?;
    let clusters: Vec<ClusterConfig> = match (&context.global.cluster, config.clusters()) {
        (None, several) if several.len() > 1 => several.to_vec(),
        _ => vec![context.cluster()?],
    };
    let store = context.store().await?;
    let mut found = Vec::new();
    for cluster in clusters {
        let status = look(&cluster, &store, context).await?;
        found.push((cluster, status));
    }
    let out = &context.output;
    if out.json {
        let clusters: Vec<_> = found
            .iter()
            .map(|(cluster, status)| {
                let mut document = json!(status);
                document["cluster"] = json!(cluster.name);
                document
            })
            .collect();
        out.document(&json!({ "repository": store.url(), "now": context.clock.now(), "clusters": clusters }));
    } else {
        for (number, (cluster, status)) in found.iter().enumerate() {
            if number > 0 {
                out.line("");
            }
            show(cluster, status, &store.url(), context);
        }
    }
    let well = found.iter().all(|(_, status)| status.verdict == Verdict::Ok);
    Ok(if well { End::Done } else { End::NeedsPerson })
}

async fn look(cluster: &ClusterConfig, store: &Arc<dyn Store>, context: &Context) -> Result<Status> {
    let mut systems = Vec::new();
    for system in System::all(store, &cluster.name).await? {
        systems.push(list::timelines(&system, Depth::Ends, cluster, context).await?);
    }
    let pgdata = cluster.pgdata().ok();
    let control = pgdata.and_then(|pgdata| ControlFile::read(pgdata).ok());
    let seen = Seen {
        systems: &systems,
        here: control.map(|control| Incarnation { system: control.system, number: cluster.incarnation }),
        waiting: pgdata.and_then(|pgdata| Waiting::of(pgdata).ok()),
        server: match cluster.connection() {
            Ok(_) => Some(ask(cluster).await.map_err(|error| error.to_string())),
            Err(_) => None,
        },
        now: context.clock.now(),
    };
    Ok(Status::of(&seen))
}

async fn ask(cluster: &ClusterConfig) -> Result<ServerSeen> {
    let session = Session::open(&cluster.connection()?.reveal().parse()?).await?;
    let off = session.server_facts().await?.archive_mode == ArchiveMode::Off;
    Ok(ServerSeen { off, archiver: session.archiver().await? })
}

fn show(cluster: &ClusterConfig, status: &Status, url: &str, context: &Context) {
    let (out, now) = (&context.output, context.clock.now());
    let line = |name: &str, text: &str| out.line(format_args!("  {name:<12} {text}"));
    out.line(format_args!("{} in {url}", out.paint(Paint::Strong, format_args!("cluster {}", cluster.name))));
    let paint = if status.window.is_none() { Paint::Bad } else { Paint::Strong };
    line("window", &out.paint(paint, &status.recoverable));
    if let Some(newest) = &status.newest_backup {
        let more = match status.backups {
            1 => String::new(),
            all => format!(" ({all} in all)"),
        };
        line("last backup", &format!("{}{more}", newest.words()));
    }
    line("archive", &archive(status, now));
    if let (Some(system), Some(version), Some(timeline)) = (status.system, status.postgres, status.timeline) {
        line("system", &format!("{system}, PostgreSQL {version}, on timeline {timeline}"));
    }
    for note in &status.notes {
        line("note", note);
    }
    for concern in &status.concerns {
        out.line(format_args!("  {} {}", out.paint(Paint::Bad, format_args!("{:<12}", "attention")), concern.what));
        out.line(format_args!("  {:<12} {} {}", "", out.paint(Paint::Strong, "hint:"), concern.mend));
    }
    match status.concerns.len() {
        0 => out.line(out.paint(Paint::Good, "nothing needs a person")),
        1 => out.line(out.paint(Paint::Bad, "1 thing needs a person")),
        many => out.line(out.paint(Paint::Bad, format_args!("{many} things need a person"))),
    }
}

/// How far archiving is behind, as far as can be seen from here.
fn archive(status: &Status, now: DateTime<Utc>) -> String {
    let mut parts = Vec::new();
    if let Some(waiting) = status.waiting {
        let oldest = std::time::Duration::from_secs(waiting.oldest_seconds);
        parts.push(Waiting { files: waiting.files, oldest }.to_string());
    }
    if let Some(last) = status.last_archived {
        parts.push(format!("{} was archived last, {} ago", last.file, words::ago(last.at, now)));
    }
    if parts.is_empty() {
        "seen from the repository alone: neither data directory nor server is at hand".into()
    } else {
        parts.join("; ")
    }
}
