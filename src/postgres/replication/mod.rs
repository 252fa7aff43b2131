//! A physical replication connection: what `pg_basebackup` and `pg_receivewal` do through libpq, on a thin client of
//! our own, because tokio-postgres speaks neither `replication=true` nor the copies that walsenders send.
//!
//! Only simple queries exist here (`src/backend/replication/walsender.c`). An error may come at any place, even after
//! all data: every command is read to the server's `ReadyForQuery` before it counts as done.

mod authenticate;
pub mod base_backup;
mod connect;
mod facts;
mod message;
pub mod slot;
pub mod stream;
mod wire;

use std::{collections::HashMap, future::Future, time::Duration};

use bytes::Bytes;
use postgres_protocol::message::frontend;
use tokio_postgres::config::TargetSessionAttrs;

use self::{
    connect::Address,
    message::{Message, garbled, unexpected},
    wire::Wire,
};
pub use self::{facts::Facts, message::ServerError};
use super::{Conninfo, Lsn, SystemId, TimelineId, Version};
use crate::error::{Error, Result};

/// How long a command may take that does no work on the server.
const QUICK: Duration = Duration::from_secs(60);
/// How long the request to cancel a command may take, and then the server to end it.
const CANCEL: Duration = Duration::from_secs(5);
/// Of the server's warnings so many are kept.
const WARNINGS: usize = 100;

/// A connection for replication. Dropping it closes it; the server sees that when it next sends something.
#[derive(Debug)]
pub struct Replication {
    wire: Wire,
    parameters: HashMap<String, String>,
    version_number: u32,
    warnings: Vec<String>,
    canceller: Canceller,
    /// Whether a command was sent that the server has not come to the end of.
    busy: bool,
}

/// What `IDENTIFY_SYSTEM` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The system identifier.
    pub system: SystemId,
    /// The timeline that the server writes; on a standby the one that it replays.
    pub timeline: TimelineId,
    /// Up to where the WAL is on disk.
    pub flushed: Lsn,
}

/// Asks the server to give up what it does for one connection.
#[derive(Clone, Debug)]
pub struct Canceller {
    conninfo: Conninfo,
    address: Address,
    key: Option<(i32, i32)>,
}

impl Replication {
    /// Connects to the first of the hosts that lets us. The time for each is limited by `connect_timeout`.
    pub async fn open(conninfo: &Conninfo) -> Result<Self> {
        let mut failure = None;
        for address in connect::addresses(&conninfo.config)? {
            match within(conninfo.timeout, Self::open_one(address, conninfo)).await {
                Ok(connection) => return Ok(connection),
                Err(error) => failure = Some(error),
            }
        }
        let error = failure.unwrap_or_else(|| Error::invalid("the connection string names no host"));
        Err(error.context(format_args!("connect to PostgreSQL for replication ({conninfo})")))
    }

    async fn open_one(address: Address, conninfo: &Conninfo) -> Result<Self> {
        let wire = connect::start(connect::open(&address, conninfo).await?, conninfo).await?;
        let mut connection = Self {
            wire,
            parameters: HashMap::new(),
            version_number: 0,
            warnings: Vec::new(),
            canceller: Canceller { conninfo: conninfo.clone(), address, key: None },
            busy: true,
        };
        connection.greeting().await?;
        connection.fits(conninfo.config.get_target_session_attrs())?;
        let number = connection.value("SHOW server_version_num").await?;
        connection.version_number = number.parse().map_err(|_| garbled())?;
        Version::from_server_number(connection.version_number)?;
        Ok(connection)
    }

    /// What the server tells before its first `ReadyForQuery`.
    async fn greeting(&mut self) -> Result<()> {
        loop {
            match self.next().await? {
                Message::Key(process, secret) => self.canceller.key = Some((process, secret)),
                Message::Ready => return Ok(()),
                Message::Error(said) => return Err(refusal(said)),
                _ => return Err(unexpected("in its greeting")),
            }
        }
    }

    /// `target_session_attrs`: whether this is the kind of server that was asked for.
    fn fits(&self, wanted: TargetSessionAttrs) -> Result<()> {
        let on = |name: &str| self.parameters.get(name).is_some_and(|value| value == "on");
        let read_only = on("in_hot_standby") || on("default_transaction_read_only");
        match wanted {
            TargetSessionAttrs::ReadWrite if read_only => Err(Error::failed("the server does not allow writes")),
            TargetSessionAttrs::ReadOnly if !read_only => Err(Error::failed("the server allows writes")),
            _ => Ok(()),
        }
    }

    /// `server_version_num`, for instance 170011.
    #[must_use]
    pub fn version_number(&self) -> u32 {
        self.version_number
    }

    /// What ends the command that this connection is in the middle of.
    #[must_use]
    pub fn canceller(&self) -> Canceller {
        self.canceller.clone()
    }

    /// Whether the server waits for the next command: after an error it means that it refused that one, and nothing
    /// more.
    #[must_use]
    pub fn is_free(&self) -> bool {
        !self.busy
    }

    /// Ends the command that this connection is in the middle of, if there is one, and reads on until the server has
    /// ended it: were the connection closed at once, the server could notice that first, and log a lost client. An
    /// error when it takes longer than some seconds.
    pub async fn cancel(&mut self) -> Result<()> {
        if !self.busy {
            return Ok(());
        }
        self.canceller.cancel().await?;
        let rest = async {
            while self.busy {
                self.next().await?;
            }
            Ok(())
        };
        within(Some(CANCEL), rest).await
    }

    /// What the server has warned of since the last call, in its language.
    pub fn take_warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }

    /// `IDENTIFY_SYSTEM`.
    pub async fn identify_system(&mut self) -> Result<Identity> {
        let row = self.row("IDENTIFY_SYSTEM").await?;
        let [system, timeline, flushed, ..] = &row[..] else { return Err(garbled()) };
        Ok(Identity {
            system: text(system)?.parse()?,
            timeline: text(timeline)?.parse()?,
            flushed: text(flushed)?.parse()?,
        })
    }

    /// `SHOW`: the value of a setting as people read it, such as `16MB`. The role must be allowed to see it.
    pub async fn show(&mut self, setting: &str) -> Result<String> {
        self.value(&format!("SHOW {setting}")).await
    }

    /// `TIMELINE_HISTORY`: the bytes of a timeline's history file. Timeline 1 has none.
    pub async fn timeline_history(&mut self, timeline: TimelineId) -> Result<Bytes> {
        let row = self.row(&format!("TIMELINE_HISTORY {timeline}")).await?;
        row.into_iter().nth(1).flatten().ok_or_else(garbled)
    }

    async fn value(&mut self, command: &str) -> Result<String> {
        let row = self.row(command).await?;
        text(row.first().unwrap_or(&None)).map(str::to_owned)
    }

    /// The one row that a command gives.
    async fn row(&mut self, command: &str) -> Result<Vec<Option<Bytes>>> {
        let answer = self.ask(command).await?.map_err(refusal).and_then(|row| row.ok_or_else(garbled));
        answer.map_err(|e| e.context(command))
    }

    /// The first row that a command gives, if any, or what the server says against it.
    async fn ask(&mut self, command: &str) -> Result<std::result::Result<Option<Vec<Option<Bytes>>>, ServerError>> {
        let answer = async {
            self.send(command).await?;
            let mut row = None;
            loop {
                match self.next().await? {
                    Message::Row(found) => row = row.or(Some(found)),
                    Message::Columns | Message::Complete => {}
                    Message::Ready => return Ok(Ok(row)),
                    Message::Error(said) => {
                        self.settle(&said).await;
                        return Ok(Err(said));
                    }
                    _ => return Err(unexpected("in answer to a query")),
                }
            }
        };
        within(Some(QUICK), answer).await.map_err(|e| e.context(command))
    }

    async fn send(&mut self, command: &str) -> Result<()> {
        self.busy = true;
        self.wire.send(|out| frontend::query(command, out)).await
    }

    /// The next message that is not told unasked.
    async fn next(&mut self) -> Result<Message> {
        loop {
            match self.wire.receive().await? {
                Message::Parameter(name, value) => _ = self.parameters.insert(name, value),
                Message::Notice(said) => {
                    tracing::debug!(severity = said.severity, message = said.message, "the server says");
                    if said.severity == "WARNING" && self.warnings.len() < WARNINGS {
                        self.warnings.push(said.message);
                    }
                }
                message => {
                    self.busy &= message != Message::Ready;
                    return Ok(message);
                }
            }
        }
    }

    /// Reads on to `ReadyForQuery` after an error, where the server still sends one, and makes it ours.
    async fn fail(&mut self, said: ServerError) -> Error {
        self.settle(&said).await;
        refusal(said)
    }

    /// Reads on to where the server waits for the next command, after an error of a command.
    pub async fn settle(&mut self, said: &ServerError) {
        if said.severity == "ERROR" {
            let rest = async {
                while !matches!(self.next().await?, Message::Ready) {}
                Ok(())
            };
            // The first error is the one to tell.
            let _ = within(Some(QUICK), rest).await;
        }
    }
}

impl Canceller {
    /// Asks, on a connection of its own, and waits until the server has taken note: it closes that connection. The
    /// command ends with an error, or has ended before.
    pub async fn cancel(&self) -> Result<()> {
        let Some((process, secret)) = self.key else { return Ok(()) };
        let asking = async {
            let mut wire = Wire::new(connect::open(&self.address, &self.conninfo).await?.into_socket());
            wire.send(|out| {
                frontend::cancel_request(process, secret, out);
                Ok(())
            })
            .await?;
            // There is no answer.
            drop(wire.receive().await);
            Ok(())
        };
        within(Some(CANCEL), asking).await
    }
}

async fn within<T>(limit: Option<Duration>, work: impl Future<Output = Result<T>>) -> Result<T> {
    match limit {
        None => work.await,
        Some(limit) => tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
            Err(Error::failed(format!("no answer within {} s", limit.as_secs()))
                .hint("check host and port of the connection string, and whether the server is busy"))
        }),
    }
}

fn text(value: &Option<Bytes>) -> Result<&str> {
    value.as_deref().and_then(|bytes| std::str::from_utf8(bytes).ok()).ok_or_else(garbled)
}

/// What the server said, as an error of ours with the mend.
fn refusal(said: ServerError) -> Error {
    let hint = match said.code.as_str() {
        "28P01" => "check user and password",
        code if code.starts_with("28") => "pg_hba.conf needs a line for the database \"replication\" and this role",
        "42501" => "the role needs the attribute REPLICATION",
        "53300" => "raise max_wal_senders, or end other replication connections",
        "57P03" => "PostgreSQL is starting or stopping: try again",
        _ => said.hint.as_deref().unwrap_or("see the server's log"),
    };
    Error::failed(said.to_string()).hint(hint)
}
