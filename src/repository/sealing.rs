//! What of a repository is encrypted, what its names then are, and what each object tells those who cannot read it.

use serde::Deserialize;

use crate::{
    seal::{self, Blake3, Head},
    store::{Key, sealed::Rules},
};

/// Everything that holds data is sealed. The documents in JSON stay readable, which name no database, no table and no
/// row: without them a host that has no identity could not archive, back up or expire.
pub const SEALING: Rules = Rules { sealed, named, declares };

fn sealed(key: &Key) -> bool {
    let is_probe = key.as_str().split('/').any(|folder| folder == "probe");
    // What ends in .age was sealed by whoever put it, to others perhaps.
    let is_readable = [".json", ".age"].iter().any(|ending| key.as_str().ends_with(ending));
    !is_probe && !is_readable
}

/// Those that bear the endings of their formats bear age's as well. Objects of the archive bear none.
fn named(key: &Key) -> bool {
    key.as_str().ends_with(".zst")
}

/// What the head of an object in the archive tells of its content.
#[derive(Deserialize)]
struct Content {
    blake3: Blake3,
    /// The length of a file.
    size: Option<u64>,
    /// Where a piece begins and ends.
    from: Option<u64>,
    to: Option<u64>,
}

fn declares(front: &[u8]) -> Option<(Blake3, u64)> {
    match seal::read_head::<Content>(front) {
        Ok(Head::Present(content, _)) => {
            let size = content.size.or_else(|| content.to?.checked_sub(content.from?));
            size.map(|size| (content.blake3, size))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        postgres::TimelineId,
        repository::{RollUpName, SystemFolder, names::BackupId},
    };

    #[test]
    fn what_holds_data_is_sealed_and_documents_are_not() {
        let folder = SystemFolder { cluster: "main".parse().unwrap(), incarnation: "7-1".parse().unwrap() };
        let id: BackupId = "20261121T014500Z".parse().unwrap();
        let name = "0000000A000000010000000F".parse().unwrap();
        let timeline = TimelineId::new(10).unwrap();
        let roll_up = RollUpName { log: 1, number: 1, row: None };
        for (key, is_named) in [
            (folder.part(id, 1), true),
            (folder.manifest(id, 1), true),
            (folder.catalogue(id, 1), true),
            (folder.extra(id, 1), true),
            (folder.roll_up(timeline, roll_up), true),
            (folder.segment(name), false),
            (folder.piece(name, 0, 10), false),
            (folder.history(timeline), false),
            (folder.wal_file("0000000A000000010000000F.partial".parse().unwrap(), seal::blake3(b"")), false),
            (folder.wal_file("0000000A000000010000000F.00000028.backup".parse().unwrap(), seal::blake3(b"")), false),
        ] {
            let key = key.unwrap();
            assert!(sealed(&key) && named(&key) == is_named, "{key}");
        }
        for text in [
            "walden.json",
            "main/7-1/system.json",
            "main/7-1/backups/20261121T014500Z/backup-1.json",
            "main/7-1/backups/20261121T014500Z/intent-1.json",
            "main/7-1/lease/backup/3.json",
            "main/7-1/notes/gaps/1.json",
            "main/7-1/probe/0a",
            "probe/0a",
        ] {
            assert!(!sealed(&Key::new(text).unwrap()), "{text}");
        }
    }
}
