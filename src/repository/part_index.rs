//! The index at the end of a part: which files were stored in it, and the block maps of their layers. With it a part
//! explains itself, even when the backup that it was written for never came to be.

use serde::{Deserialize, Serialize};

use super::{
    System,
    documents::BadPage,
    join,
    manifest::{File, Layer, LayerKind, LayerMap, Part},
    names::BackupId,
};
use crate::{
    error::{Error, Kind, Result},
    seal::{Blake3, BlockHash, BlockMap, SeekTable, read_index_frame},
    store,
};

/// An index holds less than this many bytes: 20 bytes a block of the files of one part, and what the manifest says of
/// each of them.
const LIMIT: usize = 256 << 20;

/// The end of a part that is read first when nothing is known of it, in bytes.
const TAIL: u64 = 64 << 10;

/// What a part holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartIndex {
    /// The files that were stored in it, as the manifest has them.
    pub files: Vec<File>,
    /// Their pages whose checksums were wrong.
    pub bad_pages: Vec<BadPage>,
    maps: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
struct Header {
    blake3: Blake3,
    files: Vec<File>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    bad_pages: Vec<BadPage>,
}

/// The blocks of one layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LayerBlocks {
    /// All blocks of the file, from the first.
    Whole(BlockMap),
    /// The blocks of these numbers.
    Changed(Vec<u32>, BlockMap),
}

impl PartIndex {
    /// Takes in the blocks of a layer; gives back where they lie.
    pub fn add(&mut self, blocks: &LayerBlocks) -> LayerMap {
        let offset = self.maps.len() as u64;
        let map = match blocks {
            LayerBlocks::Whole(map) => map,
            LayerBlocks::Changed(numbers, map) => {
                self.maps.extend(numbers.iter().flat_map(|n| n.to_le_bytes()));
                map
            }
        };
        map.write(&mut self.maps);
        LayerMap { offset, blocks: map.hashes().len() as u32 }
    }

    /// The maps alone, which are far shorter than what is said of many small files.
    #[must_use]
    pub fn without_files(self) -> Self {
        Self::of_maps(self.maps)
    }

    /// The maps as they are stored, one after the other.
    #[must_use]
    pub fn maps(&self) -> &[u8] {
        &self.maps
    }

    /// One that has these maps, and no files.
    #[must_use]
    pub fn of_maps(maps: Vec<u8>) -> Self {
        Self { maps, ..Self::default() }
    }

    /// The blocks of a layer that lies in this part; `None` where no map of it was stored.
    pub fn blocks(&self, layer: &Layer) -> Result<Option<LayerBlocks>> {
        let Some(LayerMap { offset, blocks }) = layer.map else { return Ok(None) };
        let count = blocks as usize;
        let mut rest = usize::try_from(offset).ok().and_then(|at| self.maps.get(at..)).ok_or_else(short)?;
        let mut take = |bytes: usize| {
            let taken = rest.get(..bytes).ok_or_else(short)?;
            rest = &rest[bytes..];
            Ok::<_, Error>(taken)
        };
        Ok(Some(match layer.kind {
            LayerKind::Whole => LayerBlocks::Whole(BlockMap::read(take(count * BlockHash::LENGTH)?)?),
            LayerKind::Incremental => {
                let numbers = take(count * 4)?.as_chunks().0.iter().map(|n| u32::from_le_bytes(*n)).collect();
                LayerBlocks::Changed(numbers, BlockMap::read(take(count * BlockHash::LENGTH)?)?)
            }
        }))
    }

    /// As it is stored: the length of the JSON in four bytes, little-endian; the JSON; the maps. `blake3` is that of
    /// the part up to here.
    pub fn into_bytes(self, blake3: Blake3) -> Result<Vec<u8>> {
        let mut bytes = vec![0; 4];
        serde_json::to_writer(&mut bytes, &Header { blake3, files: self.files, bad_pages: self.bad_pages })
            .map_err(|e| Error::internal("write the index of a part").source(e))?;
        let length = u32::try_from(bytes.len() - 4).map_err(|e| Error::internal("an index of over 4 GiB").source(e))?;
        bytes[..4].copy_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&self.maps);
        Ok(bytes)
    }

    /// Reads what [`PartIndex::into_bytes`] has written.
    pub fn from_bytes(bytes: &[u8]) -> Result<(Self, Blake3)> {
        let (length, rest) = bytes.split_first_chunk::<4>().ok_or_else(short)?;
        let (json, maps) = rest.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or_else(short)?;
        let Header { blake3, files, bad_pages } =
            serde_json::from_slice(json).map_err(|e| Error::damaged("the index of a part cannot be read").source(e))?;
        Ok((Self { files, bad_pages, maps: maps.to_vec() }, blake3))
    }
}

fn short() -> Error {
    Error::damaged("the index of a part is cut short")
}

impl System {
    /// The index of a part; `None` where an older Walden wrote none.
    pub async fn part_index(&self, part: &Part) -> Result<Option<PartIndex>> {
        let Some(range) = part.frames.index() else { return Ok(None) };
        let key = self.folder.part(part.backup, part.number)?;
        let read = async {
            let frame = store::read_range(&*self.store, &key, range).await?;
            Ok(PartIndex::from_bytes(&read_index_frame(&frame, LIMIT)?)?.0)
        };
        read.await.map(Some).map_err(|e: Error| match e.kind() {
            Kind::NotFound => Error::damaged(format!("{key} is missing")),
            _ => e.context(key),
        })
    }

    /// A part of which only the length of its object is known, and its index. `None` where it has none. Without maps where
    /// this host has kept what the part holds.
    pub async fn unlisted_part(&self, backup: BackupId, number: u32, length: u64) -> Result<Option<(Part, PartIndex)>> {
        if let Some(copies) = self.copies.clone() {
            let kept = join(tokio::task::spawn_blocking(move || copies.part((backup, number), length)).await)?;
            if kept.is_some() {
                return Ok(kept);
            }
        }
        let key = self.folder.part(backup, number)?;
        // Room for the table of a part of many small frames.
        let mut tail = length.min(TAIL);
        let frames = loop {
            let bytes = store::read_range(&*self.store, &key, length - tail..length).await?;
            match SeekTable::from_tail(&bytes) {
                Err(_) if tail < length => tail = length.min(tail * 16),
                table => break table.map_err(|e| e.context(&key))?,
            }
        };
        let Some(range) = frames.index() else { return Ok(None) };
        let frame = store::read_range(&*self.store, &key, range).await?;
        let read = read_index_frame(&frame, LIMIT).and_then(|bytes| PartIndex::from_bytes(&bytes));
        let (index, blake3) = read.map_err(|e| e.context(&key))?;
        Ok(Some((Part { backup, number, length, blake3, frames }, index)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_found_where_they_were_put() {
        let mut index = PartIndex::default();
        let whole = LayerBlocks::Whole(BlockMap::of(&[1; 1024], 512));
        let changed = LayerBlocks::Changed(vec![7], BlockMap::of(&[2; 512], 512));
        let backup = "20261121T014500Z".parse().unwrap();
        let layer = |kind, map| Layer { backup, part: 1, offset: 512, length: 5, kind, map };
        let first = layer(LayerKind::Whole, Some(index.add(&whole)));
        let second = layer(LayerKind::Incremental, Some(index.add(&changed)));
        let (index, blake3) = PartIndex::from_bytes(&index.into_bytes(crate::seal::blake3(b"part")).unwrap()).unwrap();
        assert_eq!(blake3, crate::seal::blake3(b"part"));
        assert_eq!(index.blocks(&first).unwrap(), Some(whole));
        assert_eq!(index.blocks(&second).unwrap(), Some(changed));
        assert_eq!(index.blocks(&layer(LayerKind::Whole, None)).unwrap(), None);
        let beyond = LayerMap { offset: 30, blocks: 5 };
        assert!(index.blocks(&layer(LayerKind::Whole, Some(beyond))).is_err());
        for bytes in [&[][..], &[9, 0, 0, 0, b'{'], &[255; 4]] {
            assert!(PartIndex::from_bytes(bytes).is_err());
        }
    }
}
