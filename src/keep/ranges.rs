//! Sets of segment numbers as stretches: a million segments in a row are one.

/// Numbers in stretches: each begins with the first and ends before the second; none touches another; rising.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    /// All numbers from this one on.
    #[must_use]
    pub fn from_on(first: u64) -> Self {
        Self(vec![(first, u64::MAX)])
    }

    /// The numbers from `first` on and before `end`.
    #[must_use]
    pub fn of(first: u64, end: u64) -> Self {
        Self(if first < end { vec![(first, end)] } else { Vec::new() })
    }

    /// The numbers of rows: of each the first and the last.
    #[must_use]
    pub fn of_rows(rows: &[(u32, u32)]) -> Self {
        let mut ranges = Self::default();
        rows.iter().for_each(|(first, last)| ranges.add(u64::from(*first), u64::from(*last) + 1));
        ranges
    }

    /// As rows, if they are numbers of 32 bits.
    #[must_use]
    pub fn rows(&self) -> Vec<(u32, u32)> {
        self.iter().map(|(first, end)| (first as u32, (end - 1) as u32)).collect()
    }

    /// Adds the numbers from `first` on and before `end`.
    pub fn add(&mut self, mut first: u64, mut end: u64) {
        if first >= end {
            return;
        }
        let begin = self.0.partition_point(|(_, e)| *e < first);
        let until = self.0.partition_point(|(f, _)| *f <= end);
        if begin < until {
            first = first.min(self.0[begin].0);
            end = end.max(self.0[until - 1].1);
        }
        self.0.splice(begin..until, [(first, end)]);
    }

    /// Adds all of another's.
    pub fn add_all(&mut self, other: &Self) {
        other.iter().for_each(|(first, end)| self.add(first, end));
    }

    /// What is in this one and not in the other.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        let mut left = Vec::new();
        for (mut first, end) in self.iter() {
            let begin = other.0.partition_point(|(_, e)| *e <= first);
            for (f, e) in other.0[begin..].iter().take_while(|(f, _)| *f < end) {
                left.extend((first < *f).then_some((first, *f)));
                first = (*e).min(end);
            }
            left.extend((first < end).then_some((first, end)));
        }
        Self(left)
    }

    /// What is in both.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        self.without(&self.without(other))
    }

    /// Whether a number is in it.
    #[must_use]
    pub fn has(&self, number: u64) -> bool {
        self.end_from(number).is_some()
    }

    /// Where the unbroken row ends that this number is in.
    #[must_use]
    pub fn end_from(&self, number: u64) -> Option<u64> {
        let at = self.0.partition_point(|(_, end)| *end <= number);
        self.0.get(at).filter(|(first, _)| *first <= number).map(|(_, end)| *end)
    }

    /// The stretches, rising: the first number, and the first after the last.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (u64, u64)> + '_ {
        self.0.iter().copied()
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many numbers.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.iter().map(|(first, end)| end - first).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn set(ranges: &Ranges) -> BTreeSet<u64> {
        ranges.iter().flat_map(|(first, end)| first..end).collect()
    }

    proptest! {
        #[test]
        fn are_what_sets_are(
            some in prop::collection::vec((0_u64..40, 0_u64..8), 0..8),
            more in prop::collection::vec((0_u64..40, 0_u64..8), 0..8),
        ) {
            let make = |pairs: &[(u64, u64)]| {
                let (mut ranges, mut plain) = (Ranges::default(), BTreeSet::new());
                for (first, length) in pairs {
                    ranges.add(*first, first + length);
                    plain.extend(*first..first + length);
                }
                (ranges, plain)
            };
            let ((a, x), (b, y)) = (make(&some), make(&more));
            prop_assert_eq!(set(&a), x.clone());
            prop_assert!(a.iter().zip(a.iter().skip(1)).all(|((_, end), (first, _))| end < first));
            prop_assert_eq!(set(&a.without(&b)), x.difference(&y).copied().collect::<BTreeSet<_>>());
            prop_assert_eq!(set(&a.and(&b)), x.intersection(&y).copied().collect::<BTreeSet<_>>());
            prop_assert!((0..50).all(|number| a.has(number) == x.contains(&number)));
            prop_assert_eq!(a.count(), x.len() as u64);
            let mut both = a;
            both.add_all(&b);
            prop_assert_eq!(set(&both), x.union(&y).copied().collect::<BTreeSet<_>>());
        }
    }
}
