//! What a base backup holds and what it leaves out, by path below PGDATA.
//!
//! The rules are those of PostgreSQL's own base backup (`src/backend/backup/basebackup.c`: `excludeDirContents`,
//! `excludeFiles`, `sendDir`), applied to the paths where PostgreSQL puts such files rather than to every file of
//! that name: a log directory may hold a `postmaster.pid` of its own. Beyond PostgreSQL's rules the signal files
//! are left out, because a restore decides about them, and `current_logfiles`, which each start writes anew.
//!
//! [`walk`] reads a directory that a server is changing: what vanishes meanwhile is no error, because the WAL
//! from the backup's start on repeats it.

use std::{
    collections::HashSet,
    ffi::OsStr,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf},
};

use super::{
    control::{CONTROL_FILE, ControlFile},
    relation::{self, Fork, RelationFile},
};
use crate::error::{Error, Result};

/// Directories of which only the directory is stored: a start empties or fills them.
const EMPTY_DIRECTORIES: &[&str] =
    &["pg_dynshmem", "pg_notify", "pg_replslot", "pg_serial", "pg_snapshots", "pg_stat_tmp", "pg_subtrans", "pg_wal"];

/// Files at the top of PGDATA that are not stored.
const EXCLUDED_FILES: &[&str] = &[
    "backup_label",
    "backup_label.old",
    "backup_manifest",
    "current_logfiles",
    "current_logfiles.tmp",
    "postgresql.auto.conf.tmp",
    "postmaster.opts",
    "postmaster.pid",
    "promote",
    "recovery.signal",
    "standby.signal",
    "tablespace_map",
    "tablespace_map.old",
];

/// Files at the top of PGDATA that PostgreSQL's own base backup may hold, and Walden's does not: a restore decides
/// about them, or the server makes them anew.
const LEFT_TO_RESTORE: &[&str] =
    &["backup_label.old", "current_logfiles", "promote", "recovery.signal", "standby.signal", "tablespace_map.old"];

/// Whether the file at that path below PGDATA is one that PostgreSQL's own base backup may hold, and Walden's does not.
#[must_use]
pub fn is_left_to_restore(path: &Path) -> bool {
    LEFT_TO_RESTORE.iter().any(|name| path == Path::new(name))
}

/// `PG_TEMP_FILES_DIR` and `PG_TEMP_FILE_PREFIX`.
const TEMPORARY: &str = "pgsql_tmp";
/// `RELCACHE_INIT_FILENAME`; while it is written its name goes on with a dot and a process id.
const RELATION_CACHE: &str = "pg_internal.init";
const TABLESPACES: &str = "pg_tblspc";

/// What the rules depend on.
#[derive(Clone, Debug)]
pub struct Rules {
    tablespace_directory: String,
    has_summaries: bool,
    statistics: Option<PathBuf>,
}

impl Rules {
    /// The rules for the cluster with this control file.
    #[must_use]
    pub fn of(control: &ControlFile) -> Self {
        Self {
            tablespace_directory: control.tablespace_directory(),
            has_summaries: control.version.0 >= 17,
            statistics: None,
        }
    }

    /// PostgreSQL 14: `stats_temp_directory`, relative to PGDATA or absolute; its contents are left out too.
    #[must_use]
    pub fn statistics_directory(mut self, pgdata: &Path, setting: &Path) -> Self {
        let below = if setting.is_absolute() { setting.strip_prefix(pgdata).ok() } else { Some(setting) };
        self.statistics = below.filter(|path| plain(path)).map(Path::to_owned);
        self
    }

    /// Whether only the directory itself is stored, not what is in it.
    fn stored_empty(&self, directory: &Path) -> bool {
        EMPTY_DIRECTORIES.iter().any(|name| directory == Path::new(name))
            || self.statistics.as_deref() == Some(directory)
    }

    /// Whether nothing of that name below `directory` is stored, whatever else is there.
    fn excluded(&self, directory: &Path, name: &OsStr) -> bool {
        let depth = directory.components().count();
        // Temporary files lie in base/pgsql_tmp and pg_tblspc/<oid>/PG_<version>/pgsql_tmp.
        let root_of_databases = directory == Path::new("base") || (depth == 3 && directory.starts_with(TABLESPACES));
        match name.to_str() {
            Some(name) if depth == 0 => EXCLUDED_FILES.contains(&name),
            Some(name) if root_of_databases => name.starts_with(TEMPORARY),
            Some(name) if relation::holds_relations(directory) => {
                name.starts_with(RELATION_CACHE)
                    || name.starts_with(TEMPORARY)
                    || (relation::is_database_directory(directory) && relation::is_temporary_relation(name))
            }
            // What other versions keep in the tablespace (after pg_upgrade) is not this cluster's.
            Some(name) if depth == 2 && directory.starts_with(TABLESPACES) => name != self.tablespace_directory,
            _ => false,
        }
    }
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A relation's file: it consists of pages, with checksums where the cluster has them.
    Relation(RelationFile),
    /// `global/pg_control`, which a backup reads last.
    Control,
    /// Everything else.
    Other,
}

impl FileKind {
    /// What the file at that path below PGDATA is.
    #[must_use]
    pub fn of(path: &Path) -> Self {
        if path == Path::new(CONTROL_FILE) {
            return Self::Control;
        }
        let in_relations = path.parent().is_some_and(relation::holds_relations);
        let name = path.file_name().and_then(OsStr::to_str).filter(|_| in_relations);
        name.and_then(RelationFile::parse).map_or(Self::Other, Self::Relation)
    }
}

/// A file that belongs to the backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileEntry {
    /// Below PGDATA; files of tablespaces as `pg_tblspc/<oid>/PG_.../...`, which is also where to read them.
    pub path: PathBuf,
    /// In bytes, when it was seen.
    pub size: u64,
}

impl FileEntry {
    /// What it is.
    #[must_use]
    pub fn kind(&self) -> FileKind {
        FileKind::of(&self.path)
    }
}

/// A directory that belongs to the backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectoryEntry {
    /// Below PGDATA; empty for PGDATA itself.
    pub path: PathBuf,
    /// Its permission bits.
    pub mode: u32,
}

/// A tablespace other than `pg_default` and `pg_global`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tablespace {
    /// Its OID, the name of its link in `pg_tblspc`.
    pub oid: u32,
    /// Where the link points, as it stands there; for an in-place tablespace `pg_tblspc/<oid>`.
    pub location: PathBuf,
    /// Whether it is an ordinary directory inside `pg_tblspc` (`allow_in_place_tablespaces`).
    pub in_place: bool,
}

/// Something that is not stored although no rule leaves it out; worth telling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Below PGDATA.
    pub path: PathBuf,
    /// Why, as half a sentence: "is a symbolic link to /etc/x".
    pub why: String,
}

/// What a data directory holds that belongs to a base backup, in the order of the paths.
#[derive(Clone, Debug, Default)]
pub struct Walk {
    /// The files.
    pub files: Vec<FileEntry>,
    /// The directories, each before what is in it; the first is PGDATA itself.
    pub directories: Vec<DirectoryEntry>,
    /// The tablespaces.
    pub tablespaces: Vec<Tablespace>,
    /// What a base backup cannot hold.
    pub skipped: Vec<Skipped>,
    /// Who owns PGDATA: user and group number.
    pub owner: (u32, u32),
}

impl Walk {
    /// The size of all files in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }
}

/// Lists what of the data directory `pgdata` belongs to a base backup.
pub fn walk(pgdata: &Path, rules: &Rules) -> Result<Walk> {
    let pgdata = fs::canonicalize(pgdata).map_err(|e| Error::io("open the data directory", pgdata, e))?;
    let root = fs::metadata(&pgdata).map_err(|e| Error::io("read the data directory", &pgdata, e))?;
    let tablespaces = tablespaces(&pgdata)?;
    let inside = tablespaces.iter().filter(|t| !t.in_place).filter_map(|t| inside(&pgdata, &t.location)).collect();
    let mut walker = Walker { pgdata: &pgdata, rules, inside, found: Walk::default() };
    walker.found.owner = (root.uid(), root.gid());
    walker.directory(Path::new(""), &root)?;
    let mut found = walker.found;
    found.files.sort_by(|a, b| a.path.cmp(&b.path));
    found.directories.sort_by(|a, b| a.path.cmp(&b.path));
    found.tablespaces = tablespaces;
    Ok(found)
}

/// The tablespaces of a data directory, by their OIDs.
pub fn tablespaces(pgdata: &Path) -> Result<Vec<Tablespace>> {
    let directory = pgdata.join(TABLESPACES);
    let mut found = Vec::new();
    for entry in list(&directory)? {
        let name = entry.file_name();
        let Some(oid) = name.to_str().and_then(relation::number) else { continue };
        let Some(metadata) = look(&entry)? else { continue };
        let path = directory.join(&name);
        if metadata.is_dir() {
            found.push(Tablespace { oid, location: Path::new(TABLESPACES).join(&name), in_place: true });
        } else if metadata.is_symlink()
            && let Some(location) = present(fs::read_link(&path)).map_err(|e| Error::io("read the link", &path, e))?
        {
            found.push(Tablespace { oid, location, in_place: false });
        }
    }
    found.sort_by_key(|t| t.oid);
    Ok(found)
}

struct Walker<'a> {
    pgdata: &'a Path,
    rules: &'a Rules,
    /// Tablespaces that lie inside PGDATA, by their paths below it: they are walked through their links alone.
    inside: HashSet<PathBuf>,
    found: Walk,
}

impl Walker<'_> {
    /// Takes a directory and what is in it.
    fn directory(&mut self, path: &Path, metadata: &fs::Metadata) -> Result<()> {
        self.add_directory(path, metadata);
        if self.rules.stored_empty(path) {
            if path == Path::new("pg_wal") {
                self.add_directory(&path.join("archive_status"), metadata);
                if self.rules.has_summaries {
                    self.add_directory(&path.join("summaries"), metadata);
                }
            }
            return Ok(());
        }
        if self.inside.contains(path) {
            return Ok(());
        }
        let directory = self.pgdata.join(path);
        let entries = list(&directory)?;
        let unlogged = if relation::holds_relations(path) { unlogged(&entries) } else { HashSet::new() };
        for entry in entries {
            let name = entry.file_name();
            if self.rules.excluded(path, &name) {
                continue;
            }
            if let Some(metadata) = look(&entry)? {
                self.entry(&path.join(&name), metadata, &unlogged)?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path, metadata: fs::Metadata, unlogged: &HashSet<u32>) -> Result<()> {
        if metadata.is_dir() {
            self.directory(path, &metadata)
        } else if metadata.is_file() {
            self.file(path, &metadata, unlogged);
            Ok(())
        } else if metadata.is_symlink() {
            self.link(path)
        } else {
            self.found.skipped.push(Skipped { path: path.to_owned(), why: "is no ordinary file".to_owned() });
            Ok(())
        }
    }

    fn file(&mut self, path: &Path, metadata: &fs::Metadata, unlogged: &HashSet<u32>) {
        let kind = FileKind::of(path);
        if let FileKind::Relation(file) = kind
            && file.fork != Fork::Init
            && unlogged.contains(&file.number)
        {
            return;
        }
        self.found.files.push(FileEntry { path: path.to_owned(), size: metadata.size() });
    }

    /// A symbolic link: a tablespace, or a directory that is stored empty; others are reported.
    fn link(&mut self, path: &Path) -> Result<()> {
        let whole = self.pgdata.join(path);
        let tablespace = path.parent() == Some(Path::new(TABLESPACES))
            && path.file_name().and_then(OsStr::to_str).and_then(relation::number).is_some();
        if tablespace || self.rules.stored_empty(path) {
            return match present(fs::metadata(&whole)).map_err(|e| Error::io("read", &whole, e))? {
                Some(target) if target.is_dir() => self.directory(path, &target),
                _ => Ok(()),
            };
        }
        if let Some(target) = present(fs::read_link(&whole)).map_err(|e| Error::io("read the link", &whole, e))? {
            let why = format!("is a symbolic link to {}", target.display());
            self.found.skipped.push(Skipped { path: path.to_owned(), why });
        }
        Ok(())
    }

    fn add_directory(&mut self, path: &Path, metadata: &fs::Metadata) {
        self.found.directories.push(DirectoryEntry { path: path.to_owned(), mode: metadata.mode() & 0o7777 });
    }
}

/// The numbers of the relations that have an init fork in this directory: they are unlogged.
fn unlogged(entries: &[fs::DirEntry]) -> HashSet<u32> {
    let files = entries.iter().filter_map(|entry| RelationFile::parse(entry.file_name().to_str()?));
    files.filter(|file| file.fork == Fork::Init).map(|file| file.number).collect()
}

/// What is in a directory; nothing when the directory has vanished.
fn list(directory: &Path) -> Result<Vec<fs::DirEntry>> {
    let failed = |e| Error::io("read the directory", directory, e);
    let Some(entries) = present(fs::read_dir(directory)).map_err(failed)? else { return Ok(Vec::new()) };
    entries.collect::<io::Result<_>>().map_err(failed)
}

/// What an entry is, a link not followed; `None` when it has vanished.
fn look(entry: &fs::DirEntry) -> Result<Option<fs::Metadata>> {
    present(entry.metadata()).map_err(|e| Error::io("read", &entry.path(), e))
}

/// Where `location` lies below `pgdata`, when it does.
fn inside(pgdata: &Path, location: &Path) -> Option<PathBuf> {
    // A dangling link has no canonical form; nothing is walked there anyway.
    let whole = fs::canonicalize(pgdata.join(TABLESPACES).join(location)).ok()?;
    whole.strip_prefix(pgdata).ok().map(Path::to_owned)
}

/// `None` instead of the error that says that a file is not there (any more).
fn present<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(e),
    }
}

/// A relative path of ordinary names only.
fn plain(path: &Path) -> bool {
    path.components().all(|c| matches!(c, Component::Normal(_))) && path.components().next().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn rules() -> Rules {
        Rules { tablespace_directory: "PG_17_202406281".to_owned(), has_summaries: true, statistics: None }
    }

    /// A data directory of the given files; a name that ends in `/` is a directory.
    fn pgdata(names: &[&str]) -> tempfile::TempDir {
        let pgdata = tempfile::tempdir().unwrap();
        for name in names {
            let path = pgdata.path().join(name);
            if name.ends_with('/') {
                fs::create_dir_all(&path).unwrap();
            } else {
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(&path, name).unwrap();
            }
        }
        pgdata
    }

    fn paths(walk: &Walk) -> Vec<&str> {
        walk.files.iter().map(|f| f.path.to_str().unwrap()).collect()
    }

    #[test]
    fn leaves_out_by_path_not_by_name() {
        let pgdata = pgdata(&[
            "PG_VERSION",
            "postmaster.pid",
            "postmaster.opts",
            "backup_label.old",
            "recovery.signal",
            "promote",
            "current_logfiles",
            "postgresql.auto.conf",
            "postgresql.auto.conf.tmp",
            "log/postmaster.pid",
            "log/backup_label",
            "log/pg_wal/x",
            "global/pg_control",
            "global/pg_internal.init",
            "global/pg_internal.init.4711",
            "global/1262",
            "base/pgsql_tmp/pgsql_tmp1.0",
            "base/1/pg_internal.init",
            "base/1/1259",
            "base/1/t3_16384",
            "global/t3_16384",
            "pg_wal/000000010000000000000001",
            "pg_wal/archive_status/000000010000000000000001.ready",
            "pg_replslot/a/state",
            "pg_stat_tmp/x",
            "pg_stat/pgstat.stat",
        ]);
        let walk = walk(pgdata.path(), &rules()).unwrap();
        assert_eq!(
            paths(&walk),
            [
                "PG_VERSION",
                "base/1/1259",
                "global/1262",
                "global/pg_control",
                "global/t3_16384",
                "log/backup_label",
                "log/pg_wal/x",
                "log/postmaster.pid",
                "pg_stat/pgstat.stat",
                "postgresql.auto.conf",
            ]
        );
        let directories: Vec<_> = walk.directories.iter().map(|d| d.path.to_str().unwrap()).collect();
        assert_eq!(directories[0], "");
        for kept in ["pg_wal", "pg_wal/archive_status", "pg_wal/summaries", "pg_replslot", "pg_stat_tmp"] {
            assert!(directories.contains(&kept), "{kept}");
        }
        assert!(!directories.contains(&"base/pgsql_tmp") && !directories.contains(&"pg_replslot/a"));
    }

    #[test]
    fn of_unlogged_relations_the_init_fork_alone() {
        let pgdata = pgdata(&[
            "base/1/16384",
            "base/1/16384.1",
            "base/1/16384_fsm",
            "base/1/16384_init",
            "base/1/16385",
            "base/2/16384",
        ]);
        let walk = walk(pgdata.path(), &rules()).unwrap();
        assert_eq!(paths(&walk), ["base/1/16384_init", "base/1/16385", "base/2/16384"]);
    }

    #[test]
    fn tablespaces_are_walked_once_and_by_version() {
        let outside = pgdata(&["PG_17_202406281/5/16390", "PG_16_202307071/5/1", "PG_17_202406281/pgsql_tmp/x"]);
        let pgdata = pgdata(&[
            "pg_tblspc/",
            "pg_tblspc/16387/PG_17_202406281/5/3",
            "space/PG_17_202406281/5/16391",
            "PG_VERSION",
        ]);
        symlink(outside.path(), pgdata.path().join("pg_tblspc/16385")).unwrap();
        symlink(pgdata.path().join("space"), pgdata.path().join("pg_tblspc/16386")).unwrap();
        let walk = walk(pgdata.path(), &rules()).unwrap();
        assert_eq!(
            paths(&walk),
            [
                "PG_VERSION",
                "pg_tblspc/16385/PG_17_202406281/5/16390",
                "pg_tblspc/16386/PG_17_202406281/5/16391",
                "pg_tblspc/16387/PG_17_202406281/5/3",
            ]
        );
        assert!(walk.files[1..].iter().all(|f| matches!(f.kind(), FileKind::Relation(_))));
        let seen: Vec<_> = walk.tablespaces.iter().map(|t| (t.oid, t.in_place)).collect();
        assert_eq!(seen, [(16385, false), (16386, false), (16387, true)]);
        assert_eq!(walk.tablespaces[0].location, outside.path());
        assert!(walk.skipped.is_empty());
    }

    #[test]
    fn other_links_are_reported_and_a_linked_pg_wal_is_stored_empty() {
        let elsewhere = pgdata(&["000000010000000000000001", "postgresql.conf"]);
        let pgdata = pgdata(&["PG_VERSION"]);
        fs::set_permissions(elsewhere.path(), fs::Permissions::from_mode(0o750)).unwrap();
        symlink(elsewhere.path(), pgdata.path().join("pg_wal")).unwrap();
        symlink(elsewhere.path().join("postgresql.conf"), pgdata.path().join("postgresql.conf")).unwrap();
        let walk = walk(pgdata.path(), &rules()).unwrap();
        assert_eq!(paths(&walk), ["PG_VERSION"]);
        let pg_wal = walk.directories.iter().find(|d| d.path == Path::new("pg_wal")).unwrap();
        assert_eq!(pg_wal.mode, 0o750);
        assert_eq!(walk.skipped.len(), 1);
        assert_eq!(walk.skipped[0].path, Path::new("postgresql.conf"));
    }

    #[test]
    fn the_statistics_directory_of_14_is_stored_empty() {
        let pgdata = pgdata(&["ram/global.stat", "ram2/x"]);
        let within = rules().statistics_directory(pgdata.path(), &pgdata.path().join("ram"));
        assert_eq!(paths(&walk(pgdata.path(), &within).unwrap()), ["ram2/x"]);
        for harmless in ["/elsewhere", "../x", ""] {
            let rules = rules().statistics_directory(pgdata.path(), Path::new(harmless));
            assert_eq!(walk(pgdata.path(), &rules).unwrap().files.len(), 2, "{harmless}");
        }
    }
}
