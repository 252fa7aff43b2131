//! The bytes of files out of the parts that hold them, a backup's own and those of older ones: neighbouring pieces
//! are fetched with one ranged request.

use std::{
    collections::{BTreeSet, HashMap},
    io::{self, Read},
    sync::Arc,
};

use tokio::runtime::Handle;

use crate::{
    error::{Error, Kind, Result},
    pace::Throttle,
    repository::{BackupId, File, Layer, LayerBlocks, LayerMaps, Manifest, Part, System},
    seal::SeekTable,
    store::bridge::{self, BodyReader},
};

/// Bytes handled at a time.
pub const CHUNK: usize = 256 << 10;
/// More bytes than this between two wanted pieces are not fetched: another request is.
pub const GAP: u64 = 4 << 20;
/// How a damaged object is mended.
pub const ANOTHER: &str = "bring that object back from another copy of the repository and repeat this command, or restore another backup: --backup ID";

/// A part: the backup it belongs to, and its number there.
pub type PartName = (BackupId, u32);

/// Bytes that are wanted of the content of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Piece {
    /// Where they begin.
    pub offset: u64,
    /// How many.
    pub length: u64,
    /// For which file: a number that the caller gives.
    pub file: usize,
}

/// Neighbouring pieces of one part, in the order in which they lie.
#[derive(Debug, PartialEq, Eq)]
pub struct Run {
    /// The part.
    pub part: PartName,
    /// What is wanted of it.
    pub pieces: Vec<Piece>,
    /// From the first wanted byte to the last.
    pub span: u64,
}

/// Cuts pieces into runs of neighbours; none is continued past `longest` bytes.
pub fn runs(mut pieces: Vec<(PartName, Piece)>, longest: u64) -> Vec<Run> {
    pieces.sort_unstable();
    let mut runs: Vec<Run> = Vec::new();
    for (part, piece) in pieces {
        let open = runs.last_mut().filter(|run| run.part == part && run.span < longest);
        let begin = open.as_ref().and_then(|run| run.pieces.first()).map(|first| first.offset);
        match (open, begin) {
            (Some(run), Some(begin)) if piece.offset <= begin + run.span + GAP => {
                run.span = piece.offset + piece.length - begin;
                run.pieces.push(piece);
            }
            _ => runs.push(Run { part, span: piece.length, pieces: vec![piece] }),
        }
    }
    runs
}

/// Where the files of a backup are read from.
#[derive(Debug)]
pub struct Source {
    system: System,
    manifest: Arc<Manifest>,
    /// Where each part stands in the manifest's list.
    parts: HashMap<PartName, usize>,
    maps: LayerMaps,
    /// How fast: whoever reads the files that are there asks as well.
    pub throttle: Throttle,
}

impl Source {
    /// The parts that this manifest lists, of which `rate_limit` bytes of content are fetched in a second at most.
    pub fn new(system: System, manifest: Arc<Manifest>, rate_limit: Option<u64>) -> Self {
        let parts = manifest.parts.iter().enumerate().map(|(at, part)| ((part.backup, part.number), at)).collect();
        Self { maps: LayerMaps::new(system.clone()), system, manifest, parts, throttle: Throttle::new(rate_limit) }
    }

    fn part(&self, name: PartName) -> Result<&Part> {
        self.parts.get(&name).and_then(|at| self.manifest.parts.get(*at)).ok_or_else(|| {
            Error::damaged(format!("the manifest names part {} of backup {} but does not list it", name.1, name.0))
        })
    }

    /// Fetches a run and hands the bytes of each piece to `receive`, which may leave the rest of them. Not on a thread
    /// that drives the runtime.
    pub fn fetch(&self, run: &Run, mut receive: impl FnMut(&Piece, &mut dyn Read) -> Result<()>) -> Result<()> {
        let (Some(first), Some(last)) = (run.pieces.first(), run.pieces.last()) else { return Ok(()) };
        let part = self.part(run.part)?;
        let damaged = |what: &str| lost(part, what);
        let (start, mut at) =
            part.frames.seek(first.offset).ok_or_else(|| damaged("is shorter than the manifest tells"))?;
        let end = end_of(&part.frames, last.offset + last.length)
            .ok_or_else(|| damaged("is shorter than the manifest tells"))?;
        let key = self.system.folder.part(part.backup, part.number)?;
        let runtime = Handle::current();
        let download = runtime.block_on(self.system.store.get(&key, Some(start..end))).map_err(|e| match e.kind() {
            Kind::NotFound => damaged("is missing"),
            _ => e,
        })?;
        if download.length != part.length {
            return Err(damaged("does not have the length that the manifest tells"));
        }
        let body = BodyReader::new(download.body, runtime);
        let decoder = zstd::Decoder::new(body).map_err(|e| Error::internal("start the zstd decoder").source(e))?;
        let mut from = Guarded { decoder, part, throttle: &self.throttle };
        for piece in &run.pieces {
            let skip = piece.offset.checked_sub(at).ok_or_else(|| damaged("holds files that overlap"))?;
            copy(&mut from, skip, |_| Ok(()))?;
            let mut own = (&mut from).take(piece.length);
            receive(piece, &mut own)?;
            at = piece.offset + piece.length - own.limit();
        }
        Ok(())
    }

    /// These files were found damaged: whether another copy of one of the parts that hold them will be read from now on.
    pub fn set_aside(&self, files: impl Iterator<Item = File>) -> Result<bool> {
        let parts: BTreeSet<PartName> =
            files.flat_map(|file| file.layers.into_iter().map(|layer| (layer.backup, layer.part))).collect();
        let mut any = false;
        for (backup, number) in parts {
            any |= self.system.store.set_aside(&self.system.folder.part(backup, number)?);
        }
        Ok(any)
    }

    /// The hashes of a layer's blocks; `None` where none were kept. Not on a thread that drives the runtime.
    pub fn blocks(&self, layer: &Layer) -> Result<Option<LayerBlocks>> {
        self.maps.blocks(self.part((layer.backup, layer.part))?, layer, &Handle::current())
    }
}

fn lost(part: &Part, what: &str) -> Error {
    Error::damaged(format!("part {} of backup {} {what}", part.number, part.backup)).hint(ANOTHER)
}

/// The content of a part; what is wrong with it names the part.
struct Guarded<'a, R: io::BufRead> {
    decoder: zstd::Decoder<'static, R>,
    part: &'a Part,
    throttle: &'a Throttle,
}

impl<R: io::BufRead> Read for Guarded<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.decoder.read(buffer).map_err(|e| {
            bridge::into_io(bridge::from_io(e, |e| lost(self.part, "cannot be decompressed").source(e)))
        })?;
        self.throttle.pass(read as u64);
        Ok(read)
    }
}

/// Hands exactly `length` bytes on.
pub fn copy(from: &mut (impl Read + ?Sized), mut length: u64, mut to: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let mut buffer = vec![0; CHUNK.min(usize::try_from(length).unwrap_or(CHUNK))];
    while length > 0 {
        let wanted = buffer.len().min(usize::try_from(length).unwrap_or(usize::MAX));
        fill(from, &mut buffer[..wanted])?;
        to(&buffer[..wanted])?;
        length -= wanted as u64;
    }
    Ok(())
}

/// Fills a buffer.
pub fn fill(from: &mut (impl Read + ?Sized), buffer: &mut [u8]) -> Result<()> {
    from.read_exact(buffer).map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof => Error::damaged("a part ends before its last file does").hint(ANOTHER),
        _ => bridge::from_io(e, |e| Error::damaged("a part cannot be read").source(e)),
    })
}

/// Where the frame that holds the last byte before `content` ends in the object.
fn end_of(frames: &SeekTable, content: u64) -> Option<u64> {
    let (mut stored, mut seen) = (0, 0);
    for frame in frames.frames() {
        if seen >= content {
            break;
        }
        stored += u64::from(frame.stored);
        seen += u64::from(frame.content);
    }
    (seen >= content).then_some(stored)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::FrameSize;

    fn pieces(lies: &[(u32, u64, u64)]) -> Vec<(PartName, Piece)> {
        let backup = "20261121T014500Z".parse().unwrap();
        let piece = |(file, (part, offset, length)): (usize, &(u32, u64, u64))| {
            ((backup, *part), Piece { offset: *offset, length: *length, file })
        };
        lies.iter().enumerate().map(piece).collect()
    }

    #[test]
    fn neighbours_share_a_request_and_strangers_do_not() {
        let found = runs(pieces(&[(1, 64 << 20, 100), (1, 2048, 100), (2, 512, 10), (1, 512, 100)]), u64::MAX);
        let files: Vec<_> =
            found.iter().map(|r| (r.part.1, r.pieces.iter().map(|p| p.file).collect::<Vec<_>>(), r.span)).collect();
        assert_eq!(files, [(1, vec![3, 1], 1636), (1, vec![0], 100), (2, vec![2], 10)]);
    }

    #[test]
    fn a_run_is_not_continued_past_its_length() {
        let great: Vec<_> = (0..10).map(|n| (1, 512 + n * (32 << 20), 32 << 20)).collect();
        let lengths = |longest| runs(pieces(&great), longest).iter().map(|r| r.pieces.len()).collect::<Vec<_>>();
        assert_eq!(lengths(64 << 20), [2; 5]);
        assert_eq!(lengths(u64::MAX), [10]);
    }

    #[test]
    fn the_last_frame_is_fetched_whole_and_no_further() {
        let frames = SeekTable::from(vec![
            FrameSize { stored: 10, content: 100 },
            FrameSize { stored: 20, content: 50 },
            FrameSize { stored: 5, content: 7 },
        ]);
        assert_eq!(end_of(&frames, 100), Some(10));
        assert_eq!(end_of(&frames, 101), Some(30));
        assert_eq!(end_of(&frames, 157), Some(35));
        assert_eq!(end_of(&frames, 158), None);
    }
}
