//! The manifest of a backup: every file of the cluster at that moment, and where its bytes lie.
//!
//! One manifest is enough for a restore. What did not change since an older backup is named where it already lies:
//! a layer can point into a part of another backup.

use std::{
    collections::HashMap,
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{
    documents::Tablespace,
    files::Files,
    names::{BackupId, Incarnation},
};
use crate::{
    error::{Error, Result},
    seal::{Blake3, SeekTable},
};

/// What a backup holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The format.
    pub format: u32,
    /// The backup.
    pub backup: BackupId,
    /// The system it is a backup of.
    pub incarnation: Incarnation,
    /// The size of a page in bytes.
    pub block_size: u32,
    /// Where and when the files were read; absent for files that a server has sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// Tablespaces outside the data directory.
    pub tablespaces: Vec<Tablespace>,
    /// Directories below the data directory, parents before children.
    pub directories: Vec<Directory>,
    /// Every part that a file points into, those of older backups too.
    pub parts: Vec<Part>,
    /// The files, ordered by path. `backup_label` and `tablespace_map` are among them.
    pub files: Files,
}

/// The host whose files were read, and the time by the clock of each of its file systems before the first was read:
/// what has not been written since then need not be read again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// A name of the host that no other has.
    pub host: String,
    /// The file systems.
    pub file_systems: Vec<FileSystem>,
}

/// A file system of that host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSystem {
    /// Its device number.
    pub device: u64,
    /// The time that a file written there just before the first was read has got.
    pub began: DateTime<Utc>,
}

/// A directory to make, even when nothing lies in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directory {
    /// Below the data directory; a tablespace's as `pg_tblspc/<oid>/...`.
    #[serde(with = "path_text")]
    pub path: PathBuf,
    /// Its permissions.
    pub mode: u32,
}

/// An object of the repository that holds files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// The backup it belongs to.
    pub backup: BackupId,
    /// Its number there, from 1.
    pub number: u32,
    /// The length of the object in bytes, its seek table included.
    pub length: u64,
    /// BLAKE3 of the object up to its index, as it would be without encryption.
    pub blake3: Blake3,
    /// Its frames: `[stored, content]` in bytes each.
    pub frames: SeekTable,
}

/// A file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Below the data directory; a tablespace's as `pg_tblspc/<oid>/...`.
    #[serde(with = "path_text")]
    pub path: PathBuf,
    /// Its length in bytes.
    pub size: u64,
    /// When it was last changed.
    pub mtime: DateTime<Utc>,
    /// Its permissions.
    pub mode: u32,
    /// What proves its content.
    pub blake3: Blake3,
    /// What `blake3` is taken of.
    #[serde(default, skip_serializing_if = "Hashed::is_content")]
    pub hashed: Hashed,
    /// CRC-32C of its content, which PostgreSQL's `backup_manifest` wants.
    pub crc32c: u32,
    /// What tells it apart on its file system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stat: Option<FileStat>,
    /// Where the content lies, oldest first: of a block that several layers hold, the last one's counts, and a block
    /// in none is zeros. None for an empty file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<Layer>,
}

/// What a file's `blake3` is taken of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hashed {
    /// Its bytes.
    #[default]
    Content,
    /// The hashes of its blocks: see [`crate::seal::BlockMap::root`].
    Blocks,
}

impl Hashed {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
    fn is_content(&self) -> bool {
        *self == Self::Content
    }
}

/// What, with path, size and time of change, tells a file apart on its file system. No program can set its `ctime`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStat {
    /// When it or what is known of it was last changed.
    pub ctime: DateTime<Utc>,
    /// Its inode.
    pub inode: u64,
    /// The device it lies on.
    pub device: u64,
}

/// One stored version of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// The backup whose part holds it.
    pub backup: BackupId,
    /// The number of that part.
    pub part: u32,
    /// Where the tar member's bytes begin in the content of the part.
    pub offset: u64,
    /// How many bytes the member has.
    pub length: u64,
    /// What the member is.
    #[serde(default, skip_serializing_if = "LayerKind::is_whole")]
    pub kind: LayerKind,
    /// Where the hashes of its blocks lie in the index of the part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub map: Option<LayerMap>,
}

/// The hashes of a layer's blocks, in the index of its part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerMap {
    /// Where they begin, from the first byte of the maps.
    pub offset: u64,
    /// Of how many blocks. Of a layer of changed blocks their numbers come first, 4 bytes each; then 20 bytes a block.
    pub blocks: u32,
}

/// What a layer's bytes are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerKind {
    /// The whole file.
    #[default]
    Whole,
    /// Changed blocks in PostgreSQL's incremental file format.
    Incremental,
}

impl LayerKind {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
    fn is_whole(&self) -> bool {
        *self == Self::Whole
    }
}

impl Manifest {
    /// Writes it as JSON, one line a file.
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let mut to = io::BufWriter::with_capacity(64 << 10, to);
        let mut header = serde_json::to_value(self.shallow()).map_err(io::Error::other)?;
        if let Some(fields) = header.as_object_mut() {
            fields.remove("files");
        }
        let header = serde_json::to_string(&header).map_err(io::Error::other)?;
        write!(to, "{},\n\"files\":[", header.trim_end_matches('}'))?;
        for (index, file) in self.files.iter().enumerate() {
            to.write_all(if index == 0 { b"\n" } else { b",\n" })?;
            serde_json::to_writer(&mut to, &file).map_err(io::Error::other)?;
        }
        to.write_all(b"\n]}\n")?;
        to.flush()
    }

    fn shallow(&self) -> Self {
        Self {
            format: self.format,
            backup: self.backup,
            incarnation: self.incarnation,
            block_size: self.block_size,
            origin: self.origin.clone(),
            tablespaces: self.tablespaces.clone(),
            directories: self.directories.clone(),
            parts: self.parts.clone(),
            files: Files::default(),
        }
    }

    /// Reads it, and proves that nothing in it leads out of the data directory.
    pub fn read(from: impl Read) -> Result<Self> {
        let mut manifest: Self = serde_json::from_reader(io::BufReader::with_capacity(256 << 10, from))
            .map_err(|e| Error::damaged("the manifest cannot be read").source(e))?;
        let directories = manifest.directories.iter().map(|directory| directory.path.as_path());
        manifest.files.paths().chain(directories).try_for_each(stays_below)?;
        manifest.files.sort();
        if !manifest.block_size.is_power_of_two() {
            return Err(Error::damaged(format!("the manifest names pages of {} bytes", manifest.block_size)));
        }
        Ok(manifest)
    }

    /// About how many bytes of the repository a restore reads: of each part as much as the layers have of its content.
    #[must_use]
    pub fn stored(&self) -> u64 {
        let mut wanted: HashMap<_, u64> = HashMap::new();
        for layer in self.files.iter().flat_map(|file| file.layers) {
            let wanted = wanted.entry((layer.backup, layer.part)).or_default();
            *wanted = wanted.saturating_add(layer.length);
        }
        let share = |part: &Part| {
            let wanted = wanted.get(&(part.backup, part.number)).copied().unwrap_or(0);
            let content = part.frames.content().max(wanted).max(1);
            (u128::from(part.length) * u128::from(wanted) / u128::from(content)) as u64
        };
        self.parts.iter().map(share).fold(0, u64::saturating_add)
    }
}

/// Refuses a path that is absolute or has `..` in it.
fn stays_below(path: &Path) -> Result<()> {
    let plain = |c: std::path::Component<'_>| matches!(c, std::path::Component::Normal(_));
    if path.as_os_str().is_empty() || !path.components().all(plain) {
        return Err(Error::damaged(format!("the manifest names the path \"{}\"", path.display())));
    }
    Ok(())
}

/// A path in JSON: a string, or `{"hex": "..."}` where it is not UTF-8.
mod path_text {
    use std::{
        ffi::OsString,
        os::unix::ffi::{OsStrExt, OsStringExt},
        path::{Path, PathBuf},
    };

    use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Text {
        Plain(String),
        Bytes { hex: String },
    }

    pub fn serialize<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
        match path.to_str() {
            Some(text) => to.serialize_str(text),
            None => {
                let hex = path.as_os_str().as_bytes().iter().map(|b| format!("{b:02x}")).collect();
                Text::Bytes { hex }.serialize(to)
            }
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
        match Text::deserialize(from)? {
            Text::Plain(text) => Ok(text.into()),
            Text::Bytes { hex } => {
                let digits = hex.as_bytes().chunks(2).map(|pair| {
                    let text = std::str::from_utf8(pair).ok().filter(|t| t.len() == 2)?;
                    u8::from_str_radix(text, 16).ok()
                });
                let bytes =
                    digits.collect::<Option<Vec<u8>>>().ok_or_else(|| de::Error::custom("a path's hex is broken"))?;
                Ok(OsString::from_vec(bytes).into())
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::seal::blake3;
    use std::os::unix::ffi::OsStringExt;

    fn file(path: impl Into<PathBuf>) -> File {
        let backup = "20261121T014500Z".parse().unwrap();
        File {
            path: path.into(),
            size: 5,
            mtime: DateTime::UNIX_EPOCH,
            mode: 0o600,
            blake3: blake3(b"hello"),
            crc32c: 7,
            hashed: Hashed::Content,
            stat: None,
            layers: vec![Layer { backup, part: 1, offset: 512, length: 5, kind: LayerKind::Whole, map: None }],
        }
    }

    pub(in crate::repository) fn manifest(files: Vec<File>) -> Manifest {
        Manifest {
            format: 1,
            backup: "20261121T014500Z".parse().unwrap(),
            incarnation: "7-1".parse().unwrap(),
            block_size: 8192,
            origin: None,
            tablespaces: vec![],
            directories: vec![Directory { path: "base".into(), mode: 0o700 }],
            parts: vec![],
            files: files.into_iter().collect(),
        }
    }

    #[test]
    fn is_read_as_it_is_written_with_one_line_a_file() {
        let odd = std::ffi::OsString::from_vec(b"base/\xff".to_vec());
        for files in [vec![], vec![file("PG_VERSION")], vec![file("base/1"), file(odd)]] {
            let manifest = manifest(files);
            let mut text = Vec::new();
            manifest.write(&mut text).unwrap();
            assert_eq!(text.iter().filter(|b| **b == b'\n').count(), manifest.files.len() + 3);
            assert_eq!(Manifest::read(&text[..]).unwrap(), manifest);
        }
    }

    #[test]
    fn a_path_that_leads_out_is_refused() {
        for path in ["../x", "/etc/passwd", "base/../../x", ""] {
            let mut text = Vec::new();
            manifest(vec![file(path)]).write(&mut text).unwrap();
            assert!(Manifest::read(&text[..]).is_err(), "{path}");
        }
    }
}
