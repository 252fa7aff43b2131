//! The removal of one backup that a person names: what it costs, and the plan.

use std::{collections::BTreeSet, sync::Arc};

use chrono::{DateTime, Utc};

use super::{
    choose::Chosen,
    expire::{ExpiryPlan, choose_proven, finish_plan, gather_all},
    inventory::{Backup, Inventory},
    path::{self, Way},
    policy::{Policy, Reason},
    ranges::Ranges,
};
use crate::{
    error::{Error, Result},
    human,
    repository::{BackupId, ClusterName},
    store::Store,
};

/// Plans the removal of one backup. Its WAL stays: the rules say when that goes. Refused for a pinned backup and for the
/// only one, and, unless `force`, where what the rules promise could not be recovered any more.
pub async fn plan_deletion(
    store: &Arc<dyn Store>,
    cluster: &ClusterName,
    id: BackupId,
    policy: &Policy,
    now: DateTime<Utc>,
    force: bool,
) -> Result<ExpiryPlan> {
    let mut gathered = gather_all(store, cluster, now).await?;
    let chosen = choose_proven(&mut gathered, policy, now).await?;
    let found = &gathered.found;
    let having: Vec<usize> =
        (0..found.len()).filter(|at| found[*at].backups.iter().any(|backup| backup.id == id)).collect();
    let [at] = having[..] else {
        return Err(match having.len() {
            0 => Error::not_found(format!("there is no backup {id} of cluster {cluster}"))
                .hint("walden list shows the backups"),
            _ => Error::refused(format!("several systems of cluster {cluster} have a backup {id}")),
        });
    };
    refuse(found, &chosen, at, id)?;
    let lost = lost(&found[at], &chosen[at], id);
    if !lost.is_empty() && !force {
        return Err(Error::refused(format!(
            "without backup {id} {} could not be recovered any more",
            lost.join(" and ")
        ))
        .hint("--force removes it all the same; that cannot be taken back"));
    }
    let mut chosen: Vec<Chosen> = found.iter().map(|one| keep_all(one, None)).collect();
    chosen[at] = keep_all(&found[at], Some(id));
    let mut plan = finish_plan(gathered, &chosen, cluster, &Policy::default(), now, Some(at)).await?;
    plan.rules = format!("everything but backup {id}");
    plan.costs = lost;
    Ok(plan)
}

fn keep_all(found: &Inventory, but: Option<BackupId>) -> Chosen {
    let kept = found.backups.iter().map(|backup| backup.id).filter(|id| Some(*id) != but);
    Chosen { kept: kept.map(|id| (id, BTreeSet::from([Reason::NotNamed]))).collect(), ..Chosen::default() }
}

fn refuse(found: &[Inventory], chosen: &[Chosen], at: usize, id: BackupId) -> Result<()> {
    if let Some(doubt) = found[at].doubts.first() {
        return Err(Error::damaged(format!("nothing of this system is removed, because it is in doubt: {doubt}")));
    }
    if found[at].pins.contains(&id) {
        return Err(Error::refused(format!("backup {id} is pinned")).hint(format!("walden unpin {id}")));
    }
    if let Some(hold) = found[at].holds.iter().find(|hold| hold.backups.contains(&id)) {
        return Err(Error::refused(format!("backup {id} is read by a {}", hold.who)).hint("wait for it"));
    }
    let others = |sound: bool| {
        let all = found.iter().zip(chosen).enumerate().flat_map(|(other, (one, chosen))| {
            one.backups.iter().map(move |backup| (other, backup.id, chosen.sound.contains(&backup.id)))
        });
        all.filter(|(other, backup, is_sound)| (*other, *backup) != (at, id) && (*is_sound || !sound)).count()
    };
    let is_sound = chosen[at].sound.contains(&id);
    if others(is_sound) == 0 {
        return Err(Error::refused(format!("backup {id} is the only one that can be restored"))
            .hint("take another one first: walden backup"));
    }
    Ok(())
}

/// What is promised and could not be recovered any more, in words.
fn lost(found: &Inventory, chosen: &Chosen, id: BackupId) -> Vec<String> {
    let (size, there) = (found.segment_size, path::there(found));
    let mut words = Vec::new();
    for (timeline, base) in &chosen.living {
        let Some(line) = found.lines.get(timeline) else { continue };
        let sound = |backup: &&Backup| chosen.sound.contains(&backup.id) && backup.lies_on(&line.history);
        let Some(base) = found.backups.iter().find(|backup| Some(backup.id) == *base) else { continue };
        let way = Way::new(&line.history, &there, size);
        let reached = |but: Option<BackupId>| {
            let mut reached = Ranges::default();
            for backup in found.backups.iter().filter(sound).filter(|backup| Some(backup.id) != but) {
                let (first, consistent) = backup.span(size);
                reached.add(consistent - 1, way.end(first));
            }
            reached
        };
        let promised = Ranges::from_on(base.span(size).1 - 1);
        let lost = reached(None).without(&reached(Some(id))).and(&promised);
        let Some((first, _)) = lost.iter().next() else { continue };
        let later = found.backups.iter().filter(sound).filter(|b| b.id != id && b.span(size).1 > first);
        let from = found.backups.iter().find(|b| b.id == id).map_or(base.stopped, |b| b.stopped.max(base.stopped));
        words.push(match later.map(|backup| backup.stopped).min() {
            Some(until) => {
                format!("the time from {} to {} on timeline {timeline}", human::time(from), human::time(until))
            }
            None => format!("everything from {} on on timeline {timeline}", human::time(from)),
        });
    }
    words
}
