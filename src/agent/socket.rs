//! The agent's socket: one agent at a time, and only this user and root may speak to it.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    fs::{FlockOperation, flock},
    process::geteuid,
};
use tokio::net::{UnixListener, UnixStream};

use crate::error::{Error, Result};

const MEND: &str = "create the folder for the user that runs PostgreSQL, or set [agent] socket";

/// A socket that listens; it is gone when this is dropped.
pub(super) struct Socket {
    listener: UnixListener,
    path: PathBuf,
    _lock: File,
}

impl Socket {
    /// Listens there. What an agent that was killed left behind is removed; refused while another agent listens.
    pub(super) fn bind(path: &Path) -> Result<Self> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        match DirBuilder::new().mode(0o755).create(folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(Error::io("create", folder, error).hint(MEND));
            }
            _ => {}
        }
        let mut beside = path.as_os_str().to_owned();
        beside.push(".lock");
        let beside = PathBuf::from(beside);
        let open = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&beside);
        let lock = open.map_err(|e| Error::io("open", &beside, e).hint(MEND))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
            Error::refused(format!("another agent listens on {}", path.display()))
                .hint("one agent serves all clusters of its configuration; stop it first")
        })?;
        if fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
            fs::remove_file(path).map_err(|e| Error::io("remove", path, e))?;
        }
        let listener = UnixListener::bind(path).map_err(|e| Error::io("listen on", path, e).hint(MEND))?;
        fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(|e| Error::io("protect", path, e))?;
        Ok(Self { listener, path: path.into(), _lock: lock })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The next connection, of this user or of root's.
    pub(super) async fn accept(&self) -> UnixStream {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) if allowed(&stream) => return stream,
                Ok(_) => tracing::warn!("a connection of another user was turned away"),
                Err(error) => {
                    // Too many files are open: those who wait run walden after a while.
                    tracing::error!("accept a connection: {error}");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // The lock is still held: it is ours. What remains is removed by the next agent.
        _ = fs::remove_file(&self.path);
    }
}

fn allowed(stream: &UnixStream) -> bool {
    let us = geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == us || peer.uid() == 0)
}
