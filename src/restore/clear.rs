//! Removing what a directory held before: all of it, or what a backup does not name.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    error::{Error, Result},
    postgres::control::CONTROL_FILE,
    repository::{Files, Manifest},
};

/// Removes `pg_control`: without it nothing can start here.
pub fn control(pgdata: &Path) -> Result<()> {
    let path = pgdata.join(CONTROL_FILE);
    match fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::io("remove", &path, e)),
        Err(_) => return Ok(()),
        Ok(()) => {}
    }
    super::sync_folder(&pgdata.join("global"))
}

/// Removes everything in a directory but the directory itself. Links are removed, not followed. No directory is a
/// success.
pub fn contents(directory: &Path) -> Result<()> {
    each(directory, remove)
}

/// Removes what the manifest does not name. `kept` are links below the data directory that stay.
pub fn strangers(pgdata: &Path, manifest: &Manifest, others: &[(PathBuf, PathBuf)]) -> Result<()> {
    let mut directories: HashSet<&Path> = manifest.directories.iter().map(|d| d.path.as_path()).collect();
    directories.extend(manifest.files.paths().filter_map(Path::parent));
    let links = others.iter().map(|(path, _)| path.as_path()).collect();
    let named = Named { files: &manifest.files, directories, links };
    named.sweep(pgdata, Path::new(""))?;
    for (path, elsewhere) in others {
        if path == Path::new("pg_wal") {
            named.sweep(elsewhere, path)?;
        } else {
            // A tablespace's location can hold what belongs to other clusters.
            for own in named.below(path) {
                named.sweep(&elsewhere.join(own.strip_prefix(path).unwrap_or(own)), own)?;
            }
        }
    }
    Ok(())
}

struct Named<'a> {
    files: &'a Files,
    directories: HashSet<&'a Path>,
    links: HashSet<&'a Path>,
}

impl Named<'_> {
    fn sweep(&self, directory: &Path, path: &Path) -> Result<()> {
        each(directory, |whole, metadata| {
            let Some(name) = whole.file_name() else { return Ok(()) };
            let path = path.join(name);
            if metadata.is_dir() && self.directories.contains(path.as_path()) && !self.links.contains(path.as_path()) {
                self.sweep(whole, &path)
            } else if (metadata.is_symlink() && self.links.contains(path.as_path()))
                || (metadata.is_file() && self.files.find(&path).is_some())
            {
                Ok(())
            } else {
                remove(whole, metadata)
            }
        })
    }

    fn below(&self, path: &Path) -> Vec<&Path> {
        self.directories.iter().copied().filter(|d| d.parent() == Some(path)).collect()
    }
}

fn each(directory: &Path, mut act: impl FnMut(&Path, &fs::Metadata) -> Result<()>) -> Result<()> {
    let failed = |e| Error::io("read the directory", directory, e);
    let entries = match fs::read_dir(directory) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(failed)?,
    };
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let metadata = fs::symlink_metadata(&path).map_err(|e| Error::io("stat", &path, e))?;
        act(&path, &metadata)?;
    }
    Ok(())
}

fn remove(path: &Path, metadata: &fs::Metadata) -> Result<()> {
    let removed = if metadata.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    removed.map_err(|e| Error::io("remove", path, e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        repository::{Directory, File, Hashed},
        seal::blake3,
    };

    #[test]
    fn what_is_not_named_goes_and_links_are_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (pgdata, outside, space) = (folder.path().join("d"), folder.path().join("o"), folder.path().join("t"));
        for dir in ["d/base/1", "d/base/9", "d/pg_wal", "d/pg_tblspc", "o", "t/PG_15_1", "t/other"] {
            fs::create_dir_all(folder.path().join(dir)).unwrap();
        }
        for file in
            ["d/base/1/1", "d/base/1/2", "d/base/9/1", "d/pg_wal/x", "o/precious", "t/PG_15_1/junk", "t/other/precious"]
        {
            fs::write(folder.path().join(file), "x").unwrap();
        }
        std::os::unix::fs::symlink(&outside, pgdata.join("link")).unwrap();
        std::os::unix::fs::symlink(&space, pgdata.join("pg_tblspc/7")).unwrap();
        let directory = |path: &str| Directory { path: path.into(), mode: 0o700 };
        let manifest = Manifest {
            format: 1,
            backup: "20261121T014500Z".parse().unwrap(),
            incarnation: "7-1".parse().unwrap(),
            block_size: 8192,
            origin: None,
            tablespaces: vec![],
            directories: ["base", "base/1", "pg_wal", "pg_tblspc", "pg_tblspc/7", "pg_tblspc/7/PG_15_1"]
                .map(directory)
                .into(),
            parts: vec![],
            files: Files::from_iter([File {
                path: "base/1/1".into(),
                size: 1,
                mtime: chrono::DateTime::UNIX_EPOCH,
                mode: 0o600,
                blake3: blake3(b"x"),
                hashed: Hashed::Content,
                crc32c: 0,
                stat: None,
                layers: vec![],
            }]),
        };
        strangers(&pgdata, &manifest, &[("pg_tblspc/7".into(), space.clone())]).unwrap();
        let there = |path: &str| fs::symlink_metadata(folder.path().join(path)).is_ok();
        for kept in ["d/base/1/1", "d/pg_wal", "d/pg_tblspc/7", "o/precious", "t/other/precious", "t/PG_15_1"] {
            assert!(there(kept), "{kept}");
        }
        for gone in ["d/base/1/2", "d/base/9", "d/pg_wal/x", "d/link", "t/PG_15_1/junk"] {
            assert!(!there(gone), "{gone}");
        }
        contents(&pgdata).unwrap();
        assert!(there("o/precious") && there("d") && !there("d/base"));
    }
}
