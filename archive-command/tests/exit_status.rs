//! The real program in a folder of its own, with no `walden` beside it or with one that ends in every way there is.

#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
    process::{Command, Output, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
};

use tempfile::TempDir;

/// A program can't be started while it is open for writing, and a process that another test is just starting holds it
/// open for a moment: files are made and processes started one at a time.
fn one_at_a_time() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A folder with the program and, when `walden` is given, a shell script of that name beside it.
fn folder(walden: Option<&str>) -> TempDir {
    let folder = TempDir::new().unwrap();
    // A link to the file itself would lead back to the build's folder, where the real walden may lie.
    let guard = one_at_a_time();
    fs::copy(env!("CARGO_BIN_EXE_walden-archive"), folder.path().join("walden-archive")).unwrap();
    drop(guard);
    if let Some(script) = walden {
        write_script(&folder.path().join("walden"), script);
    }
    folder
}

fn write_script(path: &Path, script: &str) {
    let _guard = one_at_a_time();
    fs::write(path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn run(program: &Path, arguments: &[&str], path: &str) -> Output {
    let mut command = Command::new(program);
    command.args(arguments).env("PATH", path).stdout(Stdio::piped()).stderr(Stdio::piped());
    let guard = one_at_a_time();
    let child = command.spawn().unwrap();
    drop(guard);
    child.wait_with_output().unwrap()
}

fn status(walden: Option<&str>, arguments: &[&str]) -> Option<i32> {
    let folder = folder(walden);
    run(&folder.path().join("walden-archive"), arguments, "/nonexistent").status.code()
}

#[test]
fn the_codes_of_walden_are_passed_on_and_every_other_end_is_1() {
    for (script, code) in [
        ("exit 0", 0),
        ("exit 1", 1),
        ("exit 2", 2),
        ("exit 4", 4),
        ("exit 3", 1),
        ("exit 101", 1),
        ("exit 127", 1),
        ("exit 200", 1),
        ("kill -9 $$", 1),
        ("kill -TERM $$", 1),
        ("kill -ABRT $$", 1),
    ] {
        assert_eq!(status(Some(script), &["pg_wal/x"]), Some(code), "{script}");
    }
}

#[test]
fn wrong_usage_and_a_missing_walden_are_2() {
    for arguments in [&[][..], &["a", "b"], &["--bogus", "a"], &["--config"], &["--cluster", "main"], &[""]] {
        assert_eq!(status(Some("exit 0"), arguments), Some(2), "{arguments:?}");
    }
    let folder = folder(None);
    let ended = run(&folder.path().join("walden-archive"), &["pg_wal/x"], "/nonexistent");
    assert_eq!(ended.status.code(), Some(2));
    let told = String::from_utf8(ended.stderr).unwrap();
    assert!(told.contains("hint: install walden beside walden-archive or on PATH"), "{told}");
    fs::write(folder.path().join("walden"), "not a program").unwrap();
    assert_eq!(run(&folder.path().join("walden-archive"), &["x"], "/nonexistent").status.code(), Some(2));
}

#[test]
fn walden_is_handed_the_path_and_where_its_configuration_is() {
    let folder = folder(Some("printf '%s\\n' \"$@\""));
    let program = folder.path().join("walden-archive");
    let ended = run(&program, &["--config", "/etc/w w.toml", "--cluster=main", "pg_wal/0 1"], "/nonexistent");
    let handed = String::from_utf8(ended.stdout).unwrap();
    assert_eq!(handed, "wal\npush\n--no-local-config\n--config\n/etc/w w.toml\n--cluster\nmain\n--\npg_wal/0 1\n");
}

#[test]
fn walden_beside_the_program_comes_before_the_one_on_path() {
    let (beside, elsewhere) = (folder(Some("exit 0")), folder(None));
    write_script(&elsewhere.path().join("walden"), "exit 4");
    let path = elsewhere.path().to_str().unwrap();
    assert_eq!(run(&beside.path().join("walden-archive"), &["x"], path).status.code(), Some(0));
    // A link stands for the file it leads to.
    let linked = TempDir::new().unwrap();
    symlink(beside.path().join("walden-archive"), linked.path().join("walden-archive")).unwrap();
    assert_eq!(run(&linked.path().join("walden-archive"), &["x"], path).status.code(), Some(0));
    // With none beside it, PATH tells.
    fs::remove_file(beside.path().join("walden")).unwrap();
    assert_eq!(run(&beside.path().join("walden-archive"), &["x"], path).status.code(), Some(4));
}

#[test]
fn help_and_version_are_told() {
    let folder = folder(None);
    let told = |flag| String::from_utf8(run(&folder.path().join("walden-archive"), &[flag], "").stdout).unwrap();
    assert!(told("--help").contains("EXIT STATUS"));
    assert_eq!(told("--version"), format!("walden-archive {}\n", env!("CARGO_PKG_VERSION")));
}
