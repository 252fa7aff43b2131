//! A new identity file. One that takes another's place tells so in a comment, so that a rotation that was killed before the
//! configuration named it is gone on with instead of refused.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use age::secrecy::{ExposeSecret, SecretString};
use chrono::{DateTime, Utc};

use crate::{
    error::{Error, Result},
    seal::age::Identities,
};

/// Makes an identity, and writes it, durably, to a file that only we may read and that was not there. Gives back its
/// recipient.
pub fn write_new(path: &Path, now: DateTime<Utc>) -> Result<String> {
    let (text, recipient) = Identities::generate(now);
    write(path, text.expose_secret())?;
    Ok(recipient)
}

/// What stands before the recipient that an identity takes the place of.
const REPLACES: &str = "# takes the place of: ";

/// A rotation, as the file of the new identity tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// The new recipient.
    pub recipient: String,
    /// The one that it takes the place of.
    pub replaced: String,
}

impl Rotation {
    /// Makes an identity that takes the place of another, and writes it as [`write_new`] does.
    pub fn begin(path: &Path, replaced: &str, now: DateTime<Utc>) -> Result<Self> {
        let (text, recipient) = Identities::generate(now);
        let text = SecretString::from(format!("{REPLACES}{replaced}\n{}", text.expose_secret()));
        write(path, text.expose_secret())?;
        Ok(Self { recipient, replaced: replaced.to_owned() })
    }

    /// The rotation that this file was written for; `None` where there is no file, or one that was written otherwise.
    pub fn begun(path: &Path) -> Result<Option<Self>> {
        if !path.exists() {
            return Ok(None);
        }
        let text = SecretString::from(fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?);
        let replaced = text.expose_secret().lines().find_map(|line| line.strip_prefix(REPLACES)).map(str::to_owned);
        let Some(replaced) = replaced else { return Ok(None) };
        let recipient = Identities::read(path)?.recipients().texts().next();
        Ok(recipient.map(|recipient| Self { recipient, replaced }))
    }
}

/// Writes the text of an identity file.
fn write(path: &Path, text: &str) -> Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = Path::new(&name);
    let link = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        // A link never replaces what is there.
        fs::hard_link(temporary, path)
    };
    let written = link();
    // It may not have been made at all.
    let _ = fs::remove_file(temporary);
    written.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => {
            Error::refused(format!("{} is there already, and an identity is never overwritten", path.display()))
                .hint("what is encrypted to it could not be read any more; name another file with --output")
        }
        _ => Error::io("write", path, error),
    })?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(|e| Error::io("make durable", folder, e))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::error::Kind;

    #[test]
    fn an_identity_is_written_once_and_for_us_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("identity");
        let recipient = write_new(&path, DateTime::UNIX_EPOCH).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let texts: Vec<_> = Identities::read(&path).unwrap().recipients().texts().collect();
        assert_eq!(texts, [recipient]);
        let before = fs::read(&path).unwrap();
        assert_eq!(write_new(&path, DateTime::UNIX_EPOCH).unwrap_err().kind(), Kind::Refused);
        assert_eq!(fs::read(&path).unwrap(), before);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert_eq!(Rotation::begun(&path).unwrap(), None);
    }

    #[test]
    fn a_rotation_that_was_begun_is_told_from_other_identities() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("identity");
        assert_eq!(Rotation::begun(&path).unwrap(), None);
        let begun = Rotation::begin(&path, "age1old", DateTime::UNIX_EPOCH).unwrap();
        assert_eq!(Rotation::begun(&path).unwrap(), Some(begun.clone()));
        assert_eq!(begun.replaced, "age1old");
        assert_eq!(Rotation::begin(&path, "age1old", DateTime::UNIX_EPOCH).unwrap_err().kind(), Kind::Refused);
    }
}
