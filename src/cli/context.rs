//! What every subcommand is handed.

use std::sync::Arc;

use super::{Global, Output, progress};
use crate::{
    clock::{Clock, Random, SystemClock},
    interrupt::{Interrupt, Interrupter},
    progress::Progress,
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
}

impl Context {
    pub(super) fn new(global: Global, interrupter: Arc<Interrupter>) -> Self {
        Self {
            output: Output::new(&global),
            clock: Arc::new(SystemClock),
            random: Arc::new(Random::from_system()),
            global,
            interrupter,
        }
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
