//! One object from one repository to another, proven on the way: it does not appear before its bytes are known to be
//! those that were once written.

use std::io::{self, Read};

use bytes::{Bytes, BytesMut};
use tokio::{runtime::Handle, sync::mpsc, task::JoinHandle};

use crate::{
    error::{Error, Kind, Result},
    repository::{join, wal_object},
    seal::{
        Blake3, HashReader,
        age::{self, Outside},
    },
    store::{Answer, Body, Download, Key, Listed, Put, Store, Upload, bridge::BodyReader},
};

/// An object up to this length is held in memory and put at once: most segments are.
const HELD: u64 = 20 << 20;
/// How many chunks may wait to be proven.
const WAITING: usize = 4;

/// What proves an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// Its head and its content, as those of everything in the archive.
    Wal,
    /// The hash of its first bytes, so many of them.
    Bytes(Blake3, u64),
    /// The hash of what it holds compressed.
    Content(Blake3),
    /// Its length alone.
    Length,
}

impl Proof {
    /// What proves an object of which nothing but the name is known.
    pub fn of(key: &Key) -> Self {
        match key.as_str().contains("/wal/") && !key.as_str().contains(".pieces/") {
            true => Self::Wal,
            false => Self::Length,
        }
    }
}

/// Copies the object as it was listed. `NotFound` when it is not there any more.
pub async fn copy(from: &dyn Store, to: &dyn Store, listed: &Listed, proof: Proof) -> Result<Put> {
    let key = &listed.key;
    let (their, our) = (from.as_stored(), to.as_stored());
    let (raw, to) = (their.as_deref().unwrap_or(from), our.as_deref().unwrap_or(to));
    let mut download = raw.get(key, None).await?;
    if download.listed != listed.length {
        return Err(changed(key, listed.length, download.listed));
    }
    let mut sink = match listed.length <= HELD {
        true => Sink::Held(BytesMut::with_capacity(usize::try_from(listed.length).unwrap_or(0))),
        false => Sink::Upload(to.upload(key).await?),
    };
    let mut next = front(&mut *download.body).await?;
    let mut prover = match next.as_ref().is_some_and(|front| age::is_age(front)) {
        true => Prover::Outside(Box::default()),
        false => Prover::start(proof, key, download.length),
    };
    while let Some(chunk) = next {
        prover.feed(chunk.clone()).await?;
        match &mut sink {
            Sink::Held(held) => held.extend_from_slice(&chunk),
            Sink::Upload(upload) => upload.write(chunk).await?,
        }
        next = download.body.chunk().await?;
    }
    prover.end().await.map_err(|e| e.context(format_args!("{key} in {}", from.url())))?;
    match sink {
        Sink::Held(held) => to.put(key, held.freeze()).await,
        Sink::Upload(upload) => upload.finish().await,
    }
}

/// The first chunk, at least so long that it tells whether the object is sealed.
async fn front(body: &mut dyn Body) -> Result<Option<Bytes>> {
    let mut front = BytesMut::new();
    while front.len() < age::MAGIC.len() {
        match body.chunk().await? {
            // Mostly the first chunk is long enough.
            Some(chunk) if front.is_empty() && chunk.len() >= age::MAGIC.len() => return Ok(Some(chunk)),
            Some(chunk) => front.extend_from_slice(&chunk),
            None => break,
        }
    }
    Ok((!front.is_empty()).then(|| front.freeze()))
}

fn changed(key: &Key, was: u64, is: u64) -> Error {
    Error::damaged(format!("{key} is {is} bytes long, and was listed with {was}"))
}

enum Sink {
    Held(BytesMut),
    Upload(Box<dyn Upload>),
}

/// Judges bytes as they come.
enum Prover {
    Thread(mpsc::Sender<Bytes>, JoinHandle<Result<()>>),
    Hash {
        hasher: Box<blake3::Hasher>,
        left: u64,
        expected: Blake3,
    },
    /// Of a sealed object, which whoever copies it need not be able to open.
    Outside(Box<Outside>),
    Nothing,
}

impl Prover {
    fn start(proof: Proof, key: &Key, length: u64) -> Self {
        let (send, receive) = mpsc::channel(WAITING);
        let body: Box<dyn Body> = Box::new(Received(receive));
        let key = key.clone();
        match proof {
            Proof::Length => Self::Nothing,
            Proof::Bytes(expected, of) => Self::Hash { hasher: Box::default(), left: of, expected },
            Proof::Wal => Self::Thread(send, tokio::spawn(prove_wal(key, Download { length, listed: length, body }))),
            Proof::Content(expected) => {
                let body = BodyReader::new(body, Handle::current());
                Self::Thread(send, tokio::task::spawn_blocking(move || prove_content(body, expected)))
            }
        }
    }

    async fn feed(&mut self, bytes: Bytes) -> Result<()> {
        match self {
            // Whoever does not listen any more has found something, and tells it at the end.
            Self::Thread(send, _) => _ = send.send(bytes).await,
            Self::Hash { hasher, left, .. } => {
                let count = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                hasher.update(&bytes[..count]);
                *left -= count as u64;
            }
            Self::Outside(outside) => outside.feed(&bytes)?,
            Self::Nothing => {}
        }
        Ok(())
    }

    async fn end(self) -> Result<()> {
        match self {
            Self::Thread(send, judge) => {
                drop(send);
                join(judge.await)?
            }
            Self::Hash { hasher, left: 0, expected } if Blake3::from(&*hasher) == expected => Ok(()),
            Self::Hash { .. } => Err(Error::damaged("it does not have the hash that a manifest tells")),
            Self::Outside(outside) => outside.finish().map(drop),
            Self::Nothing => Ok(()),
        }
    }
}

async fn prove_wal(key: Key, download: Download) -> Result<()> {
    let object = wal_object::of(download, &key).await?;
    let read = tokio::task::spawn_blocking(move || object.read(|_| Ok(std::ops::ControlFlow::Continue(()))).map(drop));
    join(read.await)?
}

fn prove_content(body: BodyReader, expected: Blake3) -> Result<()> {
    let decoder = zstd::Decoder::new(body).map_err(|e| Error::internal("start the zstd decoder").source(e))?;
    let mut content = HashReader::new(decoder);
    io::copy(&mut content as &mut dyn Read, &mut io::sink())
        .map_err(|e| Error::damaged("its frames cannot be read").source(e))?;
    if content.digest().0 == expected {
        Ok(())
    } else {
        Err(Error::damaged("its content does not have the hash that the backup's document tells"))
    }
}

/// The bytes that were fed, as a body.
struct Received(mpsc::Receiver<Bytes>);

impl Body for Received {
    fn chunk(&mut self) -> Answer<'_, Option<Bytes>> {
        Box::pin(async move { Ok(self.0.recv().await) })
    }
}

/// Whether an error is about this one object, and the others can be copied all the same.
pub fn is_of_one(error: &Error) -> bool {
    matches!(error.kind(), Kind::Damaged | Kind::Refused)
}
