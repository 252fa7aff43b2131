//! The backup driver, the local way: reads the data directory of a running cluster in parallel, between
//! `pg_backup_start` and `pg_backup_stop`, into the parts of one complete backup.

mod catalogue;
mod driver;
mod finish;
mod part;
mod source;
mod throttle;
mod workers;

pub use driver::{BackupOutcome, BackupRequest, Surroundings, backup};
