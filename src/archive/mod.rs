//! The archive of one system: segments and their companions in and out, as `archive_command` and
//! `restore_command` ask for it, and WAL as a server streams it.

mod arrival;
mod backlog;
mod fetch;
mod fetcher;
mod push;
pub mod receive;
mod replay;
mod settle;
mod shipped;
mod shipper;
mod show;
mod spool;
mod suspension;

pub use fetch::{Fetch, answer};
pub use fetcher::{Fetcher, Fetching, Lifetime, OpenStore, clear_prefetched};
pub use push::{Push, Pushed, push};
pub use shipper::{Shipper, Shipping};
pub use show::{Shown, show, show_file};
pub use suspension::{Begun, Record, Suspensions};

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    error::{Error, Result},
    human,
};

/// The error of a push or a fetch that took longer than it may.
#[must_use]
pub fn out_of_time(limit: Duration) -> Error {
    Error::unavailable(format!("the repository did not answer within {}", human::duration(limit)))
        .hint("[archive] timeout sets how long to wait")
}

/// The data directory that a path which PostgreSQL handed over belongs to.
///
/// `%p` is `pg_wal/<name>` below the data directory, in which PostgreSQL runs its commands; `pg_rewind` and Patroni
/// give other paths from other places, and then the configuration tells.
fn data_directory(path: &Path, configured: Option<&Path>) -> Result<PathBuf> {
    let holds_control = |dir: &Path| dir.join("global/pg_control").is_file();
    let above = path.parent().filter(|dir| dir.ends_with("pg_wal")).map(|dir| match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    });
    above.filter(|dir| holds_control(dir)).or_else(|| configured.map(Path::to_path_buf)).ok_or_else(|| {
        Error::invalid(format!("{} does not lie in a data directory's pg_wal", path.display()))
            .hint("set pgdata of the cluster in walden.toml")
    })
}
