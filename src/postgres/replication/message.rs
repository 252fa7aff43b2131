//! The messages of a server, as far as a replication connection hears them (`src/backend/libpq`, the protocol's
//! chapter "Message Formats"). Bytes in, messages out; what does not fit is an error, never a panic.

use std::fmt;

use bytes::{Buf, Bytes, BytesMut};

use crate::error::{Error, Result};

/// No message of a walsender is longer than this many bytes; a longer one comes from something else.
const LIMIT: usize = 16 << 20;

/// A message of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// What the server wants to know before it believes who we are.
    Authentication(Authentication),
    /// What a cancel request names: process and secret.
    Key(i32, i32),
    /// A setting that the server tells unasked.
    Parameter(String, String),
    /// The command is over; the next may be sent.
    Ready,
    /// A result set begins.
    Columns,
    /// A row of it.
    Row(Vec<Option<Bytes>>),
    /// A command, or one of its parts, is complete.
    Complete,
    /// The server waits for data.
    CopyIn,
    /// The server will send data.
    CopyOut,
    /// Both will send data.
    CopyBoth,
    /// A piece of it.
    CopyData(Bytes),
    /// All of it was sent.
    CopyDone,
    /// The command failed.
    Error(ServerError),
    /// Something worth telling.
    Notice(ServerError),
}

/// A request of the server while it finds out who we are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Authentication {
    /// It believes us.
    Ok,
    /// The password as it is.
    Cleartext,
    /// The password hashed with this salt.
    Md5([u8; 4]),
    /// One of these mechanisms.
    Sasl(Vec<String>),
    /// The next step of it.
    SaslContinue(Bytes),
    /// The last.
    SaslFinal(Bytes),
    /// A way that we do not know, by its number.
    Other(u32),
}

/// What the server says in an `ErrorResponse` or `NoticeResponse`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerError {
    /// `ERROR`, `FATAL`, `WARNING`, ... whatever the server's language is.
    pub severity: String,
    /// SQLSTATE.
    pub code: String,
    /// The message in the server's language.
    pub message: String,
    /// More about it.
    pub detail: Option<String>,
    /// The server's own hint.
    pub hint: Option<String>,
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(detail) = &self.detail {
            write!(f, " ({detail})")?;
        }
        write!(f, " [SQLSTATE {}]", self.code)
    }
}

impl ServerError {
    fn parse(mut body: Bytes) -> Result<Self> {
        let mut said = Self::default();
        loop {
            match u8(&mut body)? {
                0 => return Ok(said),
                b'V' => said.severity = text(&mut body)?,
                b'C' => said.code = text(&mut body)?,
                b'M' => said.message = text(&mut body)?,
                b'D' => said.detail = Some(text(&mut body)?),
                b'H' => said.hint = Some(text(&mut body)?),
                _ => drop(cstring(&mut body)?),
            }
        }
    }
}

impl Message {
    /// Takes the first whole message out of `buffer`; `None` when more bytes are needed.
    pub(super) fn take(buffer: &mut BytesMut) -> Result<Option<Self>> {
        let [tag, a, b, c, d, ..] = buffer[..] else { return Ok(None) };
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if !(4..=LIMIT).contains(&length) {
            return Err(garbled());
        }
        if buffer.len() <= length {
            buffer.reserve(length + 1 - buffer.len());
            return Ok(None);
        }
        let mut body = buffer.split_to(length + 1).freeze();
        body.advance(5);
        Self::parse(tag, body).map(Some)
    }

    fn parse(tag: u8, mut body: Bytes) -> Result<Self> {
        Ok(match tag {
            b'R' => Self::Authentication(Authentication::parse(body)?),
            b'K' => Self::Key(u32(&mut body)? as i32, u32(&mut body)? as i32),
            b'S' => Self::Parameter(text(&mut body)?, text(&mut body)?),
            b'Z' => Self::Ready,
            b'T' => Self::Columns,
            b'D' => Self::Row(row(body)?),
            b'C' | b'I' => Self::Complete,
            b'G' => Self::CopyIn,
            b'H' => Self::CopyOut,
            b'W' => Self::CopyBoth,
            b'd' => Self::CopyData(body),
            b'c' => Self::CopyDone,
            b'E' => Self::Error(ServerError::parse(body)?),
            b'N' => Self::Notice(ServerError::parse(body)?),
            _ => return Err(unexpected(format_args!("of type \"{}\"", tag.escape_ascii()))),
        })
    }
}

impl Authentication {
    fn parse(mut body: Bytes) -> Result<Self> {
        Ok(match u32(&mut body)? {
            0 => Self::Ok,
            3 => Self::Cleartext,
            5 => Self::Md5(body[..].try_into().map_err(|_| garbled())?),
            10 => {
                let mut mechanisms = Vec::new();
                while body.first().is_some_and(|byte| *byte != 0) {
                    mechanisms.push(text(&mut body)?);
                }
                Self::Sasl(mechanisms)
            }
            11 => Self::SaslContinue(body),
            12 => Self::SaslFinal(body),
            other => Self::Other(other),
        })
    }
}

fn row(mut body: Bytes) -> Result<Vec<Option<Bytes>>> {
    let columns = body.try_get_u16().map_err(|_| garbled())?;
    let mut row = Vec::with_capacity(columns.into());
    for _ in 0..columns {
        let length = u32(&mut body)?;
        row.push(match length {
            u32::MAX => None,
            length if length as usize <= body.len() => Some(body.split_to(length as usize)),
            _ => return Err(garbled()),
        });
    }
    Ok(row)
}

fn u8(body: &mut Bytes) -> Result<u8> {
    body.try_get_u8().map_err(|_| garbled())
}

fn u32(body: &mut Bytes) -> Result<u32> {
    body.try_get_u32().map_err(|_| garbled())
}

/// The bytes up to the next zero byte, which goes with them.
pub(super) fn cstring(body: &mut Bytes) -> Result<Bytes> {
    let end = body.iter().position(|byte| *byte == 0).ok_or_else(garbled)?;
    let bytes = body.split_to(end);
    body.advance(1);
    Ok(bytes)
}

fn text(body: &mut Bytes) -> Result<String> {
    Ok(String::from_utf8_lossy(&cstring(body)?).into_owned())
}

/// What is heard is not the protocol.
pub(super) fn garbled() -> Error {
    Error::failed("the server's answer is not PostgreSQL's protocol")
        .hint("does the connection string name a PostgreSQL server, and not a pooler or a proxy?")
}

/// A message that has no place here.
pub(super) fn unexpected(what: impl fmt::Display) -> Error {
    Error::failed(format!("the server sent a message {what} where none is expected"))
        .hint("does the connection string name the server itself? poolers do not speak the replication protocol")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(tag: u8, body: &[u8]) -> BytesMut {
        let mut bytes = BytesMut::from(&[tag][..]);
        bytes.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
        bytes.extend_from_slice(body);
        bytes
    }

    #[test]
    fn a_message_is_taken_when_all_of_it_is_there() {
        let whole = message(b'd', b"data");
        for length in 0..whole.len() {
            let mut part = BytesMut::from(&whole[..length]);
            assert_eq!(Message::take(&mut part).unwrap(), None, "{length}");
        }
        let mut two = whole.clone();
        two.extend_from_slice(&message(b'c', b""));
        assert_eq!(Message::take(&mut two).unwrap(), Some(Message::CopyData(Bytes::from_static(b"data"))));
        assert_eq!(Message::take(&mut two).unwrap(), Some(Message::CopyDone));
        assert_eq!(Message::take(&mut two).unwrap(), None);
    }

    #[test]
    fn errors_keep_their_sqlstate() {
        let body = b"SFEHLER\0VERROR\0CXX001\0Mkaputt\0Dmehr\0Hhilf\0Fx.c\0\0";
        let Some(Message::Error(said)) = Message::take(&mut message(b'E', body)).unwrap() else { panic!() };
        assert_eq!((said.severity.as_str(), said.code.as_str()), ("ERROR", "XX001"));
        assert_eq!(said.to_string(), "kaputt (mehr) [SQLSTATE XX001]");
    }

    #[test]
    fn rows_hold_nulls_and_bytes() {
        let body = b"\0\x03\0\0\0\x01x\xFF\xFF\xFF\xFF\0\0\0\0";
        let Some(Message::Row(row)) = Message::take(&mut message(b'D', body)).unwrap() else { panic!() };
        assert_eq!(row, [Some(Bytes::from_static(b"x")), None, Some(Bytes::new())]);
        assert!(Message::take(&mut message(b'D', b"\0\x01\0\0\0\x09x")).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(tag in any::<u8>(), body in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = Message::take(&mut message(tag, &body));
        }
    }
}
