//! The names of relation files (`src/common/relpath.c`, `parse_filename_for_nontemp_relation` in `reinit.c`,
//! `looks_like_temp_rel_name` in `fd.c`) and the directories where they mean something.

use std::path::{Component, Path};

/// Which part of a relation a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fork {
    /// The data itself; its files have no suffix.
    Main,
    /// `_fsm`: the free space map.
    FreeSpaceMap,
    /// `_vm`: the visibility map.
    VisibilityMap,
    /// `_init`: what an unlogged relation is reset to after recovery.
    Init,
}

/// A relation file, known by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RelationFile {
    /// `relfilenode`: often, not always, the relation's OID.
    pub number: u32,
    /// Its fork.
    pub fork: Fork,
    /// Which file of the fork, from 0: each but the last holds `relation_segment_blocks` blocks.
    pub segment: u32,
}

impl RelationFile {
    /// Reads a file name such as `16384`, `16384.1` or `16384_vm.2`; `None` for every other name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let (stem, segment) = match name.split_once('.') {
            Some((stem, digits)) => (stem, number(digits)?),
            None => (name, 0),
        };
        let (digits, fork) = match stem.split_once('_') {
            None => (stem, Fork::Main),
            Some((digits, "fsm")) => (digits, Fork::FreeSpaceMap),
            Some((digits, "vm")) => (digits, Fork::VisibilityMap),
            Some((digits, "init")) => (digits, Fork::Init),
            Some(_) => return None,
        };
        Some(Self { number: number(digits)?, fork, segment })
    }

    /// The number, within the fork, of the file's first block: page checksums count from there.
    #[must_use]
    pub fn first_block(self, relation_segment_blocks: u32) -> u32 {
        self.segment.wrapping_mul(relation_segment_blocks)
    }
}

/// Whether this is the name of a temporary relation's file: `t<backend>_<number>`, with fork and segment.
#[must_use]
pub fn is_temporary_relation(name: &str) -> bool {
    let split = name.strip_prefix('t').and_then(|rest| rest.split_once('_'));
    split.is_some_and(|(backend, rest)| {
        !backend.is_empty() && backend.bytes().all(|b| b.is_ascii_digit()) && RelationFile::parse(rest).is_some()
    })
}

/// Whether a directory, by its path below PGDATA, holds relation files: `global`, `base/<database>` and
/// `pg_tblspc/<tablespace>/PG_<version>/<database>`.
#[must_use]
pub fn holds_relations(directory: &Path) -> bool {
    directory == Path::new("global") || is_database_directory(directory)
}

/// Whether a directory, by its path below PGDATA, belongs to one database.
#[must_use]
pub fn is_database_directory(directory: &Path) -> bool {
    let parts: Option<Vec<&str>> = directory
        .components()
        .map(|c| match c {
            Component::Normal(name) => name.to_str(),
            _ => None,
        })
        .collect();
    match parts.as_deref() {
        Some(["base", database]) => number(database).is_some(),
        Some(["pg_tblspc", tablespace, version, database]) => {
            number(tablespace).is_some() && version.starts_with("PG_") && number(database).is_some()
        }
        _ => false,
    }
}

/// The OIDs of `pg_default` and `pg_global` (`pg_tablespace_d.h`).
const PG_DEFAULT: u32 = 1663;
const PG_GLOBAL: u32 = 1664;

/// Tablespace and database whose relations lie in a directory, by its path below PGDATA; shared relations are of
/// database 0.
#[must_use]
pub fn database_of(directory: &Path) -> Option<(u32, u32)> {
    if directory == Path::new("global") {
        return Some((PG_GLOBAL, 0));
    }
    let database = || number(directory.file_name()?.to_str()?);
    let mut names = directory.components().map(|c| c.as_os_str().to_str().unwrap_or_default());
    match (is_database_directory(directory), names.next(), names.next()) {
        (true, Some("base"), _) => Some((PG_DEFAULT, database()?)),
        (true, Some("pg_tblspc"), Some(tablespace)) => Some((number(tablespace)?, database()?)),
        _ => None,
    }
}

/// A decimal number as PostgreSQL writes it: no sign, no leading zero, from 1 up.
pub(crate) fn number(digits: &str) -> Option<u32> {
    let plain = digits.bytes().all(|b| b.is_ascii_digit()) && !digits.starts_with('0');
    plain.then(|| digits.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_whose_relations_they_are() {
        let of = |path: &str| database_of(Path::new(path));
        assert_eq!(of("base/5"), Some((1663, 5)));
        assert_eq!(of("global"), Some((1664, 0)));
        assert_eq!(of("pg_tblspc/16390/PG_17_202406281/5"), Some((16390, 5)));
        assert_eq!(["base", "base/pgsql_tmp", "pg_tblspc/16390/5", "pg_xact"].map(of), [None; 4]);
    }

    #[test]
    fn reads_the_names_of_relation_files() {
        let file = |number, fork, segment| Some(RelationFile { number, fork, segment });
        assert_eq!(RelationFile::parse("16384"), file(16384, Fork::Main, 0));
        assert_eq!(RelationFile::parse("16384.12"), file(16384, Fork::Main, 12));
        assert_eq!(RelationFile::parse("16384_fsm"), file(16384, Fork::FreeSpaceMap, 0));
        assert_eq!(RelationFile::parse("4294967295_vm.2"), file(u32::MAX, Fork::VisibilityMap, 2));
        assert_eq!(RelationFile::parse("1_init"), file(1, Fork::Init, 0));
    }

    #[test]
    fn other_names_are_no_relation_files() {
        for name in [
            "",
            "0",
            "01",
            "16384.",
            "16384.0",
            "16384.01",
            "16384_",
            "16384_x",
            "16384_fsm_",
            "4294967296",
            "+1",
            "pg_control",
            "pg_filenode.map",
            "pg_internal.init",
            "PG_VERSION",
            "t3_16384",
            "16384.1.1",
            "1²",
        ] {
            assert_eq!(RelationFile::parse(name), None, "{name:?}");
        }
    }

    #[test]
    fn knows_temporary_relations() {
        for name in ["t3_16384", "t0_16384", "t12_16384_fsm.1", "t3_16384_vm"] {
            assert!(is_temporary_relation(name), "{name}");
        }
        for name in ["t", "t_1", "t3_", "t3", "3_16384", "tx_1", "t3_16384_x"] {
            assert!(!is_temporary_relation(name), "{name}");
        }
    }

    #[test]
    fn knows_where_relations_lie() {
        for path in ["global", "base/1", "pg_tblspc/16385/PG_17_202406281/5"] {
            assert!(holds_relations(Path::new(path)), "{path}");
        }
        for path in ["", "base", "base/pgsql_tmp", "base/1/2", "log/1", "pg_tblspc/16385", "pg_tblspc/16385/x/5"] {
            assert!(!holds_relations(Path::new(path)), "{path}");
        }
        assert!(!is_database_directory(Path::new("global")));
    }
}
