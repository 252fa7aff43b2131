//! Every key there is: its name, what it takes, its default, what it is for. Parsing, the names in the environment,
//! the hints for mistyped keys, `walden config` and docs/CONFIGURATION.md are all made from this one table.

use super::value::Kind;
use crate::{
    error::{Error, Result},
    repository::{ClusterName, RepositoryName},
};

/// A key of `walden.toml`.
#[derive(Debug)]
pub struct Key {
    /// The table it stands in. `cluster` has one table a cluster: `[cluster.NAME]`; `repository` is the first, and has
    /// one for each other: `[repository.NAME]`.
    pub table: &'static str,
    /// Its name in that table.
    pub name: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// What holds when it is not given.
    pub default: Fallback,
    /// What it is for.
    pub doc: &'static str,
}

/// What holds when a key is not given.
#[derive(Clone, Copy, Debug)]
pub enum Fallback {
    /// Nothing: the feature is off, or whoever needs it says that it is missing.
    Nothing,
    /// This value, as it would be written in the environment.
    Is(&'static str),
    /// The number of processors, at most 8.
    Processors,
}

use self::Fallback::{Is, Nothing, Processors};

const fn key(table: &'static str, name: &'static str, kind: Kind, default: Fallback, doc: &'static str) -> Key {
    Key { table, name, kind, default, doc }
}

/// Table by table, in the order of the documentation.
pub static KEYS: &[Key] = &[
    key(
        "repository",
        "url",
        Kind::Url,
        Nothing,
        "Where everything is stored: `s3://bucket/prefix` or `file:///path`. Needed.",
    ),
    key(
        "repository",
        "region",
        Kind::Text,
        Nothing,
        "The bucket's region; without it the AWS settings of the user hold, then `us-east-1`.",
    ),
    key(
        "repository",
        "profile",
        Kind::Text,
        Nothing,
        "The profile of the AWS configuration files that has the credentials (and the region), whatever the environment holds; without it the standard chain.",
    ),
    key(
        "repository",
        "credentials_file",
        Kind::Path,
        Nothing,
        "A file with access keys in the form of `~/.aws/credentials`: the section of `profile`, or `default`. Without it `credentials` beside walden.toml, where there is one: `walden kit import` puts it there. It is above the AWS chain, but for keys in the environment where no `profile` is set.",
    ),
    key(
        "repository",
        "endpoint",
        Kind::Endpoint,
        Nothing,
        "The S3 server's address, such as `https://s3.example.com:9000`; without it Amazon's.",
    ),
    key(
        "repository",
        "path_style",
        Kind::Switch,
        Is("false"),
        "Put the bucket into the path instead of the host name; most servers other than Amazon's need it.",
    ),
    key(
        "repository",
        "storage_class",
        Kind::Text,
        Nothing,
        "The storage class of new objects, such as `STANDARD_IA`. Classes that must be restored before reading make recovery fail.",
    ),
    key(
        "repository",
        "sse",
        Kind::Choice(&["AES256", "aws:kms"]),
        Nothing,
        "Encryption by the server, asked for with every new object.",
    ),
    key(
        "repository",
        "sse_kms_key_id",
        Kind::Text,
        Nothing,
        "The KMS key for `sse = \"aws:kms\"`; without it the bucket's.",
    ),
    key(
        "repository",
        "lock",
        Kind::Time,
        Nothing,
        "Have the bucket lock each object with data for so long, such as `30 days`: until then nobody deletes it for good. The bucket must have been made for it. See docs/SECURITY.md.",
    ),
    key(
        "repository",
        "lock_mode",
        Kind::Choice(&["governance", "compliance"]),
        Is("governance"),
        "Whether whoever has the right to may lift a lock (`governance`), or nobody at all (`compliance`).",
    ),
    key(
        "repository",
        "conditional_writes",
        Kind::Choice(&["required", "check-then-put"]),
        Is("required"),
        "`check-then-put` accepts a store that ignores put-if-absent: two servers that archive under one name at the same moment could then overwrite each other.",
    ),
    key(
        "repository",
        "ca_file",
        Kind::Path,
        Nothing,
        "Certificates (PEM) to trust besides the system's, for a server of your own.",
    ),
    key("repository", "connect_timeout", Kind::Time, Is("5s"), "How long connecting may take."),
    key(
        "repository",
        "request_timeout",
        Kind::Time,
        Is("20s"),
        "How long one request may take before it is tried again; large bodies are given more.",
    ),
    key(
        "repository",
        "deadline",
        Kind::Time,
        Is("60s"),
        "How long one request is tried again before it counts as unreachable.",
    ),
    key(
        "encryption",
        "recipients",
        Kind::Recipients,
        Nothing,
        "To whom everything that holds data is encrypted: the recipients (`age1...`) of one or several identities, each of which alone can read it. A host that backs up needs no identity. Without this, nothing is encrypted; what is stored already stays as it is.",
    ),
    key(
        "encryption",
        "identity_file",
        Kind::Path,
        Nothing,
        "The file with the identity (`AGE-SECRET-KEY-1...`) that reads what is encrypted, as `age-keygen` writes it. Nobody but its owner may be able to read it; where it is root's, its group may, too. It is read only when it is needed.",
    ),
    key("cluster", "pgdata", Kind::Path, Nothing, "The data directory."),
    key(
        "cluster",
        "connection",
        Kind::Connection,
        Nothing,
        "How to connect: a libpq connection string or URI. Passwords are better kept in a password file.",
    ),
    key(
        "cluster",
        "primary",
        Kind::Connection,
        Nothing,
        "How to connect to the primary, where `connection` leads to a standby: at the end of a backup from there `walden backup` calls `pg_switch_wal()` on the primary, so that an idle one archives the last segment.",
    ),
    key(
        "cluster",
        "incarnation",
        Kind::Whole(1, 4_294_967_295),
        Is("1"),
        "Which incarnation of the system archives here; `walden init --new-incarnation` writes it.",
    ),
    key(
        "archive",
        "compression",
        Kind::Compressions,
        Is("zstd:1..3"),
        "How WAL is compressed: at that level, or between two of them. The second is for a segment that waits alone while processors are idle; the more wait, and the faster they become more, the nearer it comes to the first.",
    ),
    key(
        "archive",
        "cpu",
        Kind::Whole(1, 64),
        Processors,
        "On how many processors segments are compressed at the most. More than one are taken only while others leave them idle, or while 8 segments and more wait.",
    ),
    key(
        "archive",
        "nice",
        Kind::Whole(0, 19),
        Nothing,
        "How nice archiving is to other programs that want a processor: 19 is the nicest. Where the server wants all of them, a nice archiver falls behind.",
    ),
    key(
        "archive",
        "timeout",
        Kind::Time,
        Is("60s"),
        "How long one push or fetch may take before it asks PostgreSQL to try again.",
    ),
    key(
        "archive",
        "parallel",
        Kind::Whole(1, 64),
        Is("8"),
        "How many segments are on their way at a time when several are ready; fewer of more than 16 MB.",
    ),
    key(
        "archive",
        "state_dir",
        Kind::Path,
        Is("/var/lib/walden-state"),
        "Where this host remembers which segments were shipped before PostgreSQL asked, how far other repositories are in step, and, where the repository is encrypted, what the next backup compares with: names and hashes of all files, about a 400th of the size of the cluster. It must belong to the user that archives, and be writable for nobody else; where it is not, segments are shipped one by one, when PostgreSQL asks.",
    ),
    key(
        "archive",
        "wait_for",
        Kind::Choice(&["all", "first"]),
        Is("all"),
        "With several repositories: `all`: a segment counts as archived once it is durable in each, and while one is away PostgreSQL keeps its WAL; `first`: once it is durable in the first, and the others catch up. With `first`, what the others do not have yet is lost when the host and the first are lost together.",
    ),
    key(
        "agent",
        "socket",
        Kind::Path,
        Is("/run/walden/agent.sock"),
        "The Unix socket of `walden agent`. The small programs look for it there; for another one PostgreSQL's environment needs `WALDEN_AGENT_SOCKET`, or their commands the flag `--agent SOCKET`.",
    ),
    key(
        "agent",
        "listen",
        Kind::Listen,
        Nothing,
        "Where `walden agent` answers `GET /metrics`, in Prometheus' text format; without it nowhere. What it tells is not secret, but nobody is asked for a password.",
    ),
    key(
        "agent",
        "listen_beyond_loopback",
        Kind::Switch,
        Is("false"),
        "Let `listen` be an address that other hosts reach.",
    ),
    key(
        "receive",
        "slot",
        Kind::Text,
        Nothing,
        "The physical replication slot of `walden wal receive`; without it `walden_` and the cluster's name, with `_` for what PostgreSQL does not allow. It is made where it is missing.",
    ),
    key(
        "receive",
        "application_name",
        Kind::Text,
        Is("walden"),
        "The name under which the server knows the receiver: for `synchronous_standby_names` and `pg_stat_replication`.",
    ),
    key(
        "receive",
        "flush_interval",
        Kind::Time,
        Is("1s"),
        "How long WAL may wait for more before it is stored as a piece of its segment; 1 MiB does not wait. Where commits wait for the repository (`synchronous_standby_names` names the receiver, `flushed_when = \"stored\"`) nothing waits: each piece is a request.",
    ),
    key(
        "receive",
        "flushed_when",
        Kind::Choice(&["stored", "spooled"]),
        Is("stored"),
        "When the server is told that WAL is flushed, which is what commits wait for and the slot goes by: when it is durable in the repository, or as soon as it is in the spool and synced to disk, from where a restart brings it into the repository first.",
    ),
    key(
        "receive",
        "spool_limit",
        Kind::Size,
        Is("1GB"),
        "The most bytes that wait for the repository in `receive` below `[archive] state_dir`; two segments always fit. When it is full nothing more is received, and the server keeps its WAL.",
    ),
    key(
        "receive",
        "slot_limit",
        Kind::Size,
        Is("10GB"),
        "Warn when the slot makes the server keep more WAL than this. The server itself gives up the slot only where `max_slot_wal_keep_size` is set.",
    ),
    key(
        "receive",
        "timeout",
        Kind::Time,
        Is("60s"),
        "After how long without a word from the server the connection is given up and made anew.",
    ),
    key(
        "receive",
        "accept_gap",
        Kind::Switch,
        Is("false"),
        "Go on behind WAL that neither the server nor the repository has, instead of stopping. No recovery passes such a gap: it takes a new backup. `wal receive --accept-gap` is above it.",
    ),
    key("backup", "compression", Kind::Compression, Is("zstd:1"), "How parts are compressed: `zstd:LEVEL`, 1 to 19."),
    key(
        "backup",
        "parallel",
        Kind::Whole(1, 64),
        Processors,
        "How many files are read and sealed at a time at most: it begins with one, and grows while that brings more and the server leaves processors free. A remote backup is one stream.",
    ),
    key(
        "backup",
        "rate_limit",
        Kind::Size,
        Nothing,
        "The most bytes a second to read from the data directory, or to ask of the server; `backup --rate-limit` is above it.",
    ),
    key(
        "backup",
        "nice",
        Kind::Whole(0, 19),
        Nothing,
        "How nice a backup is to other programs that want a processor: 19 is the nicest. Where it cannot be had there is a warning.",
    ),
    key(
        "backup",
        "io_priority",
        Kind::Choice(&["low", "idle"]),
        Nothing,
        "When a backup's reads and writes come: `low` is the last of those served by turns, `idle` when nobody else has any. Not every scheduler of the kernel minds it; it is set with `ionice`.",
    ),
    key(
        "backup",
        "wal_summaries",
        Kind::Switch,
        Is("true"),
        "Where the server (17 and later, `summarize_wal = on`) keeps WAL summaries since the last backup, read only the blocks that they name; `false`: read every file that has changed.",
    ),
    key(
        "backup",
        "exclude",
        Kind::List,
        Nothing,
        "Files and directories to leave out, relative to the data directory, besides what PostgreSQL leaves out itself.",
    ),
    key(
        "backup",
        "files",
        Kind::Paths,
        Nothing,
        "Files and folders outside the data directory to save with every local backup; `*`, `?` and `[a-z]` stand for parts of a name. The server's configuration files are saved without being named. Whoever may read the repository may read them.",
    ),
    key(
        "restore",
        "rate_limit",
        Kind::Size,
        Nothing,
        "The most bytes of files a second to fetch, and to read when they are compared; `restore --rate-limit` is above it.",
    ),
    key("restore", "parallel", Kind::Whole(1, 64), Processors, "How many files are fetched and written at a time."),
    key(
        "restore",
        "prefetch",
        Kind::Whole(0, 64),
        Is("8"),
        "How many segments are fetched ahead while PostgreSQL replays; 0: each when it asks. They lie beside the data directory in `.NAME.walden-prefetch`, on the file system of `pg_wal`, or else in `[archive] state_dir`.",
    ),
    key(
        "restore",
        "prefetch_size",
        Kind::Size,
        Is("256MB"),
        "How many bytes of segments are fetched ahead at most; segments that are longer are not.",
    ),
    key(
        "restore",
        "promote_despite_doubt",
        Kind::Switch,
        Is("false"),
        "Let a standby that is being promoted end recovery though a segment could not be read. Data may be missing.",
    ),
    key(
        "keep",
        "last",
        Kind::Whole(0, 10_000),
        Nothing,
        "So many of the newest backups stay. Without any key of this table `walden expire` removes no backup and no WAL.",
    ),
    key(
        "keep",
        "daily",
        Kind::Whole(0, 10_000),
        Nothing,
        "The newest backup of each of so many days that have one stays.",
    ),
    key(
        "keep",
        "weekly",
        Kind::Whole(0, 10_000),
        Nothing,
        "The newest backup of each of so many weeks that have one stays; weeks begin on Monday.",
    ),
    key(
        "keep",
        "monthly",
        Kind::Whole(0, 10_000),
        Nothing,
        "The newest backup of each of so many months that have one stays.",
    ),
    key(
        "keep",
        "yearly",
        Kind::Whole(0, 10_000),
        Nothing,
        "The newest backup of each of so many years that have one stays.",
    ),
    key(
        "keep",
        "window",
        Kind::Time,
        Nothing,
        "Every instant of this time up to now stays recoverable, such as `14 days`: all backups and all WAL of it, and the backup before. What is older keeps the WAL that makes it consistent. Without it what comes after the newest backup stays recoverable.",
    ),
    key(
        "keep",
        "zone",
        Kind::Zone,
        Is("UTC"),
        "Whose days, weeks, months and years these are, such as `Europe/Berlin`.",
    ),
    key(
        "keep",
        "compact",
        Kind::Whole(1, 99),
        Nothing,
        "`walden expire` then also writes parts anew of whose content less than so many per cent is needed. Without it only `walden compact` does, below 50.",
    ),
    key(
        "keep",
        "compact_limit",
        Kind::Size,
        Is("10GB"),
        "About so many bytes of parts are copied by one run at the most; the next run goes on.",
    ),
    key(
        "keep",
        "rate_limit",
        Kind::Size,
        Nothing,
        "The most bytes a second that are fetched of parts that are written anew.",
    ),
    key(
        "goals",
        "rpo",
        Kind::Time,
        Nothing,
        "How much may be lost when the server's machine is: `status` and `check` say when `archive_timeout` allows more.",
    ),
    key(
        "goals",
        "backup_age",
        Kind::Time,
        Is("8d"),
        "How old the newest backup may be before `status` calls somebody.",
    ),
    key(
        "goals",
        "restore_age",
        Kind::Time,
        Is("100d"),
        "How long ago a restore may have succeeded last before `status` and `check` advise to try one.",
    ),
    key(
        "kit",
        "keep",
        Kind::Whole(1, 1000),
        Is("10"),
        "How many recovery kits are kept in the repository, and besides the newest that holds an identity; `walden kit export --to-repository` removes older ones.",
    ),
];

/// Tables that belong to a later version. They are refused rather than ignored: whoever wrote them counts on them.
pub const LATER: [&str; 2] = ["schedule", "notify"];

/// The tables there are, in order.
pub fn tables() -> impl Iterator<Item = &'static str> {
    let mut last = "";
    KEYS.iter().map(|key| key.table).filter(move |table| std::mem::replace(&mut last, table) != *table)
}

/// The key of that name in that table.
pub fn find(table: &str, name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.table == table && key.name == name)
}

/// An error unless that can be the name of one of several tables of that kind.
pub fn prove_name(table: &str, name: &str) -> Result<()> {
    if table == "cluster" {
        return name.parse::<ClusterName>().map(drop);
    }
    if name == RepositoryName::FIRST {
        return Err(Error::invalid(format!(
            "the name \"{name}\" is that of the first repository, whose table is [{table}]"
        ))
        .hint("give the other one another name, such as \"offsite\""));
    }
    name.parse::<RepositoryName>().map(drop)
}

/// The known name that is most like a mistyped one, if any comes close.
pub fn nearest<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let likeness = |name: &str| strsim::normalized_damerau_levenshtein(&typed.to_lowercase(), &name.to_lowercase());
    let by_likeness = known.into_iter().map(|name| (likeness(name), name));
    by_likeness.filter(|(likeness, _)| *likeness >= 0.5).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_found_and_a_strange_one_has_none() {
        let names = || KEYS.iter().filter(|k| k.table == "repository").map(|k| k.name);
        assert_eq!(nearest("endpont", names()), Some("endpoint"));
        assert_eq!(nearest("URL", names()), Some("url"));
        assert_eq!(nearest("pathstyle", names()), Some("path_style"));
        assert_eq!(nearest("wibble", names()), None);
    }

    #[test]
    fn tables_come_once_each() {
        assert_eq!(
            tables().collect::<Vec<_>>(),
            [
                "repository",
                "encryption",
                "cluster",
                "archive",
                "agent",
                "receive",
                "backup",
                "restore",
                "keep",
                "goals",
                "kit"
            ]
        );
    }
}
