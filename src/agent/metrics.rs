//! `GET /metrics`: the state of the agent's clusters, and what it has done itself, in Prometheus' text format.
//!
//! A few lines of HTTP are all it takes: one request a connection, nothing is read but its first line.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Mutex, Semaphore},
    time::timeout,
};

use super::desk::Desk;
use crate::{
    archive::Pushed,
    config::AgentConfig,
    error::{Error, Result},
    interrupt::Interrupt,
    plan::Watch,
    progress::Unwatched,
    report::{
        look,
        metrics::{self, Metric, Page},
    },
};

/// How long a page is good for: whoever asks oftener gets it again.
const FRESH: Duration = Duration::from_secs(10);
/// How long the repository may take. Prometheus waits for 10 seconds unless it is told otherwise.
const PATIENCE: Duration = Duration::from_secs(7);
/// How long a connection may take from its first byte to its last.
const LIMIT: Duration = Duration::from_secs(60);
/// How many connections are served at a time; more are closed at once.
const CONNECTIONS: usize = 8;
/// A request's head may be so long.
const LONGEST: u64 = 8192;

/// What the agent has done for a cluster.
#[derive(Debug, Default)]
pub(super) struct Figures {
    stored: AtomicU64,
    already: AtomicU64,
    failed: AtomicU64,
    ahead: AtomicU64,
    bytes: AtomicU64,
    milliseconds: AtomicU64,
}

impl Figures {
    /// A call was answered.
    pub(super) fn answered(&self, ended: &Result<Pushed>, took: Duration) {
        let count = match ended {
            Ok(pushed) if pushed.already => &self.already,
            Ok(pushed) => {
                self.bytes.fetch_add(pushed.stored, Relaxed);
                &self.stored
            }
            Err(_) => &self.failed,
        };
        count.fetch_add(1, Relaxed);
        self.milliseconds.fetch_add(u64::try_from(took.as_millis()).unwrap_or(u64::MAX), Relaxed);
    }

    /// Files were shipped before PostgreSQL asked.
    pub(super) fn shipped_ahead(&self, files: usize) {
        self.ahead.fetch_add(files as u64, Relaxed);
    }
}

/// Listens where the configuration says so.
pub(super) async fn bind(config: &AgentConfig) -> Result<Option<TcpListener>> {
    let Some(address) = config.listen else { return Ok(None) };
    if !address.ip().is_loopback() && !config.listen_beyond_loopback {
        return Err(Error::invalid(format!("[agent] listen = \"{address}\" is open to other hosts"))
            .hint("use 127.0.0.1, or set listen_beyond_loopback = true under [agent]"));
    }
    let listener = TcpListener::bind(address).await.map_err(|e| {
        Error::failed(format!("listen on {address}")).source(e).hint("another address or port: [agent] listen")
    })?;
    Ok(Some(listener))
}

/// Answers until it is dropped.
pub(super) async fn serve(listener: TcpListener, desk: Arc<Desk>, interrupt: Interrupt) {
    let (free, last) = (Arc::new(Semaphore::new(CONNECTIONS)), Arc::new(Mutex::new(None)));
    if let Ok(address) = listener.local_addr() {
        tracing::info!("metrics at http://{address}/metrics");
    }
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::error!("accept a connection for metrics: {error}");
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        let Ok(permit) = free.clone().try_acquire_owned() else { continue };
        let (desk, last, interrupt) = (desk.clone(), last.clone(), interrupt.clone());
        tokio::spawn(async move {
            if timeout(LIMIT, answer(stream, &desk, &last, interrupt)).await.is_err() {
                tracing::info!("whoever asked for metrics took too long");
            }
            drop(permit);
        });
    }
}

/// A page, and when it was made.
type Last = Mutex<Option<(Instant, String)>>;

async fn answer(mut stream: TcpStream, desk: &Desk, last: &Last, interrupt: Interrupt) {
    let Some(request) = head(&mut stream).await else { return };
    let mut words = request.split_whitespace();
    let (status, body) = match (words.next(), words.next()) {
        (Some("GET"), Some("/metrics")) => match fresh(desk, last, interrupt).await {
            Ok(page) => ("200 OK", page),
            Err(error) => ("500 Internal Server Error", format!("{error}\n")),
        },
        (Some("GET"), Some(_)) => ("404 Not Found", "there is /metrics\n".to_owned()),
        _ => ("405 Method Not Allowed", "there is GET /metrics\n".to_owned()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    // A reader that has gone needs nothing.
    _ = stream.write_all(head.as_bytes()).await;
    _ = stream.write_all(body.as_bytes()).await;
    _ = stream.shutdown().await;
}

/// The head of a request, up to its empty line.
async fn head(stream: &mut TcpStream) -> Option<String> {
    let (mut head, mut piece) = (Vec::new(), [0; 1024]);
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut piece).await {
            Ok(count) if count > 0 && head.len() as u64 <= LONGEST => head.extend_from_slice(&piece[..count]),
            _ => return None,
        }
    }
    String::from_utf8(head).ok()
}

/// The last page, or a new one. Several that ask at once wait for the same.
async fn fresh(desk: &Desk, last: &Last, interrupt: Interrupt) -> Result<String> {
    let mut last = last.lock().await;
    if let Some((_, page)) = last.as_ref().filter(|(made, _)| made.elapsed() < FRESH) {
        return Ok(page.clone());
    }
    let page = page(desk, interrupt).await?.to_string();
    *last = Some((Instant::now(), page.clone()));
    Ok(page)
}

async fn page(desk: &Desk, interrupt: Interrupt) -> Result<Page> {
    let (opened, agent) = (desk.opened(), &desk.agent);
    let watch = Watch { progress: Arc::new(Unwatched), interrupt };
    let look = opened.config.clusters().iter().map(async |cluster| {
        let store = opened.store(agent.random.clone());
        let status = look::status(&opened.config, cluster, store, Some(PATIENCE), &*agent.clock, &watch).await?;
        Ok::<_, Error>((&cluster.name, status))
    });
    let found = futures_util::future::try_join_all(look).await?;
    let mut page = Page::default();
    let all: Vec<_> = found.iter().map(|(name, status)| (*name, status)).collect();
    metrics::clusters(&mut page, &all, agent.clock.now());
    for (cluster, figures) in desk.all_figures() {
        let pushes = Metric { name: "walden_agent_pushes_total", help: "Calls of archive_command by how they ended." };
        for (result, count) in [("stored", &figures.stored), ("already", &figures.already), ("failed", &figures.failed)]
        {
            page.count(pushes, &[("cluster", &cluster), ("result", &result)], count.load(Relaxed));
        }
        for (name, help, count) in [
            ("walden_agent_ahead_total", "Files shipped before PostgreSQL asked.", &figures.ahead),
            ("walden_agent_stored_bytes_total", "Bytes stored by these calls themselves.", &figures.bytes),
        ] {
            page.count(Metric { name, help }, &[("cluster", &cluster)], count.load(Relaxed));
        }
        let took = Metric { name: "walden_agent_push_seconds_total", help: "The time that these calls took." };
        let seconds = Duration::from_millis(figures.milliseconds.load(Relaxed)).as_secs_f64();
        page.sample(took, &[("cluster", &cluster)], Some(seconds));
    }
    Ok(page)
}
