//! Recovery as it is done without Walden: `pg_basebackup`, a folder that `cp` archives into, settings typed in.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{
    owner::Owner,
    postgres::{Cluster, Installation},
    protected::Protected,
    run::run,
};

/// An archive and base backups beside those of Walden, of the same cluster.
#[derive(Debug)]
pub struct ByHand {
    folder: PathBuf,
    archive: PathBuf,
    installation: Installation,
}

impl ByHand {
    /// From now on `cp` archives each segment, too.
    #[must_use]
    pub fn beside(p: &Protected) -> Self {
        let archive = p.scene.folder("by-hand");
        let walden = p.cluster.psql("show archive_command").replace('\'', "''");
        p.cluster.append_configuration(&format!("archive_command = 'cp %p {}/%f && {walden}'\n", archive.display()));
        p.cluster.reload();
        Self { folder: p.scene.path().to_owned(), archive, installation: p.cluster.installation().clone() }
    }

    /// The file of the archive with that name.
    #[must_use]
    pub fn archived(&self, name: &str) -> PathBuf {
        self.archive.join(name)
    }

    /// Takes a base backup without its WAL, in the folder of that name.
    #[must_use]
    pub fn backup(&self, cluster: &Cluster, name: &str) -> PathBuf {
        let to = self.folder.join(name);
        let mut program = cluster.pg("pg_basebackup");
        run(program.args(["-X", "none", "-c", "fast", "--no-sync", "-D"]).arg(&to)).expect_code(0);
        to
    }

    /// `restore_command` that copies from the folder.
    #[must_use]
    pub fn copying(&self) -> String {
        format!("cp {}/%f %p", self.archive.display())
    }

    /// A copy of a base backup with `recovery.signal`, `restore_command` and these settings, not started yet. It archives
    /// nothing, unless they say so.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn copy(&self, base: &Path, name: &str, settings: &[(&str, &str)]) -> Cluster {
        let (to, owner) = (self.folder.join(name), Owner::of_servers());
        run(owner.command("cp").arg("-a").arg(base).arg(&to)).expect_code(0);
        let signal = to.join("recovery.signal");
        fs::write(&signal, "").unwrap_or_else(|error| panic!("{}: {error}", signal.display()));
        owner.own(&signal);
        let copy = Cluster::adopt(to, &self.installation);
        copy.append_configuration(&format!("archive_mode = off\nrestore_command = '{}'\n", self.copying()));
        for (name, value) in settings {
            copy.append_configuration(&format!("{name} = '{}'\n", value.replace('\'', "''")));
        }
        copy
    }
}
