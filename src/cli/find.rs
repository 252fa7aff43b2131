//! `walden find`.

use super::{Align, Context, Paint, Table, exit::End, plan::watch};
use crate::{
    error::{Error, Result},
    human,
    plan::{self, Edge, FindKind, FindReport, FindRequest, Finding, Point, TableName, Target},
    postgres::TimelineId,
    repository::System,
};

/// The arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What happened to tables of that name: TABLE, SCHEMA.TABLE or DATABASE.SCHEMA.TABLE, as psql takes names
    #[arg(long, value_name = "TABLE")]
    table: Option<TableName>,
    /// What happened in, or to, that database
    #[arg(long, value_name = "NAME")]
    database: Option<String>,
    /// What that transaction did, committed or not
    #[arg(long, value_name = "N")]
    xid: Option<u64>,
    /// Not before that: a time with its zone, or an LSN
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// Not after that: a time with its zone, or an LSN
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
    /// What to look for, by commas: drop, truncate, rewrite, delete, update, drop-database, drop-tablespace,
    /// restore-point, parameter-change, timeline-switch [default: these]; and create-database, message
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    kind: Vec<FindKind>,
    /// Search the way to this timeline [default: the newest]
    #[arg(long, value_name = "N")]
    timeline: Option<TimelineId>,
    /// Show the newest N rows
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
}

pub async fn run(args: &Args, context: &Context) -> Result<End> {
    let now = context.clock.now();
    let edge = |text: &Option<String>| text.as_ref().map(|text| edge(text, now)).transpose();
    let request = FindRequest {
        table: args.table.clone(),
        database: args.database.clone(),
        xid: args.xid,
        from: edge(&args.from)?,
        to: edge(&args.to)?,
        kinds: args.kind.clone(),
        timeline: args.timeline,
        limit: args.limit,
    };
    let systems = System::all(&context.reading().await?, &context.cluster()?.name).await?;
    let watch = watch(context);
    let report = plan::find(&systems, &request, &watch).await;
    watch.progress.finish();
    show(&report?, context);
    Ok(End::Done)
}

fn edge(text: &str, now: chrono::DateTime<chrono::Utc>) -> Result<Edge> {
    match Target::parse(text, now)? {
        Target { point: Point::Time(time), before: false } => Ok(Edge::Time(time)),
        Target { point: Point::Lsn(lsn), before: false } => Ok(Edge::Lsn(lsn)),
        _ => Err(Error::invalid(format!("\"{text}\" is neither a time nor an LSN"))
            .hint("as in \"2026-11-21 10:00:00 UTC\", \"2 hours ago\" or 0/16B3740")),
    }
}

fn show(report: &FindReport, context: &Context) {
    let out = &context.output;
    if out.json {
        out.document(report);
        return;
    }
    for remark in &report.remarks {
        out.remark(format_args!("{} {remark}", out.paint(Paint::Warning, "note:")));
    }
    if report.more > 0 {
        out.remark(format_args!(
            "{} {} older rows are not shown: --limit, --from, --to, --kind",
            out.paint(Paint::Warning, "note:"),
            report.more
        ));
    }
    if report.findings.is_empty() {
        out.line(format_args!(
            "nothing of that kind from {} to {} on the way to timeline {}",
            report.from, report.to, report.timeline
        ));
        return;
    }
    let mut table = Table::new([
        ("TIME", Align::Left),
        ("TIMELINE", Align::Right),
        ("LSN", Align::Left),
        ("XID", Align::Right),
        ("WHAT", Align::Left),
        ("TO STOP JUST BEFORE IT", Align::Left),
    ]);
    for finding in &report.findings {
        table.row([
            finding.time.map_or_else(|| "unknown".into(), human::exact_time),
            finding.timeline.to_string(),
            finding.lsn.to_string(),
            finding.xid.map_or_else(String::new, |xid| xid.to_string()),
            out.paint(paint(finding.kind), &finding.what),
            way(finding).unwrap_or_else(|| out.paint(Paint::Faint, "no backup leads there")),
        ]);
    }
    out.line(table);
}

fn paint(kind: FindKind) -> Paint {
    match kind {
        FindKind::Drop | FindKind::Truncate | FindKind::DropDatabase | FindKind::DropTablespace => Paint::Bad,
        FindKind::Delete | FindKind::Update => Paint::Warning,
        FindKind::RestorePoint | FindKind::Message => Paint::Strong,
        _ => Paint::Faint,
    }
}

fn way(finding: &Finding) -> Option<String> {
    let to = format!("--to {}", finding.to.as_ref()?);
    Some(finding.to_timeline.map_or_else(|| to.clone(), |timeline| format!("{to} --timeline {timeline}")))
}
