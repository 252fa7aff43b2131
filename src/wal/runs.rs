//! Lists of xids in JSON: one that stands alone is a number, a run of those that follow each other is `[first, last]`.
//! The subtransactions of a loop thus take no more room than one of them.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

/// The most xids that are read; more are an error, so that a few bytes cannot fill the memory.
pub(super) const MOST: usize = 16 << 10;

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Run {
    One(u32),
    Many(u32, u32),
}

/// The runs in `xids`: where each begins, and how many belong to it.
pub(super) fn of(xids: &[u32]) -> impl Iterator<Item = &[u32]> {
    xids.chunk_by(|xid, next| xid.checked_add(1) == Some(*next))
}

pub(super) fn serialize<S: Serializer>(xids: &[u32], to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(of(xids).flat_map(|run| {
        let many = match run {
            [first, .., last] if run.len() > 2 => Some(Run::Many(*first, *last)),
            _ => None,
        };
        let ones = if many.is_some() { &[] } else { run };
        many.into_iter().chain(ones.iter().map(|xid| Run::One(*xid)))
    }))
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u32>, D::Error> {
    let mut xids = Vec::new();
    for run in Vec::<Run>::deserialize(from)? {
        let (first, last) = match run {
            Run::One(xid) => (xid, xid),
            Run::Many(first, last) => (first, last),
        };
        if (last.saturating_sub(first) as usize) >= MOST - xids.len().min(MOST) {
            return Err(D::Error::custom("a list of transactions is too long"));
        }
        xids.extend(first..=last);
    }
    Ok(xids)
}
