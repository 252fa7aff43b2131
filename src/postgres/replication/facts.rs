//! What a server says about itself to a role that may replicate and nothing else.

use super::{Identity, Replication};
use crate::{
    error::{Error, Result},
    postgres::{SegmentSize, Version, control::WalLevel, sql::ArchiveMode},
};

/// What a server says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Which system it is.
    pub identity: Identity,
    /// Its major version.
    pub version: Version,
    /// Whether it is a standby, or still in recovery.
    pub in_recovery: bool,
    /// `wal_level`.
    pub wal_level: WalLevel,
    /// `archive_mode`.
    pub archive_mode: ArchiveMode,
    /// The size of a WAL segment.
    pub segment_size: SegmentSize,
    /// The size of a data page in bytes.
    pub block_size: u32,
    /// Pages in one file of a relation.
    pub relation_segment_blocks: u32,
    /// Whether pages have checksums.
    pub data_checksums: bool,
}

impl Replication {
    /// Asks for all of it.
    pub async fn facts(&mut self) -> Result<Facts> {
        let block_size = self.show("block_size").await?.parse().ok().filter(|size| *size > 0);
        let block_size = block_size.ok_or_else(|| Error::failed("the server tells no block_size"))?;
        let relation_segment = self.bytes("segment_size").await?;
        Ok(Facts {
            identity: self.identify_system().await?,
            version: Version::from_server_number(self.version_number())?,
            in_recovery: self.show("in_hot_standby").await? == "on",
            wal_level: self.show("wal_level").await?.parse()?,
            archive_mode: self.show("archive_mode").await?.parse()?,
            segment_size: SegmentSize::new(self.bytes("wal_segment_size").await?)?,
            block_size,
            relation_segment_blocks: u32::try_from(relation_segment / u64::from(block_size)).unwrap_or(u32::MAX),
            data_checksums: self.show("data_checksums").await? == "on",
        })
    }

    async fn bytes(&mut self, setting: &str) -> Result<u64> {
        let text = self.show(setting).await?;
        bytes(&text).ok_or_else(|| Error::failed(format!("the server says {setting} = \"{text}\", which is no size")))
    }
}

/// A size as `SHOW` writes it: `8kB`, `16MB`, `1GB`.
fn bytes(text: &str) -> Option<u64> {
    let unit = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let factor = match &text[unit..] {
        "" | "B" => 1,
        "kB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        "TB" => 1 << 40,
        _ => return None,
    };
    text[..unit].parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn sizes_are_read_as_they_are_shown() {
        assert_eq!(bytes("16MB"), Some(16 << 20));
        assert_eq!(bytes("1GB"), Some(1 << 30));
        assert_eq!(bytes("8192"), Some(8192));
        for text in ["", "MB", "16mb", "-1", "99999999999999999999", "99999999999GB"] {
            assert_eq!(bytes(text), None, "{text}");
        }
    }
}
