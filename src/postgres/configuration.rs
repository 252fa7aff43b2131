//! Which files PostgreSQL's configuration files take in (`include` and its kind, and `@file` in pg_hba.conf), and what
//! they set.
//!
//! `postgresql.conf` by `src/backend/utils/misc/guc-file.l`; pg_hba.conf and pg_ident.conf by `next_token` and
//! `tokenize_auth_file` in `src/backend/libpq/hba.c`.

use std::{
    ffi::OsStr,
    fs,
    io::ErrorKind,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use super::settings::AUTO_CONF;
use crate::error::{Error, Result};

/// How a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syntax {
    /// As `postgresql.conf`.
    Settings,
    /// As pg_hba.conf and pg_ident.conf.
    Access,
}

/// What a file takes in. Paths are absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Include {
    /// A file that must be there.
    File(PathBuf),
    /// A file that may be there.
    IfExists(PathBuf),
    /// Every `*.conf` of a folder that does not begin with a dot.
    Directory(PathBuf),
}

/// What `text`, the content of the file at `path`, takes in.
#[must_use]
pub fn includes(text: &[u8], syntax: Syntax, path: &Path) -> Vec<Include> {
    // Relative to the folder by which the file is called, wherever links lead (`AbsoluteConfigLocation`).
    let folder = path.parent().unwrap_or(Path::new("/"));
    let absolute = |name: &[u8]| folder.join(OsStr::from_bytes(name));
    let mut found = Vec::new();
    for line in text.split(|b| *b == b'\n') {
        let mut tokens = tokens(line, syntax);
        // "include = 'x'" is the same as "include 'x'".
        if syntax == Syntax::Settings {
            tokens.retain(|t| t.text != b"=");
        }
        let mut rest = tokens.as_slice();
        if let [directive, argument, more @ ..] = rest
            && !directive.quoted
        {
            let made: Option<fn(PathBuf) -> Include> = match directive.text.to_ascii_lowercase().as_slice() {
                b"include" => Some(Include::File),
                b"include_if_exists" => Some(Include::IfExists),
                b"include_dir" => Some(Include::Directory),
                _ => None,
            };
            if let Some(made) = made {
                found.push(made(absolute(&argument.text)));
                rest = more;
            }
        }
        if syntax == Syntax::Access {
            let named = rest.iter().filter(|t| !t.quoted).filter_map(|t| t.text.strip_prefix(b"@"));
            found.extend(named.filter(|name| !name.is_empty()).map(|name| Include::File(absolute(name))));
        }
    }
    found
}

/// The value of a setting in the configuration of a data directory whose server was started: as its command line, its
/// `postgresql.auto.conf` or its `postgresql.conf` with what that takes in has it. None where it is not set.
pub fn running_value(pgdata: &Path, name: &str) -> Result<Option<String>> {
    let options = match fs::read(pgdata.join("postmaster.opts")) {
        Ok(text) => options(&text),
        Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(Error::io("read", &pgdata.join("postmaster.opts"), error)),
    };
    let given = |name: &str| options.iter().rev().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.clone());
    if let Some(value) = given(name) {
        return Ok(Some(value));
    }
    let file = given("config_file").map_or_else(|| pgdata.join("postgresql.conf"), |file| pgdata.join(file));
    let mut found = None;
    look(&file, name, MOST_NESTED, &mut found)?;
    let auto = pgdata.join(AUTO_CONF);
    if auto.exists() {
        look(&auto, name, MOST_NESTED, &mut found)?;
    }
    Ok(found)
}

/// How deep files may take in others (`CONF_FILE_MAX_DEPTH`).
const MOST_NESTED: u32 = 10;

/// What `-c name=value` and `--name=value` say in the text of postmaster.opts.
fn options(text: &[u8]) -> Vec<(String, String)> {
    let arguments: Vec<String> =
        String::from_utf8_lossy(text).split('"').skip(1).step_by(2).map(str::to_owned).collect();
    let mut found = Vec::new();
    for (index, argument) in arguments.iter().enumerate() {
        let value = match argument.strip_prefix("--").or_else(|| argument.strip_prefix("-c").filter(|v| !v.is_empty()))
        {
            Some(value) => Some(value),
            None if argument == "-c" => arguments.get(index + 1).map(String::as_str),
            None => None,
        };
        if let Some((name, value)) = value.and_then(|value| value.split_once('=')) {
            found.push((name.replace('-', "_"), value.to_owned()));
        }
    }
    found
}

/// Looks for the last value of a setting in a file, and in what that takes in.
fn look(path: &Path, name: &str, depth: u32, found: &mut Option<String>) -> Result<()> {
    let failed = |path: &Path, error| Error::io("read", path, error);
    if depth == 0 {
        return Err(Error::invalid(format!("{} takes in files that take in others too deeply", path.display())));
    }
    let text = fs::read(path).map_err(|error| failed(path, error))?;
    for line in text.split(|byte| *byte == b'\n') {
        let mut tokens = tokens(line, Syntax::Settings);
        tokens.retain(|token| token.text != b"=");
        if let [key, value, ..] = tokens.as_slice()
            && !key.quoted
            && key.text.eq_ignore_ascii_case(name.as_bytes())
        {
            *found = Some(String::from_utf8_lossy(&value.text).into_owned());
        }
        for include in includes(line, Syntax::Settings, path) {
            match include {
                Include::File(file) => look(&file, name, depth - 1, found)?,
                Include::IfExists(file) if !file.exists() => {}
                Include::IfExists(file) => look(&file, name, depth - 1, found)?,
                Include::Directory(folder) => {
                    let entries = fs::read_dir(&folder).map_err(|error| failed(&folder, error))?;
                    let mut files = Vec::new();
                    for entry in entries {
                        files.push(entry.map_err(|error| failed(&folder, error))?.path());
                    }
                    files.retain(|file| file.file_name().is_some_and(is_taken_in));
                    files.sort();
                    for file in files {
                        look(&file, name, depth - 1, found)?;
                    }
                }
            }
        }
    }
    Ok(())
}

/// Whether a folder that is taken in takes in a file of that name (`GetConfFilesInDir` in `conffiles.c`).
#[must_use]
pub fn is_taken_in(name: &OsStr) -> bool {
    let name = name.as_bytes();
    name.len() >= 6 && !name.starts_with(b".") && name.ends_with(b".conf")
}

struct Token {
    text: Vec<u8>,
    /// Whether it begins with a quote, and so is no keyword.
    quoted: bool,
}

/// The tokens of a line, without its comment.
fn tokens(line: &[u8], syntax: Syntax) -> Vec<Token> {
    let mut found: Vec<Token> = Vec::new();
    let quote = if syntax == Syntax::Settings { b'\'' } else { b'"' };
    let mut token: Option<Token> = None;
    let mut bytes = line.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            b'#' => break,
            b if b.is_ascii_whitespace() => found.extend(token.take()),
            b',' if syntax == Syntax::Access => found.extend(token.take()),
            b'=' if syntax == Syntax::Settings => {
                found.extend(token.take());
                found.push(Token { text: vec![b'='], quoted: false });
            }
            b if b == quote => {
                let into = token.get_or_insert(Token { text: Vec::new(), quoted: true });
                while let Some(byte) = bytes.next() {
                    match byte {
                        b if b == quote && bytes.peek() == Some(&quote) => {
                            bytes.next();
                            into.text.push(quote);
                        }
                        b if b == quote => break,
                        b'\\' if syntax == Syntax::Settings => into.text.extend(bytes.next()),
                        b => into.text.push(b),
                    }
                }
            }
            b => token.get_or_insert(Token { text: Vec::new(), quoted: false }).text.push(b),
        }
    }
    found.extend(token);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str, syntax: Syntax) -> Vec<Include> {
        includes(text.as_bytes(), syntax, Path::new("/etc/pg/main.conf"))
    }

    #[test]
    fn settings_name_what_they_take_in() {
        let text = "# include 'no'\nport = 5432 # include 'no'\ninclude 'a b.conf'\nInclude_If_Exists='/x/it''s.conf'\n  include_dir = conf.d\ninclude_dirs = 'no'\nsearch_path = 'include no'\n";
        assert_eq!(
            found(text, Syntax::Settings),
            [
                Include::File("/etc/pg/a b.conf".into()),
                Include::IfExists("/x/it's.conf".into()),
                Include::Directory("/etc/pg/conf.d".into())
            ]
        );
    }

    #[test]
    fn access_files_name_what_they_take_in() {
        let text = "local all,@admins @\"some people\" peer\nhost \"@not\" all 0.0.0.0/0 md5 # @no\ninclude_dir hba.d\n\"include\" x\n";
        assert_eq!(
            found(text, Syntax::Access),
            [
                Include::File("/etc/pg/admins".into()),
                Include::File("/etc/pg/some people".into()),
                Include::Directory("/etc/pg/hba.d".into())
            ]
        );
    }

    #[test]
    fn the_last_value_counts() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        let value = || running_value(folder.path(), "archive_mode").unwrap();
        assert!(running_value(folder.path(), "archive_mode").is_err(), "there is no configuration");
        write("postgresql.conf", "# archive_mode = on\nport = 1\n");
        assert_eq!(value(), None);
        fs::create_dir(folder.path().join("conf.d")).unwrap();
        write("conf.d/b.conf", "Archive_Mode 'always'\n");
        write("conf.d/a.conf", "archive_mode=off");
        write("postgresql.conf", "archive_mode = on\ninclude_dir 'conf.d'\ninclude_if_exists = none.conf\n");
        assert_eq!(value().as_deref(), Some("always"));
        write("postgresql.auto.conf", "archive_mode = 'on'\n");
        assert_eq!(value().as_deref(), Some("on"));
        write("other.conf", "archive_mode = off\n");
        write("postmaster.opts", "/bin/postgres \"-D\" \"/x y\" \"-c\" \"config_file=other.conf\"\n");
        write("postgresql.auto.conf", "");
        assert_eq!(value().as_deref(), Some("off"));
        write("postmaster.opts", "/bin/postgres \"-c\" \"archive_mode=on\" \"--archive-mode=always\"\n");
        assert_eq!(value().as_deref(), Some("always"));
    }

    #[test]
    fn a_folder_takes_in_some_of_its_files() {
        let taken: Vec<&str> = ["a.conf", ".a.conf", "a.conf~", ".conf", "x.conf"]
            .into_iter()
            .filter(|name| is_taken_in(OsStr::new(name)))
            .collect();
        assert_eq!(taken, ["a.conf", "x.conf"]);
    }
}
