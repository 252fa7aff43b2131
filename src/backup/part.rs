//! Parts: tar archives in zstd frames, closed by a seek table, written straight into an upload.
//!
//! A member that fits into what is left of a frame goes there; one that does not begins a frame of its own, so that
//! a file can be fetched without its neighbours. See docs/FORMAT.md.

use std::{
    io::{self, Write},
    os::unix::ffi::OsStrExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use chrono::{DateTime, Utc};
use tokio::runtime::Handle;

use crate::{
    error::{Error, Result},
    postgres::incremental::{IncrementalHeader, incremental_path},
    repository::{
        BackupId, BadPage, Copies, File, Layer, LayerBlocks, LayerKind, LayerMap, Part, PartIndex, PartName, System,
    },
    seal::{FRAME_CONTENT, FrameSize, FrameWriter, HashWriter, index_frame},
    store::{Put, bridge},
};

/// tar's unit.
const BLOCK: u64 = 512;

/// A part closes at the first file end past this many bytes of content, or when so many files are named in its index,
/// which is kept in memory until then.
const PART_CONTENT: u64 = 256 << 20;
const PART_FILES: usize = 8 << 10;

/// The parts of one backup, numbered as they are begun.
#[derive(Debug)]
pub struct Parts {
    system: System,
    backup: BackupId,
    level: i32,
    /// The number of the last that was begun.
    begun: AtomicU32,
}

impl Parts {
    /// The parts of `backup`, compressed at zstd's `level`.
    pub fn new(system: System, backup: BackupId, level: i32) -> Self {
        Self { system, backup, level, begun: AtomicU32::new(0) }
    }

    /// Begins the next part. Not on a thread that drives the runtime.
    pub fn begin(&self, runtime: &Handle) -> Result<PartWriter> {
        let number = self.begun.fetch_add(1, Ordering::Relaxed) + 1;
        let key = self.system.folder.part(self.backup, number)?;
        let upload = runtime.block_on(self.system.store.upload(&key))?;
        let to = bridge::UploadWriter::new(upload, runtime.clone());
        Ok(PartWriter { copies: self.system.copies.clone(), ..PartWriter::new(self.backup, number, to, self.level)? })
    }
}

/// A part that is being written.
#[derive(Debug)]
pub struct PartWriter {
    backup: BackupId,
    number: u32,
    frames: FrameWriter<HashWriter<bridge::UploadWriter>>,
    /// Bytes of the present member that are still to come.
    missing: u64,
    index: PartIndex,
    level: i32,
    /// Where this host keeps its block maps as well.
    copies: Option<Arc<Copies>>,
}

/// What the header of a member tells besides its name and size.
#[derive(Clone, Copy, Debug)]
pub struct Attributes {
    /// Permissions.
    pub mode: u32,
    /// When the file was last changed.
    pub mtime: DateTime<Utc>,
}

impl PartWriter {
    /// Part `number` of `backup`, to be written into `upload`.
    pub fn new(backup: BackupId, number: u32, upload: bridge::UploadWriter, level: i32) -> Result<Self> {
        let frames = FrameWriter::new(HashWriter::new(upload), level).map_err(failed)?;
        Ok(Self { backup, number, frames, missing: 0, index: PartIndex::default(), level, copies: None })
    }

    /// Whether the next file belongs into another part.
    pub fn is_full(&self) -> bool {
        self.frames.offset() >= PART_CONTENT || self.index.files.len() >= PART_FILES
    }

    /// Begins a file of exactly `size` bytes; they follow by [`PartWriter::data`]. Gives back where it will lie.
    pub fn begin(&mut self, path: &Path, size: u64, attributes: Attributes) -> Result<Layer> {
        self.begin_member(path, size, attributes, LayerKind::Whole)
    }

    /// Begins the changed blocks of a file; the blocks follow by [`PartWriter::data`], in the header's order.
    pub fn begin_changes(
        &mut self,
        path: &Path,
        changes: &IncrementalHeader,
        block_size: u32,
        attributes: Attributes,
    ) -> Result<Layer> {
        let size = changes.file_size(block_size);
        let layer = self.begin_member(&incremental_path(path), size, attributes, LayerKind::Incremental)?;
        self.data(&changes.to_bytes(block_size))?;
        Ok(layer)
    }

    fn begin_member(&mut self, path: &Path, size: u64, attributes: Attributes, kind: LayerKind) -> Result<Layer> {
        debug_assert_eq!(self.missing, 0, "the member before is not complete");
        if self.frames.pending() as u64 + BLOCK + size > FRAME_CONTENT as u64 {
            self.frames.cut().map_err(failed)?;
        }
        let header = header(path, size, attributes)?;
        self.frames.write_all(&header).map_err(failed)?;
        self.missing = size;
        Ok(Layer {
            backup: self.backup,
            part: self.number,
            offset: self.frames.offset(),
            length: size,
            kind,
            map: None,
        })
    }

    /// Its backup and its number.
    pub fn name(&self) -> PartName {
        (self.backup, self.number)
    }

    /// Where the next byte of content will lie.
    pub fn offset(&self) -> u64 {
        self.frames.offset()
    }

    /// Takes over a frame of another part as it is, with so many bytes of content: whole members, or the middle of one.
    pub fn take_frame(&mut self, frame: &[u8], content: u32) -> Result<()> {
        self.frames.pass(frame, content).map_err(failed)
    }

    /// Takes over a stretch of another part's content: whole members, or the middle of one.
    pub fn take(&mut self, content: &[u8]) -> Result<()> {
        self.frames.write_all(content).map_err(failed)
    }

    /// Notes in the index that a layer of a file was taken over to that place. Gives back the place of its map.
    pub fn note(&mut self, mut file: File, old: &Layer, offset: u64, blocks: Option<&LayerBlocks>) -> Option<LayerMap> {
        let map = blocks.map(|blocks| self.index.add(blocks));
        let (backup, part) = self.name();
        for layer in file.layers.iter_mut().filter(|layer| *layer == old) {
            *layer = Layer { backup, part, offset, map, ..old.clone() };
        }
        self.index.files.push(file);
        map
    }

    /// Notes a file that was stored here in the index, with the blocks of its newest layer when they are known; gives
    /// it back with the place of these.
    pub fn record(&mut self, mut file: File, blocks: Option<&LayerBlocks>, bad: &[BadPage]) -> File {
        if let (Some(layer), Some(blocks)) = (file.layers.last_mut(), blocks) {
            layer.map = Some(self.index.add(blocks));
        }
        self.index.files.push(file.clone());
        self.index.bad_pages.extend_from_slice(bad);
        file
    }

    /// The next bytes of the file.
    pub fn data(&mut self, bytes: &[u8]) -> Result<()> {
        debug_assert!(bytes.len() as u64 <= self.missing, "more bytes than the header tells");
        self.missing -= bytes.len() as u64;
        self.frames.write_all(bytes).map_err(failed)?;
        if self.missing == 0 {
            self.pad()?;
        }
        Ok(())
    }

    fn pad(&mut self) -> Result<()> {
        let over = self.frames.offset() % BLOCK;
        if over > 0 {
            self.frames.write_all(&[0; BLOCK as usize][..(BLOCK - over) as usize]).map_err(failed)?;
        }
        Ok(())
    }

    /// Ends the archive and makes the part appear in the repository.
    pub fn finish(mut self) -> Result<Part> {
        self.frames.write_all(&[0; 2 * BLOCK as usize]).map_err(failed)?;
        let (mut out, mut frames, _) = self.frames.finish().map_err(failed)?;
        let (blake3, _) = out.digest();
        if let Some(Err(error)) =
            self.copies.as_ref().map(|copies| copies.keep_maps((self.backup, self.number), &self.index))
        {
            tracing::warn!("the next backup cannot compare blocks of part {}: {error}", self.number);
        }
        let maps = self.index.maps().len();
        let bytes = self.index.into_bytes(blake3)?;
        let index = index_frame(&bytes, self.level).map_err(failed)?;
        frames.push(FrameSize { stored: index.len() as u32, content: 0 });
        out.write_all(&index).map_err(failed)?;
        out.write_all(&frames.to_bytes()).map_err(failed)?;
        let (_, length) = out.digest();
        let part = Part { backup: self.backup, number: self.number, length, blake3, frames };
        if let Some(Err(error)) = self.copies.map(|copies| copies.keep_part(&part, &bytes[..bytes.len() - maps])) {
            tracing::warn!("if this backup does not come to its end, part {} is stored again: {error}", part.number);
        }
        match out.into_inner().finish()? {
            Put::Created => Ok(part),
            Put::Exists => Err(Error::refused(format!(
                "part {} of backup {} is in the repository already: another program writes the same backup",
                self.number, self.backup
            ))),
        }
    }
}

/// The length of the header of the member of that name.
pub fn header_length(path: &Path) -> Result<u64> {
    let attributes = Attributes { mode: 0o600, mtime: DateTime::UNIX_EPOCH };
    Ok(header(path, 0, attributes)?.len() as u64)
}

fn failed(error: io::Error) -> Error {
    bridge::from_io(error, |e| Error::internal("compress a part").source(e))
}

/// The header of a regular file in POSIX's ustar format, preceded by GNU's long name where the name needs it.
fn header(path: &Path, size: u64, attributes: Attributes) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(BLOCK as usize);
    let mut header = tar::Header::new_ustar();
    if header.set_path(path).is_err() {
        let name = path.as_os_str().as_bytes();
        let mut long = tar::Header::new_gnu();
        long.set_entry_type(tar::EntryType::GNULongName);
        long.set_size(name.len() as u64 + 1);
        let told = long.set_path("././@LongLink");
        told.map_err(|e| Error::internal("write a tar header").source(e))?;
        long.set_cksum();
        bytes.extend_from_slice(long.as_bytes());
        bytes.extend_from_slice(name);
        bytes.resize(bytes.len().next_multiple_of(BLOCK as usize), 0);
        if name.len().is_multiple_of(BLOCK as usize) {
            bytes.extend_from_slice(&[0; BLOCK as usize]);
        }
        header = tar::Header::new_gnu();
    }
    header.set_entry_type(tar::EntryType::Regular);
    header.set_size(size);
    header.set_mode(attributes.mode & 0o7777);
    header.set_mtime(u64::try_from(attributes.mtime.timestamp()).unwrap_or(0));
    header.set_uid(0);
    header.set_gid(0);
    header.set_cksum();
    bytes.extend_from_slice(header.as_bytes());
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn tar_reads_long_names_and_great_sizes() {
        let attributes = Attributes { mode: 0o600, mtime: DateTime::UNIX_EPOCH };
        for length in [5, 99, 100, 155, 300, 511, 512, 600] {
            let name = "n".repeat(length);
            let mut bytes = header(Path::new(&name), 3, attributes).unwrap();
            bytes.extend_from_slice(b"abc");
            bytes.resize(bytes.len().next_multiple_of(512) + 1024, 0);
            let mut archive = tar::Archive::new(&bytes[..]);
            let mut entry = archive.entries().unwrap().next().unwrap().unwrap();
            assert_eq!(entry.path().unwrap().to_str().unwrap(), name, "{length}");
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            assert_eq!(text, "abc");
        }
        let great = header(Path::new("base/5/16384"), 9 << 30, attributes).unwrap();
        assert_eq!(tar::Header::from_byte_slice(&great).size().unwrap(), 9 << 30);
    }
}
