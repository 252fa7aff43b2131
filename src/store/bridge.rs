//! Bridges between the asynchronous stores and the pipelines, which are ordinary threads that read and write:
//! a [`Body`] as [`Read`], an [`Upload`] as [`Write`].
//!
//! Use them on threads of their own (`spawn_blocking`), never on one that drives the runtime.

use std::io::{self, Read, Write};

use bytes::{Buf, Bytes, BytesMut};
use tokio::runtime::Handle;

use super::{Body, Put, Upload};
use crate::error::{Error, Result};

/// Wraps an error so that it can pass through `std::io`; [`from_io`] takes it out again.
#[must_use]
pub fn into_io(error: Error) -> io::Error {
    io::Error::other(error)
}

/// Takes out the error that [`into_io`] wrapped; `otherwise` makes one of an error of the operating system's or a codec's.
pub fn from_io(error: io::Error, otherwise: impl FnOnce(io::Error) -> Error) -> Error {
    error.downcast::<Error>().unwrap_or_else(otherwise)
}

/// Reads a body on a thread.
pub struct BodyReader {
    body: Box<dyn Body>,
    runtime: Handle,
    chunk: Bytes,
}

impl std::fmt::Debug for BodyReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BodyReader").finish_non_exhaustive()
    }
}

impl BodyReader {
    /// Reads `body`, which `runtime` drives.
    #[must_use]
    pub fn new(body: Box<dyn Body>, runtime: Handle) -> Self {
        Self { body, runtime, chunk: Bytes::new() }
    }
}

impl Read for BodyReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.chunk.is_empty() {
            match self.runtime.block_on(self.body.chunk()).map_err(into_io)? {
                Some(chunk) => self.chunk = chunk,
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.chunk.len());
        self.chunk.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

/// Pieces are gathered up to this many bytes before they go to the store.
const GATHER: usize = 1 << 20;

/// Writes an upload on a thread. Nothing exists until [`UploadWriter::finish`] has answered.
pub struct UploadWriter {
    upload: Box<dyn Upload>,
    runtime: Handle,
    gathered: BytesMut,
}

impl std::fmt::Debug for UploadWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UploadWriter").finish_non_exhaustive()
    }
}

impl UploadWriter {
    /// Writes to `upload`, which `runtime` drives.
    #[must_use]
    pub fn new(upload: Box<dyn Upload>, runtime: Handle) -> Self {
        Self { upload, runtime, gathered: BytesMut::with_capacity(GATHER) }
    }

    fn send(&mut self) -> Result<()> {
        if self.gathered.is_empty() {
            return Ok(());
        }
        let bytes = self.gathered.split().freeze();
        self.runtime.block_on(self.upload.write(bytes))
    }

    /// Makes the object appear.
    pub fn finish(mut self) -> Result<Put> {
        self.send()?;
        self.runtime.block_on(self.upload.finish())
    }
}

impl Write for UploadWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.gathered.extend_from_slice(bytes);
        if self.gathered.len() >= GATHER {
            self.send().map_err(into_io)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
