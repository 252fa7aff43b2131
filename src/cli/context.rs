//! What every subcommand is handed.

use std::sync::{Arc, OnceLock};

use super::{Global, Output, progress};
use crate::{
    clock::{Clock, Random, SystemClock},
    config::{self, ClusterConfig, Config, Lookup, Override},
    error::Result,
    interrupt::{Interrupt, Interrupter},
    mirror,
    progress::Progress,
    repository::ClusterName,
    store::Store,
};

/// What every subcommand is handed.
#[derive(Debug)]
pub struct Context {
    /// Where the answer goes.
    pub output: Output,
    /// The time of day.
    pub clock: Arc<dyn Clock>,
    /// Random names and jitter.
    pub random: Arc<Random>,
    /// The flags that every subcommand takes.
    pub global: Global,
    interrupter: Arc<Interrupter>,
    config: OnceLock<Config>,
}

impl Context {
    pub(super) fn new(global: Global, interrupter: Arc<Interrupter>) -> Self {
        Self {
            output: Output::new(&global),
            clock: Arc::new(SystemClock),
            random: Arc::new(Random::from_system()),
            global,
            interrupter,
            config: OnceLock::new(),
        }
    }

    /// The configuration. Read when it is first asked for: not every subcommand needs one.
    pub fn config(&self) -> Result<&Config> {
        match self.config.get() {
            Some(config) => Ok(config),
            None => self.load(&[]).map(|config| self.config.get_or_init(|| config)),
        }
    }

    /// The configuration with what this subcommand's own flags set above it. Not remembered.
    pub fn load(&self, overrides: &[Override]) -> Result<Config> {
        let Global { config, no_local_config, .. } = &self.global;
        Config::load(&Lookup { named: config.clone(), skip_local: *no_local_config }, overrides)
    }

    /// The cluster of `--cluster`, or the only one there is.
    pub fn cluster(&self) -> Result<ClusterConfig> {
        self.config()?.cluster(self.global.cluster.as_deref())
    }

    /// The store to read from: whichever repository has an object gives it, unless `--repository` names one.
    pub async fn reading(&self) -> Result<Arc<dyn Store>> {
        mirror::reading(self.config()?, self.global.repository.as_ref(), &self.random).await
    }

    /// The first repository's store, which must be there: the one to write to.
    pub async fn store(&self) -> Result<Arc<dyn Store>> {
        config::open_store(self.config()?.repository()?, self.random.clone()).await
    }

    /// How the other repositories stand beside the first. None are where there is only one, or one is chosen.
    pub async fn mirror_states(&self, cluster: &ClusterName) -> Result<Vec<mirror::State>> {
        let mirrors = mirror::configured(self.config()?, &self.random);
        if mirrors.is_empty() || self.global.repository.is_some() {
            return Ok(Vec::new());
        }
        let unknown = |why: String| -> Vec<mirror::State> {
            let state = |m: &Arc<mirror::Mirror>| mirror::State {
                name: m.name.clone(),
                url: m.url(),
                behind: None,
                unknown: Some(why.clone()),
            };
            mirrors.iter().map(state).collect()
        };
        Ok(match self.store().await {
            Ok(first) => mirror::State::of_all(&mirrors, &first, cluster).await,
            Err(error) => unknown(format!("the first repository does not answer: {error}")),
        })
    }

    /// Hears the wish to stop. Only for work that will stop by itself: what does not ask for this is dropped.
    #[must_use]
    pub fn interrupt(&self) -> Interrupt {
        self.interrupter.listen()
    }

    /// A bar, lines or nothing, as the flags and the terminal want it.
    #[must_use]
    pub fn progress(&self) -> Arc<dyn Progress> {
        progress::for_output(&self.output)
    }
}
