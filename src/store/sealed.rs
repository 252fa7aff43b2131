//! Encryption as a layer: what is put is sealed to the recipients, what is got is opened with the identity, and everybody
//! above reads and writes the same bytes as without it. Knows no PostgreSQL; which objects are sealed it is told by
//! [`Rules`].
//!
//! An object is opened by what its first bytes are, so that a repository whose encryption was switched on or off one day
//! is read as a whole. Who has no identity learns of a sealed object what its header declares.

mod keys;
mod names;
mod streams;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    fmt,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::{Bytes, BytesMut};

pub use self::keys::Keys;
use self::{
    names::Names,
    streams::{Opening, Rest, Sealing, State},
};
use super::{Answer, Download, Key, Listed, Put, Store, Upload};
use crate::{
    error::{Error, Kind, Result},
    seal::{
        Blake3, HEAD_LIMIT,
        age::{self, Declared, HEADER, HEADER_LIMIT, Header, NONCE, Opened, Sealer},
    },
};

/// What an object holds, as its first bytes tell: BLAKE3 and length in bytes, such as of a WAL segment.
pub type Declares = fn(&[u8]) -> Option<(Blake3, u64)>;

/// Which objects are sealed, and how. Whoever knows what is called what gives these.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Whether an object is sealed.
    pub sealed: fn(&Key) -> bool,
    /// Whether its name then has `.age` behind it.
    pub named: fn(&Key) -> bool,
    /// What it declares to those without an identity.
    pub declares: Declares,
}

/// A store that seals what is put into it and opens what is read from it.
pub struct Sealed {
    inner: Arc<dyn Store>,
    rules: Rules,
    keys: Keys,
    /// Objects of which ranges were read. Objects never change.
    known: Mutex<HashMap<Key, Known>>,
}

#[derive(Clone)]
enum Known {
    Plain,
    Sealed(Arc<Opened>),
}

/// How many objects are remembered at the most.
const REMEMBERED: usize = 4096;
/// So many bytes tell whether an object is sealed.
const MAGIC: u64 = age::MAGIC.len() as u64;
/// Objects up to this length are sealed on the spot, longer ones on a thread.
const SMALL: usize = 128 << 10;

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealed").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl Sealed {
    /// That store, with these keys. Without any, it only tells sealed objects from others.
    #[must_use]
    pub fn new(inner: Arc<dyn Store>, rules: Rules, keys: Keys) -> Self {
        let inner = Arc::new(Names::new(inner, rules.named, keys.are_given()));
        Self { inner, rules, keys, known: Mutex::default() }
    }

    fn seals(&self, key: &Key) -> bool {
        !self.keys.recipients().is_empty() && (self.rules.sealed)(key)
    }

    /// Reads from the first byte on, up to `end`.
    async fn read_front(&self, key: &Key, end: Option<u64>) -> Result<Download> {
        // Without an identity as much as tells whether it is sealed.
        let sealed = |end| if self.keys.can_open() { age::sealed_length(HEADER, whole_chunks(end)) } else { MAGIC };
        let asked = end.map(|end| 0..sealed(end).max(end));
        let Front { header, mut bytes, download, asked } = self.front(key, asked).await?;
        let Some(header) = header else {
            if end.is_some() {
                self.remember(key, Known::Plain);
            }
            let left = end.unwrap_or(download.length).min(download.length);
            let body = Box::new(Rest { front: bytes.freeze(), body: download.body, left });
            return Ok(Download { body, ..download });
        };
        let opened = self.open(key, &header, &bytes, download.length)?;
        if end.is_some() {
            self.remember(key, Known::Sealed(opened.clone()));
        }
        let chunks = end.map_or_else(|| opened.all(), |end| opened.chunks(&(0..end)));
        let place = opened.place(&chunks);
        let left = end.unwrap_or(u64::MAX);
        if asked.is_some_and(|asked| asked.end < place.end) {
            return self.chunks(key, opened, chunks, 0, left).await;
        }
        let pending = bytes.split_off(header.length() + NONCE);
        let (length, key) = (opened.content(), key.clone());
        let body = Box::new(Opening { key, opened, body: download.body, pending, chunks, skip: 0, left });
        Ok(Download { length, listed: download.listed, body })
    }

    /// Reads from the middle of an object.
    async fn read_middle(&self, key: &Key, range: Range<u64>) -> Result<Download> {
        if !self.keys.can_open() {
            return self.inner.get(key, Some(range)).await;
        }
        if self.known(key).is_none() {
            self.read_front(key, Some(0)).await?;
        }
        match self.known(key) {
            Some(Known::Sealed(opened)) => {
                let chunks = opened.chunks(&range);
                let skip = range.start - (chunks.start * age::CHUNK as u64).min(range.start);
                self.chunks(key, opened, chunks, skip, range.end.saturating_sub(range.start)).await
            }
            _ => self.inner.get(key, Some(range)).await,
        }
    }

    /// Reads chunks of an object that is open.
    async fn chunks(
        &self,
        key: &Key,
        opened: Arc<Opened>,
        chunks: Range<u64>,
        skip: u64,
        left: u64,
    ) -> Result<Download> {
        let download = self.inner.get(key, Some(opened.place(&chunks))).await?;
        let (length, key) = (opened.content(), key.clone());
        let body = Box::new(Opening { key, opened, body: download.body, pending: BytesMut::new(), chunks, skip, left });
        Ok(Download { length, listed: download.listed, body })
    }

    /// The beginning of an object, asked for that far: at least its header, where it is sealed.
    async fn front(&self, key: &Key, mut asked: Option<Range<u64>>) -> Result<Front> {
        loop {
            let mut download = self.inner.get(key, asked.clone()).await?;
            let mut bytes = BytesMut::new();
            let more = loop {
                if bytes.len() >= age::MAGIC.len() && !age::is_age(&bytes) {
                    return Ok(Front { header: None, bytes, download, asked });
                }
                if age::is_age(&bytes)
                    && let Some(header) = Header::parse(&bytes).map_err(|e| damaged(key, e))?
                    && bytes.len() >= header.length() + NONCE
                {
                    return Ok(Front { header: Some(header), bytes, download, asked });
                }
                match download.body.chunk().await? {
                    Some(chunk) => bytes.extend_from_slice(&chunk),
                    None => break asked.as_ref().is_some_and(|asked| asked.end < download.length),
                }
            };
            if !age::is_age(&bytes) {
                return Ok(Front { header: None, bytes, download, asked });
            }
            // Somebody else's header may be longer than those of Walden.
            let most = (HEADER_LIMIT + NONCE) as u64;
            match asked {
                Some(range) if more && range.end < most => asked = Some(0..most),
                _ => return Err(damaged(key, Error::damaged("it ends in the middle of its age header"))),
            }
        }
    }

    fn open(&self, key: &Key, header: &Header, front: &[u8], sealed: u64) -> Result<Arc<Opened>> {
        let nonce =
            front[header.length()..].first_chunk().ok_or_else(|| Error::internal("a header without its nonce"))?;
        self.keys.open(header, nonce, sealed).map(Arc::new).map_err(|e| damaged(key, e))
    }

    fn known(&self, key: &Key) -> Option<Known> {
        self.lock().get(key).cloned()
    }

    fn remember(&self, key: &Key, what: Known) {
        let mut known = self.lock();
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(key.clone(), what);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The beginning of an object.
struct Front {
    /// `None` where it is not sealed.
    header: Option<Header>,
    /// What was read of it.
    bytes: BytesMut,
    /// The rest.
    download: Download,
    /// What was asked for.
    asked: Option<Range<u64>>,
}

/// So many bytes of content, and the rest of the last chunk.
fn whole_chunks(content: u64) -> u64 {
    content.min(i64::MAX as u64).next_multiple_of(age::CHUNK as u64)
}

fn damaged(key: &Key, error: Error) -> Error {
    match error.kind() {
        Kind::Damaged => {
            error.context(format!("{key} is damaged")).hint("restore this object from another copy of the repository")
        }
        _ => error.context(key),
    }
}

/// What an object that begins like this declares.
fn declared(declares: Declares, content: &[u8]) -> Declared {
    let told = declares(&content[..content.len().min(HEAD_LIMIT + 8)]);
    Declared { blake3: told.map(|(blake3, _)| blake3), size: told.map(|(_, size)| size), ..Declared::default() }
}

impl Store for Sealed {
    fn url(&self) -> String {
        self.inner.url()
    }

    fn put<'a>(&'a self, key: &'a Key, bytes: Bytes) -> Answer<'a, Put> {
        Box::pin(async move {
            if !self.seals(key) {
                return self.inner.put(key, bytes).await;
            }
            let (recipients, declares) = (self.keys.recipients().clone(), self.rules.declares);
            let is_small = bytes.len() <= SMALL;
            let seal = move || Sealer::seal(&recipients, declared(declares, &bytes), &bytes);
            let sealed = if is_small { seal() } else { on_thread(seal).await };
            self.inner.put(key, sealed?.into()).await
        })
    }

    fn upload<'a>(&'a self, key: &'a Key) -> Answer<'a, Box<dyn Upload>> {
        Box::pin(async move {
            let upload = self.inner.upload(key).await?;
            if !self.seals(key) {
                return Ok(upload);
            }
            let (recipients, declares) = (self.keys.recipients().clone(), self.rules.declares);
            let state = State::Gathering(Vec::new());
            Ok(Box::new(Sealing { upload, recipients, declares, state }) as Box<dyn Upload>)
        })
    }

    fn get<'a>(&'a self, key: &'a Key, range: Option<Range<u64>>) -> Answer<'a, Download> {
        match range {
            _ if !(self.rules.sealed)(key) => self.inner.get(key, range),
            Some(range) if range.start > 0 => Box::pin(self.read_middle(key, range)),
            range => Box::pin(self.read_front(key, range.map(|range| range.end))),
        }
    }

    fn list<'a>(&'a self, prefix: &'a str, after: Option<&'a Key>, limit: usize) -> Answer<'a, Vec<Listed>> {
        self.inner.list(prefix, after, limit)
    }

    fn folders<'a>(&'a self, prefix: &'a str) -> Answer<'a, Vec<String>> {
        self.inner.folders(prefix)
    }

    fn delete<'a>(&'a self, key: &'a Key) -> Answer<'a, ()> {
        self.inner.delete(key)
    }

    fn delete_many<'a>(&'a self, keys: &'a [Key]) -> Answer<'a, Vec<(Key, Error)>> {
        self.inner.delete_many(keys)
    }

    fn declared<'a>(&'a self, key: &'a Key) -> Answer<'a, Option<Declared>> {
        Box::pin(async move {
            if !(self.rules.sealed)(key) {
                return Ok(None);
            }
            let Front { header, download, .. } = self.front(key, Some(0..(HEADER + NONCE) as u64)).await?;
            let Some(header) = header else { return Ok(None) };
            header.content_length(download.length).map_err(|e| damaged(key, e))?;
            Ok(Some(header.declared()))
        })
    }

    fn encrypts(&self) -> bool {
        !self.keys.recipients().is_empty()
    }

    fn as_stored(&self) -> Option<Arc<dyn Store>> {
        Some(self.inner.clone())
    }
}

async fn on_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let ended = tokio::task::spawn_blocking(work).await;
    ended.unwrap_or_else(|e| Err(Error::internal("a thread that seals did not end").source(e)))
}
