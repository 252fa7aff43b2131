//! The wish to stop (Ctrl-C, SIGTERM) as it reaches long work.
//!
//! Work that does nothing about it is dropped where it waits, which is safe everywhere: every write is
//! temporary until its last step. Work that has something to tidy up listens, and is given time to.

use tokio::sync::watch;

use crate::error::{Error, Kind, Result};

/// The end that makes the wish. There is one in a process.
#[derive(Debug)]
pub struct Interrupter(watch::Sender<bool>);

/// The end that hears it. While one of these lives, its owner promises to stop by itself.
#[derive(Clone, Debug)]
pub struct Interrupt(watch::Receiver<bool>);

impl Interrupter {
    /// Nobody has asked yet.
    #[must_use]
    pub fn new() -> Self {
        Self(watch::Sender::new(false))
    }

    /// Somebody who will stop by itself when asked.
    #[must_use]
    pub fn listen(&self) -> Interrupt {
        Interrupt(self.0.subscribe())
    }

    /// Asks everybody to stop, now and from now on.
    pub fn ask(&self) {
        self.0.send_replace(true);
    }

    /// Whether somebody has promised to stop by itself.
    #[must_use]
    pub fn is_heard(&self) -> bool {
        self.0.receiver_count() > 0
    }
}

impl Default for Interrupter {
    fn default() -> Self {
        Self::new()
    }
}

impl Interrupt {
    /// Whether to stop; for loops in threads.
    #[must_use]
    pub fn is_asked(&self) -> bool {
        *self.0.borrow()
    }

    /// An error of kind [`Kind::Interrupted`] once somebody asked: `interrupt.check()?` in a loop.
    pub fn check(&self) -> Result<()> {
        if self.is_asked() { Err(Self::error()) } else { Ok(()) }
    }

    /// Waits until somebody asks; for `select!`.
    pub async fn asked(&mut self) {
        // An error means that the asking end is gone: then nobody will ever ask.
        if self.0.wait_for(|asked| *asked).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// The error that says so.
    #[must_use]
    pub fn error() -> Error {
        Error::new(Kind::Interrupted, "interrupted")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_listener_hears_it_before_and_after() {
        let interrupter = Interrupter::new();
        assert!(!interrupter.is_heard());
        let mut early = interrupter.listen();
        assert!(interrupter.is_heard() && early.check().is_ok());
        interrupter.ask();
        early.asked().await;
        assert_eq!(early.check().unwrap_err().kind(), Kind::Interrupted);
        assert!(interrupter.listen().is_asked());
        drop(early);
        assert!(!interrupter.is_heard());
    }
}
