//! What is cut out of files that change from backup to backup, laid over each other again by a simple model.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use proptest::prelude::*;
use tokio::runtime::Runtime;

use crate::{
    backup::{
        ancestor::{self, Ancestor},
        part::Parts,
        shelf::Shelf,
        source::{self, Blocks, Into, Seen, Watch},
    },
    interrupt::Interrupter,
    pace::Throttle,
    postgres::{TimelineHistory, TimelineId, incremental::IncrementalHeader},
    progress::Unwatched,
    repository::{BackupId, FORMAT, File, Hashed, IntentDocument, LayerKind, Origin, System, testing},
    seal::BlockMap,
};

const BLOCK: usize = 8192;
/// Long enough for several layers to be worth their requests.
const MOST: usize = 400;

/// What befalls a file of blocks that are filled with one byte each.
#[derive(Clone, Debug)]
enum Step {
    Resize(usize, u8),
    Set(Vec<(usize, u8)>),
    Same,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    // Zeros are what a file that grows is filled with, and what a block in no layer would be.
    let byte = prop_oneof![Just(0_u8), any::<u8>()];
    let resize = (0..MOST, byte.clone()).prop_map(|(blocks, byte)| Step::Resize(blocks, byte));
    let set = prop::collection::vec((0..MOST, byte), 1..20).prop_map(Step::Set);
    prop::collection::vec(prop_oneof![2 => resize, 5 => set, 1 => Just(Step::Same)], 1..9)
}

fn apply(step: &Step, blocks: &mut Vec<u8>) {
    match step {
        Step::Resize(count, byte) => blocks.resize(*count, *byte),
        Step::Set(changes) => {
            for (block, byte) in changes {
                if let Some(place) = blocks.get_mut(*block) {
                    *place = *byte;
                }
            }
        }
        Step::Same => {}
    }
}

fn bytes(blocks: &[u8]) -> Vec<u8> {
    blocks.iter().flat_map(|byte| [*byte; BLOCK]).collect()
}

/// A repository in a folder, and the file beside it.
struct Scene {
    folder: tempfile::TempDir,
    runtime: Runtime,
    system: System,
}

impl Scene {
    fn new() -> Self {
        let (folder, runtime) = (tempfile::tempdir().unwrap(), Runtime::new().unwrap());
        let system = runtime.block_on(testing::system(folder.path(), testing::document()));
        Self { folder, runtime, system }
    }

    /// Stores the file as it is now. The backup itself never comes to be: the next compares with what it has stored.
    fn backup(&self, number: usize) -> File {
        let id: BackupId = format!("20261121T01{number:02}00Z").parse().unwrap();
        let origin = Origin { host: "here".into(), file_systems: Vec::new() };
        let ancestor = self.ancestor(&origin);
        let intent = IntentDocument {
            format: FORMAT,
            id,
            timeline: TimelineId::FIRST,
            begun: chrono::DateTime::UNIX_EPOCH,
            block_size: BLOCK as u32,
            origin: Some(origin),
            references: Vec::new(),
            publishes: BTreeMap::new(),
        };
        self.runtime.block_on(self.system.intend(&intent, 1)).unwrap();
        let parts = Arc::new(Parts::new(self.system.clone(), id, 1));
        let mut shelf = Shelf::new(parts, self.runtime.handle().clone());
        let into = Into {
            shelf: &mut shelf,
            ancestor: ancestor.as_ref(),
            changed: None,
            relation: Some(Blocks { size: BLOCK as u32, first: 0 }),
        };
        let (interrupt, throttle) = (Interrupter::new().listen(), Throttle::new(None));
        let watch = Watch { progress: &Unwatched, interrupt: &interrupt, throttle: &throttle };
        let seen = source::store(self.folder.path(), Path::new("file"), None, into, watch).unwrap().unwrap();
        shelf.finish().unwrap();
        match seen {
            Seen::New(stored) => stored.file,
            Seen::Same(_) => panic!("no file system is known on which a file can be the same"),
        }
    }

    fn ancestor(&self, origin: &Origin) -> Option<Ancestor> {
        let history = TimelineHistory::root(TimelineId::FIRST);
        self.runtime.block_on(ancestor::find(&self.system, &history, Some(origin), BLOCK as u32)).unwrap()
    }

    fn content(&self, backup: BackupId, part: u32) -> Vec<u8> {
        let path: PathBuf =
            self.folder.path().join("repository").join(self.system.folder.part(backup, part).unwrap().as_str());
        zstd::decode_all(&fs::read(path).unwrap()[..]).unwrap()
    }

    /// The file that the layers make: each as long as it says, its blocks over those before.
    fn restored(&self, file: &File) -> Vec<u8> {
        let mut parts = BTreeMap::new();
        let mut whole = Vec::new();
        for layer in &file.layers {
            let content = parts.entry((layer.backup, layer.part)).or_insert_with_key(|(b, p)| self.content(*b, *p));
            let member = &content[layer.offset as usize..][..layer.length as usize];
            if layer.kind == LayerKind::Whole {
                whole = member.to_vec();
                continue;
            }
            let mut from = member;
            let header = IncrementalHeader::read(&mut from, BLOCK as u32, layer.length).unwrap();
            whole.resize(header.result_blocks() as usize * BLOCK, 0);
            for (block, content) in header.blocks.iter().zip(from.chunks_exact(BLOCK)) {
                whole[*block as usize * BLOCK..][..BLOCK].copy_from_slice(content);
            }
        }
        whole.resize(file.size as usize, 0);
        whole
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_layers_of_each_backup_make_the_file_that_was_read(begin in 1..MOST, steps in steps()) {
        let scene = Scene::new();
        let mut blocks = vec![7; begin];
        for (number, step) in [Step::Same].iter().chain(&steps).enumerate() {
            apply(step, &mut blocks);
            let content = bytes(&blocks);
            fs::write(scene.folder.path().join("file"), &content).unwrap();
            let file = scene.backup(number);
            prop_assert_eq!(file.size, content.len() as u64);
            prop_assert!(scene.restored(&file) == content, "backup {} of {} layers", number, file.layers.len());
            prop_assert_eq!(file.crc32c, crc32c::crc32c(&content));
            if file.hashed == Hashed::Blocks {
                prop_assert_eq!(file.blake3, BlockMap::of(&content, BLOCK).root());
            }
            // What no layer would add is not stored again.
            let is_same = matches!(step, Step::Same) && number > 0;
            let newest = file.layers.last().map(|layer| layer.backup.to_string());
            let own = format!("20261121T01{number:02}00Z");
            prop_assert!(!is_same || newest.is_none_or(|newest| newest != own), "backup {number} stores what is there");
        }
    }
}
