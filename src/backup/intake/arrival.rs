//! A file out of the stream into the parts, by the same rules as a file that is read here (`source`, `changes`): a small
//! one is compared with the ancestor's by content, a relation's gets a map of its blocks, and where the ancestor has
//! one, only what changed is stored. Nothing but content can tell: the server sends no inode and no finer time than
//! seconds.

use std::{io::Read, mem, os::unix::fs::FileExt, path::PathBuf};

use super::{Intake, SMALL, Taking, changed::changed_file, spool::Spool, unreadable};
use crate::{
    backup::{
        changes,
        part::Attributes,
        source::{self, Found, Into, Opened, Pages, Stored, Watch},
    },
    error::{Error, Result},
    pace::Throttle,
    postgres::{
        backup_label::{BACKUP_LABEL, BackupLabel},
        backup_manifest::ManifestFile,
        control::CONTROL_FILE,
        datadir::FileKind,
        page::{Verdict, verify_page},
    },
    progress::Unwatched,
    repository::{File, Hashed, Layer, LayerBlocks},
    seal::{Blake3, BlockHash, BlockMap, blake3},
};

/// A file that arrives.
pub(super) struct Arriving<'a> {
    pub path: PathBuf,
    pub size: u64,
    pub attributes: Attributes,
    pub from: &'a mut dyn Read,
}

impl Arriving<'_> {
    /// The file, as the manifest will have it.
    pub(super) fn stored(&self, found: Found, bad: &[u32]) -> Stored {
        let file = found.file(&self.path, self.size, self.attributes, None);
        Stored { file, bad: source::bad_pages(&self.path, bad) }
    }
}

/// What proves a file that is stored while it comes.
enum Sum {
    /// Hash and checksum of its bytes.
    Content(Box<::blake3::Hasher>, u32),
    /// A map of its blocks, of so many bytes each.
    Blocks(BlockMap, usize),
}

impl Sum {
    /// The next bytes; whole blocks, where there are blocks.
    fn add(&mut self, chunk: &[u8]) {
        match self {
            Self::Content(hasher, crc32c) => {
                hasher.update(chunk);
                *crc32c = crc32c::crc32c_append(*crc32c, chunk);
            }
            Self::Blocks(map, size) => chunk.chunks_exact(*size).for_each(|block| map.push(BlockHash::of(block))),
        }
    }

    /// What is known of a file that lies in one layer.
    fn found(self, layer: Layer) -> (Found, Option<LayerBlocks>) {
        let layers = vec![layer];
        match self {
            Self::Content(hasher, crc32c) => {
                (Found { blake3: Blake3::from(&*hasher), hashed: Hashed::Content, crc32c, layers }, None)
            }
            Self::Blocks(map, size) => {
                let (blake3, crc32c) = (map.root(), map.crc32c(size));
                (Found { blake3, hashed: Hashed::Blocks, crc32c, layers }, Some(LayerBlocks::Whole(map)))
            }
        }
    }
}

/// Judges the pages of a file as they pass. The server has read a page again before it sent one that is bad.
pub(super) struct Judge {
    pages: Option<Pages>,
    /// The number of the next page.
    next: u32,
    pub bad: Vec<u32>,
}

impl Judge {
    pub(super) fn new(pages: Option<Pages>) -> Self {
        Self { pages, next: 0, bad: Vec::new() }
    }

    /// The next bytes; whole pages but at the end.
    fn see(&mut self, chunk: &[u8]) {
        let Some(Pages { size, .. }) = self.pages else { return };
        for page in chunk.chunks_exact(size as usize) {
            self.page(self.next, page);
            self.next += 1;
        }
    }

    /// The page of that number.
    pub(super) fn page(&mut self, number: u32, page: &[u8]) {
        let Some(Pages { first, start, .. }) = self.pages else { return };
        if let Verdict::Bad { .. } = verify_page(page, first + number, start) {
            self.bad.push(number);
        }
    }
}

impl Taking {
    /// Stores a file, or finds that it is stored already.
    pub(super) fn file(&mut self, file: &mut Arriving<'_>) -> Result<()> {
        let changed = self.intake.incremental.as_ref().and_then(|_| changed_file(&file.path));
        if !self.is_stored(changed.as_ref().unwrap_or(&file.path)) {
            return self.pass_over(file);
        }
        let Stored { file, bad } = match changed {
            Some(path) => self.changed(path, file)?,
            None => self.entire(file)?,
        };
        self.haul.files.push(&file);
        self.haul.bad.extend(bad);
        Ok(())
    }

    fn entire(&mut self, file: &mut Arriving<'_>) -> Result<Stored> {
        let relation = matches!(FileKind::of(&file.path), FileKind::Relation(_));
        if relation && source::is_mapped(file.size, self.intake.block_size) {
            self.in_blocks(file)
        } else if file.size <= SMALL {
            self.small(file)
        } else {
            self.whole(file, Sum::Content(Box::default(), 0))
        }
    }

    /// A file that is left out is held against the server's manifest all the same.
    fn pass_over(&mut self, file: &mut Arriving<'_>) -> Result<()> {
        let mut crc32c = 0;
        self.intake.each(file, &mut self.buffer, |chunk| {
            crc32c = crc32c::crc32c_append(crc32c, chunk);
            Ok(())
        })?;
        self.as_sent.push(ManifestFile { path: mem::take(&mut file.path), size: file.size, crc32c });
        Ok(())
    }

    fn small(&mut self, file: &mut Arriving<'_>) -> Result<Stored> {
        let mut bytes = vec![0; usize::try_from(file.size).unwrap_or(usize::MAX)];
        file.from.read_exact(&mut bytes).map_err(unreadable)?;
        self.intake.passed(file.size);
        match file.path.to_str() {
            Some(CONTROL_FILE) => self.control = Some(bytes.clone()),
            Some(BACKUP_LABEL) => {
                self.label = Some(bytes.clone());
                bytes = self.own_label(bytes, file)?;
            }
            _ => {}
        }
        let mut judge = Judge::new(self.pages_of(&file.path));
        judge.see(&bytes);
        let (blake3, crc32c) = (blake3(&bytes), crc32c::crc32c(&bytes));
        let found = |layers| Found { blake3, hashed: Hashed::Content, crc32c, layers };
        let known = self.intake.ancestor.as_ref().and_then(|ancestor| ancestor.file(&file.path));
        let same = known.filter(|f| f.hashed == Hashed::Content && f.size == file.size && f.blake3 == blake3);
        if let Some(same) = same {
            return Ok(file.stored(found(same.layers), &judge.bad));
        }
        let part = self.shelf.part()?;
        let layer = part.begin(&file.path, file.size, file.attributes)?;
        part.data(&bytes)?;
        let Stored { file, bad } = file.stored(found(source::layers_of(layer)), &judge.bad);
        Ok(Stored { file: part.record(file, None, &bad), bad })
    }

    /// A relation's file that gets a map.
    fn in_blocks(&mut self, file: &mut Arriving<'_>) -> Result<Stored> {
        let known = self.intake.ancestor.as_ref().and_then(|ancestor| ancestor.file(&file.path));
        // One with so many layers that the server was not asked for its changes: this ends that.
        let too_many = |known: &File| known.layers.len() > 1 && !changes::takes_a_layer(known, self.intake.block_size);
        let settled = |known: &File| self.intake.incremental.is_some() && too_many(known);
        if known.is_some_and(|known| known.hashed == Hashed::Blocks && !settled(&known))
            && let Some(spool) = self.spool_for(file.size)
        {
            return self.compared(file, spool);
        }
        self.whole(file, Sum::Blocks(BlockMap::default(), self.intake.block_size as usize))
    }

    /// A label without what makes PostgreSQL refuse the directory of an incremental backup: what is stored is complete.
    fn own_label(&mut self, bytes: Vec<u8>, file: &mut Arriving<'_>) -> Result<Vec<u8>> {
        let label = BackupLabel::parse(&String::from_utf8_lossy(&bytes))?;
        if label.incremental_from.is_none() {
            return Ok(bytes);
        }
        self.as_sent.push(ManifestFile { path: file.path.clone(), size: file.size, crc32c: crc32c::crc32c(&bytes) });
        self.merged += 1;
        let own = BackupLabel { incremental_from: None, ..label }.to_string().into_bytes();
        file.size = own.len() as u64;
        Ok(own)
    }

    /// Stores the file while it comes.
    fn whole(&mut self, file: &mut Arriving<'_>, mut sum: Sum) -> Result<Stored> {
        let mut judge = Judge::new(self.pages_of(&file.path));
        let Taking { intake, shelf, buffer, .. } = self;
        let part = shelf.part()?;
        let layer = part.begin(&file.path, file.size, file.attributes)?;
        intake.each(file, buffer, |chunk| {
            judge.see(chunk);
            sum.add(chunk);
            part.data(chunk)
        })?;
        let (found, blocks) = sum.found(layer);
        let Stored { file, bad } = file.stored(found, &judge.bad);
        Ok(Stored { file: part.record(file, blocks.as_ref(), &bad), bad })
    }

    /// Writes the file down, and compares what was written.
    fn compared(&mut self, file: &mut Arriving<'_>, spool: Spool) -> Result<Stored> {
        let failed = |e| Error::failed("write down a file that arrives").source(e);
        let mut at = 0;
        self.intake.each(file, &mut self.buffer, |chunk| {
            at += chunk.len() as u64;
            spool.file.write_all_at(chunk, at - chunk.len() as u64).map_err(failed)
        })?;
        let opened = Opened {
            full: file.path.clone(),
            path: file.path.clone(),
            size: file.size,
            attributes: file.attributes,
            stat: None,
            pages: self.pages_of(&file.path),
            is_changing: false,
            from: spool.file.try_clone().map_err(failed)?,
        };
        self.spool = Some(spool);
        let Taking { intake, shelf, .. } = self;
        let block_size = intake.block_size;
        let mut into = Into { shelf, ancestor: intake.ancestor.as_deref(), changed: None, relation: None };
        // What arrives was counted, and held up, when it came.
        let watch = Watch { progress: &Unwatched, interrupt: &intake.interrupt, throttle: &Throttle::new(None) };
        changes::store(&opened, block_size, None, &mut into, watch)
    }

    /// Room for so many bytes; without it files are stored whole.
    fn spool_for(&mut self, bytes: u64) -> Option<Spool> {
        let spool = self.spool.take().map_or_else(Spool::make, Ok);
        match spool.and_then(|spool| spool.reserve(bytes).map(|()| spool)) {
            Ok(spool) => Some(spool),
            Err(error) => {
                tracing::warn!(
                    "there is no room in TMPDIR to compare a file of {bytes} bytes, which is stored whole: {error}"
                );
                None
            }
        }
    }
}

impl Intake {
    /// Hands on the bytes of the file as they come.
    fn each(
        &self,
        file: &mut Arriving<'_>,
        buffer: &mut [u8],
        mut each: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut left = file.size;
        while left > 0 {
            let wanted = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let chunk = &mut buffer[..wanted];
            file.from.read_exact(chunk).map_err(unreadable)?;
            self.passed(wanted as u64);
            each(chunk)?;
            left -= wanted as u64;
        }
        Ok(())
    }

    /// So many bytes have come.
    pub(super) fn passed(&self, bytes: u64) {
        self.throttle.pass(bytes);
        self.progress.advance(bytes);
    }
}
