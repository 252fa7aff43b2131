//! The proof: a record is written, the WAL is switched, and that very segment is waited for in the repository and read
//! back.
//!
//! It need not wait to the end where the answer is known before: when `archive_command` has failed as often as the
//! archiver tries without a pause, or when PostgreSQL holds the segment for archived and it is not in this repository.

use std::{
    fs::File,
    io,
    ops::ControlFlow,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{Line, Request, Surroundings, Teller, Verdict, archiver, host::Host, server::Server};
use crate::{
    error::{Error, Kind, Result},
    human,
    postgres::{Lsn, SegmentName, WalFile, sql::ArchiverStatus},
    repository::{
        System, join,
        wal_object::{self, Digest},
    },
    seal::{Blake3, HashReader},
    store::Key,
};

const NAME: &str = "archiving";
/// How often the repository is asked.
const PAUSE: Duration = Duration::from_millis(200);
/// `NUM_ARCHIVE_RETRIES` in `pgarch.c`: after so many failures the archiver rests for a minute.
const RETRIES: i64 = 3;

/// The line where the proof could not begin.
pub(super) fn not_tried(why: &str) -> Line {
    Line::fail(NAME, format!("not tried: {why}"), "mend that, and run walden check again")
}

/// Proves archiving; answers whether it held.
pub(super) async fn prove(
    system: &System,
    server: &Server,
    host: &Host,
    request: &Request<'_>,
    around: &Surroundings,
    told: &mut Teller<'_>,
) -> bool {
    let needed = ["identity", "recovery", "wal-level", "archive-mode", "archive-command", "role"];
    if let Some(failed) = needed.into_iter().find(|name| told.report.has_failed(name)) {
        told.add(not_tried(&format!("{failed} must be mended first")));
        return false;
    }
    let line = match attempt(system, server, host, request, around).await {
        Ok(line) => line,
        Err(error) => {
            told.report.repository_failed(&error);
            Line::error(NAME, &error)
        }
    };
    around.progress.finish();
    let proven = line.verdict == Verdict::Ok;
    told.add(if proven { line } else { Line { log: archiver::log_lines(server, host), ..line } });
    proven
}

async fn attempt(
    system: &System,
    server: &Server,
    host: &Host,
    request: &Request<'_>,
    around: &Surroundings,
) -> Result<Line> {
    let (session, begun) = (&server.session, Instant::now());
    let before = session.archiver().await?;
    session.write_small_record().await?;
    let end = session.switch_wal().await?;
    let segment = SegmentName::holding(server.facts.timeline, Lsn(end.0 - 1), server.facts.segment_size);
    let key = system.folder.segment(segment)?;
    around.progress.start(&format!("waiting for segment {segment} in the archive"), None);
    let limit = request.config.archive.timeout;
    let head = loop {
        if let Some(head) = head(system, &key).await? {
            break head;
        }
        let now = session.archiver().await?;
        // It was asked before PostgreSQL was: in between the segment may have come.
        if let Some(line) = hopeless(segment, &before, &now, system) {
            match head(system, &key).await? {
                Some(head) => break head,
                None => return Ok(line),
            }
        }
        if begun.elapsed() > limit {
            return Ok(too_late(segment, limit, &now));
        }
        tokio::time::sleep(PAUSE).await;
    };
    let took = begun.elapsed();
    let file = host.pgdata.as_ref().map(|pgdata| pgdata.join("pg_wal").join(segment.to_string()));
    let read = match read_back(system, &key, head, file).await? {
        Some(stored) => format!("and was read back whole ({})", human::size(stored)),
        None => "encrypted for others: what it declares of itself is right".to_owned(),
    };
    Ok(Line::ok(NAME, format!("segment {segment} was in the repository after {}, {read}", human::duration(took))))
}

async fn head(system: &System, key: &Key) -> Result<Option<Digest>> {
    match wal_object::digest(&*system.store, key).await {
        Ok(head) => Ok(Some(head)),
        Err(error) if error.kind() == Kind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Why there is nothing to wait for any more.
fn hopeless(segment: SegmentName, before: &ArchiverStatus, now: &ArchiverStatus, system: &System) -> Option<Line> {
    let past =
        |file: WalFile| matches!(file, WalFile::Segment(done) if done.timeline == segment.timeline && done >= segment);
    if now.last_archived.is_some_and(|(file, _)| past(file)) {
        return Some(Line::fail(
            NAME,
            format!("PostgreSQL holds segment {segment} for archived, but it is not in {}", system.store.url()),
            "archive_command archives to another place, or answers 0 without archiving: compare it with the line of walden init, and the repository of the configuration file that it names with this one",
        ));
    }
    let failures = now.failed - before.failed;
    let archived = now.archived > before.archived;
    (failures >= RETRIES && !archived).then(|| {
        let what = now.last_failed.map_or_else(String::new, |(file, _)| format!(" on {file}"));
        Line::fail(
            NAME,
            format!("archive_command failed {failures} times{what} while segment {segment} was waited for"),
            "the server's log says why; run the command by hand as the server's user, in the data directory",
        )
    })
}

fn too_late(segment: SegmentName, limit: Duration, now: &ArchiverStatus) -> Line {
    let last = |what: &str, event: Option<(WalFile, chrono::DateTime<chrono::Utc>)>| match event {
        Some((file, at)) => format!("; it last {what} {file} at {}", human::time(at)),
        None => String::new(),
    };
    Line::fail(
        NAME,
        format!(
            "segment {segment} did not reach the repository within {}; PostgreSQL has archived {} files and failed {} times{}{}",
            human::duration(limit),
            now.archived,
            now.failed,
            last("archived", now.last_archived),
            last("failed on", now.last_failed),
        ),
        "is the archiver still busy with earlier segments? [archive] timeout sets how long to wait",
    )
}

/// Reads the whole object, which proves its hash, and compares it with the file while that is still in `pg_wal`.
/// Answers the length of the object; none where it is encrypted and not for this host, and only what it declares was
/// compared.
async fn read_back(system: &System, key: &Key, head: Digest, file: Option<PathBuf>) -> Result<Option<u64>> {
    let object = match wal_object::open(&*system.store, key).await {
        Err(error) if error.kind() == Kind::Refused => None,
        object => Some(object?),
    };
    let (length, key) = (object.as_ref().map(|object| object.length), key.clone());
    let compared = tokio::task::spawn_blocking(move || {
        object.map(|object| object.read(|_| Ok(ControlFlow::Continue(())))).transpose()?;
        match file.and_then(|file| Some((hash(&file).ok()?, file))) {
            // A file that is gone now may have become another segment while it was read.
            Some(((hash, size), file)) if (hash, size) != (head.blake3, head.size) && file.exists() => Err(Error::damaged(format!(
                "{key} holds BLAKE3 {} where the file in pg_wal has {}",
                head.blake3.short(),
                hash.short()
            ))
            .hint("another server archives under the same names: walden init --new-incarnation gives this one its own")),
            _ => Ok(length),
        }
    });
    join(compared.await)?
}

/// The hash and the length of a segment.
fn hash(file: &Path) -> io::Result<(Blake3, u64)> {
    let mut reader = HashReader::new(File::open(file)?);
    io::copy(&mut reader, &mut io::sink())?;
    Ok(reader.digest())
}
