//! A clock that a test sets, for a server that is started with it (libfaketime).

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use crate::{owner::Owner, postgres::tools, scene::temporary_folder};

/// The clock. It begins with the right time.
#[derive(Debug)]
pub struct Clock {
    library: PathBuf,
    folder: TempDir,
    owner: Owner,
}

impl Clock {
    /// A clock, or `None`, said plainly, where libfaketime is missing.
    ///
    /// # Panics
    /// When it is missing and `WALDEN_TEST_FAKETIME=required`.
    #[must_use]
    pub fn find() -> Option<Self> {
        let system = fs::read_dir("/usr/lib").into_iter().flatten().flatten().map(|entry| entry.path());
        let places = std::iter::once(tools().join("faketime")).chain(system.map(|path| path.join("faketime")));
        let Some(library) = places.map(|path| path.join("libfaketime.so.1")).find(|path| path.exists()) else {
            let required = env::var("WALDEN_TEST_FAKETIME").is_ok_and(|value| value == "required");
            assert!(!required, "libfaketime is missing: run scripts/tools faketime");
            eprintln!("libfaketime is missing (scripts/tools faketime): no test set a server's clock back");
            return None;
        };
        let owner = Owner::of_servers();
        let clock = Self { library, folder: temporary_folder(&owner), owner };
        clock.set(0.0);
        Some(clock)
    }

    /// From now on it tells the right time plus these seconds.
    ///
    /// # Panics
    /// When that cannot be written down.
    pub fn set(&self, seconds: f64) {
        let (file, new) = (self.file(), self.folder.path().join("new"));
        fs::write(&new, format!("{seconds:+.3}\n")).unwrap_or_else(|error| panic!("{}: {error}", new.display()));
        self.owner.own(&new);
        // A server never reads half of it.
        fs::rename(&new, &file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("offset")
    }

    /// What a server needs in its environment to go by it. Only the time of day is changed: latches wait by the
    /// monotonic clock.
    #[must_use]
    pub fn environment(&self) -> Vec<(String, String)> {
        let text = |path: &Path| path.display().to_string();
        [
            ("LD_PRELOAD", text(&self.library)),
            ("FAKETIME_TIMESTAMP_FILE", text(&self.file())),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("DONT_FAKE_MONOTONIC", "1".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec()
    }
}
