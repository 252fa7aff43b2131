//! Which of the log a search for a time may pass over without reading a summary: logs that tell by the names of their
//! roll-ups that everything in them ended before.

use chrono::{DateTime, Utc};

use super::path::Run;
use crate::{
    error::Result,
    postgres::{Lsn, SegmentName},
    repository::{BackupDocument, EndedRow, Stored, System},
};

/// The newest of `usable`, the backups of a window, that begins behind `begin` and from which recovery stops where one from
/// `begin` on does: before it was consistent nothing ended at `wanted` or later. None where that is certain of none.
///
/// Only names are looked at. A segment that was damaged since, or does not go on from the one before it, is no matter:
/// recovery from that backup does not read it, and one from before does not come further than to it.
pub(super) async fn newest<'b>(
    system: &System,
    run: &Run,
    usable: &[&'b BackupDocument],
    begin: Lsn,
    wanted: DateTime<Utc>,
) -> Result<Option<&'b BackupDocument>> {
    if !usable.iter().any(|backup| backup.start_lsn > begin) {
        return Ok(None);
    }
    let size = system.document.segment_size;
    let mut end = size.number_of(begin);
    'path: for timeline in run.from(end).chunk_by(|(a, _), (b, _)| a.timeline == b.timeline) {
        let Some((first, _)) = timeline.first() else { continue };
        let roll_ups = system.roll_ups(first.timeline, first.log).await?;
        for log in timeline.chunk_by(|(a, _), (b, _)| a.log == b.log) {
            let row = log.first().and_then(|(name, _)| roll_ups.get(&name.log)?.row);
            if !row.is_some_and(|row| covers(row, log) && row.until < wanted) {
                break 'path;
            }
            end += log.len() as u64;
        }
    }
    let passed = Lsn(end * size.bytes());
    Ok(usable.iter().rev().copied().find(|backup| backup.start_lsn > begin && backup.stop_lsn <= passed))
}

/// Whether the row is known of all these segments, which are of one log. It must end where they do: what it has beyond may
/// end a transaction that is prepared in them.
fn covers(row: EndedRow, log: &[(SegmentName, Stored)]) -> bool {
    let (Some((first, _)), Some((last, _))) = (log.first(), log.last()) else { return false };
    row.first <= first.segment && last.segment == row.last
}
