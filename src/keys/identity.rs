//! A new identity file.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use age::secrecy::ExposeSecret;
use chrono::{DateTime, Utc};

use crate::{
    error::{Error, Result},
    seal::age::Identities,
};

/// Makes an identity, and writes it, durably, to a file that only we may read and that was not there. Gives back its
/// recipient.
pub fn write_new(path: &Path, now: DateTime<Utc>) -> Result<String> {
    let (text, recipient) = Identities::generate(now);
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = Path::new(&name);
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(temporary)?;
        file.write_all(text.expose_secret().as_bytes())?;
        file.sync_all()?;
        // A link never replaces what is there.
        fs::hard_link(temporary, path)
    };
    let written = write();
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
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(|e| Error::io("make durable", folder, e))?;
    Ok(recipient)
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
    }
}
