//! Learns what the server needs of its host, while the names of its databases are written down. No backup waits long for
//! it or fails because of it: what could not be learnt is written down as that.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use crate::{
    error::Error,
    postgres::{
        platform::Platform,
        server::{self, Running},
        sql::Session,
    },
    repository::Environment,
};

/// How long the databases are asked, all of them together.
const LIMIT: Duration = Duration::from_secs(30);

/// What is learnt.
#[derive(Debug)]
pub struct Learning {
    begun: Instant,
    environment: Environment,
}

impl Learning {
    /// Nothing yet.
    pub fn new() -> Self {
        Self { begun: Instant::now(), environment: Environment::default() }
    }

    /// Asks the server for what concerns all of it.
    pub async fn server(&mut self, session: &Session) {
        match session.environment().await {
            Ok(said) => self.environment.server(said),
            Err(error) => self.environment.lacks(None, error.to_string()),
        }
    }

    /// Asks one database.
    pub async fn database(&mut self, oid: u32, session: &Session) {
        if self.begun.elapsed() > LIMIT {
            return self.environment.lacks(Some(oid), "the other databases took too long");
        }
        match session.database_environment().await {
            Ok(said) => self.environment.database(oid, said),
            Err(error) => self.environment.lacks(Some(oid), error.to_string()),
        }
    }

    /// Notes a database that could not be asked, or the server.
    pub fn refused(&mut self, oid: Option<u32>, error: &Error) {
        self.environment.lacks(oid, error.to_string());
    }

    /// Notes a database that takes no connections.
    pub fn closed(&mut self, oid: u32) {
        self.environment.lacks(Some(oid), "it takes no connections");
    }

    /// What was learnt.
    pub fn done(self) -> Environment {
        self.environment
    }
}

/// The libraries of the server that runs in `pgdata`, as far as this user may see them.
pub async fn of_process(pgdata: &Path) -> Platform {
    let pgdata = pgdata.to_path_buf();
    let look = move || match server::running(&pgdata) {
        Ok(Running::Yes(postmaster)) => Platform::of_process(postmaster.pid),
        _ => Platform::default(),
    };
    tokio::task::spawn_blocking(look).await.unwrap_or_default()
}
