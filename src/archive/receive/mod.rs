//! Receive: the WAL of a server by streaming replication, stored as it comes, so that little is lost with the host.
//!
//! One half listens to the server and writes what comes into a spool ([`spool`], [`session`], [`follow`]); the other brings
//! it from there into the repository ([`storer`]). What the server is told to be flushed is what is durable.

mod event;
mod follow;
mod position;
mod recover;
mod session;
mod slot;
mod spool;
mod state;
mod storer;

use std::{
    fmt,
    fs::File,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{select, time::sleep};

pub use self::{
    event::{Event, Gap, Listener, SlotState, Weight},
    slot::slot_name,
};
use self::{
    position::Way,
    session::Session,
    spool::{Folder, Spool},
    state::{Shared, State},
    storer::Storer,
};
use crate::{
    clock::{Clock, Random},
    config::{ClusterConfig, Config, prove_state_dir},
    error::{Error, Kind, Result},
    interrupt::Interrupt,
    postgres::{Conninfo, TimelineHistory, TimelineId},
    repository::{self, ClusterName, Incarnation, System, lease::Lease},
    store::Store,
};

/// How long to wait before the server is asked again, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));
/// A connection that lasted so long was a good one.
const GOOD: Duration = Duration::from_secs(30);

/// When WAL counts as flushed, as the server is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushedWhen {
    /// When it is durable in the repository.
    Stored,
    /// When it is durable in the spool.
    Spooled,
}

/// How the WAL of a cluster is received.
#[derive(Clone, Debug)]
pub struct Receiving {
    /// The cluster.
    pub cluster: ClusterName,
    /// The incarnation as the configuration has it.
    pub incarnation: u32,
    /// The server.
    pub conninfo: Conninfo,
    /// The name under which `synchronous_standby_names` knows us.
    pub application_name: String,
    /// The replication slot.
    pub slot: String,
    /// How long what came may wait for more to come.
    pub flush_interval: Duration,
    /// When WAL counts as flushed.
    pub flushed_when: FlushedWhen,
    /// The most bytes in the spool; two segments always fit.
    pub spool_limit: u64,
    /// Above so many bytes that the slot makes the server keep there is a warning.
    pub slot_limit: u64,
    /// After how long without a word the server is given up.
    pub timeout: Duration,
    /// Whether to go on behind WAL that is nowhere any more.
    pub accept_gap: bool,
    /// zstd's level.
    pub level: i32,
    /// The spool lies in it.
    pub state_dir: PathBuf,
}

impl Receiving {
    /// As the configuration has it.
    pub fn of(config: &Config, cluster: &ClusterConfig) -> Result<Self> {
        let receive = &config.receive;
        let conninfo: Conninfo = cluster.connection()?.reveal().parse()?;
        Ok(Self {
            cluster: cluster.name.clone(),
            incarnation: cluster.incarnation,
            conninfo: conninfo.named(&receive.application_name),
            application_name: receive.application_name.clone(),
            slot: slot_name(receive.slot.as_deref(), &cluster.name)?,
            flush_interval: receive.flush_interval,
            flushed_when: if receive.flushed_when_spooled { FlushedWhen::Spooled } else { FlushedWhen::Stored },
            spool_limit: receive.spool_limit,
            slot_limit: receive.slot_limit,
            timeout: receive.timeout,
            accept_gap: receive.accept_gap,
            level: config.archive.compression.fast,
            state_dir: config.archive.state_dir.clone(),
        })
    }

    /// Whether commits wait for us, by the server's `synchronous_standby_names` (`syncrep_gram.y`): names may be quoted,
    /// `*` is everybody.
    fn is_awaited(&self, names: &str) -> bool {
        let names = names.split([',', '(', ')', ' ']).map(|name| name.trim_matches('"'));
        names.into_iter().any(|name| name == "*" || name.eq_ignore_ascii_case(&self.application_name))
    }
}

/// Receives the WAL of one cluster.
#[derive(Debug)]
pub struct Receiver {
    /// The repository.
    pub store: Arc<dyn Store>,
    /// How.
    pub receiving: Receiving,
    /// For leases and for what the server is told.
    pub clock: Arc<dyn Clock>,
    /// For pauses.
    pub random: Arc<Random>,
    /// Who is told what happens.
    pub listener: Arc<dyn Listener>,
}

/// What there is once the server and the repository were found.
struct Opened {
    system: System,
    lease: Lease,
    folder: Folder,
    /// Open for as long as the spool is ours.
    lock: File,
}

impl Receiver {
    /// Receives until it is interrupted. Everything that may pass is tried again; an error is something that a person has
    /// to look at. Gives back how many bytes are in the spool alone, where the repository did not take them in time.
    pub async fn run(&self, mut interrupt: Interrupt) -> Result<u64> {
        prove_state_dir(&self.receiving.state_dir)?;
        let opening = self.insist(async || self.open().await);
        let opened = select! {
            () = interrupt.asked() => return Ok(0),
            opened = opening => opened?,
        };
        let Opened { system, mut lease, folder, lock } = opened;
        let shared = Shared::default();
        let spool = Spool::open(folder.clone(), system.document.segment_size, self.is_durable(), shared.clone())?;
        spool.begin()?;
        let mut storing = tokio::spawn(self.storer(&system, folder, &shared).run());
        let received = select! {
            received = self.receive(&system, spool, &shared, interrupt) => received,
            stored = &mut storing => repository::join(stored).flatten(),
            lost = renew(&mut lease) => Err(lost),
            () = slot::watch(&self.receiving, &shared, &self.listener) => Ok(()),
        };
        storing.abort();
        drop(lock);
        if let Err(error) = lease.release().await {
            tracing::debug!("the lease stays until it expires: {error}");
        }
        received.map(|()| shared.see(State::waiting))
    }

    /// Finds the repository, brings what is left in spools into it, finds the server, and takes the lease.
    async fn open(&self) -> Result<Opened> {
        let repository = repository::open(&*self.store).await?;
        let place = self.receiving.state_dir.join("receive").join(&repository.id);
        let lock = self.recover(&place).await?;
        let identity = session::connect(&self.receiving.conninfo).await?.identify_system().await?;
        let incarnation = Incarnation { system: identity.system, number: self.receiving.incarnation };
        let system = System::open(self.store.clone(), &self.receiving.cluster, incarnation).await?;
        let lease = Lease::take(&system, "receive", self.clock.clone(), &self.random).await?;
        let folder = Folder(place.join(system.folder.prefix()));
        Ok(Opened { system, lease, folder, lock })
    }

    /// One connection after the other.
    async fn receive(
        &self,
        system: &System,
        mut spool: Spool,
        shared: &Shared,
        mut interrupt: Interrupt,
    ) -> Result<()> {
        let mut session = Session {
            receiving: &self.receiving,
            system,
            spool: &mut spool,
            shared,
            clock: &*self.clock,
            listener: &self.listener,
            way: Way { history: TimelineHistory::root(TimelineId::FIRST), size: system.document.segment_size },
            new_slot: false,
            synchronous: false,
        };
        let mut again = Pauses::new();
        loop {
            let began = Instant::now();
            match session.run(&mut interrupt).await {
                Ok(()) => break,
                Err(error) if may_pass(error.kind()) => {
                    let pause = again.after(began.elapsed(), &self.random);
                    self.tell_disconnected(&error, pause);
                    select! {
                        () = interrupt.asked() => break,
                        () = sleep(pause) => {}
                    }
                }
                Err(error) => return Err(error),
            }
        }
        if shared.see(State::is_stored) {
            spool.clear();
        }
        Ok(())
    }

    /// Tries until it is done, or fails in a way that does not pass.
    async fn insist<T>(&self, work: impl AsyncFn() -> Result<T>) -> Result<T> {
        let mut again = Pauses::new();
        loop {
            let began = Instant::now();
            match work().await {
                Err(error) if may_pass(error.kind()) => {
                    let pause = again.after(began.elapsed(), &self.random);
                    self.tell_disconnected(&error, pause);
                    sleep(pause).await;
                }
                done => return done,
            }
        }
    }

    fn tell_disconnected(&self, error: &Error, pause: Duration) {
        let hint = error.hint_text().map(|hint| format!(" ({hint})")).unwrap_or_default();
        self.listener.tell(&Event::Disconnected { error: format!("{error}{hint}"), retry: pause.as_secs_f64() });
    }

    fn storer(&self, system: &System, folder: Folder, shared: &Shared) -> Storer {
        Storer {
            system: system.clone(),
            folder,
            shared: shared.clone(),
            interval: self.receiving.flush_interval,
            level: self.receiving.level,
            random: self.random.clone(),
            listener: self.listener.clone(),
        }
    }

    fn is_durable(&self) -> bool {
        self.receiving.flushed_when == FlushedWhen::Spooled
    }
}

/// Holds on to the lease. Comes back when another receiver has it.
async fn renew(lease: &mut Lease) -> Error {
    loop {
        sleep(Lease::interval()).await;
        match lease.renew().await {
            Err(error) if error.kind() == Kind::Refused => {
                return error.context("receive");
            }
            Err(error) => tracing::debug!("renew the lease: {error}"),
            Ok(()) => {}
        }
    }
}

/// Whether an error goes away by itself, or by somebody's doing, while we wait. The server keeps its WAL until then.
fn may_pass(kind: Kind) -> bool {
    matches!(kind, Kind::Unavailable | Kind::Denied | Kind::Failed)
}

/// How long to wait between attempts.
struct Pauses(Duration);

impl Pauses {
    fn new() -> Self {
        Self(PAUSES.0)
    }

    /// After an attempt that lasted so long.
    fn after(&mut self, lasted: Duration, random: &Random) -> Duration {
        if lasted >= GOOD {
            *self = Self::new();
        }
        let pause = self.0.mul_f64(0.5 + random.fraction());
        self.0 = (self.0 * 2).min(PAUSES.1);
        pause
    }
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened").field("system", &self.system).finish_non_exhaustive()
    }
}
