//! The agent: one long-running process on a database host, with warm connections. It answers the small programs over a
//! Unix socket, as `walden wal push` and `walden wal fetch` would, ships segments before PostgreSQL asks for them, and in a
//! recovery fetches them before.
//!
//! Nothing depends on it: where it does not answer, or answers "not for me", the small programs run `walden`.

mod ahead;
mod answer;
mod desk;
mod metrics;
mod mirroring;
mod socket;

use std::{sync::Arc, time::Duration};

use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinSet,
    time::timeout,
};

use self::{desk::Desk, socket::Socket};
use crate::{
    archive,
    clock::{Clock, Random},
    config::{self, Config},
    error::{Error, Kind, Result},
    interrupt::Interrupt,
    service,
};

/// How long what is under way at the end may take. Whoever is cut off runs `walden` instead.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// What the agent works with.
#[derive(Debug)]
pub struct Agent {
    /// The configuration at the start. What a call says counts from then on.
    pub config: Config,
    /// The time of day.
    pub clock: Arc<dyn Clock>,
    /// For the store.
    pub random: Arc<Random>,
    /// The exit status of a push that failed in this way.
    pub push_status: fn(Kind) -> u8,
    /// That of a fetch.
    pub fetch_status: fn(Kind) -> u8,
}

impl Agent {
    /// Serves until it is interrupted.
    pub async fn run(self, mut interrupt: Interrupt) -> Result<()> {
        self.config.repository()?;
        config::prove_state_dir(&self.config.archive.state_dir)?;
        let listener = metrics::bind(&self.config.agent).await?;
        let socket = Socket::bind(&self.config.agent.socket)?;
        // What an agent that was killed has left.
        let pgdatas = self.config.clusters().iter().filter_map(|cluster| cluster.pgdata().ok());
        pgdatas.for_each(|pgdata| archive::clear_prefetched(pgdata, &self.config.archive.state_dir));
        let desk = Arc::new(Desk::new(self));
        // It has nothing to end in order: whoever asks for metrics asks again.
        let mut asked = JoinSet::new();
        if let Some(listener) = listener {
            asked.spawn(metrics::serve(listener, desk.clone(), interrupt.clone()));
        }
        let mut hangup = signal(SignalKind::hangup()).map_err(|e| Error::failed("watch for signals").source(e))?;
        let alive = service::stay_alive();
        tokio::pin!(alive);
        let mut answers = JoinSet::new();
        service::ready();
        tracing::info!("listening on {}", socket.path().display());
        loop {
            tokio::select! {
                () = interrupt.asked() => break,
                _ = hangup.recv() => tracing::info!("the configuration is read with every call: nothing to reload"),
                () = &mut alive => {}
                connection = socket.accept() => drop(answers.spawn(answer::serve(connection, desk.clone()))),
                Some(_) = answers.join_next() => {}
            }
        }
        service::stopping();
        // From here on the small programs find no socket and run walden.
        drop(socket);
        _ = timeout(LAST_WORDS, async { while answers.join_next().await.is_some() {} }).await;
        desk.clear();
        Ok(())
    }
}
