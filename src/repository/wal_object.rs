//! The object of a file that PostgreSQL archives: a head that tells what it is, then the file in zstd frames.
//!
//! A head that is lost or cannot be read makes an object slower to use, not useless: its content proves itself.

use std::{
    io::{self, Read},
    ops::ControlFlow,
};

use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

use super::{documents::FORMAT, join, layout, unheaded::Unheaded};
use crate::{
    error::{Error, Result},
    postgres::{Lsn, SystemId, TimelineId, Version, WalFile},
    seal::{self, Blake3, HEAD_LIMIT, Head, age::Declared},
    store::{self, Download, Key, Store, bridge},
    wal::{List, Summary, summary::SUMMARY_FORMAT},
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
    /// What the records of a segment tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<Summary>,
}

impl WalHead {
    /// The head as it stands in front of the object. What there is no room for is left out of it: first the counts of
    /// rows, then the changes, at last the whole summary.
    pub fn to_bytes(&mut self) -> Result<Vec<u8>> {
        let cuts: [fn(&mut Option<Summary>); 3] = [
            |summary| summary.iter_mut().for_each(|s| s.rows = s.rows.emptied()),
            |summary| summary.iter_mut().for_each(|s| s.changes = List { items: Vec::new(), cut: true }),
            |summary| *summary = None,
        ];
        for cut in cuts {
            if self.length()? <= HEAD_LIMIT {
                break;
            }
            cut(&mut self.summary);
        }
        seal::head(self)
    }

    fn length(&self) -> Result<usize> {
        seal::head_json(self).map(|json| json.len())
    }
}

/// An object that is being read: its head, and the file's content, which is proven as it is read.
pub struct WalObject {
    /// The head; `None` where it is lost or cannot be read, and the content must prove itself.
    pub head: Option<WalHead>,
    /// The length of the object in bytes, as a listing tells it.
    pub length: u64,
    /// Bytes of its frames.
    compressed: u64,
    content: Box<dyn Read + Send>,
    key: Key,
}

impl std::fmt::Debug for WalObject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WalObject").field("head", &self.head).finish_non_exhaustive()
    }
}

/// The head of an object, with one request. Proves that the object has the length that the head tells. Where the head
/// is lost, the whole object is read instead, its content proves itself, and the head is made anew.
pub async fn read_head(store: &dyn Store, key: &Key) -> Result<WalHead> {
    read_head_and_length(store, key).await.map(|(head, _)| head)
}

/// What an object holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest {
    /// BLAKE3 of the file.
    pub blake3: Blake3,
    /// Its length in bytes.
    pub size: u64,
    /// The system it belongs to, as far as that is known.
    pub system: Option<SystemId>,
}

impl From<&WalHead> for Digest {
    fn from(head: &WalHead) -> Self {
        Self { blake3: head.blake3, size: head.size, system: head.system }
    }
}

/// What the object holds: of a sealed one by what it declares, so that no identity is needed.
pub async fn digest(store: &dyn Store, key: &Key) -> Result<Digest> {
    match store.declared(key).await? {
        Some(Declared { blake3: Some(blake3), size: Some(size), .. }) => Ok(Digest { blake3, size, system: None }),
        _ => read_head(store, key).await.map(|head| Digest::from(&head)),
    }
}

/// The same as [`read_head`], and the length of the object in bytes as a listing tells it.
pub(super) async fn read_head_and_length(store: &dyn Store, key: &Key) -> Result<(WalHead, u64)> {
    loop {
        match read_this_head(store, key).await {
            Err(error) if store::another_copy(store, key, &error) => {}
            ended => return ended,
        }
    }
}

async fn read_this_head(store: &dyn Store, key: &Key) -> Result<(WalHead, u64)> {
    let mut download = store.get(key, Some(0..(HEAD_LIMIT + 8) as u64)).await?;
    let mut front = Vec::new();
    while let Some(chunk) = download.body.chunk().await? {
        front.extend_from_slice(&chunk);
    }
    match parse(key, &front, download.length)? {
        (Some(head), _) => Ok((head, download.listed)),
        (None, _) => {
            let object = open(store, key).await?;
            let length = object.length;
            let head = tokio::task::spawn_blocking(move || object.read(|_| Ok(ControlFlow::Continue(())))).await;
            join(head)?.map(|head| (head, length))
        }
    }
}

/// The head, where it can be read, and where the content begins.
fn parse(key: &Key, front: &[u8], length: u64) -> Result<(Option<WalHead>, usize)> {
    let (mut head, end) = match seal::read_head::<WalHead>(front).map_err(|e| damaged(key, e))? {
        Head::Present(head, end) => (head, end),
        Head::Unreadable(_, end) => match without_summary(front) {
            Some(head) => (head, end),
            None => return Ok((None, end)),
        },
        Head::Absent => return Ok((None, 0)),
    };
    if head.format > FORMAT {
        return Err(Error::refused(format!(
            "{key} has format {}; this Walden knows formats up to {FORMAT}",
            head.format
        ))
        .hint("use the version of Walden that wrote it, or a newer one"));
    }
    prove_name(key, &head)?;
    if end as u64 + head.compressed != length {
        let expected = end as u64 + head.compressed;
        return Err(damaged(key, Error::damaged(format!("it is {length} bytes long where its head says {expected}"))));
    }
    if head.summary.as_ref().is_some_and(|summary| summary.format > SUMMARY_FORMAT) {
        head.summary = None;
    }
    Ok((Some(head), end))
}

/// An object under another's name is no better than one that is damaged.
fn prove_name(key: &Key, head: &WalHead) -> Result<()> {
    let Some((incarnation, file, hash)) = layout::archived(key) else { return Ok(()) };
    let own = head.system.is_none_or(|system| system == incarnation.system);
    if head.name == file && own && hash.is_none_or(|hash| hash == head.blake3) {
        return Ok(());
    }
    let of = head.system.filter(|_| !own).map_or_else(String::new, |system| format!(" of system {system}"));
    Err(damaged(key, Error::damaged(format!("it says that it holds {} bytes of {}{of}", head.size, head.name))))
}

/// A head whose summary alone cannot be read: a later Walden may have written it.
fn without_summary(front: &[u8]) -> Option<WalHead> {
    let Ok(Head::Present(mut value, _)) = seal::read_head::<serde_json::Value>(front) else { return None };
    value.as_object_mut()?.remove("summary")?;
    serde_json::from_value(value).ok()
}

fn damaged(key: &Key, error: Error) -> Error {
    error
        .context(format!("{key} is damaged"))
        .hint("restore this object from another copy of the repository; recovery cannot pass it, backups taken after it are not affected")
}

/// Opens an object for reading its content on a thread.
pub async fn open(store: &dyn Store, key: &Key) -> Result<WalObject> {
    loop {
        match of(store.get(key, None).await?, key).await {
            Err(error) if store::another_copy(store, key, &error) => {}
            ended => return ended,
        }
    }
}

/// The object of that key, as it comes in.
pub async fn of(mut download: Download, key: &Key) -> Result<WalObject> {
    let mut front = Vec::new();
    while front.len() < HEAD_LIMIT + 8 {
        match download.body.chunk().await? {
            Some(chunk) => front.extend_from_slice(&chunk),
            None => break,
        }
    }
    let (head, end) = parse(key, &front, download.length)?;
    if head.is_none() {
        tracing::warn!("the head of {key} is lost or damaged; the content is proven by its own checksums instead");
    }
    let rest = io::Cursor::new(front.split_off(end)).chain(bridge::BodyReader::new(download.body, Handle::current()));
    let decoder = zstd::Decoder::new(rest).map_err(|e| Error::internal("start the zstd decoder").source(e))?;
    let (length, compressed) = (download.listed, download.length - end as u64);
    Ok(WalObject { head, length, compressed, content: Box::new(decoder), key: key.clone() })
}

impl WalObject {
    /// The whole content, proven: of a file that is known to be short, or that is held as a whole.
    pub async fn content(self) -> Result<Vec<u8>> {
        let read = tokio::task::spawn_blocking(move || {
            let mut content = Vec::new();
            self.read(|bytes| {
                content.extend_from_slice(bytes);
                Ok(ControlFlow::Continue(()))
            })?;
            Ok(content)
        });
        join(read.await)?
    }

    /// Hands the content on piece by piece until `sink` has seen enough, and at the end proves it: by length and BLAKE3
    /// of the head, or by itself where there is no head. A sink that takes everything must not use it unless this
    /// returns Ok. Call it on a thread of its own.
    ///
    /// Gives back the head; where there is none what it would tell of the bytes that were read.
    pub fn read(self, mut sink: impl FnMut(&[u8]) -> Result<ControlFlow<()>>) -> Result<WalHead> {
        let Self { head, compressed, mut content, key, .. } = self;
        let bad = |e| damaged(&key, e);
        let mut judge = match head {
            Some(head) => Judge::Head(Box::new(head)),
            None => Judge::Content(Box::new(Unheaded::new(&key).map_err(bad)?)),
        };
        let mut buffer = vec![0; 256 << 10];
        let (mut hasher, mut size) = (blake3::Hasher::new(), 0_u64);
        loop {
            let count = content
                .read(&mut buffer)
                .map_err(|e| bridge::from_io(e, |e| bad(Error::damaged("its frames cannot be read").source(e))))?;
            let piece = &buffer[..count];
            size += count as u64;
            hasher.update(piece);
            match &mut judge {
                Judge::Head(head) if size > head.size => break,
                Judge::Head(_) => {}
                Judge::Content(unheaded) => unheaded.feed(piece).map_err(bad)?,
            }
            if count == 0 {
                break;
            }
            if sink(piece)?.is_break() {
                return Ok(match judge {
                    Judge::Head(head) => *head,
                    Judge::Content(unheaded) => unheaded.told(size, Blake3::from(&hasher), compressed),
                });
            }
        }
        let blake3 = Blake3::from(&hasher);
        match judge {
            Judge::Head(head) if size != head.size => {
                Err(bad(Error::damaged(format!("its content is not {} bytes long", head.size))))
            }
            Judge::Head(head) if blake3 != head.blake3 => {
                Err(bad(Error::damaged("its content does not have the hash that its head tells")))
            }
            Judge::Head(head) => Ok(*head),
            Judge::Content(unheaded) => unheaded.finish(size, blake3, compressed).map_err(bad),
        }
    }
}

/// What the content is judged by.
enum Judge {
    Head(Box<WalHead>),
    Content(Box<Unheaded>),
}
