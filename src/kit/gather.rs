//! What goes into a kit, taken from this host.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use chrono::{DateTime, Utc};

use super::{
    envelope,
    manifest::{Address, CONFIGURATION, CREDENTIALS, Contents, FORMAT, IDENTITY, Manifest, Member, Missing, Purpose},
    secrets,
};
use crate::{
    config::{self, Config, Origin, RepositoryConfig, RepositoryUrl, Setting, Value, rewrite},
    error::{Error, Result},
    postgres::account::Account,
    repository::RepositoryName,
    store::s3::{self, Found, keys_file},
};

/// Which secrets are wanted in a kit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// Access keys, and passwords of connections.
    pub credentials: bool,
    /// The identity: of that file, or of the configuration's.
    pub identity: Option<Option<PathBuf>>,
}

/// What was gathered.
#[derive(Debug)]
pub struct Gathered {
    /// The contents of the kit.
    pub contents: Contents,
    /// What its maker should know.
    pub remarks: Vec<String>,
}

/// No certificate file is longer.
const LONGEST: u64 = 1 << 20;

/// Gathers everything. Nothing is asked of the repository.
pub async fn gather(config: &Config, wish: &Wish, made: DateTime<Utc>) -> Result<Gathered> {
    let mut gathering = Gathering { config, wish, members: Vec::new(), missing: Vec::new(), remarks: Vec::new() };
    gathering.configuration()?;
    gathering.credentials().await?;
    gathering.identity()?;
    gathering.certificates()?;
    let Gathering { members, missing, remarks, .. } = gathering;
    let has = |purpose| move |(member, _): &(Member, Vec<u8>)| member.purpose == purpose && member.secret;
    let secret = |purpose| members.iter().any(has(purpose));
    let (credentials, configuration) = (secret(Purpose::Credentials), secret(Purpose::Configuration));
    let manifest = Manifest {
        format: FORMAT,
        walden: env!("CARGO_PKG_VERSION").into(),
        made,
        host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        account: account(config),
        repositories: repositories(config).into_iter().map(|(name, r)| address(&name, r)).collect(),
        clusters: config.clusters().iter().map(|cluster| cluster.name.to_string()).collect(),
        recipients: recipients(config),
        identity: secret(Purpose::Identity),
        credentials: credentials || configuration,
        missing,
        members: members.iter().map(|(member, _)| member.clone()).collect(),
    };
    let files = members.into_iter().map(|(_, content)| content).collect();
    Ok(Gathered { contents: Contents { manifest, files }, remarks })
}

struct Gathering<'a> {
    config: &'a Config,
    wish: &'a Wish,
    members: Vec<(Member, Vec<u8>)>,
    missing: Vec<Missing>,
    remarks: Vec<String>,
}

impl Gathering<'_> {
    fn add(&mut self, name: &str, purpose: Purpose, secret: bool, named_by: Vec<String>, content: Vec<u8>) {
        let member = Member { named_by, ..Member::of(name, purpose, secret, &content) };
        self.members.push((member, content));
    }

    fn configuration(&mut self) -> Result<()> {
        let text = self.text()?;
        let secrets = if self.wish.credentials {
            secrets::lines_with_secrets(&text, self.config)
        } else {
            let told = secrets::left_out(&text, self.config);
            self.missing.extend(told.missing);
            if let Some(line) = told.secrets.first() {
                self.remarks
                    .push(format!("line {line} of walden.toml seems to hold a secret: the kit is locked for it"));
            }
            self.add(CONFIGURATION, Purpose::Configuration, !told.secrets.is_empty(), Vec::new(), told.text.into());
            return Ok(());
        };
        self.add(CONFIGURATION, Purpose::Configuration, !secrets.is_empty(), Vec::new(), text.into());
        Ok(())
    }

    /// The file as it is; where the environment sets keys as well, one that says what holds.
    fn text(&mut self) -> Result<String> {
        let set: Vec<&Setting> = self.config.settings().iter().filter(|s| s.origin != Origin::Default).collect();
        let of_file = |setting: &&Setting| matches!(setting.origin, Origin::File(..));
        match &self.config.file {
            Some(file) if set.iter().all(of_file) => fs::read_to_string(file).map_err(|e| Error::io("read", file, e)),
            None if set.is_empty() => Err(Error::invalid("nothing is configured: there is nothing to make a kit of")
                .hint("name the configuration with --config FILE")),
            _ => {
                self.remarks
                    .push("the environment sets keys too: the kit's walden.toml was written anew, with them".into());
                Ok(format!(
                    "# Written by walden kit export: keys of a file and of the environment.\n\n{}",
                    rewrite::written(&set)
                ))
            }
        }
    }

    /// The access keys of each repository that is a bucket, or placeholders for them.
    async fn credentials(&mut self) -> Result<()> {
        let mut sections: BTreeMap<String, String> = BTreeMap::new();
        let mut named_by = Vec::new();
        for (name, repository) in repositories(self.config) {
            let RepositoryUrl::S3 { .. } = repository.url else { continue };
            named_by.extend(repository.credentials_file.is_some().then(|| key(&name, "credentials_file")));
            let section = repository.profile.clone().unwrap_or_else(|| keys_file::DEFAULT.to_owned());
            if sections.contains_key(&section) {
                continue;
            }
            let text = if self.wish.credentials {
                self.keys(&name, &section, repository).await?
            } else {
                for what in ["aws_access_key_id", "aws_secret_access_key"] {
                    self.missing.push(Missing {
                        file: CREDENTIALS.into(),
                        key: format!("{what} in [{section}]"),
                        what: format!(
                            "the access key of {}; not where the new host has a role or AWS's own files",
                            repository.url
                        ),
                    });
                }
                keys_file::written(&section, None)
            };
            sections.insert(section, text);
        }
        let text: Vec<String> = sections.into_values().filter(|text| !text.is_empty()).collect();
        if !text.is_empty() {
            self.add(CREDENTIALS, Purpose::Credentials, self.wish.credentials, named_by, text.join("\n").into());
        }
        Ok(())
    }

    /// A repository's access keys as a section; empty where they would be of no use tomorrow.
    async fn keys(&mut self, name: &RepositoryName, section: &str, repository: &RepositoryConfig) -> Result<String> {
        let Some(options) = config::s3_options(repository) else { return Ok(String::new()) };
        let found = s3::credentials(&options).await.map_err(|e| e.context(format!("repository {name}")))?;
        Ok(match found {
            Found::Keys(keys) => keys_file::written(section, Some(&keys)),
            Found::Temporary => {
                self.remarks
                    .push(format!("this host's keys for repository {name} end by themselves: they are not in the kit"));
                self.missing.push(Missing {
                    file: CREDENTIALS.into(),
                    key: format!("[{section}]"),
                    what: format!(
                        "this host had temporary keys for {}: the new one needs a role, or keys",
                        repository.url
                    ),
                });
                String::new()
            }
        })
    }

    /// What decrypts the repository, if it is wanted.
    fn identity(&mut self) -> Result<()> {
        let recipients = recipients(self.config);
        let configured = text_of(self.config, "encryption.identity_file");
        let named_by: Vec<String> = configured.iter().map(|_| "encryption.identity_file".to_owned()).collect();
        let Some(wanted) = &self.wish.identity else {
            if !recipients.is_empty() || configured.is_some() {
                self.missing.push(Missing {
                    file: configured.unwrap_or_else(|| IDENTITY.to_owned()),
                    key: "encryption.identity_file".into(),
                    what: "the identity that decrypts the repository".into(),
                });
            }
            return Ok(());
        };
        let path = wanted.clone().or_else(|| configured.map(PathBuf::from)).ok_or_else(|| {
            Error::invalid("the configuration names no identity").hint("name its file: --with-identity=FILE")
        })?;
        let text = fs::read_to_string(&path).map_err(|e| Error::io("read the identity in", &path, e))?;
        let identities = envelope::identities(&text).map_err(|e| e.context(path.display()))?;
        if !recipients.is_empty() && !identities.iter().any(|i| recipients.contains(&i.to_public().to_string())) {
            self.remarks.push(format!("{} is the identity of none of today's recipients", path.display()));
        }
        self.add(IDENTITY, Purpose::Identity, true, named_by, text.into());
        Ok(())
    }

    /// The certificates that the configuration names.
    fn certificates(&mut self) -> Result<()> {
        let mut files: BTreeMap<PathBuf, Vec<String>> = BTreeMap::new();
        for (name, repository) in repositories(self.config) {
            if let Some(path) = &repository.ca_file {
                files.entry(path.clone()).or_default().push(key(&name, "ca_file"));
            }
        }
        for (path, named_by) in files {
            let content = short_file(&path)?;
            let name = self.name_for(&path);
            let secret = String::from_utf8_lossy(&content).contains("PRIVATE KEY-----");
            self.add(&name, Purpose::Certificates, secret, named_by, content);
        }
        Ok(())
    }

    /// A plain name that no other member has.
    fn name_for(&self, path: &Path) -> String {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let plain: String =
            name.chars().map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' }).collect();
        let plain = plain.trim_start_matches('.').chars().rev().take(48).collect::<Vec<_>>();
        let plain: String = plain.into_iter().rev().collect();
        let plain = if plain.is_empty() { "ca.pem".to_owned() } else { plain };
        let taken = |name: &str| {
            [super::manifest::MANIFEST, CONFIGURATION, CREDENTIALS, IDENTITY].contains(&name)
                || self.members.iter().any(|(member, _)| member.name == name)
        };
        let numbered = (2..).map(|number| format!("ca-{number}-{plain}"));
        std::iter::once(plain.clone()).chain(numbered).find(|name| !taken(name)).unwrap_or(plain)
    }
}

/// The public recipients of new objects.
pub fn recipients(config: &Config) -> Vec<String> {
    match value_of(config, "encryption.recipients") {
        Some(Value::List(recipients)) => recipients.clone(),
        _ => Vec::new(),
    }
}

fn text_of(config: &Config, path: &str) -> Option<String> {
    match value_of(config, path) {
        Some(Value::Text(text)) => Some(text.clone()),
        _ => None,
    }
}

fn value_of<'a>(config: &'a Config, path: &str) -> Option<&'a Value> {
    config.settings().iter().find(|setting| setting.path == path).map(|setting| &setting.value)
}

fn short_file(path: &Path) -> Result<Vec<u8>> {
    let length = fs::metadata(path).map_err(|e| Error::io("read", path, e))?.len();
    if length > LONGEST {
        return Err(Error::invalid(format!("{} is {length} bytes long: too long for a kit", path.display()))
            .hint("name a file with the one authority that is needed as ca_file"));
    }
    fs::read(path).map_err(|e| Error::io("read", path, e))
}

fn repositories(config: &Config) -> Vec<(RepositoryName, &RepositoryConfig)> {
    let first = config.repository().ok().map(|first| (RepositoryName::first(), first));
    first.into_iter().chain(config.mirrors().iter().map(|(name, mirror)| (name.clone(), mirror))).collect()
}

fn address(name: &RepositoryName, repository: &RepositoryConfig) -> Address {
    Address {
        name: name.to_string(),
        url: repository.url.to_string(),
        endpoint: repository.endpoint.clone(),
        region: repository.region.clone(),
    }
}

/// The path of a repository's key.
fn key(name: &RepositoryName, key: &str) -> String {
    if *name == RepositoryName::first() { format!("repository.{key}") } else { format!("repository.{name}.{key}") }
}

/// Who archives on this host: the owner of the data directory, where it is here.
fn account(config: &Config) -> String {
    let pgdata = config.clusters().iter().find_map(|cluster| fs::metadata(cluster.pgdata().ok()?).ok());
    pgdata.map_or_else(Account::own, |found| Account::of(found.uid(), found.gid())).name
}
