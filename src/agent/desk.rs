//! What lies on the agent's desk: the configuration that holds, and the shipper and the fetcher of each cluster.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use tokio::sync::OnceCell;
use walden_companion::Request;

use super::{
    Agent,
    ahead::{self, Served},
    metrics::Figures,
    mirroring,
};
use crate::{
    archive::{Fetcher, Fetching, Lifetime, Shipper, Shipping, Suspensions},
    clock::Random,
    config::{self, ClusterConfig, Config, Lookup, WaitFor},
    error::Result,
    interrupt::Interrupt,
    mirror::{self, Mirror},
    pace::{self, Cores},
    repository::ClusterName,
    store::{Answer, Store},
};

/// How often what was fetched ahead is looked at.
const TENDED: Duration = Duration::from_secs(60);

pub(super) struct Desk {
    pub(super) agent: Agent,
    opened: Mutex<Arc<Opened>>,
    figures: Mutex<BTreeMap<ClusterName, Arc<Figures>>>,
}

/// A configuration, and what was opened by it.
pub(super) struct Opened {
    pub(super) config: Config,
    store: OnceCell<Arc<dyn Store>>,
    /// The processors that all clusters share.
    cores: Arc<Cores>,
    mirrors: Vec<Arc<Mirror>>,
    served: Mutex<HashMap<ClusterName, Arc<Served>>>,
    fetchers: Mutex<HashMap<ClusterName, Arc<Fetcher>>>,
}

impl Desk {
    pub(super) fn new(agent: Agent) -> Self {
        let opened = Mutex::new(Opened::new(agent.config.clone(), &agent.random));
        Self { agent, opened, figures: Mutex::default() }
    }

    /// What was done for a cluster.
    pub(super) fn figures(&self, cluster: &ClusterName) -> Arc<Figures> {
        self.figures.lock().unwrap_or_else(PoisonError::into_inner).entry(cluster.clone()).or_default().clone()
    }

    /// What was done for each cluster that somebody asked for.
    pub(super) fn all_figures(&self) -> BTreeMap<ClusterName, Arc<Figures>> {
        self.figures.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What holds since a program asked last.
    pub(super) fn opened(&self) -> Arc<Opened> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What holds for the program that asks: the file that it would read, as it stands now, and its environment.
    /// Where that is not what held before, all is opened anew; what is under way is ended by the old.
    pub(super) fn for_request(&self, request: &Request) -> Result<Arc<Opened>> {
        let named = request.config.as_ref().map(|path| request.cwd.join(path));
        let file = Lookup { named, skip_local: true }.find(None)?;
        let config = Config::of(file, request.environment.iter().cloned(), &[])?;
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if !opened.config.says_the_same(&config) {
            tracing::info!("the configuration is another one now");
            *opened = Opened::new(config, &self.agent.random);
        }
        Ok(opened.clone())
    }

    /// Nothing stays of what was fetched ahead.
    pub(super) fn clear(&self) {
        let opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        opened.fetchers().values().for_each(|fetcher| fetcher.close());
    }
}

impl Opened {
    /// Nothing is opened yet; mirrors begin to catch up.
    fn new(config: Config, random: &Arc<Random>) -> Arc<Self> {
        for why in pace::lower(config.archive.nice, None) {
            tracing::warn!("the priority of archiving could not be lowered: {why}");
        }
        let cores = Arc::new(Cores::new(config.archive.cpu));
        let mirrors = mirror::configured(&config, random);
        let opened = Arc::new(Self {
            config,
            store: OnceCell::new(),
            cores,
            mirrors,
            served: Mutex::default(),
            fetchers: Mutex::default(),
        });
        for mirror in &opened.mirrors {
            let kept = mirroring::keep_in_step(Arc::downgrade(&opened), mirror.clone(), random.clone());
            _ = tokio::spawn(kept);
        }
        opened
    }

    /// The one that fetches for a cluster.
    pub(super) fn fetcher(self: &Arc<Self>, cluster: &ClusterConfig, agent: &Agent) -> Result<Arc<Fetcher>> {
        let fetching = Fetching::of(&self.config, cluster)?;
        let new = || {
            let (opened, random) = (Arc::downgrade(self), agent.random.clone());
            let open = move || -> Answer<'static, Arc<dyn Store>> {
                let (opened, random) = (opened.clone(), random.clone());
                Box::pin(async move {
                    let opened = opened.upgrade().ok_or_else(Interrupt::error)?;
                    mirror::reading(&opened.config, None, &random).await
                })
            };
            let fetcher = Fetcher::new(Box::new(open), fetching, Lifetime::Lasting);
            _ = tokio::spawn(tend(Arc::downgrade(&fetcher)));
            fetcher
        };
        Ok(self.fetchers().entry(cluster.name.clone()).or_insert_with(new).clone())
    }

    fn fetchers(&self) -> MutexGuard<'_, HashMap<ClusterName, Arc<Fetcher>>> {
        self.fetchers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first repository.
    pub(super) async fn store(&self, random: Arc<Random>) -> Result<Arc<dyn Store>> {
        let open = async || config::open_store(self.config.repository()?, random).await;
        self.store.get_or_try_init(open).await.cloned()
    }

    /// The mirrors in which a segment has to be durable before it counts as archived.
    fn waited_for(&self) -> Vec<Arc<Mirror>> {
        match self.config.archive.wait_for {
            WaitFor::All => self.mirrors.clone(),
            WaitFor::First => Vec::new(),
        }
    }

    /// The one that serves a cluster.
    pub(super) async fn served(&self, cluster: &ClusterConfig, desk: &Desk) -> Result<Arc<Served>> {
        let store = self.store(desk.agent.random.clone()).await?;
        let suspensions = Suspensions::of(&self.config, cluster)?;
        let mut served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || {
            let shipping = Shipping::of(&self.config, cluster);
            let shipper = Shipper::new(store.clone(), self.waited_for(), shipping, self.cores.clone());
            let served = Arc::new(Served::new(shipper, desk.figures(&cluster.name), suspensions, store.clone()));
            _ = tokio::spawn(ahead::ship(Arc::downgrade(&served), desk.agent.random.clone()));
            served
        };
        Ok(served.entry(cluster.name.clone()).or_insert_with(new).clone())
    }
}

/// Gives up what was fetched ahead when it is not asked for any more, as long as the fetcher is there.
async fn tend(fetcher: Weak<Fetcher>) {
    loop {
        tokio::time::sleep(TENDED).await;
        let Some(fetcher) = fetcher.upgrade() else { return };
        fetcher.tend();
    }
}
