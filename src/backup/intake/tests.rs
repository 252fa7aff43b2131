//! Streams as a server sends them, whole, changed and cut.

use super::*;
use crate::{
    postgres::{
        Lsn, SystemId, TimelineId, Version,
        backup_manifest::{ManifestWriter, WalRange},
        control::tests::seventeen,
    },
    progress::Unwatched,
    repository::testing,
};

const LABEL: &str = "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\n\
    CHECKPOINT LOCATION: 0/2000060\nBACKUP METHOD: streamed\nBACKUP FROM: primary\n\
    START TIME: 2026-11-21 04:39:21 UTC\nLABEL: x\nSTART TIMELINE: 1\n";

/// The archives of a server: a tablespace and the data directory.
fn archives() -> Vec<Archive> {
    let archive = |tablespace, location: &str| Archive { tablespace, location: location.into(), size: 0 };
    vec![archive(Some(7), "/srv/apart"), archive(None, "")]
}

fn member(kind: tar::EntryType, name: &str, content: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    // As a server that means harm would write it.
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(kind);
    header.set_size(content.len() as u64);
    header.set_mode(0o600);
    header.set_mtime(1_700_000_000);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn file(name: &str, content: &[u8]) -> Vec<u8> {
    member(tar::EntryType::Regular, name, content)
}

/// What a server sends: both archives, and a manifest of these files.
struct Sent {
    tablespace: Vec<Vec<u8>>,
    base: Vec<Vec<u8>>,
    named: Vec<(&'static str, Vec<u8>)>,
}

impl Sent {
    fn new() -> Self {
        let control = seventeen();
        let table = vec![3; 300 << 10];
        Self {
            tablespace: vec![
                member(tar::EntryType::Directory, "PG_17_1/", b""),
                member(tar::EntryType::Directory, "PG_17_1/5/", b""),
                file("PG_17_1/5/16384", &table),
            ],
            base: vec![
                file(BACKUP_LABEL, LABEL.as_bytes()),
                member(tar::EntryType::Directory, "global/", b""),
                member(tar::EntryType::Symlink, "pg_tblspc/7/", b""),
                file("standby.signal", b""),
                file(CONTROL_FILE, &control),
            ],
            named: vec![
                ("pg_tblspc/7/PG_17_1/5/16384", table),
                (BACKUP_LABEL, LABEL.into()),
                ("standby.signal", Vec::new()),
                (CONTROL_FILE, control),
            ],
        }
    }

    fn pieces(&self) -> Vec<Piece> {
        let mut manifest = ManifestWriter::new(Vec::new(), Version(17), SystemId(7)).unwrap();
        for (path, content) in &self.named {
            let (size, crc) = (content.len() as u64, crc32c::crc32c(content));
            manifest.file(Path::new(path), size, DateTime::UNIX_EPOCH, crc).unwrap();
        }
        let range = WalRange { timeline: TimelineId::FIRST, start: Lsn(1), end: Lsn(2) };
        let manifest = manifest.finish(&[range]).unwrap();
        let mut pieces = Vec::new();
        // The last archive without the blocks that end a tar, as 14 sends it.
        let ended = [self.tablespace.concat(), vec![0; 1024]].concat();
        for (head, bytes) in
            [(Piece::Archive(0), ended), (Piece::Archive(1), self.base.concat()), (Piece::Manifest, manifest)]
        {
            pieces.push(head);
            pieces.extend(bytes.chunks(1000).map(|c| Piece::Data(Bytes::copy_from_slice(c))));
        }
        pieces
    }
}

/// Takes it in; the exclusion is what a user may have configured.
fn take(pieces: Vec<Piece>, exclude: &str) -> Result<Received> {
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let system = testing::system(folder.path(), testing::document()).await;
        let intake = Intake {
            parts: Arc::new(Parts::new(system, "20261121T014500Z".parse().unwrap(), 1)),
            ancestor: None,
            incremental: None,
            without_map: Arc::default(),
            block_size: 8192,
            archives: archives(),
            pages: None,
            relation_segment_blocks: 131_072,
            exclude: vec![exclude.into()],
            throttle: Throttle::new(None),
            progress: Arc::new(Unwatched),
            interrupt: crate::interrupt::Interrupter::new().listen(),
        };
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        let taking = tokio::task::spawn_blocking(move || intake.run(receiver, Handle::current()));
        for piece in pieces {
            if sender.send(piece).await.is_err() {
                break;
            }
        }
        drop(sender);
        taking.await.unwrap()
    })
}

#[test]
fn files_lie_where_the_data_directory_has_them() {
    let received = take(Sent::new().pieces(), "none").unwrap();
    let files: Vec<_> = received.haul.files.paths().map(|path| path.to_str().unwrap()).collect();
    assert_eq!(files, [BACKUP_LABEL, CONTROL_FILE, "pg_tblspc/7/PG_17_1/5/16384", TABLESPACE_MAP]);
    let directories: Vec<_> = received.directories.iter().map(|d| d.path.to_str().unwrap()).collect();
    assert_eq!(directories, ["global", "pg_tblspc/7", "pg_tblspc/7/PG_17_1", "pg_tblspc/7/PG_17_1/5"]);
    assert_eq!(received.label.start, Lsn(0x200_0028));
    assert_eq!(received.haul.parts.len(), 1);
    let excluded = take(Sent::new().pieces(), "pg_tblspc/7/PG_17_1/5").unwrap();
    assert_eq!(excluded.haul.files.len(), 3, "what is left out is held against the manifest all the same");
}

#[test]
fn what_the_manifest_does_not_confirm_is_no_backup() {
    let damaged = |sent: &Sent, says: &str| {
        let error = take(sent.pieces(), "none").err().unwrap();
        assert!(error.to_string().contains(says), "{error}");
    };
    let mut changed = Sent::new();
    changed.tablespace[2][512 + 299_000] ^= 1;
    damaged(&changed, "16384 is not what was received");
    let mut lost = Sent::new();
    lost.tablespace.pop();
    damaged(&lost, "16384 was not received");
    let mut more = Sent::new();
    more.base.insert(1, file("more", b"x"));
    damaged(&more, "it names 4 files of 5");
    let mut half_written = Sent::new();
    let control = vec![9; 8192];
    half_written.base[4] = file(CONTROL_FILE, &control);
    half_written.named[3].1 = control;
    damaged(&half_written, "pg_control");
}

#[test]
fn a_stream_that_ends_early_is_no_backup() {
    let whole = Sent::new().pieces();
    for length in (0..whole.len()).step_by(7).chain([whole.len() - 1]) {
        assert!(take(whole[..length].to_vec(), "none").is_err(), "{length} of {}", whole.len());
    }
}

#[test]
fn nothing_leads_out_of_the_data_directory() {
    use tar::EntryType::{Link, Regular, Symlink};
    for (kind, name) in [(Regular, "../x"), (Regular, "/etc/x"), (Regular, "base/../../x"), (Link, "x"), (Symlink, "x")]
    {
        let mut sent = Sent::new();
        sent.base.insert(1, member(kind, name, b""));
        let error = take(sent.pieces(), "none").err().unwrap();
        assert!(error.to_string().contains(&format!("\"{name}\"")), "{error}");
    }
}
