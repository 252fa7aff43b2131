//! A repository in a folder, for tests.

use std::{path::Path, sync::Arc};

use chrono::DateTime;

use super::{BackupDocument, FORMAT, System, SystemDocument};
use crate::{
    clock::Random,
    postgres::{SegmentSize, Version},
    seal::Blake3,
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

/// The document of a backup of one file, whose manifest has that hash.
pub(crate) fn backup(id: &str, manifest_blake3: Blake3) -> BackupDocument {
    serde_json::from_value(serde_json::json!({
        "format": FORMAT, "id": id, "label": "before orders", "cluster": "main", "incarnation": "7-1", "postgres": 17,
        "server_version_num": 170_000, "catalog_version": 1, "timeline": 1, "start_lsn": "0/2000028",
        "checkpoint_lsn": "0/2000060", "stop_lsn": "0/2000130", "started": "2026-11-21T01:45:00Z",
        "stopped": "2026-11-21T01:46:00Z", "first_segment": "000000010000000000000002",
        "last_segment": "000000010000000000000002", "size": 1, "files": 1, "stored": 1, "parts": [], "manifest": 1,
        "manifest_blake3": manifest_blake3, "data_checksums": true, "host": "here", "walden": "0",
        "tablespaces": [{ "oid": 16_400, "location": "/mnt/tenant" }],
        "required": {
            "max_connections": 100, "max_worker_processes": 8, "max_wal_senders": 10,
            "max_prepared_transactions": 0, "max_locks_per_transaction": 64,
        },
    }))
    .unwrap()
}
