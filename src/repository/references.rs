//! Which backups need which parts, computed from all manifests: what a backup costs, what would come free without it,
//! and which parts no backup needs. Counts are never stored, so that none can be wrong.
//!
//! Manifests are read one after the other, and of each no more than one file at a time is held. What is kept is a few
//! dozen bytes a part, and the stretches of it that are living, in which neighbouring members are one.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::{BackupDocument, BackupId, BackupObject, IntentDocument, Layer, Part, System};
use crate::{
    error::{Error, Kind, Result},
    seal::Blake3,
};

/// tar's unit: members begin and end at its multiples.
const UNIT: u64 = 512;

/// A part: the backup it belongs to, and its number there.
pub type PartName = (BackupId, u32);

/// What all backups of a system need.
#[derive(Clone, Debug, Default)]
pub struct References {
    parts: BTreeMap<PartName, PartUse>,
    /// For each backup, how much of which older ones it needs.
    needed: HashMap<BackupId, BTreeMap<BackupId, Needed>>,
}

/// Who needs a part, and how much of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartUse {
    /// The length of the object in bytes.
    pub length: u64,
    /// Bytes of content.
    pub content: u64,
    /// How many backups point into it.
    pub backups: u32,
    /// One of them.
    one: Option<BackupId>,
    living: Stretches,
}

impl PartUse {
    /// Bytes of content that some file of some backup is made of, headers of members included.
    #[must_use]
    pub fn living(&self) -> u64 {
        self.living.bytes().min(self.content)
    }
}

/// What a backup needs of an older one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Needed {
    /// How many parts.
    pub parts: u64,
    /// Their lengths in bytes.
    pub bytes: u64,
}

/// All parts together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Total {
    /// How many.
    pub parts: u64,
    /// Their lengths in bytes.
    pub bytes: u64,
    /// Bytes of their content.
    pub content: u64,
    /// How much of it is living.
    pub living: u64,
}

impl References {
    /// Takes in a part that the manifest of `backup` lists.
    fn part(&mut self, backup: BackupId, part: &Part) {
        let name = (part.backup, part.number);
        let found = self.parts.entry(name).or_default();
        if found.one.is_some() && found.one == Some(backup) {
            return;
        }
        (found.length, found.content) = (part.length, part.frames.content());
        found.backups += 1;
        found.one = Some(backup);
        if part.backup != backup {
            let needed = self.needed.entry(backup).or_default().entry(part.backup).or_default();
            needed.parts += 1;
            needed.bytes += part.length;
        }
    }

    /// Takes in a layer of a file.
    fn layer(&mut self, layer: &Layer) {
        let begin = layer.offset.saturating_sub(UNIT) / UNIT;
        let end = (layer.offset + layer.length).div_ceil(UNIT);
        self.parts.entry((layer.backup, layer.part)).or_default().living.add(begin, end);
    }

    /// The use of a part; `None` when no backup needs it.
    #[must_use]
    pub fn of(&self, part: PartName) -> Option<&PartUse> {
        self.parts.get(&part).filter(|part| part.backups > 0)
    }

    /// Every part that some backup needs, in the order of their names.
    pub fn parts(&self) -> impl Iterator<Item = (PartName, &PartUse)> {
        self.parts.iter().filter(|(_, part)| part.backups > 0).map(|(name, part)| (*name, part))
    }

    /// What a backup needs of older ones, oldest first.
    pub fn needed(&self, backup: BackupId) -> impl Iterator<Item = (BackupId, Needed)> {
        self.needed.get(&backup).into_iter().flatten().map(|(of, needed)| (*of, *needed))
    }

    /// The bytes that would come free without this backup: of the parts that it alone needs, be they of older ones
    /// that are gone, and of its other objects.
    #[must_use]
    pub fn freed_without(&self, backup: &BackupDocument) -> u64 {
        let own: u64 = backup.parts.iter().map(|part| part.length).sum();
        let alone = |part: &&PartUse| part.backups == 1 && part.one == Some(backup.id);
        self.parts.values().filter(alone).map(|part| part.length).sum::<u64>() + backup.stored.saturating_sub(own)
    }

    /// All parts together.
    #[must_use]
    pub fn total(&self) -> Total {
        self.parts().fold(Total::default(), |total, (_, part)| Total {
            parts: total.parts + 1,
            bytes: total.bytes + part.length,
            content: total.content + part.content,
            living: total.living + part.living(),
        })
    }
}

/// Stretches of a part in units of [`UNIT`]: where each begins, and where it ends. None touches another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Stretches(BTreeMap<u64, u64>);

impl Stretches {
    fn add(&mut self, mut begin: u64, mut end: u64) {
        if let Some((before, until)) = self.0.range(..=begin).next_back().map(|(b, e)| (*b, *e))
            && until >= begin
        {
            (begin, end) = (before, end.max(until));
        }
        while let Some((next, until)) = self.0.range(begin..=end).next().map(|(b, e)| (*b, *e)) {
            self.0.remove(&next);
            end = end.max(until);
        }
        self.0.insert(begin, end);
    }

    fn bytes(&self) -> u64 {
        self.0.iter().map(|(begin, end)| (end - begin) * UNIT).sum()
    }
}

/// What lies in the backups' folders of a system, and who needs it.
#[derive(Clone, Debug)]
pub struct Stock {
    /// The backups whose documents can be read, oldest first.
    pub backups: Vec<BackupDocument>,
    /// What they need.
    pub references: References,
    /// Parts that none of them needs, by the folders they lie in. Nothing where a backup may need them of which that
    /// is not known.
    pub unneeded: Vec<Unneeded>,
    /// The backups of which it is not known what they need, because something is damaged, and what.
    pub unknown: Vec<(BackupId, String)>,
}

/// Parts that no backup needs, of one backup or attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unneeded {
    /// The folder.
    pub backup: BackupId,
    /// When the attempt was begun that left them, or which is under way; `null` where nothing tells.
    pub begun: Option<DateTime<Utc>>,
    /// Whether that backup exists.
    pub exists: bool,
    /// The numbers of these parts.
    pub parts: Vec<u32>,
    /// Their lengths in bytes.
    pub bytes: u64,
}

/// A part that a backup needs, and what proves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeededPart {
    /// The backup in whose folder it lies.
    pub backup: BackupId,
    /// Its number there.
    pub number: u32,
    /// The length of the object in bytes.
    pub length: u64,
    /// How many of them are hashed: those before the index.
    pub hashed: u64,
    /// BLAKE3 of these.
    pub blake3: Blake3,
}

impl From<Part> for NeededPart {
    fn from(part: Part) -> Self {
        let frames = part.frames.frames();
        // The last one is the index.
        let hashed = frames.iter().rev().skip(1).map(|frame| u64::from(frame.stored)).sum();
        Self { backup: part.backup, number: part.number, length: part.length, hashed, blake3: part.blake3 }
    }
}

impl System {
    /// The parts that a backup needs, its own and those of older ones.
    pub async fn parts_needed(&self, backup: &BackupDocument) -> Result<Vec<NeededPart>> {
        self.read_manifest(backup, move |text| {
            let mut parts = Vec::new();
            stream::read(text, &mut |each| {
                if let stream::Each::Part(part) = each {
                    parts.push(part.into());
                }
            })?;
            Ok(parts)
        })
        .await
    }

    /// What these backups need. A manifest that cannot be read is an error: what it needs is not known then, and
    /// nothing may be taken away.
    pub async fn references(&self, backups: &[BackupDocument]) -> Result<References> {
        let mut found = References::default();
        for backup in backups {
            found = self.with_references(backup, found).await?;
        }
        Ok(found)
    }

    /// The same of those whose manifests are whole; the others are added to `unknown`.
    async fn known_references(
        &self,
        mut backups: Vec<&BackupDocument>,
        unknown: &mut Vec<(BackupId, String)>,
    ) -> Result<References> {
        'anew: loop {
            let mut found = References::default();
            for (at, backup) in backups.iter().enumerate() {
                match self.with_references(backup, found).await {
                    Ok(more) => found = more,
                    Err(error) if error.kind() == Kind::Damaged => {
                        unknown.push((backup.id, error.to_string()));
                        backups.remove(at);
                        // What it told before it broke off does not count.
                        continue 'anew;
                    }
                    Err(error) => return Err(error),
                }
            }
            return Ok(found);
        }
    }

    /// Adds what one backup needs.
    async fn with_references(&self, backup: &BackupDocument, mut found: References) -> Result<References> {
        let id = backup.id;
        self.read_manifest(backup, move |text| {
            stream::read(text, &mut |each| match each {
                stream::Each::Part(part) => found.part(id, &part),
                stream::Each::Layer(layer) => found.layer(&layer),
            })?;
            Ok(found)
        })
        .await
    }

    /// Everything that lies in the backups' folders, and who needs it. Nothing is changed. A backup that comes to be
    /// meanwhile may be missing; its parts are then not called unneeded. Nor are any while it is not known what some backup
    /// needs.
    pub async fn stock(&self) -> Result<Stock> {
        let folders = self.store.folders(&self.folder.backups()).await?;
        // Parts first: whoever is needed by what is there now is named by a document that is read later.
        let there = self.parts_there(folders.iter().filter_map(|name| name.parse().ok())).await?;
        let (backups, damaged) = self.readable_backups().await?;
        let mut unknown: Vec<_> = damaged.into_iter().map(|(id, error)| (id, error.to_string())).collect();
        let references = self.known_references(backups.iter().collect(), &mut unknown).await?;
        if !unknown.is_empty() {
            return Ok(Stock { backups, references, unneeded: Vec::new(), unknown });
        }
        let mut unneeded: BTreeMap<BackupId, Unneeded> = BTreeMap::new();
        for ((backup, number), length) in there {
            if references.of((backup, number)).is_some() {
                continue;
            }
            let exists = backups.iter().any(|b| b.id == backup);
            let nothing = Unneeded { backup, begun: None, exists, parts: Vec::new(), bytes: 0 };
            let found = unneeded.entry(backup).or_insert(nothing);
            found.parts.push(number);
            found.bytes += length;
        }
        let mut unneeded: Vec<_> = unneeded.into_values().collect();
        for found in &mut unneeded {
            found.parts.sort_unstable();
            found.begun = self.first_intent(found.backup).await?.map(|intent| intent.begun);
        }
        Ok(Stock { backups, references, unneeded, unknown })
    }

    /// The parts that a backup needs, its own and those of others. Proves the manifest's hash, and that it points into
    /// the parts of those backups alone that the document names. Where this host may not read the manifest, the document
    /// tells.
    pub async fn parts_by_folder(&self, backup: &BackupDocument) -> Result<BTreeMap<BackupId, BTreeSet<u32>>> {
        let read = self
            .read_manifest(backup, move |text| {
                let mut needed: BTreeMap<BackupId, BTreeSet<u32>> = BTreeMap::new();
                stream::read(text, &mut |each| match each {
                    stream::Each::Part(part) => _ = needed.entry(part.backup).or_default().insert(part.number),
                    // Of what it says twice both count.
                    stream::Each::Layer(layer) => _ = needed.entry(layer.backup).or_default().insert(layer.part),
                })?;
                Ok(needed)
            })
            .await;
        let needed = match read {
            Err(error) if error.kind() == Kind::Refused && !backup.needed_parts.is_empty() => {
                backup.needed_parts.iter().map(|of| (of.backup, of.parts.iter().copied().collect())).collect()
            }
            read => read?,
        };
        match needed.keys().find(|of| **of != backup.id && !backup.references.contains(of)) {
            None => Ok(needed),
            Some(of) => Err(Error::damaged(format!(
                "the manifest of backup {} points into parts of backup {of}, which its document does not name",
                backup.id
            ))),
        }
    }

    async fn first_intent(&self, backup: BackupId) -> Result<Option<IntentDocument>> {
        // Asked for by its name, a deleted one would be doubtful in a bucket that keeps versions.
        match self.small_objects(backup).await?.contains(&BackupObject::Intent(1)) {
            true => self.intent(backup, 1).await.map(Some),
            false => Ok(None),
        }
    }
}

/// Reading a manifest without holding it.
pub(super) mod stream {
    use std::{fmt, io::Read, marker::PhantomData};

    use serde::{
        Deserialize, Deserializer,
        de::{self, DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor},
    };

    use super::{Error, Layer, Part, Result};

    /// What is handed over.
    pub enum Each {
        Part(Part),
        Layer(Layer),
    }

    /// Hands over each part and each layer of each file.
    pub fn read(from: impl Read, to: &mut dyn FnMut(Each)) -> Result<()> {
        let mut text = serde_json::Deserializer::from_reader(std::io::BufReader::with_capacity(256 << 10, from));
        Manifest(to)
            .deserialize(&mut text)
            .and_then(|()| text.end())
            .map_err(|e| Error::damaged("the manifest cannot be read").source(e))
    }

    #[derive(Deserialize)]
    struct Layers {
        #[serde(default)]
        layers: Vec<Layer>,
    }

    struct Manifest<'a>(&'a mut dyn FnMut(Each));

    impl<'de> DeserializeSeed<'de> for Manifest<'_> {
        type Value = ();

        fn deserialize<D: Deserializer<'de>>(self, from: D) -> std::result::Result<(), D::Error> {
            from.deserialize_map(self)
        }
    }

    impl<'de> Visitor<'de> for Manifest<'_> {
        type Value = ();

        fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
            to.write_str("a manifest")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<(), A::Error> {
            let mut seen = (false, false);
            while let Some(key) = map.next_key::<String>()? {
                match key.as_str() {
                    "parts" => {
                        seen.0 = true;
                        map.next_value_seed(Items(|part| (self.0)(Each::Part(part)), PhantomData))?;
                    }
                    "files" => {
                        seen.1 = true;
                        let layers = |file: Layers| file.layers.into_iter().for_each(|l| (self.0)(Each::Layer(l)));
                        map.next_value_seed(Items(layers, PhantomData))?;
                    }
                    _ => _ = map.next_value::<IgnoredAny>()?,
                }
            }
            match seen {
                (true, true) => Ok(()),
                (false, _) => Err(de::Error::missing_field("parts")),
                (_, false) => Err(de::Error::missing_field("files")),
            }
        }
    }

    /// A list whose items are handed over one by one.
    struct Items<F, T>(F, PhantomData<T>);

    impl<'de, F: FnMut(T), T: Deserialize<'de>> DeserializeSeed<'de> for Items<F, T> {
        type Value = ();

        fn deserialize<D: Deserializer<'de>>(self, from: D) -> std::result::Result<(), D::Error> {
            from.deserialize_seq(self)
        }
    }

    impl<'de, F: FnMut(T), T: Deserialize<'de>> Visitor<'de> for Items<F, T> {
        type Value = ();

        fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
            to.write_str("a list")
        }

        fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> std::result::Result<(), A::Error> {
            while let Some(item) = items.next_element()? {
                (self.0)(item);
            }
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        repository::LayerKind,
        seal::{FrameSize, SeekTable, blake3},
    };

    fn id(day: u32) -> BackupId {
        format!("202611{:02}T014500Z", day + 1).parse().unwrap()
    }

    fn part(day: u32, number: u32, length: u64) -> Part {
        let frames = SeekTable::from(vec![FrameSize { stored: length as u32, content: 8 * length as u32 }]);
        Part { backup: id(day), number, length, blake3: blake3(b""), frames }
    }

    fn layer(day: u32, part: u32, offset: u64, length: u64) -> Layer {
        Layer { backup: id(day), part, offset, length, kind: LayerKind::Whole, map: None }
    }

    #[test]
    fn a_part_is_freed_with_the_last_that_needs_it() {
        let mut found = References::default();
        for (backup, parts) in [(1, vec![(1, 1), (1, 2)]), (2, vec![(1, 1), (2, 1)]), (3, vec![(0, 7), (1, 1), (3, 1)])]
        {
            parts.into_iter().for_each(|(of, number)| found.part(id(backup), &part(of, number, 1000)));
        }
        let uses: Vec<_> = found.parts().map(|((of, number), part)| (of, number, part.backups)).collect();
        assert_eq!(uses, [(id(0), 7, 1), (id(1), 1, 3), (id(1), 2, 1), (id(2), 1, 1), (id(3), 1, 1)]);
        let alone = |day| found.parts().filter(|(_, p)| p.backups == 1 && p.one == Some(id(day))).count();
        assert_eq!([1, 2, 3].map(alone), [1, 1, 2]);
        let needed: Vec<_> = found.needed(id(3)).collect();
        let one = Needed { parts: 1, bytes: 1000 };
        assert_eq!(needed, [(id(0), one), (id(1), one)]);
        assert!(found.of((id(2), 2)).is_none());
        assert_eq!(found.total(), Total { parts: 5, bytes: 5000, content: 40000, living: 0 });
    }

    #[test]
    fn what_several_point_at_lives_once_and_neighbours_are_one_stretch() {
        let mut found = References::default();
        found.part(id(1), &part(1, 1, 1000));
        // Two neighbours out of order, one of them twice, and one apart.
        for (offset, length) in [(2048, 100), (512, 1000), (512, 1000), (5120, 512)] {
            found.layer(&layer(1, 1, offset, length));
        }
        let part = found.of((id(1), 1)).unwrap();
        assert_eq!(part.living(), 3 * UNIT + 2 * UNIT + 2 * UNIT);
        assert_eq!(part.living.0.len(), 2);
        found.layer(&layer(1, 1, 3072, 1536));
        assert_eq!(found.of((id(1), 1)).unwrap().living.0.len(), 1);
        // A layer into a part that no manifest lists is no use of it.
        found.layer(&layer(1, 2, 512, 10));
        assert!(found.of((id(1), 2)).is_none());
    }

    #[test]
    fn a_manifest_is_read_without_being_held_and_half_of_one_is_an_error() {
        let text = format!(
            r#"{{"format":1,"tablespaces":[],"parts":[{}],"files":[
            {{"path":"a","layers":[{}]}},{{"path":"empty"}}]}}"#,
            serde_json::to_string(&part(1, 2, 70)).unwrap(),
            serde_json::to_string(&layer(1, 2, 512, 9)).unwrap(),
        );
        let mut seen = Vec::new();
        let mut see = |text: &str| {
            seen.clear();
            stream::read(text.as_bytes(), &mut |each| match each {
                stream::Each::Part(part) => seen.push((part.number, part.length)),
                stream::Each::Layer(layer) => seen.push((layer.part, layer.offset)),
            })
            .map(|()| seen.clone())
        };
        assert_eq!(see(&text).unwrap(), [(2, 70), (2, 512)]);
        for bad in [&text[..text.len() - 1], "{}", r#"{"parts":[]}"#, "", &format!("{text}x")] {
            assert!(see(bad).is_err(), "{bad}");
        }
    }
}
