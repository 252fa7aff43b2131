//! The header of an age file: who can open it, and (in a stanza that age passes over) what it holds.

use age::{Identity as _, Recipient as _, secrecy::ExposeSecret};
use age_core::format::{FileKey, Stanza};
use base64::{Engine, prelude::BASE64_STANDARD_NO_PAD};
use ring::{hkdf, hmac};
use serde::{Deserialize, Serialize};

use super::{
    keys::{Identities, Recipients},
    payload::random,
};
use crate::{
    error::{Error, Result},
    seal::{Blake3, blake3},
};

/// The length of every header that Walden writes, in bytes, so that the length of a file tells that of its content.
pub const HEADER: usize = 2048;
/// The longest header that is read, in bytes.
pub const HEADER_LIMIT: usize = 64 << 10;

/// What every age file begins with.
pub const MAGIC: &[u8] = b"age-encryption.org/";
const VERSION: &str = "age-encryption.org/v1";
/// The stanza that tells what the file holds.
const FACTS: &str = "walden.app/facts";
/// Digits of base64 in a line of a stanza's body.
const COLUMNS: usize = 64;

/// Whether a file that begins with these bytes is sealed by age.
#[must_use]
pub fn is_age(front: &[u8]) -> bool {
    front.starts_with(MAGIC)
}

/// What a file tells of its content to those who cannot open it. Who can proves it with the rest of the header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Declared {
    /// BLAKE3 of what the writer says that it holds, such as a WAL segment before compression.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blake3: Option<Blake3>,
    /// The length of that in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// The length in bytes of what was sealed, where that was known beforehand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<u64>,
    /// BLAKE3 of everything behind the header, where that was known beforehand: it proves the file to who only copies it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed: Option<Blake3>,
}

/// The body of the stanza.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Facts {
    #[serde(flatten)]
    declared: Declared,
    /// The recipients, shortened.
    #[serde(default)]
    to: Vec<String>,
    /// The first 16 digits of the BLAKE3 of all bytes before this stanza: damage there is told from a foreign identity.
    before: String,
}

/// A header that was read.
pub struct Header {
    stanzas: Vec<Stanza>,
    facts: Option<Facts>,
    /// Whether what stands before the facts is what was written.
    sound: bool,
    mac: Vec<u8>,
    /// All that the MAC is over.
    covered: Vec<u8>,
    length: usize,
}

impl std::fmt::Debug for Header {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Header").field("facts", &self.facts).field("length", &self.length).finish_non_exhaustive()
    }
}

impl Header {
    /// The header in front of a file; `None` where more of the file is needed to see its end.
    pub fn parse(front: &[u8]) -> Result<Option<Self>> {
        let parsed = Reader { front, at: 0 }.header();
        match parsed {
            Err(Stop::More) if front.len() < HEADER_LIMIT => Ok(None),
            Err(Stop::More) => Err(damaged(format!("has no end within {HEADER_LIMIT} bytes"))),
            Err(Stop::Wrong(error)) => Err(error),
            Ok(header) => Ok(Some(header)),
        }
    }

    /// Its length in bytes.
    #[must_use]
    pub fn length(&self) -> usize {
        self.length
    }

    /// What it tells of the content.
    #[must_use]
    pub fn declared(&self) -> Declared {
        self.facts.as_ref().map(|facts| facts.declared).unwrap_or_default()
    }

    /// For whom it is sealed, as far as it tells: the first digits of the recipients.
    #[must_use]
    pub fn recipients(&self) -> &[String] {
        self.facts.as_ref().map_or(&[], |facts| &facts.to)
    }

    /// For whom it is sealed, in words.
    #[must_use]
    pub fn sealed_to(&self) -> String {
        let known = self.recipients().iter().map(|short| format!("age1{short}...")).collect::<Vec<_>>();
        match (known.as_slice(), self.stanzas.len()) {
            ([], 1) => "one recipient".to_owned(),
            ([], count) => format!("{count} recipients"),
            _ => known.join(", "),
        }
    }

    /// The key of the file, by one of these identities.
    pub(super) fn unlock(&self, identities: &Identities) -> Result<FileKey> {
        for identity in identities.keys() {
            match identity.unwrap_stanzas(&self.stanzas) {
                None => {}
                Some(Ok(key)) => {
                    return match hmac::verify(&mac_key(&key)?, &self.covered, &self.mac) {
                        Ok(()) => Ok(key),
                        Err(_) => Err(damaged(format!("was changed (bytes 0 to {})", self.length))),
                    };
                }
                Some(Err(_)) => return Err(damaged("holds a recipient that cannot be read")),
            }
        }
        if !self.sound {
            return Err(damaged(format!("was changed (bytes 0 to {})", self.length)));
        }
        if self.stanzas.iter().any(|stanza| stanza.tag == "scrypt") {
            return Err(Error::refused("it is encrypted with a passphrase, not to a recipient"));
        }
        let count = identities.keys().len();
        let which = if count == 1 { "the identity".to_owned() } else { format!("none of the {count} identities") };
        let verb = if count == 1 { "does not open it" } else { "opens it" };
        Err(Error::refused(format!(
            "it is encrypted to {}, and {which} in {} {verb}",
            self.sealed_to(),
            identities.place()
        ))
        .hint("name an identity file that holds the identity of one of these recipients"))
    }

    /// The same header for other recipients, of the same length: what follows it stays as it is.
    pub fn rewrapped(&self, identities: &Identities, recipients: &Recipients) -> Result<Vec<u8>> {
        write(recipients, &self.unlock(identities)?, self.declared(), self.length)
    }
}

/// The key of a new file.
pub(super) fn new_key() -> Result<FileKey> {
    Ok(FileKey::new(Box::new(random()?)))
}

/// A header of that length.
pub(super) fn write(recipients: &Recipients, key: &FileKey, declared: Declared, length: usize) -> Result<Vec<u8>> {
    if recipients.is_empty() {
        return Err(Error::internal("sealed to nobody"));
    }
    let mut text = format!("{VERSION}\n");
    for recipient in recipients.keys() {
        let (stanzas, _) =
            recipient.wrap_file_key(key).map_err(|e| Error::internal("seal to a recipient").source(e.to_string()))?;
        for stanza in stanzas {
            stanza_line(&mut text, &stanza.tag, &stanza.args);
            body(&mut text, &stanza.body);
        }
    }
    let before = blake3(text.as_bytes()).to_string();
    let facts = Facts { declared, to: recipients.short(), before: before[..16].to_owned() };
    let json = serde_json::to_vec(&facts).map_err(|e| Error::internal("write facts as JSON").source(e))?;
    let mut told = String::new();
    body(&mut told, &json);
    // An argument of zeros fills the header up.
    let (dashes, mac) = ("---", 1 + 43 + 1);
    let others = text.len() + "-> ".len() + FACTS.len() + " \n".len() + told.len() + dashes.len() + mac;
    let room = length.checked_sub(others).filter(|room| *room > 0).ok_or_else(|| {
        Error::invalid(format!("{} recipients have no room in a header of {length} bytes", recipients.keys().len()))
    })?;
    stanza_line(&mut text, FACTS, &["0".repeat(room)]);
    text.push_str(&told);
    text.push_str(dashes);
    let tag = hmac::sign(&mac_key(key)?, text.as_bytes());
    text.push(' ');
    text.push_str(&BASE64_STANDARD_NO_PAD.encode(tag));
    text.push('\n');
    debug_assert_eq!(text.len(), length);
    Ok(text.into_bytes())
}

fn stanza_line(text: &mut String, tag: &str, arguments: &[String]) {
    text.push_str("-> ");
    text.push_str(tag);
    for argument in arguments {
        text.push(' ');
        text.push_str(argument);
    }
    text.push('\n');
}

/// Lines of base64, the last one shorter than the others, and empty where need be.
fn body(text: &mut String, bytes: &[u8]) {
    let digits = BASE64_STANDARD_NO_PAD.encode(bytes);
    let mut rest = digits.as_str();
    while rest.len() >= COLUMNS {
        let (line, after) = rest.split_at(COLUMNS);
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    text.push_str(rest);
    text.push('\n');
}

fn mac_key(key: &FileKey) -> Result<hmac::Key> {
    let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, &[]);
    let secret = salt.extract(key.expose_secret());
    let okm = secret.expand(&[b"header"], hmac::HMAC_SHA256).map_err(|_| Error::internal("derive a key"))?;
    Ok(okm.into())
}

fn damaged(what: impl std::fmt::Display) -> Error {
    Error::damaged(format!("its age header {what}"))
}

/// Why a header was not read.
enum Stop {
    /// It goes on behind what is there.
    More,
    Wrong(Error),
}

/// Reads a header line by line.
struct Reader<'a> {
    front: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn header(mut self) -> Result<Header, Stop> {
        let version = self.line()?;
        if version == VERSION {
            return self.stanzas();
        }
        let other = version.strip_prefix("age-encryption.org/v").filter(|v| v.bytes().all(|b| b.is_ascii_digit()));
        let other = other.ok_or_else(|| wrong(0))?;
        match self.stanzas() {
            // The hash in it tells that it was written with another version.
            Ok(header) if !header.sound => Err(wrong(0)),
            Err(Stop::More) => Err(Stop::More),
            _ => Err(Stop::Wrong(
                Error::refused(format!("it is sealed by version {other} of age's format"))
                    .hint("this Walden knows version 1; use a newer Walden, or mend the object from another copy"),
            )),
        }
    }

    /// What follows the version.
    fn stanzas(mut self) -> Result<Header, Stop> {
        let (mut stanzas, mut facts, mut sound) = (Vec::new(), None, true);
        loop {
            let begin = self.at;
            let line = self.line()?;
            if let Some(mac) = line.strip_prefix("--- ") {
                let mac = BASE64_STANDARD_NO_PAD.decode(mac).ok().filter(|mac| mac.len() == 32);
                let mac = mac.ok_or_else(|| wrong(begin))?;
                let covered = self.front[..begin + "---".len()].to_vec();
                return Ok(Header { stanzas, facts, sound, mac, covered, length: self.at });
            }
            let mut words = line.strip_prefix("-> ").ok_or_else(|| wrong(begin))?.split(' ').map(str::to_owned);
            let tag = words.next().filter(|tag| !tag.is_empty()).ok_or_else(|| wrong(begin))?;
            let args: Vec<String> = words.collect();
            if args.iter().any(String::is_empty) {
                return Err(wrong(begin));
            }
            let body = self.body()?;
            if tag == FACTS {
                let read: Facts = serde_json::from_slice(&body).map_err(|_| wrong(begin))?;
                sound = blake3(&self.front[..begin]).to_string()[..16] == read.before;
                facts = Some(read);
            } else {
                stanzas.push(Stanza { tag, args, body });
            }
        }
    }

    fn body(&mut self) -> Result<Vec<u8>, Stop> {
        let (begin, mut digits) = (self.at, String::new());
        loop {
            let line = self.line()?;
            digits.push_str(line);
            if line.len() > COLUMNS {
                return Err(wrong(begin));
            }
            if line.len() < COLUMNS {
                return BASE64_STANDARD_NO_PAD.decode(&digits).map_err(|_| wrong(begin));
            }
        }
    }

    /// The next line, without its end.
    fn line(&mut self) -> Result<&'a str, Stop> {
        let rest = &self.front[self.at..];
        let end = rest.iter().position(|byte| *byte == b'\n').ok_or(Stop::More)?;
        let line =
            std::str::from_utf8(&rest[..end]).ok().filter(|line| line.bytes().all(|b| (0x20..0x7F).contains(&b)));
        let line = line.ok_or_else(|| wrong(self.at))?;
        self.at += end + 1;
        Ok(line)
    }
}

fn wrong(at: usize) -> Stop {
    Stop::Wrong(damaged(format!("cannot be read at byte {at}")))
}
