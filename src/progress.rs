//! How long work tells how far it is, without knowing whether anybody watches. The rooms call; the command
//! line decides whether a bar is drawn, lines are printed, or nothing.

use std::fmt;

/// Somebody who may be watching. All methods are cheap, may be called from any thread and never fail.
pub trait Progress: fmt::Debug + Send + Sync {
    /// Begins a stretch of work, ending the one before. `total` is its size in bytes, where that is known.
    fn start(&self, label: &str, total: Option<u64>);
    /// That many more bytes are done.
    fn advance(&self, bytes: u64);
    /// What is being worked on or waited for right now: shown beside the bar until the next message.
    fn message(&self, text: &str);
    /// The work is over, well or not: the bar goes.
    fn finish(&self);
}

/// Nobody watches.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unwatched;

impl Progress for Unwatched {
    fn start(&self, _: &str, _: Option<u64>) {}
    fn advance(&self, _: u64) {}
    fn message(&self, _: &str) {}
    fn finish(&self) {}
}
