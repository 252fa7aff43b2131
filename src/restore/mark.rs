//! The mark of a directory that is being restored: `.<name>.walden-restore.json` beside it, with the plan and the
//! request. It is durable before the first byte of the directory changes, and goes last.
//!
//! It cannot lie inside: `pg_verifybackup` refuses files that the manifest does not name.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{request::RestoreRequest, sync_folder};
use crate::{
    error::{Error, Result},
    plan::Plan,
    repository::FORMAT,
};

/// How far a restore is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// What was there before is being removed; its newest WAL may still lie in `pg_wal`.
    Clearing,
    /// What lies there is the restore's own.
    Writing,
}

/// What the mark says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mark {
    /// The format of the mark.
    pub format: u32,
    /// When the restore was begun.
    pub begun: DateTime<Utc>,
    /// How far it is.
    pub phase: Phase,
    /// What is being carried out.
    pub plan: Plan,
    /// How.
    pub request: RestoreRequest,
}

/// The mark beside `pgdata`, an absolute path.
pub fn path_of(pgdata: &Path) -> Result<PathBuf> {
    beside(pgdata, "walden-restore.json")
}

/// `.<name>.<what>` beside `pgdata`.
pub fn beside(pgdata: &Path, what: &str) -> Result<PathBuf> {
    match (pgdata.parent(), pgdata.file_name()) {
        (Some(parent), Some(name)) => {
            let mut file = std::ffi::OsString::from(".");
            file.push(name);
            file.push(".");
            file.push(what);
            Ok(parent.join(file))
        }
        _ => Err(Error::invalid(format!("{} cannot be a data directory", pgdata.display()))),
    }
}

/// The mark of the unfinished restore into `pgdata`, if there is one.
pub fn unfinished(pgdata: &Path) -> Result<Option<Mark>> {
    let path = path_of(&resolved(pgdata)?)?;
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(e) => return Err(Error::io("read", &path, e)),
    };
    let mark: Mark = serde_json::from_slice(&text).map_err(|e| {
        Error::refused(format!("{} marks an unfinished restore, and cannot be read", path.display()))
            .hint("if nothing in the directory is needed, remove it and its mark, and restore again")
            .source(e)
    })?;
    if mark.format > FORMAT {
        return Err(Error::refused(format!("{} was written by a newer Walden", path.display()))
            .hint("finish that restore with the newer one"));
    }
    Ok(Some(mark))
}

impl Mark {
    /// Writes it durably, in place of an earlier one.
    pub fn write(&self) -> Result<()> {
        let path = path_of(&self.request.pgdata)?;
        let temporary = path.with_extension("json.new");
        let mut text =
            serde_json::to_vec_pretty(self).map_err(|e| Error::internal("write the mark as JSON").source(e))?;
        text.push(b'\n');
        let mut file = File::create(&temporary).map_err(|e| {
            Error::io("write", &temporary, e)
                .hint("the folder that holds the data directory must be writable: the mark of an unfinished restore lies there")
        })?;
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(|e| Error::io("write", &temporary, e))?;
        fs::rename(&temporary, &path).map_err(|e| Error::io("rename", &temporary, e))?;
        path.parent().map_or(Ok(()), sync_folder)
    }

    /// Removes it: the restore is done.
    pub fn remove(&self) -> Result<()> {
        let path = path_of(&self.request.pgdata)?;
        fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
        path.parent().map_or(Ok(()), sync_folder)
    }
}

/// The absolute path without links of a directory, of which the last parts may not exist yet.
pub fn resolved(path: &Path) -> Result<PathBuf> {
    let absolute = std::path::absolute(path).map_err(|e| Error::io("find", path, e))?;
    let mut rest = Vec::new();
    let mut front = absolute.as_path();
    loop {
        match fs::canonicalize(front) {
            Ok(found) => return Ok(rest.iter().rev().fold(found, |path, name| path.join(name))),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => match (front.parent(), front.file_name()) {
                (Some(parent), Some(name)) => {
                    rest.push(name.to_owned());
                    front = parent;
                }
                _ => return Err(Error::io("find", &absolute, e)),
            },
            Err(e) => return Err(Error::io("find", &absolute, e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_lies_beside_the_directory() {
        assert_eq!(path_of(Path::new("/srv/pg/main")).unwrap(), Path::new("/srv/pg/.main.walden-restore.json"));
        assert!(path_of(Path::new("/")).is_err());
    }

    #[test]
    fn a_path_is_resolved_as_far_as_it_exists() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().canonicalize().unwrap();
        std::os::unix::fs::symlink(&real, real.join("link")).unwrap();
        assert_eq!(resolved(&real.join("link/a/b")).unwrap(), real.join("a/b"));
    }

    #[test]
    fn a_mark_that_cannot_be_read_is_no_absent_mark() {
        let folder = tempfile::tempdir().unwrap();
        let pgdata = folder.path().join("main");
        assert!(unfinished(&pgdata).unwrap().is_none());
        fs::write(folder.path().join(".main.walden-restore.json"), "{").unwrap();
        assert_eq!(unfinished(&pgdata).unwrap_err().kind(), crate::error::Kind::Refused);
    }
}
