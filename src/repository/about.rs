//! What the readable document of a backup leaves out where the repository is encrypted, because it can tell what the data
//! is about: a name that a person gave, paths, libraries and collations. It is sealed beside it, and put back for
//! whoever can read it.

use std::{borrow::Cow, io::Write};

use serde::{Deserialize, Serialize};

use super::{BackupDocument, BackupId, Environment, FORMAT, LeftOut, System, Tablespace, documents};
use crate::{
    error::{Error, Kind, Result},
    seal::{self, Blake3, FrameWriter},
    store::{self, Put},
};

/// What the document of a backup says of the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AboutObject {
    /// Its number: `about-<n>.json.zst`.
    pub number: u32,
    /// BLAKE3 of its content.
    pub blake3: Blake3,
}

/// `about-<n>.json.zst`: fields of `backup-<n>.json` that are not in there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct About {
    format: u32,
    backup: BackupId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    label: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    extra_left_out: Vec<LeftOut>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    environment: Option<Environment>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    tablespaces: Vec<Tablespace>,
}

impl BackupDocument {
    /// As it may be read by everybody: of one whose sealed part has been put back, without that.
    pub(super) fn readable(&self) -> Cow<'_, Self> {
        match self.about {
            None => Cow::Borrowed(self),
            Some(_) => Cow::Owned(Self {
                label: None,
                extra_left_out: Vec::new(),
                environment: None,
                tablespaces: Vec::new(),
                ..self.clone()
            }),
        }
    }
}

impl System {
    /// Takes out of the document of a new backup what it is not to tell, and stores that apart.
    pub async fn put_about(&self, document: &mut BackupDocument, level: i32) -> Result<()> {
        let about = About {
            format: FORMAT,
            backup: document.id,
            label: document.label.take(),
            extra_left_out: std::mem::take(&mut document.extra_left_out),
            environment: document.environment.take(),
            tablespaces: std::mem::take(&mut document.tablespaces),
        };
        let number = 1;
        let key = self.folder.about(document.id, number)?;
        let content = documents::to_bytes(&key, &about)?;
        let blake3 = seal::blake3(&content);
        match self.store.put(&key, in_frames(&content, level)?.into()).await? {
            Put::Created => document.about = Some(AboutObject { number, blake3 }),
            Put::Exists => {
                return Err(Error::refused(format!("{key} is there already: another program wrote this backup")));
            }
        }
        Ok(())
    }

    /// Puts back into a document what it does not tell by itself. Without an identity it stays as it is.
    pub(super) async fn with_about(&self, mut document: BackupDocument) -> Result<BackupDocument> {
        let Some(object) = document.about else { return Ok(document) };
        match self.read_about(document.id, object).await {
            Ok(About { label, extra_left_out, environment, tablespaces, .. }) => {
                document.label = label;
                document.extra_left_out = extra_left_out;
                document.environment = environment;
                document.tablespaces = tablespaces;
            }
            Err(error) if error.kind() == Kind::Refused => {}
            // The backup can be restored without.
            Err(error) if matches!(error.kind(), Kind::Damaged | Kind::NotFound) => {
                tracing::warn!("label and environment of backup {} are not known: {error}", document.id);
            }
            Err(error) => return Err(error),
        }
        Ok(document)
    }

    /// An error unless what was left out of the document of a backup can be read.
    pub async fn prove_about(&self, backup: BackupId) -> Result<()> {
        match self.newest_document(backup).await?.and_then(|document| document.about) {
            Some(object) => self.read_about(backup, object).await.map(drop),
            None => Ok(()),
        }
    }

    async fn read_about(&self, backup: BackupId, object: AboutObject) -> Result<About> {
        let key = self.folder.about(backup, object.number)?;
        loop {
            let read = async {
                let bytes = store::read(&*self.store, &key, super::DOCUMENT_LIMIT).await?;
                let damaged = |e| Error::damaged(format!("{key} cannot be read")).source(e);
                let content = zstd::decode_all(&bytes[..]).map_err(damaged)?;
                if seal::blake3(&content) != object.blake3 {
                    return Err(Error::damaged(format!(
                        "{key} does not have the hash that the backup's document tells"
                    )));
                }
                documents::from_bytes(&key, &content)
            };
            match read.await {
                Err(error) if store::another_copy(&*self.store, &key, &error) => {}
                ended => return ended,
            }
        }
    }
}

fn in_frames(content: &[u8], level: i32) -> Result<Vec<u8>> {
    let write = || {
        let mut frames = FrameWriter::new(Vec::new(), level)?;
        frames.write_all(content)?;
        frames.finish().map(|(object, ..)| object)
    };
    write().map_err(|e: std::io::Error| Error::internal("compress a document").source(e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::testing;

    #[tokio::test]
    async fn what_is_taken_out_of_a_document_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let system = testing::system(folder.path(), testing::document()).await;
        let whole = testing::backup("20261121T014500Z", seal::blake3(b""));
        let mut told = whole.clone();
        system.put_about(&mut told, 1).await.unwrap();
        let text = |number| {
            let key = system.folder.backup_document(whole.id, number).unwrap();
            String::from_utf8(documents::to_bytes(&key, &told).unwrap()).unwrap()
        };
        let first = text(1);
        assert!(!first.contains("orders") && !first.contains("tenant"), "{first}");
        system.publish(&told, 1).await.unwrap();
        let found = system.backup(whole.id).await.unwrap();
        assert_eq!(BackupDocument { about: None, ..found.clone() }, whole);
        // Whoever writes it again, having read it as a whole, does not give it away.
        system.publish(&found, 2).await.unwrap();
        let key = system.folder.backup_document(whole.id, 2).unwrap();
        assert_eq!(store::read(&*system.store, &key, 1 << 20).await.unwrap(), text(2).as_bytes());
        // Without it the backup is there all the same.
        system.store.delete(&system.folder.about(whole.id, 1).unwrap()).await.unwrap();
        assert_eq!(system.backups().await.unwrap(), [told]);
    }
}
