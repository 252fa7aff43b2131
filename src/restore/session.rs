//! Asking a server of this host by its socket, as the owner of its data directory: `peer` lets that user in where it
//! turns root away.

use std::{path::Path, thread, time::Duration};

use super::owner::Owner;
use crate::{
    error::{Error, Result},
    postgres::{Conninfo, server::Postmaster, sql::Session},
};

/// A server that is just opening its socket is asked again this often, this long apart.
const ATTEMPTS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(250);

/// The ways to reach the server of a data directory: by its socket, else by its port, as one role after the other.
pub fn places(postmaster: &Postmaster, pgdata: &Path, owner: &Owner, user: Option<&str>) -> Result<Vec<Conninfo>> {
    let quoted = |text: &str| format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"));
    let host = match postmaster.socket_directory.as_os_str().is_empty() {
        true => "127.0.0.1".into(),
        false => pgdata.join(&postmaster.socket_directory).to_string_lossy().into_owned(),
    };
    let place = format!("host={} port={} dbname=postgres", quoted(&host), postmaster.port);
    // Nothing of the environment: PGPASSWORD and PGSSLMODE are for another server.
    roles(owner, user).map(|role| Conninfo::parse(&format!("{place} user={}", quoted(role)), &|_| None)).collect()
}

/// The roles to try: the one that is configured, `postgres`, the one of the owner's name.
pub fn roles<'a>(owner: &'a Owner, user: Option<&'a str>) -> impl Iterator<Item = &'a str> {
    let own = Some(owner.name.as_str()).filter(|name| *name != "postgres" && user != Some(name));
    user.into_iter().chain((user != Some("postgres")).then_some("postgres")).chain(own)
}

/// Connects in the first way that works.
pub async fn open(candidates: &[Conninfo]) -> Result<Session> {
    let mut first_error: Option<Error> = None;
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            tokio::time::sleep(PAUSE).await;
        }
        let mut errors = Vec::new();
        for conninfo in candidates {
            match Session::open(conninfo).await {
                Ok(session) => return Ok(session),
                Err(error) => errors.push(error),
            }
        }
        first_error = errors.into_iter().next();
    }
    Err(first_error.unwrap_or_else(|| Error::internal("no way to connect")))
}

/// Runs asynchronous work on a thread that acts as the owner.
pub fn as_owner<T: Send + 'static>(
    owner: &Owner,
    work: impl AsyncFnOnce() -> Result<T> + Send + 'static,
) -> thread::JoinHandle<Result<T>> {
    let ids = owner.ids();
    thread::spawn(move || {
        if let Some((uid, _)) = ids {
            // Of this thread alone: what it connects is another user's.
            rustix::thread::set_thread_res_uid(uid, uid, uid)
                .map_err(|e| Error::failed("become the owner of the data directory").source(e))?;
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| Error::failed("start a runtime").source(e))?;
        runtime.block_on(work())
    })
}
