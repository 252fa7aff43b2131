//! Horizons: below which segment of a timeline WAL has been removed. A server that was rolled back would write other WAL
//! under names that are free again; they are refused.
//!
//! The name of the object says everything, so that one listing is enough: `notes/horizon/<segment>`. Of several of one
//! timeline the highest counts.

use std::collections::BTreeMap;

use super::{System, SystemFolder};
use crate::{
    error::Result,
    postgres::{SegmentName, TimelineId},
    store::{self, Key, Store},
};

/// The folder below `notes/`.
const HORIZON: &str = "horizon";

/// Of each timeline the first segment that was never removed; names before it are refused unless they are there.
pub type Horizons = BTreeMap<TimelineId, SegmentName>;

/// The horizons of a system's timelines: a request, which needs nothing but the system's name.
pub async fn horizons(store: &dyn Store, folder: &SystemFolder) -> Result<Horizons> {
    let folder = folder.notes(HORIZON);
    let mut found = Horizons::new();
    for listed in store::list_all(store, &folder).await? {
        let Some(name) = listed.key.as_str().strip_prefix(&folder).and_then(|n| n.parse::<SegmentName>().ok()) else {
            continue;
        };
        let highest = found.entry(name.timeline).or_insert(name);
        *highest = name.max(*highest);
    }
    Ok(found)
}

impl System {
    /// The horizons of its timelines.
    pub async fn horizons(&self) -> Result<Horizons> {
        horizons(&*self.store, &self.folder).await
    }

    /// Raises the horizon of a timeline to `name`; a higher one stays.
    pub async fn raise_horizon(&self, known: &Horizons, name: SegmentName) -> Result<()> {
        let before = known.get(&name.timeline);
        if before.is_some_and(|before| *before >= name) {
            return Ok(());
        }
        self.store.put(&self.horizon(name)?, "{}\n".into()).await?;
        if let Some(before) = before {
            self.store.delete(&self.horizon(*before)?).await?;
        }
        Ok(())
    }

    fn horizon(&self, name: SegmentName) -> Result<Key> {
        Key::new(format!("{}{name}", self.folder.notes(HORIZON)))
    }
}
