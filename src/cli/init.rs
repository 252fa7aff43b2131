//! `walden init`.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::json;

use super::{Context, Output, Paint, exit::End, programs};
use crate::{
    config::{self, ClusterConfig, Config, RepositoryConfig},
    error::{Error, Kind, Result},
    mirror::{self, Mirror},
    postgres::{
        ControlFile, SegmentSize, SystemId, Version,
        replication::{Facts, Replication},
    },
    repository::{self, FORMAT, Incarnation, REPOSITORY, System, SystemDocument},
    store::{
        Key, Store,
        probe::{self, Probe},
    },
};

/// The arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where the repository is to be: s3://bucket/prefix or file:///path. Writes a first walden.toml with --pgdata
    #[arg(long, requires = "pgdata", value_name = "URL")]
    url: Option<String>,
    /// The data directory of the cluster
    #[arg(long, requires = "url", value_name = "DIR")]
    pgdata: Option<PathBuf>,
    /// How to connect to the server, for walden.toml
    #[arg(
        long,
        requires = "url",
        value_name = "CONNINFO",
        default_value = "host=/var/run/postgresql dbname=postgres user=postgres"
    )]
    connection: String,
    /// This server was rolled back or copied and writes other WAL under old names: give it an archive of its own
    #[arg(long)]
    new_incarnation: bool,
}

pub async fn run(args: &Args, context: &Context) -> Result<End> {
    if let (Some(url), Some(pgdata)) = (&args.url, &args.pgdata) {
        write_first(args, url, pgdata, context)?;
    }
    let config = context.load(&[])?;
    let cluster = config.cluster(context.global.cluster.as_deref())?;
    let store = config::create_store(config.repository()?, context.random.clone()).await?;
    let conditional = prove_conditions(config.repository()?, context).await?;
    config::prove_lock(config.repository()?, context.random.clone()).await?;
    let mirrors = mirror::configured(&config, &context.random);
    for mirror in &mirrors {
        config::prove_lock(mirror.config(), context.random.clone()).await.map_err(|e| mirror.told(e))?;
    }
    prove_new(&*store, &mirrors).await?;
    let first = repository::init(&*store, &*context.clock, &context.random).await?;
    let server = Server::of(&cluster).await?;
    let mut number = cluster.incarnation;
    if args.new_incarnation {
        let known = System::all(&store, &cluster.name).await?;
        let highest =
            known.iter().map(|s| s.document.incarnation).filter(|i| i.system == server.system).map(|i| i.number).max();
        number = highest.map_or(1, |highest| highest + 1);
    }
    let document = SystemDocument {
        format: FORMAT,
        cluster: cluster.name.clone(),
        incarnation: Incarnation { system: server.system, number },
        postgres: server.version,
        segment_size: server.segment_size,
        block_size: server.block_size,
        first_seen: context.clock.now(),
    };
    let system = System::init(store.clone(), document).await?;
    for mirror in &mirrors {
        let there = mirror.init(&first, &*context.clock).await?;
        prove_conditions(mirror.config(), context).await.map_err(|e| mirror.told(e))?;
        there.know(&system).await.map_err(|e| mirror.told(e))?;
    }
    if number != cluster.incarnation {
        pin_incarnation(&config, cluster.name.as_str(), number)?;
    }
    let command = programs::archive_command(&config, &cluster.name)?;
    if context.output.json {
        context.output.document(&json!({
            "repository": store.url(),
            "mirrors": mirrors.iter().map(|m| json!({ "name": m.name, "url": m.url() })).collect::<Vec<_>>(),
            "conditional_writes": conditional,
            "system": system.document,
            "archive_command": command,
        }));
        return Ok(End::Done);
    }
    tell(&system, &store.url(), &mirrors, &command, &context.output);
    Ok(End::Done)
}

fn tell(system: &System, url: &str, mirrors: &[Arc<Mirror>], command: &str, out: &Output) {
    let document = &system.document;
    out.line(format_args!(
        "{} {} for cluster {} (PostgreSQL {}, system {})",
        out.paint(Paint::Good, "ready:"),
        url,
        document.cluster,
        document.postgres,
        document.incarnation
    ));
    for mirror in mirrors {
        out.line(format_args!(
            "{} {} as its copy, repository {}",
            out.paint(Paint::Good, "ready:"),
            mirror.url(),
            mirror.name
        ));
    }
    out.line("\nput these lines into postgresql.conf and restart the server:\n");
    out.line("  archive_mode = on");
    out.line(format_args!("  archive_command = '{}'", command.replace('\'', "''")));
    out.line("\nthen:  walden check   and   walden backup");
}

/// Refused where the first repository would be a new one although another still has what it held: most likely it was
/// lost, or is not mounted.
async fn prove_new(store: &dyn Store, mirrors: &[Arc<Mirror>]) -> Result<()> {
    match store.get(&Key::new(REPOSITORY)?, Some(0..0)).await {
        Err(error) if error.kind() == Kind::NotFound => {}
        found => return found.map(drop),
    }
    for mirror in mirrors {
        if mirror.look().await.is_ok_and(|document| document.mirror_of.is_some()) {
            return Err(Error::refused(format!(
                "{} is empty, but repository {} is a copy of what was there",
                store.url(),
                mirror.name
            ))
            .hint(format!(
                "if the first is lost: exchange the tables, so that [repository] has the url of {0} and [repository.{0}] that of \
                 the empty place; then walden init, and walden sync fills it",
                mirror.name
            )));
        }
    }
    Ok(())
}

/// The system that is to be archived.
struct Server {
    system: SystemId,
    version: Version,
    segment_size: SegmentSize,
    block_size: u32,
}

impl Server {
    /// From its data directory; where none is configured it is on another host, and the server itself is asked.
    async fn of(cluster: &ClusterConfig) -> Result<Self> {
        let connection = match (cluster.pgdata(), cluster.connection()) {
            (Ok(pgdata), _) => {
                let ControlFile { system, version, segment_size, block_size, .. } = ControlFile::read(pgdata)?;
                return Ok(Self { system, version, segment_size, block_size });
            }
            (Err(_), Ok(connection)) => connection,
            (Err(error), Err(_)) => return Err(error),
        };
        let facts = Replication::open(&connection.reveal().parse()?).await?.facts().await?;
        let Facts { identity, version, segment_size, block_size, .. } = facts;
        Ok(Self { system: identity.system, version, segment_size, block_size })
    }
}

/// Whether the store is used with put-if-absent. One that does not honour it is refused, unless it was accepted by name.
async fn prove_conditions(repository: &RepositoryConfig, context: &Context) -> Result<bool> {
    let store = config::open_conditional_store(repository, context.random.clone()).await?;
    let url = store.url();
    let probed = probe::put_if_absent(&*store, "", &context.random).await;
    if !repository.check_then_put {
        return match probed? {
            Probe::Honoured => Ok(true),
            Probe::NotHonoured(how) => Err(Error::refused(format!("{url} does not honour put-if-absent: {how}")).hint(
                "two servers that share an archive by mistake could destroy each other's WAL there. Use another store, or accept the risk for this repository: [repository] conditional_writes = \"check-then-put\"",
            )),
        };
    }
    let out = &context.output;
    match probed {
        Ok(Probe::Honoured) => {
            out.remark(format_args!("{url} honours put-if-absent: conditional_writes = \"check-then-put\" is not needed"));
        }
        Ok(Probe::NotHonoured(how)) => out.remark(format_args!(
            "warning: {url} does not honour put-if-absent ({how}); accepted by conditional_writes = \"check-then-put\""
        )),
        // Some stores refuse the condition itself. Whatever else is wrong, the next request will tell.
        Err(error) => out.remark(format_args!(
            "warning: {url} does not take conditional writes ({error}); accepted by conditional_writes = \"check-then-put\""
        )),
    }
    Ok(false)
}

/// Writes walden.toml where there is none; one that is there is left alone.
fn write_first(args: &Args, url: &str, pgdata: &Path, context: &Context) -> Result<()> {
    let path = context.global.config.clone().unwrap_or_else(|| PathBuf::from("walden.toml"));
    let name = context.global.cluster.as_deref().unwrap_or("main").parse()?;
    let pgdata = fs::canonicalize(pgdata).map_err(|e| Error::io("find", pgdata, e))?;
    let text = config::first_file(url, &name, &pgdata.to_string_lossy(), &args.connection);
    // Proven before it is written: a wrong URL should not leave a file behind.
    Config::of(Some((path.clone(), text.clone())), std::iter::empty(), &[])?.repository()?;
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
    }
    let mut file = match OpenOptions::new().write(true).create_new(true).mode(0o644).open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(Error::refused(format!("{} exists already", path.display()))
                .hint("change it by hand, and run walden init without --url and --pgdata"));
        }
        Err(e) => return Err(Error::io("create", &path, e)),
    };
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(|e| Error::io("write", &path, e))?;
    context.output.remark(format_args!("wrote {}", path.display()));
    Ok(())
}

/// Writes `incarnation = N` under `[cluster.NAME]`, by a temporary file and a rename.
fn pin_incarnation(config: &Config, cluster: &str, number: u32) -> Result<()> {
    let by_hand = || {
        Error::invalid("the new incarnation could not be written into the configuration")
            .hint(format!("set incarnation = {number} under [cluster.{cluster}]"))
    };
    let path = config.file.as_deref().ok_or_else(by_hand)?;
    let text = fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
    let header = format!("[cluster.{cluster}]");
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let at = lines.iter().position(|l| l.trim() == header).ok_or_else(by_hand)?;
    let end = lines[at + 1..].iter().position(|l| l.trim_start().starts_with('[')).map_or(lines.len(), |n| at + 1 + n);
    match (at + 1..end).find(|i| lines[*i].split('=').next().is_some_and(|key| key.trim() == "incarnation")) {
        Some(line) => lines[line] = format!("incarnation = {number}"),
        None => lines.insert(at + 1, format!("incarnation = {number}")),
    }
    let text = lines.join("\n") + "\n";
    let pinned = Config::of(Some((path.to_path_buf(), text.clone())), std::iter::empty(), &[])
        .and_then(|c| c.cluster(Some(cluster)))
        .is_ok_and(|c| c.incarnation == number);
    if !pinned {
        return Err(by_hand());
    }
    let temporary = path.with_extension("toml.new");
    let written = fs::write(&temporary, text)
        .and_then(|()| fs::set_permissions(&temporary, fs::metadata(path)?.permissions()))
        .and_then(|()| fs::File::open(&temporary)?.sync_all())
        .and_then(|()| fs::rename(&temporary, path));
    written.map_err(|e| Error::io("replace", path, e))
}
