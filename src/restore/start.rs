//! Starting a restored copy, and the proof that it reached what was planned.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::{mark, owner::Owner, request::Then, session};
use crate::{
    error::{Error, Kind, Result},
    interrupt::Interrupt,
    plan::{Plan, Stop, Watch},
    postgres::{
        ControlFile, Lsn, TimelineHistory, TimelineId, Version,
        control::State,
        installation,
        server::{Came, Postmaster, Server, Start},
        sql::{RecoveryStatus, Session},
    },
    progress::Progress,
    repository::join,
};

/// How often progress is asked for.
const PAUSE: Duration = Duration::from_millis(100);
/// The header that a page, the first of a segment, can have between the end of a record and the start of the next.
const HEADER: u64 = 40;

/// How to start a copy.
#[derive(Clone, Debug)]
pub struct StartRequest {
    /// The data directory.
    pub pgdata: PathBuf,
    /// Who owns it, and runs the server.
    pub owner: Owner,
    /// What the server does at the target.
    pub then: Then,
    /// Whether it is a standby, which stops nowhere.
    pub standby: bool,
    /// The role to ask as; others are tried after it.
    pub user: Option<String>,
    /// Settings on the server's command line, for this start alone.
    pub settings: Vec<(String, String)>,
}

/// What became of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It waits at the target, read-only.
    Paused,
    /// It takes writes, on a timeline of its own.
    Promoted,
    /// It has shut down.
    ShutDown,
    /// It is a standby, and follows the archive.
    Following,
}

/// What was reached.
#[derive(Clone, Debug, Serialize)]
pub struct Reached {
    /// What became of the server.
    pub outcome: Outcome,
    /// The end of the last record that was replayed.
    pub lsn: Lsn,
    /// When the last replayed transaction committed or aborted, where the server could be asked.
    pub last_transaction: Option<DateTime<Utc>>,
    /// Tables that nobody can read while the server waits: a transaction that was under way at the target has locked
    /// them, as one that drops a table does.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub locked: Vec<String>,
    /// The timeline that the server is on.
    pub timeline: TimelineId,
    /// Its port, while it runs.
    pub port: Option<u16>,
    /// Its socket directory, while it runs.
    pub socket_directory: Option<PathBuf>,
    /// From the start to here, in seconds.
    pub seconds: f64,
}

/// A copy that was started.
#[derive(Debug)]
pub struct Started {
    /// What was reached.
    pub reached: Reached,
    /// The server, unless it has shut down. It is stopped when this is dropped without being left running.
    pub server: Option<Server>,
}

/// Starts PostgreSQL in a restored directory, waits until it has done what it was to do, and compares what it reached
/// with the plan. Any difference is an error; the server is stopped then.
pub async fn start(plan: &Plan, request: &StartRequest, watch: &Watch) -> Result<Started> {
    let bin = find_programs(plan.backup.postgres)?;
    let begun = Instant::now();
    let how = Start {
        bin,
        pgdata: request.pgdata.clone(),
        log: mark::beside(&request.pgdata, "walden-start.log")?,
        settings: command_line(request),
    };
    watch.progress.start("recovering", None);
    let (plan, request, watch) = (plan.clone(), request.clone(), watch.clone());
    let work = tokio::task::spawn_blocking(move || {
        let server = Server::start(&how)?;
        let started = Starting { plan: &plan, request: &request, watch: &watch, server, begun }.follow();
        watch.progress.finish();
        started
    });
    join(work.await)?
}

/// Where the programs of that version are; the error of a host that has none says how to go on.
pub fn find_programs(version: Version) -> Result<PathBuf> {
    installation::bin_directory(version).map_err(|e| match e.kind() {
        // What is not found here is not the target.
        Kind::NotFound => Error::failed(e.to_string()).hint(e.hint_text().unwrap_or_default()),
        _ => e,
    })
}

fn command_line(request: &StartRequest) -> Vec<(String, String)> {
    // A postgresql.conf that names the original's directory would start the server there.
    let own = ("data_directory".to_owned(), request.pgdata.to_string_lossy().into_owned());
    std::iter::once(own).chain(request.settings.iter().cloned()).collect()
}

struct Starting<'a> {
    plan: &'a Plan,
    request: &'a StartRequest,
    watch: &'a Watch,
    server: Server,
    begun: Instant,
}

/// What the server tells when it has done what it was to do.
struct Answer {
    status: RecoveryStatus,
    timeline: TimelineId,
    locked: Vec<String>,
}

/// Replay holds the exclusive locks of transactions that have not ended (`StandbyAcquireAccessExclusiveLock`).
const LOCKED: &str = "SELECT DISTINCT CASE WHEN d.datname = current_database() THEN c.oid::regclass::text \
     ELSE format('relation %s of database %s', l.relation, d.datname) END \
     FROM pg_locks l JOIN pg_stat_activity a USING (pid) LEFT JOIN pg_database d ON d.oid = l.database \
     LEFT JOIN pg_class c ON c.oid = l.relation \
     WHERE a.backend_type = 'startup' AND l.locktype = 'relation' AND l.mode = 'AccessExclusiveLock' AND l.granted \
     AND (d.datname <> current_database() OR c.relkind IN ('r', 'p', 'm')) ORDER BY 1 LIMIT 20";

impl Starting<'_> {
    fn follow(mut self) -> Result<Started> {
        loop {
            self.watch.interrupt.check()?;
            match self.server.wait(PAUSE * 5)? {
                Came::Ready => break,
                Came::Ended => return self.shut_down(),
                Came::StillStarting => {}
            }
        }
        if self.request.then == Then::Shutdown && !self.request.standby {
            while !self.server.wait_ended(PAUSE * 5)? {
                self.watch.interrupt.check()?;
            }
            return self.shut_down();
        }
        let postmaster = self.server.postmaster();
        let answer = self.ask(postmaster.as_ref())?;
        let replayed = answer.status.replayed.unwrap_or_default();
        let (outcome, lsn) = match (self.request.standby, self.request.then) {
            (true, _) => (Outcome::Following, replayed),
            (_, Then::Promote) => (Outcome::Promoted, self.switch_point(answer.timeline)?),
            _ => (Outcome::Paused, replayed),
        };
        if outcome != Outcome::Following {
            compare(self.plan, lsn)?;
        }
        let timeline = if outcome == Outcome::Promoted { answer.timeline } else { self.plan.timeline };
        let mut reached = self.reached(outcome, lsn, answer.status.last_transaction, timeline, postmaster);
        reached.locked = answer.locked;
        Ok(Started { reached, server: Some(self.server) })
    }

    fn shut_down(self) -> Result<Started> {
        let control = ControlFile::read(&self.request.pgdata)?;
        if self.request.then != Then::Shutdown || control.state != State::ShutDownInRecovery {
            return Err(Error::failed(format!(
                "PostgreSQL ended, {}; its log says:\n{}",
                control.state,
                self.server.log_tail()
            )));
        }
        compare(self.plan, control.minimum_recovery)?;
        let reached = self.reached(Outcome::ShutDown, control.minimum_recovery, None, self.plan.timeline, None);
        Ok(Started { reached, server: None })
    }

    fn reached(
        &self,
        outcome: Outcome,
        lsn: Lsn,
        last_transaction: Option<DateTime<Utc>>,
        timeline: TimelineId,
        postmaster: Option<Postmaster>,
    ) -> Reached {
        Reached {
            outcome,
            lsn,
            last_transaction,
            locked: Vec::new(),
            timeline,
            port: postmaster.as_ref().map(|p| p.port),
            socket_directory: postmaster.map(|p| p.socket_directory),
            seconds: self.begun.elapsed().as_secs_f64(),
        }
    }

    /// Asks the server until it has done what it was to do.
    fn ask(&mut self, postmaster: Option<&Postmaster>) -> Result<Answer> {
        let postmaster = postmaster.ok_or_else(|| Error::failed("the server has lost its postmaster.pid"))?;
        let StartRequest { pgdata, owner, user, .. } = self.request;
        let places = session::places(postmaster, pgdata, owner, user.as_deref())?;
        let (then, standby) = (self.request.then, self.request.standby);
        let (progress, interrupt) = (self.watch.progress.clone(), self.watch.interrupt.clone());
        let asking = session::as_owner(&self.request.owner, async move || {
            let session = session::open(&places).await?;
            until_done(&session, then, standby, &*progress, &interrupt).await
        });
        while !asking.is_finished() {
            // A server that dies meanwhile tells why better than the connection that breaks.
            if self.server.wait_ended(PAUSE)? {
                return Err(Error::failed(format!("PostgreSQL ended; its log says:\n{}", self.server.log_tail())));
            }
        }
        asking.join().map_err(|_| Error::internal("a thread stopped"))?
    }

    /// Where the new timeline begins: the end of the last record that was replayed.
    fn switch_point(&self, timeline: TimelineId) -> Result<Lsn> {
        let path = self.request.pgdata.join("pg_wal").join(format!("{}.history", timeline.hex()));
        let text = std::fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
        let history = TimelineHistory::parse(timeline, &text)?;
        match history.ancestors.last() {
            Some(entry) if entry.timeline == self.plan.timeline => Ok(entry.switch),
            other => Err(Error::failed(format!(
                "recovery ended on timeline {}, the plan was to end on timeline {}",
                other.map_or(timeline, |e| e.timeline),
                self.plan.timeline
            ))),
        }
    }
}

async fn until_done(
    session: &Session,
    then: Then,
    standby: bool,
    progress: &dyn Progress,
    interrupt: &Interrupt,
) -> Result<Answer> {
    loop {
        interrupt.check()?;
        let status = session.recovery().await?;
        if let Some(lsn) = status.replayed {
            progress.message(&lsn.to_string());
        }
        let done = standby || if then == Then::Promote { !status.in_recovery } else { status.paused };
        if done {
            let timeline = session.server_facts().await?.timeline;
            let locked = if status.paused { session.query(LOCKED).await? } else { Vec::new() };
            return Ok(Answer { status, timeline, locked: locked.into_iter().flatten().flatten().collect() });
        }
        if !status.in_recovery {
            return Err(Error::failed("the server has left recovery, where it was to wait"));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Holds the end of the last replayed record against the plan.
fn compare(plan: &Plan, reached: Lsn) -> Result<()> {
    match judge(plan.stop, plan.backup.stop_lsn, reached) {
        (true, _) => Ok(()),
        (false, wanted) => Err(Error::failed(format!("recovery stopped at {reached}, the plan was to stop {wanted}"))
            .hint("the copy is not what was planned: do not use it, and please report this")),
    }
}

/// Whether that is the place, and the place in words.
fn judge(stop: Option<Stop>, consistent: Lsn, reached: Lsn) -> (bool, String) {
    match stop {
        Some(stop) if stop.inclusive => {
            (reached == stop.end, format!("after the record at {} ({})", stop.lsn, stop.end))
        }
        Some(stop) => {
            let right = reached <= stop.lsn && stop.lsn.since(reached) <= HEADER;
            (right, format!("just before {}", stop.lsn))
        }
        None => (reached >= consistent, format!("at or after {consistent}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_page_header_may_lie_before_a_stop() {
        let stop = |inclusive| Some(Stop { lsn: Lsn(0x300_0028), inclusive, end: Lsn(0x300_0060) });
        let right = |stop: Option<Stop>, reached| judge(stop, Lsn(0x200_0000), Lsn(reached)).0;
        assert!(right(stop(true), 0x300_0060) && !right(stop(true), 0x300_0028));
        assert!(right(stop(false), 0x300_0028) && right(stop(false), 0x300_0000));
        assert!(!right(stop(false), 0x2FF_FFF8) && !right(stop(false), 0x300_0030));
        assert!(right(None, 0x200_0000) && !right(None, 0x1FF_FFFF));
    }
}
