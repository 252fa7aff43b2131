//! Recipients and identities: public keys to seal to, and the secret ones that open.

use std::{
    fmt,
    fs::File,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::Path,
};

use age::{
    secrecy::{ExposeSecret, SecretString},
    x25519,
};
use chrono::{DateTime, SecondsFormat, Utc};

use crate::error::{Error, Result};

/// How many recipients an object can have: there is room for as many in a header.
pub const RECIPIENTS: usize = 10;

/// Public keys. Whoever has the identity of one of them can read what is sealed to them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recipients(Vec<x25519::Recipient>);

impl Recipients {
    /// The recipients of these texts (`age1...`). What is wrong with one is told without repeating a secret.
    pub fn parse<T: AsRef<str>>(texts: &[T]) -> Result<Self, String> {
        let mut recipients = Vec::new();
        for text in texts.iter().map(|text| text.as_ref().trim()) {
            let recipient = parse(text)?;
            if recipients.contains(&recipient) {
                return Err(format!("{text} is there twice"));
            }
            recipients.push(recipient);
        }
        if recipients.len() > RECIPIENTS {
            return Err(format!("{} recipients are too many: at most {RECIPIENTS}", recipients.len()));
        }
        Ok(Self(recipients))
    }

    /// Whether there are none: nothing is sealed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each as it is written.
    pub fn texts(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(ToString::to_string)
    }

    /// Each shortened: by its first digits it is told from others.
    #[must_use]
    pub fn short(&self) -> Vec<String> {
        self.texts().map(|text| text[4..12].to_owned()).collect()
    }

    pub(super) fn keys(&self) -> &[x25519::Recipient] {
        &self.0
    }
}

fn parse(text: &str) -> Result<x25519::Recipient, String> {
    let lower = text.to_ascii_lowercase();
    if lower.starts_with("age-secret-key-") {
        return Err("an identity is there, which is secret, where a recipient should be".into());
    }
    // A kind of its own has a name between two ones, which are no digits of a key.
    let of_a_kind = lower.starts_with("age1") && lower.matches('1').count() > 1 || lower.starts_with("ssh-");
    text.parse().map_err(|why| match of_a_kind {
        true => format!("\"{text}\" is a kind of recipient that Walden does not know"),
        false => format!("\"{text}\" is no recipient: {why}"),
    })
}

/// Secret keys, from an identity file as `age-keygen` writes it.
#[derive(Clone)]
pub struct Identities {
    keys: Vec<x25519::Identity>,
    /// Where they came from, for people.
    place: String,
}

impl fmt::Debug for Identities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identities").field("place", &self.place).field("keys", &self.keys.len()).finish()
    }
}

/// The longest identity file that makes sense, in bytes.
const LONGEST: u64 = 1 << 20;

impl Identities {
    /// Reads an identity file. One that others can read is refused, as everything else that is wrong with it.
    pub fn read(path: &Path) -> Result<Self> {
        let place = format!("identity file {}", path.display());
        let failed = |e: io::Error| {
            let what = match e.kind() {
                io::ErrorKind::NotFound => "is not there",
                io::ErrorKind::PermissionDenied => "cannot be read by this user",
                _ => "cannot be read",
            };
            Error::refused(format!("{place} {what}")).source(e).hint(
                "identity_file under [encryption] names the file that age-keygen, or walden keys generate, has written",
            )
        };
        let mut file = File::open(path).map_err(failed)?;
        let facts = file.metadata().map_err(failed)?;
        if !facts.is_file() {
            return Err(Error::refused(format!("{place} is not a file")));
        }
        // As PostgreSQL has it for its own keys: the group may read what belongs to root.
        let others = if facts.uid() == 0 { 0o037 } else { 0o077 };
        if facts.mode() & others != 0 {
            return Err(Error::refused(format!(
                "{place} can be read by others: its mode is {:04o}",
                facts.mode() & 0o7777
            ))
            .hint(format!("chmod 600 {}", path.display())));
        }
        let mut text = String::new();
        Read::by_ref(&mut file).take(LONGEST).read_to_string(&mut text).map_err(|e| match e.kind() {
            io::ErrorKind::InvalidData => Error::refused(format!("{place} is no text")).hint(MEND),
            _ => failed(e),
        })?;
        Self::parse(&text, place)
    }

    /// The identities of that text. `place` is where it came from, for people.
    pub fn parse(text: &str, place: impl Into<String>) -> Result<Self> {
        let place = place.into();
        if text.starts_with("age-encryption.org/") || text.starts_with("-----BEGIN AGE ENCRYPTED FILE-----") {
            return Err(Error::refused(format!("{place} is itself encrypted"))
                .hint("decrypt it with age -d into a file that nobody else can read, and name that one"));
        }
        let mut keys = Vec::new();
        for (number, line) in text.lines().enumerate().map(|(number, line)| (number + 1, line.trim())) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            // The line may be a secret with a typing error in it.
            let wrong =
                |why: &str| Error::refused(format!("line {number} of {place} is no identity: {why}")).hint(MEND);
            if line.starts_with("age1") {
                return Err(wrong("it is a recipient, which opens nothing"));
            }
            keys.push(line.parse().map_err(wrong)?);
        }
        if keys.is_empty() {
            return Err(Error::refused(format!("{place} holds no identity")).hint(MEND));
        }
        Ok(Self { keys, place })
    }

    /// A new identity: the text of its file, and its recipient.
    #[must_use]
    pub fn generate(now: DateTime<Utc>) -> (SecretString, String) {
        let identity = x25519::Identity::generate();
        let recipient = identity.to_public().to_string();
        let created = now.to_rfc3339_opts(SecondsFormat::Secs, true);
        let text =
            format!("# created: {created}\n# public key: {recipient}\n{}\n", identity.to_string().expose_secret());
        (text.into(), recipient)
    }

    /// The recipients that these are the identities of.
    #[must_use]
    pub fn recipients(&self) -> Recipients {
        Recipients(self.keys.iter().map(x25519::Identity::to_public).collect())
    }

    /// Where they came from, for people.
    #[must_use]
    pub fn place(&self) -> &str {
        &self.place
    }

    pub(super) fn keys(&self) -> &[x25519::Identity] {
        &self.keys
    }
}

const MEND: &str = "it should be as age-keygen writes it: a line AGE-SECRET-KEY-1..., and comments that begin with #";
