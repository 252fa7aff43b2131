//! The recovery kit: one file with what is needed when the machine is gone. The configuration and the files that belong
//! to it, the repositories' addresses, the public recipients, and if asked the identity and the credentials.
//!
//! A kit is `.tar.zst`, or `.tar.zst.age` where it is locked: `age -d | zstd -d | tar x` opens it without Walden. Its
//! first member is `manifest.json` ([`Manifest`]), which names the others with their SHA-256. A kit that holds a secret
//! is locked, with a passphrase or to recipients, or it is not made. [`gather()`] makes the contents, [`envelope`] the
//! file, [`paper`] and [`page`] what is printed; [`stored`] finds those that lie in a repository; [`plan`] and [`carry_out`]
//! put everything onto another host.

pub mod envelope;
mod gather;
pub mod manifest;
mod merge;
pub mod page;
pub mod paper;
pub mod passphrase;
mod place;
mod secrets;
pub mod stored;

pub use self::{
    envelope::{Key, Lock, Locked, Opened},
    gather::{Gathered, Wish, gather},
    manifest::{Contents, Manifest, Member, Missing, Purpose},
    place::{Deed, How, Owner, Step, Target, carry_out, plan, write_new},
};
