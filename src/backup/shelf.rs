//! Where one thread puts files: the part that it is filling, begun when the first file needs it, and those it has
//! filled.

use tokio::runtime::Handle;

use super::part::{PartWriter, Parts};
use crate::{error::Result, repository::Part};

/// The parts of one thread.
#[derive(Debug)]
pub struct Shelf {
    parts: std::sync::Arc<Parts>,
    /// What drives the uploads.
    pub runtime: Handle,
    open: Option<PartWriter>,
    full: Vec<Part>,
}

impl Shelf {
    /// An empty one.
    pub fn new(parts: std::sync::Arc<Parts>, runtime: Handle) -> Self {
        Self { parts, runtime, open: None, full: Vec::new() }
    }

    /// The part where the next file goes. Not on a thread that drives the runtime.
    pub fn part(&mut self) -> Result<&mut PartWriter> {
        if let Some(full) = self.open.take_if(|part| part.is_full()) {
            self.full.push(full.finish()?);
        }
        match &mut self.open {
            Some(part) => Ok(part),
            place => Ok(place.insert(self.parts.begin(&self.runtime)?)),
        }
    }

    /// Ends the last part; gives back all.
    pub fn finish(mut self) -> Result<Vec<Part>> {
        if let Some(part) = self.open.take() {
            self.full.push(part.finish()?);
        }
        Ok(self.full)
    }
}
