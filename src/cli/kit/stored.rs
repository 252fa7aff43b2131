//! `walden kit list` and `walden kit fetch`: kits that are stored in a repository, of which nothing but its address has
//! to be known.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::json;

use crate::{
    cli::{Align, Context, Paint, Table, exit::End},
    config::{self, Config, Override},
    error::{Error, Kind, Result},
    human,
    kit::{self, Locked, envelope, stored},
    report::plain,
    repository::{self, ClusterName, KitLock, KitNote, ToldKit, ToldKits},
    store::Store,
};

/// The flags that say in which repository kits are looked for, when it is not that of the configuration.
#[derive(Debug, clap::Args)]
pub struct Place {
    /// A repository by its address alone, s3://bucket/prefix or file:///path: no walden.toml is read. Access keys come
    /// from the environment, or from where AWS's programs keep them
    #[arg(long, value_name = "URL")]
    pub from: Option<String>,
    /// The S3 server of --from, where it is not Amazon's: https://HOST:PORT
    #[arg(long, value_name = "URL", requires = "from")]
    endpoint: Option<String>,
    /// The region of --from
    #[arg(long, value_name = "REGION", requires = "from")]
    region: Option<String>,
    /// Put the bucket of --from into the path instead of the host name; most servers other than Amazon's need it
    #[arg(long, requires = "from")]
    path_style: bool,
}

/// The arguments of `walden kit list`.
#[derive(Debug, clap::Args)]
pub struct List {
    #[command(flatten)]
    place: Place,
}

/// The arguments of `walden kit fetch`.
#[derive(Debug, clap::Args)]
pub struct Fetch {
    /// The kit, as walden kit list calls it [default: the newest]
    kit: Option<String>,
    #[command(flatten)]
    place: Place,
    /// The file to write, - for standard output [default: walden-kit-CLUSTER-TIME.tar.zst, with .age where it is locked]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

impl Place {
    /// The kits that the repository tells of, and of which cluster they are where one is meant.
    async fn look(&self, context: &Context) -> Result<(Arc<dyn Store>, ToldKits, Option<ClusterName>)> {
        let store = self.open(context).await.map_err(|e| self.told(e))?;
        let cluster = match &context.global.cluster {
            Some(name) => Some(name.parse()?),
            None if self.from.is_some() => None,
            None => context.cluster().ok().map(|cluster| cluster.name),
        };
        let told = match repository::kits(&*store, cluster.as_ref()).await {
            Ok(told) => told,
            // Who does not answer is not asked again for as long.
            Err(error) if error.kind() == Kind::Unavailable => return Err(self.told(error)),
            Err(error) => return Err(self.told(stored::no_repository(&*store).await.unwrap_or(error))),
        };
        let out = &context.output;
        for (key, error) in &told.unreadable {
            let note = out.paint(Paint::Warning, "warning:");
            out.remark(format_args!("{note} what {key} tells of a kit cannot be read: {error}"));
        }
        Ok((store, told, cluster))
    }

    async fn open(&self, context: &Context) -> Result<Arc<dyn Store>> {
        let Some(url) = &self.from else {
            let unnamed = |e: Error| e.hint("name it by its address: --from s3://bucket/prefix; or configure it");
            context.config()?.repository().map_err(unnamed)?;
            return context.reading().await;
        };
        if context.global.repository.is_some() {
            return Err(Error::invalid("--from and --repository both say where the repository is")
                .hint("leave one of them out"));
        }
        let set = |flag, name, value: &String| Override {
            flag,
            table: "repository",
            cluster: None,
            name,
            value: value.clone(),
        };
        let mut overrides = vec![set("--from", "url", url)];
        overrides.extend(self.endpoint.as_ref().map(|endpoint| set("--endpoint", "endpoint", endpoint)));
        overrides.extend(self.region.as_ref().map(|region| set("--region", "region", region)));
        overrides.extend(self.path_style.then(|| set("--path-style", "path_style", &"true".to_owned())));
        let config = Config::of(None, std::env::vars_os(), &overrides)?;
        config::open_store(config.repository()?, context.random.clone()).await
    }

    /// The kit that is meant, as its file is.
    async fn fetch(&self, wanted: Option<&str>, context: &Context) -> Result<(ToldKit, Vec<u8>)> {
        let (store, told, cluster) = self.look(context).await?;
        let chosen = stored::choose(&*store, &told, cluster.as_ref(), wanted).await.map_err(|e| self.told(e))?;
        let bytes = chosen.read(&*store).await.map_err(|e| self.told(e))?;
        Ok((chosen, bytes.to_vec()))
    }

    /// The kit that is meant, for whoever opens it at once.
    pub async fn take(&self, wanted: Option<&Path>, context: &Context) -> Result<Vec<u8>> {
        let wanted = wanted.map(|wanted| wanted.to_string_lossy());
        let (ToldKit { folder, note, .. }, bytes) = self.fetch(wanted.as_deref(), context).await?;
        let (id, host) = (plain(stored::id(&note)), plain(&note.host));
        let (out, cluster, made) = (&context.output, folder.cluster, human::time(note.made));
        out.remark(format_args!("kit {id} of cluster {cluster}, made on {host} at {made}"));
        if envelope::locked(&bytes)? != Locked::Passphrase {
            let note = out.paint(Paint::Warning, "note:");
            out.remark(format_args!(
                "{note} whoever may write to the repository can have put it there, because no passphrase locks it: walden kit show"
            ));
        }
        Ok(bytes)
    }

    /// Where there is no walden.toml, hints say how its keys are set besides.
    fn told(&self, error: Error) -> Error {
        match error.hint_text().filter(|hint| self.from.is_some() && hint.contains("[repository]")) {
            Some(hint) => {
                let hint = format!(
                    "{hint}; without walden.toml: --from, --endpoint, --region, --path-style, and every key as in WALDEN_REPOSITORY_CA_FILE"
                );
                error.hint(hint)
            }
            None => error,
        }
    }
}

pub async fn list(args: &List, context: &Context) -> Result<End> {
    let (store, told, cluster) = args.place.look(context).await?;
    let (here, elsewhere): (Vec<&ToldKit>, Vec<&ToldKit>) = told.kits.iter().partition(|kit| kit.note.object.is_some());
    let out = &context.output;
    if out.json {
        let documents = |kits: &[&ToldKit]| kits.iter().map(|kit| document(kit)).collect::<Vec<_>>();
        let unreadable: Vec<_> = told
            .unreadable
            .iter()
            .map(|(key, error)| json!({ "key": key.as_str(), "why": error.to_string() }))
            .collect();
        out.document(&json!({
            "repository": store.url(),
            "kits": documents(&here),
            "elsewhere": documents(&elsewhere),
            "unreadable": unreadable,
        }));
        return Ok(End::Done);
    }
    if here.is_empty() {
        let none = args.place.told(stored::none(&*store, &told, cluster.as_ref()).await);
        if none.kind() != Kind::NotFound {
            return Err(none);
        }
        out.line(&none);
        none.hint_text().iter().for_each(|hint| out.remark(hint));
        return Ok(End::Done);
    }
    out.line(table(&here));
    if let Some(ToldKit { note, .. }) = elsewhere.first().filter(|kit| kit.note.made > here[0].note.made) {
        out.remark(format_args!(
            "a newer one, made on {} at {}, is kept elsewhere",
            plain(&note.host),
            human::time(note.made)
        ));
    }
    Ok(End::Done)
}

fn document(ToldKit { folder, number, note }: &ToldKit) -> serde_json::Value {
    let mut document = json!(note);
    document["id"] = json!(stored::id(note));
    document["cluster"] = json!(folder.cluster);
    document["system"] = json!(folder.incarnation);
    document["number"] = json!(number);
    document
}

fn table(kits: &[&ToldKit]) -> Table {
    let mut table = Table::new([
        ("KIT", Align::Left),
        ("CLUSTER", Align::Left),
        ("MADE", Align::Left),
        ("HOST", Align::Left),
        ("LOCKED", Align::Left),
        ("HOLDS", Align::Left),
        ("SIZE", Align::Right),
    ]);
    for ToldKit { folder, note, .. } in kits {
        table.row([
            plain(stored::id(note)),
            folder.cluster.to_string(),
            human::time(note.made),
            plain(&note.host),
            locked(note),
            holds(note).to_owned(),
            human::size(note.bytes),
        ]);
    }
    table
}

/// What opens it.
fn locked(note: &KitNote) -> String {
    match note.locked {
        KitLock::Open => "no".to_owned(),
        KitLock::Passphrase => "passphrase".to_owned(),
        KitLock::Recipients => {
            let short = |recipient: &String| plain(&recipient.chars().take(12).collect::<String>());
            note.recipients.iter().map(short).collect::<Vec<_>>().join(", ")
        }
    }
}

fn holds(note: &KitNote) -> &'static str {
    match (note.identity, note.credentials) {
        (true, true) => "identity, credentials",
        (true, false) => "identity",
        (false, true) => "credentials",
        (false, false) => "no secret",
    }
}

pub async fn fetch(args: &Fetch, context: &Context) -> Result<End> {
    let out = &context.output;
    let to_stdout = args.output.as_deref() == Some(Path::new("-"));
    if to_stdout && out.json {
        return Err(Error::invalid("--output - and --json would both write to standard output")
            .hint("write to a file: --output FILE"));
    }
    let (found, bytes) = args.place.fetch(args.kit.as_deref(), context).await?;
    if to_stdout {
        out.raw(&bytes);
        return Ok(End::Done);
    }
    let file = args.output.clone().unwrap_or_else(|| name(&found));
    kit::write_new(&file, &bytes)?;
    if out.json {
        out.document(&json!({ "file": file, "kit": document(&found) }));
        return Ok(End::Done);
    }
    let ToldKit { folder, note, .. } = &found;
    out.line(format_args!(
        "{} {} ({}, locked: {}), of cluster {}, made on {} at {}",
        out.paint(Paint::Good, "kit:"),
        file.display(),
        human::size(note.bytes),
        locked(note),
        folder.cluster,
        plain(&note.host),
        human::time(note.made)
    ));
    out.remark(format_args!("next:  walden kit import {}", file.display()));
    Ok(End::Done)
}

fn name(ToldKit { folder, note, .. }: &ToldKit) -> PathBuf {
    let age = if note.locked == KitLock::Open { "" } else { ".age" };
    format!("walden-kit-{}-{}.tar.zst{age}", folder.cluster, note.made.format("%Y%m%dT%H%M%SZ")).into()
}
