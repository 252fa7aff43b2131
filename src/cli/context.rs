//! What every subcommand is handed.

use std::sync::{Arc, OnceLock};

use super::{Global, Output, progress};
use crate::{
    clock::{Clock, Random, SystemClock},
    config::{self, ClusterConfig, Config, Lookup, Override},
    error::Result,
    interrupt::{Interrupt, Interrupter},
    progress::Progress,
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

    /// The configured repository's store, which must be there.
    pub async fn store(&self) -> Result<Arc<dyn Store>> {
        config::open_store(self.config()?.repository()?, self.random.clone()).await
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
