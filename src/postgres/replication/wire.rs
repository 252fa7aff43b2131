//! Messages over a socket. Nothing is read ahead of what is asked for but one buffer full: whoever is slow to ask
//! slows the server down.

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::message::Message;
use crate::error::{Error, Result};

/// How much is read at a time, in bytes; a message of a base backup has 32 KiB.
const BUFFER: usize = 128 << 10;

/// A socket, with TLS or without.
pub(super) trait Socket: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Socket for T {}

/// One end of the conversation with a server.
pub(super) struct Wire {
    socket: Box<dyn Socket>,
    incoming: BytesMut,
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wire").finish_non_exhaustive()
    }
}

impl Wire {
    pub(super) fn new(socket: Box<dyn Socket>) -> Self {
        Self { socket, incoming: BytesMut::new() }
    }

    /// Sends one message, or several, as `write` makes them.
    pub(super) async fn send(&mut self, write: impl FnOnce(&mut BytesMut) -> std::io::Result<()>) -> Result<()> {
        let mut message = BytesMut::new();
        write(&mut message).map_err(|e| Error::invalid("a text for the server holds a zero byte").source(e))?;
        self.socket.write_all(&message).await.map_err(broken)?;
        self.socket.flush().await.map_err(broken)
    }

    /// The next message. May be dropped while it waits: nothing is lost.
    pub(super) async fn receive(&mut self) -> Result<Message> {
        loop {
            if let Some(message) = Message::take(&mut self.incoming)? {
                return Ok(message);
            }
            self.incoming.reserve(BUFFER);
            if self.socket.read_buf(&mut self.incoming).await.map_err(broken)? == 0 {
                return Err(closed());
            }
        }
    }
}

fn broken(error: std::io::Error) -> Error {
    Error::failed("the connection broke").source(error).hint("see the server's log, and the network's")
}

fn closed() -> Error {
    Error::failed("the server closed the connection").hint("see the server's log")
}
