//! Adoption: a restored copy becomes the cluster. What it held back goes into the archive, its history first, and only
//! then is its archiving let loose.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::{MetadataExt, PermissionsExt, fchown},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use serde::Serialize;

use super::{owner::Owner, rescue::wal_files, session, sync_folder};
use crate::{
    archive::{self, Push},
    error::{Error, Kind, Result},
    interrupt::Interrupt,
    postgres::{
        ControlFile, Lsn, SegmentName, TimelineHistory, TimelineId, WalFile,
        server::{self, Running},
        settings::{self, AUTO_CONF},
        sql::{ArchiveMode, ServerFacts},
    },
    repository::{ClusterName, Incarnation, System, join},
    store::Store,
};

/// How often the archive is looked at.
const PAUSE: Duration = Duration::from_millis(200);

/// What is to be adopted, and as what.
#[derive(Clone, Debug)]
pub struct AdoptRequest {
    /// The data directory of the copy, which runs.
    pub pgdata: PathBuf,
    /// The role to ask as; others are tried after it.
    pub user: Option<String>,
    /// The incarnation as the configuration has it.
    pub incarnation: u32,
    /// zstd's level.
    pub level: i32,
    /// `archive_command` from now on.
    pub archive_command: String,
    /// How long to wait for the first segment that the server archives by itself.
    pub timeout: Duration,
}

/// A copy that has become the cluster.
#[derive(Clone, Debug, Serialize)]
pub struct Adopted {
    /// Its timeline.
    pub timeline: TimelineId,
    /// Where that began.
    pub switch: Lsn,
    /// Files that were brought into the archive.
    pub pushed: usize,
    /// Segments of its timeline that neither the archive nor `pg_wal` has any more.
    pub missing: Vec<SegmentName>,
    /// The segment that the server has archived by itself since; `None` when it did not within the time given.
    pub proof: Option<SegmentName>,
}

/// Makes a running, promoted copy the cluster. It is safe to repeat.
pub async fn adopt(
    store: Arc<dyn Store>,
    cluster: &ClusterName,
    request: &AdoptRequest,
    interrupt: &Interrupt,
) -> Result<Adopted> {
    let Running::Yes(postmaster) = server::running(&request.pgdata)? else {
        return Err(Error::refused(format!("no server runs in {}", request.pgdata.display()))
            .hint("start the copy and let it come out of recovery, then adopt it"));
    };
    let owner = Owner::of(&request.pgdata)?;
    let places = session::places(&postmaster, &request.pgdata, &owner, request.user.as_deref())?;
    let facts = {
        let places = places.clone();
        ask(&owner, async move || session::open(&places).await?.server_facts().await).await?
    };
    check(request, &facts)?;
    let control = ControlFile::read(&request.pgdata)?;
    let incarnation = Incarnation { system: control.system, number: request.incarnation };
    let system = System::open(store, cluster, incarnation).await?;
    let history = own_history(&request.pgdata, facts.timeline)?;
    let switch = history.ancestors.last().map(|entry| entry.switch).unwrap_or_default();
    let current = {
        let places = places.clone();
        ask(&owner, async move || session::open(&places).await?.current_wal_lsn().await).await?
    };
    let held = Held { system: &system, request, history: &history, current: control.segment_size.number_of(current) };
    let pushed = held.push(interrupt).await?;
    let missing = held.missing(switch).await?;
    let_loose(request, &facts)?;
    let end = ask(&owner, async move || {
        let session = session::open(&places).await?;
        session.query("select pg_reload_conf()").await?;
        session.switch_wal().await
    });
    let end = end.await?;
    let last = SegmentName::holding(facts.timeline, Lsn(end.0.saturating_sub(1)), control.segment_size);
    let proof = wait_for(&system, last, request.timeout, interrupt).await?;
    Ok(Adopted { timeline: facts.timeline, switch, pushed, missing, proof: proof.then_some(last) })
}

async fn ask<T: Send + 'static>(owner: &Owner, work: impl AsyncFnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let asking = session::as_owner(owner, work);
    let answer =
        tokio::task::spawn_blocking(move || asking.join().map_err(|_| Error::internal("a thread stopped")).flatten());
    join(answer.await)?
}

/// What must hold before anything is touched.
fn check(request: &AdoptRequest, facts: &ServerFacts) -> Result<()> {
    let pgdata = request.pgdata.display();
    let auto_conf = fs::read_to_string(request.pgdata.join(AUTO_CONF)).unwrap_or_default();
    if !settings::is_applied(&auto_conf) {
        return Err(Error::refused(format!("{pgdata} is no restored copy that waits to be adopted"))
            .hint("a server that was never restored archives by the archive_command that walden init prints"));
    }
    if facts.in_recovery {
        return Err(Error::refused(format!("the server in {pgdata} is still in recovery")).hint(
            "look whether it is what you want, let it go on with: select pg_wal_replay_resume(); then adopt it",
        ));
    }
    if facts.archive_mode == ArchiveMode::Off {
        return Err(Error::refused(format!(
            "{pgdata} was restored with --clone: it is an independent copy, and archives nothing"
        ))
        .hint("restore again without --clone to get a copy that can become the cluster"));
    }
    Ok(())
}

fn own_history(pgdata: &Path, timeline: TimelineId) -> Result<TimelineHistory> {
    let path = pgdata.join("pg_wal").join(format!("{}.history", timeline.hex()));
    let text = fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
    TimelineHistory::parse(timeline, &text)
}

/// What a copy has held back.
struct Held<'a> {
    system: &'a System,
    request: &'a AdoptRequest,
    history: &'a TimelineHistory,
    /// The number of the segment in use.
    current: u64,
}

impl Held<'_> {
    /// Pushes the histories, then the whole segments, oldest first.
    async fn push(&self, interrupt: &Interrupt) -> Result<usize> {
        let mut pushed = 0;
        for (file, path) in wal_files(&self.request.pgdata.join("pg_wal"))? {
            if !self.is_own(file)? {
                continue;
            }
            interrupt.check()?;
            let push = Push {
                path,
                pgdata: Some(self.request.pgdata.clone()),
                incarnation: self.request.incarnation,
                level: self.request.level,
            };
            let done = archive::push(self.system.store.clone(), &self.system.folder.cluster, &push).await;
            let done = done.map_err(|e| match e.kind() {
                Kind::Refused => Error::refused(e.to_string()).hint(
                    "another copy has taken that name. Give this one an archive of its own: walden init --new-incarnation, then repeat walden adopt",
                ),
                _ => e,
            })?;
            pushed += usize::from(!done.already);
        }
        Ok(pushed)
    }

    /// Whether the file is on this copy's way and complete. What it restored from the archive is there already.
    fn is_own(&self, file: WalFile) -> Result<bool> {
        Ok(match file {
            WalFile::History(timeline) => self.history.includes(timeline),
            WalFile::Segment(name) => {
                let number = name.number(self.system.document.segment_size)?;
                self.history.includes(name.timeline) && number < self.current && self.begins_with(name, number)
            }
            WalFile::Partial(_) | WalFile::BackupLabel(..) => false,
        })
    }

    /// Whether the path of this history goes through that segment under that name.
    fn begins_with(&self, name: SegmentName, number: u64) -> bool {
        let size = self.system.document.segment_size;
        let last_byte = Lsn(number.saturating_mul(size.bytes()).saturating_add(size.bytes() - 1));
        self.history.at(last_byte) == name.timeline
    }

    /// Segments of the own timeline that are not in the archive after the push.
    async fn missing(&self, switch: Lsn) -> Result<Vec<SegmentName>> {
        let size = self.system.document.segment_size;
        let timeline = self.history.timeline;
        let there = self.system.segments(timeline, None, None).await?;
        let names = (size.number_of(switch)..self.current).filter_map(|n| SegmentName::from_number(timeline, n, size));
        Ok(names.filter(|name| !there.iter().any(|(other, _)| other == name)).collect())
    }
}

/// Replaces what restore wrote into `postgresql.auto.conf` by the real `archive_command`.
fn let_loose(request: &AdoptRequest, facts: &ServerFacts) -> Result<()> {
    let path = request.pgdata.join(AUTO_CONF);
    let failed = |e| Error::io("replace", &path, e);
    let mut text = settings::remove(&fs::read_to_string(&path).map_err(failed)?)?;
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text.push_str(&settings::line("archive_command", &request.archive_command));
    if facts.version.0 >= 15 {
        text.push_str(&settings::line("archive_library", ""));
    }
    // A name that no backup stores.
    let temporary = path.with_extension("conf.tmp");
    let old = fs::metadata(&path).map_err(failed)?;
    let written = File::create(&temporary).and_then(|mut file| {
        file.set_permissions(fs::Permissions::from_mode(old.mode() & 0o7777))?;
        if rustix::process::geteuid().is_root() {
            fchown(&file, Some(old.uid()), Some(old.gid()))?;
        }
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, &path)
    });
    written.map_err(failed)?;
    sync_folder(&request.pgdata)
}

async fn wait_for(system: &System, name: SegmentName, limit: Duration, interrupt: &Interrupt) -> Result<bool> {
    let since = Instant::now();
    loop {
        interrupt.check()?;
        if !system.segments(name.timeline, Some(name), Some(name)).await?.is_empty() {
            return Ok(true);
        }
        if since.elapsed() > limit {
            return Ok(false);
        }
        tokio::time::sleep(PAUSE).await;
    }
}
