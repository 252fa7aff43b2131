//! The payload of an age file: a nonce, then chunks of 64 KiB, each with a tag that also tells which of them it is and
//! whether it is the last one.

use std::ops::Range;

use age::secrecy::ExposeSecret;
use age_core::format::FileKey;
use ring::{aead, hkdf};
use rustix::rand::{GetRandomFlags, getrandom};

use super::{
    header::{self, Declared, HEADER, Header},
    keys::{Identities, Recipients},
};
use crate::{
    error::{Error, Result},
    seal::blake3,
};

/// Bytes of content in a chunk; the last one can have fewer.
pub const CHUNK: usize = 64 << 10;
/// Bytes of a chunk with its tag.
pub const SEALED_CHUNK: usize = CHUNK + TAG;
/// Bytes of the nonce in front of the chunks.
pub const NONCE: usize = 16;
const TAG: usize = 16;

/// Bytes that the system made up. They can be keys.
pub(super) fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    // Up to 256 bytes come whole once the system has any entropy.
    match getrandom(&mut bytes, GetRandomFlags::empty()) {
        Ok(count) if count == N => Ok(bytes),
        Ok(_) => Err(Error::failed("the system gave too few random bytes")),
        Err(error) => Err(Error::failed("the system gave no random bytes").source(error)),
    }
}

/// How many chunks hold so many bytes of content.
fn chunks(content: u64) -> u64 {
    content.div_ceil(CHUNK as u64).max(1)
}

/// The length of a file whose header has `header` bytes and whose content has `content`.
#[must_use]
pub fn sealed_length(header: usize, content: u64) -> u64 {
    (header + NONCE) as u64 + content + chunks(content) * TAG as u64
}

/// The length of the content of a file of so many bytes whose header has `header`; `None` where no file is that long.
#[must_use]
pub fn content_length(header: usize, sealed: u64) -> Option<u64> {
    let payload = sealed.checked_sub((header + NONCE) as u64)?;
    let content = payload.checked_sub(payload.div_ceil(SEALED_CHUNK as u64) * TAG as u64)?;
    (sealed_length(header, content) == sealed).then_some(content)
}

fn payload_key(key: &FileKey, nonce: &[u8]) -> Result<aead::LessSafeKey> {
    let secret = hkdf::Salt::new(hkdf::HKDF_SHA256, nonce).extract(key.expose_secret());
    let okm = secret.expand(&[b"payload"], &aead::CHACHA20_POLY1305).map_err(|_| Error::internal("derive a key"))?;
    Ok(aead::LessSafeKey::new(okm.into()))
}

fn nonce(chunk: u64, last: bool) -> aead::Nonce {
    let mut bytes = [0; aead::NONCE_LEN];
    bytes[3..11].copy_from_slice(&chunk.to_be_bytes());
    bytes[11] = u8::from(last);
    aead::Nonce::assume_unique_for_key(bytes)
}

/// Seals a file as its content comes.
pub struct Sealer {
    key: aead::LessSafeKey,
    chunk: u64,
    /// At most a chunk: whether it is the last one is not known yet.
    pending: Vec<u8>,
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sealer").field("chunk", &self.chunk).finish_non_exhaustive()
    }
}

impl Sealer {
    /// A file for these recipients; its beginning is written to `to`.
    pub fn new(recipients: &Recipients, declared: Declared, to: &mut Vec<u8>) -> Result<Self> {
        let key = header::new_key()?;
        to.extend_from_slice(&header::write(recipients, &key, declared, HEADER)?);
        Self::behind_header(&key, to)
    }

    /// Seals a whole file, whose header then also tells its length and its hash.
    pub fn seal(recipients: &Recipients, declared: Declared, content: &[u8]) -> Result<Vec<u8>> {
        let length = sealed_length(HEADER, content.len() as u64);
        let mut to = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
        to.resize(HEADER, 0);
        let key = header::new_key()?;
        let mut sealer = Self::behind_header(&key, &mut to)?;
        sealer.update(content, &mut to)?;
        sealer.finish(&mut to)?;
        let (length, sealed) = (Some(content.len() as u64), Some(blake3(&to[HEADER..])));
        let header = header::write(recipients, &key, Declared { length, sealed, ..declared }, HEADER)?;
        to[..HEADER].copy_from_slice(&header);
        Ok(to)
    }

    fn behind_header(key: &FileKey, to: &mut Vec<u8>) -> Result<Self> {
        let nonce: [u8; NONCE] = random()?;
        to.extend_from_slice(&nonce);
        Ok(Self { key: payload_key(key, &nonce)?, chunk: 0, pending: Vec::new() })
    }

    /// Takes content, and writes the chunks that are complete.
    pub fn update(&mut self, mut content: &[u8], to: &mut Vec<u8>) -> Result<()> {
        while self.pending.len() + content.len() > CHUNK {
            let (fresh, rest) = content.split_at(CHUNK - self.pending.len());
            let pending = std::mem::take(&mut self.pending);
            self.write(&pending, fresh, false, to)?;
            content = rest;
        }
        self.pending.extend_from_slice(content);
        Ok(())
    }

    /// Writes the last chunk.
    pub fn finish(mut self, to: &mut Vec<u8>) -> Result<()> {
        let pending = std::mem::take(&mut self.pending);
        self.write(&pending, &[], true, to)
    }

    fn write(&mut self, first: &[u8], second: &[u8], last: bool, to: &mut Vec<u8>) -> Result<()> {
        let begin = to.len();
        to.extend_from_slice(first);
        to.extend_from_slice(second);
        let sealed = self.key.seal_in_place_separate_tag(nonce(self.chunk, last), aead::Aad::empty(), &mut to[begin..]);
        to.extend_from_slice(sealed.map_err(|_| Error::internal("seal a chunk"))?.as_ref());
        self.chunk += 1;
        Ok(())
    }
}

/// A file whose header was opened: its chunks can be, one by one.
pub struct Opened {
    key: aead::LessSafeKey,
    /// Where the chunks begin.
    begin: u64,
    /// The length of the whole file in bytes.
    sealed: u64,
    /// The length of its content in bytes.
    content: u64,
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opened").field("content", &self.content).finish_non_exhaustive()
    }
}

impl Opened {
    /// Opens the header of a file of `sealed` bytes. `nonce` is what follows the header.
    pub fn new(header: &Header, identities: &Identities, nonce: &[u8; NONCE], sealed: u64) -> Result<Self> {
        let key = header.unlock(identities)?;
        let content = told_length(header, sealed)?;
        Ok(Self { key: payload_key(&key, nonce)?, begin: (header.length() + NONCE) as u64, sealed, content })
    }

    /// The length of its content in bytes.
    #[must_use]
    pub fn content(&self) -> u64 {
        self.content
    }

    /// The chunks that hold these bytes of the content; none for an empty range.
    #[must_use]
    pub fn chunks(&self, range: &Range<u64>) -> Range<u64> {
        let end = range.end.min(self.content);
        if range.start >= end {
            return 0..0;
        }
        range.start / CHUNK as u64..end.div_ceil(CHUNK as u64)
    }

    /// All of its chunks.
    #[must_use]
    pub fn all(&self) -> Range<u64> {
        0..chunks(self.content)
    }

    /// Where these chunks lie in the file.
    #[must_use]
    pub fn place(&self, chunks: &Range<u64>) -> Range<u64> {
        let at = |chunk: u64| (self.begin + chunk * SEALED_CHUNK as u64).min(self.sealed);
        at(chunks.start)..at(chunks.end)
    }

    /// Opens a chunk where it lies; gives back how many of the bytes are its content.
    pub fn open(&self, chunk: u64, bytes: &mut [u8]) -> Result<usize> {
        let last = chunk + 1 == chunks(self.content);
        match self.key.open_in_place(nonce(chunk, last), aead::Aad::empty(), bytes) {
            Ok(content) => Ok(content.len()),
            Err(_) => {
                let Range { start, end } = self.place(&(chunk..chunk + 1));
                Err(Error::damaged(format!("its bytes {start} to {end} are not what was sealed")))
            }
        }
    }
}

/// The length of the content of a file of so many bytes, held against what the header says.
pub(super) fn told_length(header: &Header, sealed: u64) -> Result<u64> {
    let content = content_length(header.length(), sealed);
    match (content, header.declared().length) {
        (None, _) => Err(Error::damaged(format!("it ends in the middle: no sealed object is {sealed} bytes long"))),
        (Some(content), Some(told)) if content != told => Err(Error::damaged(format!(
            "it is {sealed} bytes long where its header says {}",
            sealed_length(header.length(), told)
        ))),
        (Some(content), _) => Ok(content),
    }
}

impl Header {
    /// The length of the content of a file with this header that is `sealed` bytes long; an error where it was cut short
    /// or has grown, as far as the header can tell.
    pub fn content_length(&self, sealed: u64) -> Result<u64> {
        told_length(self, sealed)
    }
}
