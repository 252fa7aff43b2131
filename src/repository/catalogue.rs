//! The catalogue of a backup: what its databases and relations are called, with the numbers by which the WAL knows
//! them. One JSON object a line, so that a million relations are written and read one by one. Only names: no data.

use std::io::{BufRead, BufReader, Write};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{BackupDocument, BackupId, FORMAT, System, join};
use crate::{
    error::{Error, Kind, Result},
    postgres::sql::catalogue::{DatabaseName, RelationName, SchemaName, TablespaceName},
    seal::{Blake3, FrameWriter, HashReader, HashWriter},
    store::{Put, bridge},
};

/// A line of a catalogue: in JSON an object with one field, which says what it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CatalogueEntry {
    /// The first line.
    Catalogue {
        /// The format.
        format: u32,
        /// The backup it belongs to.
        backup: BackupId,
        /// When it was begun.
        taken: DateTime<Utc>,
    },
    /// A tablespace.
    Tablespace(TablespaceName),
    /// A database.
    Database(DatabaseName),
    /// A schema.
    Schema(SchemaName),
    /// A relation.
    Relation(RelationName),
}

/// Writes a catalogue into memory, compressed: a million relations take about 15 MB.
#[derive(Debug)]
pub struct CatalogueWriter(HashWriter<FrameWriter<Vec<u8>>>);

impl CatalogueWriter {
    /// Begins one.
    pub fn new(backup: BackupId, taken: DateTime<Utc>, level: i32) -> Result<Self> {
        let frames = FrameWriter::new(Vec::new(), level).map_err(failed)?;
        let mut writer = Self(HashWriter::new(frames));
        writer.add(&CatalogueEntry::Catalogue { format: FORMAT, backup, taken })?;
        Ok(writer)
    }

    /// Adds a line.
    pub fn add(&mut self, entry: &CatalogueEntry) -> Result<()> {
        let mut line = serde_json::to_vec(entry).map_err(|e| failed(e.into()))?;
        line.push(b'\n');
        self.0.write_all(&line).map_err(failed)
    }
}

fn failed(error: std::io::Error) -> Error {
    Error::internal("write a catalogue").source(error)
}

impl System {
    /// Stores a catalogue; gives back the BLAKE3 of its content and the length of the object.
    pub async fn put_catalogue(
        &self,
        backup: BackupId,
        catalogue: CatalogueWriter,
        number: u32,
    ) -> Result<(Blake3, u64)> {
        let key = self.folder.catalogue(backup, number)?;
        let (hash, _) = catalogue.0.digest();
        let (object, _, _) = catalogue.0.into_inner().finish().map_err(failed)?;
        let length = object.len() as u64;
        match self.store.put(&key, object.into()).await? {
            Put::Created => Ok((hash, length)),
            Put::Exists => Err(Error::refused(format!("{key} is there already: another program wrote this backup"))),
        }
    }

    /// Reads the catalogue of a backup, and hands each line to `each`. Where there is none it hands on nothing.
    pub async fn catalogue<T: Send + 'static>(
        &self,
        backup: &BackupDocument,
        mut state: T,
        mut each: impl FnMut(&mut T, CatalogueEntry) + Send + 'static,
    ) -> Result<T> {
        let Some(number) = backup.catalogue else { return Ok(state) };
        let (id, expected) = (backup.id, backup.catalogue_blake3);
        let key = self.folder.catalogue(backup.id, number)?;
        let download = self.store.get(&key, None).await.map_err(|e| match e.kind() {
            Kind::NotFound => Error::damaged(format!("backup {} has lost its catalogue {key}", backup.id)),
            _ => e,
        })?;
        let body = bridge::BodyReader::new(download.body, tokio::runtime::Handle::current());
        let damaged = move |e| bridge::from_io(e, |e| Error::damaged("the catalogue cannot be read").source(e));
        let read = tokio::task::spawn_blocking(move || {
            let mut hashed = HashReader::new(zstd::Decoder::new(body).map_err(damaged)?);
            for line in BufReader::with_capacity(256 << 10, &mut hashed).lines() {
                let entry = serde_json::from_str(&line.map_err(damaged)?).map_err(|e| damaged(e.into()))?;
                if let CatalogueEntry::Catalogue { format, .. } = entry
                    && format > FORMAT
                {
                    return Err(Error::refused(format!("the catalogue has format {format}"))
                        .hint("use the version of Walden that wrote it, or a newer one"));
                }
                if let CatalogueEntry::Catalogue { backup, .. } = entry
                    && backup != id
                {
                    return Err(Error::damaged(format!("it says that it is of backup {backup}")));
                }
                each(&mut state, entry);
            }
            if expected.is_some_and(|expected| expected != hashed.digest().0) {
                return Err(Error::damaged("it does not have the hash that the backup's document tells"));
            }
            Ok(state)
        })
        .await;
        join(read)?.map_err(|e| e.context(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::sql::catalogue::RelationKind;

    #[test]
    fn an_entry_is_a_line_that_people_can_read() {
        let relation = RelationName {
            database: 5,
            oid: 16389,
            schema: "public".into(),
            name: "orders".into(),
            kind: RelationKind::Table,
            file: Some(16402),
            tablespace: 1663,
            parent: None,
        };
        let entry = CatalogueEntry::Relation(relation);
        let text = serde_json::to_string(&entry).unwrap();
        assert_eq!(
            text,
            r#"{"relation":{"database":5,"oid":16389,"schema":"public","name":"orders","kind":"r","file":16402,"tablespace":1663}}"#
        );
        assert_eq!(serde_json::from_str::<CatalogueEntry>(&text).unwrap(), entry);
        let later = text.replace("\"r\"", "\"x\"").replace("\"oid\"", "\"more\":1,\"oid\"");
        assert!(serde_json::from_str::<CatalogueEntry>(&later).is_ok());
    }
}
