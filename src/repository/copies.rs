//! What a host keeps of the newest backup of its server, so that the next one can be compared with it where the
//! repository is encrypted and this host cannot read it: the manifest, and the block maps of the parts that it needs; and of
//! attempts that came to nothing what their parts hold.
//!
//! They lie in `<state_dir>/comparison/<repository id>/<cluster>/<system>-<incarnation>/`, in the clear: names and
//! hashes of files, no content of theirs. A manifest counts only if it has the hash that the backup's document tells, and
//! maps only as far as they make the hash of a file that the manifest tells, a part of an attempt only if it has the length
//! that it was written with. What is lost or does not fit costs a backup
//! that stores everything again, never a wrong one, so that nothing here is synced.

use std::{
    collections::HashSet,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::{BackupDocument, BackupId, Manifest, Part, PartIndex, PartName, RepositoryDocument, SystemFolder};
use crate::{
    config,
    error::{Error, Result},
    seal::{self, FrameWriter, HashReader},
};

/// The copies of one system in one repository.
#[derive(Debug)]
pub struct Copies {
    folder: PathBuf,
}

impl Copies {
    /// Those below `state_dir`, which has to be ours alone: others may not learn what files there are.
    pub fn open(state_dir: &Path, repository: &RepositoryDocument, system: &SystemFolder) -> Result<Self> {
        config::prove_state_dir(state_dir)?;
        let folder = state_dir.join("comparison").join(repository.folder_name()?).join(system.prefix());
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&folder);
        made.map_err(|e| Error::io("create", &folder, e))?;
        Ok(Self { folder })
    }

    fn manifest_place(&self, backup: BackupId, number: u32) -> PathBuf {
        self.folder.join(format!("manifest-{backup}-{number}.json.zst"))
    }

    fn maps_place(&self, (backup, number): PartName) -> PathBuf {
        self.folder.join(format!("maps-{backup}-{number}"))
    }

    fn part_place(&self, (backup, number): PartName) -> PathBuf {
        self.folder.join(format!("part-{backup}-{number}"))
    }

    /// Keeps the `number`th manifest of a backup.
    pub(super) fn keep_manifest(&self, manifest: &Manifest, number: u32, level: i32) -> Result<()> {
        self.write(&self.manifest_place(manifest.backup, number), |to| {
            let mut frames = FrameWriter::new(to, level)?;
            manifest.write(&mut frames)?;
            frames.finish().map(drop)
        })
    }

    /// The text of a backup's manifest, proven to be the one that its document means. `None` where there is none.
    pub(super) fn manifest(&self, backup: &BackupDocument) -> Option<Box<dyn Read + Send>> {
        let open = || zstd::Decoder::new(File::open(self.manifest_place(backup.id, backup.manifest)).ok()?).ok();
        let mut proof = HashReader::new(open()?);
        io::copy(&mut proof, &mut io::sink()).ok()?;
        (proof.digest().0 == backup.manifest_blake3).then_some(Box::new(open()?) as Box<dyn Read + Send>)
    }

    /// Keeps the maps of a part.
    pub fn keep_maps(&self, part: PartName, index: &PartIndex) -> Result<()> {
        let maps = index.maps();
        self.write(&self.maps_place(part), |to| {
            to.write_all(seal::blake3(maps).as_bytes())?;
            to.write_all(maps)
        })
    }

    /// The maps of a part, as they were kept. `None` where they are not there, or not whole.
    pub(super) fn maps(&self, part: PartName) -> Option<PartIndex> {
        let bytes = fs::read(self.maps_place(part)).ok()?;
        let (hash, maps) = bytes.split_first_chunk::<32>()?;
        (seal::blake3(maps).as_bytes() == hash).then(|| PartIndex::of_maps(maps.to_vec()))
    }

    /// Keeps what a part of a backup holds that no manifest tells of yet: the index at its end, but for the maps.
    pub fn keep_part(&self, part: &Part, index: &[u8]) -> Result<()> {
        let mut bytes = serde_json::to_vec(part).map_err(|e| Error::internal("write what a part holds").source(e))?;
        bytes.push(b'\n');
        bytes.extend_from_slice(index);
        self.write(&self.part_place((part.backup, part.number)), |to| {
            to.write_all(seal::blake3(&bytes).as_bytes())?;
            to.write_all(&bytes)
        })
    }

    /// A part of an attempt, if it is of the length that this host has written, and its files.
    pub(super) fn part(&self, name: PartName, length: u64) -> Option<(Part, PartIndex)> {
        let bytes = fs::read(self.part_place(name)).ok()?;
        let (hash, bytes) = bytes.split_first_chunk::<32>()?;
        let at = bytes.iter().position(|byte| *byte == b'\n')?;
        let part: Part = serde_json::from_slice(&bytes[..at]).ok()?;
        let (index, blake3) = PartIndex::from_bytes(&bytes[at + 1..]).ok()?;
        let is_it = seal::blake3(bytes).as_bytes() == hash && part.length == length && part.blake3 == blake3;
        is_it.then_some((part, index))
    }

    /// Forgets everything but what the next backup compares with when this is the newest: its manifest, and the maps of
    /// its parts; and what there is of these attempts. What other killed backups have left goes, too.
    pub fn tidy(&self, newest: Option<&BackupDocument>, attempts: &[BackupId]) {
        let of_attempts: Vec<String> =
            attempts.iter().flat_map(|id| [format!("maps-{id}-"), format!("part-{id}-")]).collect();
        let needed = newest.into_iter().flat_map(|backup| &backup.needed_parts);
        let parts = needed.flat_map(|of| of.parts.iter().map(|number| (of.backup, *number)));
        let mut wanted: HashSet<PathBuf> = parts.map(|part| self.maps_place(part)).collect();
        wanted.extend(newest.map(|backup| self.manifest_place(backup.id, backup.manifest)));
        let remove = || {
            for entry in fs::read_dir(&self.folder)? {
                let entry = entry?;
                let (name, path) = (entry.file_name(), entry.path());
                let is_of = |start: &String| name.to_str().is_some_and(|name| name.starts_with(start));
                if !wanted.contains(&path) && !of_attempts.iter().any(is_of) {
                    fs::remove_file(&path)?;
                }
            }
            Ok::<_, io::Error>(())
        };
        if let Err(error) = remove() {
            tracing::warn!("what is kept of older backups in {} could not be removed: {error}", self.folder.display());
        }
    }

    /// Writes a file beside its place, and puts it there when it is whole.
    fn write(&self, place: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
        let temporary = place.with_extension("tmp");
        let write = || {
            // A backup holds a lease: what is there was left by one that was killed.
            let mut options = OpenOptions::new();
            let file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
            let mut to = io::BufWriter::with_capacity(256 << 10, file);
            write(&mut to)?;
            to.flush()?;
            fs::rename(&temporary, place)
        };
        write().map_err(|e| Error::io("write", place, e))
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt, sync::Arc};

    use super::*;
    use crate::{
        repository::{
            File as BackedUp, Hashed, Layer, LayerBlocks, LayerKind, NeededOf, System, manifest::tests::manifest,
            testing,
        },
        seal::BlockMap,
    };

    const ID: &str = "20261121T014500Z";

    async fn scene() -> (tempfile::TempDir, System, Arc<Copies>) {
        let folder = tempfile::tempdir().unwrap();
        let system = testing::system(folder.path(), testing::document()).await;
        let repository = RepositoryDocument { format: 1, id: "1d".into(), made: <_>::default(), mirror_of: None };
        let copies = Arc::new(Copies::open(&folder.path().join("state"), &repository, &system.folder).unwrap());
        let system = System { copies: Some(copies.clone()), ..system };
        (folder, system, copies)
    }

    #[tokio::test]
    async fn a_manifest_that_cannot_be_read_is_read_from_its_copy_if_that_is_the_one_meant() {
        let (_folder, system, copies) = scene().await;
        let (hash, _) = system.put_manifest(manifest(Vec::new()), 1, 1).await.unwrap();
        let key = system.folder.manifest(ID.parse().unwrap(), 1).unwrap();
        system.store.delete(&key).await.unwrap();
        let place = copies.manifest_place(ID.parse().unwrap(), 1);
        let modes = [&place, &copies.folder].map(|path| fs::metadata(path).unwrap().permissions().mode() & 0o777);
        assert_eq!(modes, [0o600, 0o700]);
        let meant = testing::backup(ID, hash);
        assert_eq!(system.manifest(&meant).await.unwrap(), manifest(Vec::new()));
        assert!(system.manifest(&testing::backup(ID, seal::blake3(b"another"))).await.is_err());
        let bytes = fs::read(&place).unwrap();
        fs::write(&place, &bytes[..bytes.len() - 9]).unwrap();
        assert!(system.manifest(&meant).await.is_err());
    }

    #[tokio::test]
    async fn maps_count_as_long_as_they_are_whole_and_go_when_no_file_needs_them() {
        let (_folder, _, copies) = scene().await;
        let (backup, mut index) = (ID.parse::<BackupId>().unwrap(), PartIndex::default());
        let blocks = LayerBlocks::Whole(BlockMap::of(&[1; 1024], 512));
        let map = Some(index.add(&blocks));
        let layer = Layer { backup, part: 1, offset: 512, length: 1024, kind: LayerKind::Whole, map };
        index.files.push(BackedUp {
            path: "base/5/1".into(),
            size: 1024,
            mtime: <_>::default(),
            mode: 0o600,
            blake3: seal::blake3(b""),
            hashed: Hashed::Blocks,
            crc32c: 0,
            stat: None,
            layers: vec![layer.clone()],
        });
        for part in 1..=3 {
            copies.keep_maps((backup, part), &index).unwrap();
        }
        let kept = copies.maps((backup, 1)).unwrap();
        assert_eq!(kept.blocks(&layer).unwrap(), Some(blocks));
        assert!(kept.files.is_empty());
        let mut newest = testing::backup(ID, seal::blake3(b""));
        newest.needed_parts = vec![NeededOf { backup, parts: vec![1, 3], bytes: 2 }];
        copies.tidy(Some(&newest), &[]);
        assert_eq!([1, 2, 3].map(|part| copies.maps((backup, part)).is_some()), [true, false, true]);
        let place = copies.maps_place((backup, 1));
        let mut bytes = fs::read(&place).unwrap();
        bytes[40] ^= 1;
        fs::write(&place, bytes).unwrap();
        assert!(copies.maps((backup, 1)).is_none());
        let frames = seal::SeekTable::default();
        let part = Part { backup, number: 4, length: 700, blake3: seal::blake3(b"part"), frames };
        let files = index.files.clone();
        let mut kept = PartIndex::default();
        kept.files.clone_from(&files);
        copies.keep_part(&part, &kept.into_bytes(part.blake3).unwrap()).unwrap();
        copies.tidy(None, &[backup]);
        assert_eq!(copies.part((backup, 4), 700).map(|(part, index)| (part, index.files)), Some((part, files)));
        assert!(copies.part((backup, 4), 701).is_none() && copies.part((backup, 5), 700).is_none());
        let place = copies.part_place((backup, 4));
        let mut bytes = fs::read(&place).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&place, bytes).unwrap();
        assert!(copies.part((backup, 4), 700).is_none());
        copies.tidy(None, &[]);
        assert_eq!(fs::read_dir(&copies.folder).unwrap().count(), 0);
    }
}
