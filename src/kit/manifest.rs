//! What a kit holds, and what its first member says of it.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    seal::sha256,
};

/// The format of kits that this Walden writes, and the highest that it reads.
pub const FORMAT: u32 = 1;

/// The name of the first member.
pub const MANIFEST: &str = "manifest.json";

/// `manifest.json`: what is in the kit, where it was made, and what is not in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The format of the kit.
    pub format: u32,
    /// The version of Walden that made it.
    pub walden: String,
    /// When it was made.
    pub made: DateTime<Utc>,
    /// The host it was made on.
    pub host: String,
    /// The user that archives there, to whom secrets belong.
    pub account: String,
    /// Where everything is stored.
    pub repositories: Vec<Address>,
    /// The clusters that are configured.
    pub clusters: Vec<String>,
    /// The public recipients of new objects; none where they are not encrypted.
    pub recipients: Vec<String>,
    /// Whether an identity is in it.
    pub identity: bool,
    /// Whether access keys, or passwords of connections, are in it.
    pub credentials: bool,
    /// What is needed and was left out.
    pub missing: Vec<Missing>,
    /// The other members, in their order.
    pub members: Vec<Member>,
}

/// A repository's address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// Its name in the configuration.
    pub name: String,
    /// Its URL.
    pub url: String,
    /// The S3 server, when it is not Amazon's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The bucket's region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
}

/// Something that somebody has to fill in on the new host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// The file that it belongs into, beside or as `walden.toml`.
    pub file: String,
    /// The key in it.
    pub key: String,
    /// What it is, in words.
    pub what: String,
}

/// A member of a kit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its name, in the kit and in the folder that it is put into.
    pub name: String,
    /// What it is for.
    pub purpose: Purpose,
    /// Its length.
    pub bytes: u64,
    /// The SHA-256 of its content, in hexadecimal digits.
    pub sha256: String,
    /// Whether only its owner may read it.
    pub secret: bool,
    /// The keys of the configuration that name it, such as `repository.ca_file`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub named_by: Vec<String>,
}

/// What a member is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Purpose {
    /// `walden.toml`.
    Configuration,
    /// Access keys, or placeholders for them.
    Credentials,
    /// What decrypts the repository.
    Identity,
    /// Certificates to trust.
    Certificates,
}

/// The name of the configuration in a kit.
pub const CONFIGURATION: &str = "walden.toml";
/// The name of the access keys in a kit: where they are found beside `walden.toml`.
pub const CREDENTIALS: &str = "credentials";
/// The name of the identity in a kit.
pub const IDENTITY: &str = "identity.txt";

/// A whole kit, opened: the manifest, and the content of each of its members.
#[derive(Clone, PartialEq, Eq)]
pub struct Contents {
    /// What it says of itself.
    pub manifest: Manifest,
    /// The contents of its members, in their order.
    pub files: Vec<Vec<u8>>,
}

/// Contents are secret.
impl std::fmt::Debug for Contents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Contents").field("manifest", &self.manifest).finish_non_exhaustive()
    }
}

impl Member {
    /// A member with that content.
    #[must_use]
    pub fn of(name: impl Into<String>, purpose: Purpose, secret: bool, content: &[u8]) -> Self {
        let (bytes, sha256) = (content.len() as u64, sha256(content));
        Self { name: name.into(), purpose, bytes, sha256, secret, named_by: Vec::new() }
    }
}

impl Contents {
    /// Its members with their contents.
    pub fn members(&self) -> impl Iterator<Item = (&Member, &[u8])> {
        self.manifest.members.iter().zip(self.files.iter().map(Vec::as_slice))
    }

    /// Whether anything in it is secret.
    #[must_use]
    pub fn is_secret(&self) -> bool {
        self.manifest.members.iter().any(|member| member.secret)
    }

    /// The text of its configuration.
    pub fn configuration(&self) -> Result<&str> {
        let found = self.members().find(|(member, _)| member.purpose == Purpose::Configuration);
        let (_, content) = found.ok_or_else(|| Error::damaged("the kit has no configuration"))?;
        std::str::from_utf8(content).map_err(|_| Error::damaged("the kit's walden.toml is not UTF-8"))
    }
}

impl Manifest {
    /// Reads it. A format of the future is told apart from damage.
    pub fn read(json: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Formatted {
            format: u32,
        }
        let damaged = |e: serde_json::Error| Error::damaged(format!("the kit's {MANIFEST} cannot be read")).source(e);
        let Formatted { format } = serde_json::from_slice(json).map_err(damaged)?;
        if format > FORMAT {
            return Err(Error::refused(format!(
                "the kit has format {format}; this Walden knows formats up to {FORMAT}"
            ))
            .hint("use the version of Walden that made it, or a newer one"));
        }
        let manifest: Self = serde_json::from_slice(json).map_err(damaged)?;
        manifest.prove_names()?;
        Ok(manifest)
    }

    /// As the first member has it.
    pub fn to_json(&self) -> Result<Vec<u8>> {
        let mut json = serde_json::to_vec_pretty(self)
            .map_err(|e| Error::internal(format!("write the kit's {MANIFEST}")).source(e))?;
        json.push(b'\n');
        Ok(json)
    }

    /// Every name is a plain file's, so that nothing is ever put anywhere but into the one folder.
    fn prove_names(&self) -> Result<()> {
        let plain = |name: &str| {
            (1..=64).contains(&name.len())
                && !name.starts_with('.')
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        };
        for (at, Member { name, purpose, .. }) in self.members.iter().enumerate() {
            let before = &self.members[..at];
            let fixed = match purpose {
                Purpose::Configuration => name == CONFIGURATION,
                Purpose::Credentials => name == CREDENTIALS,
                Purpose::Identity => name == IDENTITY,
                Purpose::Certificates => ![CONFIGURATION, CREDENTIALS, IDENTITY].contains(&name.as_str()),
            };
            if !plain(name) || name == MANIFEST || !fixed || before.iter().any(|other| other.name == *name) {
                return Err(Error::damaged(format!("the kit has a member called \"{}\"", name.escape_debug()))
                    .hint("it was not made by walden kit export; nothing was changed"));
            }
        }
        Ok(())
    }
}
