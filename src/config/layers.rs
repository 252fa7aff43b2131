//! Values laid over one another (defaults, file, environment, flags), and the typed configuration made from them.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    AgentConfig, ArchiveConfig, BackupConfig, ClusterConfig, Config, Connection, Levels, Origin, RepositoryConfig,
    RestoreConfig, Setting, Value, environment, file,
    keys::{self, Fallback, KEYS, Key},
    value::Raw,
};
use crate::{
    error::{Error, Result},
    pace::InputOutput,
    repository::ClusterName,
};

/// Values as they are laid over one another, the later above the earlier.
#[derive(Default)]
pub struct Layers {
    values: BTreeMap<(&'static str, Option<ClusterName>, &'static str), (Value, Origin)>,
    clusters: Vec<ClusterName>,
}

impl Layers {
    /// Lays the file's values down.
    pub fn file(&mut self, path: &Path, text: &str) -> Result<()> {
        for entry in file::read(path, text)? {
            match entry.name.and_then(|name| keys::find(entry.table, name)) {
                Some(key) => self.set(key, entry.cluster.as_ref(), entry.raw, Origin::File(path.into(), entry.line))?,
                None => self.clusters.extend(entry.cluster),
            }
        }
        Ok(())
    }

    /// Lays the variables' values above what is there.
    pub fn environment(&mut self, variables: impl Iterator<Item = (OsString, OsString)>) -> Result<()> {
        for variable in environment::read(variables, &self.clusters.clone())? {
            let origin = Origin::Environment(variable.name);
            self.set(variable.key, variable.cluster.as_ref(), Raw::Plain(variable.value), origin)?;
        }
        Ok(())
    }

    /// Fills in the defaults of what is not there. The last layer.
    pub fn defaults(&mut self) -> Result<()> {
        self.clusters.sort();
        self.clusters.dedup();
        let clusters: Vec<Option<ClusterName>> = self.clusters.iter().cloned().map(Some).collect();
        for key in KEYS {
            let Some(default) = key.default.text() else { continue };
            let places = if key.table == "cluster" { clusters.as_slice() } else { &[None] };
            for cluster in places {
                if !self.values.contains_key(&(key.table, cluster.clone(), key.name)) {
                    self.set(key, cluster.as_ref(), Raw::Plain(default.clone()), Origin::Default)?;
                }
            }
        }
        Ok(())
    }

    /// Lays one value above what is there, or says what is wrong with it.
    pub fn set(&mut self, key: &'static Key, cluster: Option<&ClusterName>, raw: Raw, origin: Origin) -> Result<()> {
        let value = key.kind.read(raw).map_err(|what| {
            Error::invalid(format!("{origin}: {}: {what}", path(key, cluster)))
                .hint(format!("write {}", key.kind.wanted()))
        })?;
        self.clusters.extend(cluster.filter(|name| !self.clusters.contains(name)).cloned());
        self.values.insert((key.table, cluster.cloned(), key.name), (value, origin));
        Ok(())
    }

    /// The typed configuration.
    pub fn typed(self, file: Option<PathBuf>) -> Config {
        let settings = self.settings();
        let (repository, archive, agent) = (self.of("repository"), self.of("archive"), self.of("agent"));
        let (backup, restore) = (self.of("backup"), self.of("restore"));
        Config {
            file,
            repository: repository.repository(),
            archive: ArchiveConfig {
                compression: archive.levels("compression"),
                cpu: archive.count("cpu"),
                nice: archive.nice(),
                timeout: archive.time("timeout"),
                parallel: archive.count("parallel"),
                state_dir: archive.text("state_dir").unwrap_or_default().into(),
            },
            agent: AgentConfig {
                socket: agent.text("socket").unwrap_or_default().into(),
                listen: agent.text("listen").and_then(|address| address.parse().ok()),
                listen_beyond_loopback: agent.switch("listen_beyond_loopback"),
            },
            backup: BackupConfig {
                compression: backup.levels("compression").fast,
                parallel: backup.count("parallel"),
                rate_limit: backup.size("rate_limit"),
                nice: backup.nice(),
                io_priority: match backup.text("io_priority").as_deref() {
                    Some("low") => Some(InputOutput::Low),
                    Some("idle") => Some(InputOutput::Idle),
                    _ => None,
                },
                wal_summaries: backup.switch("wal_summaries"),
                exclude: backup.list("exclude"),
                files: backup.list("files"),
            },
            restore: RestoreConfig {
                parallel: restore.count("parallel"),
                rate_limit: restore.size("rate_limit"),
                prefetch: restore.count("prefetch"),
                prefetch_size: restore.size("prefetch_size").unwrap_or(0),
                promote_despite_doubt: restore.switch("promote_despite_doubt"),
            },
            clusters: self.clusters.iter().map(|name| self.cluster(name)).collect(),
            settings,
        }
    }

    fn cluster(&self, name: &ClusterName) -> ClusterConfig {
        let table = Table { layers: self, table: "cluster", cluster: Some(name) };
        ClusterConfig {
            name: name.clone(),
            incarnation: u32::try_from(table.whole("incarnation")).unwrap_or(u32::MAX),
            primary: table.connection("primary"),
            pgdata: table.text("pgdata").map(PathBuf::from),
            connection: table.connection("connection"),
        }
    }

    fn of<'a>(&'a self, table: &'static str) -> Table<'a> {
        Table { layers: self, table, cluster: None }
    }

    /// In the order of the documentation.
    fn settings(&self) -> Vec<Setting> {
        let mut settings: Vec<(usize, Setting)> = Vec::new();
        for ((table, cluster, name), (value, origin)) in &self.values {
            let Some((place, key)) = KEYS.iter().enumerate().find(|(_, k)| k.table == *table && k.name == *name) else {
                continue;
            };
            let path = path(key, cluster.as_ref());
            settings.push((place, Setting { path, value: value.clone(), origin: origin.clone() }));
        }
        // Clusters stay together: their keys sort by the cluster's table, then by the cluster.
        settings.sort_by_cached_key(|(place, setting)| {
            let (group, _) = setting.path.rsplit_once('.').unwrap_or_default();
            let first = KEYS.iter().position(|key| group.split('.').next() == Some(key.table));
            (first, group.to_owned(), *place)
        });
        settings.into_iter().map(|(_, setting)| setting).collect()
    }
}

/// One table's values by name. What has a default is always there: the fallbacks below are never reached, which a
/// test proves for every key.
struct Table<'a> {
    layers: &'a Layers,
    table: &'static str,
    cluster: Option<&'a ClusterName>,
}

impl Table<'_> {
    fn value(&self, name: &'static str) -> Option<&Value> {
        self.layers.values.get(&(self.table, self.cluster.cloned(), name)).map(|(value, _)| value)
    }

    fn text(&self, name: &'static str) -> Option<String> {
        match self.value(name) {
            Some(Value::Text(text)) => Some(text.clone()),
            _ => None,
        }
    }

    fn connection(&self, name: &'static str) -> Option<Connection> {
        match self.value(name) {
            Some(Value::Connection(connection)) => Some(connection.clone()),
            _ => None,
        }
    }

    fn switch(&self, name: &'static str) -> bool {
        matches!(self.value(name), Some(Value::Switch(true)))
    }

    fn optional(&self, name: &'static str) -> Option<u64> {
        match self.value(name) {
            Some(Value::Whole(number)) => Some(*number),
            _ => None,
        }
    }

    fn whole(&self, name: &'static str) -> u64 {
        self.optional(name).unwrap_or(1)
    }

    fn count(&self, name: &'static str) -> usize {
        usize::try_from(self.whole(name)).unwrap_or(1)
    }

    fn levels(&self, name: &'static str) -> Levels {
        match self.value(name) {
            Some(Value::Compression(levels)) => *levels,
            _ => 1.into(),
        }
    }

    fn nice(&self) -> Option<i32> {
        self.optional("nice").and_then(|nice| i32::try_from(nice).ok())
    }

    fn size(&self, name: &'static str) -> Option<u64> {
        match self.value(name) {
            Some(Value::Size(bytes)) => Some(*bytes),
            _ => None,
        }
    }

    fn time(&self, name: &'static str) -> Duration {
        match self.value(name) {
            Some(Value::Time(length)) => *length,
            _ => Duration::from_secs(60),
        }
    }

    fn list(&self, name: &'static str) -> Vec<String> {
        match self.value(name) {
            Some(Value::List(items)) => items.clone(),
            _ => Vec::new(),
        }
    }

    fn repository(&self) -> Option<RepositoryConfig> {
        let Some(Value::Url(url)) = self.value("url") else { return None };
        Some(RepositoryConfig {
            url: url.clone(),
            region: self.text("region"),
            endpoint: self.text("endpoint"),
            path_style: self.switch("path_style"),
            storage_class: self.text("storage_class"),
            sse: self.text("sse"),
            sse_kms_key_id: self.text("sse_kms_key_id"),
            check_then_put: self.text("conditional_writes").as_deref() == Some("check-then-put"),
            ca_file: self.text("ca_file").map(PathBuf::from),
            connect_timeout: self.time("connect_timeout"),
            request_timeout: self.time("request_timeout"),
            deadline: self.time("deadline"),
        })
    }
}

impl Fallback {
    fn text(self) -> Option<String> {
        match self {
            Self::Nothing => None,
            Self::Is(text) => Some(text.to_owned()),
            Self::Processors => {
                Some(std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(8).to_string())
            }
        }
    }
}

fn path(key: &Key, cluster: Option<&ClusterName>) -> String {
    match cluster {
        Some(cluster) => format!("cluster.{cluster}.{}", key.name),
        None => format!("{}.{}", key.table, key.name),
    }
}
