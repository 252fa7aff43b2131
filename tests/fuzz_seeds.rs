//! The seeds of the fuzz targets, through the same functions, without a fuzzer. See docs/TESTING.md.
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

use std::{fs, path::Path};

#[allow(dead_code, missing_docs, clippy::pedantic, reason = "a crate of its own, built with cargo-fuzz")]
#[path = "../fuzz/src/lib.rs"]
mod fuzz;

/// Runs a target over its seeds, and over each cut short and with a byte changed.
fn replay(name: &str, target: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(name);
    let mut random = fastrand::Rng::with_seed(3);
    let mut seeds = 0;
    for file in fs::read_dir(&folder).unwrap() {
        let mut seed = fs::read(file.unwrap().path()).unwrap();
        target(&seed);
        target(&seed[..seed.len() / 2]);
        if !seed.is_empty() {
            let at = random.usize(..seed.len());
            seed[at] ^= random.u8(1..);
            target(&seed);
        }
        seeds += 1;
    }
    assert!(seeds > 0, "{} is empty", folder.display());
}

#[test]
fn reader() {
    replay("reader", fuzz::reader);
}

#[test]
fn records() {
    replay("records", fuzz::records);
}

#[test]
fn summary() {
    replay("summary", fuzz::summary);
}

#[test]
fn head() {
    replay("head", fuzz::head);
}

#[test]
fn manifest() {
    replay("manifest", fuzz::manifest);
}

#[test]
fn part() {
    replay("part", fuzz::part);
}

#[test]
fn changed_blocks() {
    replay("changed_blocks", fuzz::changed_blocks);
}
