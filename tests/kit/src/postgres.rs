//! PostgreSQL for tests: the installations of this machine, and real clusters of each of them.
//!
//! ```no_run
//! use walden_testkit::postgres::{Cluster, Stop, for_each_version};
//!
//! for_each_version(|pg| {
//!     let mut cluster = Cluster::builder(pg).wal_segment_size(1).setting("wal_level", "replica").start();
//!     assert_eq!(cluster.psql("SELECT 1 + 1"), "2");
//!     cluster.kill9();
//!     cluster.start();
//!     cluster.stop(Stop::Fast);
//! });
//! ```

mod builder;
mod cluster;
mod installation;
mod processes;
mod server;
mod standby;

pub(crate) use self::installation::{tools, workspace};
pub use self::{
    builder::Builder,
    cluster::Cluster,
    installation::{Installation, MAJORS, any, for_each_version, installed, of},
    server::Stop,
};
