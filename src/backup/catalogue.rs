//! Goes through the databases of the server while it is backed up, by SQL: writes down what they and their relations are
//! called, and what they need of the host. A backup is whole without: what goes wrong here is told, and no more.

use super::environment::Learning;
use crate::{
    error::Result,
    postgres::{Conninfo, sql::Session},
    repository::{BackupId, CatalogueEntry, CatalogueWriter, Environment, System},
    seal::Blake3,
};

/// What came of it.
#[derive(Debug, Default)]
pub struct Taken {
    /// The catalogue's number, if there is one.
    pub number: Option<u32>,
    /// BLAKE3 of its content.
    pub blake3: Option<Blake3>,
    /// The length of the object in bytes.
    pub length: u64,
    /// What it could not tell, in words.
    pub missing: Vec<String>,
    /// What the server needs of its host.
    pub environment: Environment,
}

/// Takes the catalogue of the server at `conninfo`.
pub async fn take(
    system: &System,
    conninfo: &Conninfo,
    backup: BackupId,
    taken: chrono::DateTime<chrono::Utc>,
    level: i32,
) -> Taken {
    let (mut missing, mut learning) = (Vec::new(), Learning::new());
    match write(system, conninfo, backup, (taken, level), &mut missing, &mut learning).await {
        Ok((blake3, length)) => {
            Taken { number: Some(1), blake3: Some(blake3), length, missing, environment: learning.done() }
        }
        Err(error) => {
            missing.push(format!("the backup has no catalogue of names, so that walden find shows numbers: {error}"));
            learning.refused(None, &error);
            Taken { missing, environment: learning.done(), ..Taken::default() }
        }
    }
}

async fn write(
    system: &System,
    conninfo: &Conninfo,
    backup: BackupId,
    (taken, level): (chrono::DateTime<chrono::Utc>, i32),
    missing: &mut Vec<String>,
    learning: &mut Learning,
) -> Result<(Blake3, u64)> {
    let mut catalogue = CatalogueWriter::new(backup, taken, level)?;
    let session = Session::open(conninfo).await?;
    let (databases, tablespaces) = (session.databases().await?, session.tablespaces().await?);
    learning.server(&session).await;
    drop(session);
    for tablespace in tablespaces {
        catalogue.add(&CatalogueEntry::Tablespace(tablespace))?;
    }
    let mut shared_done = false;
    for (mut database, connectable) in databases {
        if connectable {
            let oid = database.oid;
            match relations(&conninfo.to_database(&database.name), !shared_done, &mut catalogue).await {
                Ok(session) => {
                    (database.listed, shared_done) = (true, true);
                    learning.database(oid, &session).await;
                }
                Err(error) => {
                    missing.push(format!("the names of database {} are not known: {error}", database.name));
                    learning.refused(Some(oid), &error);
                }
            }
        // Everywhere template0 takes none.
        } else if database.name != "template0" {
            missing.push(format!("the names of database {} are not known: it takes no connections", database.name));
            learning.closed(database.oid);
        }
        catalogue.add(&CatalogueEntry::Database(database))?;
    }
    system.put_catalogue(backup, catalogue, 1).await
}

/// Adds the relations of one database; those that all databases share only once. Gives back the session.
async fn relations(conninfo: &Conninfo, shared: bool, catalogue: &mut CatalogueWriter) -> Result<Session> {
    let session = Session::open(conninfo).await?;
    for schema in session.schemas().await? {
        catalogue.add(&CatalogueEntry::Schema(schema))?;
    }
    session
        .relations(|relation| match relation.database {
            0 if !shared => Ok(()),
            _ => catalogue.add(&CatalogueEntry::Relation(relation)),
        })
        .await?;
    Ok(session)
}
