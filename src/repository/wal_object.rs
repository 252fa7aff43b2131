//! The object of a file that PostgreSQL archives: a head that tells what it is, then the file in zstd frames.

use std::{
    io::{self, Read},
    ops::ControlFlow,
};

use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

use crate::{
    error::{Error, Result},
    postgres::{Lsn, SystemId, TimelineId, Version, WalFile},
    seal::{self, Blake3, HEAD_LIMIT, Head},
    store::{Key, Store, bridge},
};

/// What the head of a WAL object tells. A fact that is absent is unknown, and can be read from the content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalHead {
    /// The format of the object.
    pub format: u32,
    /// The file's name.
    pub name: WalFile,
    /// The length of the file in bytes.
    pub size: u64,
    /// BLAKE3 of the file.
    pub blake3: Blake3,
    /// Bytes of the zstd frames after the head: with the head's own length that of the object.
    pub compressed: u64,
    /// PostgreSQL's major version, of a segment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postgres: Option<Version>,
    /// The system it belongs to, of a segment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<SystemId>,
    /// The timeline in the name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeline: Option<TimelineId>,
    /// The LSN of the first byte, of a segment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_lsn: Option<Lsn>,
}

/// An object that is being read: its head, and the file's content, which is proven against the head as it is read.
pub struct WalObject {
    /// The head.
    pub head: WalHead,
    /// The length of the object in bytes.
    pub length: u64,
    content: Box<dyn Read + Send>,
    key: Key,
}

impl std::fmt::Debug for WalObject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WalObject").field("head", &self.head).finish_non_exhaustive()
    }
}

/// Reads the head alone, with one request. Proves that the object has the length that the head tells.
pub async fn read_head(store: &dyn Store, key: &Key) -> Result<WalHead> {
    let mut download = store.get(key, Some(0..(HEAD_LIMIT + 8) as u64)).await?;
    let mut front = Vec::new();
    while let Some(chunk) = download.body.chunk().await? {
        front.extend_from_slice(&chunk);
    }
    parse(key, &front, download.length).map(|(head, _)| head)
}

fn parse(key: &Key, front: &[u8], length: u64) -> Result<(WalHead, usize)> {
    let (head, end) = match seal::read_head::<WalHead>(front).map_err(|e| damaged(key, e))? {
        Head::Present(head, end) => (head, end),
        Head::Absent => return Err(damaged(key, Error::damaged("it has no head"))),
    };
    if end as u64 + head.compressed != length {
        let expected = end as u64 + head.compressed;
        return Err(damaged(key, Error::damaged(format!("it is {length} bytes long where its head says {expected}"))));
    }
    Ok((head, end))
}

fn damaged(key: &Key, error: Error) -> Error {
    error
        .context(format!("{key} is damaged"))
        .hint("restore this object from another copy of the repository; recovery cannot pass it, backups taken after it are not affected")
}

/// Opens an object for reading its content on a thread.
pub async fn open(store: &dyn Store, key: &Key) -> Result<WalObject> {
    let mut download = store.get(key, None).await?;
    let mut front = Vec::new();
    while front.len() < HEAD_LIMIT + 8 {
        match download.body.chunk().await? {
            Some(chunk) => front.extend_from_slice(&chunk),
            None => break,
        }
    }
    let (head, end) = parse(key, &front, download.length)?;
    let rest = io::Cursor::new(front.split_off(end)).chain(bridge::BodyReader::new(download.body, Handle::current()));
    let decoder = zstd::Decoder::new(rest).map_err(|e| Error::internal("start the zstd decoder").source(e))?;
    Ok(WalObject { head, length: download.length, content: Box::new(decoder), key: key.clone() })
}

impl WalObject {
    /// Hands the content on piece by piece until `sink` has seen enough, and at the end proves length and BLAKE3: a sink
    /// that takes everything must not use it unless this returns Ok. Call it on a thread of its own.
    pub fn read(self, mut sink: impl FnMut(&[u8]) -> Result<ControlFlow<()>>) -> Result<WalHead> {
        let Self { head, mut content, key, .. } = self;
        let mut buffer = vec![0; 256 << 10];
        let (mut hasher, mut length) = (blake3::Hasher::new(), 0_u64);
        loop {
            let count = content.read(&mut buffer).map_err(|e| {
                bridge::from_io(e, |e| damaged(&key, Error::damaged("its frames cannot be read").source(e)))
            })?;
            if count == 0 {
                break;
            }
            length += count as u64;
            if length > head.size {
                break;
            }
            hasher.update(&buffer[..count]);
            if sink(&buffer[..count])?.is_break() {
                return Ok(head);
            }
        }
        if length != head.size {
            return Err(damaged(&key, Error::damaged(format!("its content is not {} bytes long", head.size))));
        }
        if Blake3::from(&hasher) != head.blake3 {
            return Err(damaged(&key, Error::damaged("its content does not have the hash that its head tells")));
        }
        Ok(head)
    }
}
