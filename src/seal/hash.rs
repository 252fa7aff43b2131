//! BLAKE3, the hash of all bulk content; and SHA-256, which people have a program for.

use std::{
    fmt::{self, Write as _},
    io,
    str::FromStr,
};

use serde::{Deserialize, Serialize, de};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// A BLAKE3 hash of 256 bits, written as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Blake3([u8; 32]);

/// The hash of these bytes.
#[must_use]
pub fn blake3(bytes: &[u8]) -> Blake3 {
    Blake3(*::blake3::hash(bytes).as_bytes())
}

/// SHA-256 in hexadecimal digits, as `sha256sum` prints it.
#[must_use]
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut digits, byte| {
        _ = write!(digits, "{byte:02x}");
        digits
    })
}

impl From<&::blake3::Hasher> for Blake3 {
    fn from(hasher: &::blake3::Hasher) -> Self {
        Self(*hasher.finalize().as_bytes())
    }
}

impl From<[u8; 32]> for Blake3 {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl Blake3 {
    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first eight digits, for people.
    #[must_use]
    pub fn short(&self) -> String {
        self.to_string()[..8].to_owned()
    }
}

impl fmt::Display for Blake3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Blake3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Blake3 {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        ::blake3::Hash::from_hex(text)
            .map(|hash| Self(*hash.as_bytes()))
            .map_err(|_| Error::damaged(format!("\"{text}\" is not a BLAKE3 hash")))
    }
}

impl Serialize for Blake3 {
    fn serialize<S: serde::Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Blake3 {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(from)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// Hashes and counts what is read through it.
#[derive(Debug)]
pub struct HashReader<R> {
    inner: R,
    hasher: ::blake3::Hasher,
    length: u64,
}

impl<R: io::Read> HashReader<R> {
    /// Reads from `inner`.
    pub fn new(inner: R) -> Self {
        Self { inner, hasher: ::blake3::Hasher::new(), length: 0 }
    }

    /// The hash and the number of the bytes read so far.
    pub fn digest(&self) -> (Blake3, u64) {
        ((&self.hasher).into(), self.length)
    }
}

impl<R: io::Read> io::Read for HashReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.length += count as u64;
        Ok(count)
    }
}

/// Hashes and counts what is written through it.
#[derive(Debug)]
pub struct HashWriter<W> {
    inner: W,
    hasher: ::blake3::Hasher,
    length: u64,
}

impl<W> HashWriter<W> {
    /// Writes to `inner`.
    pub fn new(inner: W) -> Self {
        Self { inner, hasher: ::blake3::Hasher::new(), length: 0 }
    }

    /// The hash and the number of the bytes written so far.
    pub fn digest(&self) -> (Blake3, u64) {
        ((&self.hasher).into(), self.length)
    }

    /// What was written to.
    pub fn into_inner(self) -> W {
        self.inner
    }
}

impl<W: io::Write> io::Write for HashWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.length += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_read_as_it_is_written() {
        let hash = blake3(b"walden");
        assert_eq!(hash.to_string().parse::<Blake3>().unwrap(), hash);
        assert_eq!(serde_json::from_str::<Blake3>(&serde_json::to_string(&hash).unwrap()).unwrap(), hash);
        assert!("zz".parse::<Blake3>().is_err());
    }
}
