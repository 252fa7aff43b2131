//! One question of a small program, and its answer.

use std::{
    fmt::Write as _,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::{interval, timeout},
};
use walden_companion::{AT_WORK, Answer, LONGEST_REQUEST, Request};

use super::desk::{Desk, Opened};
use crate::{
    archive::{self, Fetch, Suspensions},
    config::ClusterConfig,
    error::{Error, Result},
    repository::Suspended,
};

/// How long the question may take to arrive.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often a program that waits is told that it is not forgotten.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);

/// How long something may take that the answer does not need.
const SHORT: Duration = Duration::from_millis(500);

/// Reads a question and answers it. A program that has gone is not worked for any longer.
pub(super) async fn serve(mut stream: UnixStream, desk: Arc<Desk>) {
    let by = stream.peer_cred().ok().and_then(|peer| peer.pid());
    let mut sent = Vec::new();
    let read = timeout(PATIENCE, (&mut stream).take(LONGEST_REQUEST).read_to_end(&mut sent)).await;
    let request = read.ok().and_then(Result::ok).and_then(|_| Request::from_bytes(&sent));
    let answer = async {
        match &request {
            Some(request) if request.verb == "push" => push(request, by, &desk).await,
            Some(request) if request.verb == "fetch" => fetch(request, &desk).await,
            _ => None,
        }
    };
    let mut answer = std::pin::pin!(answer);
    let mut alive = interval(SIGN_OF_LIFE);
    let answer = loop {
        tokio::select! {
            answer = &mut answer => break answer,
            _ = alive.tick() => {
                if stream.write_all(&[AT_WORK]).await.is_err() {
                    return;
                }
            }
        }
    };
    // It runs walden when it hears nothing.
    _ = stream.write_all(&Answer::to_bytes(answer.as_ref())).await;
}

/// `None` where the configuration is wrong: `walden` itself tells how.
async fn push(request: &Request, by: Option<i32>, desk: &Desk) -> Option<Answer> {
    let (opened, cluster) = opened(request, desk)?;
    let path = request.cwd.join(&request.path);
    let (limit, begun) = (opened.config.archive.timeout, Instant::now());
    let suspensions = Suspensions::of(&opened.config, &cluster).ok()?;
    if let Some(suspended) = suspensions.skip(&path).await {
        // Whoever ships ahead is to hear of the call, and tells the repository; this answer does not wait for that.
        if let Ok(Ok(served)) = timeout(SHORT, opened.served(&cluster, desk)).await {
            served.is_called(&path, by);
        }
        return Some(not_stored(&path, &suspended));
    }
    let work = async {
        let served = opened.served(&cluster, desk).await?;
        served.is_called(&path, by);
        served.shipper.push(&path).await
    };
    let ended = timeout(limit, work).await.unwrap_or_else(|_| Err(archive::out_of_time(limit)));
    desk.figures(&cluster.name).answered(&ended, begun.elapsed());
    Some(match ended {
        Ok(pushed) => {
            tracing::debug!("{} is durable", pushed.file);
            Answer { status: 0, text: Vec::new() }
        }
        Err(error) => match suspensions.keep_after(&path, &error).await {
            Some(suspended) => not_stored(&path, &suspended),
            None => Answer { status: (desk.agent.push_status)(error.kind()), text: told(&error).into_bytes() },
        },
    })
}

/// PostgreSQL is told "archived", and everybody else that it is not.
fn not_stored(path: &Path, suspended: &Suspended) -> Answer {
    let text = suspended.of_file(path);
    tracing::error!("{text}");
    Answer { status: 0, text: format!("walden: {text}\n").into_bytes() }
}

/// `None` where the configuration is wrong, and where there is no place for the file.
async fn fetch(request: &Request, desk: &Desk) -> Option<Answer> {
    let (opened, cluster) = opened(request, desk)?;
    let until = match &request.until {
        Some(until) => Some(until.to_str()?.parse().ok()?),
        None => None,
    };
    let wanted = Fetch {
        file: request.file.as_ref()?.to_str()?.parse().ok()?,
        destination: request.cwd.join(&request.path),
        until,
        pgdata: cluster.pgdata().ok().map(PathBuf::from),
        incarnation: cluster.incarnation,
    };
    let offered = opened.fetcher(&cluster, &desk.agent).ok()?.offer(&wanted).await.transpose()?;
    Some(match archive::answer(offered, &wanted, opened.config.restore.promote_despite_doubt) {
        Ok(path) => {
            tracing::debug!("{} is ready", wanted.file);
            Answer { status: 0, text: path.as_os_str().as_bytes().to_vec() }
        }
        Err(error) => {
            tracing::debug!("{error}");
            Answer { status: (desk.agent.fetch_status)(error.kind()), text: told(&error).into_bytes() }
        }
    })
}

/// What the request goes by; `None` where it cannot be opened: `walden` itself tells why.
fn opened(request: &Request, desk: &Desk) -> Option<(Arc<Opened>, ClusterConfig)> {
    let opened = desk.for_request(request).ok()?;
    let cluster = match &request.cluster {
        Some(name) => Some(name.to_str()?),
        None => None,
    };
    let cluster = opened.config.cluster(cluster).ok()?;
    Some((opened, cluster))
}

/// As `walden` itself would tell it.
fn told(error: &Error) -> String {
    let mut text = format!("walden: {error}\n");
    if let Some(hint) = error.hint_text() {
        _ = writeln!(text, "hint: {hint}");
    }
    text
}
