//! Runs a command with an S3 server: `with-seaweedfs COMMAND [ARGUMENT ...]`.
//!
//! Starts SeaweedFS, tells the command about it in the environment (`walden_testkit::seaweedfs`), and ends with the
//! command's exit code.
#![allow(clippy::print_stderr, reason = "a program of the tests")]

use std::{
    process::{Command, ExitCode},
    time::Instant,
};

use walden_testkit::seaweedfs::SeaweedFs;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let Some(program) = arguments.next() else {
        eprintln!("usage: with-seaweedfs COMMAND [ARGUMENT ...]");
        return ExitCode::from(2);
    };
    let begun = Instant::now();
    let Some(server) = SeaweedFs::start() else {
        eprintln!("with-seaweedfs: SeaweedFS was not found; scripts/tools seaweedfs fetches it");
        return ExitCode::from(2);
    };
    eprintln!("SeaweedFS at {} after {:.1} s", server.endpoint, begun.elapsed().as_secs_f32());
    let status = Command::new(&program).args(arguments).envs(server.environment()).status();
    match status {
        Ok(status) => ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)),
        Err(error) => {
            eprintln!("with-seaweedfs: {}: {error}", program.display());
            ExitCode::from(2)
        }
    }
}
