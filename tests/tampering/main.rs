//! Bytes changed behind Walden's back: each region of each kind of object flipped, objects cut short, prolonged, emptied,
//! exchanged, swapped, replaced by what they were before, taken away. A deep verification always finds and names it; a
//! fast one finds what names, lengths, manifests and links tell; and a restore gives the right rows, or refuses.
//!
//! Two real repositories are made, one of them encrypted, with two timelines, backups that build on each other, and every
//! kind of object. Then each damage is done to one object of every kind at a time, in a copy. `WALDEN_TEST_LONG` looks at
//! every damage of both and restores after every one, instead of some; `WALDEN_TEST_SEED` repeats a run.
#![allow(clippy::unwrap_used, reason = "helpers of a test may panic like the test")]
#![allow(clippy::print_stderr, reason = "the seed is said where the test's other output goes")]

mod damage;
mod kind;
mod scene;

use std::{collections::BTreeSet, path::PathBuf};

use damage::{DAMAGES, Damage, Done};
use kind::Kind;
use scene::{Copy, Restored, Scene};

fn is_long() -> bool {
    std::env::var("WALDEN_TEST_LONG").is_ok_and(|long| long != "0")
}

fn rng() -> fastrand::Rng {
    let seed = std::env::var("WALDEN_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    eprintln!("seed {seed}");
    fastrand::Rng::with_seed(seed)
}

#[test]
fn whatever_is_tampered_with_is_found_and_never_restored() {
    let scene = Scene::new(false);
    found_and_named(&scene, 5);
    right_or_refused(&scene, 5);
}

#[test]
fn whatever_is_tampered_with_in_an_encrypted_repository_is_found_and_never_restored() {
    let scene = Scene::new(true);
    found_and_named(&scene, 2);
    right_or_refused(&scene, 4);
}

/// Looks after every damage that is done to whole objects, and after so many others.
fn found_and_named(scene: &Scene, others: usize) {
    let (mut damages, mut some): (Vec<&Damage>, Vec<&Damage>) = DAMAGES.iter().partition(|damage| damage.is_of_wholes);
    rng().shuffle(&mut some);
    some.truncate(if is_long() { usize::MAX } else { others });
    damages.extend(some);
    let copy = Copy::of(scene, "looked-at");
    assert_eq!(copy.deep(), BTreeSet::new(), "nothing is damaged yet");
    assert_eq!(copy.fast(), BTreeSet::new());
    let mut missed = Vec::new();
    for damage in damages {
        for together in Kind::groups() {
            let done: Vec<(Kind, Done)> = together.into_iter().map(|kind| (kind, damage.apply(&copy, kind))).collect();
            if done.iter().all(|(_, objects)| objects.is_empty()) {
                continue;
            }
            let shows = done.iter().any(|(kind, _)| damage.shows(*kind));
            let (deep, fast) = (copy.deep(), if shows { copy.fast() } else { BTreeSet::new() });
            for (kind, objects) in &done {
                for name in objects.iter().map(|(object, _)| copy.key(object)) {
                    let excused = if damage.removes { kind.unmissed() } else { kind.unread() };
                    // What is not there any more is told of what tells of it.
                    let name = if damage.removes && *kind == Kind::Kit { note_of(&name) } else { name };
                    if excused.is_none() && !named(&deep, &name) {
                        missed.push(format!("{} {kind:?} {name}: deep found {deep:?}", damage.name));
                    }
                    if damage.shows(*kind) && !named(&fast, &name) {
                        missed.push(format!("{} {kind:?} {name}: fast found {fast:?}", damage.name));
                    }
                }
            }
            undo(&copy, done.into_iter().flat_map(|(_, objects)| objects));
        }
    }
    assert!(missed.is_empty(), "{} were missed:\n{}", missed.len(), missed.join("\n"));
    assert_eq!(copy.deep(), BTreeSet::new(), "all is as it was");
}

/// Restores after some of all damages, to one of the restore points.
fn right_or_refused(scene: &Scene, restores: usize) {
    let copy = Copy::of(scene, "restored-from");
    for (point, rows) in &scene.points {
        assert_eq!(copy.restored(point), Restored::Rows(rows.clone()), "nothing is damaged yet");
    }
    let mut rng = rng();
    let mut all: Vec<(&Damage, Kind)> =
        DAMAGES.iter().flat_map(|damage| Kind::all().into_iter().map(move |kind| (damage, kind))).collect();
    rng.shuffle(&mut all);
    // In turn one that a restore cannot do without, and one that it can.
    let (carrying, others): (Vec<_>, Vec<_>) = all.into_iter().partition(|(_, kind)| kind.carries());
    let longest = carrying.len().max(others.len());
    let mut all = Vec::new();
    for at in 0..longest {
        all.extend(carrying.get(at));
        all.extend(others.get(at));
    }
    let mut left = if is_long() { usize::MAX } else { restores };
    for (damage, kind) in all {
        let done = damage.apply(&copy, kind);
        if done.is_empty() {
            continue;
        }
        let (point, rows) = &scene.points[rng.usize(..scene.points.len())];
        match copy.restored(point) {
            Restored::Rows(found) => {
                eprintln!("{} {kind:?}: to {point}, the right rows", damage.name);
                assert_eq!(&found, rows, "{} {kind:?}, to {point}", damage.name);
            }
            Restored::Refused(why) => {
                eprintln!("{} {kind:?}: to {point}: {}", damage.name, why.lines().next().unwrap_or_default());
                assert!(kind.carries(), "{} {kind:?} need not stop a restore: {why}", damage.name);
            }
        }
        undo(&copy, done);
        left -= 1;
        if left == 0 {
            break;
        }
    }
}

fn undo(copy: &Copy<'_>, done: impl IntoIterator<Item = (PathBuf, Vec<u8>)>) {
    done.into_iter().for_each(|(object, before)| copy.put(&object, &before));
    copy.forget_damage();
}

/// The note of a recovery kit.
fn note_of(kit: &str) -> String {
    kit.trim_end_matches(".age").replace(".tar.zst", ".json")
}

/// Whether an object is among the damaged ones: by its key, or by the folder that it belongs to.
fn named(found: &BTreeSet<String>, key: &str) -> bool {
    let key = key.trim_end_matches(".age");
    found.iter().any(|found| found == key || found.ends_with('/') && key.starts_with(found.as_str()))
}

impl Damage {
    /// Whether names, lengths, manifests, histories or links tell it.
    fn shows(&self, kind: Kind) -> bool {
        match kind {
            Kind::Repository | Kind::Document | Kind::System => true,
            // What decoders pass over is looked for by a deep look alone.
            Kind::Manifest => self.name != "prolonged by a frame",
            // With a damaged head it can be read all the same.
            Kind::History => self.changes_length,
            Kind::Part | Kind::Extra => self.changes_length,
            Kind::Catalogue | Kind::About => self.removes,
            Kind::Segment => self.changes_length,
            // What nothing needs is not missed.
            _ => false,
        }
    }
}
