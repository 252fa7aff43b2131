//! The names that people and paths use: clusters, systems with their incarnations, backups.

use std::{fmt, str::FromStr};

use chrono::{DateTime, NaiveDateTime, SubsecRound, Utc};

use crate::{
    error::{Error, Result},
    postgres::{SystemId, text_in_json},
};

/// The name a DBA gives to one PostgreSQL service over its whole life, such as `main`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterName(String);

impl ClusterName {
    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ClusterName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        plain(text, "cluster").map(Self)
    }
}

text_in_json!(ClusterName);

/// A name that people give: it stands in paths, keys and variables as it is.
fn plain(text: &str, of: &str) -> Result<String> {
    let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    if plain && (1..=64).contains(&text.len()) {
        Ok(text.to_owned())
    } else {
        Err(Error::invalid(format!("\"{text}\" cannot be the name of a {of}"))
            .hint("use 1 to 64 letters, digits, - and _"))
    }
}

/// What the configuration calls one of several repositories: `[repository.NAME]`; `first` is the one of `[repository]`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RepositoryName(String);

impl RepositoryName {
    /// The name of the first: the one that has no other.
    pub const FIRST: &str = "first";

    /// That of the first.
    #[must_use]
    pub fn first() -> Self {
        Self(Self::FIRST.to_owned())
    }

    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RepositoryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for RepositoryName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        plain(text, "repository").map(Self)
    }
}

text_in_json!(RepositoryName);

/// One system in one of its incarnations: the folder that holds its archive and its backups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation {
    /// The system.
    pub system: SystemId,
    /// 1 at first. The next one is opened by a server that would otherwise write other WAL under old names.
    pub number: u32,
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.system, self.number)
    }
}

impl FromStr for Incarnation {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        text.split_once('-')
            .and_then(|(system, number)| Some(Self { system: system.parse().ok()?, number: number.parse().ok()? }))
            .filter(|parsed| parsed.number > 0 && parsed.to_string() == text)
            .ok_or_else(|| Error::invalid(format!("\"{text}\" is not <system identifier>-<incarnation>")))
    }
}

text_in_json!(Incarnation);

/// A backup's id: the second in which it was begun, in UTC, as in `20261121T014500Z`. Ids sort by time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackupId(DateTime<Utc>);

/// How names tell a second, in UTC.
const SECOND: &str = "%Y%m%dT%H%M%SZ";

impl BackupId {
    /// The id of a backup that begins at that instant.
    #[must_use]
    pub fn at(instant: DateTime<Utc>) -> Self {
        Self(instant.trunc_subsecs(0))
    }

    /// The instant it tells.
    #[must_use]
    pub fn instant(self) -> DateTime<Utc> {
        self.0
    }
}

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.format(SECOND).fmt(f)
    }
}

impl FromStr for BackupId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        NaiveDateTime::parse_from_str(text, SECOND)
            .map(|naive| Self(naive.and_utc()))
            .ok()
            .filter(|id| id.to_string() == text)
            .ok_or_else(|| {
                Error::invalid(format!("\"{text}\" is not a backup's id"))
                    .hint("ids look like 20261121T014500Z; walden list shows them")
            })
    }
}

text_in_json!(BackupId);

/// The name of a roll-up without what comes after the point: `<log>-<number>-<first>-<last>-<until>`, or
/// `<log>-<number>`. Later numbers sort higher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RollUpName {
    /// The middle eight digits of the names of its segments.
    pub log: u32,
    /// Which one of that log it is.
    pub number: u32,
    /// What is known to have ended; none where that is not certain.
    pub row: Option<EndedRow>,
}

/// An unbroken row of segments of one log in which no transaction ended after a certain time, and none is left prepared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EndedRow {
    /// The last eight digits of the name of its first segment.
    pub first: u32,
    /// The last eight digits of the name of its last segment.
    pub last: u32,
    /// That time, up to the next full second.
    pub until: DateTime<Utc>,
}

impl fmt::Display for RollUpName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08X}-{}", self.log, self.number)?;
        match self.row {
            Some(EndedRow { first, last, until }) => write!(f, "-{first:08X}-{last:08X}-{}", until.format(SECOND)),
            None => Ok(()),
        }
    }
}

impl FromStr for RollUpName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let hex = |text: &str| u32::from_str_radix(text, 16).ok();
        let parse = || {
            let parts: Vec<&str> = text.split('-').collect();
            let (log, number, row) = match parts.as_slice() {
                [log, number] => (log, number, None),
                [log, number, first, last, until] => {
                    let until = NaiveDateTime::parse_from_str(until, SECOND).ok()?.and_utc();
                    (log, number, Some(EndedRow { first: hex(first)?, last: hex(last)?, until }))
                }
                _ => return None,
            };
            let name = Self { log: hex(log)?, number: number.parse().ok()?, row };
            Some(name).filter(|name| name.to_string() == text)
        };
        parse().ok_or_else(|| Error::invalid(format!("\"{text}\" is not the name of a roll-up")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        let id: BackupId = "20261121T014500Z".parse().unwrap();
        assert_eq!(id.to_string(), "20261121T014500Z");
        assert!("20261121T014561Z".parse::<BackupId>().is_err());
        assert!("../etc".parse::<BackupId>().is_err());
        let incarnation: Incarnation = "7412345678901234567-2".parse().unwrap();
        assert_eq!((incarnation.system.0, incarnation.number), (7_412_345_678_901_234_567, 2));
        for text in ["7-0", "7", "-1", "07-1", "7-01", "7-1-1"] {
            assert!(text.parse::<Incarnation>().is_err(), "{text}");
        }
        for text in ["0000001F-2", "0000001F-1-00000003-000000FF-20261121T014500Z"] {
            assert_eq!(text.parse::<RollUpName>().unwrap().to_string(), text);
        }
        for text in ["1F-2", "0000001F", "0000001F-2-", "0000001F-02", "0000001F-1-3-000000FF-20261121T014500Z"] {
            assert!(text.parse::<RollUpName>().is_err(), "{text}");
        }
        for text in ["", "a/b", "a b", "..", "ä"] {
            assert!(text.parse::<ClusterName>().is_err(), "{text}");
        }
    }
}
