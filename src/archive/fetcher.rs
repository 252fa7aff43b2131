//! The fetcher of one cluster's WAL, for one call or for years: has what PostgreSQL asks for ready, and while a
//! directory replays the segments that it will ask for next.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant, SystemTime},
};

use rustix::process::{Pid, getppid};
use tokio::{
    sync::{Mutex as AsyncMutex, OnceCell, Semaphore},
    time::timeout,
};

use super::{
    arrival::{self, Arrived, folder_of, temporary_in},
    fetch::{self, Fetch},
    out_of_time,
    replay::{Replay, UnderWay},
    spool::{Inherit, Spool},
};
use crate::{
    config::{ClusterConfig, Config},
    error::{Error, Kind, Result},
    postgres::{SegmentName, SegmentSize, WalFile},
    repository::{ClusterName, Incarnation, System, join},
    store::{Answer, Store},
};

/// How long it is believed that the repository is the one that it was.
const TRUSTED: Duration = Duration::from_secs(60);
/// How long a prefetched segment is of use, and how long a directory that asks for nothing more counts as replaying.
const FRESH: Duration = Duration::from_secs(300);
/// How many segments are fetched ahead at a time; each takes a few megabytes of memory.
const AT_A_TIME: usize = 16;
/// How long a call waits at least for what it fetches along, when it has what PostgreSQL waits for.
const PATIENCE: Duration = Duration::from_secs(5);

/// How a cluster's WAL is fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetching {
    /// The cluster.
    pub cluster: ClusterName,
    /// What tells the repository from others before it is opened.
    pub repository: String,
    /// How many segments are fetched ahead.
    pub prefetch: usize,
    /// How many bytes of them at most.
    pub prefetch_size: u64,
    /// Where they lie when they cannot lie beside the data directory.
    pub state_dir: PathBuf,
    /// How long one fetch may take.
    pub timeout: Duration,
}

impl Fetching {
    /// As the configuration has it.
    pub fn of(config: &Config, cluster: &ClusterConfig) -> Result<Self> {
        let repository = config.repository()?;
        Ok(Self {
            cluster: cluster.name.clone(),
            repository: format!("{} {}", repository.url, repository.endpoint.as_deref().unwrap_or("-")),
            prefetch: config.restore.prefetch,
            prefetch_size: config.restore.prefetch_size,
            state_dir: config.archive.state_dir.clone(),
            timeout: config.archive.timeout,
        })
    }
}

/// How long a fetcher lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// For the one call that is made now. What was fetched along stays for the next.
    OneCall(SystemTime),
    /// For as long as it is held. Nothing that it fetched ahead stays.
    Lasting,
}

/// Opens the repository's store. It is called when there is something to fetch.
pub type OpenStore = Box<dyn Fn() -> Answer<'static, Arc<dyn Store>> + Send + Sync>;

/// Fetches the WAL of one cluster.
pub struct Fetcher {
    open: OpenStore,
    store: OnceCell<Arc<dyn Store>>,
    fetching: Fetching,
    lifetime: Lifetime,
    opened: AsyncMutex<Option<(System, Instant)>>,
    /// By data directory.
    replays: Mutex<HashMap<PathBuf, Arc<Replay>>>,
    at_a_time: Arc<Semaphore>,
    /// Who made the one call.
    caller: Option<Pid>,
}

impl std::fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fetcher").field("fetching", &self.fetching).finish_non_exhaustive()
    }
}

/// A file that was proven and waits to be put where it is wanted.
#[derive(Debug)]
struct Ready {
    path: PathBuf,
    size: u64,
    /// A file that is gone with this.
    arrived: Option<Arrived>,
}

impl Fetcher {
    /// Nothing is opened yet.
    #[must_use]
    pub fn new(open: OpenStore, fetching: Fetching, lifetime: Lifetime) -> Arc<Self> {
        Arc::new(Self {
            open,
            store: OnceCell::new(),
            fetching,
            lifetime,
            opened: AsyncMutex::default(),
            replays: Mutex::default(),
            at_a_time: Arc::new(Semaphore::new(AT_A_TIME)),
            caller: getppid(),
        })
    }

    /// One call: has the file at its destination, or the proof that there is none (`None`); then fetches the next ones
    /// along, while PostgreSQL replays. Its length in bytes.
    pub async fn fetch(self: &Arc<Self>, request: &Fetch) -> Result<Option<u64>> {
        let begun = Instant::now();
        let limit = self.fetching.timeout;
        let replay = self.replay(request);
        let prepared = timeout(limit, self.prepare(request, replay.as_ref())).await;
        let Some(ready) = prepared.unwrap_or_else(|_| Err(out_of_time(limit)))? else { return Ok(None) };
        let fetched = ready.arrived.is_some();
        if request.replayed().is_some() && getppid() != self.caller {
            // PostgreSQL may be asking for the next one by now, and would take this for it.
            return Err(Error::new(Kind::Interrupted, "whoever asked for the segment is gone"));
        }
        arrival::deliver(&ready.path, &request.destination)?;
        let size = ready.size;
        if let (Some(replay), true) = (&replay, fetched) {
            self.ahead(request, replay, size, false);
            let patience = PATIENCE.max(begun.elapsed() * 2).min(limit.saturating_sub(begun.elapsed()));
            if timeout(patience, replay.settled()).await.is_err() {
                tracing::info!("what was fetched along took too long");
            }
        }
        Ok(Some(size))
    }

    /// One of many calls: has the file ready for somebody who renames it to its destination, or the proof that there is
    /// none (`Some(None)`), and goes on to fetch ahead. `None` when there is no place for it: it is for somebody else.
    pub async fn offer(self: &Arc<Self>, request: &Fetch) -> Result<Option<Option<PathBuf>>> {
        let Some(replay) = self.replay(request) else { return Ok(None) };
        let limit = self.fetching.timeout;
        let prepared = timeout(limit, self.prepare(request, Some(&replay))).await;
        let Some(ready) = prepared.unwrap_or_else(|_| Err(out_of_time(limit)))? else { return Ok(Some(None)) };
        let path = ready.path.clone();
        self.ahead(request, &replay, ready.size, ready.arrived.is_none());
        replay.hand(ready.arrived);
        Ok(Some(Some(path)))
    }

    /// Gives up what directories that have asked for nothing in a while do not seem to need any more.
    pub fn tend(&self) {
        let idle = |_: &PathBuf, replay: &mut Arc<Replay>| replay.idle() > FRESH;
        for (_, replay) in self.replays().extract_if(idle) {
            replay.close();
        }
    }

    /// Gives up everything that was fetched ahead.
    pub fn close(&self) {
        self.replays().drain().for_each(|(_, replay)| replay.close());
    }

    /// The recovery that a request belongs to, with its spool. `None` when it needs none, or there is no place.
    fn replay(&self, request: &Fetch) -> Option<Arc<Replay>> {
        let pgdata = request.data_directory().ok()?;
        if let (Lifetime::OneCall(_), None) = (self.lifetime, request.replayed()) {
            if matches!(request.file, WalFile::History(_)) {
                // It begins, or it has come to its end.
                clear_prefetched(&pgdata, &self.fetching.state_dir);
            }
            return None;
        }
        if self.lifetime != Lifetime::Lasting && self.fetching.prefetch == 0 {
            return None;
        }
        let incarnation = request.wanted().ok()?;
        let mut replays = self.replays();
        if let Some(replay) = replays.get(&pgdata).filter(|replay| replay.incarnation == incarnation) {
            return Some(replay.clone());
        }
        if let Some(other) = replays.remove(&pgdata) {
            other.close();
        }
        let source = format!("{}\n{}/{incarnation}", self.fetching.repository, self.fetching.cluster);
        let inherit = match self.lifetime {
            Lifetime::OneCall(now) => Inherit::Fresh(FRESH, now),
            Lifetime::Lasting => Inherit::Nothing,
        };
        match Spool::open(&pgdata, &self.fetching.state_dir, &source, inherit) {
            Ok(spool) => {
                let replay = Arc::new(Replay::new(spool, pgdata.clone(), incarnation));
                Some(replays.entry(pgdata).insert_entry(replay).get().clone())
            }
            Err(error) => {
                tracing::info!("no segments are fetched ahead: {error}");
                None
            }
        }
    }

    async fn prepare(&self, request: &Fetch, replay: Option<&Arc<Replay>>) -> Result<Option<Ready>> {
        match (replay, request.replayed()) {
            (Some(replay), Some(name)) => {
                if let Some((path, size)) = replay.take(name).await {
                    tracing::debug!("{name} was ready");
                    return Ok(Some(Ready { path, size, arrived: None }));
                }
            }
            (Some(replay), None) if matches!(request.file, WalFile::History(_)) => replay.rest(),
            _ => {}
        }
        let temporary = match replay {
            Some(replay) => replay.spool.temporary(),
            None => temporary_in(folder_of(&request.destination)),
        };
        let system = self.system(request.wanted()?).await?;
        let fetched = fetch::fetch(&system, request, temporary).await;
        if fetched.is_err() {
            // Perhaps it is not the repository any more that it was.
            *self.opened.lock().await = None;
        }
        let ready = |arrived: Arrived| {
            let (path, size) = (arrived.path().to_path_buf(), arrived.size());
            Ready { path, size, arrived: Some(arrived) }
        };
        Ok(fetched?.map(ready))
    }

    /// Begins to fetch what comes after a segment that PostgreSQL is being given.
    fn ahead(self: &Arc<Self>, request: &Fetch, replay: &Arc<Replay>, bytes: u64, was_ready: bool) {
        let (Some(name), Ok(size)) = (request.replayed(), SegmentSize::new(bytes)) else { return };
        let room = usize::try_from(self.fetching.prefetch_size / size.bytes()).unwrap_or(usize::MAX);
        let most = self.fetching.prefetch.min(room);
        let count = if self.lifetime == Lifetime::Lasting { replay.pace(was_ready, most) } else { most };
        for under_way in replay.want(name, &after(name, size, request.until, count)) {
            let fetcher = Arc::downgrade(self);
            tokio::spawn(async move {
                let name = under_way.name;
                match prefetch(&fetcher, &under_way).await {
                    Ok(()) => tracing::debug!("{name} was fetched ahead"),
                    Err(error) => tracing::info!("{name} was not fetched ahead: {error}"),
                }
            });
        }
    }

    async fn system(&self, incarnation: Incarnation) -> Result<System> {
        let mut place = self.opened.lock().await;
        if let Some((system, at)) = &*place
            && system.folder.incarnation == incarnation
            && at.elapsed() < TRUSTED
        {
            return Ok(system.clone());
        }
        let store = self.store.get_or_try_init(|| (self.open)()).await?.clone();
        let system = System::open(store, &self.fetching.cluster, incarnation).await?;
        *place = Some((system.clone(), Instant::now()));
        Ok(system)
    }

    fn replays(&self) -> MutexGuard<'_, HashMap<PathBuf, Arc<Replay>>> {
        self.replays.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Fetcher {
    fn drop(&mut self) {
        if self.lifetime == Lifetime::Lasting {
            self.close();
        }
    }
}

/// Removes what was fetched ahead for a data directory, unless somebody is at it.
pub fn clear_prefetched(pgdata: &Path, state_dir: &Path) {
    if let Err(error) = Spool::clear(pgdata, state_dir) {
        tracing::debug!("clear what was fetched ahead for {}: {error}", pgdata.display());
    }
}

/// The names after `name` on its timeline, not past `until`.
fn after(name: SegmentName, size: SegmentSize, until: Option<SegmentName>, count: usize) -> Vec<SegmentName> {
    let last = until.and_then(|until| until.number(size).ok());
    let within = |name: &SegmentName| last.is_none_or(|last| name.number(size).is_ok_and(|number| number <= last));
    let names = std::iter::successors(name.next(size).ok(), |name| name.next(size).ok());
    names.take_while(within).take(count).collect()
}

/// Fetches one segment into the spool. Whatever becomes of it: PostgreSQL's own question is answered on its own.
async fn prefetch(fetcher: &Weak<Fetcher>, under_way: &UnderWay) -> Result<()> {
    let gone = || Error::new(Kind::Interrupted, "nobody wants it any more");
    let (limit, at_a_time, background) = {
        let fetcher = fetcher.upgrade().ok_or_else(gone)?;
        // PostgreSQL makes durable what it replays. What is done before it asks is done while it replays; in one call it
        // would wait for it.
        (fetcher.fetching.timeout, fetcher.at_a_time.clone(), fetcher.lifetime == Lifetime::Lasting)
    };
    let (name, replay) = (under_way.name, under_way.replay.clone());
    let work = async {
        let _turn = at_a_time.acquire().await;
        let system = fetcher.upgrade().ok_or_else(gone)?.system(replay.incarnation).await?;
        let Some(mut found) = fetch::find(&system, WalFile::Segment(name)).await? else {
            replay.end_of_archive();
            return Err(Error::not_found("it is not in the archive"));
        };
        found.durable = background;
        join(tokio::task::spawn_blocking(move || replay.receive(name, found)).await)?
    };
    timeout(limit, work).await.unwrap_or_else(|_| Err(out_of_time(limit)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(name: &str, size: SegmentSize, until: Option<&str>, count: usize) -> Vec<String> {
        let until = until.map(|until| until.parse().unwrap());
        after(name.parse().unwrap(), size, until, count).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_comes_next_goes_over_logs_and_not_past_the_plan() {
        let (small, large) = (SegmentSize::DEFAULT, SegmentSize::new(1 << 30).unwrap());
        let first = "0000000100000000000000FE";
        assert_eq!(names(first, small, None, 2), ["0000000100000000000000FF", "000000010000000100000000"]);
        assert_eq!(names(first, small, Some("0000000200000000000000FF"), 9), ["0000000100000000000000FF"]);
        assert!(names(first, small, Some(first), 9).is_empty() && names(first, small, None, 0).is_empty());
        assert_eq!(names("000000010000000000000003", large, None, 1), ["000000010000000100000000"]);
    }
}
