//! One object: is it what was written under its name?

use std::{
    collections::{BTreeMap, HashMap},
    ops::ControlFlow,
};

use super::{
    objects::{Name, Object},
    part,
};
use crate::{
    error::{Error, Kind, Result},
    postgres::{SegmentName, TimelineHistory, TimelineId},
    repository::{
        BackupDocument, BackupId, BackupObject, NeededPart, PartName, System, archived, is_kit, join, piece_of,
        pieces::Piece,
        prove_document, roll_up_of,
        rollup::RollUp,
        wal_object::{self, WalObject},
    },
    store::{self, Key},
    wal::{End, Reader, SegmentCheck, SegmentEnd},
};

/// The longest manifest, catalogue or roll-up that is held, in bytes.
const LONGEST: u64 = 128 << 20;

/// What objects are held against.
#[derive(Debug)]
pub struct Checker {
    /// The system.
    pub system: System,
    /// The backups that exist.
    pub backups: HashMap<BackupId, BackupDocument>,
    /// The parts that they need.
    pub parts: HashMap<PartName, NeededPart>,
    /// The histories that are known.
    pub histories: BTreeMap<TimelineId, TimelineHistory>,
}

impl Checker {
    /// Whether nothing rests on an object, so that it is not read: what attempts and superseded versions have left.
    pub fn is_left_over(&self, name: &Name) -> bool {
        let Name::Other(_) = name else { return false };
        let Ok(key) = name.key(&self.system) else { return true };
        let folder = &self.system.folder;
        let Some(id) = folder.backup_of(&key) else { return false };
        let Some(object) = folder.object_of(id, &key) else { return true };
        let backup = self.backups.get(&id);
        let counts = |number: fn(&BackupDocument) -> Option<u32>, is: u32| backup.and_then(number) == Some(is);
        match object {
            BackupObject::Part(number) => !self.parts.contains_key(&(id, number)),
            BackupObject::Manifest(number) => !counts(|b| Some(b.manifest), number),
            BackupObject::Catalogue(number) => !counts(|b| b.catalogue, number),
            BackupObject::Extra(number) => !counts(|b| b.extra.as_ref().map(|extra| extra.number), number),
            BackupObject::About(number) => !counts(|b| b.about.map(|about| about.number), number),
            BackupObject::Document(_) | BackupObject::Intent(_) => false,
        }
    }

    /// Reads an object and proves it. `Damaged` when it is not what was written.
    pub async fn check(&self, object: &Object) -> Result<Soundness> {
        let key = object.name.key(&self.system)?;
        if let Name::Segment(name) = object.name {
            return self.segment(name, &key, object.length).await;
        }
        if let Some((segment, from, to)) = piece_of(&key) {
            let piece = Piece { from, to, length: object.length };
            return self.system.prove_piece(segment, piece).await.map(|()| Soundness::Whole);
        }
        if archived(&key).is_some() {
            let object = wal_object::open(&*self.system.store, &key).await?;
            let sound = Soundness::of(&object);
            return join(tokio::task::spawn_blocking(move || object.read(all).map(|_| sound)).await)?;
        }
        self.other(&key, object).await.map(|()| Soundness::Whole)
    }

    /// Of what is not in the archive.
    async fn other(&self, key: &Key, object: &Object) -> Result<()> {
        let folder = &self.system.folder;
        if let Some(id) = folder.backup_of(key)
            && let Some(of) = folder.object_of(id, key)
        {
            return self.of_backup(id, of, key, object.length).await;
        }
        if let Some(name) = roll_up_of(key) {
            let bytes = store::read(&*self.system.store, key, LONGEST).await?;
            frames_alone(&bytes)?;
            let read = join(tokio::task::spawn_blocking(move || RollUp::from_bytes(&bytes, true)).await)??;
            let own = key.as_str().starts_with(&folder.roll_ups(read.timeline)) && read.log == name.log;
            return if own { Ok(()) } else { Err(Error::damaged("it is of another log than its name tells")) };
        }
        if is_kit(key) {
            return self.system.prove_kit(key).await;
        }
        prove_document(&*self.system.store, key).await?;
        if !folder.is_note_of_kit(key) {
            return Ok(());
        }
        match self.system.prove_kit(key).await {
            Err(error) if error.kind() == Kind::NotFound => {
                Err(Error::damaged("the recovery kit that it tells of is not there"))
            }
            // What else is wrong with a kit is told of itself.
            _ => Ok(()),
        }
    }

    async fn of_backup(&self, id: BackupId, object: BackupObject, key: &Key, length: u64) -> Result<()> {
        let system = &self.system;
        if let BackupObject::Manifest(_) | BackupObject::Catalogue(_) | BackupObject::About(_) = object {
            frames_alone(&store::read(&*system.store, key, LONGEST).await?)?;
        }
        match (object, self.backups.get(&id)) {
            (BackupObject::Part(number), _) => match self.parts.get(&(id, number)) {
                Some(needed) => part::check(system, (id, number), length, needed).await,
                None => Ok(()),
            },
            (BackupObject::Manifest(_), Some(backup)) => system.needs(backup).await.map(drop),
            (BackupObject::Catalogue(_), Some(backup)) => system.catalogue(backup, (), |(), _| {}).await,
            (BackupObject::Extra(_), Some(backup)) => match &backup.extra {
                Some(extra) => {
                    let read = |(): &mut (), _, content: &mut dyn std::io::Read| {
                        std::io::copy(content, &mut std::io::sink())
                            .map(drop)
                            .map_err(|e| store::bridge::from_io(e, |e| Error::damaged("it ends too early").source(e)))
                    };
                    system.extra(id, extra, (), read).await
                }
                None => Ok(()),
            },
            (BackupObject::Document(number), _) => system.document_of(id, number).await.map(drop),
            (BackupObject::Intent(number), _) => {
                let intent = system.intent(id, number).await?;
                if intent.id == id { Ok(()) } else { Err(Error::damaged(format!("it is of backup {}", intent.id))) }
            }
            (BackupObject::About(_), Some(_)) => system.prove_about(id).await,
            (
                BackupObject::Manifest(_)
                | BackupObject::Catalogue(_)
                | BackupObject::Extra(_)
                | BackupObject::About(_),
                None,
            ) => Ok(()),
        }
    }

    /// The content by its hash, the pages by their addresses, each record by its CRC.
    async fn segment(&self, name: SegmentName, key: &Key, length: u64) -> Result<Soundness> {
        let object = wal_object::open(&*self.system.store, key).await?;
        let sound = Soundness::of(&object);
        if object.length != length {
            return Err(Error::damaged(format!("it is {} bytes long, and was listed with {length}", object.length)));
        }
        let size = self.system.document.segment_size;
        let (mut check, mut reader) = (SegmentCheck::new(name, size.bytes()), Reader::new(name.start(size)?));
        let read = tokio::task::spawn_blocking(move || {
            // A segment that fails a page check fails for that reason, and not for the hash that follows.
            object.read(|bytes| {
                check.feed(bytes)?;
                reader.read(bytes).for_each(drop);
                Ok(ControlFlow::Continue(()))
            })?;
            Ok::<_, Error>((check.finish()?, reader.end()))
        });
        let (facts, end) = join(read.await)?.map_err(as_damage)?;
        if facts.system != self.system.folder.incarnation.system {
            return Err(Error::damaged(format!("it belongs to system {}", facts.system)));
        }
        let history = self.histories.get(&name.timeline);
        if let Some((stranger, _)) =
            facts.timelines.iter().find(|(of, _)| *of != name.timeline && history.is_some_and(|h| !h.includes(*of)))
        {
            return Err(Error::damaged(format!("it holds pages of timeline {stranger}, which is no ancestor")));
        }
        match end {
            End::Garbage { at, why } => Err(Error::damaged(format!("its records cannot be read at {at}: {why}"))),
            // A switch record that began in the segment before is not seen as one.
            End::Zeros { at } if !matches!(facts.end, SegmentEnd::Switch { .. }) => {
                Err(Error::damaged(format!("its records end at {at}")))
            }
            _ => Ok(sound),
        }
    }
}

/// How whole an object is that is no worse than that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Soundness {
    /// It is what was written.
    Whole,
    /// What it holds is; what its head told is lost.
    HeadLost,
}

impl Soundness {
    fn of(object: &WalObject) -> Self {
        if object.head.is_some() { Self::Whole } else { Self::HeadLost }
    }
}

/// Refuses what decoders pass over: these objects are frames and nothing else.
fn frames_alone(mut object: &[u8]) -> Result<()> {
    while !object.is_empty() {
        let is_frame = object.starts_with(&zstd::zstd_safe::zstd_sys::ZSTD_MAGICNUMBER.to_le_bytes());
        let length = zstd::zstd_safe::find_frame_compressed_size(object).ok().filter(|_| is_frame);
        let rest = length.and_then(|length| object.get(length..));
        object = rest.ok_or_else(|| Error::damaged("it holds something else than its frames"))?;
    }
    Ok(())
}

fn all(_: &[u8]) -> Result<ControlFlow<()>> {
    Ok(ControlFlow::Continue(()))
}

/// What a push refuses is damage where it was archived.
fn as_damage(error: Error) -> Error {
    match error.kind() {
        Kind::Refused | Kind::Invalid => Error::damaged(error.to_string()),
        _ => error,
    }
}
