//! How PostgreSQL itself judges its archiving. Looked at after the proof, so that failures from before, when something
//! was still missing, do not count against what works now.

use std::time::Duration;

use super::{Line, host::Host, server::Server};
use crate::{
    human,
    postgres::{log, sql::ArchiverStatus},
};

const NAME: &str = "archiver";
/// Statistics reach their readers a moment after the fact.
const PATIENCE: u32 = 20;
const PAUSE: Duration = Duration::from_millis(250);
/// How many lines of the server's log are shown: what walden said, its hint, and what PostgreSQL made of it.
const LINES: usize = 3;
/// What such lines hold. No more than that: other lines may tell statements of users.
const ABOUT: [&str; 5] = ["archive command", "archive_command", "walden: ", "walden-archive: ", "hint: "];

/// What `pg_stat_archiver` says. `proven` is whether a segment has just arrived, in spite of what it says.
pub(super) async fn archiver(server: &Server, proven: bool) -> Line {
    let mut status = server.session.archiver().await;
    for _ in 0..PATIENCE {
        match &status {
            Ok(status) if proven && status.is_failing() => {}
            _ => break,
        }
        tokio::time::sleep(PAUSE).await;
        status = server.session.archiver().await;
    }
    match status {
        Ok(status) => judge(&status),
        Err(error) => Line::error(NAME, &error),
    }
}

fn judge(status: &ArchiverStatus) -> Line {
    match status.last_failed {
        Some((file, at)) if status.is_failing() => Line::fail(
            NAME,
            format!("archive_command failed last, on {file} at {}, {} times in all", human::time(at), status.failed),
            "the server's log says why",
        ),
        _ => match status.last_archived {
            Some((file, at)) => Line::ok(NAME, format!("{file} was archived last, at {}", human::time(at))),
            None => Line::ok(NAME, "nothing was archived since the statistics were reset"),
        },
    }
}

/// What the end of the server's log says about archiving, where it can be read. PostgreSQL repeats the failed command
/// there, which may hold secrets: those lines are left out.
pub(super) fn log_lines(server: &Server, host: &Host) -> Vec<String> {
    let Some(log) = host.pgdata.as_deref().and_then(log::log_file) else { return Vec::new() };
    let command = server.facts.archive_command.split('%').next().unwrap_or_default().trim();
    let about =
        |line: &str| ABOUT.iter().any(|word| line.contains(word)) && (command.is_empty() || !line.contains(command));
    log::last_lines(&log, about, LINES)
}
