//! All encrypted objects of a repository: for whom they are, and having them be for others.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Serialize;

use super::rewrap::{self, Change, Object};
use crate::{
    error::{Error, Kind, Result},
    interrupt::Interrupt,
    pace::Throttle,
    progress::Progress,
    repository::{SEALING, is_kit},
    seal::age::{Identities, Recipients},
    store::{Key, Listed, Store},
};

/// Names that are asked for at a time.
const PAGE: usize = 1000;
/// Headers that are read at a time.
const HEADERS: usize = 32;

/// Objects that have something in common.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SealedTo {
    /// How many.
    pub objects: u64,
    /// Their lengths in bytes.
    pub bytes: u64,
}

/// For whom the objects of a repository are that hold data.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Survey {
    /// By the first digits of the recipients, as the headers tell them. Empty: they do not tell.
    pub sealed: BTreeMap<Vec<String>, SealedTo>,
    /// Those that are not encrypted.
    pub plain: SealedTo,
}

/// Looks at the header of each object.
pub async fn survey(store: &Arc<dyn Store>) -> Result<Survey> {
    let stored = as_stored(store);
    let (mut survey, mut pages) = (Survey::default(), Pages::default());
    while let Some(page) = pages.next(&*stored).await? {
        let look = |listed: Listed| {
            let stored = &stored;
            async move {
                match rewrap::header(&**stored, &listed.key).await {
                    Ok(found) => Ok(Some((found.map(|(header, ..)| header.recipients().to_vec()), listed.length))),
                    Err(error) if error.kind() == Kind::NotFound => Ok(None),
                    Err(error) => Err(error.context(&listed.key)),
                }
            }
        };
        let mut found = stream::iter(page.into_iter().map(look)).buffer_unordered(HEADERS);
        while let Some(one) = found.try_next().await? {
            let Some((to, bytes)) = one else { continue };
            let of = match to {
                None => &mut survey.plain,
                Some(mut to) => {
                    to.sort_unstable();
                    survey.sealed.entry(to).or_default()
                }
            };
            of.objects += 1;
            of.bytes += bytes;
        }
    }
    Ok(survey)
}

/// What came of a walk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Rewrapped {
    /// Objects that were rewrapped.
    pub objects: u64,
    /// Their lengths in bytes.
    pub bytes: u64,
    /// Those that were for these recipients already.
    pub already: u64,
    /// Those that are not encrypted.
    pub plain: u64,
    /// Recovery kits, which stay as they are: each is a file with a lock of its own, a passphrase perhaps.
    pub kits: u64,
    /// Those that could not be, each with what is wrong. They are as they were.
    pub problems: Vec<(String, String)>,
    /// Whether one of them is damaged.
    pub damaged: bool,
}

/// A walk over all objects of a repository. What a walk that was killed has done the next one passes over.
pub struct Rewrapping<'a> {
    /// What opens the old objects.
    pub identities: &'a Identities,
    /// For whom they are to be.
    pub recipients: &'a Recipients,
    /// How many at a time.
    pub parallel: usize,
    /// How fast.
    pub throttle: Arc<Throttle>,
    /// Who watches.
    pub progress: &'a dyn Progress,
    /// Who may ask to stop.
    pub interrupt: &'a Interrupt,
}

impl Rewrapping<'_> {
    /// Has every encrypted object of that repository be for these recipients and nobody else.
    pub async fn all(&self, store: &Arc<dyn Store>) -> Result<Rewrapped> {
        let stored = as_stored(store);
        let (mut pages, mut total) = (Pages::default(), 0);
        while let Some(page) = pages.next(&*stored).await? {
            total += page.iter().map(|listed| listed.length).sum::<u64>();
        }
        self.progress.start("rewrapping", Some(total));
        let change = Change { identities: self.identities, recipients: self.recipients, throttle: &self.throttle };
        let (mut done, mut pages) = (Rewrapped::default(), Pages::default());
        let bytes = AtomicU64::new(0);
        while let Some(page) = pages.next(&*stored).await? {
            let work = |listed: Listed| {
                let (stored, change, bytes) = (&stored, &change, &bytes);
                async move {
                    self.interrupt.check()?;
                    let made = change.make(&**stored, &listed.key).await;
                    self.progress.advance(listed.length);
                    if matches!(made, Ok(Object::Rewrapped)) {
                        bytes.fetch_add(listed.length, Ordering::Relaxed);
                    }
                    Ok::<_, Error>((listed.key, made))
                }
            };
            let mut coming = stream::iter(page.into_iter().map(work)).buffer_unordered(self.parallel);
            while let Some((key, made)) = coming.try_next().await? {
                done.add(&key, made)?;
            }
        }
        done.bytes = bytes.into_inner();
        done.kits = pages.kits;
        self.progress.finish();
        Ok(done)
    }
}

impl Rewrapped {
    fn add(&mut self, key: &Key, made: Result<Object>) -> Result<()> {
        match made {
            Ok(Object::Plain) => self.plain += 1,
            Ok(Object::Already) => self.already += 1,
            Ok(Object::Rewrapped) => self.objects += 1,
            Ok(Object::Gone) => {}
            Err(error) if matches!(error.kind(), Kind::Damaged | Kind::Refused | Kind::Invalid) => {
                self.damaged |= error.kind() == Kind::Damaged;
                self.problems.push((key.to_string(), error.to_string()));
            }
            Err(error) => return Err(error.context(key)),
        }
        Ok(())
    }
}

fn as_stored(store: &Arc<dyn Store>) -> Arc<dyn Store> {
    store.as_stored().unwrap_or_else(|| store.clone())
}

/// The objects of a repository that hold data, a page at a time.
#[derive(Default)]
struct Pages {
    after: Option<Key>,
    ended: bool,
    /// Recovery kits that were passed over.
    kits: u64,
}

impl Pages {
    async fn next(&mut self, store: &dyn Store) -> Result<Option<Vec<Listed>>> {
        if self.ended {
            return Ok(None);
        }
        let mut page = store.list("", self.after.as_ref(), PAGE).await?;
        self.ended = page.len() < PAGE;
        self.after = page.last().map(|listed| listed.key.clone()).or(self.after.take());
        self.kits += page.iter().filter(|listed| is_kit(&listed.key)).count() as u64;
        page.retain(|listed| (SEALING.sealed)(&listed.key) && !is_kit(&listed.key));
        Ok(Some(page))
    }
}
