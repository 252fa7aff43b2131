//! What the host of a server was like when it was backed up: what a host that a copy is restored to must match. Databases
//! go by their numbers; their names are in the catalogue.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::postgres::{
    platform::{Libc, Platform},
    sql::environment::{Collation, DatabaseEnvironment, Extension, Locale, ServerEnvironment},
};

/// What is known of it. What is absent could not be learnt.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    /// What `version()` says.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// The processor that PostgreSQL was built for, such as `x86_64`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    /// The size of a word in bits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub word_bits: Option<u32>,
    /// The size of a page in bytes.
    pub block_size: u32,
    /// The C library.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub libc: Option<Libc>,
    /// ICU's version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icu: Option<String>,
    /// `shared_preload_libraries`: without them the server does not start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared_preload_libraries: Option<Vec<String>>,
    /// `session_preload_libraries`: without them nobody can connect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_preload_libraries: Option<Vec<String>>,
    /// `local_preload_libraries`: the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_preload_libraries: Option<Vec<String>>,
    /// `dynamic_library_path`, when it is not the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dynamic_library_path: Option<String>,
    /// `extension_control_path` (18 and later), when it is not the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extension_control_path: Option<String>,
    /// The server's configuration files, where they lie outside its data directory.
    #[serde(default, skip_serializing_if = "ConfigurationFiles::is_empty")]
    pub configuration: ConfigurationFiles,
    /// How databases order text.
    #[serde(default)]
    pub locales: Vec<Needed<Locale>>,
    /// Other collations that they use.
    #[serde(default)]
    pub collations: Vec<Needed<Collation>>,
    /// Their extensions, those that came with the server left out.
    #[serde(default)]
    pub extensions: Vec<Needed<Extension>>,
    /// Libraries with functions of theirs, as PostgreSQL names them.
    #[serde(default)]
    pub libraries: Vec<Needed<Library>>,
    /// What could not be learnt.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unknown: Vec<Unknown>,
}

/// Where the configuration of a server lies that is not in its data directory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigurationFiles {
    /// `config_file`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_file: Option<PathBuf>,
    /// `hba_file`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hba_file: Option<PathBuf>,
    /// `ident_file`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ident_file: Option<PathBuf>,
}

impl ConfigurationFiles {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Something, and the databases that need it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Needed<T> {
    /// What.
    #[serde(flatten)]
    pub what: T,
    /// The OIDs of the databases.
    pub databases: Vec<u32>,
}

/// A library.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Library {
    /// Where it lies, such as `$libdir/pg_trgm`.
    pub path: String,
}

/// Something that could not be learnt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unknown {
    /// The OID of the database that it is about; absent where it is about the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<u32>,
    /// Why, in words.
    pub why: String,
}

impl Environment {
    /// Takes in what the server says of itself as a whole.
    pub fn server(&mut self, said: ServerEnvironment) {
        (self.architecture, self.word_bits) = built_for(&said.version);
        self.version = said.version;
        if let Some(version) = said.libc {
            // Only glibc's collations have versions.
            self.libc = Some(Libc { name: "glibc".to_owned(), version: Some(version) });
        }
        let data = said.settings.iter().find(|(name, _)| name == "data_directory").map(|(_, value)| value.clone());
        let outside = |value: String| {
            let inside = data.as_deref().is_some_and(|data| Path::new(&value).starts_with(data));
            (!inside && !value.is_empty()).then(|| PathBuf::from(value))
        };
        for (name, value) in said.settings {
            match name.as_str() {
                "shared_preload_libraries" => self.shared_preload_libraries = Some(list(&value)),
                "session_preload_libraries" => self.session_preload_libraries = Some(list(&value)),
                "local_preload_libraries" => self.local_preload_libraries = Some(list(&value)),
                "dynamic_library_path" if value != "$libdir" => self.dynamic_library_path = Some(value),
                "extension_control_path" if value != "$system" => self.extension_control_path = Some(value),
                "config_file" => self.configuration.config_file = outside(value),
                "hba_file" => self.configuration.hba_file = outside(value),
                "ident_file" => self.configuration.ident_file = outside(value),
                _ => {}
            }
        }
        for (oid, locale) in said.databases {
            need(&mut self.locales, locale, oid);
        }
    }

    /// Takes in what a database needs.
    pub fn database(&mut self, oid: u32, said: DatabaseEnvironment) {
        said.collations.into_iter().for_each(|c| need(&mut self.collations, c, oid));
        said.extensions.into_iter().for_each(|e| need(&mut self.extensions, e, oid));
        said.libraries.into_iter().for_each(|path| need(&mut self.libraries, Library { path }, oid));
    }

    /// Takes in what was seen of the server's process. What the server says of itself counts more.
    pub fn process(&mut self, platform: Platform) {
        self.icu = platform.icu;
        if self.libc.is_none() {
            self.libc = platform.libc;
        }
    }

    /// Notes what could not be learnt.
    pub fn lacks(&mut self, database: Option<u32>, why: impl Into<String>) {
        self.unknown.push(Unknown { database, why: why.into() });
    }
}

fn need<T: PartialEq>(all: &mut Vec<Needed<T>>, what: T, oid: u32) {
    match all.iter_mut().find(|needed| needed.what == what) {
        Some(needed) => needed.databases.push(oid),
        None => all.push(Needed { what, databases: vec![oid] }),
    }
}

/// Processor and word size in what `version()` says: "PostgreSQL 17.11 on x86_64-pc-linux-gnu, compiled by ..., 64-bit".
fn built_for(version: &str) -> (Option<String>, Option<u32>) {
    let host = version.split_once(" on ").and_then(|(_, rest)| rest.split(['-', ',']).next());
    let bits = version.rsplit_once(", ").and_then(|(_, last)| last.strip_suffix("-bit")?.parse().ok());
    (host.filter(|h| !h.is_empty()).map(str::to_owned), bits)
}

/// The names in a setting that is a list (`SplitDirectoriesString` in `varlena.c`).
#[must_use]
pub fn list(value: &str) -> Vec<String> {
    let (mut names, mut name, mut quoted) = (Vec::new(), String::new(), false);
    for c in value.chars() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => names.push(std::mem::take(&mut name)),
            _ => name.push(c),
        }
    }
    names.push(name);
    names.iter().map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_own_words_tell_what_it_was_built_for() {
        let debian = "PostgreSQL 17.11 (Debian 17.11-1) on x86_64-pc-linux-gnu, compiled by gcc (Debian 12.2.0-14) 12.2.0, 64-bit";
        assert_eq!(built_for(debian), (Some("x86_64".into()), Some(64)));
        let meson = "PostgreSQL 18.1 on aarch64-linux, compiled by clang-16, 64-bit";
        assert_eq!(built_for(meson), (Some("aarch64".into()), Some(64)));
        assert_eq!(built_for("something else"), (None, None));
    }

    #[test]
    fn lists_are_split() {
        assert_eq!(
            list("pg_stat_statements, \"auto explain\",/opt/x.so"),
            ["pg_stat_statements", "auto explain", "/opt/x.so"]
        );
        assert!(list(" ").is_empty());
    }

    #[test]
    fn databases_with_the_same_need_stand_together() {
        let mut environment = Environment::default();
        let extension = Extension { name: "pg_trgm".into(), version: "1.6".into() };
        let said = DatabaseEnvironment { extensions: vec![extension], ..DatabaseEnvironment::default() };
        environment.database(5, said.clone());
        environment.database(16400, said);
        let json = serde_json::to_value(&environment).unwrap();
        assert_eq!(
            json["extensions"],
            serde_json::json!([{"name": "pg_trgm", "version": "1.6", "databases": [5, 16400]}])
        );
        assert_eq!(serde_json::from_value::<Environment>(json).unwrap(), environment);
    }
}
