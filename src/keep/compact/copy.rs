//! Copies what is living into new parts. A frame in which everything is living is taken over as it is; of others the
//! living pieces are put together into new frames.

use std::{
    collections::HashMap,
    io::{self, Read},
    sync::Arc,
};

use tokio::runtime::Handle;

use super::living::{Living, Source};
use crate::{
    backup::PartWriter,
    error::{Error, Result},
    interrupt::Interrupt,
    pace::Throttle,
    progress::Progress,
    repository::{BackupId, Layer, LayerMap, Part, PartIndex, PartName, System},
    seal::FrameSize,
    store::bridge,
};

/// So many dead bytes between living ones are fetched with them rather than by another request.
const GAP: u64 = 256 << 10;

/// Where a member lies now that lay at that offset in that part.
pub type Moves = HashMap<(PartName, u64), Place>;

/// Where a member lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    part: PartName,
    offset: u64,
    map: Option<LayerMap>,
}

impl Place {
    /// That layer, where it lies now.
    pub fn of(&self, layer: &Layer) -> Layer {
        let ((backup, part), offset, map) = (self.part, self.offset, self.map);
        Layer { backup, part, offset, map, ..layer.clone() }
    }
}

/// The work. Not on a thread that drives the runtime.
pub struct Copying {
    pub system: System,
    /// Whose folder the new parts lie in.
    pub id: BackupId,
    pub level: i32,
    pub throttle: Throttle,
    pub interrupt: Interrupt,
    pub progress: Arc<dyn Progress>,
    pub runtime: Handle,
}

impl Copying {
    /// Copies all that is living. Gives back the new parts, and where everything lies in them.
    pub fn all(&self, living: Living) -> Result<(Vec<Part>, Moves)> {
        let (mut parts, mut moves) = (Vec::new(), Moves::new());
        let mut writer: Option<PartWriter> = None;
        for (name, source) in living.parts {
            let index = match source.members.values().any(|member| member.layer.map.is_some()) {
                true => self.runtime.block_on(self.system.part_index(&source.part))?.unwrap_or_default(),
                false => PartIndex::default(),
            };
            let runs = source.runs();
            let mut frames = Frames::new(self, &source, &runs);
            let (mut members, mut begun) = (source.members.iter().peekable(), 0);
            while begun < runs.len() {
                if let Some(full) = writer.take_if(|writer| writer.is_full()) {
                    parts.push(full.finish()?);
                }
                let into = match &mut writer {
                    Some(writer) => writer,
                    None => writer.insert(self.begin(parts.len() as u32 + 1)?),
                };
                let (begin, end) = runs[begun];
                let at = into.offset();
                frames.copy((begin, end), into)?;
                while let Some((offset, member)) = members.next_if(|(_, member)| member.begin < end) {
                    let (new, blocks) = (at + (*offset - begin), index.blocks(&member.layer)?);
                    let map = into.note(member.file.clone(), &member.layer, new, blocks.as_ref());
                    moves.insert((name, *offset), Place { part: into.name(), offset: new, map });
                }
                self.progress.advance(end - begin);
                begun += 1;
            }
        }
        if let Some(writer) = writer {
            parts.push(writer.finish()?);
        }
        Ok((parts, moves))
    }

    fn begin(&self, number: u32) -> Result<PartWriter> {
        let key = self.system.folder.part(self.id, number)?;
        let upload = self.runtime.block_on(self.system.store.upload(&key))?;
        PartWriter::new(self.id, number, bridge::UploadWriter::new(upload, self.runtime.clone()), self.level)
    }
}

/// The frames of a part, read once from the first to the last that is needed.
struct Frames<'a> {
    copying: &'a Copying,
    source: &'a Source,
    /// Stretches of the object that are fetched with one request each, in their order; the last one first.
    wanted: Vec<(u64, u64)>,
    reader: Option<bridge::BodyReader>,
    /// The frame that comes next in the table, and where it begins in the object and in the content.
    next: usize,
    stored: u64,
    content: u64,
    /// Where the reader stands in the object.
    at: u64,
    /// The frame that was read last: where its content begins, its bytes as stored, and its content.
    present: Option<(u64, Vec<u8>, Vec<u8>)>,
}

impl<'a> Frames<'a> {
    fn new(copying: &'a Copying, source: &'a Source, runs: &[(u64, u64)]) -> Self {
        let (mut wanted, mut run, mut stored, mut content) = (Vec::<(u64, u64)>::new(), 0, 0, 0);
        for frame in source.part.frames.frames() {
            let (begin, end) = (content, content + u64::from(frame.content));
            while runs.get(run).is_some_and(|(_, e)| *e <= begin) {
                run += 1;
            }
            if runs.get(run).is_some_and(|(b, _)| *b < end) {
                let after = stored + u64::from(frame.stored);
                match wanted.last_mut().filter(|(_, e)| stored - *e <= GAP) {
                    Some((_, e)) => *e = after,
                    None => wanted.push((stored, after)),
                }
            }
            (stored, content) = (stored + u64::from(frame.stored), end);
        }
        wanted.reverse();
        Self { copying, source, wanted, reader: None, next: 0, stored: 0, content: 0, at: 0, present: None }
    }

    /// Copies a stretch of the content; they come in their order.
    fn copy(&mut self, (begin, end): (u64, u64), into: &mut PartWriter) -> Result<()> {
        let mut at = begin;
        while at < end {
            let (first, stored, content) = self.holding(at)?;
            let after = first + content.len() as u64;
            if at == first && after <= end {
                into.take_frame(stored, content.len() as u32)?;
                at = after;
            } else {
                let until = after.min(end);
                into.take(&content[(at - first) as usize..(until - first) as usize])?;
                at = until;
            }
        }
        Ok(())
    }

    /// The frame that holds that byte of the content.
    fn holding(&mut self, at: u64) -> Result<(u64, &[u8], &[u8])> {
        let holds = |(first, _, content): &(u64, Vec<u8>, Vec<u8>)| at < first + content.len() as u64;
        if !self.present.as_ref().is_some_and(holds) {
            self.copying.interrupt.check()?;
            self.present = Some(self.read(at)?);
        }
        let (first, stored, content) = self.present.as_ref().ok_or_else(|| self.damaged())?;
        Ok((*first, stored, content))
    }

    fn read(&mut self, at: u64) -> Result<(u64, Vec<u8>, Vec<u8>)> {
        let frames = self.source.part.frames.frames();
        let frame = loop {
            let frame: FrameSize = *frames.get(self.next).ok_or_else(|| self.damaged())?;
            if at < self.content + u64::from(frame.content) {
                break frame;
            }
            self.next += 1;
            self.stored += u64::from(frame.stored);
            self.content += u64::from(frame.content);
        };
        let stored = self.bytes(self.stored, frame.stored as usize)?;
        let content = zstd::bulk::decompress(&stored, frame.content as usize);
        let content = content.map_err(|e| self.damaged().source(e))?;
        if content.len() != frame.content as usize {
            return Err(self.damaged());
        }
        let first = self.content;
        self.next += 1;
        self.stored += u64::from(frame.stored);
        self.content += u64::from(frame.content);
        Ok((first, stored, content))
    }

    /// Bytes of the object.
    fn bytes(&mut self, from: u64, length: usize) -> Result<Vec<u8>> {
        let key = self.copying.system.folder.part(self.source.part.backup, self.source.part.number)?;
        if let Some((begin, end)) = self.wanted.pop_if(|(begin, _)| *begin <= from) {
            let download = self.copying.runtime.block_on(self.copying.system.store.get(&key, Some(begin..end)))?;
            self.reader = Some(bridge::BodyReader::new(download.body, self.copying.runtime.clone()));
            self.at = begin;
        }
        let damaged = self.damaged();
        let reader = self.reader.as_mut().ok_or_else(|| Error::internal("a frame is read that was not wanted"))?;
        self.copying.throttle.pass(from - self.at + length as u64);
        let mut bytes = vec![0; length];
        let read = io::copy(&mut reader.by_ref().take(from - self.at), &mut io::sink());
        read.and_then(|_| reader.read_exact(&mut bytes)).map_err(|e| bridge::from_io(e, |e| damaged.source(e)))?;
        self.at = from + length as u64;
        Ok(bytes)
    }

    fn damaged(&self) -> Error {
        let Part { backup, number, .. } = &self.source.part;
        Error::damaged(format!("part {number} of backup {backup} cannot be read: it was left as it is"))
            .hint("walden verify tells what is lost with it")
    }
}
