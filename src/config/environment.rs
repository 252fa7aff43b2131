//! Keys from the environment, by their path: `WALDEN_REPOSITORY_URL`, `WALDEN_CLUSTER_MAIN_PGDATA`.

use super::{
    file::later,
    keys::{self, KEYS, Key, LATER},
};
use crate::error::{Error, Result};

/// Variables that are no keys: where the file is, how much is logged, what opens a recovery kit, and what belongs to tests
/// and scripts.
const OTHERS: [&str; 3] = ["WALDEN_CONFIG", "WALDEN_LOG", "WALDEN_KIT_PASSPHRASE"];
const OTHER_FAMILIES: [&str; 3] = ["WALDEN_TEST_", "WALDEN_TOOLS", "WALDEN_DEMO_"];

/// A key that is set in the environment.
#[derive(Debug)]
pub struct Variable {
    /// The variable.
    pub name: String,
    /// The key it sets.
    pub key: &'static Key,
    /// The cluster or repository, where the key is one's of several.
    pub of: Option<String>,
    /// Its value.
    pub value: String,
}

/// The names that are known from the file.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Of clusters.
    pub clusters: Vec<String>,
    /// Of repositories besides the first.
    pub repositories: Vec<String>,
}

/// The variable of a key.
#[must_use]
pub fn name(key: &Key, of: Option<&str>) -> String {
    match of {
        Some(of) => format!("WALDEN_{}_{}_{}", upper(key.table), upper(of), upper(key.name)),
        None => format!("WALDEN_{}_{}", upper(key.table), upper(key.name)),
    }
}

fn upper(text: &str) -> String {
    text.to_ascii_uppercase().replace('-', "_")
}

/// Every key among these variables, sorted by name. `known` are the names of the file's clusters and repositories; one
/// that is only named here has its name in lower case. Empty values count as not set.
pub fn read(
    variables: impl Iterator<Item = (std::ffi::OsString, std::ffi::OsString)>,
    known: &Known,
) -> Result<Vec<Variable>> {
    let mut found = Vec::new();
    for (name, value) in variables.filter(|(_, value)| !value.is_empty()) {
        let Some(name) = name.to_str().filter(|name| name.starts_with("WALDEN_")) else { continue };
        if OTHERS.contains(&name) || OTHER_FAMILIES.iter().any(|family| name.starts_with(family)) {
            continue;
        }
        let Some((key, of)) = meant(name, known)? else { continue };
        let value = value.into_string().map_err(|_| Error::invalid(format!("{name} is not UTF-8")))?;
        found.push(Variable { name: name.to_owned(), key, of, value });
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// The key that a variable names; `None` when it does not look like one.
fn meant(variable: &str, known: &Known) -> Result<Option<(&'static Key, Option<String>)>> {
    if let Some(key) = KEYS.iter().find(|key| key.table != "cluster" && name(key, None) == variable) {
        return Ok(Some((key, None)));
    }
    let rest = &variable["WALDEN_".len()..];
    let table = rest.split('_').next().unwrap_or_default().to_ascii_lowercase();
    if let Some(table) = LATER.iter().find(|later| **later == table) {
        return Err(Error::invalid(format!("{variable} is set: {}", later(table))).hint(format!("unset {variable}")));
    }
    for (table, known) in [("cluster", &known.clusters), ("repository", &known.repositories)] {
        let Some(rest) = rest.strip_prefix(&format!("{}_", upper(table))) else { continue };
        for key in KEYS.iter().filter(|key| key.table == table) {
            if let Some(of) = rest.strip_suffix(&format!("_{}", upper(key.name))).filter(|name| !name.is_empty()) {
                return Ok(Some((key, Some(called(of, table, variable, known)?))));
            }
        }
    }
    if keys::nearest(&table, keys::tables().chain(LATER)).is_none() {
        return Ok(None);
    }
    let names: Vec<String> = known_variables(rest);
    let hint = match keys::nearest(variable, names.iter().map(String::as_str)) {
        Some(nearest) => format!("did you mean {nearest}?"),
        None => format!("unset {variable}, or see docs/CONFIGURATION.md for the keys there are"),
    };
    Err(Error::invalid(format!("{variable} is set, but there is no such key")).hint(hint))
}

fn called(upper_name: &str, table: &str, variable: &str, known: &[String]) -> Result<String> {
    let mut alike = known.iter().filter(|name| upper(name) == upper_name);
    match (alike.next(), alike.next()) {
        (Some(one), Some(other)) => Err(Error::invalid(format!("{variable} could mean {table} {one} or {other}"))
            .hint("set the key in walden.toml instead")),
        (Some(one), None) => Ok(one.clone()),
        (None, _) => {
            let name = upper_name.to_ascii_lowercase();
            keys::prove_name(table, &name).map_err(|e| e.context(variable))?;
            Ok(name)
        }
    }
}

/// Every variable there is; those of a cluster or a repository with the name that was probably meant.
fn known_variables(rest: &str) -> Vec<String> {
    let of = rest.split('_').nth(1).filter(|name| !name.is_empty());
    let first = KEYS.iter().filter(|key| key.table != "cluster").map(|key| name(key, None));
    let others = KEYS.iter().filter(|key| key.table == "repository").filter_map(|key| Some(name(key, Some(of?))));
    let clusters = KEYS.iter().filter(|key| key.table == "cluster").map(|key| name(key, of.or(Some("MAIN"))));
    first.chain(clusters).chain(others).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_one(name: &str, known: &[&str]) -> Result<Vec<Variable>> {
        let clusters = known.iter().map(|name| (*name).to_owned()).collect();
        let known = Known { clusters, repositories: vec!["off-site".into()] };
        read([(name.into(), "x".into())].into_iter(), &known)
    }

    #[test]
    fn a_variable_names_its_key() {
        let one = |name, known: &[&str]| {
            let found = read_one(name, known).unwrap().remove(0);
            (found.key.name, found.of)
        };
        assert_eq!(one("WALDEN_REPOSITORY_CA_FILE", &[]), ("ca_file", None));
        assert_eq!(one("WALDEN_REPOSITORY_OFF_SITE_CA_FILE", &[]), ("ca_file", Some("off-site".into())));
        assert_eq!(one("WALDEN_REPOSITORY_THIRD_SSE_KMS_KEY_ID", &[]), ("sse_kms_key_id", Some("third".into())));
        assert_eq!(one("WALDEN_CLUSTER_MAIN_PGDATA", &[]), ("pgdata", Some("main".into())));
        assert_eq!(one("WALDEN_CLUSTER_MY_DB_PGDATA", &["my-DB"]), ("pgdata", Some("my-DB".into())));
        assert_eq!(one("WALDEN_CLUSTER_MY_DB_PGDATA", &[]), ("pgdata", Some("my_db".into())));
    }

    #[test]
    fn what_looks_like_a_key_and_is_none_is_an_error() {
        for (name, hint) in [
            ("WALDEN_REPOSITORY_URI", "WALDEN_REPOSITORY_URL"),
            ("WALDEN_REPOSTORY_URL", "WALDEN_REPOSITORY_URL"),
            ("WALDEN_REPOSITORY_OFFSITE_ENDPONT", "WALDEN_REPOSITORY_OFFSITE_ENDPOINT"),
            ("WALDEN_CLUSTER_PROD_PGDATE", "WALDEN_CLUSTER_PROD_PGDATA"),
            ("WALDEN_SCHEDULE_EXPIRE", "unset WALDEN_SCHEDULE_EXPIRE"),
        ] {
            let error = read_one(name, &[]).unwrap_err();
            assert!(error.hint_text().unwrap().contains(hint), "{name}: {:?}", error.hint_text());
        }
        assert!(read_one("WALDEN_CLUSTER_MY_DB_PGDATA", &["my-db", "my_db"]).is_err());
    }

    #[test]
    fn what_does_not_look_like_a_key_is_left_alone() {
        for name in [
            "WALDEN_CONFIG",
            "WALDEN_LOG",
            "WALDEN_KIT_PASSPHRASE",
            "WALDEN_TEST_PG",
            "WALDEN_TOOLS",
            "WALDEN_POND",
            "PGDATA",
        ] {
            assert!(read_one(name, &[]).unwrap().is_empty(), "{name}");
        }
    }
}
