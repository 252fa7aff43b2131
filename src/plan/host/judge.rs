//! What differs, what follows from it, and the mend.

use std::collections::{BTreeMap, BTreeSet};

use super::{About, Command, Database, Difference, Host};
use crate::{
    postgres::{
        Version,
        installation::BIN_VARIABLE,
        installed::{Installed, same_architecture},
        platform::Libc,
        sql::environment::{Provider, depends_on_libc},
    },
    repository::{BackupDocument, Environment, list},
};

/// So many names stand in a sentence.
const NAMED: usize = 5;

/// Compares; databases still go by their numbers.
pub(super) fn judge(backup: &BackupDocument, here: Option<&Installed>, settings: &[(String, String)]) -> Host {
    let mut host = Host {
        name: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        programs: here.map(|i| i.bin.clone()),
        postgres: here.and_then(|i| i.version.clone()),
        architecture: here.and_then(|i| i.architecture.clone()),
        libc: here.and_then(|i| i.platform.libc.clone()),
        icu: here.and_then(|i| i.platform.icu.clone()),
        differences: Vec::new(),
        unknown: Vec::new(),
    };
    let Some(here) = here else {
        let version = backup.postgres;
        host.differences.push(Difference {
            prevents_start: true,
            ..about(
                About::Version,
                format!("the programs of PostgreSQL {version} are not on this host"),
                "a copy cannot be started here".into(),
                format!("install its server package, or name the directory of its programs in {BIN_VARIABLE}"),
            )
        });
        return host;
    };
    minor(backup, here, &mut host);
    let Some(environment) = &backup.environment else {
        host.unknown.push("the backup does not tell what its server's host was like".into());
        return host;
    };
    machine(environment, here, &mut host);
    libc(environment, &mut host);
    icu(environment, &mut host);
    recorded(environment, &mut host);
    preload(environment, here, settings, &mut host);
    loaded(environment, here, &mut host);
    host.unknown.extend(environment.unknown.iter().map(|unknown| match unknown.database {
        Some(oid) => format!("what database {oid} needs: {}", unknown.why),
        None => format!("what the server needs: {}", unknown.why),
    }));
    host
}

fn about(about: About, what: String, follows: String, mend: String) -> Difference {
    Difference { about, prevents_start: false, what, follows, mend, databases: Vec::new(), commands: Vec::new() }
}

fn minor(backup: &BackupDocument, here: &Installed, host: &mut Host) {
    let there = backup.server_version_num % 10_000;
    let Some(version) = &here.version else { return };
    let minor = version.split_once('.').and_then(|(_, minor)| minor.parse::<u32>().ok());
    if minor.is_some_and(|minor| minor < there) {
        host.differences.push(about(
            About::MinorVersion,
            format!("PostgreSQL is {version} here and was {}.{there}", backup.postgres),
            "what was mended since is not mended here".into(),
            "install the newer minor version before the copy is started".into(),
        ));
    }
}

fn machine(environment: &Environment, here: &Installed, host: &mut Host) {
    let obstacle = |about, what: String| Difference {
        about,
        prevents_start: true,
        what,
        follows: "PostgreSQL's files are made for that, and it cannot be relied on to run on them here".into(),
        mend: "restore on a host like the server's; to come here, use pg_dump or logical replication".into(),
        databases: Vec::new(),
        commands: Vec::new(),
    };
    if let (Some(there), Some(ours)) = (&environment.architecture, &here.architecture)
        && !same_architecture(there, ours)
    {
        let what = format!("PostgreSQL is for {ours} here and was for {there}");
        host.differences.push(obstacle(About::Architecture, what));
    }
    if let Some(ours) = here.block_size
        && ours != environment.block_size
    {
        let what = format!("PostgreSQL has pages of {ours} bytes here and had {}", environment.block_size);
        host.differences.push(obstacle(About::BlockSize, what));
    }
}

/// The databases in which something sorts by that provider, if it is one whose order can change.
fn sorted_by(environment: &Environment, provider: Provider) -> BTreeSet<u32> {
    let depends = |locale: &str| provider != Provider::Libc || depends_on_libc(locale);
    let locales = environment.locales.iter().filter(|l| l.what.provider == provider && depends(&l.what.collate));
    let collations = environment.collations.iter().filter(|c| c.what.provider == provider && depends(&c.what.locale));
    locales.flat_map(|l| &l.databases).chain(collations.flat_map(|c| &c.databases)).copied().collect()
}

/// Indexes that were made under another order.
fn reindex(kind: About, what: String, databases: BTreeSet<u32>) -> Difference {
    Difference {
        databases: databases.into_iter().map(|oid| Database { oid, name: None }).collect(),
        ..about(
            kind,
            what,
            "text may sort otherwise, and then indexes on it miss rows and let duplicates in".into(),
            "once the copy is open for writing, before anybody uses it, rebuild the indexes".into(),
        )
    }
}

fn words(libc: &Libc) -> String {
    format!("{} {}", libc.name, libc.version.as_deref().unwrap_or("of an unknown version"))
}

fn libc(environment: &Environment, host: &mut Host) {
    let databases = sorted_by(environment, Provider::Libc);
    if databases.is_empty() {
        return;
    }
    match (&environment.libc, &host.libc) {
        (Some(there), Some(here)) if there.name != here.name || there.version.is_some() && here.version.is_some() => {
            if there != here {
                let what = format!("the C library is {} here and was {}", words(here), words(there));
                host.differences.push(reindex(About::Libc, what, databases));
            }
        }
        _ => host.unknown.push(format!("whether text sorts by the same C library: {}", ask("c"))),
    }
}

fn icu(environment: &Environment, host: &mut Host) {
    let databases = sorted_by(environment, Provider::Icu);
    if databases.is_empty() {
        return;
    }
    match (&environment.icu, &host.icu) {
        (Some(there), Some(here)) if same_icu(there, here) => {}
        (Some(there), Some(here)) => {
            let what = format!("ICU is {here} here and was {there}");
            host.differences.push(reindex(About::Icu, what, databases));
        }
        _ => host.unknown.push(format!("whether text sorts by the same ICU: {}", ask("i"))),
    }
}

/// The name of a library may bear the first number alone.
fn same_icu(there: &str, here: &str) -> bool {
    there.split('.').zip(here.split('.')).all(|(a, b)| a == b)
}

/// How the copy itself tells.
fn ask(provider: &str) -> String {
    format!(
        "the copy tells, in each database: SELECT oid::regcollation FROM pg_collation WHERE collprovider = '{provider}' AND collversion <> pg_collation_actual_version(oid)"
    )
}

fn recorded(environment: &Environment, host: &mut Host) {
    let locales = environment.locales.iter().filter(|l| l.what.recorded.is_some()).flat_map(|l| &l.databases);
    let collations = environment.collations.iter().filter(|c| c.what.recorded.is_some()).flat_map(|c| &c.databases);
    let databases: BTreeSet<u32> = locales.chain(collations).copied().collect();
    if !databases.is_empty() {
        let what = "collations had changed on the server's own host before the backup".to_owned();
        host.differences.push(reindex(About::Collation, what, databases));
    }
}

fn preload(environment: &Environment, here: &Installed, settings: &[(String, String)], host: &mut Host) {
    let path = environment.dynamic_library_path.as_deref();
    let set = |name: &str, recorded: &Option<Vec<String>>| {
        let given = settings.iter().rev().find(|(other, _)| other.eq_ignore_ascii_case(name));
        given.map(|(_, value)| list(value)).or_else(|| recorded.clone()).unwrap_or_default()
    };
    let mut each = |about_it, name: &str, recorded: &Option<Vec<String>>, follows: &str| {
        let all = set(name, recorded);
        // Only a superuser may load from elsewhere than plugins (`load_libraries` in `miscinit.c`).
        let place = |library: &str| match name {
            "local_preload_libraries" if !library.contains('/') => format!("$libdir/plugins/{library}"),
            _ => library.to_owned(),
        };
        let missing: Vec<String> =
            all.into_iter().filter(|library| here.has_library(&place(library), path) == Some(false)).collect();
        if !missing.is_empty() {
            let what = format!("{name} names {}, which this host does not have", missing.join(", "));
            host.differences.push(Difference {
                prevents_start: about_it == About::SharedPreload,
                ..about(
                    about_it,
                    what,
                    follows.to_owned(),
                    format!(
                        "install the packages with these libraries for PostgreSQL, or leave them out: --set {name}=..."
                    ),
                )
            });
        }
    };
    each(
        About::SharedPreload,
        "shared_preload_libraries",
        &environment.shared_preload_libraries,
        "the server does not start",
    );
    for (name, recorded) in [
        ("session_preload_libraries", &environment.session_preload_libraries),
        ("local_preload_libraries", &environment.local_preload_libraries),
    ] {
        each(About::SessionPreload, name, recorded, "nobody can connect");
    }
}

fn loaded(environment: &Environment, here: &Installed, host: &mut Host) {
    let missing = |about_it, what: String, follows: &str, databases: &[u32]| Difference {
        databases: databases.iter().map(|oid| Database { oid: *oid, name: None }).collect(),
        ..about(
            about_it,
            what,
            follows.to_owned(),
            "install the package with it for this major version of PostgreSQL".into(),
        )
    };
    let path = environment.dynamic_library_path.as_deref();
    for library in &environment.libraries {
        if here.has_library(&library.what.path, path) == Some(false) {
            host.differences.push(missing(
                About::Library,
                format!("the library {} is not on this host", library.what.path),
                "functions, types and indexes of it fail when they are used",
                &library.databases,
            ));
        }
    }
    for extension in &environment.extensions {
        let (name, version) = (&extension.what.name, &extension.what.version);
        if here.has_extension(name, environment.extension_control_path.as_deref()) == Some(false) {
            host.differences.push(missing(
                About::Extension,
                format!("extension {name} {version} is not on this host"),
                "it cannot be created or updated, and a dump of the database cannot be loaded here",
                &extension.databases,
            ));
        }
    }
}

/// Calls the databases by their names, and says what to run in them.
pub(super) fn name(difference: &mut Difference, version: Version, names: &BTreeMap<u32, String>) {
    for database in &mut difference.databases {
        database.name = names.get(&database.oid).cloned();
    }
    if matches!(difference.about, About::Libc | About::Icu | About::Collation) {
        for name in difference.databases.iter().filter_map(|d| d.name.clone()) {
            let quoted = format!("\"{}\"", name.replace('"', "\"\""));
            let mut add = |sql: String| difference.commands.push(Command { database: name.clone(), sql });
            add(format!("REINDEX DATABASE {quoted}"));
            // 14 has no version of a database.
            if version.0 >= 15 {
                add(format!("ALTER DATABASE {quoted} REFRESH COLLATION VERSION"));
            }
        }
    }
}

impl Difference {
    /// What differs, for whom, what follows and the mend: a sentence.
    #[must_use]
    pub fn words(&self) -> String {
        let named = |d: &Database| d.name.as_ref().map_or_else(|| d.oid.to_string(), |name| format!("\"{name}\""));
        let some: Vec<String> = self.databases.iter().take(NAMED).map(named).collect();
        let databases = match self.databases.len() {
            0 => String::new(),
            1 => format!(" (database {})", some.join("")),
            many if many <= NAMED => format!(" (databases {})", some.join(", ")),
            many => format!(" (databases {} and {} more)", some.join(", "), many - NAMED),
        };
        let first = self.databases.iter().find_map(|d| d.name.clone());
        let commands: Vec<&str> =
            self.commands.iter().filter(|c| Some(&c.database) == first.as_ref()).map(|c| c.sql.as_str()).collect();
        let commands = match commands.is_empty() {
            true => String::new(),
            false if self.databases.len() > 1 => format!(": {}; and so in each", commands.join("; ")),
            false => format!(": {}", commands.join("; ")),
        };
        format!("{}{databases}: {}; {}{commands}", self.what, self.follows, self.mend)
    }
}
