//! Random histories of layers are restored as they were, and no byte that is wrong is ever taken.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::{
    error::Kind,
    restore::testing::{BLOCK, History, Step, content, histories},
};

/// The files, and how many bytes were read of each part.
type Restored = (Vec<Vec<u8>>, BTreeMap<PartName, usize>);

/// Puts the files of one backup together; gives back what was written, and how many bytes were read of each part.
/// Whatever is read or written twice is an error.
fn restored(history: &History, backup: usize) -> Result<Restored> {
    let backup = &history.backups[backup];
    let mut files: Vec<_> = backup.iter().map(|(file, _)| Layered::new(file, BLOCK as u32).unwrap()).collect();
    let mut written: Vec<Vec<Option<u8>>> = backup.iter().map(|(_, content)| vec![None; content.len()]).collect();
    let mut seen: BTreeMap<_, Vec<bool>> = history.parts.iter().map(|(p, c)| (*p, vec![false; c.len()])).collect();
    let fetch = |run: &Run, receive: &mut dyn FnMut(&Piece, &mut dyn Read) -> Result<()>| {
        for piece in &run.pieces {
            let place = piece.offset as usize..(piece.offset + piece.length) as usize;
            let mut from = &history.parts[&run.part][place.clone()];
            receive(piece, &mut from)?;
            for byte in &mut seen.get_mut(&run.part).unwrap()[place.start..place.end - from.len()] {
                assert!(!std::mem::replace(byte, true), "a byte of {:?} is read twice", run.part);
            }
        }
        Ok(())
    };
    lay(&mut files, fetch, |number, at, bytes| {
        for (place, byte) in written[number][at as usize..].iter_mut().zip(bytes) {
            assert_eq!(place.replace(*byte), None, "a byte is written twice");
        }
        Ok(())
    })?;
    files.iter().try_for_each(Layered::check)?;
    for (file, written) in files.iter().zip(&written) {
        let zeros: Vec<_> = file.zeros().flatten().collect();
        let unwritten: Vec<_> = (0_u64..).zip(written).filter(|(_, b)| b.is_none()).map(|(at, _)| at).collect();
        assert_eq!(zeros, unwritten);
    }
    let bytes = written.into_iter().map(|file| file.into_iter().map(Option::unwrap_or_default).collect()).collect();
    Ok((bytes, seen.into_iter().map(|(part, seen)| (part, seen.iter().filter(|s| **s).count())).collect()))
}

fn edit(cut: Option<usize>, grow: &[u8], set: &[(usize, u8)]) -> Step {
    Step::Edit { cut, grow: grow.to_vec(), set: set.to_vec(), more: vec![] }
}

fn history(steps: Vec<Step>) -> History {
    History::of(&steps.into_iter().map(|step| vec![step]).collect::<Vec<_>>())
}

proptest! {
    #[test]
    fn every_backup_of_a_history_is_restored_as_it_was(steps in histories()) {
        let history = History::of(&steps);
        for (number, backup) in history.backups.iter().enumerate() {
            let (found, _) = restored(&history, number).unwrap();
            for ((file, content), found) in backup.iter().zip(&found) {
                prop_assert_eq!(found, content, "{} of backup {}", file.path.display(), number);
            }
        }
    }

    #[test]
    fn a_byte_that_is_wrong_is_never_taken(steps in histories(), part: prop::sample::Index, at: prop::sample::Index) {
        let mut history = History::of(&steps);
        let content = history.parts.values_mut().nth(part.index(steps.len())).unwrap();
        let at = at.index(content.len());
        content[at] ^= 0x10;
        for (number, backup) in history.backups.iter().enumerate() {
            match restored(&history, number) {
                Ok((found, _)) => prop_assert!(backup.iter().map(|(_, content)| content).eq(&found)),
                Err(error) => prop_assert_eq!(error.kind(), Kind::Damaged),
            }
        }
    }
}

#[test]
fn what_newer_layers_hold_is_not_read_of_older_ones() {
    let steps = vec![Step::Whole(vec![1; 8]), edit(None, &[], &[(2, 5), (3, 5)]), edit(None, &[], &[(3, 6), (4, 6)])];
    let history = history(steps);
    let (found, read) = restored(&history, 2).unwrap();
    assert_eq!(found[0], content(&[1, 1, 5, 6, 6, 1, 1, 1]));
    let blocks = |read: &usize| (*read - read % BLOCK) / BLOCK;
    // A header of one block and two blocks; a header and the first of two blocks; all but three blocks.
    assert_eq!(read.values().rev().map(blocks).collect::<Vec<_>>(), [3, 2, 5]);
}

#[test]
fn layers_beneath_a_full_one_are_not_fetched() {
    let all: Vec<_> = (0..8).map(|block| (block, 5)).collect();
    let history = history(vec![Step::Whole(vec![1; 8]), edit(None, &[], &all)]);
    let (_, read) = restored(&history, 1).unwrap();
    assert_eq!(*read.values().next().unwrap(), 0);
}

#[test]
fn what_was_cut_off_does_not_come_back_when_the_file_grows() {
    let history = history(vec![Step::Whole(vec![1; 8]), edit(Some(3), &[], &[]), edit(None, &[0, 0, 4], &[])]);
    let (found, _) = restored(&history, 2).unwrap();
    assert_eq!(found[0], content(&[1, 1, 1, 0, 0, 4]));
}

#[test]
fn a_file_that_cannot_be_in_layers_is_damage_of_the_manifest() {
    let history = history(vec![Step::Whole(vec![1; 8])]);
    let file = &history.backups[0][0].0;
    let mut odd = file.clone();
    odd.size += 1;
    let mut unhashed = file.clone();
    unhashed.hashed = Hashed::Content;
    let mut great = file.clone();
    great.size = 1 << 60;
    for file in [odd, unhashed, great] {
        assert_eq!(Layered::new(&file, BLOCK as u32).unwrap_err().kind(), Kind::Damaged);
    }
}

#[test]
fn damage_names_the_file_and_all_places_it_came_from() {
    let mut history = history(vec![Step::Whole(vec![1; 8]), edit(None, &[], &[(2, 5)])]);
    history.backups[1][0].0.crc32c ^= 1;
    let error = restored(&history, 1).unwrap_err().to_string();
    for word in ["base/0", "20261121T010000Z", "20261121T010100Z"] {
        assert!(error.contains(word), "{error}");
    }
}
