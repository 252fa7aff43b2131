//! `walden keys rewrap`.

use std::{path::PathBuf, sync::Arc};

use serde_json::json;

use crate::{
    cli::{Context, Paint, backup::rate_limit, exit::End},
    config,
    error::{Error, Result},
    human,
    keys::{Rewrapped, Rewrapping},
    mirror,
    pace::Throttle,
    repository,
    seal::age::Identities,
    store::{
        Store,
        probe::{self, Probe},
    },
};

/// The arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The file with an identity that opens the old objects; the configuration's identity_file otherwise
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
    /// The most bytes to read in a second, such as 50MB; backup.rate_limit of the configuration otherwise
    #[arg(long, value_name = "SIZE")]
    rate_limit: Option<String>,
}

pub async fn run(args: &Args, context: &Context) -> Result<End> {
    let config = context.load(rate_limit("backup", args.rate_limit.as_ref()).as_slice())?;
    let encryption = &config.encryption;
    if encryption.recipients.is_empty() {
        return Err(Error::invalid("there are no recipients: for whom should the objects be?")
            .hint("add one with: walden keys add RECIPIENT"));
    }
    let file = args.identity.as_ref().or(encryption.identity_file.as_ref()).ok_or_else(|| {
        Error::refused("this host holds no identity, and what is encrypted has to be opened to be rewrapped")
            .hint("name its file with --identity, on a host that may hold it for so long")
    })?;
    let identities = Identities::read(file)?;
    let (progress, interrupt) = (context.progress(), context.interrupt());
    let rewrapping = Rewrapping {
        identities: &identities,
        recipients: &encryption.recipients,
        parallel: config.archive.parallel,
        throttle: Arc::new(Throttle::new(config.backup.rate_limit)),
        progress: &*progress,
        interrupt: &interrupt,
    };
    let first = config::open_store(config.repository()?, context.random.clone()).await?;
    let document = repository::open(&*first).await?;
    let mut stores: Vec<(String, Arc<dyn Store>)> = vec![("first".to_owned(), first)];
    for mirror in mirror::configured(&config, &context.random) {
        stores.push((mirror.name.to_string(), mirror.open(&document).await?.store.clone()));
    }
    let mut all = Vec::new();
    for (name, store) in stores {
        prove_replacing(&store, context).await.map_err(|e| e.context(format_args!("repository {name}")))?;
        let done = rewrapping.all(&store).await;
        progress.finish();
        let done = done.map_err(|e| e.context(format_args!("repository {name}")))?;
        tell(&name, &done, context);
        all.push((name, store.url(), done));
    }
    if context.output.json {
        let documents: Vec<_> =
            all.iter().map(|(name, url, done)| json!({ "name": name, "url": url, "rewrapped": done })).collect();
        context.output.document(&json!({ "repositories": documents }));
    }
    let problems: usize = all.iter().map(|(.., done)| done.problems.len()).sum();
    match all.iter().any(|(.., done)| done.damaged) {
        _ if problems == 0 => Ok(End::Done),
        true => Ok(End::DamageFound),
        false => Err(Error::refused(format!("{problems} objects are as they were, each for its reason"))
            .hint("of those that cannot be opened, name a file with their identity: --identity FILE; the next run goes on with those that are locked now")),
    }
}

/// That an object takes the place of another only while that is the one that was read.
async fn prove_replacing(store: &Arc<dyn Store>, context: &Context) -> Result<()> {
    match probe::replace_if_unchanged(&**store, "", &context.random).await? {
        Probe::Honoured => Ok(()),
        Probe::NotHonoured(how) => Err(Error::refused(format!("{} does not honour If-Match: {how}; nothing was changed", store.url()))
            .hint("use conditional_writes = \"check-then-put\" under [repository], which looks before it replaces, and let nothing else rewrap or expire meanwhile")),
    }
}

fn tell(name: &str, done: &Rewrapped, context: &Context) {
    let out = &context.output;
    for (key, why) in done.problems.iter().take(20) {
        out.remark(format_args!("{} {key}: {why}", out.paint(Paint::Bad, "as it was:")));
    }
    if let Some(more) = done.problems.len().checked_sub(20).filter(|more| *more > 0) {
        out.remark(format_args!("{} {more} more", out.paint(Paint::Bad, "as they were:")));
    }
    let plain = match done.plain {
        0 => String::new(),
        plain => format!("; {plain} are not encrypted and stay so"),
    };
    let kits = match done.kits {
        0 => String::new(),
        kits => {
            let kits = human::count(kits, "recovery kit");
            format!("; {kits} stay locked as before: walden kit export --to-repository stores a new one")
        }
    };
    out.remark(format_args!(
        "{name}: {} objects rewrapped, {}; {} were for these recipients already{plain}{kits}",
        done.objects,
        human::size(done.bytes),
        done.already
    ));
}
