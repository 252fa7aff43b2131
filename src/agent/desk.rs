//! What lies on the agent's desk: the configuration that holds, and the shipper of each cluster.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::OnceCell;
use walden_companion::Request;

use super::{
    Agent,
    ahead::{self, Served},
};
use crate::{
    archive::{Shipper, Shipping},
    config::{self, ClusterConfig, Config, Lookup},
    error::Result,
    pace::{self, Cores},
    repository::ClusterName,
    store::Store,
};

pub(super) struct Desk {
    pub(super) agent: Agent,
    opened: Mutex<Arc<Opened>>,
}

/// A configuration, and what was opened by it.
pub(super) struct Opened {
    pub(super) config: Config,
    store: OnceCell<Arc<dyn Store>>,
    /// The processors that all clusters share.
    cores: Arc<Cores>,
    served: Mutex<HashMap<ClusterName, Arc<Served>>>,
}

impl Desk {
    pub(super) fn new(agent: Agent) -> Self {
        let opened = Mutex::new(Arc::new(Opened::new(agent.config.clone())));
        Self { agent, opened }
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
            *opened = Arc::new(Opened::new(config));
        }
        Ok(opened.clone())
    }
}

impl Opened {
    fn new(config: Config) -> Self {
        for why in pace::lower(config.archive.nice, None) {
            tracing::warn!("the priority of archiving could not be lowered: {why}");
        }
        let cores = Arc::new(Cores::new(config.archive.cpu));
        Self { config, store: OnceCell::new(), cores, served: Mutex::default() }
    }

    /// The one that serves a cluster.
    pub(super) async fn served(&self, cluster: &ClusterConfig, agent: &Agent) -> Result<Arc<Served>> {
        let open = async || config::open_store(self.config.repository()?, agent.random.clone()).await;
        let store = self.store.get_or_try_init(open).await?;
        let mut served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || {
            let shipper = Shipper::new(store.clone(), Shipping::of(&self.config, cluster), self.cores.clone());
            let served = Arc::new(Served::new(shipper));
            _ = tokio::spawn(ahead::ship(Arc::downgrade(&served), agent.random.clone()));
            served
        };
        Ok(served.entry(cluster.name.clone()).or_insert_with(new).clone())
    }
}
