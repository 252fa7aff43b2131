//! `walden.toml`: where it is looked for, and what stands in it, key by key with its line.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
};

use toml::de::{DeTable, DeValue};

use super::{
    keys::{self, LATER},
    value::Raw,
};
use crate::error::{Error, Result};

/// Where the file is looked for.
#[derive(Clone, Debug, Default)]
pub struct Lookup {
    /// The file of `--config`, which must be there.
    pub named: Option<PathBuf>,
    /// Whether `./walden.toml` is not looked at: for `archive_command` and `restore_command` the working directory is
    /// the data directory.
    pub skip_local: bool,
}

/// The system's own file.
pub const SYSTEM: &str = "/etc/walden/walden.toml";

/// A key that stands in the file.
#[derive(Debug)]
pub struct Entry {
    /// The table.
    pub table: &'static str,
    /// The cluster or repository, where the table is one of several.
    pub of: Option<String>,
    /// The key; `None` for such a table itself, which makes its name known though it may be empty.
    pub name: Option<&'static str>,
    /// What was written.
    pub raw: Raw,
    /// On which line, from 1.
    pub line: usize,
}

impl Lookup {
    /// The file that holds, by its absolute path, and its text; `None` when there is none, which is fine when the
    /// environment tells everything.
    pub fn find(&self, environment: Option<&OsString>) -> Result<Option<(PathBuf, String)>> {
        let (path, must_exist) = match (&self.named, environment.filter(|value| !value.is_empty())) {
            (Some(path), _) => (path.clone(), true),
            (None, Some(path)) => (PathBuf::from(path), true),
            (None, None) => {
                let local = (!self.skip_local).then(|| PathBuf::from("walden.toml"));
                let there = local.into_iter().chain([SYSTEM.into()]).find(|path| fs::symlink_metadata(path).is_ok());
                match there {
                    Some(path) => (path, true),
                    None => (SYSTEM.into(), false),
                }
            }
        };
        let read = |path: &Path| -> io::Result<_> { Ok((std::path::absolute(path)?, fs::read_to_string(path)?)) };
        match read(&path) {
            Ok(found) => Ok(Some(found)),
            Err(error) if !must_exist && error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::invalid(format!("read the configuration file {}", path.display()))
                .source(error)
                .hint("name a file that can be read with --config or WALDEN_CONFIG")),
        }
    }
}

/// Everything that stands in the file, in its order. What is not known is an error that names the nearest known.
pub fn read(path: &Path, text: &str) -> Result<Vec<Entry>> {
    let reader = Reader { path, text };
    let document = DeTable::parse(text).map_err(|error| {
        // Only the parser's own words: its longer form quotes the line, which may hold a secret.
        let line = reader.line(error.span().map_or(0, |span| span.start));
        reader
            .error(line, error.message().trim_end().replace('\n', ", "))
            .hint("strings stand in double quotes; the format is TOML")
    })?;
    let mut entries = reader.tables(document.get_ref())?;
    entries.sort_by_key(|entry| entry.line);
    Ok(entries)
}

struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Reader<'_> {
    fn line(&self, at: usize) -> usize {
        1 + self.text.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count()
    }

    fn error(&self, line: usize, what: impl std::fmt::Display) -> Error {
        Error::invalid(format!("{}:{line}: {what}", self.path.display()))
    }

    fn unknown<'a>(&self, line: usize, what: &str, typed: &str, known: impl Iterator<Item = &'a str> + Clone) -> Error {
        let error = self.error(line, format_args!("there is no {what} \"{typed}\""));
        match keys::nearest(typed, known.clone()) {
            Some(nearest) => error.hint(format!("did you mean \"{nearest}\"?")),
            None => error.hint(format!("known are {}", known.collect::<Vec<_>>().join(", "))),
        }
    }

    fn tables(&self, document: &DeTable<'_>) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for (name, value) in in_order(document) {
            let (line, name) = (self.line(name.span().start), name.get_ref().as_ref());
            if LATER.contains(&name) {
                return Err(self.error(line, later(name)).hint(format!("remove [{name}]")));
            }
            let Some(table) = keys::tables().find(|table| *table == name) else {
                return Err(self.unknown(line, "table", name, keys::tables().collect::<Vec<_>>().into_iter()));
            };
            let Some(content) = value.get_ref().as_table() else {
                return Err(self.error(line, format_args!("{name} is a table")).hint(format!("write [{name}]")));
            };
            if table == "cluster" {
                self.clusters(content, &mut entries)?
            } else if table == "repository" {
                self.repositories(content, &mut entries)?
            } else {
                self.keys(table, None, content, &mut entries)?
            }
        }
        Ok(entries)
    }

    fn clusters(&self, clusters: &DeTable<'_>, entries: &mut Vec<Entry>) -> Result<()> {
        for (name, value) in in_order(clusters) {
            let line = self.line(name.span().start);
            let Some(content) = value.get_ref().as_table() else {
                return Err(self
                    .error(
                        line,
                        format_args!("cluster.{}: a cluster has a name and a table of its own", name.get_ref()),
                    )
                    .hint(format!("write [cluster.main] above {}", name.get_ref())));
            };
            self.one_of_several("cluster", name.get_ref(), line, content, entries)?;
        }
        Ok(())
    }

    /// The first repository's keys, and among them the tables of the others.
    fn repositories(&self, content: &DeTable<'_>, entries: &mut Vec<Entry>) -> Result<()> {
        const TABLE: &str = "repository";
        for (name, value) in in_order(content) {
            let other = value.get_ref().as_table().filter(|_| keys::find(TABLE, name.get_ref()).is_none());
            match other {
                Some(table) => {
                    let line = self.line(name.span().start);
                    self.one_of_several(TABLE, name.get_ref(), line, table, entries)?;
                }
                None => self.key(TABLE, None, name, value, entries)?,
            }
        }
        Ok(())
    }

    fn one_of_several(
        &self,
        table: &'static str,
        name: &str,
        line: usize,
        content: &DeTable<'_>,
        entries: &mut Vec<Entry>,
    ) -> Result<()> {
        keys::prove_name(table, name).map_err(|e| e.context(format_args!("{}:{line}", self.path.display())))?;
        entries.push(Entry { table, of: Some(name.to_owned()), name: None, raw: Raw::Other("a table"), line });
        self.keys(table, Some(name), content, entries)
    }

    fn keys(
        &self,
        table: &'static str,
        of: Option<&str>,
        content: &DeTable<'_>,
        entries: &mut Vec<Entry>,
    ) -> Result<()> {
        in_order(content).into_iter().try_for_each(|(name, value)| self.key(table, of, name, value, entries))
    }

    fn key(
        &self,
        table: &'static str,
        of: Option<&str>,
        name: &SpannedKey<'_>,
        value: &toml::Spanned<DeValue<'_>>,
        entries: &mut Vec<Entry>,
    ) -> Result<()> {
        let line = self.line(name.span().start);
        let Some(key) = keys::find(table, name.get_ref()) else {
            let known: Vec<&str> = keys::KEYS.iter().filter(|key| key.table == table).map(|key| key.name).collect();
            let shown = of.map_or_else(|| table.to_owned(), |of| format!("{table}.{of}"));
            return Err(self.unknown(line, &format!("key in [{shown}] called"), name.get_ref(), known.into_iter()));
        };
        let (of, raw) = (of.map(str::to_owned), raw(value.get_ref()));
        entries.push(Entry { table, of, name: Some(key.name), raw, line });
        Ok(())
    }
}

/// What is said of a table of a later version.
pub fn later(table: &str) -> String {
    format!("[{table}] is not in this version of walden, and is not ignored silently")
}

type SpannedKey<'a> = toml::Spanned<toml::de::DeString<'a>>;

/// As written: the first mistake in the file is the one that is told.
fn in_order<'a, 'i>(table: &'a DeTable<'i>) -> Vec<(&'a SpannedKey<'i>, &'a toml::Spanned<DeValue<'i>>)> {
    let mut pairs: Vec<_> = table.iter().collect();
    pairs.sort_by_key(|(key, _)| key.span().start);
    pairs
}

fn raw(value: &DeValue<'_>) -> Raw {
    match value {
        DeValue::String(text) => Raw::Text(text.to_string()),
        DeValue::Integer(number) => Raw::Whole(u64::from_str_radix(number.as_str(), number.radix()).ok()),
        DeValue::Boolean(switch) => Raw::Switch(*switch),
        DeValue::Array(items) => {
            let texts: Option<Vec<String>> =
                items.iter().map(|item| item.get_ref().as_str().map(str::to_owned)).collect();
            texts.map_or(Raw::Other("a list of other things than texts"), Raw::List)
        }
        DeValue::Table(_) => Raw::Other("a table"),
        DeValue::Float(_) => Raw::Other("a fraction"),
        DeValue::Datetime(_) => Raw::Other("a date or time"),
    }
}
