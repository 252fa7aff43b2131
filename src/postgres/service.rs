//! The service file: connections that have a name (`src/interfaces/libpq/fe-connect.c`, `parseServiceInfo`).

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::error::{Error, Result};

/// The user's own file, below the home directory.
const OWN: &str = ".pg_service.conf";
/// The system's file, and where Debian, Red Hat and PostgreSQL itself look for it.
const SYSTEM: &str = "pg_service.conf";
const SYSTEM_DIRECTORIES: [&str; 3] = ["/etc/postgresql-common", "/etc/sysconfig/pgsql", "/etc"];

/// Keywords and values of the service `name`: from `PGSERVICEFILE`, else `~/.pg_service.conf`, else the file in
/// `PGSYSCONFDIR` or the system's place for it.
pub(super) fn service(
    name: &str,
    environment: &dyn Fn(&str) -> Option<String>,
    home: Option<&Path>,
) -> Result<Vec<(String, String)>> {
    let named = environment("PGSERVICEFILE").map(PathBuf::from);
    let own = named.clone().or_else(|| home.map(|home| home.join(OWN)));
    let system = match environment("PGSYSCONFDIR") {
        Some(directory) => vec![PathBuf::from(directory)],
        None => SYSTEM_DIRECTORIES.iter().map(PathBuf::from).collect(),
    };
    for file in own.into_iter().chain(system.into_iter().map(|directory| directory.join(SYSTEM))) {
        match fs::read_to_string(&file) {
            Ok(text) => {
                if let Some(found) = group(name, &text, &file)? {
                    return Ok(found);
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && named.as_ref() != Some(&file) => {}
            Err(error) => return Err(Error::io("read the service file", &file, error)),
        }
    }
    Err(Error::invalid(format!("no service file has the service \"{name}\""))
        .hint("libpq's service files are $PGSERVICEFILE, ~/.pg_service.conf and $PGSYSCONFDIR/pg_service.conf"))
}

/// The lines of the group `[name]`.
fn group(name: &str, text: &str, file: &Path) -> Result<Option<Vec<(String, String)>>> {
    let (mut found, mut inside) = (None, false);
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if line.starts_with('[') {
            // The first group of that name counts.
            if found.is_some() {
                break;
            }
            inside = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) == Some(name);
            found = inside.then(Vec::new);
            continue;
        }
        if !inside {
            continue;
        }
        // What stands there may be a secret, and is not repeated.
        let (keyword, value) = line
            .split_once('=')
            .filter(|(keyword, _)| *keyword != "service")
            .ok_or_else(|| Error::invalid(format!("{}:{}: not \"keyword=value\"", file.display(), number + 1)))?;
        found.get_or_insert_default().push((keyword.to_owned(), value.to_owned()));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_found_where_libpq_finds_it() {
        let (home, system) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let text = "# hosts\n[one]\nhost=h1\n[two]\n host=a=b \n\npassword=p w\n[two]\nhost=never\n";
        fs::write(home.path().join(OWN), text).unwrap();
        fs::write(system.path().join(SYSTEM), "[three]\nhost=h3\n[one]\nhost=never\n").unwrap();
        let other = home.path().join("other");
        fs::write(&other, "[one]\nhost=other\nbroken\n").unwrap();
        let find = |name: &str, file: Option<&Path>| {
            let environment = |variable: &str| match variable {
                "PGSERVICEFILE" => file.map(|file| file.to_str().unwrap().to_owned()),
                "PGSYSCONFDIR" => Some(system.path().to_str().unwrap().to_owned()),
                _ => None,
            };
            service(name, &environment, Some(home.path()))
        };
        let pair = |k: &str, v: &str| (k.to_owned(), v.to_owned());
        assert_eq!(find("one", None).unwrap(), [pair("host", "h1")]);
        assert_eq!(find("two", None).unwrap(), [pair("host", "a=b"), pair("password", "p w")]);
        assert_eq!(find("three", None).unwrap(), [pair("host", "h3")]);
        assert!(find("four", None).unwrap_err().hint_text().unwrap().contains("PGSERVICEFILE"));
        assert!(find("one", Some(Path::new("/nonexistent"))).is_err());
        let error = find("one", Some(&other)).unwrap_err().to_string();
        assert!(error.ends_with("other:3: not \"keyword=value\""), "{error}");
    }
}
