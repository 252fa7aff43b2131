//! Recovery kits: those that are stored in the repository, and the notes that tell of each kit when it was made and for
//! whom. The notes are readable, for a host that has no identity must know whether its kit is older than its keys; they
//! name no database and hold no secret.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{FORMAT, System, document, documents, layout, notes};
use crate::{
    error::{Error, Kind, Result},
    store::{self, Key, Put},
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

/// What became of older kits when one was added.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cleared {
    /// The numbers of the kits that were removed.
    pub removed: Vec<u32>,
    /// Why others that should have been were not.
    pub refused: Option<String>,
}

impl System {
    /// The notes of all kits with their numbers, the newest first. One that cannot be read is left out.
    pub async fn kits(&self) -> Result<Vec<(u32, KitNote)>> {
        let folder = self.folder.notes(KITS);
        let mut kits = Vec::new();
        for number in self.note_numbers(&folder).await?.into_iter().rev() {
            match document(&*self.store, &notes::key(&folder, number)?).await {
                Ok(note) => kits.push((number, note)),
                Err(error) if matches!(error.kind(), Kind::Damaged | Kind::NotFound | Kind::Refused) => {
                    tracing::debug!(%error, "a note of a kit is left out");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(kits)
    }

    /// What is known of the newest kit: when it was made, and for which recipients and which configuration. A key that
    /// was added later is not in it.
    pub async fn newest_kit(&self) -> Result<Option<KitNote>> {
        Ok(self.kits().await?.into_iter().next().map(|(_, note)| note))
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
            let put = self.store.put(&notes::key(&folder, number)?, documents::to_bytes(&note)?.into()).await?;
            if put == Put::Created {
                return Ok((number, self.clear_kits(&folder, keep).await?));
            }
        }
        Err(Error::unavailable(format!("the kits in {folder} change faster than one can be added")))
    }

    /// The highest number of anything that lies there: an attempt that was stopped has left a kit without a note.
    async fn highest_kit(&self, folder: &str) -> Result<u32> {
        let listed = store::list_all(&*self.store, folder).await?;
        Ok(listed.iter().filter_map(|object| layout::kit_number(&object.key)).max().unwrap_or(0))
    }

    /// Keeps so many stored kits, and as many notes of others. The note of a kit goes before its object.
    async fn clear_kits(&self, folder: &str, keep: usize) -> Result<Cleared> {
        let kits = self.kits().await?;
        let of = |stored: bool| kits.iter().filter(move |(_, note)| note.object.is_some() == stored).map(|(n, _)| *n);
        let kept: Vec<u32> = of(true).take(keep).chain(of(false).take(keep)).collect();
        let newest = kept.iter().max().copied().unwrap_or(0);
        let mut objects = store::list_all(&*self.store, folder).await?;
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
        assert_eq!(system.kits().await.unwrap()[1].1.object.as_deref(), Some("4.tar.zst.age"));
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
