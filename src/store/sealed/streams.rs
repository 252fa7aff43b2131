//! Bytes on their way: sealed as they are written, opened as they are read.

use std::{ops::Range, sync::Arc};

use bytes::{Bytes, BytesMut};

use super::{Declares, declared};
use crate::{
    error::{Error, Result},
    seal::{
        HEAD_LIMIT,
        age::{Opened, Recipients, Sealer},
    },
    store::{Answer, Body, Key, Put, Upload},
};

/// The first bytes of a body, and the body behind them, up to a length.
pub(super) struct Rest {
    pub(super) front: Bytes,
    pub(super) body: Box<dyn Body>,
    pub(super) left: u64,
}

impl Body for Rest {
    fn chunk(&mut self) -> Answer<'_, Option<Bytes>> {
        Box::pin(async move {
            if self.left == 0 {
                return Ok(None);
            }
            let next = match self.front.is_empty() {
                false => Some(std::mem::take(&mut self.front)),
                true => self.body.chunk().await?,
            };
            Ok(next.map(|mut bytes| {
                bytes.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
                self.left -= bytes.len() as u64;
                bytes
            }))
        })
    }
}

/// Chunks that are opened as they come.
pub(super) struct Opening {
    pub(super) key: Key,
    pub(super) opened: Arc<Opened>,
    pub(super) body: Box<dyn Body>,
    /// What came and is not opened yet.
    pub(super) pending: BytesMut,
    /// Those that are still to be opened.
    pub(super) chunks: Range<u64>,
    /// Bytes of the content that are not wanted, and then how many are.
    pub(super) skip: u64,
    pub(super) left: u64,
}

impl Body for Opening {
    fn chunk(&mut self) -> Answer<'_, Option<Bytes>> {
        Box::pin(async move {
            while let Some(chunk) = self.chunks.next() {
                let place = self.opened.place(&(chunk..chunk + 1));
                // A chunk has 64 KiB.
                let length = (place.end - place.start) as usize;
                while self.pending.len() < length {
                    let more = self.body.chunk().await?;
                    let more = more.ok_or_else(|| Error::damaged(format!("{} ends in the middle", self.key)))?;
                    self.pending.extend_from_slice(&more);
                }
                let mut bytes = self.pending.split_to(length);
                let content = self.opened.open(chunk, &mut bytes).map_err(|e| super::damaged(&self.key, e))?;
                bytes.truncate(content);
                let skipped = self.skip.min(content as u64);
                let mut bytes = bytes.freeze().split_off(skipped as usize);
                bytes.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
                self.skip -= skipped;
                self.left -= bytes.len() as u64;
                if !bytes.is_empty() {
                    return Ok(Some(bytes));
                }
            }
            Ok(None)
        })
    }
}

/// An upload that is sealed as it is written, by the thread that writes.
pub(super) struct Sealing {
    pub(super) upload: Box<dyn Upload>,
    pub(super) recipients: Recipients,
    pub(super) declares: Declares,
    pub(super) state: State,
}

pub(super) enum State {
    /// What was written, until there is enough of it to tell what it declares.
    Gathering(Vec<u8>),
    Sealing(Box<Sealer>),
}

impl Sealing {
    /// Takes content, and gives back what is to be written of it.
    fn seal(&mut self, content: &[u8], is_all: bool) -> Result<Vec<u8>> {
        let mut sealed = Vec::with_capacity(content.len() + content.len() / 1024);
        match &mut self.state {
            State::Sealing(sealer) => sealer.update(content, &mut sealed)?,
            State::Gathering(front) => {
                front.extend_from_slice(content);
                if front.len() < HEAD_LIMIT + 8 && !is_all {
                    return Ok(sealed);
                }
                let mut sealer = Sealer::new(&self.recipients, declared(self.declares, front), &mut sealed)?;
                sealer.update(front, &mut sealed)?;
                self.state = State::Sealing(Box::new(sealer));
            }
        }
        Ok(sealed)
    }
}

impl Upload for Sealing {
    fn write(&mut self, bytes: Bytes) -> Answer<'_, ()> {
        Box::pin(async move {
            let sealed = self.seal(&bytes, false)?;
            if sealed.is_empty() { Ok(()) } else { self.upload.write(sealed.into()).await }
        })
    }

    fn finish(mut self: Box<Self>) -> Answer<'static, Put> {
        Box::pin(async move {
            let gathered = matches!(self.state, State::Gathering(_));
            let mut sealed = if gathered { self.seal(&[], true)? } else { Vec::new() };
            let Self { mut upload, state, .. } = *self;
            if let State::Sealing(sealer) = state {
                sealer.finish(&mut sealed)?;
            }
            upload.write(sealed.into()).await?;
            upload.finish().await
        })
    }
}
