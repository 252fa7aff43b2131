//! The local way: reads the data directory of a running server in parallel, between `pg_backup_start` and
//! `pg_backup_stop`.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, atomic::AtomicU64},
};

use tokio::runtime::Handle;

use super::{
    ancestor::{self, Ancestor},
    catalogue, environment, extra,
    finish::{Taken, finish, new_id, with_lease},
    origin,
    part::{Attributes, Parts},
    queue::Queue,
    request::{BackupOutcome, BackupRequest, Surroundings, check_archiving},
    source::{self, Pages},
    summaries::{self, Changed},
    workers::{self, Haul, Job},
};
use crate::{
    error::{Error, Kind, Result},
    pace::{Crew, Throttle},
    postgres::{
        ControlFile, Lsn, TimelineHistory, TimelineId,
        backup_label::BackupLabel,
        control::CONTROL_FILE,
        datadir::{self, FileEntry, FileKind, Rules, Walk},
        sql::{BackupStop, ServerFacts, Session},
    },
    repository::{
        BackupId, ClusterName, Directory, FORMAT, Incarnation, IntentDocument, Origin, System, Tablespace, join,
    },
    store::Store,
};

/// Takes a backup of the server that runs in `pgdata`.
pub async fn backup(
    store: Arc<dyn Store>,
    cluster: &ClusterName,
    request: &BackupRequest,
    pgdata: &Path,
    around: &Surroundings,
) -> Result<BackupOutcome> {
    let control = ControlFile::read(pgdata)?;
    let session = Session::open(&request.conninfo).await?;
    let facts = session.server_facts().await?;
    check_server(&facts, &control, pgdata)?;
    check_archiving(facts.in_recovery, facts.wal_level, facts.archive_mode)?;
    let incarnation = Incarnation { system: control.system, number: request.incarnation };
    let system = request.with_copies(System::open(store, cluster, incarnation).await?).await?;
    let driver = Driver { system: &system, request, pgdata, around, control, facts };
    with_lease(&system, around, driver.run(session)).await
}

/// That the server is the one whose files will be read.
fn check_server(facts: &ServerFacts, control: &ControlFile, pgdata: &Path) -> Result<()> {
    if facts.system != control.system {
        return Err(Error::invalid(format!(
            "the server belongs to system {}, but {} to system {}",
            facts.system,
            pgdata.display(),
            control.system
        ))
        .hint("correct connection or pgdata of the cluster in walden.toml"));
    }
    Ok(())
}

struct Driver<'a> {
    system: &'a System,
    request: &'a BackupRequest,
    pgdata: &'a Path,
    around: &'a Surroundings,
    control: ControlFile,
    facts: ServerFacts,
}

impl Driver<'_> {
    async fn run(&self, session: Session) -> Result<BackupOutcome> {
        let id = new_id(self.system, self.around).await?;
        let origin = self.origin().await?;
        self.around.progress.start("reading the last backup", None);
        let history = self.history().await?;
        let mut ancestor = match &history {
            Some(history) => ancestor::find(self.system, history, Some(&origin), self.control.block_size).await?,
            None => None,
        };
        self.intend(id, &origin, ancestor.as_ref()).await?;
        if let Some(ancestor) = &mut ancestor {
            ancestor.forget_condemned().await?;
        }
        self.around.progress.start("waiting for the checkpoint", None);
        let started = self.around.clock.now();
        let start = session.backup_start(&self.request.label_for(id), true).await?;
        let (walk, changed) = tokio::join!(self.walk(), self.changed(&session, ancestor.as_ref(), start));
        let mut walk = walk?;
        self.around.progress.start("backing up", Some(walk.size()));
        let files = std::mem::take(&mut walk.files);
        let job = self.job(id, start, files, ancestor, changed);
        let (parts, level) = (job.parts.clone(), self.request.level);
        let (done, mut catalogue, extra, platform) = tokio::join!(
            workers::run(job),
            catalogue::take(self.system, &self.request.conninfo, id, started, level),
            extra::take(self.system, self.request, self.around, &self.facts, self.pgdata, id),
            environment::of_process(self.pgdata),
        );
        catalogue.environment.process(platform);
        let (done, extra, unnamed) = (done?, extra?, std::mem::take(&mut catalogue.missing));
        let workers::Done { mut haul, ancestor, read } = done;
        let (stop, control, last) = self.last_part(parts, session).await?;
        haul.files.append(last.files);
        haul.parts.extend(last.parts);
        let skipped = walk.skipped.iter().map(|s| format!("{} {}", s.path.display(), s.why));
        let skipped = skipped.chain(extra.words()).collect();
        let taken = Taken {
            id,
            control,
            version_number: self.facts.version_number,
            label: BackupLabel::parse(&stop.label)?,
            stop: stop.stop,
            started,
            stopped: self.around.clock.now(),
            haul,
            directories: directories(&walk),
            tablespaces: tablespaces(&walk),
            catalogue,
            origin: Some(origin),
            ancestor: ancestor.map(Arc::new),
            extra,
            history,
            read: Some(read),
        };
        let document = finish(self.system, self.request, self.around, taken).await?;
        Ok(BackupOutcome { document, skipped, unnamed, notes: Vec::new() })
    }

    async fn walk(&self) -> Result<Walk> {
        let mut rules = Rules::of(&self.control);
        if let Some(directory) = &self.facts.stats_temp_directory {
            rules = rules.statistics_directory(self.pgdata, directory);
        }
        let (root, exclude) = (self.pgdata.to_path_buf(), self.request.exclude.clone());
        join(
            tokio::task::spawn_blocking(move || {
                let mut walk = datadir::walk(&root, &rules)?;
                walk.files.retain(|f| !exclude.iter().any(|e| f.path.starts_with(e)));
                walk.directories.retain(|d| !exclude.iter().any(|e| d.path.starts_with(e) && d.path != *e));
                Ok(walk)
            })
            .await,
        )?
    }

    /// The time on each file system, before the first file is read.
    async fn origin(&self) -> Result<Origin> {
        let (pgdata, random) = (self.pgdata.to_path_buf(), self.around.random.clone());
        let origin = tokio::task::spawn_blocking(move || {
            let mut directories = vec![pgdata.clone()];
            // What lies in pg_tblspc are links to other directories, or directories.
            let tablespaces = std::fs::read_dir(pgdata.join("pg_tblspc")).into_iter().flatten().flatten();
            directories.extend(tablespaces.map(|entry| entry.path()));
            origin::of(&directories, &random)
        });
        join(origin.await)
    }

    /// The way to here.
    async fn history(&self) -> Result<Option<TimelineHistory>> {
        let timeline = self.facts.timeline;
        match self.system.history(timeline).await {
            // A new timeline's is archived with its first segments, and what is encrypted this host may not read.
            Err(e) if matches!(e.kind(), Kind::NotFound | Kind::Refused) => self.own_history(timeline).transpose(),
            history => history.map(Some),
        }
    }

    /// What WAL summaries tell of the time since the ancestor.
    async fn changed(&self, session: &Session, ancestor: Option<&Ancestor>, start: Lsn) -> Option<Changed> {
        let since = ancestor.and_then(Ancestor::since).filter(|_| self.request.wal_summaries)?;
        summaries::changed(session, since, self.facts.timeline, start, self.control.has_checksums()).await
    }

    async fn intend(&self, id: BackupId, origin: &Origin, ancestor: Option<&Ancestor>) -> Result<()> {
        let intent = IntentDocument {
            format: FORMAT,
            id,
            timeline: self.facts.timeline,
            begun: self.around.clock.now(),
            block_size: self.control.block_size,
            origin: Some(origin.clone()),
            references: ancestor.map_or_else(Vec::new, Ancestor::references),
            publishes: BTreeMap::new(),
        };
        self.system.intend(&intent, 1).await
    }

    /// The history as it lies in the data directory.
    fn own_history(&self, timeline: TimelineId) -> Option<Result<TimelineHistory>> {
        let text = std::fs::read_to_string(self.pgdata.join(format!("pg_wal/{}.history", timeline.hex()))).ok()?;
        Some(TimelineHistory::parse(timeline, &text))
    }

    fn job(
        &self,
        backup: BackupId,
        start: Lsn,
        mut files: Vec<FileEntry>,
        ancestor: Option<Ancestor>,
        changed: Option<Changed>,
    ) -> Job {
        files.retain(|file| file.kind() != FileKind::Control);
        Job {
            parts: Arc::new(Parts::new(self.system.clone(), backup, self.request.level)),
            ancestor,
            changed,
            block_size: self.control.block_size,
            root: self.pgdata.to_path_buf(),
            pages: self.control.has_checksums().then_some(Pages { size: self.control.block_size, first: 0, start }),
            relation_segment_blocks: self.control.relation_segment_blocks,
            throttle: Throttle::new(self.request.rate_limit),
            crew: Crew::new(self.request.parallel),
            done: AtomicU64::new(0),
            progress: self.around.progress.clone(),
            interrupt: self.around.interrupt.clone(),
            queue: Mutex::new(Queue::of(files)),
        }
    }

    /// The last part: the control file, read after everything else, and what `pg_backup_stop` gives.
    async fn last_part(&self, parts: Arc<Parts>, session: Session) -> Result<(BackupStop, ControlFile, Haul)> {
        self.around.interrupt.check()?;
        let runtime = Handle::current();
        let pgdata = self.pgdata.to_path_buf();
        let mut haul = Haul::default();
        let attributes = Attributes { mode: 0o600, mtime: self.around.clock.now() };
        let (part, control, file) = join(
            tokio::task::spawn_blocking(move || {
                let mut part = parts.begin(&runtime)?;
                let (control, bytes) = ControlFile::read_with_bytes(&pgdata)?;
                let file = source::store_bytes(Path::new(CONTROL_FILE), &bytes, attributes, &mut part)?;
                Ok::<_, Error>((part, control, file))
            })
            .await,
        )??;
        haul.files.push(&file);
        let stop = session.backup_stop().await?;
        let texts = [("backup_label", stop.label.clone()), ("tablespace_map", stop.tablespace_map.clone())];
        let (files, part) = join(
            tokio::task::spawn_blocking(move || {
                let mut part = part;
                let mut files = Vec::new();
                for (path, text) in texts.iter().filter(|(_, text)| !text.is_empty()) {
                    files.push(source::store_bytes(Path::new(path), text.as_bytes(), attributes, &mut part)?);
                }
                Ok::<_, Error>((files, part.finish()?))
            })
            .await,
        )??;
        files.iter().for_each(|file| haul.files.push(file));
        haul.parts.push(part);
        Ok((stop, control, haul))
    }
}

/// The directories below the data directory.
fn directories(walk: &Walk) -> Vec<Directory> {
    let below = walk.directories.iter().filter(|d| !d.path.as_os_str().is_empty());
    below.map(|d| Directory { path: d.path.clone(), mode: d.mode }).collect()
}

/// The tablespaces outside the data directory.
fn tablespaces(walk: &Walk) -> Vec<Tablespace> {
    let outside = walk.tablespaces.iter().filter(|t| !t.in_place);
    outside.map(|t| Tablespace { oid: t.oid, location: t.location.to_string_lossy().into_owned() }).collect()
}
