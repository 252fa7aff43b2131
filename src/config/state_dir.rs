//! The folder where a host remembers what it did: to be believed, it has to be ours alone.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::Path,
};

use crate::error::{Error, Result};

/// An error unless the folder is ours, or can be made, and nobody else may write in it.
pub fn prove_state_dir(folder: &Path) -> Result<()> {
    let mend = "create it for the user that runs PostgreSQL, or set [archive] state_dir";
    let found = match fs::metadata(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let made = fs::DirBuilder::new().mode(0o700).create(folder).and_then(|()| fs::metadata(folder));
            made.map_err(|e| Error::io("create", folder, e).hint(mend))?
        }
        found => found.map_err(|e| Error::io("stat", folder, e).hint(mend))?,
    };
    let us = rustix::process::geteuid().as_raw();
    if found.uid() != us || found.mode() & 0o022 != 0 || !found.is_dir() {
        return Err(Error::refused(format!(
            "{} has to be a folder that belongs to the user with the id {us} and that nobody else can write in",
            folder.display()
        ))
        .hint(mend));
    }
    Ok(())
}
