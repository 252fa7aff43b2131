//! Pins: backups that no rule removes, because a person said so.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{BackupId, FORMAT, System, numbered};
use crate::{
    error::{Error, Result},
    store::Put,
};

/// The folder below `notes/`.
const PINS: &str = "pins";

/// A backup that is to stay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// The backup.
    pub backup: BackupId,
    /// Since when.
    pub since: DateTime<Utc>,
    /// The host on which that was said.
    pub host: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct PinsDocument {
    format: u32,
    pins: Vec<Pin>,
}

impl System {
    /// The backups that are to stay, by their ids.
    pub async fn pins(&self) -> Result<Vec<Pin>> {
        Ok(self.numbered_pins().await?.1)
    }

    async fn numbered_pins(&self) -> Result<(u32, Vec<Pin>)> {
        let folder = self.folder.notes(PINS);
        let (number, found) = numbered::highest::<PinsDocument>(&*self.store, &folder).await?;
        Ok((number, found.map_or_else(Vec::new, |document| document.pins)))
    }

    /// Says that a backup is to stay. False when that was said before. Refused when an expiry has condemned it.
    pub async fn pin(&self, backup: BackupId, now: DateTime<Utc>) -> Result<bool> {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let pin = Pin { backup, since: now, host };
        let said = self
            .change_pins(|pins| {
                let new = !pins.iter().any(|p| p.backup == backup);
                pins.extend(new.then(|| pin.clone()));
                pins.sort_by_key(|p| p.backup);
                new
            })
            .await?;
        // An expiry condemns first and looks at the pins then: one of the two sees the other.
        if self.condemned().await?.1.backups.contains(&backup) {
            self.unpin(backup).await?;
            return Err(Error::refused(format!("backup {backup} is being removed: an expiry has condemned it"))
                .hint("walden expire ends what was begun; walden list shows which backups stay"));
        }
        Ok(said)
    }

    /// Takes that back. False when it was not said.
    pub async fn unpin(&self, backup: BackupId) -> Result<bool> {
        self.change_pins(|pins| {
            let before = pins.len();
            pins.retain(|p| p.backup != backup);
            pins.len() < before
        })
        .await
    }

    async fn change_pins(&self, change: impl Fn(&mut Vec<Pin>) -> bool) -> Result<bool> {
        let folder = self.folder.notes(PINS);
        for _ in 0..8 {
            let (number, mut pins) = self.numbered_pins().await?;
            if !change(&mut pins) {
                return Ok(false);
            }
            let document = PinsDocument { format: FORMAT, pins };
            if numbered::put_next(&*self.store, &folder, number, &document).await? == Put::Created {
                return Ok(true);
            }
        }
        Err(Error::unavailable("the pins change faster than one can be changed").hint("try again"))
    }
}
