//! The configuration: `walden.toml`, the environment above it, flags above both, as one typed value in which every
//! setting remembers where it came from.
//!
//! It is strict: an unknown key, a value of the wrong kind or a table of a later version is an error that names file,
//! line, key and mend. A setting that was misread in silence would come to light in a recovery.

mod connection;
mod edit;
mod environment;
mod file;
mod keys;
mod layers;
mod reference;
pub mod rewrite;
mod state_dir;
mod store;
mod url;
mod value;

use std::{
    ffi::OsString,
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

pub use self::{
    connection::Connection,
    edit::set_list,
    file::{Lookup, SYSTEM},
    reference::{first_file, reference},
    state_dir::prove_state_dir,
    store::{create_store, guards, open_conditional_store, open_store, prove_lock, s3_options},
    url::RepositoryUrl,
    value::{Levels, Value},
};
use self::{layers::Layers, value::Raw};
use crate::{
    error::{Error, Result},
    pace::InputOutput,
    repository::{ClusterName, RepositoryName},
    seal::age::Recipients,
};

/// The whole configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file that was read, by its absolute path.
    pub file: Option<PathBuf>,
    /// `[encryption]`.
    pub encryption: EncryptionConfig,
    /// `[archive]`.
    pub archive: ArchiveConfig,
    /// `[agent]`.
    pub agent: AgentConfig,
    /// `[receive]`.
    pub receive: ReceiveConfig,
    /// `[backup]`.
    pub backup: BackupConfig,
    /// `[restore]`.
    pub restore: RestoreConfig,
    /// `[keep]`.
    pub keep: KeepConfig,
    /// `[goals]`.
    pub goals: GoalsConfig,
    /// `[kit]`.
    pub kit: KitConfig,
    repository: Option<RepositoryConfig>,
    mirrors: Vec<(RepositoryName, RepositoryConfig)>,
    clusters: Vec<ClusterConfig>,
    settings: Vec<Setting>,
}

/// `[repository]`: where everything is stored; and `[repository.NAME]`, where it is stored as well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepositoryConfig {
    /// The address.
    pub url: RepositoryUrl,
    /// The bucket's region.
    pub region: Option<String>,
    /// The AWS profile that has the credentials.
    pub profile: Option<String>,
    /// The file with access keys that was named.
    pub credentials_file: Option<PathBuf>,
    /// Where else such a file is looked for: `credentials` beside walden.toml.
    pub credentials_beside: Option<PathBuf>,
    /// The S3 server's address, when it is not Amazon's.
    pub endpoint: Option<String>,
    /// Whether the bucket stands in the path instead of the host name.
    pub path_style: bool,
    /// The storage class of new objects.
    pub storage_class: Option<String>,
    /// Encryption by the server: `AES256` or `aws:kms`.
    pub sse: Option<String>,
    /// The KMS key for it.
    pub sse_kms_key_id: Option<String>,
    /// For how long new objects are locked.
    pub lock: Option<Duration>,
    /// Whether nobody at all may lift that.
    pub lock_compliance: bool,
    /// Whether the user accepted a store that does not honour put-if-absent.
    pub check_then_put: bool,
    /// Certificates to trust besides the system's.
    pub ca_file: Option<PathBuf>,
    /// How long connecting may take.
    pub connect_timeout: Duration,
    /// How long one request may take before it is tried again.
    pub request_timeout: Duration,
    /// How long one request is tried again.
    pub deadline: Duration,
    /// `[encryption]`, which holds for every repository.
    pub encryption: EncryptionConfig,
}

/// `[encryption]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EncryptionConfig {
    /// To whom what is stored is encrypted. Without any it is not.
    pub recipients: Recipients,
    /// The file with the identity that opens it.
    pub identity_file: Option<PathBuf>,
}

/// `[cluster.NAME]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterConfig {
    /// Its name.
    pub name: ClusterName,
    /// Which incarnation of the system archives here.
    pub incarnation: u32,
    /// How to connect to the primary, where `connection` leads to a standby.
    pub primary: Option<Connection>,
    pgdata: Option<PathBuf>,
    connection: Option<Connection>,
}

/// `[archive]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchiveConfig {
    /// The levels of zstd.
    pub compression: Levels,
    /// On how many processors segments are compressed at the most.
    pub cpu: usize,
    /// How nice it is to other programs.
    pub nice: Option<i32>,
    /// How long one push or fetch may take.
    pub timeout: Duration,
    /// How many segments are shipped at a time.
    pub parallel: usize,
    /// Where this host remembers what was shipped ahead.
    pub state_dir: PathBuf,
    /// In which repositories a segment must be durable before it counts as archived.
    pub wait_for: WaitFor,
}

/// In which of several repositories a segment must be durable before it counts as archived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitFor {
    /// In each.
    All,
    /// In the first; the others catch up.
    First,
}

/// `[agent]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentConfig {
    /// The socket that the small programs speak to.
    pub socket: PathBuf,
    /// Where metrics are answered.
    pub listen: Option<SocketAddr>,
    /// Whether other hosts may reach that.
    pub listen_beyond_loopback: bool,
}

/// `[receive]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceiveConfig {
    /// The replication slot.
    pub slot: Option<String>,
    /// The name under which the server knows the receiver.
    pub application_name: String,
    /// How long WAL may wait for more.
    pub flush_interval: Duration,
    /// Whether what is durable in the spool counts as flushed.
    pub flushed_when_spooled: bool,
    /// The most bytes in the spool.
    pub spool_limit: u64,
    /// How much WAL the slot may hold without a warning.
    pub slot_limit: u64,
    /// After how long without a word the server is given up.
    pub timeout: Duration,
    /// Whether to go on behind WAL that is nowhere any more.
    pub accept_gap: bool,
}

/// `[backup]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupConfig {
    /// The level of zstd.
    pub compression: i32,
    /// How many files are read at a time.
    pub parallel: usize,
    /// The most bytes a second to read.
    pub rate_limit: Option<u64>,
    /// How nice it is to other programs.
    pub nice: Option<i32>,
    /// When its reads and writes come.
    pub io_priority: Option<InputOutput>,
    /// Whether WAL summaries may spare the reading of unchanged blocks.
    pub wal_summaries: bool,
    /// What to leave out, relative to the data directory.
    pub exclude: Vec<String>,
    /// Files, folders and patterns outside the data directory to save as well.
    pub files: Vec<String>,
}

/// `[restore]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoreConfig {
    /// How many files are written at a time.
    pub parallel: usize,
    /// The most bytes a second to fetch.
    pub rate_limit: Option<u64>,
    /// How many segments are fetched ahead.
    pub prefetch: usize,
    /// How many bytes of them at most.
    pub prefetch_size: u64,
    /// Whether a standby that is being promoted may end recovery though a segment could not be read.
    pub promote_despite_doubt: bool,
}

/// `[keep]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeepConfig {
    /// How many of the newest backups.
    pub last: u32,
    /// The newest of how many days.
    pub daily: u32,
    /// The newest of how many weeks.
    pub weekly: u32,
    /// The newest of how many months.
    pub monthly: u32,
    /// The newest of how many years.
    pub yearly: u32,
    /// How far back every instant stays recoverable.
    pub window: Option<Duration>,
    /// Whose days these are.
    pub zone: chrono_tz::Tz,
    /// Below how many per cent of living content an expiry writes a part anew; without it none does.
    pub compact: Option<u8>,
    /// How many bytes are copied at most.
    pub compact_limit: u64,
    /// How many bytes a second.
    pub rate_limit: Option<u64>,
}

impl KeepConfig {
    /// Whether it names backups to keep.
    #[must_use]
    pub fn has_rules(&self) -> bool {
        [self.last, self.daily, self.weekly, self.monthly, self.yearly] != [0; 5]
    }
}

/// `[goals]`: what the owner wants. Nothing is done by it; `status` and `check` measure against it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GoalsConfig {
    /// How much may be lost with the server's machine.
    pub rpo: Option<Duration>,
    /// How old the newest backup may be.
    pub backup_age: Duration,
    /// How long ago a restore may have succeeded last.
    pub restore_age: Duration,
}

/// `[kit]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KitConfig {
    /// How many recovery kits are kept in the repository.
    pub keep: usize,
}

/// One effective value and where it came from.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Its path, such as `cluster.main.pgdata`.
    pub path: String,
    /// The value.
    pub value: Value,
    /// Where it came from.
    pub origin: Origin,
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// That line of that file.
    File(PathBuf, usize),
    /// That variable.
    Environment(String),
    /// That flag.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::Environment(variable) => write!(f, "${variable}"),
            Self::Flag(flag) => f.write_str(flag),
        }
    }
}

/// A key that a flag sets, above everything else.
#[derive(Clone, Debug)]
pub struct Override {
    /// The flag, such as `--pgdata`.
    pub flag: &'static str,
    /// The table of the key; `cluster` needs a cluster.
    pub table: &'static str,
    /// The cluster whose key it is.
    pub cluster: Option<ClusterName>,
    /// The key.
    pub name: &'static str,
    /// What was written.
    pub value: String,
}

impl Config {
    /// Reads the file and this process's environment.
    pub fn load(lookup: &Lookup, overrides: &[Override]) -> Result<Self> {
        let file = lookup.find(std::env::var_os("WALDEN_CONFIG").as_ref())?;
        Self::of(file, std::env::vars_os(), overrides)
    }

    /// The configuration that this file (path and text), these variables and these flags make.
    pub fn of(
        file: Option<(PathBuf, String)>,
        variables: impl Iterator<Item = (OsString, OsString)>,
        overrides: &[Override],
    ) -> Result<Self> {
        let mut layers = Layers::default();
        if let Some((path, text)) = &file {
            layers.file(path, text)?;
        }
        layers.environment(variables)?;
        for flag in overrides {
            let key = keys::find(flag.table, flag.name)
                .ok_or_else(|| Error::internal(format!("{} sets an unknown key", flag.flag)))?;
            let cluster = flag.cluster.as_ref().map(ClusterName::as_str);
            layers.set(key, cluster, Raw::Plain(flag.value.clone()), Origin::Flag(flag.flag))?;
        }
        layers.defaults()?;
        layers.prove_repositories()?;
        Ok(layers.typed(file.map(|(path, _)| path)))
    }

    /// The repository; an error that tells how to name one when there is none.
    pub fn repository(&self) -> Result<&RepositoryConfig> {
        self.repository.as_ref().ok_or_else(|| {
            Error::invalid("no repository is configured").hint(format!(
                "set url under [repository] in {}, or WALDEN_REPOSITORY_URL",
                self.file_or_system().display()
            ))
        })
    }

    /// The other repositories, which hold the same as the first, in the order of their names.
    #[must_use]
    pub fn mirrors(&self) -> &[(RepositoryName, RepositoryConfig)] {
        &self.mirrors
    }

    /// The cluster of that name, or the only one there is. When none at all is configured any name will do: somebody
    /// recovers on a new host.
    pub fn cluster(&self, name: Option<&str>) -> Result<ClusterConfig> {
        let names = || self.clusters.iter().map(|cluster| cluster.name.as_str());
        match (name, self.clusters.as_slice()) {
            (None, [one]) => Ok(one.clone()),
            (None, []) => Err(Error::invalid("no cluster is configured").hint(format!(
                "add [cluster.NAME] with pgdata to {}, or name one with --cluster",
                self.file_or_system().display()
            ))),
            (None, _) => Err(Error::invalid("several clusters are configured")
                .hint(format!("choose one with --cluster: {}", names().collect::<Vec<_>>().join(", ")))),
            (Some(name), []) => {
                Ok(ClusterConfig { name: name.parse()?, incarnation: 1, primary: None, pgdata: None, connection: None })
            }
            (Some(name), clusters) => clusters.iter().find(|c| c.name.as_str() == name).cloned().ok_or_else(|| {
                let error = Error::invalid(format!("no cluster \"{name}\" is configured"));
                match keys::nearest(name, names()) {
                    Some(nearest) => error.hint(format!("did you mean \"{nearest}\"?")),
                    None => error.hint(format!("configured are {}", names().collect::<Vec<_>>().join(", "))),
                }
            }),
        }
    }

    /// The clusters there are, by name.
    #[must_use]
    pub fn clusters(&self) -> &[ClusterConfig] {
        &self.clusters
    }

    /// Every effective value, table by table, with where it came from.
    #[must_use]
    pub fn settings(&self) -> &[Setting] {
        &self.settings
    }

    /// Whether both have the same values, wherever they come from.
    #[must_use]
    pub fn says_the_same(&self, other: &Self) -> bool {
        let values =
            |config: &Self| config.settings.iter().map(|s| (s.path.clone(), s.value.clone())).collect::<Vec<_>>();
        self.file == other.file && values(self) == values(other)
    }

    fn file_or_system(&self) -> &Path {
        self.file.as_deref().unwrap_or(Path::new(SYSTEM))
    }
}

impl ClusterConfig {
    /// The data directory; an error that tells how to name it when it is not configured.
    pub fn pgdata(&self) -> Result<&Path> {
        self.pgdata.as_deref().ok_or_else(|| self.lacks("pgdata"))
    }

    /// How to connect; an error that tells how to say it when it is not configured, or not wholly.
    pub fn connection(&self) -> Result<&Connection> {
        let connection = self.connection.as_ref().ok_or_else(|| self.lacks("connection"))?;
        if connection.reveal().contains(rewrite::PLACEHOLDER) {
            return Err(Error::invalid(format!(
                "the password in cluster.{}.connection was left out of the recovery kit",
                self.name
            ))
            .hint(format!("write it in place of {} in walden.toml", rewrite::PLACEHOLDER)));
        }
        Ok(connection)
    }

    fn lacks(&self, key: &str) -> Error {
        let variable = keys::find("cluster", key).map(|key| environment::name(key, Some(self.name.as_str())));
        Error::invalid(format!("cluster.{}.{key} is not configured", self.name)).hint(format!(
            "set {key} under [cluster.{}] in walden.toml, or {}",
            self.name,
            variable.unwrap_or_default()
        ))
    }
}

#[cfg(test)]
mod tests;
