//! The place where a test happens: a folder that the servers' user can use, and Walden's programs in it.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::SystemTime,
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::{
    owner::Owner,
    postgres::{installed, workspace},
};

/// A temporary folder of the servers' user. It is removed, with all that is in it, when this is dropped.
#[derive(Debug)]
pub struct Scene {
    folder: TempDir,
    owner: Owner,
}

impl Default for Scene {
    fn default() -> Self {
        Self::new()
    }
}

impl Scene {
    /// A new, empty one.
    #[must_use]
    pub fn new() -> Self {
        let owner = Owner::of_servers();
        Self { folder: temporary_folder(&owner), owner }
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The user that everything here belongs to and runs as.
    #[must_use]
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// Makes a folder in it, for a tablespace, a repository, or a restore.
    #[must_use]
    pub fn folder(&self, name: &str) -> PathBuf {
        let path = self.path().join(name);
        self.owner.make_folder(&path);
        path
    }

    /// Writes a file in it, such as `walden.toml`.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path().join(name);
        fs::write(&path, content).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        self.owner.own(&path);
        path
    }

    /// The path of one of Walden's programs (`walden`, `walden-archive`, `walden-restore`), where the servers' user
    /// can run it and where it finds the others beside it.
    ///
    /// # Panics
    /// When it was not built, or not since its source changed.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        let bin = self.path().join("bin");
        if !bin.exists() {
            self.owner.make_folder(&bin);
            for program in ["walden", "walden-archive", "walden-restore"] {
                let built = built(program);
                // A link costs nothing. Another file system takes a copy.
                let there = bin.join(program);
                fs::hard_link(&built, &there)
                    .or_else(|_| fs::copy(&built, &there).map(drop))
                    .unwrap_or_else(|error| panic!("{}: {error}", built.display()));
            }
        }
        bin.join(name)
    }

    /// A run of one of Walden's programs, as the servers' user, in this folder, with an environment that holds nothing
    /// but where PostgreSQL's programs are. Credentials and the like are added by the test.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = self.owner.command(self.program(program));
        command.current_dir(self.path()).env("HOME", self.path());
        let servers = env::join_paths(installed().iter().map(|pg| &pg.bin)).expect("folders without a colon");
        command.env("WALDEN_PG_BIN", servers);
        command
    }

    /// Kills every process that runs one of those programs of this scene, whoever started it, with SIGKILL; gives their
    /// number.
    pub fn kill9(&self, name: &str) -> usize {
        let program = self.program(name);
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = processes.filter(|entry| fs::read_link(entry.path().join("exe")).is_ok_and(|exe| exe == program));
        let pids = pids.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?));
        // One that has ended meanwhile is as good.
        pids.filter(|pid| kill_process(*pid, Signal::KILL).is_ok()).count()
    }

    /// `command("walden")`.
    #[must_use]
    pub fn walden(&self) -> Command {
        self.command("walden")
    }
}

/// A temporary folder that belongs to the servers' user and that others can look into.
pub(crate) fn temporary_folder(owner: &Owner) -> TempDir {
    // The path of a Unix socket holds at most 107 bytes.
    let parent = Some(env::temp_dir()).filter(|path| path.as_os_str().len() < 60).unwrap_or_else(|| "/tmp".into());
    let folder = tempfile::Builder::new()
        .prefix("walden-")
        .permissions(fs::Permissions::from_mode(0o755))
        .tempdir_in(&parent)
        .unwrap_or_else(|error| panic!("{}: {error}", parent.display()));
    owner.own(folder.path());
    folder
}

/// The program as cargo built it, beside the folder of the test's own executable.
fn built(program: &str) -> PathBuf {
    const BUILD: &str = "build the programs first: cargo build --workspace --bins (scripts/test does)";
    let test = env::current_exe().expect("the path of the test");
    let folder = test.ancestors().nth(2).expect("target/<profile>/deps/<test>");
    let path = folder.join(program);
    let changed = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified());
    let made = changed(&path).unwrap_or_else(|_| panic!("{} is missing: {BUILD}", path.display()));
    let source = match program {
        "walden-archive" => "archive-command/src",
        "walden-restore" => "restore-command/src",
        _ => return path,
    };
    let files = fs::read_dir(workspace().join(source)).expect("the source of a program");
    let newest = files.flatten().filter_map(|file| changed(&file.path()).ok()).max().unwrap_or(SystemTime::UNIX_EPOCH);
    assert!(newest <= made, "{} is older than its source: {BUILD}", path.display());
    path
}
