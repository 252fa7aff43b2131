//! Leases: one writer of a kind at a time, such as one backup of a system.
//!
//! A lease is the document with the highest number in `lease/<kind>/`. Taking, renewing, taking over and releasing
//! each put the next number, and put-if-absent lets one of several win. Numbers only rise: a holder that slept
//! through its expiry finds a higher number than its own and knows that it has lost.
//!
//! A lease keeps well-meaning programs from wasting work. Nothing's safety rests on it, because clocks differ:
//! every object is written once under a name of its own whoever holds the lease.

use std::{fs, sync::Arc};

use chrono::{DateTime, Duration, Utc};
use serde::{Deserialize, Serialize};

use super::{System, numbered};
use crate::{
    clock::{Clock, Random},
    error::{Error, Kind, Result},
    store::{Put, Store},
};

/// A holder renews well before this is over; after it, anybody may take over.
const TERM: Duration = Duration::seconds(120);

/// Who holds a lease, and until when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseDocument {
    /// A random name of the holder's.
    pub holder: String,
    /// Where it runs.
    #[serde(flatten)]
    pub by: ThisProcess,
    /// When it took the lease.
    pub taken: DateTime<Utc>,
    /// When it lets go of it without another word.
    pub expires: DateTime<Utc>,
}

/// A lease that is held. Dropping it without [`Lease::release`] leaves it to expire.
#[derive(Debug)]
pub struct Lease {
    store: Arc<dyn Store>,
    folder: String,
    clock: Arc<dyn Clock>,
    number: u32,
    document: LeaseDocument,
}

impl Lease {
    /// Takes the lease of that kind. Refused while another holds it, with its name. The lease of a process of this
    /// host that is no more is taken over at once, any other when it has expired.
    pub async fn take(system: &System, kind: &str, clock: Arc<dyn Clock>, random: &Random) -> Result<Self> {
        let folder = system.folder.leases(kind);
        let store = system.store.clone();
        let me = ThisProcess::read();
        for _ in 0..4 {
            let now = clock.now();
            let (number, current) = current(&*store, &folder).await?;
            if let Some(held) = current.filter(|held| held.expires > now && !me.outlived(&held.by)) {
                return Err(Error::refused(format!(
                    "another {kind} is running: process {} on {} began at {}",
                    held.by.pid,
                    held.by.host,
                    held.taken.format("%Y-%m-%d %H:%M:%S UTC")
                ))
                .hint(format!(
                    "wait for it; if it is dead, its lease ends by itself at {}",
                    held.expires.format("%H:%M:%S UTC")
                )));
            }
            let document = LeaseDocument { holder: random.name(), by: me.clone(), taken: now, expires: now + TERM };
            let mut lease =
                Self { store: store.clone(), folder: folder.clone(), clock: clock.clone(), number, document };
            if lease.put_next().await? == Put::Created {
                return Ok(lease);
            }
        }
        Err(Error::refused(format!("several programs want to begin a {kind} at the same time")).hint("try again"))
    }

    /// Who holds the lease of that kind at this instant.
    pub async fn holder(system: &System, kind: &str, now: DateTime<Utc>) -> Result<Option<LeaseDocument>> {
        let folder = system.folder.leases(kind);
        let (_, current) = current(&*system.store, &folder).await?;
        Ok(current.filter(|held| held.expires > now && !ThisProcess::read().outlived(&held.by)))
    }

    async fn put_next(&mut self) -> Result<Put> {
        let put = numbered::put_next(&*self.store, &self.folder, self.number, &self.document).await?;
        if put == Put::Created {
            self.number += 1;
        }
        Ok(put)
    }

    /// How often [`Lease::renew`] is to be called.
    #[must_use]
    pub fn interval() -> std::time::Duration {
        std::time::Duration::from_secs(30)
    }

    /// Holds on to it for another term. Refused when somebody has taken it over.
    pub async fn renew(&mut self) -> Result<()> {
        self.document.expires = self.clock.now() + TERM;
        if self.put_next().await? == Put::Exists {
            return Err(Error::refused("another program has taken over the lease while this one did not answer"));
        }
        Ok(())
    }

    /// Lets go of it.
    pub async fn release(mut self) -> Result<()> {
        self.document.expires = self.clock.now();
        self.put_next().await.map(|_| ())
    }
}

/// What was said last, with its number. A lease that is damaged is held by nobody: nothing's safety rests on it, and it
/// would stand in everybody's way for ever.
async fn current(store: &dyn Store, folder: &str) -> Result<(u32, Option<LeaseDocument>)> {
    match numbered::highest::<LeaseDocument>(store, folder).await {
        Err(error) if error.kind() == Kind::Damaged => {
            tracing::warn!("{error}; this lease is held for given back");
            Ok((numbered::numbers(store, folder).await?.last().copied().unwrap_or(0), None))
        }
        found => found,
    }
}

/// A process, told apart from any other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThisProcess {
    /// The host it runs on.
    pub host: String,
    /// The boot of that host (`/proc/sys/kernel/random/boot_id`).
    pub boot: String,
    /// Its process id there.
    pub pid: u32,
    /// When that process started, in clock ticks since boot (`/proc/<pid>/stat`).
    pub started: u64,
}

impl ThisProcess {
    /// This very process.
    pub(super) fn read() -> Self {
        let pid = std::process::id();
        Self {
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            boot: boot().unwrap_or_default(),
            pid,
            started: started(pid).unwrap_or(0),
        }
    }

    /// Whether the holder was a process of this very boot of this very host and is gone.
    pub(super) fn outlived(&self, held: &Self) -> bool {
        !self.boot.is_empty()
            && (&self.host, &self.boot) == (&held.host, &held.boot)
            && started(held.pid) != Some(held.started)
    }
}

fn boot() -> Option<String> {
    // Containers of one host share its boot but not its processes: the namespace tells them apart.
    let namespace = fs::read_link("/proc/self/ns/pid").ok()?;
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(format!("{} {}", boot.trim(), namespace.display()))
}

/// Field 22 of `/proc/<pid>/stat` (proc(5)); the second field, in parentheses, may hold spaces.
fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}
