//! The configuration that a copy is started with when the server's own lay outside its data directory, as Debian's
//! packages put it: the files that the backup saved, else the least with which a server runs.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::Write,
    os::{
        fd::AsRawFd,
        unix::fs::{DirBuilderExt, OpenOptionsExt, fchown, lchown},
    },
    path::{Path, PathBuf},
};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use serde::Serialize;

use super::{mark, owner::Owner, run::Restored, session};
use crate::{
    error::{Error, Result},
    plan::Plan,
    postgres::settings,
    repository::BackupDocument,
};

/// The settings that name the files, and what these are called in a data directory.
const FILES: [(&str, &str); 3] =
    [("config_file", "postgresql.conf"), ("hba_file", "pg_hba.conf"), ("ident_file", "pg_ident.conf")];
/// The map of users that lets the owner in.
const MAP: &str = "walden";

/// What a copy is to be started with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Configuration {
    /// Settings for the server's command line that name the files.
    pub settings: Vec<(String, PathBuf)>,
    /// Those of these files that the backup does not hold: they are made for the start, and let nobody in but the owner of
    /// the data directory, by the socket.
    pub made: Vec<PathBuf>,
}

/// Whether the copy will have its `postgresql.conf`: in its data directory, or among the files that were saved.
#[must_use]
pub fn is_saved(backup: &BackupDocument) -> bool {
    let outside = backup.environment.as_ref().and_then(|e| e.configuration.config_file.as_ref());
    outside
        .is_some_and(|path| backup.extra.is_some() && !backup.extra_left_out.iter().any(|l| Path::new(&l.path) == path))
}

impl Configuration {
    /// For a copy that was made; `None` where everything lies in its data directory.
    pub fn find(plan: &Plan, restored: &Restored) -> Result<Option<Self>> {
        let outside = plan.backup.environment.as_ref().map(|e| e.configuration.clone()).unwrap_or_default();
        let named = [outside.config_file, outside.hba_file, outside.ident_file];
        let mut found = Self { settings: Vec::new(), made: Vec::new() };
        let own = mark::beside(&restored.pgdata, "walden-config")?;
        for ((setting, name), named) in FILES.into_iter().zip(named) {
            if named.is_none() && restored.pgdata.join(name).is_file() {
                continue;
            }
            let saved = restored.extra.as_ref().zip(named).and_then(|(extra, path)| within(&extra.folder, &path));
            let path = saved.unwrap_or_else(|| {
                found.made.push(own.join(name));
                own.join(name)
            });
            found.settings.push((setting.to_owned(), path));
        }
        Ok(Some(found).filter(|f| !f.settings.is_empty()))
    }

    /// Makes the files that are missing, and gives the settings for the server's command line. `user` is the role that
    /// is configured.
    pub fn provide(&self, owner: &Owner, user: Option<&str>) -> Result<Vec<(String, String)>> {
        for path in &self.made {
            let text = match path.file_name().and_then(|name| name.to_str()) {
                Some("pg_hba.conf") => format!("local all all peer map={MAP}\n"),
                Some("pg_ident.conf") => {
                    let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
                    let line = |role: &str| format!("{MAP} {} {}\n", quoted(&owner.name), quoted(role));
                    session::roles(owner, user).map(line).collect()
                }
                _ => settings::line("listen_addresses", ""),
            };
            let text = format!("# Made by walden restore --start: the backup holds no such file.\n{text}");
            write(path, &text, owner)?;
        }
        let files = self.settings.iter().map(|(name, path)| (name.clone(), path.to_string_lossy().into_owned()));
        // Debian's names one of the original's.
        Ok(files.chain([("external_pid_file".to_owned(), String::new())]).collect())
    }

    /// The options of the server's command line, for people.
    #[must_use]
    pub fn options(&self) -> String {
        let option = |(name, path): &(String, PathBuf)| format!("-c {name}={}", path.display());
        self.settings.iter().map(option).collect::<Vec<_>>().join(" ")
    }
}

/// Where a file of the original lies below `root`, links followed as if that were the root of the file system.
fn within(root: &Path, path: &Path) -> Option<PathBuf> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let above = rustix::fs::open(root, flags | OFlags::DIRECTORY, Mode::empty()).ok()?;
    let file = rustix::fs::openat2(above, path, flags, Mode::empty(), ResolveFlags::IN_ROOT).ok()?;
    let found = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()?;
    found.is_file().then_some(found)
}

/// Writes a small file of the owner's, in a folder of its own that nobody else may enter.
fn write(path: &Path, text: &str, owner: &Owner) -> Result<()> {
    let failed = |e| Error::io("write", path, e);
    let ids = owner.ids().map(|(uid, gid)| (uid.as_raw(), gid.as_raw()));
    if let Some(folder) = path.parent() {
        match DirBuilder::new().mode(0o700).create(folder) {
            Ok(()) => {
                if let Some((uid, gid)) = ids {
                    lchown(folder, Some(uid), Some(gid)).map_err(failed)?;
                }
            }
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(failed(e)),
        }
    }
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(e)),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)?;
    match ids {
        Some((uid, gid)) => fchown(&file, Some(uid), Some(gid)).map_err(failed),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_of_saved_files_do_not_lead_out() {
        let root = tempfile::tempdir().unwrap();
        let etc = root.path().join("etc/main");
        fs::create_dir_all(&etc).unwrap();
        fs::write(root.path().join("etc/real.conf"), "").unwrap();
        std::os::unix::fs::symlink("/etc/real.conf", etc.join("postgresql.conf")).unwrap();
        std::os::unix::fs::symlink("../../../../../etc/passwd", etc.join("out")).unwrap();
        let root = fs::canonicalize(root.path()).unwrap();
        assert_eq!(within(&root, Path::new("/etc/main/postgresql.conf")), Some(root.join("etc/real.conf")));
        assert_eq!(within(&root, Path::new("/etc/main/out")), None);
    }
}
