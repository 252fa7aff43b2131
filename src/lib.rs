//! Walden keeps every instant of a PostgreSQL cluster recoverable: it ships WAL to object storage, takes base
//! backups, and turns a wish ("the moment before `orders` was dropped") into an exact, proven, executed recovery.
//!
//! # The rooms of the house
//!
//! Data flows one way and imports run downward only:
//!
//! | room | reason to exist |
//! |---|---|
//! | [`error`], [`clock`] | the one error type; time and randomness as they come in. Everyone may use them |
//! | [`human`], [`progress`], [`interrupt`] | sizes and times in words; how work tells how far it is; how it hears the wish to stop |
//! | [`service`] | what a long-running process tells systemd |
//! | [`pace`] | how fast long work goes, and what room it leaves the server |
//! | [`config`] | walden.toml, the environment, flags: one typed value in which every error names file, key and mend |
//! | [`cli`] | arguments in, calls down, words and tables out. No logic |
//! | [`demo`] | the show: a table is dropped by mistake, and comes back |
//! | [`agent`] | the long-running process: answers the small programs, ships ahead, fetches ahead |
//! | [`archive`] | push and fetch: what `archive_command` and `restore_command` ask for, and what they will ask for next; receive: WAL as it is written |
//! | [`check`] | proves that archiving works, setting by setting and then end to end |
//! | [`backup`] | the backup driver: parallel files between start and stop, parts, manifest |
//! | [`keys`] | to whom a repository is encrypted: new identities, old objects for other recipients |
//! | [`mirror`] | other repositories that hold the same objects as the first |
//! | [`plan`] | targets to LSNs, the path of timelines, the proof that every segment is there. Reads only |
//! | [`restore`] | carries out a plan: files, recovery settings, the start, adoption |
//! | [`keep`] | retention: which backups and WAL stay by the rules, and the removal of the rest |
//! | [`kit`] | the recovery kit: one file with what is needed when the machine is gone |
//! | [`report`] | what people look at: sentences about windows, drawings of timelines, the state of a cluster |
//! | [`verify`] | whether everything is there that backups and windows need, and is what was written |
//! | [`repository`] | the layout of a repository: keys, documents, manifests, leases. The one place that knows what is called what |
//! | [`postgres`] | what PostgreSQL is: LSNs, segment names, timelines, the control file. Knows nothing of repositories |
//! | [`seal`] | the byte pipeline: zstd frames, heads, seek tables, BLAKE3. Knows neither PostgreSQL nor stores |
//! | [`store`] | objects in a directory or a bucket: put-if-absent, get, list, delete. Knows no PostgreSQL |
//! | [`wal`] | reads WAL records out of segments: pages, records, commits, restore points. Bytes in, facts out |

pub mod agent;
pub mod archive;
pub mod backup;
pub mod check;
pub mod cli;
pub mod clock;
pub mod config;
pub mod demo;
pub mod error;
pub mod human;
pub mod interrupt;
pub mod keep;
pub mod keys;
pub mod kit;
pub mod mirror;
pub mod pace;
pub mod plan;
pub mod postgres;
pub mod progress;
pub mod report;
pub mod repository;
pub mod restore;
pub mod seal;
pub mod service;
pub mod store;
pub mod verify;
pub mod wal;

pub use error::{Error, Result};
