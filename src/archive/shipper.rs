//! The shipper of one cluster's WAL: pushes the file that PostgreSQL asks for, and others that are ready beside it, so
//! that their own calls find them durable already.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use futures_util::{TryStreamExt, future::join_all, stream};
use tokio::{
    sync::{Mutex as AsyncMutex, OnceCell},
    time::timeout,
};

use super::{
    backlog::{Backlog, Effort},
    data_directory, out_of_time,
    push::{self, Push, Pushed, Sealing, Stored},
    shipped::{FileId, Shipped},
};
use crate::{
    config::{ClusterConfig, Config, Levels},
    error::{Error, Kind, Result, Told},
    mirror::{self, Mirror},
    pace::Cores,
    postgres::{ControlFile, WalFile, archive_status},
    repository::{self, ClusterName, Horizons, Incarnation, RepositoryDocument, System},
    seal,
    store::Store,
};

/// How long it is believed that the repository is the one that it was: what was remembered of a repository that was
/// wiped and made anew in between counts for nothing.
const TRUSTED: Duration = Duration::from_secs(60);
/// Segments that are shipped at the same time are together no longer than this: what is made of them is held in memory.
const IN_MEMORY: u64 = 128 << 20;
/// A file up to this size, a history or a backup label, makes no work.
const SMALL: u64 = 64 << 10;

/// How a cluster's WAL is shipped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shipping {
    /// The cluster.
    pub cluster: ClusterName,
    /// The data directory as the configuration has it.
    pub pgdata: Option<PathBuf>,
    /// The incarnation as the configuration has it.
    pub incarnation: u32,
    /// zstd's levels.
    pub levels: Levels,
    /// How many files are shipped at a time.
    pub parallel: usize,
    /// How long one of them may take.
    pub timeout: Duration,
    /// Where it is remembered what was shipped before PostgreSQL asked.
    pub state_dir: PathBuf,
}

impl Shipping {
    /// As the configuration has it.
    #[must_use]
    pub fn of(config: &Config, cluster: &ClusterConfig) -> Self {
        Self {
            cluster: cluster.name.clone(),
            pgdata: cluster.pgdata().ok().map(PathBuf::from),
            incarnation: cluster.incarnation,
            levels: config.archive.compression,
            parallel: config.archive.parallel,
            timeout: config.archive.timeout,
            state_dir: config.archive.state_dir.clone(),
        }
    }
}

/// Ships the WAL of one cluster; for one call or for years.
#[derive(Debug)]
pub struct Shipper {
    store: Arc<dyn Store>,
    /// The other repositories in which a file has to be durable as well.
    mirrors: Vec<Arc<Mirror>>,
    shipping: Shipping,
    cores: Arc<Cores>,
    backlog: Backlog,
    /// The last push found that the first repository does not answer.
    is_silent: AtomicBool,
    opened: AsyncMutex<Option<Arc<Opened>>>,
    /// What is being pushed: a second call for the same file waits for the first.
    under_way: Mutex<HashMap<WalFile, Arc<Shipment>>>,
}

/// The system in the repository that the data directory belongs to.
#[derive(Debug)]
struct Opened {
    system: System,
    horizons: Horizons,
    at: Instant,
    document: OnceCell<RepositoryDocument>,
    shipped: OnceCell<Shipped>,
}

#[derive(Debug)]
struct Shipment {
    id: FileId,
    end: OnceCell<Result<Landed, Told>>,
}

/// A file that is durable in the first repository.
#[derive(Clone, Debug)]
struct Landed {
    pushed: Pushed,
    /// Why it is not in all that are waited for.
    lacking: Option<Told>,
}

impl Shipper {
    /// Ships to `store`, and to `mirrors` as well. Nothing is opened yet. All shippers of a program share the processors
    /// that they may take.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, mirrors: Vec<Arc<Mirror>>, shipping: Shipping, cores: Arc<Cores>) -> Self {
        let (backlog, is_silent) = (Backlog::default(), AtomicBool::default());
        let (opened, under_way) = (AsyncMutex::default(), Mutex::default());
        Self { store, mirrors, shipping, cores, backlog, is_silent, opened, under_way }
    }

    /// How it ships.
    #[must_use]
    pub fn shipping(&self) -> &Shipping {
        &self.shipping
    }

    /// The data directory that a file lies in.
    pub fn pgdata(&self, path: &Path) -> Result<PathBuf> {
        data_directory(path, self.shipping.pgdata.as_deref())
    }

    /// Answers when the file is durable in the repository: at once if it was shipped before.
    pub async fn push(&self, path: &Path) -> Result<Pushed> {
        let file: WalFile = path.file_name().and_then(|n| n.to_str()).unwrap_or_default().parse()?;
        let id = FileId::of(path)?;
        // Most files were not, and then the repository is opened while the file is compressed.
        if Shipped::anywhere(&self.shipping.state_dir, file, &id) {
            let opened = self.opened(self.incarnation(path)?).await?;
            if self.is_everywhere(&opened, file, &id).await.unwrap_or(false) {
                tracing::debug!("{file} was shipped before");
                return Ok(Pushed { file, stored: 0, already: true });
            }
        }
        let Landed { pushed, lacking } = self.ship(path, file, id).await?;
        lacking.map_or(Ok(pushed), |told| Err(told.again()))
    }

    /// Ships files that are ready beside `asked`, which somebody else pushes, and remembers them: at most `most`, the
    /// oldest first. Ends at the first that fails; while a mirror is away the first repository still gets them.
    pub async fn ahead(&self, asked: &Path, most: usize) -> Result<usize> {
        let pgdata = self.pgdata(asked)?;
        let pg_wal = pgdata.join("pg_wal");
        let waiting = archive_status::ready(&pgdata).map_err(|e| Error::io("read", &pg_wal, e))?;
        let asked = asked.file_name();
        let others = || waiting.iter().copied().filter(|file| asked != Some(file.to_string().as_ref()));
        if most == 0 || others().next().is_none() {
            if let Some(shipped) = self.opened.lock().await.as_ref().and_then(|opened| opened.shipped.get()) {
                self.tidy(shipped, &waiting)?;
            }
            return Ok(0);
        }
        let opened = self.in_time(self.opened(self.incarnation(&pg_wal.join("any"))?)).await?;
        let shipped = self.in_time(self.shipped(&opened)).await?;
        self.tidy(shipped, &waiting)?;
        let new = others().map(|file| (file, pg_wal.join(file.to_string())));
        // One that was archived in this moment may be gone.
        let new = new.filter_map(|(file, path)| FileId::of(&path).ok().map(|id| (file, path, id)));
        let mirrors = self.in_time(async { Ok(self.mirrors(&opened).await) }).await?;
        let lacks = |file, id: &FileId| {
            !shipped.knows(file, id) || mirrors.iter().flatten().any(|(_, _, there)| !there.knows(file, id))
        };
        let mut new = new.filter(|(file, _, id)| lacks(*file, id)).collect::<Vec<_>>();
        self.backlog.tell(new.len());
        // One goes first and finds out whether the others may follow.
        new.truncate(if self.is_silent.load(Relaxed) { most.min(1) } else { most });
        let (count, lacking) = stream::iter(new.into_iter().map(Ok))
            .map_ok(async |(file, path, id)| {
                self.backlog.begun();
                let landed = self.in_time(self.ship(&path, file, id)).await?;
                let there = mirrors.iter().flatten().map(|(_, _, there)| there).filter(|_| landed.lacking.is_none());
                for shipped in there.chain([shipped]) {
                    self.remember(shipped, &path, file, &id)?;
                }
                Ok::<_, Error>(landed.lacking)
            })
            .try_buffer_unordered(self.at_a_time(&opened))
            .try_fold((0, None), async |(count, told), lacking| Ok((count + 1, told.or(lacking))))
            .await?;
        let away = mirrors.into_iter().find_map(Result::err).or(lacking.map(|told| told.again()));
        away.map_or(Ok(count), Err)
    }

    fn remember(&self, shipped: &Shipped, path: &Path, file: WalFile, id: &FileId) -> Result<()> {
        // What changed meanwhile was not what was shipped.
        if FileId::of(path).is_ok_and(|now| now == *id) {
            shipped.remember(file, id).map_err(|e| Error::io("write in", &self.shipping.state_dir, e))?;
        }
        Ok(())
    }

    /// Whether this very file is known to be durable wherever that is waited for.
    async fn is_everywhere(&self, opened: &Opened, file: WalFile, id: &FileId) -> Result<bool> {
        let first = self.shipped(opened).await?.knows(file, id);
        let mirrors = if first { self.mirrors(opened).await } else { Vec::new() };
        Ok(first && mirrors.iter().all(|m| m.as_ref().is_ok_and(|(_, _, shipped)| shipped.knows(file, id))))
    }

    /// The mirrors that are waited for, with what is remembered of each; or why one cannot be used.
    async fn mirrors(&self, opened: &Opened) -> Vec<Result<(Arc<Mirror>, Arc<mirror::Opened>, Shipped)>> {
        let open = async |mirror: &Arc<Mirror>| {
            let there = mirror.open(self.document(opened).await?).await?;
            there.know(&opened.system).await.map_err(|e| mirror.told(e))?;
            let shipped = Shipped::open(&self.shipping.state_dir, &there.document, &opened.system.folder)?;
            Ok((mirror.clone(), there, shipped))
        };
        join_all(self.mirrors.iter().map(open)).await
    }

    /// Nobody waits for what is shipped ahead: it ends at the same time as if somebody did.
    async fn in_time<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let limit = self.shipping.timeout;
        timeout(limit, work).await.unwrap_or_else(|_| Err(out_of_time(limit)))
    }

    /// As many as are configured, unless they would take too much memory.
    fn at_a_time(&self, opened: &Opened) -> usize {
        let fit = IN_MEMORY / opened.system.document.segment_size.bytes();
        self.shipping.parallel.min(usize::try_from(fit).unwrap_or(usize::MAX)).max(1)
    }

    /// What does not wait any more was archived, or went away: it need not be remembered.
    fn tidy(&self, shipped: &Shipped, waiting: &[WalFile]) -> Result<()> {
        let waiting = waiting.iter().copied().collect();
        shipped.keep_only(&waiting).map_err(|e| Error::io("tidy", &self.shipping.state_dir, e))
    }

    async fn ship(&self, path: &Path, file: WalFile, id: FileId) -> Result<Landed> {
        let shipment = {
            let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
            let known = under_way.get(&file).filter(|shipment| shipment.id == id).cloned();
            known.unwrap_or_else(|| {
                let new = Arc::new(Shipment { id, end: OnceCell::new() });
                under_way.insert(file, new.clone());
                new
            })
        };
        let end = shipment
            .end
            .get_or_init(|| async { self.push_now(path, file, &id).await.map_err(|e| Told::of(&e)) })
            .await
            .clone();
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        if under_way.get(&file).is_some_and(|other| Arc::ptr_eq(other, &shipment)) {
            under_way.remove(&file);
        }
        end.map_err(|told| told.again())
    }

    async fn push_now(&self, path: &Path, file: WalFile, id: &FileId) -> Result<Landed> {
        if let Some(landed) = self.push_to_mirrors_alone(path, file, id).await? {
            return Ok(landed);
        }
        let Shipping { pgdata, incarnation, levels, .. } = &self.shipping;
        let request = Push { path: path.into(), pgdata: pgdata.clone(), incarnation: *incarnation, level: levels.fast };
        let sealing = Sealing::new(&request)?;
        let incarnation = sealing.incarnation;
        let sealing = async { sealing.seal(self.effort(path).await).await };
        let (opened, sealed) = tokio::join!(self.opened(incarnation), sealing);
        let sealed = sealed?;
        let opened = opened?;
        let stored = push::store_sealed(&opened.system, &opened.horizons, &sealed, &request).await;
        let is_silent = stored.as_ref().is_err_and(|error| error.kind() == Kind::Unavailable);
        self.is_silent.store(is_silent, Relaxed);
        if stored.is_err() {
            // Perhaps it is not the repository any more that it was.
            *self.opened.lock().await = None;
        }
        let pushed = stored?;
        if !self.mirrors.is_empty()
            && let Ok(shipped) = self.shipped(&opened).await
        {
            // Should a mirror be away, the next try has only that one to do.
            self.remember(shipped, path, file, id)?;
        }
        let object =
            Stored { key: opened.system.folder.wal_file(file, sealed.content())?, sealed: Some((&sealed, &request)) };
        let lacking = self.push_to_mirrors(&opened, &object, pushed.already).await.err().map(|e| Told::of(&e));
        Ok(Landed { pushed, lacking })
    }

    /// Brings the mirrors a file that the first repository is known to have.
    async fn push_to_mirrors_alone(&self, path: &Path, file: WalFile, id: &FileId) -> Result<Option<Landed>> {
        // The key of a partial segment has the hash of its content in it.
        if self.mirrors.is_empty() || matches!(file, WalFile::Partial(_)) {
            return Ok(None);
        }
        let opened = self.opened(self.incarnation(path)?).await?;
        if !self.shipped(&opened).await.is_ok_and(|shipped| shipped.knows(file, id)) {
            return Ok(None);
        }
        let object = Stored { key: opened.system.folder.wal_file(file, seal::blake3(b""))?, sealed: None };
        let lacking = self.push_to_mirrors(&opened, &object, true).await.err().map(|e| Told::of(&e));
        Ok(Some(Landed { pushed: Pushed { file, stored: 0, already: true }, lacking }))
    }

    /// Answers when the object is durable in every mirror that is waited for.
    async fn push_to_mirrors(&self, opened: &Opened, object: &Stored<'_>, already: bool) -> Result<()> {
        let put = async |mirror: &Arc<Mirror>| {
            let there = mirror.open(self.document(opened).await?).await?;
            let put = async {
                there.know(&opened.system).await?;
                object.put(&opened.system, &there, already).await
            };
            let put = put.await;
            if put.is_err() {
                mirror.doubt().await;
            }
            put.map_err(|e| mirror.told(e))
        };
        join_all(self.mirrors.iter().map(put)).await.into_iter().collect()
    }

    async fn document<'a>(&self, opened: &'a Opened) -> Result<&'a RepositoryDocument> {
        opened.document.get_or_try_init(|| repository::open(&*self.store)).await
    }

    /// How much work goes into a file. A small one makes none, and waits for nobody.
    async fn effort(&self, path: &Path) -> Effort {
        if std::fs::metadata(path).is_ok_and(|found| found.len() <= SMALL) {
            return Effort::alone(self.shipping.levels.fast);
        }
        // This one waits as well.
        let waiting = || self.pgdata(path).ok().and_then(|pgdata| archive_status::ready(&pgdata).ok());
        let count = || waiting().map_or(0, |waiting| waiting.len().saturating_sub(1));
        self.backlog.effort(self.shipping.levels, &self.cores, count).await
    }

    fn incarnation(&self, path: &Path) -> Result<Incarnation> {
        let system = ControlFile::read(&self.pgdata(path)?)?.system;
        Ok(Incarnation { system, number: self.shipping.incarnation })
    }

    async fn opened(&self, incarnation: Incarnation) -> Result<Arc<Opened>> {
        let mut place = self.opened.lock().await;
        let fresh =
            |opened: &&Arc<Opened>| opened.system.folder.incarnation == incarnation && opened.at.elapsed() < TRUSTED;
        if let Some(opened) = place.as_ref().filter(fresh) {
            return Ok(opened.clone());
        }
        let system = System::open(self.store.clone(), &self.shipping.cluster, incarnation).await?;
        let horizons = system.horizons().await?;
        let (document, shipped) = (OnceCell::new(), OnceCell::new());
        let opened = Opened { system, horizons, at: Instant::now(), document, shipped };
        let opened = Arc::new(opened);
        *place = Some(opened.clone());
        Ok(opened)
    }

    async fn shipped<'a>(&self, opened: &'a Opened) -> Result<&'a Shipped> {
        let open =
            async || Shipped::open(&self.shipping.state_dir, self.document(opened).await?, &opened.system.folder);
        opened.shipped.get_or_try_init(open).await
    }
}
