//! Reads the manifest that a server sends after a base backup, as it comes: one line a file, the hash of all lines
//! before it in the last. Its length does not matter.

use std::{ffi::OsString, mem, os::unix::ffi::OsStringExt, path::PathBuf};

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::hex;
use crate::error::{Error, Result};

/// No line is longer than this many bytes: a path has at most 4096.
const LINE: usize = 64 << 10;

/// A file as the server's manifest names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestFile {
    /// Below the data directory; a tablespace's as `pg_tblspc/<oid>/...`.
    pub path: PathBuf,
    /// Its length in bytes.
    pub size: u64,
    /// CRC-32C of its content.
    pub crc32c: u32,
}

/// Reads a manifest: [`ManifestReader::feed`] all of its bytes, then [`ManifestReader::finish`].
#[derive(Debug, Default)]
pub struct ManifestReader {
    line: Vec<u8>,
    hash: Sha256,
    /// Whether the last line was there, and right.
    ended: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Line {
    #[serde(rename = "Path")]
    path: Option<String>,
    #[serde(rename = "Encoded-Path")]
    encoded_path: Option<String>,
    #[serde(rename = "Size")]
    size: u64,
    #[serde(rename = "Checksum-Algorithm")]
    algorithm: String,
    #[serde(rename = "Checksum")]
    checksum: String,
}

impl ManifestReader {
    /// Takes the next bytes, and hands on each file that is whole.
    pub fn feed(&mut self, mut bytes: &[u8], mut each: impl FnMut(ManifestFile) -> Result<()>) -> Result<()> {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            self.line.extend_from_slice(&bytes[..=end]);
            bytes = &bytes[end + 1..];
            let mut line = mem::take(&mut self.line);
            if let Some(file) = self.line(&line)? {
                each(file)?;
            }
            line.clear();
            self.line = line;
        }
        self.line.extend_from_slice(bytes);
        if self.line.len() > LINE { Err(broken("has a line without end")) } else { Ok(()) }
    }

    fn line(&mut self, line: &[u8]) -> Result<Option<ManifestFile>> {
        if self.ended {
            return Err(broken("goes on after its end"));
        }
        if let Some(rest) = line.strip_prefix(b"\"Manifest-Checksum\": \"") {
            let hash = mem::take(&mut self.hash);
            if rest != format!("{}\"}}\n", hex(&hash.finalize())).as_bytes() {
                return Err(broken("does not have the hash that it tells"));
            }
            self.ended = true;
            return Ok(None);
        }
        self.hash.update(line);
        if !line.starts_with(b"{ \"Path\"") && !line.starts_with(b"{ \"Encoded-Path\"") {
            return Ok(None);
        }
        let text = line.trim_ascii_end();
        let parsed = serde_json::from_slice(text.strip_suffix(b",").unwrap_or(text));
        file(parsed.map_err(|e| broken("has a line that cannot be read").source(e))?).map(Some)
    }

    /// That was all: proves that it was whole.
    pub fn finish(self) -> Result<()> {
        if self.ended { Ok(()) } else { Err(broken("is cut short")) }
    }
}

fn file(line: Line) -> Result<ManifestFile> {
    let path = match (line.path, line.encoded_path) {
        (Some(path), _) => path.into(),
        (None, Some(digits)) => OsString::from_vec(bytes(&digits).ok_or_else(|| broken("has a broken path"))?).into(),
        (None, None) => return Err(broken("has a file without a path")),
    };
    let crc = bytes(&line.checksum).filter(|_| line.algorithm == "CRC32C").and_then(|b| b.try_into().ok());
    let crc32c = u32::from_le_bytes(crc.ok_or_else(|| broken("has a checksum that is no CRC-32C"))?);
    Ok(ManifestFile { path, size: line.size, crc32c })
}

fn bytes(digits: &str) -> Option<Vec<u8>> {
    let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let digits = digits.as_bytes();
    digits.len().is_multiple_of(2).then(|| digits.chunks(2).map(pair).collect()).flatten()
}

fn broken(how: &str) -> Error {
    Error::damaged(format!("the manifest that the server sent {how}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::{
        Lsn, SystemId, TimelineId, Version,
        backup_manifest::{ManifestWriter, WalRange},
    };
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt, path::Path};

    fn manifest(version: u32, paths: &[&Path]) -> Vec<u8> {
        let mut writer = ManifestWriter::new(Vec::new(), Version(version), SystemId(7)).unwrap();
        for (index, path) in paths.iter().enumerate() {
            writer.file(path, index as u64, chrono::DateTime::UNIX_EPOCH, 0xDEAD_0000 + index as u32).unwrap();
        }
        writer.finish(&[WalRange { timeline: TimelineId::FIRST, start: Lsn(1), end: Lsn(2) }]).unwrap()
    }

    fn read(bytes: &[u8], step: usize) -> Result<Vec<ManifestFile>> {
        let (mut reader, mut files) = (ManifestReader::default(), Vec::new());
        for piece in bytes.chunks(step) {
            reader.feed(piece, |file| {
                files.push(file);
                Ok(())
            })?;
        }
        reader.finish().map(|()| files)
    }

    #[test]
    fn is_read_as_it_is_written_however_it_is_cut() {
        let paths = [Path::new("PG_VERSION"), Path::new("a \"b\"\n{ \"Path\""), Path::new(OsStr::from_bytes(b"\xFF"))];
        for version in [14, 17] {
            let text = manifest(version, &paths);
            for step in [1, 7, 4096] {
                let files = read(&text, step).unwrap();
                assert_eq!(files.iter().map(|f| f.path.as_path()).collect::<Vec<_>>(), paths);
                assert_eq!((files[2].size, files[2].crc32c), (2, 0xDEAD_0002));
            }
        }
    }

    #[test]
    fn every_changed_byte_and_every_cut_is_seen() {
        let text = manifest(17, &[Path::new("PG_VERSION"), Path::new("base/1/2")]);
        for at in 0..text.len() {
            let mut changed = text.clone();
            changed[at] ^= 1;
            assert!(read(&changed, 100).is_err(), "{at}: {}", String::from_utf8_lossy(&changed));
            assert!(read(&text[..at], 100).is_err(), "{at}");
        }
        let twice = [text.clone(), b"\n".to_vec()].concat();
        assert!(read(&twice, 100).is_err());
    }
}
