//! How PostgreSQL itself judges its archiving. Looked at after the proof, so that failures from before, when something
//! was still missing, do not count against what works now.

use std::{path::Path, time::Duration};

use super::{Line, host::Host, server::Server};
use crate::{
    human,
    postgres::{log, sql::ArchiverStatus},
};

const NAME: &str = "archiver";
/// Statistics reach their readers a moment after the fact.
const PATIENCE: u32 = 20;
const PAUSE: Duration = Duration::from_millis(250);
/// How many lines of the server's log are shown.
const LINES: usize = 5;

/// What `pg_stat_archiver` says. `proven` is whether a segment has just arrived, in spite of what it says.
pub(super) async fn archiver(server: &Server, host: &Host, proven: bool) -> Line {
    let mut status = server.session.archiver().await;
    for _ in 0..PATIENCE {
        match &status {
            Ok(status) if proven && is_failing(status) => {}
            _ => break,
        }
        tokio::time::sleep(PAUSE).await;
        status = server.session.archiver().await;
    }
    match status {
        Ok(status) => judge(&status, host),
        Err(error) => Line::error(NAME, &error),
    }
}

fn is_failing(status: &ArchiverStatus) -> bool {
    let archived = status.last_archived.map(|(_, at)| at);
    status.last_failed.is_some_and(|(_, at)| archived.is_none_or(|archived| at > archived))
}

fn judge(status: &ArchiverStatus, host: &Host) -> Line {
    match status.last_failed {
        Some((file, at)) if is_failing(status) => Line {
            log: host.pgdata.as_deref().map(log_lines).unwrap_or_default(),
            ..Line::fail(
                NAME,
                format!(
                    "archive_command failed last, on {file} at {}, {} times in all",
                    human::time(at),
                    status.failed
                ),
                "the server's log says why",
            )
        },
        _ => match status.last_archived {
            Some((file, at)) => Line::ok(NAME, format!("{file} was archived last, at {}", human::time(at))),
            None => Line::ok(NAME, "nothing was archived since the statistics were reset"),
        },
    }
}

/// What the end of the server's log says about archiving, where it can be read.
pub(super) fn log_lines(pgdata: &Path) -> Vec<String> {
    let words = ["archive", "walden", "hint:"];
    log::log_file(pgdata).map(|log| log::last_lines_about(&log, &words, LINES)).unwrap_or_default()
}
