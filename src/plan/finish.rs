//! Proves what was not read, and writes the plan down.

use std::ops::Range;

use super::{
    Passed, Plan, Raised, WAL_AT_A_TIME, estimate, path,
    resolve::Planner,
    scan,
    search::Found,
    survey::{Moment, Seen, Stop, Survey},
    target::Point,
};
use crate::{
    error::Result,
    postgres::{Lsn, RequiredSettings, SegmentSize, TimelineHistory},
    repository::BackupDocument,
    wal::StopRule,
};

/// So many segments before a backup are looked at for the last commit, when none came after it.
const LOOK_BACK: u64 = 256;

impl Planner<'_> {
    pub(super) async fn finish(&self, mut found: Found) -> Result<Plan> {
        let size = self.system.document.segment_size;
        if found.begin > found.backup.start_lsn {
            self.see_all(&mut found).await?;
        }
        let first = size.number_of(found.backup.start_lsn);
        let consistent = found.backup.last_segment.number(size)?;
        let last = found.stop.map_or(consistent, |stop| size.number_of(Lsn(stop.end.0 - 1)).max(consistent));
        let history = self.shortest(&found, last).await?;
        let count = usize::try_from(last + 1 - first).unwrap_or(usize::MAX);
        let segments = found.run.from(first).get(..count);
        let (Some(segments), Some(&(first_segment, _))) = (segments, segments.and_then(<[_]>::first)) else {
            return Err(self.broken(&found.backup, std::slice::from_ref(&found.run)));
        };
        self.prove(&found, first..last + 1).await?;
        let last_segment = segments.last().map_or(first_segment, |(name, _)| *name);
        if self.request.target.point == Point::Latest && found.seen.last_commit.is_none() {
            found.seen.last_commit = self.last_before(&found, first).await?;
        }
        let Found { backup, seen, stop, mut warnings, .. } = found;
        warnings.extend(self.warnings(&backup, &seen));
        let (required, raised) = settings(&backup, &seen);
        let behind = seen.last_commit.as_ref().filter(|_| self.request.target.point == Point::Latest);
        let wal = segments.len() as u64 * size.bytes();
        let estimate = estimate::estimate(self.system, backup.size, wal).await;
        Ok(Plan {
            cluster: self.system.folder.cluster.clone(),
            incarnation: self.system.folder.incarnation,
            target: self.request.target.clone(),
            planned: self.request.now,
            path: passed(&history, &backup),
            timeline: history.timeline,
            stop,
            first_segment,
            last_segment,
            segments: segments.len() as u64,
            wal_bytes: segments.iter().map(|(_, stored)| stored.length()).sum(),
            from_pieces: from_pieces(segments, stop, size)?,
            backup_bytes: self.to_fetch(&backup).await?,
            disk_bytes: backup.size + (segments.len() as u64 * size.bytes()).min(WAL_AT_A_TIME),
            behind_seconds: behind.map(|c| (self.request.now - c.time).as_seconds_f64()),
            last_commit: seen.last_commit,
            first_left_out: seen.first_left_out,
            required,
            raised,
            created_tablespaces: seen.tablespaces.into_iter().filter(|t| t.lsn >= backup.start_lsn).collect(),
            prepared: seen.prepared,
            estimate: Some(estimate),
            warnings,
            backup,
        })
    }

    /// The bytes that a restore fetches of the parts. A manifest alone tells what is needed of older backups'.
    async fn to_fetch(&self, backup: &BackupDocument) -> Result<u64> {
        if backup.references.is_empty() {
            return Ok(backup.parts.iter().map(|part| part.length).sum());
        }
        Ok(self.system.manifest(backup).await?.stored())
    }

    /// The last commit before the backup, when none came after it; as far as it is not long ago.
    async fn last_before(&self, found: &Found, first: u64) -> Result<Option<Moment>> {
        let runs = path::runs(self.system, &found.history, first.saturating_sub(LOOK_BACK)).await?;
        let Some(run) = runs.iter().find(|run| run.holds(first)) else { return Ok(None) };
        let count = usize::try_from(first + 1 - run.first).unwrap_or(usize::MAX);
        let before = run.segments.get(..count).unwrap_or_default();
        Ok(self.system.last_commit(before).await?.map(Moment::from))
    }

    /// A stop that was found from a fork on, or without a search: what lies between the backup and it is looked at now.
    async fn see_all(&self, found: &mut Found) -> Result<()> {
        let Found { backup, run, seen, stop, .. } = &*found;
        let (lsn, inclusive) = stop.map_or((backup.stop_lsn, true), |stop| (stop.lsn, stop.inclusive));
        let survey = Survey::new(StopRule::Lsn { lsn, inclusive }, backup.start_lsn, Vec::new());
        let first = self.system.document.segment_size.number_of(backup.start_lsn);
        let (survey, scanned) = scan::scan(self.system, run.from(first), survey, self.watch).await?;
        let all = survey.finish();
        let matches = seen.matches.clone();
        found.seen = match stop {
            Some(_) => Seen { matches, ..all },
            None => Seen { tablespaces: all.tablespaces, ..Seen::default() },
        };
        found.proven = first..first + scanned.segments as u64;
        Ok(())
    }

    /// The timeline on which the stop itself lies is enough, where its own segments are there; else the first after it
    /// whose are: a promotion from it then leaves a history that rises, or the shortest of those that do not.
    async fn shortest(&self, found: &Found, last: u64) -> Result<TimelineHistory> {
        let (history, size) = (&found.history, self.system.document.segment_size);
        let Some(own) = found.stop.map(|stop| history.at(stop.lsn)) else { return Ok(history.clone()) };
        for entry in history.ancestors.iter().skip_while(|entry| entry.timeline != own) {
            if let Ok(shorter) = self.system.history(entry.timeline).await
                && path::lies_on(&found.backup, &shorter)
                && path::segment_on(&shorter, last, size) == path::segment_on(history, last, size)
            {
                return Ok(shorter);
            }
        }
        Ok(history.clone())
    }

    /// Proves those segments of `needed` that the search did not pass, each piece with its neighbour that is proven.
    async fn prove(&self, found: &Found, needed: Range<u64>) -> Result<()> {
        let end = found.stop.map_or(found.backup.stop_lsn, |Stop { end, .. }| end.max(found.backup.stop_lsn));
        let proven = &found.proven;
        let pieces = if proven.is_empty() {
            vec![needed]
        } else {
            let before = needed.start..needed.end.min(proven.start + 1);
            let behind = needed.start.max(proven.end - 1)..needed.end;
            vec![before, behind].into_iter().filter(|piece| piece.end > piece.start + 1).collect()
        };
        for piece in pieces {
            let count = usize::try_from(piece.end - piece.start).unwrap_or(usize::MAX);
            let segments = found.run.from(piece.start).get(..count).unwrap_or_default();
            scan::prove(self.system, segments, end, self.watch).await?;
        }
        Ok(())
    }

    fn warnings(&self, backup: &BackupDocument, seen: &Seen) -> Vec<String> {
        let target = &self.request.target;
        let mut warnings = Vec::new();
        if !seen.prepared.is_empty() {
            warnings.push(format!(
                "{} prepared transactions are unfinished at the stop; finish them by COMMIT PREPARED or ROLLBACK PREPARED",
                seen.prepared.len()
            ));
        }
        let under_way = match &target.point {
            Point::Xid(xid) if target.before => Some(xid.to_string()),
            Point::Drop(_) => seen.first_left_out.as_ref().and_then(|m| m.xid).map(|xid| xid.to_string()),
            _ => None,
        };
        if let Some(xid) = under_way {
            warnings.push(format!(
                "at the stop transaction {xid} is still under way: a table that it dropped, truncated or altered is locked, and can be read only after promotion (--then promote)"
            ));
        }
        if !backup.bad_pages.is_empty() {
            warnings.push(format!("backup {} has {} pages with wrong checksums", backup.id, backup.bad_pages.len()));
        }
        if let Some(moment) = seen.matches.first().filter(|m| m.aborted && matches!(target.point, Point::Xid(_))) {
            warnings.push(format!("transaction {} was rolled back", moment.xid.unwrap_or_default()));
        }
        warnings
    }
}

/// How many bytes up to the stop are in pieces: those of the last segment, where that is not whole.
fn from_pieces(segments: scan::Segments<'_>, stop: Option<Stop>, size: SegmentSize) -> Result<u64> {
    let (Some((name, stored)), Some(stop)) = (segments.last(), stop) else { return Ok(0) };
    Ok(if stored.is_in_pieces() { stop.end.since(name.start(size)?) } else { 0 })
}

/// What recovery from that backup needs, and what of it was raised on the way.
fn settings(backup: &BackupDocument, seen: &Seen) -> (RequiredSettings, Vec<Raised>) {
    let mut required = backup.required;
    let mut raised: Vec<Raised> = Vec::new();
    for (lsn, now) in seen.required.iter().filter(|(lsn, _)| *lsn >= backup.start_lsn) {
        for ((setting, before), (_, value)) in required.each().into_iter().zip(now.each()) {
            if value <= before {
                continue;
            }
            match raised.iter_mut().find(|r| r.setting == setting) {
                Some(known) => (known.to, known.lsn) = (value, *lsn),
                None => raised.push(Raised { setting: setting.into(), from: before, to: value, lsn: *lsn }),
            }
        }
        required = required.at_least(*now);
    }
    (required, raised)
}

/// The timelines from that of the backup on.
fn passed(history: &TimelineHistory, backup: &BackupDocument) -> Vec<Passed> {
    let ancestors = history.ancestors.iter().skip_while(|entry| entry.timeline != backup.timeline);
    let left = ancestors.map(|entry| Passed { timeline: entry.timeline, left: Some(entry.switch) });
    left.chain([Passed { timeline: history.timeline, left: None }]).collect()
}
