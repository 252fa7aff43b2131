//! `walden check`.

use serde_json::json;

use super::{Context, Paint, exit::End, programs};
use crate::{
    check::{self, Line, Report, Request, Surroundings, Verdict},
    error::Result,
    human,
};

/// The arguments.
#[derive(Debug, clap::Args)]
pub struct Args {}

pub async fn run(_: &Args, context: &Context) -> Result<End> {
    let (config, cluster) = (context.config()?, context.cluster()?);
    config.repository()?;
    let request = Request {
        config,
        cluster: &cluster,
        programs: ["walden-archive", "walden-restore"].map(|name| (name, programs::find(name))).into(),
        archive_command: programs::archive_command(config, &cluster.name).ok(),
    };
    let around =
        Surroundings { clock: context.clock.clone(), random: context.random.clone(), progress: context.progress() };
    let out = &context.output;
    let report = check::check(&request, &around, &mut |line| {
        if !out.json && (!out.quiet || line.verdict != Verdict::Ok) {
            tell(line, context);
        }
    })
    .await;
    if out.json {
        out.document(&json!({
            "cluster": cluster.name,
            "repository": config.repository()?.url.to_string(),
            "verdict": report.verdict(),
            "checks": report.lines,
        }));
    } else {
        sum_up(&report, context);
    }
    Ok(match report.verdict() {
        _ if report.unreachable => End::Unreachable,
        Verdict::Fail => End::NeedsPerson,
        Verdict::Ok | Verdict::Warn => End::Done,
    })
}

fn tell(line: &Line, context: &Context) {
    let out = &context.output;
    let verdict = match line.verdict {
        Verdict::Ok => out.paint(Paint::Good, "ok  "),
        Verdict::Warn => out.paint(Paint::Warning, "warn"),
        Verdict::Fail => out.paint(Paint::Bad, "FAIL"),
    };
    out.line(format_args!("{verdict}  {:<18}  {}", line.name, line.text));
    if let Some(mend) = &line.mend {
        out.line(format_args!("{:26}{} {mend}", "", out.paint(Paint::Strong, "hint:")));
    }
    for said in &line.log {
        out.line(format_args!("{:26}{}", "", out.paint(Paint::Faint, format_args!("log: {said}"))));
    }
    // The next check may take a while.
    out.flush();
}

fn sum_up(report: &Report, context: &Context) {
    let out = &context.output;
    let count = |verdict, what: &str| human::count(report.count(verdict) as u64, what);
    let (failures, warnings) = (count(Verdict::Fail, "failure"), count(Verdict::Warn, "warning"));
    match report.verdict() {
        Verdict::Ok => out.line(out.paint(Paint::Good, "archiving works, and all is well")),
        Verdict::Warn => out.line(format_args!("archiving works; {warnings}")),
        Verdict::Fail => out.line(format_args!("{}; {warnings}", out.paint(Paint::Bad, failures))),
    }
}
