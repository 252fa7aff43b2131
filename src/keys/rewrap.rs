//! One object for other recipients: its header is made anew, and what follows stays as it is, byte for byte.
//!
//! Every chunk of it is opened on the way: an object takes the place of the old one only when it was found whole, and
//! only if the old one is still the one that was read.

use std::{ops::Range, sync::Arc};

use bytes::{Bytes, BytesMut};

use crate::{
    error::{Error, Kind, Result},
    pace::Throttle,
    repository::join,
    seal::age::{HEADER, HEADER_LIMIT, Header, Identities, NONCE, Opened, Recipients, is_age},
    store::{Download, Key, Put, Store},
};

/// How often an object is looked at again that was replaced by somebody else meanwhile.
const TRIES: usize = 3;

/// What became of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Object {
    /// It is not encrypted.
    Plain,
    /// It was for these recipients already.
    Already,
    /// It is now.
    Rewrapped,
    /// It was removed meanwhile.
    Gone,
}

/// From whom to whom.
pub struct Change<'a> {
    /// What opens the old objects.
    pub identities: &'a Identities,
    /// For whom they are to be.
    pub recipients: &'a Recipients,
    /// How fast.
    pub throttle: &'a Arc<Throttle>,
}

/// The header of an object as it is stored; `None` where it is not encrypted. What was read with it begins with it.
pub async fn header(store: &dyn Store, key: &Key) -> Result<Option<(Header, Bytes, u64)>> {
    for end in [HEADER + NONCE, HEADER_LIMIT + NONCE] {
        let mut download = store.get(key, Some(0..end as u64)).await?;
        let front = read(&mut download, end).await?;
        if !is_age(&front) {
            return Ok(None);
        }
        if let Some(header) = Header::parse(&front)?
            && front.len() >= header.length() + NONCE
        {
            return Ok(Some((header, front, download.length)));
        }
    }
    Err(Error::damaged("it ends in the middle of its age header"))
}

/// The first bytes of a body, `wanted` of them or a few more; fewer when there are no more.
async fn read(download: &mut Download, wanted: usize) -> Result<Bytes> {
    let mut front = BytesMut::new();
    while front.len() < wanted {
        match download.body.chunk().await? {
            Some(chunk) => front.extend_from_slice(&chunk),
            None => break,
        }
    }
    Ok(front.freeze())
}

impl Change<'_> {
    /// Has the object, as it is stored, be for the new recipients.
    pub async fn make(&self, store: &dyn Store, key: &Key) -> Result<Object> {
        for _ in 0..TRIES {
            match self.attempt(store, key).await {
                Err(error) if error.kind() == Kind::NotFound => return Ok(Object::Gone),
                Ok(None) => {}
                Ok(Some(done)) => return Ok(done),
                Err(error) => return Err(error),
            }
        }
        Err(Error::failed("it is being replaced by somebody else"))
    }

    /// `None` when it was replaced by somebody else meanwhile.
    async fn attempt(&self, store: &dyn Store, key: &Key) -> Result<Option<Object>> {
        let Some((header, front, length)) = header(store, key).await? else { return Ok(Some(Object::Plain)) };
        // That it says so may be the only thing that we can read of it.
        if same(header.recipients(), &self.recipients.short()) {
            return Ok(Some(Object::Already));
        }
        let opened = self.open(&header, &front, length)?;
        let tag = store.tag(key).await?;
        let mut download = store.get(key, None).await?;
        let begin = header.length() + NONCE;
        let read = read(&mut download, begin).await?;
        if download.length != length || read[..begin.min(read.len())] != front[..begin] {
            return Ok(None);
        }
        let mut upload = store.replace(key, &tag).await.map_err(held)?;
        upload.write(header.rewrapped(self.identities, self.recipients)?.into()).await.map_err(held)?;
        upload.write(read.slice(header.length()..)).await.map_err(held)?;
        let mut proof = Proof { chunks: opened.all(), opened, pending: BytesMut::new() };
        proof.feed(&read[begin..])?;
        while let Some(bytes) = download.body.chunk().await? {
            let (throttle, count) = (self.throttle.clone(), bytes.len() as u64);
            join(tokio::task::spawn_blocking(move || throttle.pass(count)).await)?;
            proof.feed(&bytes)?;
            upload.write(bytes).await.map_err(held)?;
        }
        proof.end()?;
        Ok(match upload.finish().await.map_err(held)? {
            Put::Created => Some(Object::Rewrapped),
            Put::Exists => None,
        })
    }

    fn open(&self, header: &Header, front: &[u8], length: u64) -> Result<Opened> {
        let nonce = front[header.length()..].first_chunk();
        let nonce = nonce.ok_or_else(|| Error::internal("a header without its nonce"))?;
        Opened::new(header, self.identities, nonce, length)
    }
}

/// What may be read and not be replaced is locked perhaps: that is no reason to leave the others as they are.
fn held(error: Error) -> Error {
    match error.kind() {
        Kind::Denied => Error::refused(format!("the repository does not let it be replaced: {error}")),
        _ => error,
    }
}

/// Whether both name the same, in whatever order.
fn same(one: &[String], other: &[String]) -> bool {
    let sorted = |names: &[String]| {
        let mut names = names.to_vec();
        names.sort_unstable();
        names
    };
    sorted(one) == sorted(other)
}

/// Opens the chunks of an object as they come.
struct Proof {
    opened: Opened,
    chunks: Range<u64>,
    pending: BytesMut,
}

impl Proof {
    fn feed(&mut self, bytes: &[u8]) -> Result<()> {
        self.pending.extend_from_slice(bytes);
        while !self.chunks.is_empty() {
            let chunk = self.chunks.start;
            let place = self.opened.place(&(chunk..chunk + 1));
            // A chunk has 64 KiB.
            let length = (place.end - place.start) as usize;
            if self.pending.len() < length {
                break;
            }
            self.opened.open(chunk, &mut self.pending.split_to(length))?;
            self.chunks.start += 1;
        }
        Ok(())
    }

    fn end(self) -> Result<()> {
        match self.chunks.is_empty() && self.pending.is_empty() {
            true => Ok(()),
            false => Err(Error::damaged("it is not as long as it says")),
        }
    }
}
