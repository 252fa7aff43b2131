//! Pieces are put once, and joined as far as they are whole and agree.

use super::*;
use crate::{
    error::Kind,
    postgres::{Lsn, SegmentSize, TimelineId},
    repository::{SystemDocument, testing},
    wal::{
        Reader,
        testing::{PAGE, SEGMENT, Writer},
    },
};

const START: u64 = 0x500_0000;

struct Archive {
    system: System,
    folder: tempfile::TempDir,
}

impl Archive {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let segment_size = SegmentSize::new(SEGMENT as u64).unwrap();
        let document = SystemDocument { segment_size, ..testing::document() };
        Self { system: testing::system(folder.path(), document).await, folder }
    }

    async fn put(&self, wal: &[u8], from: usize, to: usize) -> Result<StoredPiece> {
        self.system.put_piece(name(), from as u64, Bytes::copy_from_slice(&wal[from..to]), 1).await
    }

    async fn put_all(&self, wal: &[u8], borders: &[(usize, usize)]) {
        for (from, to) in borders {
            self.put(wal, *from, *to).await.unwrap();
        }
    }

    /// What the pieces give, and why no more.
    async fn joined(&self) -> Result<(Vec<u8>, RunEnd)> {
        let mut run = self.system.join_pieces(name(), self.system.pieces(name()).await.unwrap());
        let mut all = Vec::new();
        while let Some(bytes) = run.next().await? {
            all.extend(bytes);
        }
        assert_eq!(run.bytes() as usize, all.len());
        Ok((all, run.end().unwrap().clone()))
    }

    fn file(&self, from: usize, to: usize) -> std::path::PathBuf {
        let key = self.system.folder.piece(name(), from as u32, to as u32).unwrap();
        self.folder.path().join("repository").join(key.as_str())
    }
}

fn name() -> SegmentName {
    SegmentName::from_number(TimelineId::FIRST, START / SEGMENT as u64, SegmentSize::new(SEGMENT as u64).unwrap())
        .unwrap()
}

fn segment() -> Vec<u8> {
    let mut wal = Writer::at(START);
    while wal.bytes.len() < SEGMENT {
        let seed = wal.bytes.len() as u8;
        wal.record(10, 0, 1, &(0..700).map(|i| (i as u8).wrapping_mul(seed)).collect::<Vec<_>>());
    }
    wal.bytes.truncate(SEGMENT);
    wal.bytes
}

#[tokio::test]
async fn the_same_piece_again_is_a_success_and_another_is_refused() {
    let archive = Archive::new().await;
    let mut wal = segment();
    let first = archive.put(&wal, 0, 5000).await.unwrap();
    assert!(!first.already);
    assert_eq!(archive.put(&wal, 0, 5000).await.unwrap(), StoredPiece { already: true, ..first });
    wal[4999] ^= 1;
    assert_eq!(archive.put(&wal, 0, 5000).await.unwrap_err().kind(), Kind::Refused);
    assert_eq!(archive.system.pieces(name()).await.unwrap(), [Piece { from: 0, to: 5000, length: first.length }]);
    for (at, byte) in [(24, 9), (0, 0x10), (34, 0x20), (12, 1)] {
        let mut foreign = segment();
        foreign[at] = byte;
        let refused = archive.put(&foreign, 0, 6000).await.unwrap_err();
        assert_eq!(refused.kind(), Kind::Refused, "byte {at}: {refused}");
    }
    for (from, to) in [(7, 7), (SEGMENT - 1, SEGMENT + 1)] {
        let bytes = Bytes::from(vec![1; to - from]);
        assert!(archive.system.put_piece(name(), from as u64, bytes, 1).await.is_err());
    }
}

#[tokio::test]
async fn pieces_are_joined_whatever_their_borders() {
    let archive = Archive::new().await;
    let wal = segment();
    assert_eq!(archive.joined().await.unwrap(), (Vec::new(), RunEnd::Latest));
    archive.put_all(&wal, &[(0, 1000), (1000, 1001), (1001, 90_000)]).await;
    // Another receiver's.
    archive.put_all(&wal, &[(0, 700), (500, 90_001), (800, 950), (89_000, 90_000)]).await;
    assert_eq!(archive.joined().await.unwrap(), (wal[..90_001].to_vec(), RunEnd::Latest));
    archive.put_all(&wal, &[(100_000, SEGMENT)]).await;
    assert_eq!(archive.joined().await.unwrap(), (wal[..90_001].to_vec(), RunEnd::Missing { next: 100_000 }));
    archive.put_all(&wal, &[(90_000, 100_000)]).await;
    assert_eq!(archive.joined().await.unwrap(), (wal.clone(), RunEnd::Whole));
}

#[tokio::test]
async fn a_lost_piece_ends_the_run() {
    let archive = Archive::new().await;
    let wal = segment();
    archive.put_all(&wal, &[(0, 4000), (4000, 8000), (8000, 9000)]).await;
    std::fs::remove_file(archive.file(4000, 8000)).unwrap();
    assert_eq!(archive.joined().await.unwrap(), (wal[..4000].to_vec(), RunEnd::Missing { next: 8000 }));
    std::fs::remove_file(archive.file(0, 4000)).unwrap();
    assert_eq!(archive.joined().await.unwrap(), (Vec::new(), RunEnd::Missing { next: 8000 }));
}

#[tokio::test]
async fn receivers_that_disagree_are_an_error() {
    let archive = Archive::new().await;
    let wal = segment();
    let mut other = wal.clone();
    other[6000] ^= 1;
    archive.put_all(&wal, &[(0, 3000), (3000, 7000)]).await;
    archive.put_all(&other, &[(5999, 9000)]).await;
    let error = archive.joined().await.unwrap_err();
    assert_eq!(error.kind(), Kind::Damaged);
    assert!(error.to_string().contains("different bytes at offset 00001770"), "{error}");
}

#[tokio::test]
async fn damage_ends_the_run_unless_another_piece_has_the_bytes() {
    let archive = Archive::new().await;
    let wal = segment();
    archive.put_all(&wal, &[(0, 4000), (4000, 4100), (4100, 5000)]).await;
    let sound = std::fs::read(archive.file(4000, 4100)).unwrap();
    let path = archive.file(4000, 4100);
    let damage = |bytes: &[u8]| {
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, bytes).unwrap();
    };
    for at in 0..sound.len() {
        let mut bytes = sound.clone();
        bytes[at] ^= 4;
        damage(&bytes);
        let (found, end) = match archive.joined().await {
            Ok(joined) => joined,
            Err(error) => {
                assert!(error.to_string().contains("has format"), "byte {at}: {error}");
                continue;
            }
        };
        // What is wrong may be in a place that means nothing: then all is there.
        match end {
            RunEnd::Damaged { why } => {
                assert!(why.contains("00001004"), "{why}");
                assert_eq!(found, wal[..4000], "byte {at}");
            }
            end => assert_eq!((found, end), (wal[..5000].to_vec(), RunEnd::Latest), "byte {at}"),
        }
    }
    for length in [0, 7, 100, sound.len() - 1] {
        damage(&sound[..length]);
        assert!(matches!(archive.joined().await.unwrap().1, RunEnd::Damaged { .. }), "{length} bytes");
    }
    archive.put_all(&wal, &[(3990, 4050)]).await;
    assert_eq!(archive.joined().await.unwrap().0, wal[..4050]);
    assert!(matches!(archive.joined().await.unwrap().1, RunEnd::Damaged { .. }));
    archive.put_all(&wal, &[(4040, 4200)]).await;
    assert_eq!(archive.joined().await.unwrap(), (wal[..5000].to_vec(), RunEnd::Latest));
}

/// What can be proven of pieces, and how far.
async fn proven(archive: &Archive) -> Result<(Vec<u8>, PieceEnd)> {
    let mut pieces = archive.system.open_pieces(name()).await?.unwrap();
    let mut all = Vec::new();
    while let Some(pages) = pieces.next().await? {
        all.extend(pages);
    }
    Ok((all, pieces.end().unwrap().clone()))
}

#[tokio::test]
async fn whole_records_are_proven_and_the_rest_is_taken_back() {
    let wal = segment();
    let ends: Vec<Lsn> = Reader::new(Lsn(START)).read(&wal).map(|record| record.end).collect();
    let border = (ends[9].0 - START) as usize;
    // In the middle of a header, of a page, of a record, on its end, on a page's.
    for cut in [20, 39, 41, 100, 800, 5000, PAGE - 3, PAGE, PAGE + 10, 5 * PAGE + 4000, border, border - 8, SEGMENT] {
        let archive = Archive::new().await;
        let half = cut / 2;
        archive.put_all(&wal, &[(0, half), (half, cut)]).await;
        let (all, end) = proven(&archive).await.unwrap();
        let expected = ends.iter().rfind(|end| end.0 <= START + cut as u64).copied().unwrap_or(Lsn(START));
        assert_eq!(end, PieceEnd { end: expected, why: None }, "{cut}");
        let whole = expected.since(Lsn(START)) as usize;
        assert!(all.len().is_multiple_of(PAGE) && all.len() >= whole, "{cut}");
        assert_eq!(all[..whole], wal[..whole], "{cut}");
        let again: Vec<Lsn> = Reader::new(Lsn(START)).read(&all).map(|record| record.end).collect();
        assert_eq!(again.last().copied().unwrap_or(Lsn(START)), expected, "{cut}");
    }
    assert!(Archive::new().await.system.open_pieces(name()).await.unwrap().is_none());
}

#[tokio::test]
async fn what_is_missing_or_of_another_kind_is_said() {
    let wal = segment();
    let archive = Archive::new().await;
    archive.put_all(&wal, &[(0, 9000), (9000, 20_000), (20_000, 30_000)]).await;
    std::fs::remove_file(archive.file(9000, 20_000)).unwrap();
    let (_, end) = proven(&archive).await.unwrap();
    assert!(end.end <= Lsn(START + 9000));
    assert!(end.why.as_deref().unwrap().contains("from offset 00002328 to 00004E20 are missing"), "{end:?}");
    // A page of another place, and one of a younger timeline.
    for at in [9, 4] {
        let archive = Archive::new().await;
        let mut strange = wal.clone();
        strange[3 * PAGE + at] ^= 2;
        archive.put_all(&strange, &[(0, 50_000)]).await;
        let error = proven(&archive).await.map(|_| ()).expect_err("a page is wrong");
        assert!(error.kind() == Kind::Damaged && error.to_string().contains("not in its place"), "{error}");
    }
    let archive = Archive::new().await;
    let child = SegmentName { timeline: TimelineId::new(2).unwrap(), ..name() };
    archive.system.put_piece(child, 0, Bytes::copy_from_slice(&wal[..9000]), 1).await.unwrap();
    let mut pieces = archive.system.open_pieces(child).await.unwrap().unwrap();
    let error = loop {
        match pieces.next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("pages of timeline 1 need the history of timeline 2"),
            Err(error) => break error,
        }
    };
    assert!(error.to_string().contains("the history of timeline 2 is missing"), "{error}");
}

#[tokio::test]
async fn a_listing_has_the_pieces_of_the_segment_after_the_last_alone() {
    let archive = Archive::new().await;
    let (system, wal) = (&archive.system, segment());
    let size = system.document.segment_size;
    let at = |number: u64| SegmentName::from_number(TimelineId::FIRST, START / SEGMENT as u64 + number, size).unwrap();
    let put = async |name: SegmentName, count: u64| {
        for from in 1..=count {
            system.put_piece(name, from * 8, Bytes::copy_from_slice(&wal[..8]), 1).await.unwrap();
        }
    };
    let listed = async || {
        let listed = system.segments_and_pieces(TimelineId::FIRST, None, None).await.unwrap();
        listed.into_iter().map(|(name, stored)| (name, stored.is_in_pieces())).collect::<Vec<_>>()
    };
    // More than a page of a listing.
    put(at(1), 1100).await;
    assert_eq!(listed().await, [(at(1), true)], "a timeline that begins");
    for number in [0, 1] {
        system.store.put(&system.folder.segment(at(number)).unwrap(), Bytes::from_static(b"x")).await.unwrap();
    }
    assert_eq!(listed().await, [(at(0), false), (at(1), false)]);
    put(at(2), 3).await;
    put(at(4), 3).await;
    assert_eq!(listed().await, [(at(0), false), (at(1), false), (at(2), true)]);
    assert_eq!(system.segments(TimelineId::FIRST, None, None).await.unwrap(), [(at(0), 1), (at(1), 1)]);
    assert_eq!(system.segments(TimelineId::FIRST, Some(at(1)), Some(at(1))).await.unwrap(), [(at(1), 1)]);
    assert_eq!(system.first_segment_after(at(0)).await.unwrap(), Some(at(1)));
    assert_eq!(system.first_segment_after(at(2)).await.unwrap(), Some(at(4)));
    assert_eq!(system.first_segment_after(at(4)).await.unwrap(), None);
    system.store.put(&system.folder.segment(at(3)).unwrap(), Bytes::from_static(b"x")).await.unwrap();
    assert_eq!(listed().await[2..], [(at(3), false), (at(4), true)], "what lies before a hole does not count");
}
