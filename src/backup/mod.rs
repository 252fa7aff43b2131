//! The backup driver. A cluster's bytes come from its data directory, read in parallel, or from the server over the
//! replication protocol; either way they become the parts of one complete backup.

mod ancestor;
mod archived;
mod asking;
mod catalogue;
mod changes;
mod environment;
mod extra;
mod finish;
mod intake;
mod local;
mod origin;
mod part;
mod queue;
mod remote;
mod request;
mod shelf;
mod source;
mod summaries;
mod workers;

pub use part::{PartWriter, header_length};
pub use request::{BackupOutcome, BackupRequest, Surroundings, Way, backup};
