//! `walden status`.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::json;

use super::{Context, Paint, exit::End, plan::watch};
use crate::{
    config::{ClusterConfig, Config},
    error::{Error, Result},
    human,
    postgres::archive_status::Waiting,
    report::{
        look,
        metrics::{self, Page},
        status::{Status, Verdict},
        words,
    },
};

/// The arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print metrics in Prometheus' text format instead, as for the textfile collector of node_exporter
    #[arg(long)]
    metrics: bool,
}

pub async fn run(args: &Args, context: &Context) -> Result<End> {
    let (config, out) = (context.config()?, &context.output);
    if args.metrics && out.json {
        return Err(Error::invalid("--metrics and --json are two forms of the same answer").hint("choose one"));
    }
    let clusters: Vec<ClusterConfig> = match (&context.global.cluster, config.clusters()) {
        (None, several) if several.len() > 1 => several.to_vec(),
        _ => vec![context.cluster()?],
    };
    let mut found = Vec::new();
    for cluster in clusters {
        let mut status = look(config, &cluster, context).await?;
        status.beside(context.mirror_states(&cluster.name).await?, context.clock.now());
        found.push((cluster, status));
    }
    let url = config.repository()?.url.to_string();
    if args.metrics {
        let mut page = Page::default();
        let all: Vec<_> = found.iter().map(|(cluster, status)| (&cluster.name, status)).collect();
        metrics::clusters(&mut page, &all, context.clock.now());
        out.raw(page.to_string().as_bytes());
    } else if out.json {
        let clusters: Vec<_> = found
            .iter()
            .map(|(cluster, status)| {
                let mut document = json!(status);
                document["cluster"] = json!(cluster.name);
                document
            })
            .collect();
        out.document(&json!({ "repository": url, "now": context.clock.now(), "clusters": clusters }));
    } else {
        for (number, (cluster, status)) in found.iter().enumerate() {
            if number > 0 {
                out.line("");
            }
            show(cluster, status, &url, context);
        }
    }
    Ok(if found.iter().any(|(_, status)| status.unreachable.is_some()) {
        End::Unreachable
    } else if found.iter().all(|(_, status)| status.verdict == Verdict::Ok) {
        End::Done
    } else {
        End::NeedsPerson
    })
}

async fn look(config: &Config, cluster: &ClusterConfig, context: &Context) -> Result<Status> {
    look::status(config, cluster, context.reading(), None, &*context.clock, &watch(context)).await
}

fn show(cluster: &ClusterConfig, status: &Status, url: &str, context: &Context) {
    let (out, now) = (&context.output, context.clock.now());
    let line = |name: &str, text: &str| out.line(format_args!("  {name:<12} {text}"));
    out.line(format_args!("{} in {url}", out.paint(Paint::Strong, format_args!("cluster {}", cluster.name))));
    let paint = if status.window.is_none() { Paint::Bad } else { Paint::Strong };
    line("window", &out.paint(paint, &status.recoverable));
    if let Some(newest) = &status.newest_backup {
        let more = match status.backups {
            Some(all) if all > 1 => format!(" ({all} in all)"),
            _ => String::new(),
        };
        line("last backup", &format!("{}{more}", newest.words()));
    }
    line("archive", &archive(status, now));
    line("not durable", &not_durable(status));
    line("pg_wal", &pg_wal(status));
    if let (Some(system), Some(version), Some(timeline)) = (status.system, status.postgres, status.timeline) {
        line("system", &format!("{system}, PostgreSQL {version}, on timeline {timeline}"));
    }
    for mirror in &status.mirrors {
        line(mirror.name.as_str(), &mirror.words(now));
    }
    for note in &status.notes {
        line("note", note);
    }
    for advice in &status.advice {
        line("advice", &advice.what);
        out.line(format_args!("  {:<12} {} {}", "", out.paint(Paint::Strong, "hint:"), advice.mend));
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
        let oldest = Duration::from_secs(waiting.oldest_seconds);
        let size = status.lag.waiting_bytes.filter(|bytes| *bytes > 0);
        let size = size.map(|bytes| format!(" ({})", human::size(bytes))).unwrap_or_default();
        parts.push(format!("{}{size}", Waiting { files: waiting.files, oldest }));
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

/// What a loss of the server's machine would lose now.
fn not_durable(status: &Status) -> String {
    let lag = &status.lag;
    let unknown = |name| format!("not known: {}", lag.unknown.get(name).map_or("", String::as_str));
    match (lag.not_durable_bytes, lag.not_durable_seconds, lag.server_lsn) {
        (Some(0), ..) => "nothing: all WAL that the server has written is in the repository".into(),
        (Some(bytes), seconds, Some(server)) => {
            let time = seconds.map_or_else(|| "a time that is not known".into(), length);
            let durable = lag.durable_lsn.map_or_else(String::new, |lsn| format!(", the repository reaches {lsn}"));
            format!("{} of WAL, of the last {time} (the server is at {server}{durable})", human::size(bytes))
        }
        _ => unknown("not_durable_bytes"),
    }
}

/// How fast `pg_wal` could fill up.
fn pg_wal(status: &Status) -> String {
    let lag = &status.lag;
    let unknown = |name| lag.unknown.get(name).map_or("", String::as_str);
    let free = match lag.pg_wal_free_bytes {
        Some(free) => format!("{} free", human::size(free)),
        None => format!("what is free is not known: {}", unknown("pg_wal_free_bytes")),
    };
    let rate = match (lag.wal_bytes_per_second, lag.wal_rate_seconds) {
        (Some(rate), Some(time)) => {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a size for people, not negative"
            )]
            let shown = human::size(rate as u64);
            let below = if rate > 0.0 && rate < 1.0 { "less than 1 byte".to_owned() } else { shown };
            format!("{below} of WAL a second in the last {}", length(time))
        }
        _ => format!("the rate of WAL is not known: {}", unknown("wal_bytes_per_second")),
    };
    match lag.pg_wal_full_seconds {
        Some(full) => format!("{free}; {rate}: full in {} if nothing can be archived", length(full)),
        None => format!("{free}; {rate}"),
    }
}

fn length(seconds: f64) -> String {
    Duration::try_from_secs_f64(seconds).map_or_else(|_| "ages".into(), human::duration)
}
