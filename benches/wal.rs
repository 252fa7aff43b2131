//! How fast WAL is read: records, summaries and the check before archiving, over segments that are made here and, where
//! `WALDEN_BENCH_WAL` names a folder of segments, over those. `benches/reader` compares the same with `pg_waldump`.
#![allow(missing_docs, clippy::unwrap_used, reason = "a measurement ends where something unexpected happens")]

use std::{
    env,
    fs::{self, File},
    hint::black_box,
    io::Read as _,
    path::{Path, PathBuf},
};

use criterion::{Criterion, Throughput, criterion_group};
use walden::{
    postgres::Lsn,
    wal::{Reader, SegmentHeader, Summarizer, check_segment},
};

#[allow(dead_code, missing_docs, reason = "belongs to the fuzz targets")]
#[path = "../fuzz/src/writer.rs"]
mod writer;
use writer::{Kind, SEGMENT, Writer};

const START: u64 = 0x500_0000;
const PG_17: u16 = 0xD116;

/// Consecutive segments.
struct Wal {
    name: &'static str,
    start: Lsn,
    segments: Vec<Vec<u8>>,
}

impl Wal {
    fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.len() as u64).sum()
    }

    /// Records of that body, with a commit after every eight.
    fn made(name: &'static str, kind: Kind, body: &[u8]) -> Self {
        let mut writer = Writer::new(START, PG_17);
        while writer.bytes.len() < 16 * SEGMENT {
            (0..8).for_each(|_| _ = writer.record(kind, body));
            writer.plain(Kind { rmid: 1, info: 0, xid: 7 }, &1_000_000_i64.to_le_bytes());
        }
        let segments = writer.bytes.chunks_exact(SEGMENT).map(<[u8]>::to_vec).collect();
        Self { name, start: Lsn(START), segments }
    }

    fn found(folder: &Path) -> Self {
        let segments: Vec<_> = files(folder).iter().map(|path| fs::read(path).unwrap()).collect();
        Self { name: "found", start: SegmentHeader::parse(&segments[0]).unwrap().start, segments }
    }
}

/// The segments of a folder, in their order.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.retain(|path| path.file_name().is_some_and(|name| name.len() == 24));
    files.sort();
    files
}

/// Hands on the pieces of each segment of a folder, and none at its end, without ever holding more than a piece.
fn stream(folder: &Path, mut to: impl FnMut(&[u8])) {
    let mut piece = vec![0; 256 << 10];
    for path in files(folder) {
        let mut file = File::open(path).unwrap();
        loop {
            let count = file.read(&mut piece).unwrap();
            to(&piece[..count]);
            if count == 0 {
                break;
            }
        }
    }
}

/// Reads and no more: what the others do besides is their own.
fn pass_files(folder: &Path) -> u64 {
    let mut bytes = 0;
    stream(folder, |piece| bytes += black_box(piece).len() as u64);
    bytes
}

fn read_files(folder: &Path) -> u64 {
    let (mut reader, mut records) = (None, 0);
    stream(folder, |piece| {
        if !piece.is_empty() {
            let reader = reader.get_or_insert_with(|| Reader::new(SegmentHeader::parse(piece).unwrap().start));
            records += reader.read(piece).map(|record| u64::from(black_box(record.xid) != u32::MAX)).sum::<u64>();
        }
    });
    records
}

fn summarize_files(folder: &Path) -> u64 {
    let (mut summarizer, mut records) = (None, 0);
    stream(folder, |piece| {
        if piece.is_empty() {
            records += summarizer.take().map_or(0, |done: Summarizer| done.finish().records);
        } else {
            let start = || Summarizer::new(SegmentHeader::parse(piece).unwrap().start);
            summarizer.get_or_insert_with(start).feed(piece);
        }
    });
    records
}

fn read(wal: &Wal) -> u64 {
    let mut reader = Reader::new(wal.start);
    let mut records = 0;
    for segment in &wal.segments {
        for record in reader.read(segment) {
            records += u64::from(black_box(&record).xid < u32::MAX);
        }
    }
    records
}

fn summarize(wal: &Wal) -> u64 {
    let mut start = wal.start;
    let mut records = 0;
    for segment in &wal.segments {
        let mut summarizer = Summarizer::new(start);
        summarizer.feed(segment);
        records += summarizer.finish().records;
        start = start + segment.len() as u64;
    }
    records
}

fn check(wal: &Wal) {
    for segment in &wal.segments {
        let header = SegmentHeader::parse(segment).unwrap();
        let name = walden::postgres::SegmentName::holding(header.timeline, header.start, header.size);
        check_segment(name, segment).unwrap();
    }
}

/// `XLOG_HEAP_INSERT` of a row of `row` bytes, without and with an image of its page.
fn insert(row: usize, image: bool) -> Vec<u8> {
    let mut body = vec![0, 0x20 | if image { 0x10 } else { 0 }];
    body.extend_from_slice(&(row as u16).to_le_bytes());
    if image {
        // 8192 bytes, no hole.
        body.extend_from_slice(&[0, 0x20, 0, 0, 0x02]);
    }
    [1663_u32, 5, 16_389, 9].iter().for_each(|number| body.extend_from_slice(&number.to_le_bytes()));
    body.extend_from_slice(&[255, 3]);
    body.resize(body.len() + if image { 8192 } else { 0 } + row, 0x5A);
    body.extend_from_slice(&[1, 0, 0]);
    body
}

fn benches(criterion: &mut Criterion) {
    let heap = Kind { rmid: 10, info: 0, xid: 7 };
    let mut wals = vec![
        Wal::made("small", heap, &insert(40, false)),
        Wal::made("rows", heap, &insert(700, false)),
        Wal::made("images", heap, &insert(40, true)),
    ];
    wals.extend(env::var_os("WALDEN_BENCH_WAL").map(|folder| Wal::found(Path::new(&folder))));
    for wal in &wals {
        let mut group = criterion.benchmark_group(wal.name);
        group.sample_size(10).throughput(Throughput::Bytes(wal.bytes()));
        group.bench_function("read", |b| b.iter(|| read(wal)));
        group.bench_function("summarize", |b| b.iter(|| summarize(wal)));
        group.bench_function("check", |b| b.iter(|| check(wal)));
    }
}

criterion_group!(all, benches);

/// With `pass FOLDER`, `read FOLDER` or `summarize FOLDER`: does just that once, for `benches/reader`, and prints the number
/// of bytes or records. With `heads FOLDER`: prints how many bytes the summary of each segment takes in the head of its object,
/// and how many of these its counts of rows.
#[allow(clippy::print_stdout, reason = "the answer")]
fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["pass", folder] => println!("{}", pass_files(Path::new(folder))),
        ["heads", folder] => {
            for path in files(Path::new(folder)) {
                let bytes = fs::read(path).unwrap();
                let mut summarizer = Summarizer::new(SegmentHeader::parse(&bytes).unwrap().start);
                summarizer.feed(&bytes);
                let summary = summarizer.finish();
                let length = |json: Vec<u8>| json.len();
                let rows = length(serde_json::to_vec(&summary.rows).unwrap());
                println!("{} {rows}", length(serde_json::to_vec(&summary).unwrap()));
            }
        }
        ["read", folder] => println!("{}", read_files(Path::new(folder))),
        ["summarize", folder] => println!("{}", summarize_files(Path::new(folder))),
        _ => {
            all();
            Criterion::default().configure_from_args().final_summary();
        }
    }
}
