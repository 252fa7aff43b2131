//! Where PostgreSQL's programs of a major version are.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::Version;
use crate::error::{Error, Result};

/// The environment variable that names directories of PostgreSQL's programs, separated by colons, one for each
/// major version that is needed. They are looked at first.
pub const BIN_VARIABLE: &str = "WALDEN_PG_BIN";

/// The major version of a data directory, by its file `PG_VERSION`.
pub fn version_of(pgdata: &Path) -> Result<Version> {
    let path = pgdata.join("PG_VERSION");
    let text = fs::read_to_string(&path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::not_found(format!("{} is missing", path.display()))
            .hint(format!("{} is no data directory of PostgreSQL", pgdata.display())),
        _ => Error::io("read", &path, e),
    })?;
    Version::from_pg_version(&text)
}

/// The directory with `postgres` of that major version: the first that fits of `WALDEN_PG_BIN`, `PATH`, and the places
/// where Debian's and PGDG's packages put it.
pub fn bin_directory(version: Version) -> Result<PathBuf> {
    let listed =
        |variable: &str| -> Vec<PathBuf> { env::split_paths(&env::var_os(variable).unwrap_or_default()).collect() };
    let packaged = [format!("/usr/lib/postgresql/{version}/bin"), format!("/usr/pgsql-{version}/bin")];
    let mut candidates = listed(BIN_VARIABLE);
    candidates.extend(listed("PATH"));
    candidates.extend(packaged.iter().map(PathBuf::from));
    let found = candidates.into_iter().find(|directory| version_in(directory) == Some(version)).map(|directory| {
        // A link to one program has its companions where it leads.
        let program = fs::canonicalize(directory.join("postgres")).ok();
        program.and_then(|program| program.parent().map(Path::to_path_buf)).unwrap_or(directory)
    });
    found.ok_or_else(|| {
        Error::not_found(format!("the programs of PostgreSQL {version} are not on this machine")).hint(format!(
            "install the server package of PostgreSQL {version}, or name the directory of its programs in {BIN_VARIABLE}"
        ))
    })
}

/// The major version of the `postgres` in that directory.
fn version_in(directory: &Path) -> Option<Version> {
    let major: String = version_told(directory)?.chars().take_while(char::is_ascii_digit).collect();
    major.parse().ok().map(Version)
}

/// The version of the `postgres` in that directory as it tells it: `17.11`, `19beta1`.
pub(super) fn version_told(directory: &Path) -> Option<String> {
    let program = directory.join("postgres");
    if directory.as_os_str().is_empty() || !program.is_file() {
        return None;
    }
    // "postgres (PostgreSQL) 17.11 (Debian ...)"; this much PostgreSQL says to root, too.
    let output = Command::new(&program).arg("--version").output().ok().filter(|o| o.status.success())?;
    let text = String::from_utf8(output.stdout).ok()?;
    let version = text.split_once("(PostgreSQL) ")?.1.split_whitespace().next()?;
    Some(version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_program_itself_tells_its_version() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(version_in(directory.path()), None);
        let program = directory.path().join("postgres");
        for (said, version) in [
            ("postgres (PostgreSQL) 17.11 (Debian 17.11-1)", Some(Version(17))),
            ("postgres (PostgreSQL) 19beta1", Some(Version(19))),
            ("something else", None),
        ] {
            // Not written and run in one go: a program that is open for writing cannot be started.
            let script = directory.path().join("script");
            fs::write(&script, format!("#!/bin/sh\necho '{said}'\n")).unwrap();
            fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
            fs::rename(&script, &program).unwrap();
            assert_eq!(version_in(directory.path()), version, "{said}");
        }
    }

    #[test]
    fn a_version_that_is_nowhere_names_the_mend() {
        let error = bin_directory(Version(3)).unwrap_err();
        assert!(error.hint_text().is_some_and(|h| h.contains(BIN_VARIABLE)));
    }

    #[test]
    fn pg_version_is_read() {
        let pgdata = tempfile::tempdir().unwrap();
        assert!(version_of(pgdata.path()).unwrap_err().hint_text().is_some());
        fs::write(pgdata.path().join("PG_VERSION"), "16\n").unwrap();
        assert_eq!(version_of(pgdata.path()).unwrap(), Version(16));
    }
}
