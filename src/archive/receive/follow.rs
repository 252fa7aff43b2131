//! One stretch of streaming: from `START_REPLICATION` until the timeline is over, the connection breaks, or somebody
//! wants us to stop.

use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use tokio::{
    select,
    task::block_in_place,
    time::{sleep_until, timeout},
};

use super::{
    FlushedWhen, Session,
    event::Event,
    state::{Position, State},
};
use crate::{
    error::{Error, Result},
    interrupt::Interrupt,
    postgres::{
        Lsn, TimelineId,
        replication::{
            Replication, ServerError,
            stream::{Heard, NextTimeline, Progress, Started},
        },
    },
};

/// How often the server is told how far we are, when nothing changes (`wal_receiver_status_interval`).
const STATUS: Duration = Duration::from_secs(10);
/// So many bytes at most are taken before they are made durable in the spool.
const BATCH: usize = 1 << 20;
/// How long, once asked to stop, we wait until what was received is in the repository.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// How a stretch ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// Somebody wants us to stop, and we have.
    Asked,
    /// The spool is full, and the repository does not take anything.
    Full,
    /// The timeline is over.
    TimelineOver(NextTimeline),
    /// The server will not go on.
    Refused(ServerError),
}

/// When the other side was heard and told of last.
struct Contact {
    heard: Instant,
    told: Option<(Instant, Progress)>,
}

impl Session<'_> {
    /// Streams from the first byte of a segment on.
    pub(super) async fn follow(
        &mut self,
        connection: &mut Replication,
        from: Position,
        interrupt: &mut Interrupt,
    ) -> Result<Ended> {
        match connection.start_streaming(&self.receiving.slot, from.timeline, from.lsn).await? {
            Started::Streaming => {}
            Started::Over(next) => return Ok(Ended::TimelineOver(next)),
            Started::Refused(said) => return Ok(Ended::Refused(said)),
        }
        let mut watch = self.shared.watch();
        let mut contact = Contact { heard: Instant::now(), told: None };
        let (mut streams, mut was_full) = (false, false);
        loop {
            let full = self.is_full();
            if full && !was_full {
                self.listener.tell(&Event::SpoolFull { bytes: self.shared.see(State::held) });
            }
            if full && self.shared.see(|state| state.failing) {
                // A server that stops waits for whoever does not take its WAL.
                self.finish(connection, from.timeline, Duration::ZERO).await;
                return Ok(Ended::Full);
            }
            was_full = full;
            let again = self.keep_in_touch(connection, from.timeline, &mut contact, full).await?;
            select! {
                () = interrupt.asked() => {
                    self.finish(connection, from.timeline, LAST_WORDS).await;
                    return Ok(Ended::Asked);
                }
                _ = watch.changed() => {}
                () = sleep_until(again.into()) => {}
                heard = connection.hear(), if !full => {
                    contact.heard = Instant::now();
                    if !std::mem::replace(&mut streams, true) {
                        self.tell_streaming(from);
                    }
                    match heard? {
                        Heard::Wal { start, bytes } => {
                            let ended = self.take(connection, from.timeline, start, &bytes, &mut contact).await?;
                            if let Some(ended) = ended {
                                return Ok(ended);
                            }
                        }
                        other => {
                            if let Some(ended) = self.listen(connection, other, &mut contact).await? {
                                return Ok(ended);
                            }
                        }
                    }
                }
            }
        }
    }

    /// Takes WAL, and what of it has arrived besides, and makes it durable where that is promised.
    async fn take(
        &mut self,
        connection: &mut Replication,
        timeline: TimelineId,
        start: Lsn,
        bytes: &[u8],
        contact: &mut Contact,
    ) -> Result<Option<Ended>> {
        block_in_place(|| self.spool.take(timeline, start, bytes))?;
        let mut taken = bytes.len();
        let mut other = None;
        while taken < BATCH && other.is_none() {
            match connection.hear().now_or_never() {
                None => break,
                Some(heard) => match heard? {
                    Heard::Wal { start, bytes } => {
                        block_in_place(|| self.spool.take(timeline, start, &bytes))?;
                        taken += bytes.len();
                    }
                    heard => other = Some(heard),
                },
            }
        }
        block_in_place(|| self.spool.sync())?;
        match other {
            Some(heard) => self.listen(connection, heard, contact).await,
            None => Ok(None),
        }
    }

    /// What is no WAL.
    async fn listen(
        &mut self,
        connection: &mut Replication,
        heard: Heard,
        contact: &mut Contact,
    ) -> Result<Option<Ended>> {
        match heard {
            Heard::Alive { reply: true } => {
                // A server that stops waits until we have everything.
                self.shared.change(|state| state.urged = state.received.map(|position| position.lsn));
                contact.told = None;
                Ok(None)
            }
            Heard::Alive { reply: false } | Heard::Wal { .. } => Ok(None),
            Heard::TimelineOver => connection.next_timeline().await.map(|next| Some(Ended::TimelineOver(next))),
            Heard::Refused(said) => {
                connection.settle(&said).await;
                Ok(Some(Ended::Refused(said)))
            }
            Heard::Stopping => Err(Error::failed("the server is shutting down")),
        }
    }

    /// Tells the server how far we are, if that has changed or it is time to. An error when it has not been heard for too
    /// long. Gives back when to look again.
    async fn keep_in_touch(
        &self,
        connection: &mut Replication,
        timeline: TimelineId,
        contact: &mut Contact,
        full: bool,
    ) -> Result<Instant> {
        let limit = self.receiving.timeout;
        let silence = contact.heard.elapsed();
        // While nobody listens, nothing is heard.
        let doubt = !full && silence >= limit / 2;
        if full {
            contact.heard = Instant::now();
        } else if silence >= limit {
            return Err(Error::failed(format!("nothing was heard of the server for {} s", silence.as_secs()))
                .hint("is its host gone, or the network between? [receive] timeout sets how long to wait"));
        }
        let progress = self.progress(timeline);
        let every = STATUS.min(limit / 4);
        let due = contact.told.is_none_or(|(at, told)| told.flushed != progress.flushed || at.elapsed() >= every);
        if due {
            connection.report(progress, self.clock.now(), doubt).await?;
            contact.told = Some((Instant::now(), progress));
        }
        Ok(Instant::now() + every)
    }

    /// What may be claimed.
    fn progress(&self, timeline: TimelineId) -> Progress {
        self.shared.see(|state| {
            let here = |position: Option<Position>| match position {
                Some(position) if position.timeline == timeline => position.lsn,
                _ => Lsn::INVALID,
            };
            let flushed = match self.receiving.flushed_when {
                FlushedWhen::Spooled => here(state.synced).max(here(state.stored)),
                // A server that is to stop waits for what is claimed here, unless nothing is (`WalSndDone`); commits wait
                // in either case. It must be able to stop while the repository is away.
                FlushedWhen::Stored if state.failing => Lsn::INVALID,
                FlushedWhen::Stored => here(state.stored),
            };
            Progress { written: here(state.received), flushed }
        })
    }

    fn is_full(&self) -> bool {
        self.shared.see(State::held) >= self.receiving.spool_limit.max(2 * self.way.size.bytes())
    }

    /// Waits for so long at most until what was received is in the repository, says so, and ends the stream.
    async fn finish(&mut self, connection: &mut Replication, timeline: TimelineId, most: Duration) {
        self.shared.change(|state| state.urged = state.received.map(|position| position.lsn));
        let mut watch = self.shared.watch();
        let stored = async { _ = watch.wait_for(State::is_stored).await };
        _ = timeout(most, stored).await;
        let ended = async {
            connection.report(self.progress(timeline), self.clock.now(), false).await?;
            connection.stop_streaming().await
        };
        if let Err(error) = ended.await {
            tracing::debug!("end the stream: {error}");
        }
    }
}
