//! A repository in a folder, for tests.

use std::{path::Path, sync::Arc};

use chrono::DateTime;

use super::{FORMAT, System, SystemDocument};
use crate::{
    clock::Random,
    postgres::{SegmentSize, Version},
    store::dir::DirStore,
};

/// A system as any other: PostgreSQL 17, everything as `initdb` makes it.
pub(crate) fn document() -> SystemDocument {
    SystemDocument {
        format: FORMAT,
        cluster: "main".parse().unwrap(),
        incarnation: "7-1".parse().unwrap(),
        postgres: Version(17),
        segment_size: SegmentSize::DEFAULT,
        block_size: 8192,
        first_seen: DateTime::UNIX_EPOCH,
    }
}

/// The system in a new repository in `folder`.
pub(crate) async fn system(folder: &Path, document: SystemDocument) -> System {
    let store = DirStore::create(folder.join("repository"), Arc::new(Random::from_system())).unwrap();
    System::init(Arc::new(store), document).await.unwrap()
}
