//! How far a mirror is behind the first.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::future::join_all;
use serde::Serialize;

use super::{
    Mirror, Opened,
    compare::{Comparison, Lack},
    in_step::Positions,
};
use crate::{
    error::Result,
    human,
    postgres::SegmentName,
    repository::{self, BackupId, ClusterName, RepositoryName, System, segment_of, wal_object},
    store::Store,
};

/// What a mirror lacks of one system.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Behind {
    /// How many segments.
    pub segments: usize,
    /// How many objects in all.
    pub objects: usize,
    /// Their bytes.
    pub bytes: u64,
    /// The backups that do not exist there.
    pub backups: Vec<BackupId>,
    /// When the oldest of all that came to be, as far as that is known.
    pub since: Option<DateTime<Utc>>,
    /// Objects that are there with another length.
    pub differing: Vec<String>,
}

impl Behind {
    /// Whether nothing is lacking.
    #[must_use]
    pub fn is_in_step(&self) -> bool {
        *self == Self::default()
    }
}

/// Compares everything.
pub async fn behind(first: &System, mirror: &Opened) -> Result<Behind> {
    let mut found = Behind::default();
    let mut oldest: Option<SegmentName> = None;
    let mut comparison = Comparison::new(first, &*mirror.store, Positions::default()).await?;
    while let Some(lack) = comparison.next().await? {
        let listed = match lack {
            Lack::Objects(listed) => listed,
            Lack::Differs(listed, _) => {
                found.differing.push(listed.key.to_string());
                continue;
            }
            Lack::Backup(missing) => {
                if !missing.documents.is_empty() {
                    found.backups.push(missing.id);
                    found.since = found.since.min(Some(missing.id.instant())).or(Some(missing.id.instant()));
                }
                missing.objects.into_iter().chain(missing.documents).collect()
            }
        };
        found.objects += listed.len();
        found.bytes += listed.iter().map(|listed| listed.length).sum::<u64>();
        for name in listed.iter().filter_map(|listed| segment_of(&listed.key)) {
            found.segments += 1;
            // Of the newest timeline the first that is lacking; older ones end where it begins.
            oldest = oldest.filter(|oldest| oldest.timeline >= name.timeline).or(Some(name));
        }
    }
    if let Some(oldest) = oldest {
        let head = wal_object::read_head(&*first.store, &first.folder.segment(oldest)?).await;
        // A head that cannot be read tells no time; that it cannot is told by others.
        let ended = head.ok().and_then(|head| head.summary?.times).map(|(_, last)| last);
        found.since = [found.since, ended].into_iter().flatten().min();
    }
    Ok(found)
}

/// A mirror as it was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct State {
    /// What the configuration calls it.
    pub name: RepositoryName,
    /// Its address.
    pub url: String,
    /// What it lacks of the cluster; `None` when that could not be found out.
    pub behind: Option<Behind>,
    /// Why it could not.
    pub unknown: Option<String>,
}

impl State {
    /// Of all these mirrors, for all systems of a cluster.
    pub async fn of_all(mirrors: &[Arc<Mirror>], first: &Arc<dyn Store>, cluster: &ClusterName) -> Vec<Self> {
        join_all(mirrors.iter().map(|mirror| async move {
            let found = Self::look(mirror, first, cluster).await.map_err(|error| error.to_string());
            Self { name: mirror.name.clone(), url: mirror.url(), behind: found.clone().ok(), unknown: found.err() }
        }))
        .await
    }

    async fn look(mirror: &Mirror, first: &Arc<dyn Store>, cluster: &ClusterName) -> Result<Behind> {
        let there = mirror.open(&repository::open(&**first).await?).await?;
        let mut all = Behind::default();
        for system in System::all(first, cluster).await? {
            let found = behind(&system, &there).await.map_err(|e| mirror.told(e))?;
            all.segments += found.segments;
            all.objects += found.objects;
            all.bytes += found.bytes;
            all.backups.extend(found.backups);
            all.since = [all.since, found.since].into_iter().flatten().min();
            all.differing.extend(found.differing);
        }
        Ok(all)
    }

    /// How it stands, in words.
    #[must_use]
    pub fn words(&self, now: DateTime<Utc>) -> String {
        let Some(behind) = &self.behind else {
            return format!("nothing is known: {}", self.unknown.as_deref().unwrap_or("it was not asked"));
        };
        if behind.is_in_step() {
            return "has everything that the first has".to_owned();
        }
        let mut lacks = Vec::new();
        if behind.objects > 0 {
            let size = human::size(behind.bytes);
            lacks.push(format!("lacks {} objects ({size}), {} of them segments", behind.objects, behind.segments));
        }
        match behind.backups.as_slice() {
            [] => {}
            [one] => lacks.push(format!("backup {one} is not there")),
            several => lacks.push(format!("{} backups are not there", several.len())),
        }
        if let Some(since) = behind.since {
            lacks.push(format!("behind for {}", human::duration((now - since).to_std().unwrap_or_default())));
        }
        if !behind.differing.is_empty() {
            lacks.push(format!("{} objects differ", behind.differing.len()));
        }
        lacks.join("; ")
    }

    /// Whether a person should look: it does not answer, has been behind for an hour, or holds something else.
    #[must_use]
    pub fn needs_person(&self, now: DateTime<Utc>) -> bool {
        self.behind.as_ref().is_none_or(|behind| {
            let long = behind.since.is_some_and(|since| now - since > LONG);
            long || !behind.differing.is_empty()
        })
    }
}

/// For so long a mirror may be behind before a person should look.
const LONG: TimeDelta = TimeDelta::hours(1);
