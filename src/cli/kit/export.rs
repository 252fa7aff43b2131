//! `walden kit export`.

use std::{path::PathBuf, time::Duration};

use serde_json::json;

use super::{
    key::{Choice, VARIABLE},
    print, tell_missing, word,
};
use crate::{
    cli::{Context, Paint, exit::End},
    config::Config,
    error::{Error, Result},
    kit::{self, Gathered, Lock, Locked, Manifest, Purpose, Wish, envelope, page::Sheet, stored},
    mirror,
    repository::{self, Cleared, FORMAT, KitLock, KitNote, System},
    seal::sha256,
};

/// The arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The file to write [default: walden-kit-HOST-TIME.tar.zst, with .age where it is locked]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Put the identity into it: that of the configuration, or of FILE
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true)]
    with_identity: Option<Option<PathBuf>>,
    /// Put the access keys into it, and the passwords of connections
    #[arg(long)]
    with_credentials: bool,
    /// The file that holds the passphrase, or gets the generated one; else $WALDEN_KIT_PASSPHRASE, else it is asked for
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// Make a passphrase by chance: shown once, or written to --passphrase-file
    #[arg(long)]
    generate_passphrase: bool,
    /// Print it: text to FILE or to standard output (-); a page with QR codes where FILE ends in .html
    #[arg(long, value_name = "FILE")]
    print: Option<PathBuf>,
    /// Store it in the repository, locked with the passphrase, else to the recipients; [kit] keep of them are kept
    #[arg(long)]
    to_repository: bool,
}

/// How long a repository may take that is only told of a kit.
const PATIENCE: Duration = Duration::from_secs(10);

pub async fn run(args: &Args, context: &Context) -> Result<End> {
    print::prove(args.print.as_deref(), context)?;
    let config = context.config()?;
    let now = context.clock.now();
    let wish = Wish { credentials: args.with_credentials, identity: args.with_identity.clone() };
    let Gathered { contents, remarks } = kit::gather(config, &wish, now).await?;
    let lock = lock(args, &contents, context).await?;
    let bytes = envelope::seal(&contents, &lock)?;
    let locked = envelope::locked(&bytes)?;
    let manifest = &contents.manifest;
    let file = file(args, manifest, locked);
    if let Some(file) = &file {
        kit::write_new(file, &bytes)?;
    }
    if let Some(to) = &args.print {
        print::print(&Sheet { manifest, locked, bytes: &bytes }, to, context)?;
    }
    let note = note(&contents, locked, &bytes)?;
    let id = stored::id(&note).to_owned();
    let adding = add(args.to_repository.then(|| bytes.clone()), note, config, context);
    let noted = if args.to_repository {
        adding.await
    } else {
        let late = |_| Err(Error::unavailable("it did not answer"));
        tokio::time::timeout(PATIENCE, adding).await.unwrap_or_else(late)
    };
    let out = &context.output;
    let (number, cleared) = match noted {
        Err(error) if args.to_repository => return Err(error),
        Err(error) => {
            // The kit is there; that the repository cannot tell of it is worth a word.
            out.remark(format_args!("note: the repository was not told of this kit: {error}"));
            (None, Cleared::default())
        }
        Ok((number, cleared)) => (args.to_repository.then_some(number), cleared),
    };
    if let Some(why) = &cleared.refused {
        out.remark(format_args!("note: older kits stay in the repository: {why}"));
    }
    remarks.iter().for_each(|remark| out.remark(format_args!("note: {remark}")));
    if out.json {
        out.document(&json!({
            "file": file,
            "stored": number,
            "removed": cleared.removed,
            "bytes": bytes.len(),
            "sha256": sha256(&bytes),
            "locked": word(locked),
            "manifest": manifest,
        }));
        return Ok(End::Done);
    }
    // A kit that is printed to standard output stands there alone.
    if args.print.as_deref().is_none_or(|to| to.as_os_str() != "-") {
        let done = out.paint(Paint::Good, "kit:");
        let place = file.map(|file| file.display().to_string());
        let stored = number.map(|_| format!("{id} in the repository"));
        let places: Vec<String> = [place, stored].into_iter().flatten().collect();
        out.line(format_args!("{done} {} ({} bytes, {})", places.join(", and "), bytes.len(), words(locked)));
        tell_missing(manifest, context);
    }
    Ok(End::Done)
}

fn words(locked: Locked) -> &'static str {
    match locked {
        Locked::Open => "not locked: it holds no secret",
        Locked::Passphrase => "locked with the passphrase",
        Locked::Recipients => "locked to the recipients",
    }
}

/// The file to write: the one that was named, or where nothing else was asked for, one of today's name.
fn file(args: &Args, manifest: &Manifest, locked: Locked) -> Option<PathBuf> {
    let default = || {
        let age = if locked == Locked::Open { "" } else { ".age" };
        let time = manifest.made.format("%Y%m%dT%H%M%SZ");
        let host: String = manifest.host.chars().filter(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c)).collect();
        PathBuf::from(format!("walden-kit-{host}-{time}.tar.zst{age}"))
    };
    let elsewhere = args.to_repository || args.print.is_some();
    args.output.clone().or_else(|| (!elsewhere).then(default))
}

/// A passphrase where one is given, and where there is a secret; else, for the repository, its recipients.
async fn lock(args: &Args, contents: &kit::Contents, context: &Context) -> Result<Lock> {
    let Manifest { host, clusters, recipients, identity, .. } = &contents.manifest;
    let known: Vec<String> = std::iter::once(host).chain(clusters).cloned().collect();
    let choice = Choice { file: args.passphrase_file.as_ref(), generate: args.generate_passphrase, known: &known };
    if let Some(passphrase) = choice.given(context)? {
        return Ok(Lock::Passphrase(passphrase));
    }
    // Where the repository is encrypted, nothing in it names databases. For whoever takes a file away, too, a passphrase
    // is the better lock of secrets.
    let repository_alone = args.output.is_none() && args.print.is_none();
    let is_sealed = args.to_repository && !recipients.is_empty() && !identity;
    if is_sealed && (repository_alone || !contents.is_secret()) {
        return Ok(Lock::Recipients(recipients.clone()));
    }
    if !contents.is_secret() {
        return Ok(Lock::Open);
    }
    choice.asked(context).await?.map(Lock::Passphrase).ok_or_else(|| {
        Error::refused("the kit holds a secret: it is not written without a passphrase").hint(format!(
            "add --passphrase-file FILE, also with --generate-passphrase, or set {VARIABLE}, or run it at a terminal"
        ))
    })
}

fn note(contents: &kit::Contents, locked: Locked, bytes: &[u8]) -> Result<KitNote> {
    let Manifest { made, host, walden, identity, credentials, recipients, members, .. } = &contents.manifest;
    let configuration = members.iter().find(|member| member.purpose == Purpose::Configuration);
    Ok(KitNote {
        format: FORMAT,
        made: *made,
        host: host.clone(),
        walden: walden.clone(),
        locked: match locked {
            Locked::Open => KitLock::Open,
            Locked::Passphrase => KitLock::Passphrase,
            Locked::Recipients => KitLock::Recipients,
        },
        identity: *identity,
        credentials: *credentials,
        recipients: recipients.clone(),
        configuration_sha256: configuration.map(|member| member.sha256.clone()).unwrap_or_default(),
        bytes: bytes.len() as u64,
        sha256: sha256(bytes),
        object: None,
    })
}

/// Tells the repository of the kit, and stores it there if there are bytes.
async fn add(kit: Option<Vec<u8>>, note: KitNote, config: &Config, context: &Context) -> Result<(u32, Cleared)> {
    let cluster = context.cluster()?;
    let store = context.store().await?;
    let systems = System::all(&store, &cluster.name).await?;
    let system = systems.into_iter().rfind(|system| system.document.incarnation.number == cluster.incarnation);
    let system = system.ok_or_else(|| {
        Error::invalid(format!("cluster {} is not in {} yet", cluster.name, store.url()))
            .hint("begin with: walden init")
    })?;
    let is_stored = kit.is_some();
    let (number, mut cleared) = system.add_kit(note, kit.map(Into::into), config.kit.keep).await?;
    if is_stored && let Err(error) = clear_mirrors(&system, config, context).await {
        cleared.refused = cleared.refused.or_else(|| Some(error.to_string()));
    }
    Ok((number, cleared))
}

/// What is copied to the other repositories goes from there by the same rule.
async fn clear_mirrors(system: &System, config: &Config, context: &Context) -> Result<()> {
    let first = repository::open(&*system.store).await?;
    for mirror in mirror::configured(config, &context.random) {
        let there = System { store: mirror.open(&first).await?.store.clone(), ..system.clone() };
        if let Some(why) = there.clear_kits(config.kit.keep).await?.refused {
            return Err(Error::refused(why).context(format_args!("repository {}", mirror.name)));
        }
    }
    Ok(())
}
