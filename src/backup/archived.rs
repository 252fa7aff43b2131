//! Waits until the WAL that a backup is of no use without is in the archive. Whoever writes the WAL archives it: the
//! server that was backed up or, where that is a standby, its primary.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use super::request::{BackupRequest, Surroundings};
use crate::{
    error::{Error, Result},
    postgres::{SegmentName, sql::Session},
    repository::System,
};

/// How often the archive is looked at.
const PAUSE: Duration = Duration::from_millis(200);

/// The segments that a backup is of no use without.
pub struct Archived<'a> {
    pub system: &'a System,
    pub request: &'a BackupRequest,
    pub around: &'a Surroundings,
    /// Where replay starts.
    pub first: SegmentName,
    /// Where the backup is consistent.
    pub last: SegmentName,
    /// Whether another server has to archive them.
    pub from_standby: bool,
}

impl Archived<'_> {
    /// Waits until all of them are there.
    pub async fn wait(&self) -> Result<()> {
        let (size, timeline) = (self.system.document.segment_size, self.first.timeline);
        let (from, to) = (self.first.number(size)?, self.last.number(size)?);
        self.around.progress.start("waiting for the archive", None);
        let begun = Instant::now();
        let mut switched: Option<Result<()>> = None;
        loop {
            self.around.interrupt.check()?;
            let there = self.system.segments(timeline, Some(self.first), Some(self.last)).await?;
            let there: HashSet<_> = there.into_iter().map(|(name, _)| name).collect();
            let mut needed = (from..=to).filter_map(|n| SegmentName::from_number(timeline, n, size));
            let Some(missing) = needed.find(|name| !there.contains(name)) else {
                if let Some(Err(error)) = switched {
                    tracing::warn!("the primary was not made to end its segment: {error}");
                }
                return Ok(());
            };
            self.around.progress.message(&missing.to_string());
            if begun.elapsed() > self.request.archive_timeout {
                return Err(self.in_vain(missing, switched).await);
            }
            // A standby cannot: an idle primary may fill the last segment in a day, or never.
            if self.from_standby && switched.is_none() && !there.contains(&self.last) {
                switched = Some(self.switch().await);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Makes the primary end the last segment, where the configuration tells the way to it.
    async fn switch(&self) -> Result<()> {
        let Some(primary) = &self.request.primary else { return Ok(()) };
        let session = Session::open(primary).await?;
        let facts = session.server_facts().await?;
        let system = self.system.folder.incarnation.system;
        if facts.system != system || facts.in_recovery {
            let what =
                if facts.in_recovery { "a standby itself".to_owned() } else { format!("of system {}", facts.system) };
            return Err(Error::invalid(format!(
                "cluster.{}.primary does not name the primary of system {system}, but a server that is {what}",
                self.system.folder.cluster
            )));
        }
        let size = self.system.document.segment_size;
        let in_use = size.number_of(session.current_wal_lsn().await?);
        if facts.timeline == self.last.timeline && in_use <= self.last.number(size)? {
            session.switch_wal().await?;
        }
        Ok(())
    }

    /// The segment did not come.
    async fn in_vain(&self, missing: SegmentName, switched: Option<Result<()>>) -> Error {
        let why = match switched {
            Some(Err(error)) => format!("; the primary was not made to end its segment: {error}"),
            _ => self.complaint().await,
        };
        let error = Error::failed(format!(
            "segment {missing} did not reach the archive within {}; without it the backup is of no use and was not recorded{why}",
            crate::human::duration(self.request.archive_timeout),
        ));
        match (self.from_standby, &self.request.primary) {
            (false, _) => error.hint("the server's log says why archive_command fails; walden check tries it"),
            (true, None) if missing == self.last => error.hint(format!(
                "the primary archives it once it is full: set archive_timeout there, or primary under [cluster.{}] \
                 in walden.toml, so that walden backup ends it by pg_switch_wal()",
                self.system.folder.cluster
            )),
            (true, _) => error
                .hint("the primary archives it: its log says why archive_command fails; walden check there tries it"),
        }
    }

    /// What the server that archives says about that, where it says something.
    async fn complaint(&self) -> String {
        let asked = if self.from_standby { self.request.primary.as_ref() } else { Some(&self.request.conninfo) };
        let Some(conninfo) = asked else { return String::new() };
        let Ok(session) = Session::open(conninfo).await else { return String::new() };
        match session.archiver().await {
            Ok(status) => match status.last_failed {
                Some((file, at)) => format!("; archive_command last failed on {file} at {}", crate::human::time(at)),
                None => String::new(),
            },
            Err(_) => String::new(),
        }
    }
}
