//! `walden verify`.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};

use super::{Context, Output, Paint, backup::rate_limit, exit::End, plan::watch};
use crate::{
    error::{Kind, Result},
    human,
    interrupt::Interrupt,
    mirror,
    report::words,
    repository::{self, RepositoryName, System},
    store::Store,
    verify::{self, Deep, DeepRequest, Finding, Other, Report},
};

/// The arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Read everything and prove it, what was proven the longest ago first. Interrupted, it goes on the next time
    #[arg(long)]
    deep: bool,
    /// Read a part of everything, such as 5%: run every night, it comes to everything in turn
    #[arg(long, requires = "deep", value_name = "PERCENT", value_parser = percent)]
    sample: Option<f64>,
    /// Read only what this host did not prove for so long, such as 30d
    #[arg(long, requires = "deep", value_name = "TIME", value_parser = length)]
    not_checked_for: Option<Duration>,
    /// Begin anew instead of going on with a run that was interrupted
    #[arg(long, requires = "deep")]
    anew: bool,
    /// Objects to read at a time; restore.parallel of the configuration otherwise
    #[arg(long, requires = "deep", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    parallel: Option<u32>,
    /// The most bytes to read in a second, such as 50MB; restore.rate_limit of the configuration otherwise
    #[arg(long, requires = "deep", value_name = "SIZE")]
    rate_limit: Option<String>,
}

fn percent(text: &str) -> Result<f64, String> {
    let share = text.trim().trim_end_matches('%').trim().parse::<f64>().ok();
    share.filter(|share| *share > 0.0 && *share <= 100.0).ok_or_else(|| "write it like 5%".into())
}

fn length(text: &str) -> Result<Duration, String> {
    human::parse_duration(text).map_err(|error| match error.hint_text() {
        Some(hint) => format!("{error}: {hint}"),
        None => error.to_string(),
    })
}

/// How the content is looked at, if it is.
fn request(args: &Args, context: &Context) -> Result<Option<DeepRequest>> {
    if !args.deep {
        return Ok(None);
    }
    let limit = rate_limit("restore", args.rate_limit.as_ref());
    let config = context.load(limit.as_slice())?;
    Ok(Some(DeepRequest {
        sample: args.sample,
        not_checked_for: args.not_checked_for,
        anew: args.anew,
        parallel: args.parallel.map_or(config.restore.parallel, |parallel| parallel as usize),
        rate_limit: config.restore.rate_limit,
        state_dir: config.archive.state_dir.clone(),
    }))
}

pub async fn run(args: &Args, context: &Context) -> Result<End> {
    let config = context.config()?;
    let request = request(args, context)?;
    let names = match &context.global.repository {
        Some(name) => vec![name.clone()],
        None => [RepositoryName::first()].into_iter().chain(config.mirrors().iter().map(|(n, _)| n.clone())).collect(),
    };
    let (mut documents, mut damaged, mut failed) = (Vec::new(), false, None);
    for name in &names {
        match repository(name, names.len() > 1, request.as_ref(), context).await {
            Ok((document, damage)) => {
                damaged |= damage;
                documents.push(document);
            }
            Err(error) if error.kind() == Kind::Interrupted || names.len() == 1 => return Err(error),
            Err(error) => {
                documents.push(json!({ "name": name, "error": error.to_string() }));
                let failed_word = context.output.paint(Paint::Bad, "not verified:");
                context.output.remark(format_args!("{failed_word} repository {name}: {error}"));
                failed.get_or_insert(error);
            }
        }
    }
    if context.output.json {
        context.output.document(&json!({ "cluster": context.cluster()?.name, "repositories": documents }));
    }
    match failed {
        _ if damaged => Ok(End::DamageFound),
        Some(error) => Err(error),
        None => Ok(End::Done),
    }
}

/// Verifies what one repository has of the cluster; gives back the document, and whether anything is damaged.
async fn repository(
    name: &RepositoryName,
    several: bool,
    request: Option<&DeepRequest>,
    context: &Context,
) -> Result<(Value, bool)> {
    let store: Arc<dyn Store> = mirror::reading(context.config()?, Some(name), &context.random).await?;
    let cluster = context.cluster()?.name;
    let out = &context.output;
    if several && !out.json {
        out.line(out.paint(Paint::Strong, format_args!("repository {name}, {}", store.url())));
    }
    let document = repository::open(&*store).await?;
    let mut reports = Vec::new();
    for system in System::all(&store, &cluster).await? {
        let watch = watch(context);
        let mut report = match request {
            Some(request) => verify::deep(&system, &document, request, &*context.clock, &watch).await?,
            None => verify::fast(&system, &watch).await?,
        };
        let others = others(name, &system, context).await;
        verify::mend(&mut report, name, &system, &others, &watch).await?;
        if !out.json {
            tell(&report, out);
        }
        let interrupted = report.deep.as_ref().is_some_and(|deep| deep.interrupted);
        reports.push(report);
        if interrupted {
            if out.json {
                out.document(&json!({ "cluster": cluster, "repositories": [told(name, &*store, &reports)] }));
            }
            return Err(Interrupt::error().hint("repeat the command: it goes on where it was"));
        }
    }
    if reports.is_empty() && !out.json {
        out.line(format_args!("cluster {cluster} is not in {} yet; begin with: walden init", store.url()));
    }
    let damaged = reports.iter().any(|report| !report.damage.is_empty());
    Ok((told(name, &*store, &reports), damaged))
}

/// The other repositories that have something of the system, as far as they answer.
async fn others(name: &RepositoryName, system: &System, context: &Context) -> Vec<Other> {
    let Ok(config) = context.config() else { return Vec::new() };
    let names = [RepositoryName::first()].into_iter().chain(config.mirrors().iter().map(|(name, _)| name.clone()));
    let mut others = Vec::new();
    for other in names.filter(|other| other != name) {
        let open = async {
            let store = mirror::reading(config, Some(&other), &context.random).await?;
            System::open(store, &system.folder.cluster, system.folder.incarnation).await
        };
        match open.await {
            Ok(system) => others.push(Other { name: other, system }),
            Err(error) => tracing::debug!("repository {other} is not looked at for whole copies: {error}"),
        }
    }
    others
}

fn told(name: &RepositoryName, store: &dyn Store, reports: &[Report]) -> Value {
    json!({ "name": name, "url": store.url(), "systems": reports })
}

fn tell(report: &Report, out: &Output) {
    let looked = &report.looked;
    out.line(format_args!(
        "system {}: {} with {} ({}), {} ({})",
        report.incarnation,
        human::count(looked.backups, "backup"),
        human::count(looked.parts, "part"),
        human::size(looked.part_bytes),
        human::count(looked.segments, "segment"),
        human::size(looked.segment_bytes)
    ));
    if let Some(deep) = &report.deep {
        tell_deep(deep, out);
    }
    report.damage.iter().for_each(|found| tell_finding(found, out));
    for lost in &report.lost_backups {
        out.line(format_args!("{} backup {}: {}", out.paint(Paint::Bad, "cannot be restored:"), lost.id, lost.why));
    }
    for lost in &report.lost_instants {
        let at = |instant: &crate::plan::window::Instant| match instant.time {
            Some(time) => format!("{} ({})", human::time(time), instant.lsn),
            None => instant.lsn.to_string(),
        };
        out.line(format_args!(
            "{} timeline {}, after {} and before {}",
            out.paint(Paint::Bad, "cannot be recovered:"),
            lost.timeline,
            at(&lost.from),
            at(&lost.to)
        ));
    }
    for way in &report.recoverable {
        for window in &way.windows {
            out.line(format_args!(
                "{} timeline {}, {} ({} to {})",
                out.paint(Paint::Good, "can be recovered:"),
                way.timeline,
                words::window(window),
                window.from.lsn,
                window.to.lsn
            ));
        }
    }
    for remark in &report.remarks {
        out.line(format_args!("{} {remark}", out.paint(Paint::Warning, "look at:")));
    }
    let left = &report.leftovers;
    if left.attempts + left.parts > 0 {
        out.line(format_args!(
            "left behind: {} attempts, {} parts that no backup needs ({}); walden expire removes them",
            left.attempts,
            left.parts,
            human::size(left.bytes)
        ));
    }
    if report.damage.is_empty() {
        out.line(out.paint(Paint::Good, "nothing is damaged"));
    }
}

fn tell_deep(deep: &Deep, out: &Output) {
    let goes_on = deep.goes_on_from.map(|from| format!(", going on with the run of {}", human::time(from)));
    let cut = if deep.interrupted { ", and then interrupted" } else { "" };
    out.line(format_args!(
        "read and proved {} of {} objects, {} of {}{}{cut}",
        deep.objects,
        deep.of_objects,
        human::size(deep.bytes),
        human::size(deep.of_bytes),
        goes_on.unwrap_or_default()
    ));
    let never = match deep.never_checked {
        0 => String::new(),
        never => format!("; {never} objects were never proven by this host"),
    };
    if let Some(oldest) = deep.oldest_check.filter(|_| deep.objects < deep.of_objects) {
        out.line(format_args!("the oldest proof of the others is of {}{never}", human::time(oldest)));
    }
}

fn tell_finding(found: &Finding, out: &Output) {
    let through = found.through.as_ref().map(|last| format!(" to {last}")).unwrap_or_default();
    out.line(format_args!("{} {}{through}: {}", out.paint(Paint::Bad, "damaged:"), found.object, found.why));
    if !found.backups.is_empty() {
        let ids: Vec<String> = found.backups.iter().map(ToString::to_string).collect();
        out.line(format_args!("  it costs  backup {}", ids.join(", ")));
    }
    if let Some(costs) = &found.costs {
        out.line(format_args!("  it costs  {costs}"));
    }
    if !found.whole_in.is_empty() {
        out.line(format_args!("  whole in  {}", found.whole_in.join(", ")));
    }
    for mend in &found.mend {
        out.line(format_args!("  mend      {mend}"));
    }
}
