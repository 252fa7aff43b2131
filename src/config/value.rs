//! What a key can hold: how each kind is read from TOML or from plain text, and how it is shown.

use std::{fmt, net::SocketAddr, time::Duration};

use super::{connection::Connection, url::RepositoryUrl};
use crate::{
    human,
    seal::age::{RECIPIENTS, Recipients},
};

/// What a key takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Any text that is not empty.
    Text,
    /// A repository's address.
    Url,
    /// The address of an S3 server.
    Endpoint,
    /// The address and port to listen on.
    Listen,
    /// An absolute path.
    Path,
    /// A connection string, which may hold a password.
    Connection,
    /// `true` or `false`.
    Switch,
    /// A whole number from the first to the second, both included.
    Whole(u64, u64),
    /// A number of bytes.
    Size,
    /// A length of time, not zero.
    Time,
    /// A time zone of the IANA database.
    Zone,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// `zstd` or `zstd:LEVEL`.
    Compression,
    /// The same, or `zstd:FROM..TO`.
    Compressions,
    /// Several texts, none empty.
    List,
    /// Several absolute paths.
    Paths,
    /// Recipients of age.
    Recipients,
}

/// What was written, before it is known to make sense.
#[derive(Clone, Debug, PartialEq)]
pub enum Raw {
    /// From the environment or a flag: text, whatever the kind.
    Plain(String),
    /// A TOML string.
    Text(String),
    /// A TOML integer, if it is not negative and fits.
    Whole(Option<u64>),
    /// A TOML boolean.
    Switch(bool),
    /// A TOML array of strings.
    List(Vec<String>),
    /// Anything else, by TOML's name for it.
    Other(&'static str),
}

/// A value that makes sense for its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A text, a path or one of several words.
    Text(String),
    /// A repository's address.
    Url(RepositoryUrl),
    /// A connection string.
    Connection(Connection),
    /// Yes or no.
    Switch(bool),
    /// A number, or the level of a compression.
    Whole(u64),
    /// Bytes.
    Size(u64),
    /// A length of time.
    Time(Duration),
    /// The level of zstd, or the fastest and the most thorough.
    Compression(Levels),
    /// Several texts.
    List(Vec<String>),
}

/// Levels of zstd; one alone is both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Levels {
    /// For when speed counts.
    pub fast: i32,
    /// For when there is time.
    pub thorough: i32,
}

impl From<i32> for Levels {
    fn from(level: i32) -> Self {
        Self { fast: level, thorough: level }
    }
}

/// The levels of zstd that make sense: above 19 it needs more memory than Walden may take.
const LEVELS: std::ops::RangeInclusive<i32> = 1..=19;

impl Kind {
    /// What to write, for people.
    #[must_use]
    pub fn wanted(self) -> String {
        match self {
            Self::Text => "a text that is not empty".into(),
            Self::Url => "s3://bucket/prefix or file:///absolute/path".into(),
            Self::Endpoint => "http://host:port or https://host:port".into(),
            Self::Listen => "an IP address and a port like \"127.0.0.1:9187\" or \"[::1]:9187\"".into(),
            Self::Path => "an absolute path".into(),
            Self::Connection => "a connection string like \"host=/var/run/postgresql dbname=postgres\"".into(),
            Self::Switch => "true or false".into(),
            Self::Whole(from, to) => format!("a whole number from {from} to {to}"),
            Self::Size => "a size like \"256MB\" (units: B, kB, MB, GB, TB)".into(),
            Self::Time => "a length of time like \"60s\" (units: ms, s, min, h, d)".into(),
            Self::Zone => "a time zone like \"UTC\" or \"Europe/Berlin\"".into(),
            Self::Choice(words) => words.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(" or "),
            Self::Compression => format!("\"zstd:LEVEL\" with a level from {} to {}", LEVELS.start(), LEVELS.end()),
            Self::Compressions => {
                format!("\"zstd:LEVEL\" or \"zstd:FROM..TO\" with levels from {} to {}", LEVELS.start(), LEVELS.end())
            }
            Self::List => "a list of texts like [\"a\", \"b\"]".into(),
            Self::Paths => "a list of absolute paths like [\"/a\", \"/b\"]".into(),
            Self::Recipients => format!(
                "a list of up to {RECIPIENTS} recipients like [\"age1...\"], which age-keygen or walden keys generate makes"
            ),
        }
    }

    /// Reads what was written, or says what is wrong with it. The answer never repeats a secret.
    pub fn read(self, raw: Raw) -> Result<Value, String> {
        match (self, raw) {
            (Self::Switch, Raw::Switch(switch)) => Ok(Value::Switch(switch)),
            (Self::Switch, Raw::Plain(text)) => match text.as_str() {
                "true" => Ok(Value::Switch(true)),
                "false" => Ok(Value::Switch(false)),
                _ => Err(format!("\"{text}\" is neither true nor false")),
            },
            (Self::Whole(from, to), Raw::Whole(number)) => {
                let found = number.filter(|n| (from..=to).contains(n)).map(Value::Whole);
                found.ok_or_else(|| "the number is out of range".into())
            }
            (Self::Whole(..), Raw::Plain(text)) => self.read(Raw::Whole(text.parse().ok())),
            (Self::List, Raw::List(items)) if items.iter().all(|item| !item.is_empty()) => Ok(Value::List(items)),
            (Self::List, Raw::List(_)) => Err("an item is empty".into()),
            (Self::List, Raw::Plain(text)) => self.read(Raw::List(text.split(',').map(|t| t.trim().into()).collect())),
            (Self::Paths, raw) => match Self::List.read(raw)? {
                Value::List(items) => match items.iter().find(|item| !item.starts_with('/')) {
                    Some(item) => Err(format!("\"{item}\" is not an absolute path")),
                    None => Ok(Value::List(items)),
                },
                other => Ok(other),
            },
            (Self::Recipients, raw) => match Self::List.read(raw)? {
                Value::List(items) => Recipients::parse(&items).map(|_| Value::List(items)),
                other => Ok(other),
            },
            (Self::Switch | Self::Whole(..) | Self::List, other) => Err(format!("it is {}", other.name())),
            (_, Raw::Text(text) | Raw::Plain(text)) if !text.trim().is_empty() && !text.contains('\0') => {
                self.read_text(text)
            }
            (_, Raw::Text(_) | Raw::Plain(_)) => Err("it is empty".into()),
            (_, other) => Err(format!("it is {}", other.name())),
        }
    }

    fn read_text(self, text: String) -> Result<Value, String> {
        match self {
            Self::Url => RepositoryUrl::read(&text).map(Value::Url),
            Self::Endpoint if text.contains('@') => Err("credentials do not belong into the address".into()),
            Self::Endpoint if !["http://", "https://"].iter().any(|scheme| text.starts_with(scheme)) => {
                Err(format!("\"{text}\" does not begin with http:// or https://"))
            }
            Self::Connection => Ok(Value::Connection(Connection::new(text))),
            Self::Listen if text.parse::<SocketAddr>().is_err() => {
                Err(format!("\"{text}\" is not an IP address with a port"))
            }
            Self::Path if !text.starts_with('/') => Err(format!("\"{text}\" is not an absolute path")),
            Self::Size => human::parse_size(&text).map(Value::Size).map_err(|e| e.to_string()),
            Self::Time => match human::parse_duration(&text) {
                Ok(Duration::ZERO) => Err("no time at all would always be over".into()),
                other => other.map(Value::Time).map_err(|e| e.to_string()),
            },
            Self::Zone if text.parse::<chrono_tz::Tz>().is_err() => Err(format!("\"{text}\" is not a time zone")),
            Self::Choice(words) if !words.contains(&text.as_str()) => Err(format!("\"{text}\" is not among them")),
            Self::Compression | Self::Compressions => {
                let level = |text: &str| text.parse().ok().filter(|level| LEVELS.contains(level));
                let levels = text.strip_prefix("zstd").and_then(|rest| match rest.strip_prefix(':') {
                    None => rest.is_empty().then_some(Levels::from(1)),
                    Some(rest) => match rest.split_once("..").filter(|_| self == Self::Compressions) {
                        None => level(rest).map(Levels::from),
                        Some((from, to)) => Some(Levels { fast: level(from)?, thorough: level(to)? }),
                    },
                });
                let levels = levels.filter(|levels| levels.fast <= levels.thorough);
                levels.map(Value::Compression).ok_or_else(|| format!("\"{text}\" is not a compression"))
            }
            _ => Ok(Value::Text(text)),
        }
    }
}

impl Raw {
    fn name(&self) -> &'static str {
        match self {
            Self::Plain(_) | Self::Text(_) => "a text",
            Self::Whole(_) => "a number",
            Self::Switch(_) => "a boolean",
            Self::List(_) => "a list",
            Self::Other(name) => name,
        }
    }
}

/// As it would be written, without the quotes; secrets hidden.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Url(url) => url.fmt(f),
            Self::Connection(connection) => connection.fmt(f),
            Self::Switch(switch) => switch.fmt(f),
            Self::Whole(number) => number.fmt(f),
            Self::Size(bytes) => f.write_str(&human::size(*bytes)),
            Self::Time(length) => f.write_str(&human::duration(*length)),
            Self::Compression(Levels { fast, thorough }) if fast == thorough => write!(f, "zstd:{fast}"),
            Self::Compression(Levels { fast, thorough }) => write!(f, "zstd:{fast}..{thorough}"),
            Self::List(items) => f.write_str(&items.join(", ")),
        }
    }
}

impl Value {
    /// The value in JSON: sizes in bytes, times in seconds, secrets hidden.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        match self {
            Self::Switch(switch) => (*switch).into(),
            Self::Whole(number) | Self::Size(number) => (*number).into(),
            Self::Time(length) => length.as_secs_f64().into(),
            Self::List(items) => items.clone().into(),
            text => text.to_string().into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_refuses_what_it_cannot_mean() {
        let text = |t: &str| Raw::Text(t.into());
        for (kind, raw) in [
            (Kind::Text, text(" ")),
            (Kind::Text, Raw::Whole(Some(1))),
            (Kind::Endpoint, text("localhost:9000")),
            (Kind::Endpoint, text("https://key:hush@localhost")),
            (Kind::Listen, text("localhost:9187")),
            (Kind::Listen, text("127.0.0.1")),
            (Kind::Path, text("data")),
            (Kind::Path, text("~/data")),
            (Kind::Switch, text("true")),
            (Kind::Switch, Raw::Plain("yes".into())),
            (Kind::Whole(1, 64), Raw::Whole(Some(65))),
            (Kind::Whole(1, 64), Raw::Whole(None)),
            (Kind::Whole(1, 64), text("4")),
            (Kind::Time, text("0s")),
            (Kind::Time, Raw::Whole(Some(60))),
            (Kind::Choice(&["a", "b"]), text("c")),
            (Kind::Compression, text("zstd:20")),
            (Kind::Compression, text("lz4")),
            (Kind::Compression, text("zstd3")),
            (Kind::Compression, text("zstd:1..3")),
            (Kind::Compressions, text("zstd:3..1")),
            (Kind::Compressions, text("zstd:1..20")),
            (Kind::Compressions, text("zstd:..3")),
            (Kind::List, text("a")),
            (Kind::Zone, text("CEST")),
            (Kind::Zone, text("Berlin")),
            (Kind::Paths, text("/a")),
            (Kind::Paths, Raw::List(vec!["/a".into(), "etc".into()])),
            (Kind::List, Raw::List(vec![String::new()])),
            (Kind::Recipients, text("age1x")),
            (Kind::Recipients, Raw::List(vec!["age-secret-key-1hush".into()])),
        ] {
            let told = kind.read(raw.clone()).expect_err("a mistake");
            assert!(!told.contains("hush"), "{kind:?} {raw:?}");
        }
    }

    #[test]
    fn plain_text_means_what_the_key_takes() {
        let plain = |kind: Kind, t: &str| kind.read(Raw::Plain(t.into())).unwrap();
        assert_eq!(plain(Kind::Whole(1, 64), "8"), Value::Whole(8));
        assert_eq!(plain(Kind::Switch, "true"), Value::Switch(true));
        assert_eq!(plain(Kind::List, "a, b"), Value::List(vec!["a".into(), "b".into()]));
        assert_eq!(plain(Kind::Compression, "zstd"), Value::Compression(1.into()));
        assert_eq!(plain(Kind::Compression, "zstd:19"), Value::Compression(19.into()));
        assert_eq!(plain(Kind::Compressions, "zstd:3"), Value::Compression(3.into()));
        let range = plain(Kind::Compressions, "zstd:1..6");
        assert_eq!(range, Value::Compression(Levels { fast: 1, thorough: 6 }));
        assert_eq!(range.to_string(), "zstd:1..6");
    }
}
