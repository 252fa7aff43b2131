//! age files (`age-encryption.org/v1`): sealed to public recipients, opened with an identity, whole or any range of them.
//!
//! What locks the file's key is the `age` crate's; the header around it and the chunks behind it are written here, after
//! the specification (C2SP `age.md`), because three things are needed that the crate does not offer: a header that also
//! tells what the file holds to those without an identity, headers that are all of one length, so that a listing tells the
//! length of the content, and chunks that are opened one by one.

mod header;
mod keys;
mod outside;
mod payload;

pub use header::{Declared, HEADER, HEADER_LIMIT, Header, MAGIC, is_age};
pub use keys::{Identities, RECIPIENTS, Recipients};
pub use outside::Outside;
pub use payload::{CHUNK, NONCE, Opened, SEALED_CHUNK, Sealer, content_length, sealed_length};

#[cfg(test)]
mod tests;
