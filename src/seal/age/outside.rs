//! A sealed file seen from outside, by somebody who has no identity.

use super::header::{Declared, Header};
use crate::{
    error::{Error, Result},
    seal::Blake3,
};

/// Proves a sealed file as far as that can be done without opening it: its header can be read, its length is one that
/// such a file has, and where the header tells a hash of what follows, it is that.
#[derive(Debug, Default)]
pub struct Outside {
    /// What came, until the header is whole.
    front: Vec<u8>,
    header: Option<Header>,
    hasher: ::blake3::Hasher,
    length: u64,
}

impl Outside {
    /// Takes the bytes of the file as they come.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<()> {
        self.length += bytes.len() as u64;
        if self.header.is_some() {
            self.hasher.update(bytes);
            return Ok(());
        }
        self.front.extend_from_slice(bytes);
        self.header = Header::parse(&self.front)?;
        if let Some(header) = &self.header {
            self.hasher.update(&std::mem::take(&mut self.front)[header.length()..]);
        }
        Ok(())
    }

    /// Judges the whole file; gives back what it declares.
    pub fn finish(self) -> Result<Declared> {
        let header = self.header.ok_or_else(|| Error::damaged("it ends in the middle of its age header"))?;
        header.content_length(self.length)?;
        let declared = header.declared();
        match declared.sealed {
            Some(told) if told != Blake3::from(&self.hasher) => {
                Err(Error::damaged("what follows its age header does not have the hash that it tells"))
            }
            _ => Ok(declared),
        }
    }
}
