//! PostgreSQL's `backup_manifest` (`src/backend/backup/backup_manifest.c`): what `pg_verifybackup` holds a data
//! directory against. Written and read file by file, so that its length does not matter.

mod reader;

use std::{io::Write, os::unix::ffi::OsStrExt, path::Path};

use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};

pub use self::reader::{ManifestFile, ManifestReader};
use super::{Lsn, SystemId, TimelineId, Version};
use crate::error::{Error, Result};

/// The file's name at the top of the data directory. It does not name itself.
pub const BACKUP_MANIFEST: &str = "backup_manifest";

/// WAL that recovery needs before the copy is consistent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalRange {
    /// The timeline it was written on.
    pub timeline: TimelineId,
    /// Its first byte.
    pub start: Lsn,
    /// The byte after its last.
    pub end: Lsn,
}

/// Writes a `backup_manifest`: [`ManifestWriter::new`], then each file, then [`ManifestWriter::finish`].
#[derive(Debug)]
pub struct ManifestWriter<W: Write> {
    to: W,
    hash: Sha256,
    files: u64,
}

impl<W: Write> ManifestWriter<W> {
    /// Begins the manifest as the server of that version writes it: format 1 up to 16, 2 with the system
    /// identifier from 17 on. `to` should be buffered.
    pub fn new(to: W, version: Version, system: SystemId) -> Result<Self> {
        let mut writer = Self { to, hash: Sha256::new(), files: 0 };
        if version.0 < 17 {
            writer.put("{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [")?;
        } else {
            let head = "{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n";
            writer.put(&format!("{head}\"System-Identifier\": {system},\n\"Files\": ["))?;
        }
        Ok(writer)
    }

    /// Adds a file by its path below PGDATA, its size in bytes and the CRC-32C of its content.
    pub fn file(&mut self, path: &Path, size: u64, mtime: DateTime<Utc>, crc32c: u32) -> Result<()> {
        let name = match path.to_str() {
            Some(text) => format!("\"Path\": {}", serde_json::Value::from(text)),
            None => format!("\"Encoded-Path\": \"{}\"", hex(path.as_os_str().as_bytes())),
        };
        // PostgreSQL prints the CRC as the bytes of a little-endian number.
        let checksum = hex(&crc32c.to_le_bytes());
        let modified = mtime.format("%Y-%m-%d %H:%M:%S");
        let comma = if self.files == 0 { "" } else { "," };
        self.files += 1;
        self.put(&format!(
            "{comma}\n{{ {name}, \"Size\": {size}, \"Last-Modified\": \"{modified} GMT\", \
             \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"{checksum}\" }}"
        ))
    }

    /// Ends the manifest with the WAL it needs and its own checksum, and flushes it.
    pub fn finish(mut self, wal: &[WalRange]) -> Result<W> {
        self.put("\n],\n\"WAL-Ranges\": [")?;
        for (i, range) in wal.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            self.put(&format!(
                "{comma}\n{{ \"Timeline\": {}, \"Start-LSN\": \"{}\", \"End-LSN\": \"{}\" }}",
                range.timeline, range.start, range.end
            ))?;
        }
        self.put("\n],\n")?;
        let checksum = hex(&self.hash.finalize());
        let last = format!("\"Manifest-Checksum\": \"{checksum}\"}}\n");
        self.to.write_all(last.as_bytes()).and_then(|()| self.to.flush()).map_err(failed)?;
        Ok(self.to)
    }

    fn put(&mut self, text: &str) -> Result<()> {
        self.hash.update(text);
        self.to.write_all(text.as_bytes()).map_err(failed)
    }
}

fn failed(error: std::io::Error) -> Error {
    Error::failed(format!("write {BACKUP_MANIFEST}")).source(error)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{ffi::OsStr, str::FromStr};

    fn manifest(version: u32) -> String {
        let mut writer =
            ManifestWriter::new(Vec::new(), Version(version), SystemId(7_710_471_694_629_016_231)).unwrap();
        let time = DateTime::from_str("2026-11-21T04:08:06.9Z").unwrap();
        writer.file(Path::new("PG_VERSION"), 3, time, crc32c::crc32c(b"15\n")).unwrap();
        writer.file(Path::new("odd\n\"\\\u{1}"), 0, time, 0).unwrap();
        writer.file(Path::new(OsStr::from_bytes(b"\xFFx")), 0, time, 0).unwrap();
        let range = WalRange { timeline: TimelineId::FIRST, start: Lsn(0x200_0028), end: Lsn(0x200_0100) };
        String::from_utf8(writer.finish(&[range]).unwrap()).unwrap()
    }

    #[test]
    fn looks_as_postgresqls_own() {
        let text = manifest(15);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "{ \"PostgreSQL-Backup-Manifest-Version\": 1,");
        assert_eq!(
            lines[2],
            "{ \"Path\": \"PG_VERSION\", \"Size\": 3, \"Last-Modified\": \"2026-11-21 04:08:06 GMT\", \
             \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"8a744722\" },",
            "this line is from a manifest of pg_basebackup"
        );
        assert!(lines[4].contains("\"Encoded-Path\": \"ff78\""));
        assert_eq!(lines[7], "{ \"Timeline\": 1, \"Start-LSN\": \"0/2000028\", \"End-LSN\": \"0/2000100\" }");
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["Files"][1]["Path"], "odd\n\"\\\u{1}");
    }

    #[test]
    fn the_last_line_is_the_hash_of_those_before() {
        let text = manifest(17);
        assert!(text.contains("\"System-Identifier\": 7710471694629016231,\n"));
        let (before, last) = text.split_at(text.find("\"Manifest-Checksum\"").unwrap());
        assert!(last.contains(&hex(&Sha256::digest(before))));
    }
}
