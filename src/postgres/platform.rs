//! What decides how PostgreSQL sorts text on a host: the C library and ICU that its program is linked with.
//!
//! They are told by the files that a running server has mapped, or that the loader would give to its program; nothing
//! of them is called.

use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
    process::Command,
};

use serde::{Deserialize, Serialize};

/// What a C library is called, and its version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Libc {
    /// `glibc` or `musl`.
    pub name: String,
    /// Such as `2.36`; absent where it could not be read. To PostgreSQL glibc's is the version of its collations, musl's
    /// have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

/// The libraries of a program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Platform {
    /// The C library.
    pub libc: Option<Libc>,
    /// ICU's version, such as `72.1`.
    pub icu: Option<String>,
}

/// No C library is longer than this many bytes.
const LIBC_LIMIT: u64 = 16 << 20;

impl Platform {
    /// Of a process that runs. Nothing is known of one that belongs to somebody else.
    #[must_use]
    pub fn of_process(pid: i32) -> Self {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        Self::of_maps(&maps, &PathBuf::from(format!("/proc/{pid}/root")))
    }

    /// Of a program, as the loader of this host would start it.
    #[must_use]
    pub fn of_program(program: &Path) -> Self {
        // It loads libraries as the start of the program would, and says where it found them.
        let output = Command::new("ldd").arg(program).output().ok().filter(|o| o.status.success());
        let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
        let found = text.split_whitespace().filter(|word| word.starts_with('/'));
        Self::of_files(found.filter_map(|path| fs::canonicalize(path).ok()))
    }

    fn of_maps(maps: &str, root: &Path) -> Self {
        // A library that was replaced on disk is called "(deleted)": its name still tells, the file there is another.
        let paths = maps.lines().filter_map(|line| Some(&line[line.find('/')?..]));
        let mut paths: Vec<_> =
            paths.map(|path| root.join(path.trim_end_matches(" (deleted)").trim_start_matches('/'))).collect();
        paths.dedup();
        let deleted = maps.lines().any(|line| {
            line.ends_with(" (deleted)") && is_libc(Path::new(line.trim_end_matches(" (deleted)"))).is_some()
        });
        let mut platform = Self::of_files(paths.into_iter());
        if deleted && let Some(libc) = &mut platform.libc {
            libc.version = None;
        }
        platform
    }

    fn of_files(paths: impl Iterator<Item = PathBuf>) -> Self {
        let mut platform = Self::default();
        for path in paths {
            if platform.icu.is_none() {
                platform.icu = icu(&path);
            }
            if let (None, Some(name)) = (&platform.libc, is_libc(&path)) {
                let version = (name == "glibc").then(|| glibc_version(&path)).flatten();
                platform.libc = Some(Libc { name: name.to_owned(), version });
            }
        }
        platform
    }
}

fn file_name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

/// The version in the name of ICU's library that sorts, `libicui18n.so.72.1`. The other ones may be there for libxml2.
fn icu(path: &Path) -> Option<String> {
    let name = file_name(path);
    let version = name.strip_prefix("libicui18n.so.")?;
    version.starts_with(|c: char| c.is_ascii_digit()).then(|| version.to_owned())
}

fn is_libc(path: &Path) -> Option<&'static str> {
    match file_name(path) {
        name if name.starts_with("ld-musl-") || name.starts_with("libc.musl-") => Some("musl"),
        // Before 2.34 the file bears its version.
        name if name == "libc.so.6" || name.starts_with("libc-2.") => Some("glibc"),
        _ => None,
    }
}

/// The library bears the words that it says when it is run: "GNU C Library (...) stable release version 2.36."
fn glibc_version(path: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(LIBC_LIMIT).read_to_end(&mut bytes).ok()?;
    let find = |text: &[u8], wanted: &[u8]| text.windows(wanted.len()).position(|w| w == wanted);
    let banner = &bytes[find(&bytes, b"GNU C Library (")?..];
    let banner = &banner[..banner.len().min(300)];
    let mark = b"release version ";
    let version = &banner[find(banner, mark)? + mark.len()..];
    let version: String =
        version.iter().map(|b| char::from(*b)).take_while(|c| c.is_ascii_digit() || *c == '.').collect();
    Some(version.trim_end_matches('.').to_owned()).filter(|v| !v.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_has_mapped_tells_its_libraries() {
        let folder = tempfile::tempdir().unwrap();
        let lib = folder.path().join("usr/lib");
        fs::create_dir_all(&lib).unwrap();
        let banner = b"\0\x01GNU C Library (Debian GLIBC 2.31-13) stable release version 2.31.\nCopyright";
        fs::write(lib.join("libc.so.6"), banner).unwrap();
        let maps = "7f01-7f02 r--p 00000000 08:01 1 /usr/lib/libicui18n.so.67.1 (deleted)\n7f03-7f04 rw-p 00000000 00:00 0 [heap]\n7f05-7f06 r-xp 00000000 08:01 2 /usr/lib/libc.so.6\n";
        let platform = Platform::of_maps(maps, folder.path());
        let libc = |version: Option<&str>| Some(Libc { name: "glibc".into(), version: version.map(str::to_owned) });
        assert_eq!(platform, Platform { libc: libc(Some("2.31")), icu: Some("67.1".into()) });
        let replaced = maps.replace("libc.so.6", "libc.so.6 (deleted)");
        assert_eq!(Platform::of_maps(&replaced, folder.path()).libc, libc(None));
        let musl = Platform::of_maps("1-2 r-xp 0 08:01 3 /lib/ld-musl-x86_64.so.1\n", folder.path());
        assert_eq!(musl.libc, Some(Libc { name: "musl".into(), version: None }));
    }

    #[test]
    fn a_program_of_this_host_has_the_libraries_of_this_process() {
        let own = Platform::of_process(std::process::id().cast_signed());
        let program = std::env::current_exe().unwrap();
        let libc = Platform::of_program(&program).libc;
        // A static program has none.
        assert_eq!(libc, own.libc);
        assert_eq!(Platform::of_program(Path::new("/nowhere")), Platform::default());
    }
}
