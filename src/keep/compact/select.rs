//! Which parts are mostly dead. Pure.

use serde::Serialize;

use super::Compacting;
use crate::repository::{BackupId, References};

/// Less than this is not worth a copy, in bytes of content.
const WORTH: u64 = 1 << 20;

/// A part of which only a little is living.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Sparse {
    /// The folder it lies in.
    pub backup: BackupId,
    /// Its number there.
    pub number: u32,
    /// The length of the object in bytes.
    pub length: u64,
    /// Bytes of content.
    pub content: u64,
    /// How many of them are living.
    pub living: u64,
}

impl Sparse {
    /// About how many bytes of the object are living.
    #[must_use]
    pub fn stays(&self) -> u64 {
        (u128::from(self.length) * u128::from(self.living) / u128::from(self.content.max(1))) as u64
    }

    fn share(&self) -> u64 {
        (u128::from(self.living) * 1_000_000 / u128::from(self.content.max(1))) as u64
    }
}

/// The parts that are to be written anew within the limit, those first that cost the least for what they free; and how
/// many more there are.
pub fn select(references: &References, how: &Compacting) -> (Vec<Sparse>, u64) {
    let all = references.parts().map(|((backup, number), part)| Sparse {
        backup,
        number,
        length: part.length,
        content: part.content,
        living: part.living(),
    });
    choose(all.collect(), how)
}

fn choose(mut all: Vec<Sparse>, how: &Compacting) -> (Vec<Sparse>, u64) {
    all.retain(|part| {
        part.share() < u64::from(how.below) * 10_000 && part.content.saturating_sub(part.living) >= WORTH
    });
    all.sort_by_key(|part| (part.share(), part.backup, part.number));
    let (mut left, before) = (how.limit, all.len());
    all.retain(|part| {
        let fits = part.stays() <= left;
        left -= if fits { part.stays() } else { 0 };
        fits
    });
    let later = (before - all.len()) as u64;
    (all, later)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(number: u32, content: u64, living: u64) -> Sparse {
        Sparse { backup: "20261121T014500Z".parse().unwrap(), number, length: content / 4, content, living }
    }

    #[test]
    fn the_deadest_come_first_and_the_limit_holds() {
        let how = |limit| Compacting { below: 50, limit, rate_limit: None, level: 1 };
        let mib = 1 << 20;
        let all =
            vec![part(1, 100 * mib, 49 * mib), part(2, 100 * mib, 50 * mib), part(3, 100 * mib, mib), part(4, mib, 1)];
        let numbers = |limit| {
            let (chosen, later) = choose(all.clone(), &how(limit));
            (chosen.iter().map(|part| part.number).collect::<Vec<_>>(), later)
        };
        // Exactly half is living: it stays; in a small one there is nothing to gain.
        assert_eq!(numbers(u64::MAX), (vec![3, 1], 0));
        assert_eq!(numbers(mib), (vec![3], 1));
        assert_eq!(numbers(0), (vec![], 2));
    }
}
