//! Bytes changed behind Walden's back: each region of each kind of object flipped, objects cut short, prolonged, emptied,
//! exchanged, taken away. A deep verification always finds and names it; a fast one finds what names, lengths, manifests
//! and links tell.
//!
//! One real repository is made, with two timelines, backups that build on each other, and every kind of object. Then
//! each damage is done to one object of every kind at a time, in a copy.
#![allow(clippy::unwrap_used, reason = "helpers of a test may panic like the test")]

mod damage;
mod scene;

use std::collections::BTreeSet;

use damage::{DAMAGES, Damage};
use scene::{Copy, Kind, Scene};

/// What a deep look does not find, and why that does no harm.
const UNFOUND: [(&str, Kind, &str); 1] = [(
    "another of its kind",
    Kind::Note,
    "a note of a restore, of which nothing but estimates come, is passed over then",
)];

#[test]
fn whatever_is_tampered_with_is_found_and_named() {
    let scene = Scene::new();
    let copy = Copy::of(&scene);
    assert_eq!(copy.deep(), BTreeSet::new(), "nothing is damaged yet");
    assert_eq!(copy.fast(), BTreeSet::new());
    let mut missed = Vec::new();
    for damage in DAMAGES {
        // A damaged document hides what it tells of: these go one by one.
        for together in [Kind::DOCUMENTS.map(|kind| vec![kind]).to_vec(), vec![Kind::OTHERS.to_vec()]].concat() {
            let (mut done, mut undo) = (Vec::new(), Vec::new());
            for kind in together {
                if let Some(object) = copy.object(kind)
                    && let Some(before) = damage.apply(&copy, kind, &object)
                {
                    done.push((kind, object.clone()));
                    undo.push((object, before));
                }
            }
            let (deep, fast) = (copy.deep(), copy.fast());
            for (kind, object) in &done {
                let name = copy.key(object);
                let excused = UNFOUND.iter().any(|(of, unfound, _)| *of == damage.name && unfound == kind);
                if !named(&deep, &name) && !excused {
                    missed.push(format!("{} {kind:?} {name}: deep found {deep:?}", damage.name));
                }
                if damage.shows(*kind) && !named(&fast, &name) {
                    missed.push(format!("{} {kind:?} {name}: fast found {fast:?}", damage.name));
                }
            }
            undo.into_iter().for_each(|(object, before)| copy.put(&object, &before));
        }
    }
    assert!(missed.is_empty(), "{} were missed:\n{}", missed.len(), missed.join("\n"));
    assert_eq!(copy.deep(), BTreeSet::new(), "all is as it was");
}

/// Whether an object is among the damaged ones: by its key, or by the folder that it belongs to.
fn named(found: &BTreeSet<String>, key: &str) -> bool {
    found.iter().any(|found| found == key || found.ends_with('/') && key.starts_with(found.as_str()))
}

impl Damage {
    /// Whether names, lengths, manifests, histories or links tell it.
    fn shows(&self, kind: Kind) -> bool {
        match kind {
            // What nothing needs is not missed.
            Kind::Label | Kind::Partial | Kind::RollUp | Kind::Note | Kind::Intent => false,
            Kind::Repository | Kind::Document | Kind::System => true,
            // What decoders pass over is looked for by a deep look alone.
            Kind::Manifest => self.name != "prolonged by a frame",
            // With a damaged head it can be read all the same.
            Kind::History => self.changes_length,
            Kind::Part | Kind::Extra => self.changes_length,
            Kind::Catalogue => self.removes,
            Kind::Segment => self.changes_length,
            Kind::Piece => false,
        }
    }
}
