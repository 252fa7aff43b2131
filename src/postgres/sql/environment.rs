//! What a server needs of its host, by SQL: the libraries that sort text with their versions, extensions, libraries that
//! it loads.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Session;
use crate::error::{Error, Result};

/// How long each question may take.
const LIMIT: Duration = Duration::from_secs(5);
/// Objects with lower numbers came with the server (`FirstNormalObjectId`).
const FIRST_OWN: u32 = 16384;

/// What orders text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    /// The C library.
    Libc,
    /// ICU.
    Icu,
    /// PostgreSQL itself (17 and later).
    Builtin,
    /// Something that Walden does not know.
    #[serde(other)]
    Other,
}

impl Provider {
    /// For the letter in `datlocprovider` and `collprovider`.
    fn from_letter(letter: &str) -> Self {
        match letter {
            "c" => Self::Libc,
            "i" => Self::Icu,
            "b" => Self::Builtin,
            _ => Self::Other,
        }
    }
}

/// Whether the C library's version says how such a locale sorts: `C` and `POSIX` go by bytes
/// (`get_collation_actual_version` in `pg_locale.c`).
#[must_use]
pub fn depends_on_libc(locale: &str) -> bool {
    let locale = locale.to_ascii_lowercase();
    !(locale == "c" || locale == "posix" || locale.starts_with("c."))
}

/// How a database orders text unless told otherwise.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Locale {
    /// The encoding.
    pub encoding: String,
    /// What orders.
    pub provider: Provider,
    /// `LC_COLLATE`.
    pub collate: String,
    /// `LC_CTYPE`.
    pub ctype: String,
    /// ICU's or PostgreSQL's own locale.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locale: Option<String>,
    /// The version of the collation on the server's host, where it has one and the server tells it (15 and later).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The version that the database was made with (`datcollversion`), where that is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recorded: Option<String>,
}

/// A collation that columns, indexes or partitions of a database use besides its own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Collation {
    /// Schema and name, quoted as SQL wants it.
    pub name: String,
    /// What orders.
    pub provider: Provider,
    /// Its locale.
    pub locale: String,
    /// Its version on the server's host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The version that it was made with (`collversion`), where that is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recorded: Option<String>,
}

/// An extension that is installed in a database.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Extension {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// What a server says of itself as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerEnvironment {
    /// `version()`.
    pub version: String,
    /// Settings by their names, those that the role may see.
    pub settings: Vec<(String, String)>,
    /// The OIDs of its databases, and how they order text. `template0`, which nobody can change, is left out.
    pub databases: Vec<(u32, Locale)>,
    /// The version of the C library, where a collation tells it.
    pub libc: Option<String>,
}

/// What one database needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DatabaseEnvironment {
    /// Collations in use.
    pub collations: Vec<Collation>,
    /// Extensions that did not come with the server.
    pub extensions: Vec<Extension>,
    /// Libraries that its functions lie in, as `probin` has them.
    pub libraries: Vec<String>,
}

/// Settings that name what a server loads, and where its configuration lies.
const SETTINGS: [&str; 9] = [
    "shared_preload_libraries",
    "session_preload_libraries",
    "local_preload_libraries",
    "dynamic_library_path",
    "extension_control_path",
    "data_directory",
    "config_file",
    "hba_file",
    "ident_file",
];

impl Session {
    /// What the server says of itself as a whole.
    pub async fn environment(&self) -> Result<ServerEnvironment> {
        let (provider, locale, recorded, actual) = match self.version().0 {
            ..15 => ("'c'", "NULL", "NULL", "NULL"),
            15 | 16 => {
                ("datlocprovider", "daticulocale", "datcollversion", "pg_database_collation_actual_version(oid)")
            }
            _ => ("datlocprovider", "datlocale", "datcollversion", "pg_database_collation_actual_version(oid)"),
        };
        let settings = SETTINGS.map(|name| format!("'{name}'")).join(", ");
        let sql = format!(
            "SELECT 'version', version(); \
             SELECT 'setting', name, setting FROM pg_settings WHERE name IN ({settings}); \
             SELECT 'libc', pg_collation_actual_version(oid) FROM pg_collation \
             WHERE collprovider = 'c' AND collcollate !~* '^(c|posix|c[.].*)$' LIMIT 1; \
             SELECT 'database', oid, pg_encoding_to_char(encoding), {provider}, datcollate, datctype, {locale}, {recorded}, \
             {actual} FROM pg_database WHERE datname <> 'template0' AND datconnlimit <> -2 ORDER BY oid"
        );
        let mut found = ServerEnvironment::default();
        for row in self.ask(&sql).await? {
            let optional = |at: usize| row.get(at).cloned().flatten();
            let text = |at: usize| optional(at).unwrap_or_default();
            match text(0).as_str() {
                "version" => found.version = text(1),
                "setting" => found.settings.push((text(1), text(2))),
                "libc" => found.libc = optional(1),
                _ => {
                    let (version, recorded) = versions(optional(8), optional(7));
                    let locale = Locale {
                        encoding: text(2),
                        provider: Provider::from_letter(&text(3)),
                        collate: text(4),
                        ctype: text(5),
                        locale: optional(6),
                        version,
                        recorded,
                    };
                    found.databases.push((text(1).parse().unwrap_or_default(), locale));
                }
            }
        }
        Ok(found)
    }

    /// What the session's own database needs. Collations in use are those that indexes and partitions sort by, and those
    /// that something depends on, which the dependencies of what came with the server do not tell.
    pub async fn database_environment(&self) -> Result<DatabaseEnvironment> {
        let locale = match self.version().0 {
            ..15 => "collcollate",
            15 | 16 => "coalesce(colliculocale, collcollate)",
            _ => "coalesce(colllocale, collcollate)",
        };
        let sql = format!(
            "SELECT 'collation', quote_ident(n.nspname) || '.' || quote_ident(c.collname), c.collprovider, {locale}, \
             c.collversion, pg_collation_actual_version(c.oid) \
             FROM pg_collation c JOIN pg_namespace n ON n.oid = c.collnamespace \
             WHERE c.collprovider IN ('c', 'i') AND c.oid IN ( \
             SELECT refobjid FROM pg_depend WHERE refclassid = 'pg_collation'::regclass \
             UNION SELECT unnest(indcollation) FROM pg_index WHERE indrelid >= {FIRST_OWN} \
             UNION SELECT unnest(partcollation) FROM pg_partitioned_table) ORDER BY 2; \
             SELECT 'extension', extname, extversion FROM pg_extension WHERE oid >= {FIRST_OWN} ORDER BY 2; \
             SELECT DISTINCT 'library', probin FROM pg_proc WHERE probin IS NOT NULL AND oid >= {FIRST_OWN} ORDER BY 2"
        );
        let mut found = DatabaseEnvironment::default();
        for row in self.ask(&sql).await? {
            let optional = |at: usize| row.get(at).cloned().flatten();
            let text = |at: usize| optional(at).unwrap_or_default();
            match text(0).as_str() {
                "extension" => found.extensions.push(Extension { name: text(1), version: text(2) }),
                "library" => found.libraries.push(text(1)),
                _ => {
                    let (provider, locale) = (Provider::from_letter(&text(2)), text(3));
                    if provider == Provider::Icu || depends_on_libc(&locale) {
                        let (version, recorded) = versions(optional(5), optional(4));
                        found.collations.push(Collation { name: text(1), provider, locale, version, recorded });
                    }
                }
            }
        }
        Ok(found)
    }

    /// Several questions in one go.
    async fn ask(&self, sql: &str) -> Result<Vec<Vec<Option<String>>>> {
        match tokio::time::timeout(LIMIT, self.query(sql)).await {
            Ok(answer) => answer,
            Err(_) => Err(Error::failed(format!("PostgreSQL did not answer within {} s", LIMIT.as_secs()))),
        }
    }
}

/// The version on the host, and what was recorded where that is another.
fn versions(actual: Option<String>, recorded: Option<String>) -> (Option<String>, Option<String>) {
    let other = recorded.filter(|recorded| actual.as_ref() != Some(recorded));
    (actual, other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_order_needs_no_library() {
        for locale in ["C", "POSIX", "C.UTF-8", "c.utf8"] {
            assert!(!depends_on_libc(locale), "{locale}");
        }
        assert!(depends_on_libc("en_US.UTF-8") && depends_on_libc("ca_ES.utf8"));
    }

    #[test]
    fn another_version_than_the_host_has_is_told() {
        let text = |t: &str| Some(t.to_owned());
        assert_eq!(versions(text("2.36"), text("2.36")), (text("2.36"), None));
        assert_eq!(versions(text("2.36"), text("2.31")), (text("2.36"), text("2.31")));
        assert_eq!(versions(None, None), (None, None));
    }
}
