//! What a segment holds: of one in the archive, or of a file on disk. When its last record goes on in the next segment,
//! that one is read as far as the record goes; a younger timeline's, where its own is not there.

use std::{
    fs::File,
    io::{self, Read},
    ops::ControlFlow,
    path::Path,
};

use crate::{
    error::{Error, Kind, Result},
    postgres::{Lsn, SegmentName, TimelineId, WalFile},
    repository::{
        System, join,
        wal_object::{self, WalObject},
    },
    wal::{Contents, Inspector, SegmentHeader, page::LONG_HEADER},
};

/// A segment of the archive.
#[derive(Debug)]
pub struct Shown {
    /// What it holds.
    pub contents: Contents,
    /// The length of its object in bytes.
    pub stored: u64,
    /// The timeline that begins before the record which its own timeline leaves unfinished, and where: that record does
    /// not count there.
    pub given_up: Option<(TimelineId, Lsn)>,
}

/// Shows a segment of the archive. With `each` every commit and abort is listed. `NotFound` when it is not there.
pub async fn show(system: &System, name: SegmentName, each: bool) -> Result<Shown> {
    let size = system.document.segment_size;
    let open = async |name| wal_object::open(&*system.store, &system.folder.segment(name)?).await;
    let object = open(name).await?;
    let stored = object.length;
    let inspector = Inspector::new(name.start(size)?, size, each);
    let mut inspector = join(tokio::task::spawn_blocking(move || read(object, inspector, false)).await)??;
    let (mut next, mut given_up) = (name, None);
    while let Some(start) = inspector.unfinished() {
        next = next.next(size)?;
        let mut object = open(next).await;
        if matches!(&object, Err(error) if error.kind() == Kind::NotFound) {
            match younger(system, next, start).await? {
                Younger::GoesOn(copies) => {
                    for copy in copies {
                        (next, object) = (copy, open(copy).await);
                        if object.is_ok() {
                            break;
                        }
                    }
                }
                Younger::GivesUp(timeline, switch) => given_up = Some((timeline, switch)),
            }
        }
        let object = match object {
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Damaged) => break,
            object => object?,
        };
        inspector = join(tokio::task::spawn_blocking(move || read(object, inspector, true)).await)??;
    }
    Ok(Shown { contents: inspector.finish(), stored, given_up })
}

/// What younger timelines do with a record that goes on in a segment which its own timeline does not have.
enum Younger {
    /// They may have that segment under these names.
    GoesOn(Vec<SegmentName>),
    /// None of them has the record: one begins before it, there.
    GivesUp(TimelineId, Lsn),
}

/// Looks for segment `missing` on younger timelines, into which the record at `start` goes on.
async fn younger(system: &System, missing: SegmentName, start: Lsn) -> Result<Younger> {
    let (size, own) = (system.document.segment_size, missing.timeline);
    let last_byte = missing.start(size)? + (size.bytes() - 1);
    let (mut copies, mut given_up) = (Vec::new(), None);
    for timeline in system.timelines().await?.into_iter().filter(|timeline| *timeline > own) {
        let history = match system.history(timeline).await {
            Err(error) if error.kind() == Kind::NotFound => continue,
            history => history?,
        };
        match history.left(own) {
            Ok(Some(switch)) if switch <= start => given_up = given_up.or(Some((history.at(switch), switch))),
            Ok(Some(_)) => copies.push(SegmentName::holding(history.at(last_byte), last_byte, size)),
            _ => {}
        }
    }
    copies.sort();
    copies.dedup();
    copies.retain(|copy| copy.timeline != own);
    Ok(match given_up {
        Some((timeline, switch)) if copies.is_empty() => Younger::GivesUp(timeline, switch),
        _ => Younger::GoesOn(copies),
    })
}

/// Feeds an object: all of it, or as much as is wanted.
fn read(object: WalObject, mut inspector: Inspector, wanted: bool) -> Result<Inspector> {
    object.read(|bytes| {
        inspector.feed(bytes);
        Ok(if wanted && !inspector.wants_more() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    Ok(inspector)
}

/// Shows a file: a segment or a `.partial`, whatever its name. The next segment is looked for beside it.
pub fn show_file(path: &Path, each: bool) -> Result<(Contents, SegmentName)> {
    let failed = |error| Error::io("read", path, error);
    let mut file = File::open(path).map_err(|error| Error::io("open", path, error))?;
    let mut front = Vec::with_capacity(LONG_HEADER);
    Read::by_ref(&mut file).take(LONG_HEADER as u64).read_to_end(&mut front).map_err(failed)?;
    let header = SegmentHeader::parse(&front).map_err(|error| error.context(path.display()))?;
    let named = path.file_name().and_then(|name| name.to_str()?.parse().ok());
    let name = match named {
        Some(WalFile::Segment(name) | WalFile::Partial(name)) => {
            header.check_name(name).map_err(|error| {
                error.hint("PostgreSQL keeps old segments under later names until it writes them anew")
            })?;
            name
        }
        _ => SegmentName::holding(header.timeline, header.start, header.size),
    };
    let mut inspector = Inspector::new(header.start, header.size, each);
    inspector.feed(&front);
    feed(&mut inspector, &mut file, |_| true).map_err(failed)?;
    let mut next = name;
    while inspector.wants_more() {
        next = next.next(header.size)?;
        let beside = path.with_file_name(next.to_string());
        let Ok(mut file) = File::open(&beside) else { break };
        feed(&mut inspector, &mut file, Inspector::wants_more).map_err(|error| Error::io("read", &beside, error))?;
    }
    Ok((inspector.finish(), name))
}

/// Feeds the rest of a file while more is wanted.
fn feed(inspector: &mut Inspector, file: &mut File, wanted: impl Fn(&Inspector) -> bool) -> io::Result<()> {
    let mut buffer = vec![0; 256 << 10];
    while wanted(inspector) {
        match file.read(&mut buffer)? {
            0 => break,
            count => inspector.feed(&buffer[..count]),
        }
    }
    Ok(())
}
