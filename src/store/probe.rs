//! Proves that a store honours conditions. Some gateways and older servers accept put-if-absent and pass over it, and then
//! two writers of one name destroy each other's object without a word; and so it is with what is to be replaced only as it
//! was seen.

use bytes::Bytes;
use futures_util::future::join_all;

use super::{Key, Put, Store, read};
use crate::{clock::Random, error::Result};

/// More than fits into one part: this upload is made of several wherever uploads are.
const SEVERAL_PARTS: usize = 9 << 20;

/// How many puts race, and how often.
const RACERS: u8 = 8;
const RACES: usize = 3;

/// What the probe found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// One writer wins, and what is there stays.
    Honoured,
    /// It does not hold; the text says what happened instead.
    NotHonoured(String),
}

/// Writes a few objects `<prefix>probe/<random>/...`, tries to replace them in every way there is, and deletes them.
/// `prefix` is empty or ends in `/`. An error means that nothing was found out.
pub async fn put_if_absent(store: &dyn Store, prefix: &str, random: &Random) -> Result<Probe> {
    let folder = format!("{prefix}probe/{}", random.name());
    let mut used = Vec::new();
    let found = try_everything(store, &folder, &mut used).await;
    for key in used {
        store.delete(&key).await?;
    }
    Ok(found?.map_or(Probe::Honoured, Probe::NotHonoured))
}

/// The first way that replaced something.
async fn try_everything(store: &dyn Store, folder: &str, used: &mut Vec<Key>) -> Result<Option<String>> {
    let mut key = |name: String| -> Result<Key> {
        let key = Key::new(format!("{folder}/{name}"))?;
        used.push(key.clone());
        Ok(key)
    };
    let first = Bytes::from_static(b"the first writer's");
    let once = key("once".to_owned())?;
    if store.put(&once, first.clone()).await? != Put::Created {
        return Ok(Some("a new object was said to exist".to_owned()));
    }
    for (what, put) in [
        ("put", store.put(&once, Bytes::from_static(b"the second writer's")).await?),
        ("upload of several parts", upload(store, &once).await?),
    ] {
        if put != Put::Exists {
            return Ok(Some(format!("a second {what} of the same object was accepted")));
        }
        if read(store, &once, u64::MAX).await? != first {
            return Ok(Some(format!("a second {what} of the same object was refused, but replaced it")));
        }
    }
    for race in 0..RACES {
        let contested = key(format!("race-{race}"))?;
        let writers = (0..RACERS).map(|writer| store.put(&contested, Bytes::from(vec![writer; 1000])));
        let ends: Vec<Put> = join_all(writers).await.into_iter().collect::<Result<_>>()?;
        let winners = ends.iter().filter(|put| **put == Put::Created).count();
        if winners != 1 {
            return Ok(Some(format!("{winners} of {RACERS} writers at once were told that they made the object")));
        }
    }
    Ok(None)
}

/// Writes an object `<prefix>probe/<random>/replaced`, replaces it as it was seen and as it was not, and deletes it. The store
/// is one of objects as they are stored, or has such a one beneath. An error means that nothing was found out.
pub async fn replace_if_unchanged(store: &dyn Store, prefix: &str, random: &Random) -> Result<Probe> {
    let stored = store.as_stored();
    let store = stored.as_deref().unwrap_or(store);
    let key = Key::new(format!("{prefix}probe/{}/replaced", random.name()))?;
    let found = try_to_replace(store, &key).await;
    store.delete(&key).await?;
    Ok(found?.map_or(Probe::Honoured, Probe::NotHonoured))
}

async fn try_to_replace(store: &dyn Store, key: &Key) -> Result<Option<String>> {
    store.put(key, Bytes::from_static(b"what is seen")).await?;
    let seen = store.tag(key).await?;
    for (text, wanted) in [("what comes next", Put::Created), ("what comes too late", Put::Exists)] {
        let mut upload = store.replace(key, &seen).await?;
        upload.write(Bytes::from_static(text.as_bytes())).await?;
        if upload.finish().await? != wanted {
            return Ok(Some(match wanted {
                Put::Created => "an object that had not changed was not replaced".to_owned(),
                Put::Exists => "an object that had changed was replaced".to_owned(),
            }));
        }
    }
    let kept = read(store, key, u64::MAX).await? == "what comes next";
    Ok((!kept).then(|| "a replacement that was refused took place".to_owned()))
}

async fn upload(store: &dyn Store, key: &Key) -> Result<Put> {
    let mut upload = store.upload(key).await?;
    upload.write(Bytes::from(vec![2; SEVERAL_PARTS])).await?;
    upload.finish().await
}
