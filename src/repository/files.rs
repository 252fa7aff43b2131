//! Many files, packed: what a manifest says of a million of them takes about 100 MB, where as many [`File`]s would take
//! three times that. Each is unpacked when it is asked for.

use std::{
    ffi::OsStr,
    fmt,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use chrono::{DateTime, Utc};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{SeqAccess, Visitor},
};

use super::{
    manifest::{File, FileStat, Hashed, Layer, LayerKind, LayerMap},
    names::BackupId,
};
use crate::seal::Blake3;

/// The files of a backup. In JSON a list of them.
#[derive(Clone, Default)]
pub struct Files {
    bytes: Vec<u8>,
    /// Where each begins: their order is that of these.
    starts: Vec<u64>,
}

impl Files {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// Adds one at the end.
    pub fn push(&mut self, file: &File) {
        self.starts.push(self.bytes.len() as u64);
        pack(file, &mut self.bytes);
    }

    /// Adds others at the end.
    pub fn append(&mut self, mut other: Self) {
        if self.bytes.is_empty() {
            *self = other;
            return;
        }
        let by = self.bytes.len() as u64;
        self.bytes.append(&mut other.bytes);
        self.starts.extend(other.starts.into_iter().map(|start| start + by));
    }

    /// The file of that number, counted from 0. One that is not there is a bug, as with a slice.
    #[must_use]
    pub fn at(&self, number: usize) -> File {
        unpack(&mut self.packed(number))
    }

    /// The path of the file of that number.
    #[must_use]
    pub fn path(&self, number: usize) -> &Path {
        self.packed(number).path()
    }

    /// All of them.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = File> {
        (0..self.len()).map(|number| self.at(number))
    }

    /// The paths of all.
    pub fn paths(&self) -> impl ExactSizeIterator<Item = &Path> {
        (0..self.len()).map(|number| self.path(number))
    }

    /// The number of the file of that path. They must be in order.
    #[must_use]
    pub fn find(&self, path: &Path) -> Option<usize> {
        self.starts.binary_search_by(|start| self.from(*start).path().cmp(path)).ok()
    }

    /// Brings them into the order of their paths. Of several with one path the last one stays.
    pub fn sort(&mut self) {
        if self.paths().is_sorted_by(|a, b| a < b) {
            return;
        }
        let mut starts = std::mem::take(&mut self.starts);
        let path = |start: &u64| self.from(*start).path();
        starts.sort_by(|a, b| path(a).cmp(path(b)));
        starts.dedup_by(|later, kept| {
            let same = path(later) == path(kept);
            if same {
                *kept = *later;
            }
            same
        });
        self.starts = starts;
    }

    /// Leaves only those whose numbers `wanted` takes.
    pub fn retain(&mut self, mut wanted: impl FnMut(usize) -> bool) {
        let mut number = 0;
        self.starts.retain(|_| {
            number += 1;
            wanted(number - 1)
        });
    }

    fn packed(&self, number: usize) -> Packed<'_> {
        self.from(self.starts[number])
    }

    fn from(&self, start: u64) -> Packed<'_> {
        Packed(&self.bytes[start as usize..])
    }
}

impl FromIterator<File> for Files {
    fn from_iter<T: IntoIterator<Item = File>>(files: T) -> Self {
        let mut all = Self::default();
        files.into_iter().for_each(|file| all.push(&file));
        all
    }
}

impl PartialEq for Files {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Files {}

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl Serialize for Files {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(self.iter())
    }
}

impl<'de> Deserialize<'de> for Files {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_seq(OneByOne)
    }
}

struct OneByOne;

impl<'de> Visitor<'de> for OneByOne {
    type Value = Files;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of files")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Files, A::Error> {
        let mut files = Files::default();
        while let Some(file) = from.next_element()? {
            files.push(&file);
        }
        Ok(files)
    }
}

/// Bits of a file: its blocks are hashed; what its file system says of it is known.
const BLOCKS: u8 = 1;
const STAT: u8 = 2;
/// Bits of a layer: it holds changed blocks; it is as long as the file; it has a map.
const INCREMENTAL: u8 = 1;
const AS_LONG: u8 = 2;
const MAPPED: u8 = 4;

fn pack(file: &File, to: &mut Vec<u8>) {
    let File { path, size, mtime, mode, blake3, hashed, crc32c, stat, layers } = file;
    let path = path.as_os_str().as_bytes();
    number(path.len() as u64, to);
    to.extend_from_slice(path);
    to.push(if *hashed == Hashed::Blocks { BLOCKS } else { 0 } | if stat.is_some() { STAT } else { 0 });
    number(*size, to);
    number(u64::from(*mode), to);
    time(*mtime, 0, to);
    to.extend_from_slice(blake3.as_bytes());
    to.extend_from_slice(&crc32c.to_le_bytes());
    if let Some(stat) = stat {
        // It is often the time of the last change.
        time(stat.ctime, mtime.timestamp(), to);
        number(stat.inode, to);
        number(stat.device, to);
    }
    number(layers.len() as u64, to);
    for Layer { backup, part, offset, length, kind, map } in layers {
        let incremental = if *kind == LayerKind::Incremental { INCREMENTAL } else { 0 };
        let as_long = if length == size { AS_LONG } else { 0 };
        to.push(incremental | as_long | if map.is_some() { MAPPED } else { 0 });
        signed(backup.instant().timestamp(), to);
        number(u64::from(*part), to);
        number(*offset, to);
        if length != size {
            number(*length, to);
        }
        if let Some(map) = map {
            number(map.offset, to);
            number(u64::from(map.blocks), to);
        }
    }
}

fn unpack(from: &mut Packed<'_>) -> File {
    let path = PathBuf::from(from.path());
    let bits = from.byte();
    let (size, mode, mtime) = (from.number(), from.number() as u32, from.time(0));
    let hashed = if bits & BLOCKS == 0 { Hashed::Content } else { Hashed::Blocks };
    let (blake3, crc32c) = (Blake3::from(*from.array::<32>()), u32::from_le_bytes(*from.array::<4>()));
    let stat = (bits & STAT != 0).then(|| FileStat {
        ctime: from.time(mtime.timestamp()),
        inode: from.number(),
        device: from.number(),
    });
    let layers = (0..from.number()).map(|_| {
        let bits = from.byte();
        Layer {
            backup: BackupId::at(DateTime::from_timestamp(from.signed(), 0).unwrap_or_default()),
            part: from.number() as u32,
            offset: from.number(),
            length: if bits & AS_LONG == 0 { from.number() } else { size },
            kind: if bits & INCREMENTAL == 0 { LayerKind::Whole } else { LayerKind::Incremental },
            map: (bits & MAPPED != 0).then(|| LayerMap { offset: from.number(), blocks: from.number() as u32 }),
        }
    });
    let layers = layers.collect();
    File { path, size, mtime, mode, blake3, hashed, crc32c, stat, layers }
}

/// Seven bits a byte, the lowest first; the eighth says that more come.
fn number(mut value: u64, to: &mut Vec<u8>) {
    while value >= 0x80 {
        to.push(value as u8 | 0x80);
        value >>= 7;
    }
    to.push(value as u8);
}

/// With the sign in the lowest bit.
fn signed(value: i64, to: &mut Vec<u8>) {
    number((value << 1 ^ value >> 63) as u64, to);
}

/// In seconds behind `base`, and nanoseconds.
fn time(value: DateTime<Utc>, base: i64, to: &mut Vec<u8>) {
    signed(value.timestamp().wrapping_sub(base), to);
    number(u64::from(value.timestamp_subsec_nanos()), to);
}

/// What [`pack`] has written, from some byte on.
struct Packed<'a>(&'a [u8]);

impl<'a> Packed<'a> {
    fn path(&mut self) -> &'a Path {
        let length = self.number() as usize;
        let (path, rest) = self.0.split_at(length);
        self.0 = rest;
        Path::new(OsStr::from_bytes(path))
    }

    fn byte(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    fn array<const N: usize>(&mut self) -> &'a [u8; N] {
        let (first, rest) = self.0.split_first_chunk().unwrap_or((&[0; N], &[]));
        self.0 = rest;
        first
    }

    fn number(&mut self) -> u64 {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = self.byte();
            value |= u64::from(byte & 0x7F) << shift;
            shift += 7;
            if byte < 0x80 {
                return value;
            }
        }
    }

    fn signed(&mut self) -> i64 {
        let value = self.number();
        (value >> 1) as i64 ^ -((value & 1) as i64)
    }

    fn time(&mut self, base: i64) -> DateTime<Utc> {
        let seconds = self.signed().wrapping_add(base);
        DateTime::from_timestamp(seconds, self.number() as u32).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    fn times() -> impl Strategy<Value = DateTime<Utc>> {
        let seconds =
            prop_oneof![DateTime::<Utc>::MIN_UTC.timestamp()..DateTime::<Utc>::MAX_UTC.timestamp(), -2..2_i64];
        (seconds, 0..1_000_000_000_u32).prop_map(|(s, n)| DateTime::from_timestamp(s, n).unwrap())
    }

    fn layers() -> impl Strategy<Value = Layer> {
        let map = prop::option::of((any::<u64>(), any::<u32>()));
        (times(), any::<u32>(), any::<u64>(), prop_oneof![Just(7), any::<u64>()], any::<bool>(), map).prop_map(
            |(backup, part, offset, length, whole, map)| Layer {
                backup: BackupId::at(backup),
                part,
                offset,
                length,
                kind: if whole { LayerKind::Whole } else { LayerKind::Incremental },
                map: map.map(|(offset, blocks)| LayerMap { offset, blocks }),
            },
        )
    }

    fn files() -> impl Strategy<Value = File> {
        let name = prop_oneof!["[ab/.]{1,4}".prop_map(String::into_bytes), prop::collection::vec(any::<u8>(), 0..300)];
        let stat = prop::option::of((times(), any::<u64>(), any::<u64>()));
        let proof = (any::<[u8; 32]>(), any::<bool>(), any::<u32>());
        let size = prop_oneof![Just(7), any::<u64>()];
        (name, size, times(), any::<u32>(), proof, stat, prop::collection::vec(layers(), 0..4)).prop_map(
            |(name, size, mtime, mode, (hash, content, crc32c), stat, layers)| File {
                path: std::ffi::OsString::from_vec(name).into(),
                size,
                mtime,
                mode,
                blake3: Blake3::from(hash),
                hashed: if content { Hashed::Content } else { Hashed::Blocks },
                crc32c,
                stat: stat.map(|(ctime, inode, device)| FileStat { ctime, inode, device }),
                layers,
            },
        )
    }

    #[test]
    fn a_million_take_little_memory() {
        let layer = |part| Layer {
            backup: "20261121T014500Z".parse().unwrap(),
            part,
            offset: 200 << 20,
            length: 8192,
            kind: LayerKind::Whole,
            map: None,
        };
        let time = DateTime::from_timestamp(1_795_225_500, 123_456_789).unwrap();
        let all: Files = (0..1000)
            .map(|number| File {
                path: format!("base/{}/{}", 16_384 + number % 7, 1_000_000 + number).into(),
                size: 8192,
                mtime: time,
                mode: 0o600,
                blake3: crate::seal::blake3(b""),
                hashed: Hashed::Content,
                crc32c: u32::MAX,
                stat: Some(FileStat { ctime: time, inode: 100_000_000, device: 0xFD00 }),
                layers: vec![layer(number)],
            })
            .collect();
        let each = all.bytes.len() / all.len() + size_of_val(&all.starts[0]);
        assert!(each <= 110, "{each} bytes a file");
    }

    proptest! {
        #[test]
        fn are_unpacked_as_they_were_packed(
            some in prop::collection::vec(files(), 0..20), more in prop::collection::vec(files(), 0..20),
        ) {
            let mut packed: Files = some.iter().cloned().collect();
            packed.append(more.iter().cloned().collect());
            let all = [some, more].concat();
            prop_assert!(packed.iter().eq(all.iter().cloned()));
            prop_assert!(packed.paths().eq(all.iter().map(|f| f.path.as_path())));

            let mut sorted = std::collections::BTreeMap::new();
            sorted.extend(all.into_iter().map(|file| (file.path.clone(), file)));
            packed.sort();
            prop_assert!(packed.iter().eq(sorted.values().cloned()));
            for (path, file) in &sorted {
                prop_assert_eq!(&packed.at(packed.find(path).unwrap()), file);
            }
            prop_assert_eq!(packed.find(Path::new("x/y")), None);
            packed.retain(|number| number % 2 == 0);
            prop_assert!(packed.iter().eq(sorted.into_values().step_by(2)));
        }
    }
}
