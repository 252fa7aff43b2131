//! WAL as a server streams it: `START_REPLICATION ... PHYSICAL`, what the server then sends, and what it is told in turn
//! (`src/backend/replication/walsender.c`).
//!
//! What is reported as flushed is a promise: the server forgets WAL up to there, and lets commits that wait for it go on.

use bytes::{Buf, Bytes};
use chrono::{DateTime, Utc};
use postgres_protocol::message::frontend::{self, CopyData};

use super::{
    CANCEL, QUICK, Replication, ServerError,
    message::{Message, garbled, unexpected},
    refusal,
    slot::quoted,
    text, within,
};
use crate::{
    error::{Error, Result},
    postgres::{Lsn, TimelineId},
};

/// 2000-01-01 in microseconds since 1970: where PostgreSQL counts from.
const EPOCH: i64 = 946_684_800_000_000;

/// How the server answers the wish for WAL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Started {
    /// It will send it.
    Streaming,
    /// There is none on that timeline from there on.
    Over(NextTimeline),
    /// It says why not.
    Refused(ServerError),
}

/// What the server sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// WAL.
    Wal {
        /// The LSN of its first byte.
        start: Lsn,
        /// The bytes, at most 128 KiB; they may end within a record.
        bytes: Bytes,
    },
    /// A sign of life.
    Alive {
        /// Whether it wants to hear at once how far we are: it is about to stop, or thinks that we are gone.
        reply: bool,
    },
    /// The timeline is over: [`Replication::next_timeline`] tells how it goes on.
    TimelineOver,
    /// An error, such as WAL that is not there any more.
    Refused(ServerError),
    /// The server is shutting down, and has sent all that it has.
    Stopping,
}

/// Where the server's history goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextTimeline {
    /// The next timeline.
    pub timeline: TimelineId,
    /// Its first byte.
    pub start: Lsn,
}

/// How far we are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Up to where WAL was received.
    pub written: Lsn,
    /// Up to where it is durable; `0/0` where nothing is promised.
    pub flushed: Lsn,
}

impl ServerError {
    /// The same as an error of ours, with the mend.
    #[must_use]
    pub fn into_error(self) -> Error {
        refusal(self)
    }
}

impl Replication {
    /// Asks for the WAL of a timeline from `at` on.
    pub async fn start_streaming(&mut self, slot: &str, timeline: TimelineId, at: Lsn) -> Result<Started> {
        let command = format!("START_REPLICATION SLOT {} PHYSICAL {at} TIMELINE {timeline}", quoted(slot));
        let answer = async {
            self.send(&command).await?;
            match self.next().await? {
                Message::CopyBoth => Ok(Started::Streaming),
                Message::Columns => {
                    let next = self.read_next_timeline().await?;
                    next.map(Started::Over).ok_or_else(garbled)
                }
                Message::Error(said) => {
                    self.settle(&said).await;
                    Ok(Started::Refused(said))
                }
                _ => Err(unexpected("in answer to START_REPLICATION")),
            }
        };
        within(Some(QUICK), answer).await.map_err(|e| e.context(command))
    }

    /// What the server sends next. May be dropped while it waits: nothing is lost.
    pub async fn hear(&mut self) -> Result<Heard> {
        match self.next().await? {
            Message::CopyData(data) => heard(data),
            Message::CopyDone => Ok(Heard::TimelineOver),
            Message::Error(said) => Ok(Heard::Refused(said)),
            Message::Complete => Ok(Heard::Stopping),
            _ => Err(unexpected("in a stream of WAL")),
        }
    }

    /// Tells the server how far we are, and perhaps that we want to hear from it.
    pub async fn report(&mut self, progress: Progress, now: DateTime<Utc>, answer: bool) -> Result<()> {
        // Nothing is ever replayed here: whoever waits for remote_apply waits for ever.
        let applied = Lsn::INVALID;
        let mut body = Vec::with_capacity(34);
        body.push(b'r');
        for number in [progress.written, progress.flushed, applied] {
            body.extend_from_slice(&number.0.to_be_bytes());
        }
        body.extend_from_slice(&(now.timestamp_micros() - EPOCH).to_be_bytes());
        body.push(answer.into());
        within(Some(QUICK), self.wire.send(|out| CopyData::new(&body[..]).map(|data| data.write(out)))).await
    }

    /// After [`Heard::TimelineOver`]: where the history goes on. The connection is free for the next command then.
    pub async fn next_timeline(&mut self) -> Result<NextTimeline> {
        let answer = async {
            self.send_copy_done().await?;
            self.read_next_timeline().await?.ok_or_else(garbled)
        };
        within(Some(QUICK), answer).await
    }

    /// Ends the stream in good order; what still comes is passed over.
    pub async fn stop_streaming(&mut self) -> Result<()> {
        let rest = async {
            self.send_copy_done().await?;
            while !matches!(self.next().await?, Message::Ready | Message::Error(_)) {}
            Ok(())
        };
        within(Some(CANCEL), rest).await
    }

    async fn send_copy_done(&mut self) -> Result<()> {
        self.wire
            .send(|out| {
                frontend::copy_done(out);
                Ok(())
            })
            .await
    }

    /// The row that tells it, up to the end of the command.
    async fn read_next_timeline(&mut self) -> Result<Option<NextTimeline>> {
        let mut next = None;
        loop {
            match self.next().await? {
                Message::Row(row) => {
                    let [timeline, start] = &row[..] else { return Err(garbled()) };
                    next = Some(NextTimeline { timeline: text(timeline)?.parse()?, start: text(start)?.parse()? });
                }
                Message::Columns | Message::Complete | Message::CopyDone => {}
                Message::Ready => return Ok(next),
                Message::Error(said) => return Err(self.fail(said).await),
                _ => return Err(unexpected("at the end of a timeline")),
            }
        }
    }
}

fn heard(mut data: Bytes) -> Result<Heard> {
    let number = |data: &mut Bytes| data.try_get_u64().map_err(|_| garbled());
    match data.try_get_u8() {
        Ok(b'w') => {
            let start = Lsn(number(&mut data)?);
            let (_end, _sent) = (number(&mut data)?, number(&mut data)?);
            Ok(Heard::Wal { start, bytes: data })
        }
        Ok(b'k') => {
            let (_end, _sent) = (number(&mut data)?, number(&mut data)?);
            Ok(Heard::Alive { reply: data.try_get_u8().map_err(|_| garbled())? != 0 })
        }
        _ => Err(garbled()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_heard_is_told_apart() {
        let mut wal = vec![b'w'];
        wal.extend_from_slice(&0x0100_0028_u64.to_be_bytes());
        wal.extend_from_slice(&[0; 16]);
        wal.extend_from_slice(b"wal");
        assert_eq!(
            heard(wal.clone().into()).unwrap(),
            Heard::Wal { start: Lsn(0x0100_0028), bytes: Bytes::from_static(b"wal") }
        );
        let mut alive = vec![b'k'];
        alive.extend_from_slice(&[0; 16]);
        assert!(heard(alive.clone().into()).is_err());
        alive.push(1);
        assert_eq!(heard(alive.into()).unwrap(), Heard::Alive { reply: true });
        assert!(heard(wal[..20].to_vec().into()).is_err());
        assert!(heard(Bytes::new()).is_err());
        assert!(heard(Bytes::from_static(b"x")).is_err());
    }
}
