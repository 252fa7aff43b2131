//! The real program in a folder of its own, with no `walden` beside it or with one that ends in every way there is.

#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
};

use tempfile::TempDir;

const NAME: &str = "000000010000000000000001";

/// A program can't be started while it is open for writing, and a process that another test is just starting holds it
/// open for a moment: files are made and processes started one at a time.
fn one_at_a_time() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A folder with the program and, when `walden` is given, a shell script of that name beside it.
fn folder(walden: Option<&str>) -> TempDir {
    let _guard = one_at_a_time();
    let folder = TempDir::new().unwrap();
    fs::copy(env!("CARGO_BIN_EXE_walden-restore"), folder.path().join("walden-restore")).unwrap();
    if let Some(script) = walden {
        let path = folder.path().join("walden");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    folder
}

fn run(folder: &Path, arguments: &[&str], path: &str) -> Output {
    let mut command = Command::new(folder.join("walden-restore"));
    command.args(arguments).current_dir(folder).env("PATH", path).stdout(Stdio::piped()).stderr(Stdio::piped());
    let guard = one_at_a_time();
    let child = command.spawn().unwrap();
    drop(guard);
    child.wait_with_output().unwrap()
}

fn status(walden: Option<&str>, arguments: &[&str]) -> Option<i32> {
    run(folder(walden).path(), arguments, "/nonexistent").status.code()
}

#[test]
fn delivered_and_absent_are_passed_on_and_every_other_end_is_200() {
    for (script, code) in [
        (": > RECOVERYXLOG", 0),
        ("echo absent; exit 1", 1),
        // Some other program of that name, or a wrapper that failed: no proof of anything.
        ("exit 0", 200),
        ("exit 1", 200),
        ("echo absent; exit 2", 200),
        ("echo not absent; exit 1", 200),
        ("exit 2", 200),
        ("exit 101", 200),
        ("exit 125", 200),
        ("exit 126", 200),
        ("exit 200", 200),
        ("kill -9 $$", 200),
        ("kill -TERM $$", 200),
        ("kill -ABRT $$", 200),
    ] {
        assert_eq!(status(Some(script), &[NAME, "RECOVERYXLOG"]), Some(code), "{script}");
    }
}

#[test]
fn wrong_usage_and_a_missing_walden_are_200() {
    for arguments in [
        &[][..],
        &[NAME],
        &[NAME, "a", "b"],
        &["--bogus", NAME, "a"],
        &["--until"],
        &[NAME, "--config", "x"],
        &["", "a"],
    ] {
        assert_eq!(status(Some("exit 0"), arguments), Some(200), "{arguments:?}");
    }
    let folder = folder(None);
    let ended = run(folder.path(), &[NAME, "a"], "/nonexistent");
    assert_eq!(ended.status.code(), Some(200));
    let told = String::from_utf8(ended.stderr).unwrap();
    assert!(told.contains("hint: install walden beside walden-restore or on PATH"), "{told}");
    fs::write(folder.path().join("walden"), "not a program").unwrap();
    assert_eq!(run(folder.path(), &[NAME, "a"], "/nonexistent").status.code(), Some(200));
}

#[test]
fn walden_is_handed_both_names_and_how_far_the_plan_reaches() {
    let folder = folder(Some("printf '%s\\n' \"$@\" > handed"));
    let arguments = ["--config", "/etc/w w.toml", "--until", NAME, "00000002.history", "pg_wal/RECOVERYHISTORY"];
    run(folder.path(), &arguments, "/nonexistent");
    let handed = fs::read_to_string(folder.path().join("handed")).unwrap();
    assert_eq!(
        handed,
        format!(
            "wal\nfetch\n--no-local-config\n--config\n/etc/w w.toml\n--until\n{NAME}\n--\n\
             00000002.history\npg_wal/RECOVERYHISTORY\n"
        )
    );
}

#[test]
fn help_and_version_are_told() {
    let folder = folder(None);
    let told = |flag| String::from_utf8(run(folder.path(), &[flag], "").stdout).unwrap();
    assert!(told("--help").contains("EXIT STATUS"));
    assert_eq!(told("--version"), format!("walden-restore {}\n", env!("CARGO_PKG_VERSION")));
}
