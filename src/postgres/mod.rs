//! What PostgreSQL is: its addresses, names, files and rules. Knows nothing of repositories.

/// Serialises a type by its `Display` and reads it by its `FromStr`.
macro_rules! text_in_json {
    ($type:ty) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }
        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str> as serde::Deserialize>::deserialize(from)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

pub(crate) use text_in_json;

pub mod account;
pub mod archive_status;
pub mod backup_label;
pub mod backup_manifest;
pub mod configuration;
pub mod conninfo;
pub mod control;
pub mod datadir;
pub mod history;
pub mod incremental;
pub mod installation;
pub mod installed;
pub mod log;
pub mod lsn;
pub mod page;
pub mod pg_wal;
pub mod platform;
pub mod prerequisites;
pub mod relation;
pub mod replication;
pub mod segment;
pub mod server;
mod service;
pub mod settings;
pub mod sql;
mod tls;
pub mod version;

pub use account::Account;
pub use conninfo::Conninfo;
pub use control::{ControlFile, RequiredSettings};
pub use history::{HistoryEntry, TimelineHistory};
pub use lsn::Lsn;
pub use segment::{SegmentName, SegmentSize, WalFile};
pub use version::Version;

use std::{fmt, num::NonZeroU32, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A timeline's number: 1 after `initdb`, and a new one with each promotion.
///
/// File names write it as eight hexadecimal digits; `recovery_target_timeline` and people in decimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TimelineId(NonZeroU32);

impl TimelineId {
    /// The first timeline of every system.
    pub const FIRST: Self = Self(NonZeroU32::MIN);

    /// The timeline of that number; 0 is none.
    pub fn new(number: u32) -> Result<Self> {
        NonZeroU32::new(number)
            .map(Self)
            .ok_or_else(|| Error::invalid("timeline 0 does not exist; timelines are counted from 1"))
    }

    /// Its number.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0.get()
    }

    /// As file names have it: eight hexadecimal digits.
    #[must_use]
    pub fn hex(self) -> String {
        format!("{:08X}", self.0)
    }
}

impl fmt::Display for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for TimelineId {
    type Err = Error;

    /// Reads the decimal form.
    fn from_str(text: &str) -> Result<Self> {
        text.parse::<NonZeroU32>().map(Self).map_err(|_| {
            Error::invalid(format!("\"{text}\" is not a timeline number"))
                .hint("give it in decimal, as in --timeline 2")
        })
    }
}

/// A system identifier: the 64-bit number that `initdb` gives to one system (`pg_control`, `xlp_sysid`).
///
/// In JSON it is a string of decimal digits, because it does not fit a JavaScript number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SystemId(pub u64);

impl fmt::Display for SystemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for SystemId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        text.parse().map(Self).map_err(|_| Error::invalid(format!("\"{text}\" is not a system identifier")))
    }
}

text_in_json!(SystemId);
