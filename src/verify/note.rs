//! What is known of earlier deep looks, and what later ones are to know: the note of damage in the repository.

use chrono::{DateTime, Utc};

use super::{
    deep::Seen,
    report::{Finding, Report, Wrong},
};
use crate::{
    error::{Error, Result},
    plan::window::Damage,
    repository::{DamageNote, DamagedObject, System},
    store::Put,
};

/// What an earlier look has found, and this one has not read again.
pub fn findings(note: &DamageNote, seen: Option<&Seen>, damage: &mut Damage) -> Vec<Finding> {
    let read = |object: &&DamagedObject| {
        seen.is_some_and(|seen| {
            let keys = seen.settled.iter().chain(seen.bad.iter().map(|bad| &bad.key));
            keys.into_iter().any(|key| key.as_str() == object.key)
        })
    };
    let left = DamageNote {
        objects: note.objects.iter().filter(|object| !read(object)).cloned().collect(),
        ..DamageNote::default()
    };
    let known = Damage::noted(&left);
    damage.segments.extend(known.segments);
    for (id, why) in known.backups {
        damage.backups.entry(id).or_insert(why);
    }
    let finding = |object: DamagedObject| {
        let why = format!("{} (found at {})", object.why, crate::human::time(object.found));
        Finding::new(&object.key, Wrong::Content, why).backups(object.backups)
    };
    left.objects.into_iter().map(finding).collect()
}

/// Takes what was found whole, or is gone, off the note, and puts what was found damaged on it.
pub async fn update(
    system: &System,
    number: u32,
    before: &DamageNote,
    settled: impl Fn(&str) -> bool,
    report: &Report,
    now: DateTime<Utc>,
) -> Result<()> {
    let mut objects: Vec<DamagedObject> =
        before.objects.iter().filter(|object| !settled(&object.key)).cloned().collect();
    let found = report.damage.iter().filter(|found| found.wrong == Wrong::Content && !found.object.ends_with('/'));
    for found in found {
        if !objects.iter().any(|known| known.key == found.object) {
            let (key, why, backups) = (found.object.clone(), found.why.clone(), found.backups.clone());
            objects.push(DamagedObject { key, why, found: now, backups });
        }
    }
    if objects == before.objects {
        return Ok(());
    }
    let note = DamageNote { noted: Some(now), objects, ..DamageNote::default() };
    match system.put_damage_note(number, &note).await? {
        Put::Created => Ok(()),
        Put::Exists => Err(Error::failed("another verification has noted something meanwhile")),
    }
}
