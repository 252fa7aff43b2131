//! What a backup needs besides its document, and whether its manifest is at one with itself: every layer of every file
//! lies within a part that is listed.

use std::collections::BTreeMap;

use super::{BackupDocument, Layer, Part, PartName, System, references::stream};
use crate::error::{Error, Result};

/// The parts that a backup needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// The lengths of their objects in bytes.
    pub parts: BTreeMap<PartName, u64>,
    /// How many layers the files have.
    pub layers: u64,
}

/// Reads a manifest from the first part to the last layer.
#[derive(Debug, Default)]
struct Reading {
    needs: Needs,
    /// Bytes of content of each part.
    content: BTreeMap<PartName, u64>,
    wrong: Option<String>,
}

impl Reading {
    fn part(&mut self, part: &Part) {
        let name = (part.backup, part.number);
        self.needs.parts.insert(name, part.length);
        if self.content.insert(name, part.frames.content()).is_some() {
            self.wrong(format!("it lists part {} of backup {} twice", part.number, part.backup));
        }
    }

    fn layer(&mut self, layer: &Layer) {
        self.needs.layers += 1;
        let (backup, number) = (layer.backup, layer.part);
        let Some(content) = self.content.get(&(backup, number)) else {
            return self.wrong(format!("it names part {number} of backup {backup} and does not list it"));
        };
        if layer.offset.checked_add(layer.length).is_none_or(|end| end > *content) {
            self.wrong(format!("a file lies behind the end of part {number} of backup {backup}"));
        }
    }

    fn wrong(&mut self, what: String) {
        self.wrong.get_or_insert(what);
    }

    /// What of it contradicts itself or the document.
    fn judge(mut self, backup: &BackupDocument) -> Result<Needs> {
        for (of, number) in self.needs.parts.keys().copied().collect::<Vec<_>>() {
            if of != backup.id && !backup.references.contains(&of) {
                self.wrong(format!("it needs part {number} of backup {of}, which the backup's document does not name"));
            }
        }
        match self.wrong {
            Some(wrong) => Err(Error::damaged(format!("the manifest of backup {} is of no use: {wrong}", backup.id))),
            None => Ok(self.needs),
        }
    }
}

impl System {
    /// What a backup needs. `Damaged` when its manifest is missing, is not the one that its document tells of, or names
    /// what cannot be. The manifest is read as a stream; the parts need not be there.
    pub async fn needs(&self, backup: &BackupDocument) -> Result<Needs> {
        let read = |text: &mut dyn std::io::Read| {
            let mut reading = Reading::default();
            stream::read(text, &mut |each| match each {
                stream::Each::Part(part) => reading.part(&part),
                stream::Each::Layer(layer) => reading.layer(&layer),
            })?;
            Ok(reading)
        };
        self.proven_manifest(backup, read).await?.judge(backup)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        repository::LayerKind,
        seal::{FrameSize, SeekTable, blake3},
    };

    fn part(number: u32) -> Part {
        let frames = SeekTable::from(vec![FrameSize { stored: 50, content: 1000 }]);
        Part { backup: id(), number, length: 100, blake3: blake3(b""), frames }
    }

    fn id() -> super::super::BackupId {
        "20261121T014500Z".parse().unwrap()
    }

    fn layer(part: u32, offset: u64, length: u64) -> Layer {
        Layer { backup: id(), part, offset, length, kind: LayerKind::Whole, map: None }
    }

    #[test]
    fn a_layer_lies_within_a_part_that_is_listed() {
        let read = |parts: &[u32], layers: &[Layer]| {
            let mut reading = Reading::default();
            parts.iter().for_each(|number| reading.part(&part(*number)));
            layers.iter().for_each(|layer| reading.layer(layer));
            reading.wrong
        };
        assert_eq!(read(&[1, 2], &[layer(1, 0, 1000), layer(2, 512, 488)]), None);
        for (parts, layers) in [
            (&[1, 1][..], &[][..]),
            (&[1], &[layer(2, 0, 1)]),
            (&[1], &[layer(1, 512, 489)]),
            (&[1], &[layer(1, u64::MAX, 2)]),
        ] {
            assert!(read(parts, layers).is_some(), "{parts:?} {layers:?}");
        }
    }
}
