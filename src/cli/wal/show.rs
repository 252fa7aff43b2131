//! `walden wal show`: what one segment holds, from its records.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::super::{Align, Context, Output, Paint, Table, exit::End};
use crate::{
    archive::{self, Shown},
    error::{Error, Kind, Result},
    human,
    postgres::{Lsn, SegmentName, TimelineId},
    repository::{Incarnation, System},
    wal::{Contents, Dropped, Ending, Fact, Told, TransactionEnd},
};

/// The arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The name of a segment in the archive, or the path to a file on disk (./NAME for one in this folder)
    segment: PathBuf,
    /// List every commit and abort with xid, LSN and time; --json always does
    #[arg(long)]
    ends: bool,
}

/// A segment, and where it was found.
struct Found {
    name: SegmentName,
    contents: Contents,
    /// The object in the archive: its incarnation and its length in bytes.
    archived: Option<(Incarnation, u64)>,
    /// The timeline that begins before its unfinished record, and where.
    given_up: Option<(TimelineId, Lsn)>,
}

pub async fn run(args: &Args, context: &Context) -> Result<End> {
    let out = &context.output;
    let each = args.ends || out.json;
    let found = match args.segment.to_str().and_then(|name| name.parse().ok()) {
        Some(name) => archived(name, each, context).await?,
        None => on_disk(&args.segment, each).await?,
    };
    if out.json {
        out.document(&document(&found));
    } else {
        tell(&found, out);
        if args.ends {
            list_ends(&found.contents, out);
        }
    }
    // A file in pg_wal may end anywhere. What is in the archive was whole when it came there.
    let broken = found.archived.is_some() && !matches!(found.contents.ending, Ending::Full | Ending::Switch);
    Ok(if broken { End::DamageFound } else { End::Done })
}

/// Of several systems the one that came last: what an upgrade left behind has names that the new one uses again.
async fn archived(name: SegmentName, each: bool, context: &Context) -> Result<Found> {
    let cluster = context.cluster()?;
    let store = context.reading().await?;
    for system in System::all(&store, &cluster.name).await?.iter().rev() {
        match archive::show(system, name, each).await {
            Ok(Shown { contents, stored, given_up }) => {
                return Ok(Found { name, contents, archived: Some((system.folder.incarnation, stored)), given_up });
            }
            Err(error) if error.kind() == Kind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Err(Error::not_found(format!("{name} is not in the archive of cluster {}", cluster.name))
        .hint(format!("for a file on disk give its path: ./{name}")))
}

async fn on_disk(path: &Path, each: bool) -> Result<Found> {
    let path = path.to_path_buf();
    let shown = tokio::task::spawn_blocking(move || archive::show_file(&path, each)).await;
    let (contents, name) = shown.map_err(|e| Error::internal("a worker thread stopped").source(e))??;
    Ok(Found { name, contents, archived: None, given_up: None })
}

fn document(found: &Found) -> serde_json::Value {
    let Found { name, contents, archived, given_up } = found;
    let header = contents.header.as_ref();
    json!({
        "segment": name,
        "timeline": name.timeline,
        "archived": archived.map(|(incarnation, length)| json!({ "system": incarnation, "stored_bytes": length })),
        "postgres": header.map(|h| h.version),
        "system": header.map(|h| h.system),
        "start": header.map(|h| h.start),
        "size": header.map(|h| h.size),
        "block_size": header.map(|h| h.block_size),
        "first": contents.first,
        "last": contents.last,
        "end": contents.end,
        "ending": contents.ending,
        "unfinished": contents.unfinished,
        "given_up": given_up.map(|(timeline, lsn)| json!({ "timeline": timeline, "lsn": lsn })),
        "records": contents.records(),
        "record_bytes": contents.bytes(),
        "managers": contents.managers,
        "commits": contents.commits,
        "aborts": contents.aborts,
        "times": contents.times,
        "events": contents.events,
        "transactions": contents.transactions,
    })
}

fn tell(found: &Found, out: &Output) {
    let Found { name, contents, archived, given_up } = found;
    let line = |word: &str, text: String| {
        out.line(format_args!("{} {text}", out.paint(Paint::Faint, format_args!("{word:<9}"))))
    };
    let version = contents.header.as_ref().map_or_else(String::new, |h| format!(", PostgreSQL {}", h.version));
    line("segment", format!("{}, timeline {}{version}", out.paint(Paint::Strong, name), name.timeline));
    if let Some(header) = &contents.header {
        line("system", header.system.to_string());
        let size = header.size.bytes();
        line("range", format!("{} to {} ({})", header.start, header.start + size, human::size(size)));
    }
    if let Some((incarnation, length)) = archived {
        line("archived", format!("{} stored, below {incarnation}", human::size(*length)));
    }
    let (records, bytes) = (contents.records(), human::size(contents.bytes()));
    let place = match (contents.first, contents.last) {
        (Some(first), Some(last)) => format!(", the first at {first}, the last at {last}"),
        _ => String::new(),
    };
    line("records", format!("{records} ({bytes}){place}"));
    line("ends", ending(contents, *given_up, out));
    let times = match contents.times {
        Some((first, last)) => format!(", {} to {}", human::exact_time(first), human::exact_time(last)),
        None => String::new(),
    };
    line("commits", format!("{}, aborts {}{times}", contents.commits, contents.aborts));
    if !contents.managers.is_empty() {
        out.line(format_args!("\n{}", managers(contents)));
    }
    events(contents, out);
}

fn ending(contents: &Contents, given_up: Option<(TimelineId, Lsn)>, out: &Output) -> String {
    match (&contents.ending, contents.unfinished) {
        (Ending::Switch, _) => format!("with a switch at {}", contents.last.unwrap_or(contents.end)),
        (Ending::Zeros, _) => {
            out.paint(Paint::Warning, format_args!("at {}: nothing is written after it", contents.end))
        }
        (Ending::Broken { at, why }, _) => out.paint(Paint::Bad, format_args!("at {at}: {why}")),
        (Ending::Full, Some(start)) => {
            let why = match given_up {
                Some((timeline, lsn)) => format!(", and timeline {timeline}, which begins at {lsn}, does not have it"),
                None => String::new(),
            };
            let said = format!("in the record at {start}; the next segment, where it goes on, is not there{why}");
            out.paint(Paint::Warning, said)
        }
        (Ending::Full, None) => format!("full, its last record at {}", contents.end),
    }
}

fn managers(contents: &Contents) -> Table {
    let mut table = Table::new([
        ("RESOURCE MANAGER", Align::Left),
        ("RECORDS", Align::Right),
        ("SIZE", Align::Right),
        ("OF ALL", Align::Right),
    ]);
    let all = contents.bytes().max(1);
    for count in &contents.managers {
        let share = format!("{} %", (count.bytes * 100 + all / 2) / all);
        table.row([count.name.to_string(), count.records.to_string(), human::size(count.bytes), share]);
    }
    table
}

/// The most events that are shown: the screen of a terminal.
const SHOWN: usize = 40;

fn events(contents: &Contents, out: &Output) {
    let events = &contents.events.items;
    if events.is_empty() {
        return;
    }
    let mut table = Table::new([("LSN", Align::Left), ("XID", Align::Right), ("WHAT", Align::Left)]);
    for Told { lsn, xid, fact, .. } in events.iter().take(SHOWN) {
        table.row([lsn.to_string(), if *xid == 0 { String::new() } else { xid.to_string() }, words(fact)]);
    }
    out.line(format_args!("\n{table}"));
    if events.len() > SHOWN {
        out.line(format_args!("and {} more: --json lists them", events.len() - SHOWN));
    }
}

fn list_ends(contents: &Contents, out: &Output) {
    let mut table =
        Table::new([("LSN", Align::Left), ("XID", Align::Right), ("TIME", Align::Left), ("END", Align::Left)]);
    for end in &contents.transactions {
        let how = if end.committed { "commit" } else { "abort" };
        table.row([end.lsn.to_string(), end.xid.to_string(), human::exact_time(end.time), how.into()]);
    }
    out.line(format_args!("\n{table}"));
}

/// What a record says, in a line.
fn words(fact: &Fact) -> String {
    let time = human::exact_time;
    match fact {
        Fact::Commit(end) => ended("commit", end),
        Fact::Abort(end) => ended("abort", end),
        Fact::Prepare(p) => format!("prepare transaction \"{}\" at {}", p.gid, time(p.time)),
        Fact::RestorePoint { name, time: at } => format!("restore point \"{name}\" at {}", time(*at)),
        Fact::Checkpoint(c) if c.timeline != c.previous => {
            format!("timeline {} begins, after {}", c.timeline, c.previous)
        }
        Fact::Checkpoint(c) => {
            let kind = if c.shutdown { "shutdown" } else { "online" };
            format!("{kind} checkpoint at {}, redo from {}, next xid {}", human::time(c.time), c.redo, c.next_xid)
        }
        Fact::EndOfRecovery { time: at, timeline, previous, .. } => {
            format!("recovery ends at {}: timeline {timeline} begins, after {previous}", time(*at))
        }
        Fact::BackupEnd { start } => format!("the backup that began at {start} ends"),
        Fact::ParameterChange(p) => format!(
            "settings: max_connections {}, max_worker_processes {}, max_wal_senders {}, max_prepared_transactions {}, max_locks_per_transaction {}, wal_level {}",
            p.max_connections,
            p.max_worker_processes,
            p.max_wal_senders,
            p.max_prepared_transactions,
            p.max_locks_per_transaction,
            p.wal_level.map_or_else(|| "unknown".into(), |level| format!("{level:?}").to_lowercase()),
        ),
        Fact::OverwriteContrecord { overwritten, time: at } => {
            format!("the record at {overwritten}, which a crash cut off, is given up at {}", time(*at))
        }
        Fact::TablespaceCreate { oid, path } => format!("create tablespace {oid} in {path}"),
        Fact::TablespaceDrop { oid } => format!("drop tablespace {oid}"),
        Fact::FileTruncate { file, blocks } => format!("cut file {file} to {blocks} pages"),
        Fact::DatabaseCreate { oid, .. } => format!("create database {oid}"),
        Fact::DatabaseDrop { oid, .. } => format!("remove the files of database {oid}"),
        Fact::RelationMap { database: 0 } => "new files for catalogues that all databases share".into(),
        Fact::RelationMap { database } => format!("new files for catalogues of database {database}"),
        Fact::Message { prefix, size, .. } => format!("message \"{prefix}\" of {}", human::size(u64::from(*size))),
        other => format!("{other:?}"),
    }
}

fn ended(how: &str, end: &TransactionEnd) -> String {
    let mut text = format!("{how} at {}", human::exact_time(end.time));
    let mut list = |what: &str, items: &mut dyn Iterator<Item = String>| {
        let items: Vec<String> = items.collect();
        if let [first, rest @ ..] = &items[..] {
            text += &format!(", {what} {first}");
            if !rest.is_empty() {
                text += &format!(" and {} more", rest.len());
            }
        }
    };
    list(
        "drops relation",
        &mut end.dropped.iter().map(|Dropped { relation, database }| format!("{relation} of database {database}")),
    );
    list("removes file", &mut end.removed.iter().map(ToString::to_string));
    text
}
