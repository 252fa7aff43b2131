//! Physical replication slots: what makes a server keep the WAL that a receiver has not confirmed
//! (`src/backend/replication/slot.c`).

use bytes::Bytes;

use super::{Replication, ServerError, refusal, text};
use crate::{error::Result, postgres::Lsn};

/// `duplicate_object`.
const EXISTS: &str = "42710";
/// `undefined_object`.
const ABSENT: &str = "42704";

impl Replication {
    /// Makes a physical slot that holds WAL from the last checkpoint on (on a standby: from what it has replayed). False
    /// where there is a slot of that name.
    pub async fn create_slot(&mut self, name: &str) -> Result<bool> {
        if self.version_number() >= 150_000 && self.read_slot(name).await?.first().is_some_and(Option::is_some) {
            // The attempt would stand as an error in the server's log.
            return Ok(false);
        }
        // The older form of the option, which every version takes.
        let command = format!("CREATE_REPLICATION_SLOT {} PHYSICAL RESERVE_WAL", quoted(name));
        unless(EXISTS, self.ask(&command).await?.map(drop)).map_err(|e| e.context(command))
    }

    /// Removes a slot. False where there is none of that name.
    pub async fn drop_slot(&mut self, name: &str) -> Result<bool> {
        let command = format!("DROP_REPLICATION_SLOT {}", quoted(name));
        unless(ABSENT, self.ask(&command).await?.map(drop)).map_err(|e| e.context(command))
    }

    /// From where on a physical slot holds WAL; `None` where there is no such slot, it holds none, or the server is older
    /// than 15 and does not tell.
    pub async fn slot_restart(&mut self, name: &str) -> Result<Option<Lsn>> {
        if self.version_number() < 150_000 {
            return Ok(None);
        }
        match self.read_slot(name).await?.get(1) {
            Some(value) if value.is_some() => text(value)?.parse().map(Some),
            _ => Ok(None),
        }
    }

    /// Type, start and timeline; nothing where there is none.
    async fn read_slot(&mut self, name: &str) -> Result<Vec<Option<Bytes>>> {
        self.row(&format!("READ_REPLICATION_SLOT {}", quoted(name))).await
    }
}

/// Whether it was done; not where that state of things stood in its way.
fn unless(code: &str, done: std::result::Result<(), ServerError>) -> Result<bool> {
    match done {
        Ok(()) => Ok(true),
        Err(said) if said.code == code => Ok(false),
        Err(said) => Err(refusal(said)),
    }
}

/// As the grammar of replication commands takes any name.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
