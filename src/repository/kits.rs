//! Recovery kits: those that are stored in the repository, and the notes that tell of each kit when it was made and for
//! whom. The notes are readable, for a host that has no identity must know whether its kit is older than its keys; they
//! name no database and hold no secret.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{ClusterName, DOCUMENT_LIMIT, FORMAT, System, SystemFolder, clusters, document, documents, layout, notes};
use crate::{
    error::{Error, Kind, Result},
    seal,
    store::{self, Key, Put, Store},
};

/// The folder below `notes/`.
const KITS: &str = "kits";

/// What is known of a kit without opening it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KitNote {
    /// The format of the repository.
    pub format: u32,
    /// When the kit was made.
    pub made: DateTime<Utc>,
    /// The host it was made on.
    pub host: String,
    /// The version of Walden that made it.
    pub walden: String,
    /// Whether it is locked, and how.
    pub locked: KitLock,
    /// Whether the identity is in it.
    pub identity: bool,
    /// Whether access keys or passwords are in it.
    pub credentials: bool,
    /// The public recipients of new objects when it was made.
    pub recipients: Vec<String>,
    /// The SHA-256 of the configuration in it, in hexadecimal digits.
    pub configuration_sha256: String,
    /// The length of the kit's file.
    pub bytes: u64,
    /// The SHA-256 of the kit's file, in hexadecimal digits.
    pub sha256: String,
    /// The object with the kit, beside this note; absent of a kit that is kept elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
}

/// How a kit is locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KitLock {
    /// It is not: there is no secret in it.
    Open,
    /// With a passphrase.
    Passphrase,
    /// To recipients.
    Recipients,
}

/// A kit that a repository tells of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToldKit {
    /// The system that it was made for.
    pub folder: SystemFolder,
    /// Its number there.
    pub number: u32,
    /// What is known of it.
    pub note: KitNote,
}

/// The kits that a repository tells of.
#[derive(Debug, Default)]
pub struct ToldKits {
    /// Those whose notes can be read: the newest first, those of one system together.
    pub kits: Vec<ToldKit>,
    /// The other notes, each with what is wrong.
    pub unreadable: Vec<(Key, Error)>,
}

/// What became of older kits when one was added.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cleared {
    /// The numbers of the kits that were removed.
    pub removed: Vec<u32>,
    /// Why others that should have been were not.
    pub refused: Option<String>,
}

/// The kits of a cluster, or of all: those that are stored, and those that are only told of. It takes the right to list
/// and to read, and nothing else of the repository has to be whole.
pub async fn kits(store: &dyn Store, cluster: Option<&ClusterName>) -> Result<ToldKits> {
    let clusters = match cluster {
        Some(cluster) => vec![cluster.clone()],
        None => clusters(store).await?,
    };
    let (mut systems, mut unreadable) = (Vec::new(), Vec::new());
    for cluster in clusters {
        for incarnation in store.folders(&format!("{cluster}/")).await?.iter().filter_map(|name| name.parse().ok()) {
            let mut told = kits_of(store, &SystemFolder { cluster: cluster.clone(), incarnation }).await?;
            unreadable.append(&mut told.unreadable);
            systems.push(told.kits);
        }
    }
    systems.sort_by_key(|kits| std::cmp::Reverse(kits.first().map(|kit| kit.note.made)));
    Ok(ToldKits { kits: systems.concat(), unreadable })
}

/// The kits of one system, the newest first.
async fn kits_of(store: &dyn Store, folder: &SystemFolder) -> Result<ToldKits> {
    let prefix = folder.notes(KITS);
    let mut told = ToldKits::default();
    for number in notes::numbers(store, &prefix).await?.into_iter().rev() {
        let key = notes::key(&prefix, number)?;
        match document(store, &key).await {
            Ok(note) => told.kits.push(ToldKit { folder: folder.clone(), number, note }),
            // It was cleared away meanwhile.
            Err(error) if error.kind() == Kind::NotFound => {}
            Err(error) if matches!(error.kind(), Kind::Damaged | Kind::Refused) => told.unreadable.push((key, error)),
            Err(error) => return Err(error),
        }
    }
    Ok(told)
}

impl ToldKit {
    /// Reads the kit where it is stored here, and proves that it is the one that was.
    pub async fn read(&self, store: &dyn Store) -> Result<Bytes> {
        let name =
            self.note.object.as_ref().ok_or_else(|| Error::not_found("the kit is not stored in the repository"))?;
        let key = Key::new(format!("{}{name}", self.folder.notes(KITS)))?;
        let bytes = store::read(store, &key, DOCUMENT_LIMIT).await?;
        if bytes.len() as u64 == self.note.bytes && seal::sha256(&bytes) == self.note.sha256 {
            Ok(bytes)
        } else {
            Err(Error::damaged(format!("{key} is not the kit that was stored there"))
                .hint("take an older one, or another copy of the repository: walden kit list"))
        }
    }
}

impl System {
    /// Proves that the kit which an object is, is the one that was stored. One without a note does not exist.
    pub async fn prove_kit(&self, key: &Key) -> Result<()> {
        let Some(number) = layout::kit_number(key) else { return Ok(()) };
        let note = match document::<KitNote>(&*self.store, &notes::key(&self.folder.notes(KITS), number)?).await {
            Err(error) if error.kind() == Kind::NotFound => return Ok(()),
            note => note?,
        };
        if note.object.is_none() {
            return Ok(());
        }
        ToldKit { folder: self.folder.clone(), number, note }.read(&*self.store).await.map(drop)
    }

    /// What is known of the kits with their numbers, the newest first. A note that cannot be read is left out.
    async fn kits(&self) -> Result<Vec<(u32, KitNote)>> {
        let told = kits_of(&*self.store, &self.folder).await?;
        for (key, error) in &told.unreadable {
            tracing::debug!(%key, %error, "a note of a kit is left out");
        }
        Ok(told.kits.into_iter().map(|kit| (kit.number, kit.note)).collect())
    }

    /// What is known of the newest kit with an identity, else of the newest: when it was made, and for which recipients and
    /// which configuration. A key that was added later is not in it, and no kit without an identity makes up for that.
    pub async fn newest_kit(&self) -> Result<Option<KitNote>> {
        let mut notes: Vec<KitNote> = self.kits().await?.into_iter().map(|(_, note)| note).collect();
        let counts = notes.iter().position(|note| note.identity).unwrap_or(0);
        Ok((counts < notes.len()).then(|| notes.swap_remove(counts)))
    }

    /// Stores a kit (or only the note of one that is kept elsewhere) as the next, and then removes those that are more
    /// than `keep`. What may not be removed stays.
    pub async fn add_kit(&self, mut note: KitNote, kit: Option<Bytes>, keep: usize) -> Result<(u32, Cleared)> {
        let folder = self.folder.notes(KITS);
        for _ in 0..4 {
            let number = self.highest_kit(&folder).await? + 1;
            if let Some(kit) = &kit {
                let name = layout::kit_name(number, note.locked != KitLock::Open);
                if self.store.put(&Key::new(format!("{folder}{name}"))?, kit.clone()).await? == Put::Exists {
                    continue;
                }
                note.object = Some(name);
            }
            note.format = FORMAT;
            // The note comes last: it makes the kit exist.
            let key = notes::key(&folder, number)?;
            let put = self.store.put(&key, documents::to_bytes(&key, &note)?.into()).await?;
            if put == Put::Created {
                return Ok((number, self.clear_kits(keep).await?));
            }
        }
        Err(Error::unavailable(format!("the kits in {folder} change faster than one can be added")))
    }

    /// The highest number of anything that lies there: an attempt that was stopped has left a kit without a note.
    async fn highest_kit(&self, folder: &str) -> Result<u32> {
        let listed = store::list_all(&*self.store, folder).await?;
        Ok(listed.iter().filter_map(|object| layout::kit_number(&object.key)).max().unwrap_or(0))
    }

    /// Keeps so many stored kits, and as many notes of others; and of both the newest with an identity, which those that
    /// are made night after night do not have. The note of a kit goes before its object.
    pub async fn clear_kits(&self, keep: usize) -> Result<Cleared> {
        let folder = self.folder.notes(KITS);
        let kits = self.kits().await?;
        let of = |stored: bool| kits.iter().filter(move |(_, note)| note.object.is_some() == stored);
        let stays = |stored| of(stored).take(keep).chain(of(stored).find(|(_, note)| note.identity));
        let kept: Vec<u32> = stays(true).chain(stays(false)).map(|(number, _)| *number).collect();
        let newest = kept.iter().max().copied().unwrap_or(0);
        let mut objects = store::list_all(&*self.store, &folder).await?;
        objects.sort_by_key(|object| !object.key.as_str().ends_with(".json"));
        let mut cleared = Cleared::default();
        for object in objects {
            // What is newer than everything here is just being written by somebody.
            let Some(number) = layout::kit_number(&object.key).filter(|n| !kept.contains(n) && *n < newest) else {
                continue;
            };
            match self.store.delete(&object.key).await {
                Ok(()) if !cleared.removed.contains(&number) => cleared.removed.push(number),
                Ok(()) => {}
                Err(error) => {
                    cleared.refused = Some(error.to_string());
                    break;
                }
            }
        }
        Ok(cleared)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        repository::testing,
        store::faulty::{Faulty, Trouble},
    };

    fn note(hour: i64) -> KitNote {
        KitNote {
            format: FORMAT,
            made: DateTime::UNIX_EPOCH + chrono::Duration::hours(hour),
            host: "db1".into(),
            walden: "0.1.0".into(),
            locked: KitLock::Passphrase,
            identity: true,
            credentials: true,
            recipients: vec!["age1x".into()],
            configuration_sha256: "00".into(),
            bytes: 3,
            sha256: "11".into(),
            object: None,
        }
    }

    async fn objects(system: &System) -> Vec<String> {
        let folder = system.folder.notes(KITS);
        let listed = store::list_all(&*system.store, &folder).await.unwrap();
        listed.iter().map(|object| object.key.as_str()[folder.len()..].to_owned()).collect()
    }

    #[tokio::test]
    async fn the_newest_are_kept_and_those_that_lie_elsewhere_are_only_told_of() {
        let scene = tempfile::tempdir().unwrap();
        let system = testing::system(scene.path(), testing::document()).await;
        assert_eq!(system.newest_kit().await.unwrap(), None);
        for hour in 1..=4 {
            system.add_kit(note(hour), Some("kit".into()), 2).await.unwrap();
        }
        let (number, cleared) = system.add_kit(note(5), None, 2).await.unwrap();
        assert_eq!((number, cleared), (5, Cleared::default()));
        assert_eq!(objects(&system).await, ["3.json", "3.tar.zst.age", "4.json", "4.tar.zst.age", "5.json"]);
        let newest = system.newest_kit().await.unwrap().unwrap();
        assert_eq!((newest.made, newest.object), (note(5).made, None));
        let without = KitNote { identity: false, ..note(6) };
        system.add_kit(without, None, 2).await.unwrap();
        assert_eq!(
            system.newest_kit().await.unwrap().unwrap().made,
            note(5).made,
            "one without an identity opens nothing"
        );
        assert_eq!(system.kits().await.unwrap()[2].1.object.as_deref(), Some("4.tar.zst.age"));
    }

    #[tokio::test]
    async fn the_newest_with_an_identity_stays_however_many_come_without() {
        let scene = tempfile::tempdir().unwrap();
        let system = testing::system(scene.path(), testing::document()).await;
        for hour in 1..=5 {
            let note = KitNote { identity: hour <= 2, ..note(hour) };
            system.add_kit(note, Some("kit".into()), 2).await.unwrap();
        }
        let numbers: Vec<u32> = system.kits().await.unwrap().into_iter().map(|(number, _)| number).collect();
        assert_eq!(numbers, [5, 4, 2]);
    }

    #[tokio::test]
    async fn stopped_anywhere_every_kit_that_is_told_of_is_there() {
        for trouble in [Trouble::Fail, Trouble::LoseAnswer, Trouble::Die] {
            for at in 0.. {
                let scene = tempfile::tempdir().unwrap();
                let system = testing::system(scene.path(), testing::document()).await;
                for hour in 1..=3 {
                    system.add_kit(note(hour), Some("kit".into()), 2).await.unwrap();
                }
                let store = Arc::new(Faulty::new(system.store.clone(), at, trouble));
                let faulty = System { store: store.clone(), ..system.clone() };
                // How it ends does not matter, only what is left.
                _ = faulty.add_kit(note(4), Some("kit".into()), 2).await;
                for (_, note) in system.kits().await.unwrap() {
                    let name = note.object.expect("all are stored");
                    assert!(objects(&system).await.contains(&name), "{trouble:?} at {at}: {name}");
                }
                system.add_kit(note(5), Some("kit".into()), 2).await.unwrap();
                assert_eq!(objects(&system).await.len(), 4, "{trouble:?} at {at}: nothing is left over");
                if !store.met() {
                    break;
                }
            }
        }
    }
}
