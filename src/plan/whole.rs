//! Whether a backup is whole, as far as names, lengths and its manifest tell; and what to begin with when it is not.

use std::collections::BTreeSet;

use super::{Plan, resolve::Planner};
use crate::{
    error::{Error, Kind, Result},
    postgres::SegmentName,
    repository::{BackupDocument, BackupId, DamageNote, PartName},
};

/// The mend of a backup that is not whole.
const ANOTHER_COPY: &str =
    "bring the object back from another copy of the repository; walden verify tells all that is damaged";

impl Planner<'_> {
    /// Makes the plan with a backup that is whole. One that is not is passed over, and the plan says so, unless it was
    /// asked for, or nothing else leads to the target.
    pub(super) async fn whole(mut self) -> Result<Plan> {
        let note = self.system.damage_note().await?.1;
        let mut passed_over: Vec<(BackupId, String)> = Vec::new();
        loop {
            let found = match self.find().await {
                Err(error) if error.kind() == Kind::NotFound => {
                    return Err(match passed_over.into_iter().next() {
                        Some((id, why)) => self.only(id, &why),
                        None => error,
                    });
                }
                found => found?,
            };
            let id = found.backup.id;
            match self.flaw(&found.backup, &note).await? {
                None => {
                    let mut plan = self.finish(found).await?;
                    self.prove_way(&plan, &note)?;
                    plan.warnings.splice(0..0, passed_over.iter().map(|(id, why)| sentence(*id, why, &plan.backup)));
                    return Ok(plan);
                }
                Some(why) if self.request.backup == Some(id) => {
                    return Err(Error::damaged(format!("backup {id} cannot be used: {why}")).hint(ANOTHER_COPY));
                }
                Some(why) => {
                    self.backups.retain(|backup| backup.id != id);
                    passed_over.push((id, why));
                    if self.backups.is_empty() {
                        let (id, why) = passed_over.swap_remove(0);
                        return Err(self.only(id, &why));
                    }
                }
            }
        }
    }

    fn only(&self, id: BackupId, why: &str) -> Error {
        let target = &self.request.target;
        Error::damaged(format!("backup {id}, which leads to {target}, cannot be used: {why}; no other one leads there"))
            .hint(ANOTHER_COPY)
    }

    /// What of a backup is missing or damaged; none where nothing is known to be.
    async fn flaw(&self, backup: &BackupDocument, note: &DamageNote) -> Result<Option<String>> {
        let system = self.system;
        // Who asks for it by its name may have brought the object back since.
        if self.request.backup != Some(backup.id)
            && let Some(damaged) = note.objects.iter().find(|object| object.backups.contains(&backup.id))
        {
            return Ok(Some(damaged.words()));
        }
        let needed: Vec<(PartName, u64)> = match system.needs(backup).await {
            Ok(needs) => needs.parts.into_iter().collect(),
            Err(error) if error.kind() == Kind::Damaged => return Ok(Some(error.to_string())),
            // Who may not read it can look for its own parts all the same.
            Err(error) if error.kind() == Kind::Refused => {
                backup.parts.iter().map(|part| ((backup.id, part.number), part.length)).collect()
            }
            Err(error) => return Err(error),
        };
        let folders: BTreeSet<BackupId> = needed.iter().map(|((of, _), _)| *of).collect();
        let there = system.parts_there(folders.into_iter()).await?;
        for ((of, number), length) in needed {
            let what = |what: &str| Ok(Some(format!("part {number} of backup {of} {what}")));
            match there.get(&(of, number)) {
                None => return what("is missing"),
                // Of several copies the listing tells one.
                Some(found) if *found != length && !system.store.has_copies() => {
                    return what(&format!("is {found} bytes long, and was written with {length}"));
                }
                Some(_) => {}
            }
        }
        Ok(None)
    }
}

impl Planner<'_> {
    /// An error where a segment that recovery reads is known to be damaged.
    fn prove_way(&self, plan: &Plan, note: &DamageNote) -> Result<()> {
        let size = self.system.document.segment_size;
        let rows = plan.rows(size);
        let on_the_way = |name: SegmentName| rows.iter().any(|(first, last)| *first <= name && name <= *last);
        let damaged = note.objects.iter().find(|object| object.segment().is_some_and(on_the_way));
        let Some(damaged) = damaged else { return Ok(()) };
        let start = damaged.segment().map(|name| name.start(size)).transpose()?.unwrap_or_default();
        Err(Error::damaged(format!("{} cannot be reached: {}", self.request.target, damaged.words())).hint(format!(
            "what lies before it can: --to before:{start}, or a target behind a later backup; if it was brought back: walden verify --deep"
        )))
    }
}

fn sentence(id: BackupId, why: &str, instead: &BackupDocument) -> String {
    format!("backup {id} is passed over, because {why}; recovery begins with backup {} instead", instead.id)
}
