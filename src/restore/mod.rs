//! Restore: carries out a plan. [`Restore::prepare`] looks at everything and writes nothing; [`Restore::run`] makes
//! the data directory, [`start()`] starts PostgreSQL in it and holds what was reached against the plan, [`adopt()`] makes
//! the copy the cluster.
//!
//! A directory that is being restored is marked by a file beside it, which holds the plan ([`Mark`]), and has no
//! `pg_control` until the very end. So it can never be started half done, and the same command goes on where it was
//! killed. The order of the last steps is fixed in `settle`.

mod adopt;
mod clear;
mod configuration;
mod export;
mod extra;
mod fetch;
mod files;
mod ground;
mod layers;
mod mark;
mod note;
mod owner;
mod place;
mod prepare;
mod proof;
mod request;
mod rescue;
mod run;
mod session;
mod settle;
mod space;
mod start;
#[cfg(test)]
mod testing;

pub use adopt::{AdoptRequest, Adopted, adopt};
pub use configuration::Configuration;
pub use export::{Exported, export};
pub use extra::Written;
pub use mark::{Mark, unfinished};
pub use note::{Took, remember};
pub use owner::Owner;
pub use prepare::{Restore, resumable};
pub use request::{ExtraFiles, RestoreRequest, Then, Wish};
pub use run::Restored;
pub use start::{Outcome, Reached, StartRequest, Started, find_programs, start};

use std::{fs::File, path::Path};

use crate::error::{Error, Result};

/// Makes the entries of a folder durable.
fn sync_folder(path: &Path) -> Result<()> {
    File::open(path).and_then(|f| f.sync_all()).map_err(|e| Error::io("fsync", path, e))
}
