//! The deep look: every object is read, and proven to be what was written under its name. The one that was found whole
//! the longest ago comes first, and what was found is remembered at once, so that a look may be interrupted, and a small
//! part of everything every night comes to everything in turn.

mod check;
mod journal;
mod layers;
mod metered;
mod objects;
mod part;

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, Utc};
use futures_util::{StreamExt, stream};
use serde::Serialize;

pub(super) use self::{check::Checker, objects::Name};
use self::{check::Soundness, journal::Journal, metered::Metered, objects::Object};
use super::{MANIFESTS, report::Wrong};
use crate::{
    clock::Clock,
    error::{Error, Kind, Result},
    plan::Watch,
    repository::{BackupDocument, PartName, RepositoryDocument, System},
    store::{self, Key, Listed},
};

/// How to look.
#[derive(Clone, Debug)]
pub struct Request {
    /// Of a hundred bytes so many, the ones that were looked at the longest ago.
    pub sample: Option<f64>,
    /// Only what was not found whole for so long.
    pub not_checked_for: Option<Duration>,
    /// Everything, whatever an interrupted look has done.
    pub anew: bool,
    /// Objects at a time.
    pub parallel: usize,
    /// The most bytes to read in a second.
    pub rate_limit: Option<u64>,
    /// Where this host remembers what was done.
    pub state_dir: PathBuf,
}

/// What a deep look came to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Deep {
    /// Objects that were read.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// All objects that there are to read.
    pub of_objects: u64,
    /// Their bytes.
    pub of_bytes: u64,
    /// Objects that were not read by this look, and were not found whole by an earlier one of this host.
    pub never_checked: u64,
    /// The longest time ago that any of the others was found whole.
    pub oldest_check: Option<DateTime<Utc>>,
    /// When the look began that this one goes on with.
    pub goes_on_from: Option<DateTime<Utc>>,
    /// Whether it was interrupted.
    pub interrupted: bool,
}

/// An object that is not what was written.
#[derive(Clone, Debug)]
pub(super) struct Bad {
    pub key: Key,
    pub name: Name,
    pub wrong: Wrong,
    pub why: String,
}

/// What was seen.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub deep: Deep,
    pub bad: Vec<Bad>,
    /// Those of the ones that should come first that were found whole, or are not there any more.
    pub settled: Vec<Key>,
    /// What could not be read, in words.
    pub remarks: Vec<String>,
}

/// Looks at what lies in the repository of that document; `backups` are those that exist. `first` comes first.
pub(super) async fn look(
    system: &System,
    repository: &RepositoryDocument,
    backups: &[BackupDocument],
    first: &[Key],
    request: &Request,
    clock: &dyn Clock,
    watch: &Watch,
) -> Result<Seen> {
    let checker = checker(system, backups, request.rate_limit, watch).await?;
    let mut objects = objects::list(system).await?;
    objects.retain(|object| !checker.is_left_over(&object.name));
    let mut journal = match open(repository, system, request, &mut objects) {
        Ok(journal) => Some(journal),
        Err(error) => {
            tracing::warn!("{error}; this look cannot be gone on with, nor remembered");
            None
        }
    };
    // Later than all that was done before, however quickly one look follows the other, or the clock goes back.
    let before = objects.iter().map(|object| object.checked + 1).max().unwrap_or(0);
    let now = seconds(clock.now()).max(before);
    let mut seen = Seen::default();
    seen.deep.of_objects = objects.len() as u64;
    seen.deep.of_bytes = objects.iter().map(|object| object.length).sum();
    let is_round = request.sample.is_none() && request.not_checked_for.is_none();
    let chosen = choose(&objects, request, journal.as_ref().and_then(|journal| journal.round), now, &mut seen.deep);
    let first: BTreeMap<Name, &Key> = first.iter().map(|key| (Name::of(key, system), key)).collect();
    let gone = first.iter().filter(|(name, _)| find(&objects, name).is_none());
    seen.settled = gone.map(|(_, key)| (*key).clone()).collect();
    let chosen = with_first(chosen, &objects, &first);
    if let Some(journal) = journal.as_mut().filter(|_| is_round && seen.deep.goes_on_from.is_none()) {
        journal.begin(now);
    }
    let bytes = chosen.iter().map(|at| objects[*at].length).sum();
    watch.progress.start("reading and proving every object", Some(bytes));
    let when = || seconds(clock.now()).max(now);
    let ended = read(&checker, &mut objects, &chosen, request.parallel, when, journal.as_mut(), &mut seen).await;
    watch.progress.finish();
    let whole = |name: &Name| find(&objects, name).is_some_and(|at| objects[at].checked >= now);
    seen.settled.extend(first.iter().filter(|(name, _)| whole(name)).map(|(_, key)| (*key).clone()));
    match ended {
        Err(error) if error.kind() == Kind::Interrupted => seen.deep.interrupted = true,
        Err(error) => return Err(error),
        Ok(()) => {
            if let Some(journal) = journal.as_mut().filter(|_| is_round) {
                journal.end(when());
            }
        }
    }
    seen.deep.never_checked = objects.iter().filter(|object| object.checked == 0).count() as u64;
    let oldest = objects.iter().map(|object| object.checked).filter(|checked| *checked > 0).min();
    seen.deep.oldest_check = oldest.and_then(time);
    Ok(seen)
}

fn seconds(time: DateTime<Utc>) -> u64 {
    u64::try_from(time.timestamp()).unwrap_or(0)
}

fn time(seconds: u64) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp(i64::try_from(seconds).ok()?, 0)
}

fn open(
    repository: &RepositoryDocument,
    system: &System,
    request: &Request,
    objects: &mut [Object],
) -> Result<Journal> {
    Journal::open(&Journal::place(&request.state_dir, repository, &system.folder)?, objects)
}

/// What objects are held against. The manifests are read for it.
pub(super) async fn checker(
    system: &System,
    backups: &[BackupDocument],
    rate_limit: Option<u64>,
    watch: &Watch,
) -> Result<Checker> {
    let mut parts: HashMap<PartName, _> = HashMap::new();
    let mut readable = HashMap::new();
    let read = |backup: BackupDocument| async move { (system.parts_needed(&backup).await, backup) };
    let mut coming = stream::iter(backups.iter().cloned().map(read)).buffered(MANIFESTS);
    while let Some((needed, backup)) = coming.next().await {
        watch.interrupt.check()?;
        match needed {
            Ok(needed) => parts.extend(needed.into_iter().map(|part| ((part.backup, part.number), part))),
            // The fast look has told it.
            Err(error) if matches!(error.kind(), Kind::Damaged | Kind::Refused) => {}
            Err(error) => return Err(error),
        }
        readable.insert(backup.id, backup);
    }
    let mut histories = BTreeMap::new();
    for timeline in system.timelines().await? {
        match system.history(timeline).await {
            Ok(history) => _ = histories.insert(timeline, history),
            Err(error) if matches!(error.kind(), Kind::Damaged | Kind::NotFound | Kind::Refused) => {}
            Err(error) => return Err(error),
        }
    }
    let (progress, interrupt) = (watch.progress.clone(), watch.interrupt.clone());
    let store = Arc::new(Metered::new(system.store.clone(), rate_limit, progress, interrupt));
    Ok(Checker { system: System { store, ..system.clone() }, backups: readable, parts, histories })
}

/// The objects to read, by their numbers, in the order in which they are read.
fn choose(objects: &[Object], request: &Request, round: Option<u64>, now: u64, deep: &mut Deep) -> Vec<usize> {
    let mut chosen: Vec<usize> = (0..objects.len()).collect();
    if let Some(length) = request.not_checked_for {
        chosen.retain(|at| objects[*at].checked + length.as_secs() <= now);
    }
    let is_round = request.sample.is_none() && request.not_checked_for.is_none();
    if let Some(round) = round.filter(|_| is_round && !request.anew) {
        deep.goes_on_from = time(round);
        chosen.retain(|at| objects[*at].checked < round);
    }
    chosen.sort_by_key(|at| (objects[*at].checked, *at));
    if let Some(share) = request.sample {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of bytes")]
        let wanted = (deep.of_bytes as f64 * share / 100.0).ceil() as u64;
        let mut taken = 0;
        chosen.retain(|at| {
            let takes = taken < wanted;
            taken += if takes { objects[*at].length } else { 0 };
            takes
        });
    }
    chosen
}

/// With what was found damaged before in front: whether it is whole again, or still tells.
fn with_first(chosen: Vec<usize>, objects: &[Object], first: &BTreeMap<Name, &Key>) -> Vec<usize> {
    if first.is_empty() {
        return chosen;
    }
    let known = first.keys().filter_map(|name| find(objects, name));
    known.chain(chosen.into_iter().filter(|at| !first.contains_key(&objects[*at].name))).collect()
}

/// Where an object is among those that were listed.
fn find(objects: &[Object], name: &Name) -> Option<usize> {
    objects.binary_search_by(|object| object.name.cmp(name)).ok()
}

/// An error unless the object of that key is there, and is what was written.
pub(super) async fn is_whole(checker: &Checker, key: &Key) -> Result<()> {
    let length = store::listed_length(&*checker.system.store, key).await?;
    let object = objects::object(&checker.system, &Listed { key: key.clone(), length });
    checker.check(&object).await?;
    layers::check(checker, &object.name).await
}

/// Reads and proves them, and takes note of each.
async fn read(
    checker: &Checker,
    objects: &mut [Object],
    chosen: &[usize],
    parallel: usize,
    when: impl Fn() -> u64,
    mut journal: Option<&mut Journal>,
    seen: &mut Seen,
) -> Result<()> {
    let wanted: Vec<(usize, Object)> = chosen.iter().map(|at| (*at, objects[*at].clone())).collect();
    let check = |(at, object): (usize, Object)| async move {
        let checked = checker.check(&object).await;
        let checked = match checked {
            Ok(Soundness::Whole) => layers::check(checker, &object.name).await.map(|()| Soundness::Whole),
            ended => ended,
        };
        (at, object, checked)
    };
    let mut coming = stream::iter(wanted.into_iter().map(check)).buffer_unordered(parallel.max(1));
    let mut unread: (u64, Option<Error>) = (0, None);
    while let Some((at, object, checked)) = coming.next().await {
        let key = object.name.key(&checker.system)?;
        match checked {
            Ok(Soundness::HeadLost) => {
                objects[at].checked = 0;
                let why = "its head is lost or damaged; what it holds is whole".to_owned();
                seen.bad.push(Bad { key, name: object.name.clone(), wrong: Wrong::Head, why });
            }
            Ok(Soundness::Whole) => {
                objects[at].checked = when();
                if let Some(journal) = &mut journal {
                    journal.checked(&object, objects[at].checked);
                }
            }
            Err(error) if error.kind() == Kind::Damaged => {
                tracing::warn!("{key} is damaged: {error}");
                objects[at].checked = 0;
                let why = told(&error, &object, checker);
                seen.bad.push(Bad { key, name: object.name.clone(), wrong: Wrong::Content, why });
            }
            // An expiry, or whoever holds a lease, has removed it since it was listed.
            Err(error) if error.kind() == Kind::NotFound => continue,
            Err(error) if error.kind() == Kind::Refused => {
                unread.0 += 1;
                unread.1.get_or_insert(error);
                continue;
            }
            Err(error) => return Err(error),
        }
        seen.deep.objects += 1;
        seen.deep.bytes += object.length;
    }
    if let (count, Some(error)) = unread {
        seen.remarks.push(format!("{count} objects were not read: {error}"));
    }
    Ok(())
}

/// What is wrong, without the key that stands in front of it.
fn told(error: &Error, object: &Object, checker: &Checker) -> String {
    let text = error.to_string();
    let key = object.name.key(&checker.system).map(|key| key.to_string()).unwrap_or_default();
    let text = text
        .strip_prefix(&key)
        .map_or(text.as_str(), |rest| rest.trim_start_matches(" is damaged").trim_start_matches(':'));
    text.trim().to_owned()
}
