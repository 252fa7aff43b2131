//! The kit's S3 server as a program: `s3-server [--port N] [--https] [--latency MILLISECONDS] [--folder FOLDER]`.
//!
//! It says where it listens, and serves until it is killed. Bucket and keys are those of `walden_testkit::s3`.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program of the tests")]

use std::{process::ExitCode, time::Duration};

use walden_testkit::s3::{Options, S3Server};

fn main() -> ExitCode {
    let Some(options) = options() else {
        eprintln!("usage: s3-server [--port N] [--https] [--latency MILLISECONDS] [--folder FOLDER]");
        return ExitCode::from(2);
    };
    let server = S3Server::start_with(options);
    println!("{}", server.endpoint());
    loop {
        std::thread::park();
    }
}

fn options() -> Option<Options> {
    let mut options = Options::default();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--https" => options.https = true,
            "--port" => options.port = arguments.next()?.parse().ok()?,
            "--latency" => options.latency = Duration::from_millis(arguments.next()?.parse().ok()?),
            "--folder" => options.folder = Some(arguments.next()?.into()),
            _ => return None,
        }
    }
    Some(options)
}
