//! A directory becomes each backup of a random history, whatever lay there before; only what differs is fetched.

use std::{io::Write, os::unix::fs::MetadataExt};

use proptest::prelude::*;

use super::*;
use crate::{
    interrupt::Interrupter,
    progress::Unwatched,
    repository::{Layer, Part, System, testing as repository},
    restore::{
        owner::Owner,
        testing::{BLOCK, History, Step, histories, manifest},
    },
    seal::{FrameSize, FrameWriter, blake3, index_frame},
};

/// A history's parts in a folder, with frames of this many bytes of content, and a directory to restore into.
struct Repository {
    folder: tempfile::TempDir,
    system: System,
    history: History,
    parts: Vec<Part>,
}

const FRAME: usize = 200;

impl Repository {
    async fn new(steps: &[Vec<Step>]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let system = repository::system(folder.path(), repository::document()).await;
        let history = History::of(steps);
        let mut parts = Vec::new();
        for ((backup, number), content) in &history.parts {
            let mut writer = FrameWriter::new(Vec::new(), 1).unwrap();
            for frame in content.chunks(FRAME) {
                writer.write_all(frame).unwrap();
                writer.cut().unwrap();
            }
            let (mut object, mut frames, _) = writer.finish().unwrap();
            let index =
                index_frame(&history.indexes[&(*backup, *number)].clone().into_bytes(blake3(b"")).unwrap(), 1).unwrap();
            frames.push(FrameSize { stored: index.len() as u32, content: 0 });
            object.extend(index);
            object.extend(frames.to_bytes());
            let key = system.folder.part(*backup, *number).unwrap();
            parts.push(Part {
                backup: *backup,
                number: *number,
                length: object.len() as u64,
                blake3: blake3(&object),
                frames,
            });
            system.store.put(&key, object.into()).await.unwrap();
        }
        Self { folder, system, history, parts }
    }

    fn job(&self, backup: usize) -> Arc<Job> {
        let data = self.folder.path().join("data");
        let files = self.history.backups[backup].iter().map(|(file, _)| file.clone()).collect();
        let manifest = Arc::new(Manifest { parts: self.parts.clone(), ..manifest(files) });
        let owner = Owner::of(self.folder.path()).unwrap();
        let place = Place::open(&data, 0o700, None, &[], &owner).unwrap();
        place.directory(Path::new("base"), 0o700).unwrap();
        Arc::new(Job {
            source: Source::new(self.system.clone(), manifest.clone(), None),
            manifest,
            place: Arc::new(place),
            parallel: 2,
            progress: Arc::new(Unwatched),
            interrupt: Interrupter::new().listen(),
        })
    }

    /// Restores a backup into what is there, as a restore with `--delta` does; gives back what could be mended.
    async fn restore(&self, backup: usize) -> Result<HashSet<usize>> {
        let job = self.job(backup);
        let right = job.right_files(|_| true).await?;
        let wanted: Vec<usize> = (0..job.manifest.files.len()).filter(|i| !right.contains(i)).collect();
        let mut mended = HashSet::new();
        for index in &wanted {
            if job.can_mend(*index)? {
                mended.insert(*index);
            } else {
                job.place.remove(job.manifest.files.path(*index))?;
            }
        }
        job.write(&wanted, mended.clone()).await?;
        Ok(mended)
    }

    fn path(&self, number: usize) -> std::path::PathBuf {
        self.folder.path().join(format!("data/base/{number}"))
    }

    fn object(&self, part: usize) -> std::path::PathBuf {
        let Part { backup, number, .. } = self.parts[part];
        self.folder.path().join("repository").join(self.system.folder.part(backup, number).unwrap().as_str())
    }

    fn is_restored(&self, backup: usize) -> bool {
        let files = self.history.backups[backup].iter().enumerate();
        files.into_iter().all(|(number, (_, content))| fs::read(self.path(number)).unwrap() == *content)
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_directory_becomes_each_backup_in_turn_whatever_befell_it(
        steps in histories(),
        order in prop::collection::vec(any::<prop::sample::Index>(), 1..4),
        scribbles in prop::collection::vec((0..3_usize, 0..800_u64, any::<u8>()), 0..6),
    ) {
        runtime().block_on(async {
            let repository = Repository::new(&steps).await;
            for backup in order {
                let backup = backup.index(steps.len());
                repository.restore(backup).await.unwrap();
                assert!(repository.is_restored(backup));
                for (number, content) in repository.history.backups[backup].iter().enumerate() {
                    assert_eq!(repository.job(backup).content(number).await.unwrap(), content.1);
                }
                for (number, at, byte) in &scribbles {
                    let file = fs::File::options().write(true).open(repository.path(*number)).unwrap();
                    if byte % 4 == 0 {
                        file.set_len(*at).unwrap();
                    } else {
                        file.write_all_at(&[*byte], *at).unwrap();
                    }
                }
            }
        });
    }
}

/// Three backups of one file: whole, two changed blocks, another.
async fn three() -> Repository {
    let edit = |set: &[(usize, u8)]| Step::Edit { cut: None, grow: vec![], set: set.to_vec(), more: vec![] };
    let steps = [Step::Whole((1..=12).collect()), edit(&[(2, 50), (3, 51)]), edit(&[(3, 60)])];
    Repository::new(&steps.map(|step| vec![step])).await
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_differs_is_fetched_and_written_in_place() {
    let repository = three().await;
    repository.restore(2).await.unwrap();
    let inode = || fs::metadata(repository.path(0)).unwrap().ino();
    let before = inode();
    let file = fs::File::options().write(true).open(repository.path(0)).unwrap();
    file.write_all_at(b"!", 3 * BLOCK as u64).unwrap();
    // Nothing of the older parts but their indexes is needed for the block that the newest holds.
    for part in [0, 1] {
        let index = repository.parts[part].frames.index().unwrap();
        let object = fs::read(repository.object(part)).unwrap();
        let mut broken = vec![0; object.len()];
        broken[index.start as usize..index.end as usize]
            .copy_from_slice(&object[index.start as usize..index.end as usize]);
        fs::write(repository.object(part), broken).unwrap();
    }
    assert_eq!(repository.restore(2).await.unwrap().len(), 1);
    assert!(repository.is_restored(2));
    assert_eq!(inode(), before);
    file.write_all_at(b"!", 5 * BLOCK as u64).unwrap();
    assert_eq!(repository.restore(2).await.unwrap_err().kind(), Kind::Damaged);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_with_a_second_name_is_not_changed_in_place() {
    let repository = three().await;
    repository.restore(0).await.unwrap();
    let other = repository.folder.path().join("other");
    fs::hard_link(repository.path(0), &other).unwrap();
    let before = fs::read(&other).unwrap();
    assert!(repository.restore(2).await.unwrap().is_empty());
    assert!(repository.is_restored(2));
    assert_eq!(fs::read(&other).unwrap(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_mended_without_an_index_too() {
    let mut repository = three().await;
    for layer in repository.history.backups.iter_mut().flatten().flat_map(|(file, _)| &mut file.layers) {
        layer.map = None;
    }
    repository.restore(0).await.unwrap();
    repository.restore(2).await.unwrap();
    assert!(repository.is_restored(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_is_gone_is_named() {
    let repository = three().await;
    fs::remove_file(repository.object(1)).unwrap();
    let error = repository.restore(2).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Damaged);
    assert!(error.to_string().contains("part 1 of backup 20261121T010100Z is missing"), "{error}");
    repository.restore(0).await.unwrap();
    assert!(repository.is_restored(0));
}

#[test]
fn great_work_comes_first_and_batches_have_an_end() {
    let layer = |part, length| Layer {
        backup: "20261121T014500Z".parse().unwrap(),
        part,
        offset: 512,
        length,
        kind: LayerKind::Whole,
        map: None,
    };
    let file = |path: &str, size, layers| File {
        path: path.into(),
        size,
        mtime: chrono::DateTime::UNIX_EPOCH,
        mode: 0o600,
        blake3: blake3(b""),
        hashed: Hashed::Blocks,
        crc32c: 0,
        stat: None,
        layers,
    };
    let (small, great) = (64 << 10, 1 << 30);
    let mut files = vec![file("small", small, vec![layer(1, small)]), file("great", great, vec![layer(2, great)])];
    files.extend((0..100).map(|n| file(&n.to_string(), small, vec![layer(3 + n, small), layer(200 + n, small)])));
    let manifest = manifest(files);
    let all: Vec<usize> = (0..102).collect();
    let found = work(&manifest, &all, &HashSet::new(), 2);
    let counts = found.iter().map(|work| match work {
        Work::Run(run) => (1, run.pieces.len()),
        Work::Batch(files) => (2, files.len()),
    });
    assert_eq!(counts.collect::<Vec<_>>(), [(1, 1), (2, 64), (2, 36), (1, 1)]);
    // What is there is changed in place, whole as it is stored.
    let found = work(&manifest, &[1], &HashSet::from([1]), 2);
    assert!(matches!(&found[..], [Work::Batch(files)] if files == &[1]));
}
