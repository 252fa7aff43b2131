//! What is done with bytes that a fuzzer makes up: one function a target, each with what must hold whatever the bytes.
//! `tests/fuzz_seeds.rs` runs the same functions over the seeds.

pub mod script;
pub mod writer;

use std::path::Component;

use walden::{
    postgres::{Lsn, SegmentName, SegmentSize, TimelineId, Version, incremental::IncrementalHeader},
    repository::{File, LayerBlocks, Manifest, PartIndex, overlay, wal_object::WalHead},
    seal::{self, Head, SeekTable},
    wal::{
        End, Fact, Inspector, Joined, Reader, Record, SegmentCheck, SegmentHeader, StopFinder, StopRule, Summarizer,
        Summary,
    },
};

use self::{
    script::{Built, START},
    writer::SEGMENT,
};

/// Bytes as they are: the start of a segment, or anything else.
pub fn reader(data: &[u8]) {
    let start = SegmentHeader::parse(data).map_or(Lsn(START), |header| header.start);
    let whole = walk(start, data, usize::MAX);
    let pieces = walk(start, data, 1 + data.first().map_or(0, |byte| usize::from(*byte) * 77));
    assert_eq!(whole, pieces, "pieces of another size");
    check(start, data);
    look(&whole.0, data);
}

/// WAL whose CRCs and links are right, by a script.
pub fn records(data: &[u8]) {
    let Built { bytes, chunk, .. } = script::build(data);
    let whole = walk(Lsn(START), &bytes, usize::MAX);
    // A chunk of one byte would only be slow.
    let pieces = walk(Lsn(START), &bytes, chunk.max(63));
    assert_eq!(whole, pieces, "pieces of another size");
    look(&whole.0, &bytes);
    for record in &whole.0 {
        let json = serde_json::to_string(&record.fact).expect("a fact can be written as JSON");
        let read: Fact = serde_json::from_str(&json).expect("and read");
        assert_eq!(read, record.fact);
    }
}

/// Summaries of the segments of a script, joined; and what they say beside the records.
pub fn summary(data: &[u8]) {
    let Built { mut bytes, version, .. } = script::build(data);
    bytes.resize(bytes.len().next_multiple_of(SEGMENT), 0);
    let version = Version(version);
    let (records, _) = walk(Lsn(START), &bytes, usize::MAX);
    let (mut cut, mut whole) = (Vec::new(), Vec::new());
    for (number, segment) in bytes.chunks(SEGMENT).enumerate() {
        let start = Lsn(START + (number * SEGMENT) as u64);
        cut.push(through_json(&summarize(Summarizer::new(start), segment), Summary::LONGEST));
        whole.push(summarize(Summarizer::whole(start), segment));
    }
    join(&mut cut, version);
    join(&mut whole, version);
    for summary in &cut {
        let _ = through_json(summary, usize::MAX);
    }
    compare(&whole, &records);
    for (cut, whole) in cut.iter().zip(&whole) {
        assert_eq!((cut.records, cut.commits, cut.aborts), (whole.records, whole.commits, whole.aborts));
        assert_eq!((cut.times, cut.xids), (whole.times, whole.xids));
    }
}

/// The head and the seek table of an object.
pub fn head(data: &[u8]) {
    if let Ok(Head::Present(head, end)) = seal::read_head::<WalHead>(data) {
        assert!(end <= data.len());
        // Written anew it may be longer than it was, and then it is refused.
        if let Ok(written) = seal::head(&head) {
            let Ok(Head::Present(read, end)) = seal::read_head::<WalHead>(&written) else {
                panic!("it was just written")
            };
            assert_eq!((seal::head(&read).ok(), end), (Some(written.clone()), written.len()));
        }
    }
    if let Ok(table) = SeekTable::from_tail(data) {
        assert!(table.frames().len() * 8 <= data.len());
        let _ = (table.seek(0), table.seek(table.content()), table.seek(u64::MAX));
        assert_eq!(SeekTable::from_tail(&table.to_bytes()).expect("it was just written"), table);
    }
}

/// The text of a manifest.
pub fn manifest(data: &[u8]) {
    let Ok(read) = Manifest::read(data) else { return };
    let paths = read.files.paths().chain(read.directories.iter().map(|d| d.path.as_path()));
    for path in paths {
        assert!(path.is_relative() && !path.components().any(|c| c == Component::ParentDir), "{}", path.display());
    }
    let _ = read.stored();
    let mut written = Vec::new();
    read.write(&mut written).expect("it can be written");
    assert_eq!(Manifest::read(&written[..]).expect("and read"), read);
}

/// The end of a part: its seek table, the frame of its index, or what is in that.
pub fn part(data: &[u8]) {
    if let Ok(table) = SeekTable::from_tail(data)
        && let Some(range) = table.index()
    {
        let range = usize::try_from(range.start).ok().zip(usize::try_from(range.end).ok());
        if let Some(frame) = range.and_then(|(start, end)| data.get(start..end)) {
            let _ = seal::read_index_frame(frame, 1 << 20).map(|bytes| index(&bytes));
        }
    }
    let _ = seal::read_index_frame(data, 1 << 20).map(|bytes| index(&bytes));
    index(data);
}

/// What the index of a part says can be written and read again, and its maps laid over each other.
fn index(bytes: &[u8]) {
    const BLOCK: usize = 64;
    let Ok((index, blake3)) = PartIndex::from_bytes(bytes) else { return };
    let written = index.clone().into_bytes(blake3).expect("it can be written");
    assert_eq!(PartIndex::from_bytes(&written).expect("and read"), (index.clone(), blake3));
    let layers = |file: &File| file.layers.iter().map(|layer| index.blocks(layer).ok().flatten()).collect();
    for file in &index.files {
        let Some(layers): Option<Vec<LayerBlocks>> = layers(file) else { continue };
        let count = (file.size as usize / BLOCK).min(1 << 12);
        let whole = overlay(count, BLOCK, &layers);
        assert_eq!((whole.map.hashes().len(), whole.layer.len()), (count, count));
        for (block, owner) in whole.layer.iter().enumerate() {
            // The newest that holds the block.
            let holds = |layer: &LayerBlocks| match layer {
                LayerBlocks::Whole(map) => block < map.hashes().len(),
                LayerBlocks::Changed(numbers, _) => numbers.contains(&(block as u32)),
            };
            assert_eq!(*owner, layers.iter().rposition(holds));
        }
    }
}

/// An incremental file, behind a byte that tells the size of a block.
pub fn changed_blocks(data: &[u8]) {
    let Some((size, bytes)) = data.split_first() else { return };
    let size = 256 << (size % 6);
    // As long as it is, and as long as its header says.
    let count = bytes.get(4..8).map_or(0, |word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
    let told = IncrementalHeader::size(count as usize, size) + u64::from(count) * u64::from(size);
    for length in [bytes.len() as u64, told] {
        let mut rest = bytes;
        let Ok(header) = IncrementalHeader::read(&mut rest, size, length) else { continue };
        assert_eq!(header.file_size(size), length);
        assert!(header.blocks.is_sorted_by(|a, b| a < b));
        assert!(header.blocks.last().is_none_or(|last| *last < header.result_blocks()));
        assert!(header.truncation <= header.result_blocks());
        let written = header.to_bytes(size);
        assert_eq!(written.len(), bytes.len() - rest.len(), "it is read up to the first block");
        assert_eq!(IncrementalHeader::read(&mut &written[..], size, length).expect("it was just written"), header);
    }
}

fn walk(start: Lsn, bytes: &[u8], chunk: usize) -> (Vec<Record>, End) {
    let mut reader = Reader::new(start);
    let mut records: Vec<Record> = Vec::new();
    for piece in bytes.chunks(chunk) {
        records.extend(reader.read(piece));
    }
    let end = start + bytes.len() as u64;
    let mut before: Option<&Record> = None;
    for record in &records {
        assert!(record.start < record.end && record.length >= 24);
        assert!(record.start >= start && (record.end <= end || record.fact == Fact::Switch));
        if let Some(before) = before {
            assert!(before.end <= record.start && before.start == record.prev);
        }
        before = Some(record);
    }
    assert_eq!(reader.last(), before.map(|record| record.start));
    if let Some(last) = before {
        assert_eq!(reader.proven(), last.end);
    }
    if let End::Garbage { at, .. } | End::Zeros { at } | End::OfInput { unfinished: Some(at) } = reader.end() {
        assert!(before.is_none_or(|last| last.end <= at), "what was read whole is not in doubt");
    }
    (records, reader.end())
}

/// The check of a segment before it is archived.
fn check(start: Lsn, data: &[u8]) {
    let size = SegmentHeader::parse(data).map_or(SegmentSize::DEFAULT, |header| header.size);
    let name = SegmentName::holding(TimelineId::FIRST, start, size);
    for mut check in [SegmentCheck::new(name, data.len() as u64), SegmentCheck::partial(name, data.len() as u64)] {
        let mut fed = Ok(());
        for piece in data.chunks(5_000) {
            fed = fed.and_then(|()| check.feed(piece));
        }
        let _ = fed.and_then(|()| check.finish());
    }
}

/// Everything that looks at records.
fn look(records: &[Record], bytes: &[u8]) {
    let Some(first) = records.first() else { return };
    let mut inspector = Inspector::new(first.start, SegmentSize::DEFAULT, true);
    inspector.feed(bytes);
    let _ = inspector.finish();
    let middle = &records[records.len() / 2];
    let rules = [
        StopRule::Latest,
        StopRule::Lsn { lsn: middle.start, inclusive: false },
        StopRule::Xid { xid: middle.xid.into(), inclusive: true },
        StopRule::Name { name: String::new(), inclusive: true },
    ];
    for rule in rules {
        let mut finder = StopFinder::new(rule, first.start);
        records.iter().for_each(|record| finder.show(record));
        let _ = finder.finish();
    }
}

fn summarize(mut summarizer: Summarizer, segment: &[u8]) -> Summary {
    segment.chunks(100_003).for_each(|piece| summarizer.feed(piece));
    summarizer.finish()
}

/// As the segments of a path are joined: a record may go on through several.
fn join(summaries: &mut [Summary], version: Version) {
    let mut rest = summaries;
    while let Some((first, next)) = rest.split_first_mut() {
        let mut following = next.iter_mut();
        while following.next().is_some_and(|next| first.join(next, version) == Joined::GoesOn) {}
        rest = next;
    }
}

fn through_json(summary: &Summary, limit: usize) -> Summary {
    let json = serde_json::to_string(summary).expect("a summary can be written as JSON");
    assert!(json.len() <= limit, "{} bytes", json.len());
    let read: Summary = serde_json::from_str(&json).expect("and read");
    assert_eq!(&read, summary);
    read
}

/// The summaries of all segments say what the records say, up to where one of them breaks off.
fn compare(summaries: &[Summary], records: &[Record]) {
    let mut records = records.iter().peekable();
    for (number, summary) in summaries.iter().enumerate() {
        let limit = Lsn(START + ((number + 1) * SEGMENT) as u64);
        let mut own = Vec::new();
        while let Some(record) = records.next_if(|record| record.start < limit) {
            own.push(record);
        }
        // Where a segment is read for itself nothing proves its link to the one before: damage there is seen later.
        let is_unknown = summary.tail.as_ref().is_some_and(|tail| tail.unknown);
        if records.peek().is_none() || is_unknown {
            return;
        }
        let count = |is: fn(&Fact) -> bool| own.iter().filter(|record| is(&record.fact)).count() as u64;
        assert_eq!(summary.commits, count(|fact| matches!(fact, Fact::Commit(_))), "commits");
        assert_eq!(summary.aborts, count(|fact| matches!(fact, Fact::Abort(_))), "aborts");
        assert_eq!(summary.first, own.first().map(|record| record.start));
    }
}
