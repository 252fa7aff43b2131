//! Starts the command line and hands its exit code to the system. A panic has a designed exit code like any other
//! end: PostgreSQL takes Rust's own (101) from `restore_command` for "there is no such file".

use std::{ffi::OsString, panic, process::ExitCode};

use walden::cli::{self, exit::Codes};

fn main() -> ExitCode {
    cli::tell_panics();
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let codes = Codes::of_arguments(&arguments);
    ExitCode::from(panic::catch_unwind(|| cli::run(arguments)).unwrap_or(codes.of_panic()))
}
