//! `walden sync`: has the other repositories catch up with the first.

use std::sync::Arc;

use serde_json::json;

use super::{Context, Paint, exit::End};
use crate::{
    config::{ClusterConfig, Config},
    error::{Error, Result},
    human,
    mirror::{self, CaughtUp, Extent, Mirror, Round},
    repository::RepositoryName,
    store::Store,
};

/// The arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The repositories that are to catch up, as [repository.NAME] calls them; all by default
    #[arg(value_name = "NAME")]
    names: Vec<RepositoryName>,
}

pub async fn run(args: &Args, context: &Context) -> Result<End> {
    let config = context.config()?;
    let mirrors = chosen(&args.names, mirror::configured(config, &context.random))?;
    let clusters: Vec<ClusterConfig> = match (&context.global.cluster, config.clusters()) {
        (None, several) if several.len() > 1 => several.to_vec(),
        _ => vec![context.cluster()?],
    };
    let store = context.store().await?;
    let (mut documents, mut damaged, mut failed) = (Vec::new(), false, None);
    for mirror in &mirrors {
        for cluster in &clusters {
            let done = bring_up(mirror, &store, cluster, config, context).await;
            let mut document = json!({ "name": mirror.name, "url": mirror.url(), "cluster": cluster.name });
            match done {
                Ok(done) => {
                    damaged |= !done.problems.is_empty();
                    tell(mirror, &done, context);
                    document["copied"] = json!(done);
                }
                Err(error) => {
                    document["error"] = json!(error.to_string());
                    if let Some(before) = failed.replace(error) {
                        context.output.remark(format_args!("{} {before}", context.output.paint(Paint::Bad, "failed:")));
                    }
                }
            }
            documents.push(document);
        }
    }
    if context.output.json {
        context.output.document(&json!({ "repository": store.url(), "mirrors": documents }));
    }
    match failed {
        Some(error) => Err(error),
        None => Ok(if damaged { End::DamageFound } else { End::Done }),
    }
}

/// Brings a mirror up to the first, comparing everything.
pub async fn bring_up(
    mirror: &Mirror,
    first: &Arc<dyn Store>,
    cluster: &ClusterConfig,
    config: &Config,
    context: &Context,
) -> Result<CaughtUp> {
    let (progress, interrupt) = (context.progress(), context.interrupt());
    let round = Round {
        first,
        cluster: &cluster.name,
        state_dir: &config.archive.state_dir,
        extent: Extent::Whole,
        parallel: config.archive.parallel,
        limit: usize::MAX,
        wait: true,
        progress: &*progress,
        interrupt: Some(&interrupt),
        clock: &*context.clock,
    };
    round.of(mirror).await
}

fn chosen(names: &[RepositoryName], mirrors: Vec<Arc<Mirror>>) -> Result<Vec<Arc<Mirror>>> {
    if mirrors.is_empty() {
        return Err(Error::invalid("only one repository is configured")
            .hint("add [repository.NAME] with the url of another, then: walden init"));
    }
    let known = mirrors.iter().map(|m| m.name.to_string()).collect::<Vec<_>>().join(", ");
    if let Some(stranger) = names.iter().find(|name| !mirrors.iter().any(|m| m.name == **name)) {
        return Err(Error::invalid(format!("no repository \"{stranger}\" is configured besides the first"))
            .hint(format!("configured are {known}")));
    }
    Ok(mirrors.into_iter().filter(|m| names.is_empty() || names.contains(&m.name)).collect())
}

/// Says what was copied, and what could not be.
pub fn tell(mirror: &Mirror, done: &CaughtUp, context: &Context) {
    let out = &context.output;
    for problem in &done.problems {
        out.remark(format_args!("{} {problem}", out.paint(Paint::Bad, "not copied:")));
    }
    let state = if done.problems.is_empty() { "is in step with the first" } else { "lacks what could not be copied" };
    let backups = match done.backups.as_slice() {
        [] => String::new(),
        [one] => format!(", backup {one}"),
        several => format!(", {} backups", several.len()),
    };
    let copied = match done.objects {
        0 => "nothing was missing".to_owned(),
        objects => {
            format!("{objects} objects copied, {}: {} segments{backups}", human::size(done.bytes), done.segments)
        }
    };
    out.remark(format_args!("{} {state}; {copied}", mirror.name));
}
