//! Long listings, which are made side by side, give what one listing after the other gives.
#![allow(clippy::unwrap_used, reason = "helpers of a test may panic like the test")]

use std::{fs, sync::Arc};

use futures_util::{StreamExt, stream};
use walden::{
    clock::Random,
    postgres::{SegmentName, SegmentSize, TimelineId, Version},
    repository::{FORMAT, System, SystemDocument, segment_of},
    store::{
        Key, Store,
        dir::DirStore,
        list_all,
        s3::{Keys, S3Options, S3Store},
    },
};
use walden_testkit::s3::S3Server;

fn name(timeline: u32, log: u32, segment: u32) -> SegmentName {
    SegmentName { timeline: TimelineId::new(timeline).unwrap(), log, segment }
}

async fn system(store: Arc<dyn Store>) -> System {
    let document = SystemDocument {
        format: FORMAT,
        cluster: "main".parse().unwrap(),
        incarnation: "7-1".parse().unwrap(),
        postgres: Version(17),
        segment_size: SegmentSize::DEFAULT,
        block_size: 8192,
        first_seen: chrono::DateTime::UNIX_EPOCH,
    };
    System::init(store, document).await.unwrap()
}

/// Keys of a timeline of ten logs, of which some are missing, with other objects in between, and of two short ones.
fn keys(system: &System) -> Vec<Key> {
    let mut keys = Vec::new();
    for log in [0, 1, 2, 3, 5, 9, 0x10, 0x1F, 0x100] {
        for segment in (0..256).filter(|n| log != 2 || !(40..200).contains(n)) {
            let name = name(2, log, segment);
            keys.push(system.folder.segment(name).unwrap());
            if segment % 50 == 7 {
                let beside = |end: &str| Key::new(format!("{}{end}", system.folder.segment(name).unwrap())).unwrap();
                keys.extend([beside(".00000028.backup"), beside(&format!(".partial/{}", "ab".repeat(32)))]);
            }
        }
    }
    // A log that holds nothing but the rest of a timeline, and one with a strange name.
    keys.push(
        Key::new(format!(
            "{}00000011/{}.partial/00",
            system.folder.timeline(TimelineId::new(2).unwrap()),
            name(2, 0x11, 3)
        ))
        .unwrap(),
    );
    keys.push(Key::new(format!("{}zzz/x", system.folder.timeline(TimelineId::new(2).unwrap()))).unwrap());
    keys.extend((0..40).map(|n| system.folder.segment(name(1, 0, n)).unwrap()));
    keys.extend((250..256).map(|n| system.folder.segment(name(10, 0x10, n)).unwrap()));
    keys.extend([2, 10].map(|t| system.folder.history(TimelineId::new(t).unwrap()).unwrap()));
    keys
}

async fn agrees(system: &System) {
    let all = list_all(&*system.store, &system.folder.wal()).await.unwrap();
    let mut compared = 0;
    for timeline in [1, 2, 3, 10] {
        let of_timeline: Vec<_> = all
            .iter()
            .filter_map(|listed| Some((segment_of(&listed.key)?, listed.length)))
            .filter(|(name, _)| name.timeline.get() == timeline)
            .collect();
        let borders = [
            None,
            Some(name(timeline, 0, 0)),
            Some(name(timeline, 0, 30)),
            Some(name(timeline, 2, 100)),
            Some(name(timeline, 4, 0)),
            Some(name(timeline, 9, 255)),
            Some(name(timeline, 0x100, 100)),
            Some(name(timeline, 0x200, 0)),
        ];
        for (first, last) in borders.iter().flat_map(|first| borders.iter().map(move |last| (*first, *last))) {
            let within = |name: SegmentName| first.is_none_or(|f| name >= f) && last.is_none_or(|l| name <= l);
            let expected: Vec<_> = of_timeline.iter().copied().filter(|(name, _)| within(*name)).collect();
            let found = system.segments(TimelineId::new(timeline).unwrap(), first, last).await.unwrap();
            assert_eq!(found, expected, "timeline {timeline} from {first:?} to {last:?}");
            compared += found.len();
        }
    }
    assert!(compared > 10_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_directory() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("repository");
    let store = DirStore::create(root.clone(), Arc::new(Random::from_system())).unwrap();
    let system = system(Arc::new(store)).await;
    for (n, key) in keys(&system).iter().enumerate() {
        let path = root.join(key.as_str());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, vec![b'x'; n % 100]).unwrap();
    }
    agrees(&system).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_bucket() {
    let server = S3Server::start();
    let mut options = S3Options::new(server.bucket(), "prefix");
    options.endpoint = Some(server.endpoint());
    options.path_style = true;
    let (id, secret) = (server.access_key().to_owned(), server.secret_key().to_owned());
    options.keys = Some(Keys { id, secret, session_token: None });
    let store = S3Store::open(options, Arc::new(Random::from_system())).await.unwrap();
    let system = system(Arc::new(store)).await;
    let put = |(n, key): (usize, Key)| {
        let store = system.store.clone();
        async move { store.put(&key, vec![b'x'; n % 100].into()).await.unwrap() }
    };
    stream::iter(keys(&system).into_iter().enumerate().map(put)).buffer_unordered(16).collect::<Vec<_>>().await;
    agrees(&system).await;
}
