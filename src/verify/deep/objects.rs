//! Everything that a system has in a repository, as a deep look goes through it: names and lengths, a million of them.

use futures_util::{StreamExt, TryStreamExt, stream};

use crate::{
    error::Result,
    postgres::SegmentName,
    repository::{System, segment_of},
    store::{self, Key, Listed},
};

/// Listings that are asked for at a time.
const PARALLEL: usize = 16;
/// Names that are asked for at a time: the most that S3 gives.
const PAGE: usize = 1000;

/// Which object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    /// A segment: there can be a million, and its name tells its key.
    Segment(SegmentName),
    /// The key of any other, without the folder of the system.
    Other(Box<str>),
}

/// An object, and when it was found whole last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Which one.
    pub name: Name,
    /// The length of the object in bytes.
    pub length: u64,
    /// When it was found whole, in seconds since 1970; 0 where it never was.
    pub checked: u64,
}

impl Name {
    /// Of a key below the folder of a system.
    pub fn of(key: &Key, system: &System) -> Self {
        segment_of(key).map_or_else(
            || Self::Other(key.as_str().strip_prefix(&system.folder.prefix()).unwrap_or(key.as_str()).into()),
            Self::Segment,
        )
    }

    /// Its key.
    pub fn key(&self, system: &System) -> Result<Key> {
        match self {
            Self::Segment(name) => system.folder.segment(*name),
            Self::Other(rest) => Key::new(format!("{}{rest}", system.folder.prefix())),
        }
    }
}

/// Lists everything, in the order of their names.
pub async fn list(system: &System) -> Result<Vec<Object>> {
    let folder = &system.folder;
    let mut prefixes = vec![folder.backups(), folder.notes_of_all_kinds()];
    for timeline in system.timelines().await? {
        let of = folder.timeline(timeline);
        prefixes.extend(system.store.folders(&of).await?.iter().map(|log| format!("{of}{log}/")));
    }
    let list = |prefix: String| async move { pages(system, &prefix).await };
    let mut coming = stream::iter(prefixes.into_iter().map(list)).buffered(PARALLEL);
    let mut objects = Vec::new();
    while let Some(listed) = coming.try_next().await? {
        objects.extend(listed);
    }
    for key in histories(system).await?.into_iter().chain([folder.system()?]) {
        let length = store::listed_length(&*system.store, &key).await?;
        objects.push(object(system, &Listed { key, length }));
    }
    objects.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    objects.dedup_by(|a, b| a.name == b.name);
    Ok(objects)
}

/// The history files: they lie beside the logs.
async fn histories(system: &System) -> Result<Vec<Key>> {
    let mut found = Vec::new();
    for timeline in system.timelines().await? {
        let key = system.folder.history(timeline)?;
        // In front of it in the order of names there are only logs, all of which are folders.
        let page = system.store.list(&system.folder.timeline(timeline), Some(&before(&key)?), 1).await?;
        found.extend(page.into_iter().map(|listed| listed.key).filter(|listed| *listed == key));
    }
    Ok(found)
}

/// A key right before that one.
fn before(key: &Key) -> Result<Key> {
    Key::new(key.as_str().trim_end_matches("history").trim_end_matches('.'))
}

async fn pages(system: &System, prefix: &str) -> Result<Vec<Object>> {
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = system.store.list(prefix, after.as_ref(), PAGE).await?;
        found.extend(page.iter().map(|listed| object(system, listed)));
        match page.last() {
            Some(last) if page.len() == PAGE => after = Some(last.key.clone()),
            _ => return Ok(found),
        }
    }
}

/// The object as it was listed.
pub fn object(system: &System, listed: &Listed) -> Object {
    Object { name: Name::of(&listed.key, system), length: listed.length, checked: 0 }
}
