//! One connection to the server: who it is, where to begin, and from timeline to timeline until it ends.

use std::{sync::Arc, time::Duration};

use tokio::{select, time::timeout};

use super::{
    FlushedWhen, Receiving,
    event::{Event, Gap, Listener},
    follow::Ended,
    position::{self, Way},
    spool::Spool,
    state::{Position, Shared},
};
use crate::{
    clock::Clock,
    error::{Error, Kind, Result},
    interrupt::Interrupt,
    postgres::{
        Conninfo, Lsn, TimelineHistory, TimelineId,
        replication::{Identity, Replication, ServerError, stream::NextTimeline},
        sql,
    },
    repository::System,
};

/// How long connecting may take in all, whatever the connection string says.
const CONNECT: Duration = Duration::from_secs(30);
/// `undefined_file`: the server has removed the segment.
const REMOVED: &str = "58P01";
/// `object_not_in_prerequisite_state`: the slot was invalidated.
const INVALIDATED: &str = "55000";

/// A connection to the server, or the attempt at one.
#[derive(Debug)]
pub(super) struct Session<'a> {
    pub(super) receiving: &'a Receiving,
    pub(super) system: &'a System,
    pub(super) spool: &'a mut Spool,
    pub(super) shared: &'a Shared,
    pub(super) clock: &'a dyn Clock,
    pub(super) listener: &'a Arc<dyn Listener>,
    pub(super) way: Way,
    /// Whether the slot was made for this.
    pub(super) new_slot: bool,
    /// Whether commits on the server wait for us.
    pub(super) synchronous: bool,
}

/// Connects for replication, within a deadline.
pub(super) async fn connect(conninfo: &Conninfo) -> Result<Replication> {
    timeout(CONNECT, Replication::open(conninfo)).await.unwrap_or_else(|_| {
        Err(Error::failed(format!("connect to PostgreSQL for replication ({conninfo}): no answer within 30 s")))
    })
}

impl Session<'_> {
    /// Receives until the connection breaks, which is an error, or somebody wants us to stop.
    pub(super) async fn run(&mut self, interrupt: &mut Interrupt) -> Result<()> {
        let Some((mut connection, identity)) = unless_asked(interrupt, self.prepare()).await? else { return Ok(()) };
        let arriving = self.arrive(&mut connection, &identity);
        let Some(mut fresh) = unless_asked(interrupt, arriving).await? else { return Ok(()) };
        loop {
            let from = self.place()?;
            if identity.flushed < from.lsn && from.timeline == identity.timeline {
                return Err(Error::unavailable(format!(
                    "the server has WAL up to {} only, and the repository up to {}",
                    identity.flushed, from.lsn
                ))
                .hint("a standby that is behind gets there; is it the server that archives?"));
            }
            let ended = self.follow(&mut connection, from, interrupt).await?;
            match ended {
                Ended::Asked => return Ok(()),
                Ended::Full => {
                    drop(connection);
                    let room = async {
                        _ = self.shared.watch().wait_for(|state| !state.failing).await;
                        Ok(())
                    };
                    return match unless_asked(interrupt, room).await? {
                        Some(()) => Err(Error::unavailable("the connection was closed while the spool was full")),
                        None => Ok(()),
                    };
                }
                _ => {}
            }
            let going_on = async {
                match ended {
                    Ended::TimelineOver(next) => self.go_over(&mut connection, from, next).await,
                    Ended::Refused(said) if said.code == REMOVED && !fresh => {
                        // Others may have stored it meanwhile.
                        self.forget().await;
                        fresh = self.arrive(&mut connection, &identity).await?;
                        Ok(())
                    }
                    Ended::Refused(said) if said.code == REMOVED => self.pass_gap(&mut connection, said).await,
                    Ended::Refused(said) => Err(self.refusal(said)),
                    Ended::Asked | Ended::Full => Ok(()),
                }
            };
            if unless_asked(interrupt, going_on).await?.is_none() {
                return Ok(());
            }
        }
    }

    /// Connects, and proves that it is the right server.
    async fn prepare(&mut self) -> Result<(Replication, Identity)> {
        let mut connection = connect(&self.receiving.conninfo).await?;
        let identity = connection.identify_system().await?;
        self.prove(&mut connection, &identity).await?;
        self.new_slot = connection.create_slot(&self.receiving.slot).await?;
        self.synchronous = self.receiving.is_awaited(&connection.show("synchronous_standby_names").await?);
        let eager = self.synchronous && self.receiving.flushed_when == FlushedWhen::Stored;
        self.shared.change(|state| state.eager = eager);
        self.learn_history(&mut connection, identity.timeline).await?;
        Ok((connection, identity))
    }

    /// It must be the system that all of this is of.
    async fn prove(&self, connection: &mut Replication, identity: &Identity) -> Result<()> {
        let ours = self.system.folder.incarnation.system;
        if identity.system != ours {
            return Err(Error::refused(format!(
                "the server is system {} now; what was received before is of system {ours}",
                identity.system
            ))
            .hint(
                "check the connection string; if it is right, start again: walden init first, if this system is new",
            ));
        }
        let facts = connection.facts().await?;
        let document = &self.system.document;
        if (facts.version, facts.segment_size) != (document.postgres, document.segment_size) {
            return Err(Error::refused(format!(
                "the server is PostgreSQL {} with segments of {} bytes, but the repository knows this system as PostgreSQL {} with {}",
                facts.version,
                facts.segment_size.bytes(),
                document.postgres,
                document.segment_size.bytes()
            ))
            .hint("after pg_resetwal: walden init --new-incarnation, then walden backup"));
        }
        Ok(())
    }

    /// The way to a timeline, which is stored before anything of it.
    async fn learn_history(&mut self, connection: &mut Replication, timeline: TimelineId) -> Result<()> {
        self.way.history = TimelineHistory::root(timeline);
        if timeline != TimelineId::FIRST {
            let text = connection.timeline_history(timeline).await?;
            self.way.history = TimelineHistory::parse(timeline, &String::from_utf8_lossy(&text))?;
            self.spool.take_history(timeline, &text)?;
        }
        Ok(())
    }

    /// Knows where to go on: where it was, if this server's way leads there, else where the repository ends. True in the
    /// second case.
    async fn arrive(&mut self, connection: &mut Replication, identity: &Identity) -> Result<bool> {
        let on_way = |position: &Position| {
            let start = Lsn(position.lsn.0 - self.way.size.offset_of(position.lsn));
            self.way.history.contains(position.timeline, start)
        };
        if self.shared.see(|state| state.received).is_some_and(|position| on_way(&position)) {
            return Ok(false);
        }
        self.forget().await;
        self.warn_of_other_timelines().await?;
        let slot = self.slot_restart(connection).await?;
        let number = position::begin(self.system, &self.way, slot, identity.flushed).await?;
        self.set_out(number).await?;
        Ok(true)
    }

    /// Leaves what was received, once it is in the repository.
    async fn forget(&mut self) {
        self.spool.leave();
        _ = self.shared.watch().wait_for(|state| state.queue.is_empty()).await;
        self.shared.change(|state| (state.received, state.synced, state.stored) = (None, None, None));
    }

    /// Begins with the segment of that number, and with what the repository has of it.
    async fn set_out(&mut self, number: u64) -> Result<()> {
        let name = self.way.segment(number)?;
        let begin = Position { timeline: name.timeline, lsn: name.start(self.way.size)? };
        self.shared.change(|state| {
            state.received = Some(begin);
            // What lies before it and is not stored yet is no promise.
            state.stored = state.queue.is_empty().then_some(begin);
        });
        let pieces = self.system.pieces(name).await?;
        let mut run = self.system.join_pieces(name, pieces);
        let mut at = begin.lsn;
        loop {
            let bytes = match run.next().await {
                Ok(Some(bytes)) => bytes,
                Ok(None) => break,
                // They are encrypted, and not for this host. The server has the segment from its start on.
                Err(error) if error.kind() == Kind::Refused => {
                    tracing::info!("what pieces there are of {name} is received again: {error}");
                    break;
                }
                Err(error) => return Err(error),
            };
            // What comes from the repository need not go there again.
            tokio::task::block_in_place(|| self.spool.take(name.timeline, at, &bytes))?;
            at = at + bytes.len() as u64;
            self.shared.change(|state| state.has_stored(name, run.bytes().into(), at));
        }
        Ok(())
    }

    /// The first byte of the segment to go on with.
    fn place(&self) -> Result<Position> {
        let received = self.shared.see(|state| state.received);
        let Position { timeline, lsn } = received.ok_or_else(|| Error::internal("there is no place to go on from"))?;
        Ok(Position { timeline, lsn: Lsn(lsn.0 - self.way.size.offset_of(lsn)) })
    }

    async fn go_over(&mut self, connection: &mut Replication, from: Position, next: NextTimeline) -> Result<()> {
        self.listener.tell(&Event::Switched { from: from.timeline, to: next.timeline, at: next.start });
        self.spool.leave();
        self.learn_history(connection, next.timeline).await?;
        // The new timeline's copy of the segment has all of it.
        self.set_out(self.way.size.number_of(next.start)).await
    }

    /// The server does not have what is to come next: nobody who counts on an unbroken log may believe that it is.
    async fn pass_gap(&mut self, connection: &mut Replication, said: ServerError) -> Result<()> {
        let number = self.way.size.number_of(self.place()?.lsn);
        let held = self.slot_restart(connection).await?.map(|lsn| self.way.size.number_of(lsn));
        let end = match held.filter(|held| *held > number) {
            Some(held) => held,
            None => self.way.size.number_of(connection.identify_system().await?.flushed),
        };
        if end <= number {
            return Err(self.refusal(said));
        }
        let gap = position::gap(self.system, &self.way, number, end).await?;
        self.listener.tell(&Event::Gap(gap.clone()));
        if !self.receiving.accept_gap {
            return Err(refuse(&gap));
        }
        self.spool.leave();
        self.set_out(end).await
    }

    /// From where on the slot holds WAL, where that can be had.
    async fn slot_restart(&self, connection: &mut Replication) -> Result<Option<Lsn>> {
        if connection.version_number() >= 150_000 {
            return connection.slot_restart(&self.receiving.slot).await;
        }
        // Older servers tell it by SQL only, which the role may not be allowed.
        let asking = async { sql::Session::open(&self.receiving.conninfo).await?.slots().await };
        match timeout(CONNECT, asking).await {
            Ok(Ok(slots)) => {
                let ours = slots.into_iter().find(|slot| slot.name == self.receiving.slot);
                Ok(ours.and_then(|slot| slot.from))
            }
            Ok(Err(error)) => {
                tracing::debug!("where the slot begins is not known: {error}");
                Ok(None)
            }
            Err(_) => Ok(None),
        }
    }

    async fn warn_of_other_timelines(&self) -> Result<()> {
        let names = self.system.store.folders(&self.system.folder.wal()).await?;
        let timelines = names.iter().filter_map(|name| TimelineId::new(u32::from_str_radix(name, 16).ok()?).ok());
        let server = self.way.history.timeline;
        if let Some(repository) = timelines.max().filter(|newest| *newest > server) {
            self.listener.tell(&Event::OtherTimeline { server, repository });
        }
        Ok(())
    }

    pub(super) fn tell_streaming(&self, from: Position) {
        self.listener.tell(&Event::Streaming {
            timeline: from.timeline,
            from: from.lsn,
            slot: self.receiving.slot.clone(),
            new_slot: self.new_slot,
            synchronous: self.synchronous,
        });
    }

    fn refusal(&self, said: ServerError) -> Error {
        let slot = &self.receiving.slot;
        if said.code == INVALIDATED {
            return Error::refused(format!("slot {slot} cannot be used any more: {said}")).hint(
                "the server has given it up (max_slot_wal_keep_size, idle_replication_slot_timeout): \
                 walden wal receive --drop-slot, then start again; what is missing then is told",
            );
        }
        said.into_error()
    }
}

/// The end of the work; `None` when somebody wants us to stop before.
async fn unless_asked<T>(interrupt: &mut Interrupt, work: impl Future<Output = Result<T>>) -> Result<Option<T>> {
    select! {
        () = interrupt.asked() => Ok(None),
        done = work => done.map(Some),
    }
}

fn refuse(gap: &Gap) -> Error {
    Error::refused(gap.to_string()).hint(
        "recovery cannot pass it: push those segments if any copy of them is left (walden wal push), or go on behind it with \
         walden wal receive --accept-gap and take a backup at once (walden backup)",
    )
}
