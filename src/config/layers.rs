//! Values laid over one another (defaults, file, environment, flags), and the typed configuration made from them.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    AgentConfig, ArchiveConfig, BackupConfig, ClusterConfig, Config, Connection, EncryptionConfig, GoalsConfig,
    KeepConfig, KitConfig, Levels, Origin, ReceiveConfig, RepositoryConfig, RepositoryUrl, RestoreConfig, Setting,
    Value, WaitFor,
    environment::{self, Known},
    file,
    keys::{self, Fallback, KEYS, Key},
    value::Raw,
};
use crate::{
    error::{Error, Result},
    pace::InputOutput,
    repository::RepositoryName,
    seal::age::Recipients,
};

/// The file beside walden.toml that access keys are looked for in.
const CREDENTIALS: &str = "credentials";

/// Values as they are laid over one another, the later above the earlier.
#[derive(Default)]
pub struct Layers {
    /// By table, by the name of a cluster or repository where the table is one of several, and by key.
    values: BTreeMap<(&'static str, Option<String>, &'static str), (Value, Origin)>,
    known: Known,
}

impl Layers {
    /// Lays the file's values down.
    pub fn file(&mut self, path: &Path, text: &str) -> Result<()> {
        for entry in file::read(path, text)? {
            match entry.name.and_then(|name| keys::find(entry.table, name)) {
                Some(key) => self.set(key, entry.of.as_deref(), entry.raw, Origin::File(path.into(), entry.line))?,
                None => self.know(entry.table, entry.of.as_deref()),
            }
        }
        Ok(())
    }

    /// Lays the variables' values above what is there.
    pub fn environment(&mut self, variables: impl Iterator<Item = (OsString, OsString)>) -> Result<()> {
        for variable in environment::read(variables, &self.known.clone())? {
            let origin = Origin::Environment(variable.name);
            self.set(variable.key, variable.of.as_deref(), Raw::Plain(variable.value), origin)?;
        }
        Ok(())
    }

    /// Fills in the defaults of what is not there. The last layer.
    pub fn defaults(&mut self) -> Result<()> {
        self.known.clusters.sort();
        self.known.repositories.sort();
        let named = |names: &[String]| names.iter().cloned().map(Some).collect::<Vec<_>>();
        let (clusters, mut repositories) = (named(&self.known.clusters), named(&self.known.repositories));
        repositories.insert(0, None);
        for key in KEYS {
            let Some(default) = key.default.text() else { continue };
            let places = match key.table {
                "cluster" => clusters.as_slice(),
                "repository" => repositories.as_slice(),
                _ => &[None],
            };
            for of in places {
                if !self.values.contains_key(&(key.table, of.clone(), key.name)) {
                    self.set(key, of.as_deref(), Raw::Plain(default.clone()), Origin::Default)?;
                }
            }
        }
        Ok(())
    }

    /// An error unless every repository has a place, and one of its own.
    pub fn prove_repositories(&self) -> Result<()> {
        let mut places: Vec<(String, &RepositoryUrl, Option<&Value>)> = Vec::new();
        let first = self.values.contains_key(&("repository", None, "url")).then_some(None);
        for of in first.into_iter().chain(self.known.repositories.iter().map(Some)) {
            let table = of.map_or_else(|| "repository".to_owned(), |of| format!("repository.{of}"));
            let Some((Value::Url(url), _)) = self.values.get(&("repository", of.cloned(), "url")) else {
                return Err(Error::invalid(format!("{table}.url is not configured"))
                    .hint(format!("set url under [{table}], or remove the table")));
            };
            if matches!(url, RepositoryUrl::File(_)) && self.values.contains_key(&("repository", of.cloned(), "lock")) {
                return Err(Error::invalid(format!("{table}.lock is set, and a directory cannot lock what is in it"))
                    .hint("remove lock, or take a bucket that has object lock"));
            }
            // Buckets of one name on two servers are two.
            let endpoint = self.values.get(&("repository", of.cloned(), "endpoint")).map(|(value, _)| value);
            let one = |other: &&(_, &RepositoryUrl, _)| other.1.touches(url) && other.2 == endpoint;
            if let Some((other, ..)) = places.iter().find(one) {
                return Err(Error::invalid(format!("{table}.url is the place of {other}.url, or lies in it"))
                    .hint("a repository that is to stand in for another needs a place of its own"));
            }
            places.push((table, url, endpoint));
        }
        Ok(())
    }

    /// Makes the name known that one of several tables has.
    fn know(&mut self, table: &str, of: Option<&str>) {
        let names = if table == "cluster" { &mut self.known.clusters } else { &mut self.known.repositories };
        names.extend(of.filter(|of| !names.iter().any(|name| name == of)).map(str::to_owned));
    }

    /// Lays one value above what is there, or says what is wrong with it.
    pub fn set(&mut self, key: &'static Key, of: Option<&str>, raw: Raw, origin: Origin) -> Result<()> {
        let value = key.kind.read(raw).map_err(|what| {
            Error::invalid(format!("{origin}: {}: {what}", path(key, of))).hint(format!("write {}", key.kind.wanted()))
        })?;
        self.know(key.table, of);
        self.values.insert((key.table, of.map(str::to_owned), key.name), (value, origin));
        Ok(())
    }

    /// The typed configuration.
    pub fn typed(self, file: Option<PathBuf>) -> Config {
        let settings = self.settings();
        let (repository, archive, agent) = (self.of("repository"), self.of("archive"), self.of("agent"));
        let (receive, backup, restore) = (self.of("receive"), self.of("backup"), self.of("restore"));
        let beside = file.as_deref().map(|file| file.with_file_name(CREDENTIALS));
        Config {
            encryption: self.encryption(),
            repository: repository.repository(beside.as_deref()),
            kit: KitConfig { keep: self.of("kit").count("keep") },
            archive: ArchiveConfig {
                compression: archive.levels("compression"),
                cpu: archive.count("cpu"),
                nice: archive.nice(),
                timeout: archive.time("timeout"),
                parallel: archive.count("parallel"),
                state_dir: archive.text("state_dir").unwrap_or_default().into(),
                wait_for: match archive.text("wait_for").as_deref() {
                    Some("first") => WaitFor::First,
                    _ => WaitFor::All,
                },
            },
            agent: AgentConfig {
                socket: agent.text("socket").unwrap_or_default().into(),
                listen: agent.text("listen").and_then(|address| address.parse().ok()),
                listen_beyond_loopback: agent.switch("listen_beyond_loopback"),
            },
            receive: receive.receive(),
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
            keep: self.of("keep").keep(),
            restore: RestoreConfig {
                parallel: restore.count("parallel"),
                rate_limit: restore.size("rate_limit"),
                prefetch: restore.count("prefetch"),
                prefetch_size: restore.size("prefetch_size").unwrap_or(0),
                promote_despite_doubt: restore.switch("promote_despite_doubt"),
            },
            goals: self.of("goals").goals(),
            mirrors: self.known.repositories.iter().filter_map(|name| self.mirror(name, beside.as_deref())).collect(),
            clusters: self.known.clusters.iter().filter_map(|name| self.cluster(name)).collect(),
            settings,
            file,
        }
    }

    fn encryption(&self) -> EncryptionConfig {
        let encryption = self.of("encryption");
        EncryptionConfig {
            // Each was read when the value was.
            recipients: Recipients::parse(&encryption.list("recipients")).unwrap_or_default(),
            identity_file: encryption.text("identity_file").map(PathBuf::from),
        }
    }

    fn mirror(&self, name: &str, beside: Option<&Path>) -> Option<(RepositoryName, RepositoryConfig)> {
        let table = Table { layers: self, table: "repository", of: Some(name) };
        Some((name.parse().ok()?, table.repository(beside)?))
    }

    fn cluster(&self, name: &str) -> Option<ClusterConfig> {
        let table = Table { layers: self, table: "cluster", of: Some(name) };
        Some(ClusterConfig {
            name: name.parse().ok()?,
            incarnation: u32::try_from(table.whole("incarnation")).unwrap_or(u32::MAX),
            primary: table.connection("primary"),
            pgdata: table.text("pgdata").map(PathBuf::from),
            connection: table.connection("connection"),
        })
    }

    fn of<'a>(&'a self, table: &'static str) -> Table<'a> {
        Table { layers: self, table, of: None }
    }

    /// In the order of the documentation.
    fn settings(&self) -> Vec<Setting> {
        let mut settings: Vec<(usize, Setting)> = Vec::new();
        for ((table, of, name), (value, origin)) in &self.values {
            let Some((place, key)) = KEYS.iter().enumerate().find(|(_, k)| k.table == *table && k.name == *name) else {
                continue;
            };
            let path = path(key, of.as_deref());
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
    of: Option<&'a str>,
}

impl Table<'_> {
    fn value(&self, name: &'static str) -> Option<&Value> {
        self.layers.values.get(&(self.table, self.of.map(str::to_owned), name)).map(|(value, _)| value)
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

    fn goals(&self) -> GoalsConfig {
        let rpo = self.value("rpo").map(|_| self.time("rpo"));
        GoalsConfig { rpo, backup_age: self.time("backup_age"), restore_age: self.time("restore_age") }
    }

    fn receive(&self) -> ReceiveConfig {
        ReceiveConfig {
            slot: self.text("slot"),
            application_name: self.text("application_name").unwrap_or_default(),
            flush_interval: self.time("flush_interval"),
            flushed_when_spooled: self.text("flushed_when").as_deref() == Some("spooled"),
            spool_limit: self.size("spool_limit").unwrap_or_default(),
            slot_limit: self.size("slot_limit").unwrap_or_default(),
            timeout: self.time("timeout"),
            accept_gap: self.switch("accept_gap"),
        }
    }

    fn keep(&self) -> KeepConfig {
        let count = |name| self.optional(name).and_then(|number| u32::try_from(number).ok()).unwrap_or(0);
        KeepConfig {
            last: count("last"),
            daily: count("daily"),
            weekly: count("weekly"),
            monthly: count("monthly"),
            yearly: count("yearly"),
            window: self.value("window").map(|_| self.time("window")),
            zone: self.text("zone").and_then(|zone| zone.parse().ok()).unwrap_or(chrono_tz::Tz::UTC),
            compact: self.optional("compact").and_then(|share| u8::try_from(share).ok()),
            compact_limit: self.size("compact_limit").unwrap_or(u64::MAX),
            rate_limit: self.size("rate_limit"),
        }
    }

    /// `beside` is where access keys are looked for if no file is named.
    fn repository(&self, beside: Option<&Path>) -> Option<RepositoryConfig> {
        let Some(Value::Url(url)) = self.value("url") else { return None };
        Some(RepositoryConfig {
            url: url.clone(),
            region: self.text("region"),
            profile: self.text("profile"),
            credentials_file: self.text("credentials_file").map(PathBuf::from),
            credentials_beside: beside.map(PathBuf::from),
            endpoint: self.text("endpoint"),
            path_style: self.switch("path_style"),
            storage_class: self.text("storage_class"),
            sse: self.text("sse"),
            sse_kms_key_id: self.text("sse_kms_key_id"),
            lock: self.value("lock").map(|_| self.time("lock")),
            lock_compliance: self.text("lock_mode").as_deref() == Some("compliance"),
            check_then_put: self.text("conditional_writes").as_deref() == Some("check-then-put"),
            ca_file: self.text("ca_file").map(PathBuf::from),
            connect_timeout: self.time("connect_timeout"),
            request_timeout: self.time("request_timeout"),
            deadline: self.time("deadline"),
            encryption: self.layers.encryption(),
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

fn path(key: &Key, of: Option<&str>) -> String {
    match of {
        Some(of) => format!("{}.{of}.{}", key.table, key.name),
        None => format!("{}.{}", key.table, key.name),
    }
}
