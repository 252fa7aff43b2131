//! To whom a repository is encrypted: new identities, and old objects for other recipients.

mod identity;
mod rewrap;
mod walk;

pub use identity::{Rotation, write_new};
pub use walk::{Rewrapped, Rewrapping, SealedTo, Survey, survey};
