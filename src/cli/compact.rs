//! `walden compact`: parts of which only a little is needed are written anew.

use std::sync::Arc;

use serde::Serialize;
use serde_json::json;

use super::{Context, Paint, exit::End, sync};
use crate::{
    config::KeepConfig,
    error::{Error, Result},
    human,
    keep::compact::{self, Around, Compacted, Compacting, CompactionPlan},
    mirror,
    repository::{BackupId, System},
    store::Store,
};

/// Below so many per cent, where the configuration does not say.
const BELOW: u8 = 50;

/// The arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Tell what would be written anew, and write nothing
    #[arg(long)]
    dry_run: bool,
}

pub async fn run(args: &Args, context: &Context) -> Result<End> {
    let (config, cluster, store) = (context.config()?, context.cluster()?, context.store().await?);
    let how = how(&config.keep, config.backup.compression);
    let plans = Plans::make(&store, &cluster.name, how, &[], context).await?;
    if !context.output.json {
        plans.tell(context);
        context.output.flush();
    }
    let mut done = Vec::new();
    if !args.dry_run {
        done = plans.carry_out(&store, context).await?;
    }
    if context.output.json {
        let done = (!args.dry_run).then_some(&done);
        context.output.document(&json!({ "plan": plans, "done": done }));
    }
    done.iter().for_each(|done| tell_done(done, context));
    Ok(End::Done)
}

/// How it is done by the configuration.
pub fn how(keep: &KeepConfig, level: i32) -> Compacting {
    let below = keep.compact.unwrap_or(BELOW);
    Compacting { below, limit: keep.compact_limit, rate_limit: keep.rate_limit, level }
}

/// What is to be written anew in each system.
#[derive(Debug, Serialize)]
pub struct Plans {
    systems: Vec<CompactionPlan>,
    #[serde(skip)]
    how: Compacting,
    #[serde(skip)]
    opened: Vec<System>,
}

impl Plans {
    /// Looks, as if these backups were gone. Changes nothing.
    pub async fn make(
        store: &Arc<dyn Store>,
        cluster: &crate::repository::ClusterName,
        how: Compacting,
        gone: &[BackupId],
        context: &Context,
    ) -> Result<Self> {
        let progress = context.progress();
        progress.start("reading manifests", None);
        let opened = System::all(store, cluster).await?;
        let mut systems = Vec::new();
        for system in &opened {
            systems.push(compact::plan_compaction(system, &how, gone).await?);
        }
        progress.finish();
        Ok(Self { systems, how, opened })
    }

    /// Says it.
    pub fn tell(&self, context: &Context) {
        let out = &context.output;
        for plan in &self.systems {
            for part in &plan.parts {
                out.line(format_args!(
                    "written anew: part {} of {}, about {} of {} are needed",
                    part.number,
                    part.backup,
                    human::size(part.stays()),
                    human::size(part.length)
                ));
            }
            if plan.later > 0 {
                out.line(format_args!("{} parts more have to wait for the next run: [keep] compact_limit", plan.later));
            }
        }
        if self.systems.iter().all(|plan| plan.parts.is_empty()) {
            out.line(format_args!("in no part less than {} % is needed, where it is worth a copy", self.how.below));
        }
    }

    /// Does it, and has the other repositories catch up.
    pub async fn carry_out(&self, store: &Arc<dyn Store>, context: &Context) -> Result<Vec<Compacted>> {
        let around = Around {
            clock: context.clock.clone(),
            random: context.random.clone(),
            progress: context.progress(),
            interrupt: context.interrupt(),
        };
        let mut done = Vec::new();
        for (system, plan) in self.opened.iter().zip(&self.systems) {
            done.push(compact::carry_out_compaction(system, plan, &self.how, &around).await?);
        }
        if done.iter().any(|done| done.folder.is_some()) {
            self.sync(store, context).await?;
        }
        Ok(done)
    }

    async fn sync(&self, store: &Arc<dyn Store>, context: &Context) -> Result<()> {
        let (config, cluster) = (context.config()?, context.cluster()?);
        for mirror in mirror::configured(config, &context.random) {
            match sync::bring_up(&mirror, store, &cluster, config, context).await {
                Ok(done) => sync::tell(&mirror, &done, context),
                Err(error) => late(&mirror.name, &error, context),
            }
        }
        Ok(())
    }
}

fn late(name: &crate::repository::RepositoryName, error: &Error, context: &Context) {
    context.output.remark(format_args!(
        "{} {name} has the parts as they were: {error}; it catches up later",
        context.output.paint(Paint::Warning, "warning:")
    ));
}

/// Says what came of it.
pub fn tell_done(done: &Compacted, context: &Context) {
    if done.folder.is_none() {
        return;
    }
    context.output.remark(format_args!(
        "{} parts written anew: {} in place of {}, which the next walden expire removes; {} backups have new manifests",
        done.parts,
        human::size(done.new_bytes),
        human::size(done.old_bytes),
        done.backups.len()
    ));
}
