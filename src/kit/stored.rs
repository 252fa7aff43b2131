//! Kits that are stored in a repository: what they are called, and which of them is meant.

use std::collections::BTreeSet;

use crate::{
    error::{Error, Kind, Result},
    human,
    repository::{self, ClusterName, KitNote, REPOSITORY, ToldKit, ToldKits},
    store::{Key, Store},
};

/// Stands for the newest kit.
pub const LATEST: &str = "latest";

/// So many digits of its SHA-256 are what a kit is called.
const DIGITS: usize = 8;
/// Fewer are no name.
const FEWEST: usize = 4;

/// What a kit is called: the first digits of its file's SHA-256.
#[must_use]
pub fn id(note: &KitNote) -> &str {
    note.sha256.get(..DIGITS).unwrap_or(&note.sha256)
}

/// The kit that is meant by an id or the beginning of one, or else the newest. An error where there is none, or where
/// several could be meant.
pub async fn choose(
    store: &dyn Store,
    told: &ToldKits,
    cluster: Option<&ClusterName>,
    wanted: Option<&str>,
) -> Result<ToldKit> {
    let stored: Vec<&ToldKit> = told.kits.iter().filter(|kit| kit.note.object.is_some()).collect();
    if stored.is_empty() {
        return Err(none(store, told, cluster).await);
    }
    match wanted {
        Some(wanted) if wanted != LATEST => named(store, &stored, wanted),
        _ => newest(store, &stored),
    }
    .cloned()
}

fn named<'a>(store: &dyn Store, stored: &[&'a ToldKit], wanted: &str) -> Result<&'a ToldKit> {
    let wanted = wanted.to_ascii_lowercase();
    let is_id = wanted.len() >= FEWEST && wanted.bytes().all(|digit| digit.is_ascii_hexdigit());
    let mut meant = stored.iter().filter(|kit| is_id && kit.note.sha256.starts_with(&wanted));
    match (meant.next(), meant.next()) {
        (Some(one), None) => Ok(one),
        (Some(_), Some(_)) => Err(Error::ambiguous(format!("several kits in {} begin with {wanted}", store.url()))
            .hint("write more digits of the kit's SHA-256")),
        (None, _) => Err(Error::not_found(format!("there is no kit {} in {}", wanted.escape_debug(), store.url()))
            .hint(format!(
                "walden kit list shows those there are; without a name the newest is taken, as with {LATEST}"
            ))),
    }
}

fn newest<'a>(store: &dyn Store, stored: &[&'a ToldKit]) -> Result<&'a ToldKit> {
    let clusters: BTreeSet<&str> = stored.iter().map(|kit| kit.folder.cluster.as_str()).collect();
    match stored {
        [newest, ..] if clusters.len() == 1 => Ok(newest),
        _ => Err(Error::ambiguous(format!(
            "there are kits of several clusters in {}: {}",
            store.url(),
            clusters.into_iter().collect::<Vec<_>>().join(", ")
        ))
        .hint("choose one with --cluster NAME; or name a kit: walden kit list shows them")),
    }
}

/// Why no kit is stored there, as far as it can be told.
pub async fn none(store: &dyn Store, told: &ToldKits, cluster: Option<&ClusterName>) -> Error {
    if let Some(error) = no_repository(store).await {
        return error;
    }
    let url = store.url();
    let of = cluster.map(|cluster| format!(" of cluster {cluster}")).unwrap_or_default();
    let error = Error::not_found(format!("no recovery kit{of} is stored in {url}"));
    let known = repository::clusters(store).await.unwrap_or_default();
    match (told.kits.first(), cluster) {
        (Some(ToldKit { note, .. }), _) => error.hint(format!(
            "the newest one was made on {} at {} and is kept elsewhere: a file, or paper in a safe",
            note.host.escape_debug(),
            human::time(note.made)
        )),
        (None, Some(cluster)) if !known.contains(cluster) => error.hint(format!(
            "the clusters there: {}",
            known.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        )),
        (None, _) => error.hint(
            "walden kit export --to-repository stores one; how to recover without a kit is said in docs/RUNBOOK.md",
        ),
    }
}

/// What is wrong with a place that is no repository, and where the repository probably is.
pub async fn no_repository(store: &dyn Store) -> Option<Error> {
    let error = repository::open(store).await.err()?;
    if error.kind() != Kind::Invalid {
        return Some(error);
    }
    Some(error.hint(match elsewhere(store).await {
        Some(place) => format!("there is one at {place}"),
        None => format!("the address is that of the folder with {REPOSITORY}, such as s3://bucket/prefix"),
    }))
}

/// Folders of a place that are looked into for a repository.
const FOLDERS: usize = 20;

/// Where the repository is that somebody named too short an address of.
async fn elsewhere(store: &dyn Store) -> Option<String> {
    for folder in store.folders("").await.ok()?.into_iter().take(FOLDERS) {
        let document = Key::new(format!("{folder}/{REPOSITORY}")).ok()?;
        if store.get(&document, Some(0..0)).await.is_ok() {
            return Some(format!("{}/{folder}", store.url()));
        }
    }
    None
}
