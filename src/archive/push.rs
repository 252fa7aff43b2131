//! Push: a file of `pg_wal` into the archive. It answers only when the file is durable in the repository.

use std::{
    fmt::Display,
    fs::File,
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use tokio::runtime::Handle;

use super::{backlog::Effort, data_directory};
use crate::{
    error::{Error, Kind, Result},
    mirror::Opened,
    postgres::{ControlFile, Lsn, TimelineHistory, TimelineId, WalFile},
    repository::{
        ClusterName, FORMAT, Horizons, Incarnation, System, SystemFolder, horizons, join,
        wal_object::{self, Digest, WalHead},
    },
    seal::{self, Blake3, FrameTeam},
    store::{Key, Put, Store, bridge},
    wal::{self, Ending, Summarizer, Summary},
};

/// What is to be pushed.
#[derive(Clone, Debug)]
pub struct Push {
    /// The file (`%p`), below the present working directory unless absolute.
    pub path: PathBuf,
    /// The data directory as the configuration has it.
    pub pgdata: Option<PathBuf>,
    /// The incarnation as the configuration has it.
    pub incarnation: u32,
    /// zstd's level.
    pub level: i32,
}

/// How a push ended well: the file is durable in the repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// The file.
    pub file: WalFile,
    /// The length of the object in bytes.
    pub stored: u64,
    /// Whether it was there before, with the same content.
    pub already: bool,
}

/// A file up to this size is held in memory; a longer one is read twice.
const HELD: u64 = 64 << 20;

/// Pushes a file.
pub async fn push(store: Arc<dyn Store>, cluster: &ClusterName, request: &Push) -> Result<Pushed> {
    let sealing = Sealing::new(request)?;
    // The repository answers while the segment is being compressed.
    let incarnation = sealing.incarnation;
    let folder = SystemFolder { cluster: cluster.clone(), incarnation };
    let (system, horizons, sealed) = tokio::join!(
        System::open(store.clone(), cluster, incarnation),
        horizons(&*store, &folder),
        sealing.seal(Effort::alone(request.level))
    );
    let sealed = sealed?;
    store_sealed(&system?, &horizons?, &sealed, request).await
}

/// A file that is to be checked and compressed.
pub(super) struct Sealing {
    /// The system that it must belong to.
    pub(super) incarnation: Incarnation,
    file: WalFile,
    path: PathBuf,
    /// Whose it is, in words.
    owner: String,
}

impl Sealing {
    pub(super) fn new(request: &Push) -> Result<Self> {
        let path = request.path.clone();
        let file: WalFile = path.file_name().and_then(|n| n.to_str()).unwrap_or_default().parse()?;
        let pgdata = data_directory(&path, request.pgdata.as_deref())?;
        let control = ControlFile::read(&pgdata)?;
        let incarnation = Incarnation { system: control.system, number: request.incarnation };
        Ok(Self { incarnation, file, path, owner: format!("the data directory {}", pgdata.display()) })
    }

    /// Of a file that a server of that system has sent: it lies in no data directory.
    fn received(request: &Push, incarnation: Incarnation) -> Result<Self> {
        let path = request.path.clone();
        let file: WalFile = path.file_name().and_then(|n| n.to_str()).unwrap_or_default().parse()?;
        Ok(Self { incarnation, file, path, owner: "the server".into() })
    }

    pub(super) async fn seal(self, effort: Effort) -> Result<Sealed> {
        join(tokio::task::spawn_blocking(move || Sealed::new(self, effort)).await)?
    }
}

/// Pushes a file that a server of that system has sent.
pub(super) async fn push_received(system: &System, path: &Path, level: i32) -> Result<Pushed> {
    let incarnation = system.folder.incarnation;
    let request = Push { path: path.to_path_buf(), pgdata: None, incarnation: incarnation.number, level };
    let sealed = Sealing::received(&request, incarnation)?.seal(Effort::alone(level)).await?;
    store_sealed(system, &system.horizons().await?, &sealed, &request).await
}

/// Puts it into the archive of the system that it belongs to.
pub(super) async fn store_sealed(
    system: &System,
    horizons: &Horizons,
    sealed: &Sealed,
    request: &Push,
) -> Result<Pushed> {
    let file = sealed.head.name;
    if let Some(facts) = &sealed.facts
        && (facts.size != system.document.segment_size || facts.version != system.document.postgres)
    {
        return Err(Error::refused(format!(
            "{file} is of PostgreSQL {} with segments of {} bytes, but the repository knows this system as PostgreSQL {} with {}",
            facts.version,
            facts.size.bytes(),
            system.document.postgres,
            system.document.segment_size.bytes(),
        ))
        .hint("after pg_resetwal: walden init --new-incarnation, then walden backup"));
    }
    stands_above(system, horizons, file).await?;
    prove_ancestry(system, file, sealed, request).await?;
    let key = system.folder.wal_file(file, sealed.head.blake3)?;
    let (put, stored) = sealed.put(&*system.store, &key, request).await?;
    let already = put == Put::Exists;
    if already {
        same_content(&*system.store, &key, file, &Digest::from(&sealed.head)).await?;
    }
    Ok(Pushed { file, stored, already })
}

/// An object that is durable in the first repository.
pub(super) struct Stored<'a> {
    pub(super) key: Key,
    /// Its bytes, where they are at hand.
    pub(super) sealed: Option<(&'a Sealed, &'a Push)>,
}

impl Stored<'_> {
    /// Has it durable in a mirror, with the bytes that it has in the first: `already` says that these may be others.
    pub(super) async fn put(&self, first: &System, mirror: &Opened, already: bool) -> Result<()> {
        let to = &*mirror.store;
        if let Some((sealed, request)) = self.sealed.filter(|_| !already) {
            return match sealed.put(to, &self.key, request).await? {
                (Put::Created, _) => Ok(()),
                (Put::Exists, _) => same_content(to, &self.key, sealed.head.name, &Digest::from(&sealed.head)).await,
            };
        }
        match mirror.bring(&*first.store, &self.key).await? {
            Put::Created => Ok(()),
            Put::Exists => {
                let ours = wal_object::digest(&*first.store, &self.key).await?;
                same_content(to, &self.key, &self.key, &ours).await
            }
        }
    }
}

/// A file that was checked, with its head; and, unless it is very long, its compressed content.
pub(super) struct Sealed {
    head: WalHead,
    /// The head as it stands in front of the object.
    front: Vec<u8>,
    facts: Option<wal::SegmentFacts>,
    content: Content,
}

/// What is compressed.
enum Content {
    /// The whole object.
    Held(Bytes),
    /// It is compressed again as it is sent, in the same way.
    Again(Arc<Effort>),
}

impl Sealed {
    fn new(Sealing { incarnation, file, ref path, ref owner }: Sealing, effort: Effort) -> Result<Self> {
        let mut from = File::open(path).map_err(|e| Error::io("open", path, e))?;
        let size = from.metadata().map_err(|e| Error::io("stat", path, e))?.len();
        let mut check = Check::new(file, size);
        let mut hasher = blake3::Hasher::new();
        let mut summarizer = None;
        let sink = Sink { held: (size <= HELD).then(Vec::new) };
        let failed = |e| Error::internal("compress").source(e);
        let (length, sink, compressed) = FrameTeam::run(sink, effort.level, effort.helpers, failed, |team| {
            pieces(&mut from, path, |piece| {
                // First of all: helpers work meanwhile.
                team.frame(piece).map_err(failed)?;
                check.feed(piece)?;
                if let Some(start) = check.start() {
                    summarizer.get_or_insert_with(|| Summarizer::new(start)).feed(piece);
                }
                hasher.update(piece);
                Ok(())
            })
        })?;
        if length != size {
            return Err(Error::refused(format!(
                "{} changed its size from {size} to {length} bytes while it was read",
                path.display()
            )));
        }
        let facts = check.finish()?;
        if let Some(facts) = &facts {
            prove_own(file, facts, incarnation, owner)?;
        }
        let summary = summarizer.map(Summarizer::finish);
        if let (WalFile::Segment(_), Some(summary), Some(facts)) = (file, &summary, &facts) {
            prove_full(file, summary, facts)?;
        }
        let segment = facts.as_ref();
        let mut head = WalHead {
            format: FORMAT,
            name: file,
            size,
            blake3: Blake3::from(&hasher),
            compressed,
            postgres: segment.map(|h| h.version),
            system: segment.map(|h| h.system),
            timeline: segment.and(file.segment()).map(|n| n.timeline),
            first_lsn: segment.map(|h| h.start),
            summary,
        };
        let front = head.to_bytes()?;
        let content = match sink.held {
            Some(mut object) => {
                object.splice(0..0, front.iter().copied());
                Content::Held(object.into())
            }
            None => Content::Again(Arc::new(effort)),
        };
        Ok(Self { head, front, facts, content })
    }

    /// The hash of its content.
    pub(super) fn content(&self) -> Blake3 {
        self.head.blake3
    }

    async fn put(&self, store: &dyn Store, key: &Key, request: &Push) -> Result<(Put, u64)> {
        let stored = self.front.len() as u64 + self.head.compressed;
        let effort = match &self.content {
            Content::Held(object) => return Ok((store.put(key, object.clone()).await?, stored)),
            Content::Again(effort) => effort.clone(),
        };
        let upload = store.upload(key).await?;
        let writer = bridge::UploadWriter::new(upload, Handle::current());
        let (path, front, expected) = (request.path.clone(), self.front.clone(), self.head.blake3);
        let put = tokio::task::spawn_blocking(move || stream(&path, &effort, expected, &front, writer)).await;
        Ok((join(put)??, stored))
    }
}

/// The second reading of a long file: what is sent must be what was checked.
fn stream(
    path: &Path,
    effort: &Effort,
    expected: Blake3,
    head: &[u8],
    mut writer: bridge::UploadWriter,
) -> Result<Put> {
    let failed = |e: io::Error| bridge::from_io(e, |e| Error::internal("compress").source(e));
    let mut from = File::open(path).map_err(|e| Error::io("open", path, e))?;
    from.rewind().map_err(|e| Error::io("read", path, e))?;
    writer.write_all(head).map_err(failed)?;
    let mut hasher = blake3::Hasher::new();
    let (_, writer, _) = FrameTeam::run(writer, effort.level, effort.helpers, failed, |team| {
        pieces(&mut from, path, |piece| {
            hasher.update(piece);
            team.frame(piece).map_err(failed)
        })
    })?;
    if Blake3::from(&hasher) != expected {
        return Err(Error::refused(format!("{} changed while it was read", path.display())));
    }
    writer.finish()
}

/// Keeps what is written, or only lets it pass.
struct Sink {
    held: Option<Vec<u8>>,
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(held) = &mut self.held {
            held.extend_from_slice(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn pieces(from: &mut File, path: &Path, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<u64> {
    let mut buffer = vec![0; seal::FRAME_CONTENT];
    let mut length = 0;
    loop {
        let mut filled = 0;
        while filled < buffer.len() {
            match from.read(&mut buffer[filled..]).map_err(|e| Error::io("read", path, e))? {
                0 => break,
                count => filled += count,
            }
        }
        if filled == 0 {
            return Ok(length);
        }
        each(&buffer[..filled])?;
        length += filled as u64;
    }
}

/// The check that fits the kind of file.
enum Check {
    Segment(wal::SegmentCheck),
    Partial(wal::SegmentCheck),
    History(TimelineId, Vec<u8>),
    Label,
}

impl Check {
    fn new(file: WalFile, size: u64) -> Self {
        match file {
            WalFile::Segment(name) => Self::Segment(wal::SegmentCheck::new(name, size)),
            WalFile::Partial(name) => Self::Partial(wal::SegmentCheck::partial(name, size)),
            WalFile::History(timeline) => Self::History(timeline, Vec::new()),
            WalFile::BackupLabel(..) => Self::Label,
        }
    }

    fn feed(&mut self, piece: &[u8]) -> Result<()> {
        match self {
            Self::Segment(check) | Self::Partial(check) => check.feed(piece).map_err(refuse),
            Self::History(_, text) => {
                text.extend_from_slice(piece);
                Ok(())
            }
            Self::Label => Ok(()),
        }
    }

    /// The LSN of the first byte, once that is known.
    fn start(&self) -> Option<Lsn> {
        match self {
            Self::Segment(check) | Self::Partial(check) => check.header().map(|header| header.start),
            Self::History(..) | Self::Label => None,
        }
    }

    fn finish(self) -> Result<Option<wal::SegmentFacts>> {
        match self {
            Self::Segment(check) | Self::Partial(check) => check.finish().map_err(refuse).map(Some),
            Self::History(timeline, text) => {
                TimelineHistory::parse(timeline, &String::from_utf8_lossy(&text)).map_err(refuse)?;
                Ok(None)
            }
            Self::Label => Ok(None),
        }
    }
}

fn prove_own(file: WalFile, facts: &wal::SegmentFacts, incarnation: Incarnation, owner: &str) -> Result<()> {
    if facts.system == incarnation.system {
        return Ok(());
    }
    Err(Error::refused(format!(
        "{file} belongs to system {}, but {owner} to system {}",
        facts.system, incarnation.system
    ))
    .hint("a segment of another server lies in this pg_wal; nothing was stored"))
}

/// PostgreSQL leaves no room behind the records of a segment that is complete, unless it switched to the next one. What
/// was made of pieces has zeros there, even where all its pages are in place.
fn prove_full(file: WalFile, summary: &Summary, facts: &wal::SegmentFacts) -> Result<()> {
    let switched = matches!(facts.end, wal::SegmentEnd::Switch { .. });
    if summary.ending == Ending::Zeros && !switched {
        let end = summary.end;
        return Err(refuse(Error::damaged(format!("the records of {file} end at {end}: the segment is not complete"))));
    }
    if let Ending::Broken { at, why } = &summary.ending {
        tracing::warn!(
            "the records of {file} cannot be read at {at}: {why}; it is archived as it is, and recovery will end there"
        );
    }
    Ok(())
}

/// A file that is not what its name says is not stored, whatever is wrong with it.
fn refuse(error: Error) -> Error {
    let refused = Error::refused(error.to_string());
    refused.hint(
        "nothing was stored; if the file in pg_wal is damaged, take a new backup once archiving goes on behind it",
    )
}

/// Below the horizon names are free because their WAL was removed. What is still there may be pushed again.
async fn stands_above(system: &System, horizons: &Horizons, file: WalFile) -> Result<()> {
    let WalFile::Segment(name) = file else { return Ok(()) };
    let Some(horizon) = horizons.get(&name.timeline).filter(|horizon| name < **horizon) else { return Ok(()) };
    match wal_object::digest(&*system.store, &system.folder.segment(name)?).await {
        Ok(_) => Ok(()),
        // A bucket that keeps versions calls a deleted one damaged.
        Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Damaged) => Err(Error::refused(format!(
            "{file} lies before {horizon}: WAL up to there was removed by walden expire, and nothing new may come under those names"
        ))
        .hint(
            "a server that was rolled back needs an archive of its own: walden init --new-incarnation, then walden backup; \
             one that is only late has nothing to gain from this segment: let archive_command pass over it by hand",
        )),
        Err(error) => Err(error),
    }
}

/// Pages of an earlier timeline are right only if that is an ancestor of the timeline in the name.
async fn prove_ancestry(system: &System, file: WalFile, sealed: &Sealed, request: &Push) -> Result<()> {
    let (Some(name), Some(facts)) = (file.segment(), &sealed.facts) else { return Ok(()) };
    let Some((foreign, _)) = facts.timelines.iter().find(|(t, _)| *t != name.timeline) else { return Ok(()) };
    let beside = request.path.with_file_name(format!("{}.history", name.timeline.hex()));
    let history = match std::fs::read_to_string(&beside) {
        Ok(text) => TimelineHistory::parse(name.timeline, &text)?,
        Err(_) => system.history(name.timeline).await.map_err(|e| match e.kind() {
            Kind::NotFound => Error::unavailable(format!(
                "{file} holds pages of timeline {foreign}, and the history of timeline {} is neither beside it nor in the repository",
                name.timeline
            ))
            .hint("PostgreSQL archives the history file first; this push is repeated after that"),
            _ => e,
        })?,
    };
    match facts.timelines.iter().find(|(t, _)| !history.includes(*t)) {
        None => Ok(()),
        Some((stranger, _)) => Err(refuse(Error::damaged(format!(
            "{file} holds pages of timeline {stranger}, which is no ancestor of timeline {}",
            name.timeline
        )))),
    }
}

/// An object of that name was there before: a success only if it holds the same file, whole.
async fn same_content(store: &dyn Store, key: &Key, name: impl Display, ours: &Digest) -> Result<()> {
    let theirs = wal_object::digest(store, key).await?;
    if (theirs.blake3, theirs.size) == (ours.blake3, ours.size) {
        return Ok(());
    }
    let told = |digest: &Digest| {
        let system = digest.system.map_or(String::new(), |system| format!(" of system {system}"));
        format!("BLAKE3 {}{system}", digest.blake3.short())
    };
    Err(Error::refused(format!(
        "{name} is in the repository already with other content: there {}, here {}",
        told(&theirs),
        told(ours)
    ))
    .hint(
        "two servers write the same WAL: one of them is a copy of the other, or was rolled back; nothing was overwritten. \
         Stop the copy, or give this server its own archive: walden init --new-incarnation, then walden backup",
    ))
}
