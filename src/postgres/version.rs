//! PostgreSQL's versions as they show in numbers: `server_version_num`, page magic, control file version.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A PostgreSQL major version, such as 17.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Version(pub u32);

/// (major, `XLOG_PAGE_MAGIC`) of `src/include/access/xlog_internal.h`; 19 is from its beta and release candidate.
const PAGE_MAGIC: &[(u32, u16)] =
    &[(13, 0xD106), (14, 0xD10D), (15, 0xD110), (16, 0xD113), (17, 0xD116), (18, 0xD118), (19, 0xD120), (19, 0xD121)];

impl Version {
    /// The oldest version that Walden works with.
    pub const OLDEST: Self = Self(14);
    /// The newest version that Walden was run with.
    pub const NEWEST: Self = Self(18);

    /// The version whose WAL pages carry `magic`.
    #[must_use]
    pub fn from_page_magic(magic: u16) -> Option<Self> {
        PAGE_MAGIC.iter().find(|(_, m)| *m == magic).map(|(major, _)| Self(*major))
    }

    /// From `server_version_num`, for instance 170011.
    pub fn from_server_number(number: u32) -> Result<Self> {
        let version = Self(number / 10_000);
        if version < Self::OLDEST {
            return Err(Error::invalid(format!("PostgreSQL {version} is too old"))
                .hint(format!("Walden works with PostgreSQL {} and later", Self::OLDEST)));
        }
        Ok(version)
    }

    /// From `PG_VERSION`, the file in the data directory.
    pub fn from_pg_version(text: &str) -> Result<Self> {
        text.trim()
            .parse()
            .map(Self)
            .map_err(|_| Error::invalid(format!("PG_VERSION says \"{}\", which is no major version", text.trim())))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
