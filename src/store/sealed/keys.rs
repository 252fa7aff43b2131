//! The keys of a store: to whom it seals, and where the identity lies that opens.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    error::{Error, Kind, Result},
    seal::age::{Header, Identities, NONCE, Opened, Recipients},
};

/// Recipients, and an identity file that is read when it is needed first: who only writes needs none, and works on while
/// it is away.
#[derive(Debug, Default)]
pub struct Keys {
    recipients: Recipients,
    identity_file: Option<PathBuf>,
    read: Mutex<Option<Arc<Identities>>>,
}

impl Keys {
    /// Keys of which either may be missing.
    #[must_use]
    pub fn new(recipients: Recipients, identity_file: Option<PathBuf>) -> Self {
        Self { recipients, identity_file, read: Mutex::default() }
    }

    /// To whom new objects are sealed.
    #[must_use]
    pub fn recipients(&self) -> &Recipients {
        &self.recipients
    }

    /// Whether sealed objects can be opened, if the file is what it should be.
    #[must_use]
    pub fn can_open(&self) -> bool {
        self.identity_file.is_some()
    }

    /// Whether there is anything about encryption here.
    #[must_use]
    pub fn are_given(&self) -> bool {
        self.can_open() || !self.recipients.is_empty()
    }

    /// The identities, as the file had them when it was read.
    pub fn identities(&self) -> Result<Arc<Identities>> {
        let known = self.known();
        match known {
            Some(known) => Ok(known),
            None => self.fresh(),
        }
    }

    /// Opens the header of an object of `sealed` bytes.
    pub(super) fn open(&self, header: &Header, nonce: &[u8; NONCE], sealed: u64) -> Result<Opened> {
        if !self.can_open() {
            return Err(Error::refused(format!(
                "it is encrypted to {}, and no identity is given here",
                header.sealed_to()
            ))
            .hint(
                "set identity_file under [encryption] in walden.toml, or WALDEN_ENCRYPTION_IDENTITY_FILE, to the file \
                     with the identity of one of these recipients",
            ));
        }
        if let Some(known) = self.known() {
            match Opened::new(header, &known, nonce, sealed) {
                // The file may hold other identities by now.
                Err(error) if error.kind() == Kind::Refused => {}
                opened => return opened,
            }
        }
        Opened::new(header, &*self.fresh()?, nonce, sealed)
    }

    fn known(&self) -> Option<Arc<Identities>> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn fresh(&self) -> Result<Arc<Identities>> {
        let file = self.identity_file.as_deref().ok_or_else(|| Error::refused("no identity is given here"))?;
        let fresh = Arc::new(Identities::read(file)?);
        *self.read.lock().unwrap_or_else(PoisonError::into_inner) = Some(fresh.clone());
        Ok(fresh)
    }
}
