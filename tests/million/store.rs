//! A store that answers for an archive which nowhere exists: names, lengths, heads and segments are made when they are
//! asked for. Roll-ups, which take long to make, lie in a folder. What is put is held in memory, and what is deleted is
//! gone: of segments, which nobody puts, it is known which stretches are left.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    fs,
    io::Write,
    ops::Range,
    path::PathBuf,
    sync::{
        Arc, Mutex, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use walden::{
    Error,
    keep::ranges::Ranges,
    postgres::{SegmentName, TimelineId, WalFile},
    repository::{FORMAT, RollUpName, SystemFolder, rollup::RollUp, segment_of, wal_object::WalHead},
    seal::{Blake3, FrameWriter, blake3},
    store::{Answer, Body, Download, Key, Listed, Put, Store, Upload},
};

use super::wal::{self, Layout, SIZE, SYSTEM, VERSION, Writer};

/// The segments of one timeline.
#[derive(Clone, Debug)]
pub struct Line {
    /// Who wrote them.
    pub writer: Writer,
    /// Their numbers.
    pub numbers: Range<u64>,
    /// Those that were always missing.
    pub gaps: Vec<Range<u64>>,
}

/// What was asked of the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Requests.
    pub requests: u64,
    /// Bytes of answers.
    pub bytes: u64,
    /// The most requests under way at one time.
    pub parallel: u64,
}

/// The store.
#[derive(Debug)]
pub struct Simulated {
    lines: Vec<Line>,
    layout: Layout,
    folder: SystemFolder,
    /// Of each line the numbers of the segments that are there.
    there: RwLock<Vec<Ranges>>,
    small: RwLock<BTreeMap<String, Small>>,
    delay: Duration,
    asked: Mutex<Asked>,
    under_way: AtomicU64,
    place: Arc<tempfile::TempDir>,
}

#[derive(Clone, Debug)]
enum Small {
    Bytes(Bytes),
    File(PathBuf, u64),
}

impl Simulated {
    /// An archive of these timelines, with other objects besides, and roll-ups of all logs that are complete.
    pub fn new(lines: Vec<Line>, others: Vec<(Key, Bytes)>, folder: SystemFolder, delay: Duration) -> Arc<Self> {
        let small = others.into_iter().map(|(key, bytes)| (key.to_string(), Small::Bytes(bytes))).collect();
        let simulated = Self {
            there: RwLock::new(lines.iter().map(Line::there).collect()),
            lines,
            layout: Layout::new(),
            folder,
            small: RwLock::new(small),
            delay,
            asked: Mutex::default(),
            under_way: AtomicU64::new(0),
            place: Arc::new(tempfile::tempdir().expect("a folder")),
        };
        simulated.roll_up();
        Arc::new(simulated)
    }

    /// The same archive with roll-ups whose names tell no time.
    pub fn without_times(&self) -> Arc<Self> {
        let untimed = |key: &str| {
            let (folder, name) = key.rsplit_once('/')?;
            let name: RollUpName = name.strip_suffix(".json.zst")?.parse().ok()?;
            Some(format!("{folder}/{}.json.zst", RollUpName { row: None, ..name }))
        };
        let small = self.small.read().expect("no panic");
        let small = small.iter().map(|(key, small)| (untimed(key).unwrap_or_else(|| key.clone()), small.clone()));
        Arc::new(Self {
            lines: self.lines.clone(),
            layout: self.layout.clone(),
            folder: self.folder.clone(),
            there: RwLock::new(self.there.read().expect("no panic").clone()),
            small: RwLock::new(small.collect()),
            delay: self.delay,
            asked: Mutex::default(),
            under_way: AtomicU64::new(0),
            place: self.place.clone(),
        })
    }

    /// What was asked since the last time.
    pub fn asked(&self) -> Asked {
        std::mem::take(&mut *self.asked.lock().expect("no panic"))
    }

    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// How many logs have a roll-up.
    pub fn roll_ups(&self) -> usize {
        self.keys().iter().filter(|key| key.contains("/notes/summaries/")).count()
    }

    /// The keys of all objects but segments.
    pub fn keys(&self) -> Vec<String> {
        self.small.read().expect("no panic").keys().cloned().collect()
    }

    /// The numbers of the segments of a line that are there.
    pub fn there(&self, line: usize) -> Ranges {
        self.there.read().expect("no panic")[line].clone()
    }

    fn roll_up(&self) {
        let logs: Vec<(usize, u64)> = self
            .lines
            .iter()
            .enumerate()
            .flat_map(|(at, line)| {
                let logs = line.numbers.start / SIZE.per_log()..(line.numbers.end - 1) / SIZE.per_log();
                logs.map(move |log| (at, log))
            })
            .collect();
        let made = Mutex::new(BTreeMap::new());
        let next = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
                scope.spawn(|| {
                    while let Some((line, log)) = logs.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                        let (key, file) = self.roll_up_log(&self.lines[*line], *log);
                        made.lock().expect("no panic").insert(key, file);
                    }
                });
            }
        });
        self.small.write().expect("no panic").extend(made.into_inner().expect("no panic"));
    }

    fn roll_up_log(&self, line: &Line, log: u64) -> (String, Small) {
        let there = line.there();
        let numbers = (log * SIZE.per_log()..(log + 1) * SIZE.per_log()).filter(|n| there.has(*n));
        let segments = numbers.map(|number| {
            let name = wal::name(line.writer.timeline, number);
            let mut summary = line.writer.summary(&self.layout, number);
            summary.rows = line.writer.rows(number);
            (name, length(number), summary)
        });
        let timeline = TimelineId::new(line.writer.timeline).expect("a timeline");
        let roll_up = RollUp::new((timeline, log as u32), segments.collect(), SIZE, VERSION);
        let name = RollUpName { log: log as u32, number: 1, row: roll_up.row(None, VERSION) };
        let bytes = roll_up.to_bytes().expect("JSON");
        let key = self.folder.roll_up(timeline, name).expect("a key");
        let path = self.place.path().join(key.as_str().replace('/', "_"));
        fs::write(&path, &bytes).expect("room on the disk");
        (key.to_string(), Small::File(path, bytes.len() as u64))
    }

    /// The line of a segment, and its number.
    fn line_of(&self, name: SegmentName) -> Option<(usize, u64)> {
        let line = self.lines.iter().position(|line| line.writer.timeline == name.timeline.get())?;
        Some((line, name.number(SIZE).ok()?))
    }

    /// The line and the number of a segment that is there.
    fn held(&self, key: &Key) -> Option<(&Line, u64)> {
        let (line, number) = self.line_of(segment_of(key)?)?;
        self.there.read().expect("no panic")[line].has(number).then_some((&self.lines[line], number))
    }

    fn remove(&self, key: &Key) {
        match segment_of(key).and_then(|name| self.line_of(name)) {
            Some((line, number)) => {
                let there = &mut self.there.write().expect("no panic")[line];
                *there = there.without(&Ranges::of(number, number + 1));
            }
            None => _ = self.small.write().expect("no panic").remove(key.as_str()),
        }
    }

    /// The object of a segment, up to the end of its head, or all of it.
    fn object(&self, line: &Line, number: u64, whole: bool) -> Vec<u8> {
        let name = wal::name(line.writer.timeline, number);
        let content = whole.then(|| line.writer.segment(number));
        let mut summary = line.writer.summary(&self.layout, number);
        summary.rows = line.writer.rows(number);
        let mut head = WalHead {
            format: FORMAT,
            name: WalFile::Segment(name),
            size: SIZE.bytes(),
            blake3: content.as_deref().map_or_else(wal::any_hash, |content| -> Blake3 { blake3(content) }),
            compressed: 4_900_000,
            postgres: Some(VERSION),
            system: Some(SYSTEM),
            timeline: Some(name.timeline),
            first_lsn: None,
            summary: Some(summary),
        };
        let length = length(number);
        head.compressed = length - head.to_bytes().expect("JSON").len() as u64;
        let mut object = head.to_bytes().expect("JSON");
        if let Some(content) = content {
            let mut frames = FrameWriter::new(Vec::new(), 1).expect("zstd");
            frames.write_all(&content).expect("zstd");
            object.extend(frames.finish().expect("zstd").0);
            // A skippable frame makes it as long as it should be.
            let left = length as usize - object.len() - 8;
            object.extend(0x184D_2A50_u32.to_le_bytes());
            object.extend((left as u32).to_le_bytes());
            object.resize(length as usize, 0);
        }
        object
    }

    /// Answers a request after a while.
    async fn answer<T>(&self, requests: u64, bytes: impl Fn(&T) -> u64, work: impl FnOnce() -> T) -> T {
        let under_way = self.under_way.fetch_add(1, Ordering::Relaxed) + 1;
        // Others get their turn, so that it is seen how many ask at a time.
        tokio::task::yield_now().await;
        if !self.delay.is_zero() {
            tokio::time::sleep(self.delay * requests as u32).await;
        }
        let answer = work();
        self.under_way.fetch_sub(1, Ordering::Relaxed);
        let mut asked = self.asked.lock().expect("no panic");
        asked.requests += requests;
        asked.bytes += bytes(&answer);
        asked.parallel = asked.parallel.max(under_way);
        answer
    }

    fn page(&self, prefix: &str, after: Option<&Key>, limit: usize) -> Vec<Listed> {
        let after = after.map_or(prefix, Key::as_str).max(prefix).to_owned();
        let listed = |key: String, length| Listed { key: Key::new(key).expect("a key"), length };
        let small = self.small.read().expect("no panic");
        let small = small.range(after.clone()..).filter(|(key, _)| **key > after);
        let small = small.take_while(|(key, _)| key.starts_with(prefix)).take(limit);
        let mut page: Vec<Listed> = small.map(|(key, small)| listed(key.clone(), small.length())).collect();
        for (line, there) in self.lines.iter().zip(&*self.there.read().expect("no panic")) {
            let timeline = TimelineId::new(line.writer.timeline).expect("a timeline");
            let own = self.folder.timeline(timeline);
            if !own.starts_with(prefix) && !prefix.starts_with(&own) {
                continue;
            }
            let key = |number| self.folder.segment(wal::name(line.writer.timeline, number)).expect("a key").to_string();
            let (mut low, mut high) = (line.numbers.start, line.numbers.end);
            while low < high {
                let middle = low.midpoint(high);
                if key(middle) > after { high = middle } else { low = middle + 1 }
            }
            let left = there.and(&Ranges::from_on(low));
            let keys = left.iter().flat_map(|(first, end)| first..end).map(|number| (key(number), number));
            let keys = keys.take_while(|(key, _)| key.starts_with(prefix)).take(limit);
            page.extend(keys.map(|(key, number)| listed(key, length(number))));
        }
        page.sort_unstable_by(|a, b| a.key.as_str().cmp(b.key.as_str()));
        page.truncate(limit);
        page
    }

    fn names(&self, prefix: &str) -> Vec<String> {
        let mut names = BTreeSet::new();
        let small = self.small.read().expect("no panic");
        for key in small.range(prefix.to_owned()..).map(|(key, _)| key).take_while(|key| key.starts_with(prefix)) {
            names.extend(key[prefix.len()..].split_once('/').map(|(name, _)| name.to_owned()));
        }
        for (line, there) in self.lines.iter().zip(&*self.there.read().expect("no panic")) {
            let timeline = TimelineId::new(line.writer.timeline).expect("a timeline");
            if prefix == self.folder.timeline(timeline) {
                let logs = there.iter().flat_map(|(first, end)| first / SIZE.per_log()..=(end - 1) / SIZE.per_log());
                names.extend(logs.map(|log| format!("{log:08X}")));
            } else if prefix == self.folder.wal() && !there.is_empty() {
                names.insert(timeline.hex());
            }
        }
        names.into_iter().collect()
    }
}

impl Line {
    /// The numbers of the segments that it had at first.
    pub fn there(&self) -> Ranges {
        let mut gaps = Ranges::default();
        self.gaps.iter().for_each(|gap| gaps.add(gap.start, gap.end));
        Ranges::of(self.numbers.start, self.numbers.end).without(&gaps)
    }
}

impl Small {
    fn length(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File(_, length) => *length,
        }
    }
}

/// The length of the object of a segment.
fn length(number: u64) -> u64 {
    5_000_000 + number * 7_919 % 100_000
}

impl Store for Simulated {
    fn url(&self) -> String {
        "simulated".into()
    }

    fn put<'a>(&'a self, key: &'a Key, bytes: Bytes) -> Answer<'a, Put> {
        Box::pin(async move {
            let put = || match self.small.write().expect("no panic").entry(key.to_string()) {
                Entry::Occupied(_) => Put::Exists,
                Entry::Vacant(place) => {
                    place.insert(Small::Bytes(bytes));
                    Put::Created
                }
            };
            Ok(self.answer(1, |_| 0, put).await)
        })
    }

    fn upload<'a>(&'a self, key: &'a Key) -> Answer<'a, Box<dyn Upload>> {
        Box::pin(async move { Err(Error::refused(format!("nobody writes {key} here"))) })
    }

    fn get<'a>(&'a self, key: &'a Key, range: Option<Range<u64>>) -> Answer<'a, Download> {
        Box::pin(async move {
            let found = self
                .answer(
                    1,
                    |found: &Option<(u64, Bytes)>| found.as_ref().map_or(0, |(_, bytes)| bytes.len() as u64),
                    || {
                        let small = self.small.read().expect("no panic").get(key.as_str()).cloned();
                        match small {
                            Some(Small::Bytes(bytes)) => Some((bytes.len() as u64, bytes)),
                            Some(Small::File(path, length)) => Some((length, fs::read(path).expect("a file").into())),
                            None => {
                                let (line, number) = self.held(key)?;
                                Some((length(number), self.object(line, number, range.is_none()).into()))
                            }
                        }
                    },
                )
                .await;
            let (length, bytes) = found.ok_or_else(|| Error::not_found(format!("{key} is not there")))?;
            let end = range.map_or(bytes.len(), |range| bytes.len().min(range.end as usize));
            Ok(Download { length, listed: length, body: Box::new(Once(Some(bytes.slice(..end)))) })
        })
    }

    fn list<'a>(&'a self, prefix: &'a str, after: Option<&'a Key>, limit: usize) -> Answer<'a, Vec<Listed>> {
        Box::pin(async move {
            let page = self.page(prefix, after, limit);
            let pages = page.len().div_ceil(1000).max(1) as u64;
            Ok(self.answer(pages, |page: &Vec<Listed>| page.len() as u64 * 200, || page).await)
        })
    }

    fn folders<'a>(&'a self, prefix: &'a str) -> Answer<'a, Vec<String>> {
        Box::pin(async move {
            let names = self.names(prefix);
            let pages = names.len() as u64 / 1000 + 1;
            Ok(self.answer(pages, |names: &Vec<String>| names.len() as u64 * 100, || names).await)
        })
    }

    fn delete<'a>(&'a self, key: &'a Key) -> Answer<'a, ()> {
        Box::pin(async move {
            self.answer(1, |()| 0, || self.remove(key)).await;
            Ok(())
        })
    }

    fn delete_many<'a>(&'a self, keys: &'a [Key]) -> Answer<'a, Vec<(Key, Error)>> {
        Box::pin(async move {
            assert!(keys.len() <= 1000, "no bucket takes that many");
            self.answer(1, |()| 0, || keys.iter().for_each(|key| self.remove(key))).await;
            Ok(Vec::new())
        })
    }
}

struct Once(Option<Bytes>);

impl Body for Once {
    fn chunk(&mut self) -> Answer<'_, Option<Bytes>> {
        Box::pin(async move { Ok(self.0.take().filter(|bytes| !bytes.is_empty())) })
    }
}
