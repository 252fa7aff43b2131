//! Where transactions ended of which the summaries tell no more than that they changed rows: in the records of those
//! segments in which, by their summaries, transactions of such numbers ended.

use std::{collections::HashMap, ops::ControlFlow};

use crate::{
    error::Result,
    plan::{Watch, scan},
    postgres::{Lsn, SegmentName},
    repository::System,
    wal::{Ended, Fact, Record},
};

/// A segment, and the transactions that ended in it: from the first to the second on the circle of 2^32.
pub(super) type Ends = (SegmentName, Option<(u32, u32)>);

/// Looks for the ends of `wanted` (each with an LSN before its end) in consecutive segments.
pub(super) async fn find(
    system: &System,
    segments: &[Ends],
    mut wanted: HashMap<u32, Lsn>,
    watch: &Watch,
) -> Result<HashMap<u32, Ended>> {
    let size = system.document.segment_size;
    let mut found = HashMap::new();
    for (index, (name, xids)) in segments.iter().enumerate() {
        if wanted.is_empty() {
            break;
        }
        let Some((first, last)) = xids else { continue };
        let end = name.start(size)?.0 + size.bytes();
        let may_end = |xid: u32| xid.wrapping_sub(*first) <= last.wrapping_sub(*first);
        let here: Vec<u32> =
            wanted.iter().filter(|(xid, from)| from.0 < end && may_end(**xid)).map(|(x, _)| *x).collect();
        if here.is_empty() {
            continue;
        }
        // The last record may end in the next segment, or the one after that.
        let row = segments[index..].iter().take(3).map(|(name, _)| *name).collect();
        let see = move |(here, ended): &mut (Vec<u32>, Vec<Ended>), record: &Record| {
            if record.start.0 >= end {
                return ControlFlow::Break(());
            }
            let (transaction, committed) = match &record.fact {
                Fact::Commit(end) => (end, true),
                Fact::Abort(end) => (end, false),
                _ => return ControlFlow::Continue(()),
            };
            if let Some(at) = here.iter().position(|xid| transaction.includes(*xid)) {
                let xid = here.swap_remove(at);
                ended.push(Ended { lsn: record.start, xid, time: transaction.time, committed });
            }
            if here.is_empty() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let (_, ended) = scan::read(system, row, watch, (here, Vec::new()), see).await?;
        for ended in ended {
            wanted.remove(&ended.xid);
            found.insert(ended.xid, ended);
        }
    }
    Ok(found)
}
