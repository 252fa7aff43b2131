//! The replication slot: its name, and what it makes the server keep. A slot that nobody empties fills the server's disk.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;

use super::{
    Receiver, Receiving,
    event::{Event, Listener, SlotState},
    session::connect,
    state::Shared,
};
use crate::{
    error::{Error, Result},
    repository::ClusterName,
};

/// `NAMEDATALEN` less one.
const LONGEST: usize = 63;
/// How soon, and then how often, it is looked at.
const LOOKS: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));

/// The configured name, or one made from the cluster's. PostgreSQL takes lower-case letters, digits and underscores
/// (`ReplicationSlotValidateName`).
pub fn slot_name(configured: Option<&str>, cluster: &ClusterName) -> Result<String> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    match configured {
        Some(name) if name.len() <= LONGEST && name.chars().all(allowed) => Ok(name.to_owned()),
        Some(name) => Err(Error::invalid(format!("receive.slot: \"{name}\" cannot be the name of a replication slot"))
            .hint("use at most 63 lower-case letters, digits and underscores")),
        None => {
            let plain = format!("walden_{cluster}").to_ascii_lowercase();
            Ok(plain.chars().map(|c| if allowed(c) { c } else { '_' }).take(LONGEST).collect())
        }
    }
}

/// Looks at the slot for as long as it is polled. A look that fails is of no account: whoever receives tells of lost
/// connections.
pub(super) async fn watch(receiving: &Receiving, shared: &Shared, listener: &Arc<dyn Listener>) {
    let (mut pause, often) = LOOKS;
    loop {
        sleep(pause).await;
        pause = often;
        match look(receiving, shared).await {
            Ok(Some(state)) => listener.tell(&Event::Slot(state)),
            Ok(None) => {}
            Err(error) => tracing::debug!("look at slot {}: {error}", receiving.slot),
        }
    }
}

/// What the slot makes the server keep; `None` where there is none, or it holds nothing.
async fn look(receiving: &Receiving, shared: &Shared) -> Result<Option<SlotState>> {
    let mut connection = connect(&receiving.conninfo).await?;
    let flushed = connection.identify_system().await?.flushed;
    // Before 15 it is not told: it is where it was told to be, at the latest.
    let told = shared.see(|state| state.stored.map(|position| position.lsn));
    let Some(restart) = connection.slot_restart(&receiving.slot).await?.or(told) else { return Ok(None) };
    let limit = connection.show("max_slot_wal_keep_size").await?;
    let retained = flushed.since(restart);
    Ok(Some(SlotState {
        slot: receiving.slot.clone(),
        retained,
        keep_limit: Some(limit).filter(|limit| limit != "-1"),
        above_limit: retained > receiving.slot_limit,
    }))
}

impl Receiver {
    /// Makes the slot, so that the server keeps its WAL from now on. False where there is one of that name.
    pub async fn create_slot(receiving: &Receiving) -> Result<bool> {
        connect(&receiving.conninfo).await?.create_slot(&receiving.slot).await
    }

    /// Removes the slot. False where there is none of that name.
    pub async fn drop_slot(receiving: &Receiving) -> Result<bool> {
        connect(&receiving.conninfo).await?.drop_slot(&receiving.slot).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_named_after_its_cluster() {
        let named = |cluster: &str| slot_name(None, &cluster.parse().unwrap()).unwrap();
        assert_eq!(named("main"), "walden_main");
        assert_eq!(named("My-Shop"), "walden_my_shop");
        assert_eq!(named(&"x".repeat(64)).len(), 63);
        assert!(slot_name(Some("No"), &"main".parse().unwrap()).is_err());
        assert_eq!(slot_name(Some("s1"), &"main".parse().unwrap()).unwrap(), "s1");
    }
}
