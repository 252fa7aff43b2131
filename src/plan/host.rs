//! The host that a copy would run on, held against what the server's own was like when it was backed up.

mod judge;

use std::{collections::BTreeMap, path::PathBuf};

use serde::Serialize;

use crate::{
    error::Result,
    postgres::{installation, installed::Installed, platform::Libc},
    repository::{BackupDocument, CatalogueEntry, System, join},
};

/// How this host compares.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// Where the programs of the backup's major version are, if they are here.
    pub programs: Option<PathBuf>,
    /// Their version, such as `17.11`.
    pub postgres: Option<String>,
    /// The processor that they are for.
    pub architecture: Option<String>,
    /// The C library that they are linked with.
    pub libc: Option<Libc>,
    /// The version of ICU that they are linked with.
    pub icu: Option<String>,
    /// What differs.
    pub differences: Vec<Difference>,
    /// What could not be compared, in words.
    pub unknown: Vec<String>,
}

/// What a difference is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum About {
    /// The major version of PostgreSQL is not here.
    Version,
    /// An older minor version.
    MinorVersion,
    /// The processor.
    Architecture,
    /// The size of a page.
    BlockSize,
    /// The C library.
    Libc,
    /// ICU.
    Icu,
    /// Collations that had changed before the backup.
    Collation,
    /// `shared_preload_libraries`.
    SharedPreload,
    /// `session_preload_libraries` or `local_preload_libraries`.
    SessionPreload,
    /// A library with functions of a database.
    Library,
    /// An extension.
    Extension,
}

/// Something that differs, and the mend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// What it is about.
    pub about: About,
    /// Whether a copy cannot be started here because of it.
    pub prevents_start: bool,
    /// What differs, in words.
    pub what: String,
    /// What follows, in words.
    pub follows: String,
    /// The mend, in words.
    pub mend: String,
    /// The databases that it is about; none when it is about the server.
    pub databases: Vec<Database>,
    /// What mends it in them, as SQL.
    pub commands: Vec<Command>,
}

/// A database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Database {
    /// Its OID.
    pub oid: u32,
    /// Its name, where the backup tells it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// SQL to run in one database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Command {
    /// The database.
    pub database: String,
    /// The statement.
    pub sql: String,
}

impl Host {
    /// Compares this host with what the backup tells. `settings` are those that the copy gets besides its own.
    pub async fn compare(system: &System, backup: &BackupDocument, settings: &[(String, String)]) -> Result<Self> {
        let version = backup.postgres;
        let look = move || installation::bin_directory(version).map(|bin| Installed::look(bin, version)).ok();
        let installed = join(tokio::task::spawn_blocking(move || Ok(look())).await)??;
        let mut host = judge::judge(backup, installed.as_ref(), settings);
        if host.differences.iter().any(|d| !d.databases.is_empty()) {
            let names = names(system, backup).await;
            for difference in &mut host.differences {
                judge::name(difference, version, &names);
            }
        }
        Ok(host)
    }

    /// Those differences with which a copy cannot be started here.
    pub fn obstacles(&self) -> impl Iterator<Item = &Difference> {
        self.differences.iter().filter(|d| d.prevents_start)
    }

    /// What this host is, in a few words.
    #[must_use]
    pub fn describe(&self) -> String {
        let libc = self.libc.as_ref().map(|l| format!("{} {}", l.name, l.version.as_deref().unwrap_or_default()));
        let postgres = self.postgres.as_ref().map(|version| format!("PostgreSQL {version}"));
        let known = [postgres, self.architecture.clone(), libc, self.icu.as_ref().map(|icu| format!("ICU {icu}"))];
        known.into_iter().flatten().map(|text| text.trim_end().to_owned()).collect::<Vec<_>>().join(", ")
    }
}

/// What the databases were called. Without the catalogue they go by their numbers.
async fn names(system: &System, backup: &BackupDocument) -> BTreeMap<u32, String> {
    let read = system.catalogue(backup, BTreeMap::new(), |names, entry| {
        if let CatalogueEntry::Database(database) = entry {
            names.insert(database.oid, database.name);
        }
    });
    read.await.unwrap_or_else(|error| {
        tracing::warn!("databases go by their numbers: {error}");
        BTreeMap::new()
    })
}
