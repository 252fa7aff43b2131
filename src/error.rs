//! The one error type. Its few kinds say what the caller should do, not where the error arose;
//! its text says what happened, to which object, and (as the hint) the mend.
//!
//! Errors are returned and logged once, where they are handled. Messages are lower case without a
//! full stop. They never hold a secret: whoever wraps a foreign error makes sure of that.

use std::fmt;

/// The result of everything that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What the caller should do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The repository did not answer, or said "not now": try again later.
    Unavailable,
    /// The repository refused our credentials or rights, or the bucket is not there: trying again is of no
    /// use until somebody mends the configuration.
    Denied,
    /// Walden will not do this because data could be lost: a person decides.
    Refused,
    /// What was read is not what was written: look for another copy.
    Damaged,
    /// It is proven not to be there.
    NotFound,
    /// What was asked for means several things: ask again, and say which.
    Ambiguous,
    /// The request itself is wrong (a flag, a configuration key, a malformed name): correct it.
    Invalid,
    /// PostgreSQL, the operating system or a full disk stopped the work: mend that and repeat.
    Failed,
    /// The user interrupted the work.
    Interrupted,
    /// A bug in Walden.
    Internal,
}

/// An error: its kind, a message, perhaps a hint and the error beneath it.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    message: String,
    hint: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

macro_rules! constructors {
    ($($(#[$doc:meta])* $name:ident => $kind:ident,)*) => {
        impl Error {
            $($(#[$doc])* #[must_use] pub fn $name(message: impl Into<String>) -> Self { Self::new(Kind::$kind, message) })*
        }
    };
}

constructors! {
    /// An error of kind [`Kind::Unavailable`].
    unavailable => Unavailable,
    /// An error of kind [`Kind::Denied`].
    denied => Denied,
    /// An error of kind [`Kind::Refused`].
    refused => Refused,
    /// An error of kind [`Kind::Damaged`].
    damaged => Damaged,
    /// An error of kind [`Kind::NotFound`].
    not_found => NotFound,
    /// An error of kind [`Kind::Ambiguous`].
    ambiguous => Ambiguous,
    /// An error of kind [`Kind::Invalid`].
    invalid => Invalid,
    /// An error of kind [`Kind::Failed`].
    failed => Failed,
    /// An error of kind [`Kind::Internal`].
    internal => Internal,
}

impl Error {
    /// An error of this kind that says what happened, and to what.
    #[must_use]
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None, source: None }
    }

    /// Adds the mend. It is printed on a line of its own after `hint: `.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds the error beneath this one; its text is appended to the message.
    #[must_use]
    pub fn source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Puts `what: ` before the message; kind and hint stay.
    #[must_use]
    pub fn context(mut self, what: impl fmt::Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }

    /// What the caller should do.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The mend, when there is one to tell.
    #[must_use]
    pub fn hint_text(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// A failed operation of the operating system on `path`. A full disk is named as such.
    #[must_use]
    pub fn io(doing: &str, path: &std::path::Path, error: std::io::Error) -> Self {
        let full = error.raw_os_error() == Some(rustix::io::Errno::NOSPC.raw_os_error())
            || error.raw_os_error() == Some(rustix::io::Errno::DQUOT.raw_os_error());
        let made = Self::failed(format!("{doing} {}", path.display())).source(error);
        if full { made.hint(format!("free space on the file system that holds {}", path.display())) } else { made }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        let mut beneath = self.source.as_deref().map(|e| e as &dyn std::error::Error);
        while let Some(error) = beneath {
            write!(f, ": {error}")?;
            beneath = error.source();
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// An error that several are told of, one after the other.
#[derive(Clone, Debug)]
pub struct Told {
    kind: Kind,
    message: String,
    hint: Option<String>,
}

impl Told {
    /// That error, in its own words and in those of the ones beneath it.
    #[must_use]
    pub fn of(error: &Error) -> Self {
        Self { kind: error.kind, message: error.to_string(), hint: error.hint.clone() }
    }

    /// The error, for the next one.
    #[must_use]
    pub fn again(&self) -> Error {
        Error { kind: self.kind, message: self.message.clone(), hint: self.hint.clone(), source: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_tells_the_whole_chain_and_the_hint_apart() {
        let error = Error::unavailable("no answer from bucket \"b\"")
            .source(std::io::Error::other("connection reset"))
            .context("put wal/1")
            .hint("try again");
        assert_eq!(error.to_string(), "put wal/1: no answer from bucket \"b\": connection reset");
        assert_eq!(error.hint_text(), Some("try again"));
        assert_eq!(error.kind(), Kind::Unavailable);
    }

    #[test]
    fn a_full_disk_names_the_mend() {
        let full = std::io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error());
        let error = Error::io("write", std::path::Path::new("/repo/x"), full);
        assert_eq!(error.kind(), Kind::Failed);
        assert!(error.hint_text().is_some_and(|h| h.contains("free space")));
    }
}
