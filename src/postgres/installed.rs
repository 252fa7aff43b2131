//! What an installation of PostgreSQL brings: its exact version, the processor it is for, its libraries and extensions.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    process::Command,
};

use super::{Version, installation, platform::Platform};

/// The suffix of a library (`DLSUFFIX`).
const SUFFIX: &str = ".so";

/// An installation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// Where its programs are.
    pub bin: PathBuf,
    /// Its version, such as `17.11`.
    pub version: Option<String>,
    /// The processor it is for, as in what `version()` says.
    pub architecture: Option<String>,
    /// The size of its pages in bytes, where it tells.
    pub block_size: Option<u32>,
    /// The libraries that it is linked with.
    pub platform: Platform,
    /// `$libdir`, where that was found.
    pub libraries: Option<PathBuf>,
    /// The folder with `extension` in it, where that was found.
    pub share: Option<PathBuf>,
}

impl Installed {
    /// Looks at the programs of that version in `bin`.
    #[must_use]
    pub fn look(bin: PathBuf, version: Version) -> Self {
        let program = bin.join("postgres");
        let told = |option: &str| {
            let output = Command::new(bin.join("pg_config")).arg(option).output().ok().filter(|o| o.status.success());
            output.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned())
        };
        // Without pg_config: relative to the programs, as PostgreSQL goes itself, and where Debian has it.
        let relative = |path: &str| bin.parent().map(|parent| parent.join(path));
        let found = |told: Option<String>, guesses: [Option<PathBuf>; 3], proof: &str| {
            let mut candidates = told.map(PathBuf::from).into_iter().chain(guesses.into_iter().flatten());
            candidates.find(|folder| folder.join(proof).is_file())
        };
        let debian = PathBuf::from(format!("/usr/share/postgresql/{version}"));
        let libraries = found(
            told("--pkglibdir"),
            [relative("lib"), relative("lib/postgresql"), relative("lib64")],
            &format!("plpgsql{SUFFIX}"),
        );
        let share = found(
            told("--sharedir"),
            [relative("share"), relative("share/postgresql"), Some(debian)],
            "extension/plpgsql.control",
        );
        Self {
            version: installation::version_told(&bin),
            architecture: architecture(&program),
            block_size: told("--configure").map(|options| block_size(&options)),
            platform: Platform::of_program(&program),
            libraries,
            share,
            bin,
        }
    }

    /// Whether the server would find a library by the name that `LOAD` or a function has for it, with that
    /// `dynamic_library_path`; `None` where that cannot be told (`expand_dynamic_library_name` in `dfmgr.c`).
    #[must_use]
    pub fn has_library(&self, name: &str, path: Option<&str>) -> Option<bool> {
        let libraries = self.libraries.as_ref()?;
        let expand = |text: &str| PathBuf::from(text.replace("$libdir", &libraries.to_string_lossy()));
        let is_there =
            |whole: &Path| whole.is_file() || PathBuf::from(format!("{}{SUFFIX}", whole.display())).is_file();
        if name.contains('/') && is_there(&expand(name)) {
            return Some(true);
        }
        // 18 looks for "$libdir/x" on the path too.
        let simple = name.strip_prefix("$libdir/").unwrap_or(name);
        if simple.contains('/') {
            return Some(false);
        }
        Some(path.unwrap_or("$libdir").split(':').any(|folder| is_there(&expand(folder).join(simple))))
    }

    /// Whether the extension could be made here, with that `extension_control_path`; `None` where that cannot be told.
    #[must_use]
    pub fn has_extension(&self, name: &str, path: Option<&str>) -> Option<bool> {
        let share = self.share.as_ref()?;
        let control = format!("extension/{name}.control");
        let folders = path.unwrap_or("$system").split(':');
        Some(
            folders
                .map(|folder| folder.replace("$system", &share.to_string_lossy()))
                .any(|f| Path::new(&f).join(&control).is_file()),
        )
    }
}

/// The processor in the head of an ELF program.
fn architecture(program: &Path) -> Option<String> {
    let mut head = [0; 20];
    File::open(program).and_then(|mut file| file.read_exact(&mut head)).ok()?;
    let little = head[5] == 1;
    let machine = [head[18], head[19]];
    let machine = if little { u16::from_le_bytes(machine) } else { u16::from_be_bytes(machine) };
    let name = match (head.starts_with(b"\x7fELF"), machine, head[4]) {
        (false, ..) => return None,
        (_, 3, _) => "i686",
        (_, 21, _) if little => "powerpc64le",
        (_, 21, _) => "powerpc64",
        (_, 22, _) => "s390x",
        (_, 40, _) => "arm",
        (_, 62, _) => "x86_64",
        (_, 183, _) => "aarch64",
        (_, 243, 2) => "riscv64",
        (_, 258, _) => "loongarch64",
        _ => return None,
    };
    Some(name.to_owned())
}

/// The size of a page by the options that PostgreSQL was built with.
fn block_size(options: &str) -> u32 {
    let marks = ["--with-blocksize=", "-Dblocksize="];
    let value = marks.iter().find_map(|mark| options.split_once(mark)).map(|(_, rest)| rest);
    let digits = value.and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).next());
    digits.and_then(|d| d.parse::<u32>().ok()).unwrap_or(8) * 1024
}

/// The processor of a name as in what `version()` says, so that two can be compared.
#[must_use]
pub fn same_architecture(a: &str, b: &str) -> bool {
    let plain = |name: &str| match name {
        "amd64" => "x86_64".to_owned(),
        "arm64" => "aarch64".to_owned(),
        "ppc64le" => "powerpc64le".to_owned(),
        "i386" | "i486" | "i586" => "i686".to_owned(),
        name if name.starts_with("arm") => "arm".to_owned(),
        name => name.to_owned(),
    };
    plain(a) == plain(b)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn installed(folder: &Path) -> Installed {
        for path in ["lib/plpgsql.so", "lib/pg_trgm.so", "more/other.so", "share/extension/plpgsql.control"] {
            fs::create_dir_all(folder.join(path).parent().unwrap()).unwrap();
            fs::write(folder.join(path), "").unwrap();
        }
        fs::create_dir(folder.join("bin")).unwrap();
        Installed::look(folder.join("bin"), Version(17))
    }

    #[test]
    fn libraries_are_found_as_the_server_finds_them() {
        let folder = tempfile::tempdir().unwrap();
        let here = installed(folder.path());
        assert_eq!(here.libraries.as_deref(), Some(folder.path().join("lib").as_path()));
        let more = format!("$libdir:{}/more", folder.path().display());
        for (name, path, there) in [
            ("pg_trgm", None, true),
            ("$libdir/pg_trgm", None, true),
            ("pg_trgm.so", None, true),
            ("other", None, false),
            ("other", Some(more.as_str()), true),
            ("$libdir/other", Some(more.as_str()), true),
            ("/nowhere/pg_trgm", Some(more.as_str()), false),
        ] {
            assert_eq!(here.has_library(name, path), Some(there), "{name} {path:?}");
        }
        assert_eq!(here.has_library(&folder.path().join("more/other").to_string_lossy(), None), Some(true));
        assert_eq!(here.has_extension("plpgsql", None), Some(true));
        assert_eq!(here.has_extension("pg_trgm", Some("/nowhere:$system")), Some(false));
        let unknown = Installed { libraries: None, share: None, ..here };
        assert_eq!((unknown.has_library("x", None), unknown.has_extension("x", None)), (None, None));
    }

    #[test]
    fn what_it_was_built_for_is_read() {
        assert_eq!(block_size("'--with-icu' '--with-blocksize=32' '--x=1'"), 32768);
        assert_eq!(block_size("'--with-icu'"), 8192);
        assert!(same_architecture("amd64", "x86_64") && !same_architecture("x86_64", "aarch64"));
        let own = architecture(&std::env::current_exe().unwrap());
        assert!(own.is_none_or(|own| own == std::env::consts::ARCH || own.starts_with("powerpc64")));
        assert_eq!(architecture(Path::new("/etc/passwd")), None);
    }
}
