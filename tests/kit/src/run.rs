//! Runs a program to its end and keeps what it said.

use std::{
    fmt,
    io::Write as _,
    process::{Command, Output, Stdio},
};

/// How a program ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// The command line, for messages.
    pub command: String,
    /// The exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// What it wrote on standard output.
    pub stdout: String,
    /// What it wrote on standard error.
    pub stderr: String,
}

/// Runs a command to its end.
///
/// # Panics
/// When it cannot be started.
pub fn run(command: &mut Command) -> Ran {
    let line = format!("{command:?}");
    let output = command.output().unwrap_or_else(|error| panic!("{line}: {error}"));
    Ran::new(line, &output)
}

/// Runs a command to its end with that text on its standard input.
///
/// # Panics
/// When it cannot be started.
pub fn run_with_input(command: &mut Command, input: &str) -> Ran {
    let line = format!("{command:?}");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{line}: {error}"));
    let mut stdin = child.stdin.take().expect("a pipe was asked for");
    let output = std::thread::scope(|scope| {
        // A program that ends before it has read everything is judged by its exit code.
        scope.spawn(move || drop(stdin.write_all(input.as_bytes())));
        child.wait_with_output().unwrap_or_else(|error| panic!("{line}: {error}"))
    });
    Ran::new(line, &output)
}

impl Ran {
    fn new(command: String, output: &Output) -> Self {
        Self {
            command,
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Standard output without its last line end, when the program ended well.
    ///
    /// # Panics
    /// With all it said, when it did not.
    #[must_use = "or call `expect_code(0)`"]
    #[track_caller]
    pub fn ok(&self) -> &str {
        self.expect_code(0);
        self.stdout.trim_end_matches('\n')
    }

    /// Insists on an exit code.
    ///
    /// # Panics
    /// With all it said, when it ended otherwise.
    #[track_caller]
    pub fn expect_code(&self, code: i32) -> &Self {
        assert!(self.code == Some(code), "{self}\nexpected: exit code {code}");
        self
    }
}

impl fmt::Display for Ran {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = self.code.map_or("ended by a signal".to_owned(), |code| format!("exit code {code}"));
        write!(f, "{}\n{end}\n--- stdout\n{}\n--- stderr\n{}", self.command, self.stdout, self.stderr)
    }
}
