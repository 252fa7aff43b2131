//! Finds the PostgreSQL installations that tests run on.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use crate::owner::Owner;

/// The major versions that Walden is tested on.
pub const MAJORS: [u16; 5] = [14, 15, 16, 17, 18];

/// The programs of one PostgreSQL version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installation {
    /// The major version.
    pub major: u16,
    /// The folder of its programs.
    pub bin: PathBuf,
}

impl Installation {
    /// The path of one program, such as `pg_waldump`.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }
}

/// The installations of this machine, oldest version first; at most one for each major version.
///
/// For each major version the first of these holds: the folder that `WALDEN_TEST_PG_<major>` names,
/// `postgresql/<major>/bin` in the folder of tools, `/usr/lib/postgresql/<major>/bin`. `WALDEN_TEST_VERSIONS`, a list
/// such as `15 17`, leaves the others out.
///
/// # Panics
/// When a folder that was named holds another version, or one that the servers' user cannot run.
#[must_use]
pub fn installed() -> &'static [Installation] {
    static INSTALLED: OnceLock<Vec<Installation>> = OnceLock::new();
    INSTALLED.get_or_init(|| wanted().into_iter().filter_map(find).collect())
}

/// The installation of one major version, or `None`, said plainly, where it is not here or not wanted.
#[must_use]
pub fn of(major: u16) -> Option<&'static Installation> {
    let found = installed().iter().find(|installation| installation.major == major);
    if found.is_none() {
        eprintln!("PostgreSQL {major} is not here or was left out: this part of the test did not run");
    }
    found
}

/// The newest installation, for tests that one version is enough for.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn any() -> &'static Installation {
    installed().last().expect("no PostgreSQL was found: scripts/test installs what the tests need")
}

/// Runs a test on each installation, oldest version first.
///
/// A version that is missing is said on standard error, and is a failure where `WALDEN_TEST_ALL_VERSIONS=1`.
///
/// # Panics
/// Where the test does, when no PostgreSQL is there at all, and when one is missing that must be there.
pub fn for_each_version(test: impl Fn(&Installation)) {
    let all = env::var("WALDEN_TEST_ALL_VERSIONS").is_ok_and(|value| value == "1");
    for major in wanted() {
        let Some(installation) = installed().iter().find(|installation| installation.major == major) else {
            assert!(!all, "PostgreSQL {major} is missing, and every version was asked for: run scripts/test");
            eprintln!("PostgreSQL {major} is missing: not tested");
            continue;
        };
        eprintln!("on PostgreSQL {major} ({})", installation.bin.display());
        test(installation);
    }
    assert!(!installed().is_empty(), "no PostgreSQL was found: scripts/test installs what the tests need");
}

/// The folder that holds parts for the tests: `$WALDEN_TOOLS`, else `target/tools` of the workspace.
pub(crate) fn tools() -> PathBuf {
    env::var_os("WALDEN_TOOLS").map_or_else(|| workspace().join("target/tools"), PathBuf::from)
}

/// The top folder of the workspace.
pub(crate) fn workspace() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

fn wanted() -> Vec<u16> {
    let Ok(list) = env::var("WALDEN_TEST_VERSIONS") else { return MAJORS.to_vec() };
    let wanted: Vec<u16> = list
        .split([' ', ','])
        .filter(|word| !word.is_empty())
        .map(|word| word.parse().unwrap_or_else(|_| panic!("WALDEN_TEST_VERSIONS: {word:?} is no major version")))
        .collect();
    MAJORS.into_iter().filter(|major| wanted.contains(major)).collect()
}

fn find(major: u16) -> Option<Installation> {
    let variable = format!("WALDEN_TEST_PG_{major}");
    let named = env::var_os(&variable).map(PathBuf::from);
    let bin = match &named {
        Some(bin) => bin.clone(),
        None => [tools().join(format!("postgresql/{major}/bin")), format!("/usr/lib/postgresql/{major}/bin").into()]
            .into_iter()
            .find(|bin| bin.join("postgres").exists())?,
    };
    let bin = bin.canonicalize().unwrap_or_else(|error| panic!("{}: {error}", bin.display()));
    let said = version(Owner::of_servers().command(bin.join("postgres")).arg("--version"));
    match said {
        Ok(text) if text.contains(&format!(" {major}.")) || text.contains(&format!(" {major}devel")) => {
            Some(Installation { major, bin })
        }
        said => {
            panic!("{}: not a PostgreSQL {major} that {} can run: {said:?}", bin.display(), Owner::of_servers().name)
        }
    }
}

fn version(command: &mut Command) -> std::io::Result<String> {
    let output = command.output()?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
