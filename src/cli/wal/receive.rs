//! `walden wal receive`.

use std::{
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use serde_json::json;
use tokio::select;

use crate::{
    archive::receive::{Event, Listener, Receiver, Receiving, Weight},
    cli::{Context, exit::End},
    config::Override,
    error::Result,
    human, service,
};

/// The arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Go on behind WAL that neither the server nor the repository has any more; take a backup after that
    #[arg(long)]
    accept_gap: bool,
    /// Make the replication slot and nothing else: the server keeps its WAL from now on
    #[arg(long, conflicts_with_all = ["drop_slot", "accept_gap"])]
    create_slot: bool,
    /// Remove the replication slot and nothing else: the server need not keep WAL for it any more
    #[arg(long, conflicts_with = "accept_gap")]
    drop_slot: bool,
}

pub async fn run(args: &Args, context: &Context) -> Result<End> {
    let accept = Override {
        flag: "--accept-gap",
        table: "receive",
        cluster: None,
        name: "accept_gap",
        value: "true".to_owned(),
    };
    let config = context.load(if args.accept_gap { std::slice::from_ref(&accept) } else { &[] })?;
    let receiving = Receiving::of(&config, &config.cluster(context.global.cluster.as_deref())?)?;
    if args.create_slot || args.drop_slot {
        return change_slot(args, &receiving, context).await;
    }
    let told = Arc::new(Told { json: context.output.json, quiet: context.global.quiet, ..Told::default() });
    let receiver = Receiver {
        store: context.store().await?,
        receiving,
        clock: context.clock.clone(),
        random: context.random.clone(),
        listener: told.clone(),
    };
    service::ready();
    let waiting = select! {
        received = receiver.run(context.interrupt()) => received,
        () = service::stay_alive() => Ok(0),
    };
    service::stopping();
    let waiting = waiting?;
    if waiting > 0 {
        tracing::warn!(
            "{} of WAL are in the spool and not in the repository, which did not take them in time; the next start stores them, \
             and the server has them",
            human::size(waiting)
        );
    }
    if context.output.json {
        context.output.document(&json!({
            "pieces": told.pieces.load(Ordering::Relaxed),
            "segments": told.segments.load(Ordering::Relaxed),
            "waiting_bytes": waiting,
        }));
    }
    Ok(End::Done)
}

async fn change_slot(args: &Args, receiving: &Receiving, context: &Context) -> Result<End> {
    let slot = &receiving.slot;
    let (changed, done, not_done) = if args.create_slot {
        let created = Receiver::create_slot(receiving).await?;
        (created, format!("slot {slot} was made"), format!("slot {slot} is there already"))
    } else {
        let dropped = Receiver::drop_slot(receiving).await?;
        (dropped, format!("slot {slot} was removed"), format!("there is no slot {slot}"))
    };
    if context.output.json {
        context.output.document(&json!({ "slot": slot, "changed": changed }));
    } else {
        context.output.line(if changed { done } else { not_done });
    }
    Ok(End::Done)
}

/// Tells what happens: in the log for people, a line of JSON each on standard error for programs, a word to systemd.
#[derive(Debug, Default)]
struct Told {
    json: bool,
    quiet: bool,
    pieces: AtomicU64,
    segments: AtomicU64,
}

impl Listener for Told {
    fn tell(&self, event: &Event) {
        match event {
            Event::Piece { .. } => _ = self.pieces.fetch_add(1, Ordering::Relaxed),
            Event::Segment { .. } => _ = self.segments.fetch_add(1, Ordering::Relaxed),
            Event::Streaming { .. } | Event::Disconnected { .. } => service::status(&event.to_string()),
            _ => {}
        }
        if self.json {
            if !self.quiet {
                // Nobody reads there any more: the work goes on.
                _ = writeln!(io::stderr(), "{}", json!({ "receive": event }));
            }
            return;
        }
        match event.weight() {
            Weight::Warning => tracing::warn!("{event}"),
            Weight::Notable => tracing::info!("{event}"),
            Weight::Usual => tracing::debug!("{event}"),
        }
    }
}
