//! Verification: is everything there that the backups and windows need, and is it what was written?
//!
//! Fast, by names and lengths: one listing of what lies in the backups' folders, every manifest, and the summaries of all
//! segments, of which each must go on from the one before it. Deep, by content: every object is read and proven. What is
//! found is judged apart from the reading, and told with what it costs and what is left.

mod backups;
mod costs;
mod deep;
mod mend;
mod note;
mod report;
mod wal;

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt, TryStreamExt, stream};

pub use deep::{Deep, Request as DeepRequest};
pub use mend::{Other, mend};
pub use report::{Depth, Finding, Leftovers, Looked, LostBackup, LostInstants, Recoverable, Report, Wrong};

use self::{
    backups::{Judged, Known, Unknown},
    deep::Seen,
};
use crate::{
    clock::Clock,
    error::{Kind, Result},
    keep::{self, inventory::Folder},
    plan::{
        Watch,
        window::{self, Damage, Gathered, Timelines},
    },
    repository::{BackupDocument, BackupId, BackupObject, DamageNote, Horizons, RepositoryDocument, System},
    store::Key,
};

/// Manifests that are read at a time.
const MANIFESTS: usize = 8;

/// Looks at a system by names, lengths, manifests and the links between segments. Damage is no error, but what the report
/// tells; an error means that something could not be looked at.
pub async fn fast(system: &System, watch: &Watch) -> Result<Report> {
    Fast::new(system, watch).await?.report(None).await
}

/// Looks in the same way first, and then at the content of objects, as far as the request says.
pub async fn deep(
    system: &System,
    repository: &RepositoryDocument,
    request: &DeepRequest,
    clock: &dyn Clock,
    watch: &Watch,
) -> Result<Report> {
    let fast = Fast::new(system, watch).await?;
    let first = fast.noted.1.objects.iter().filter_map(|object| Key::new(object.key.as_str()).ok()).collect::<Vec<_>>();
    let seen = deep::look(system, repository, &fast.backups, &first, request, clock, watch).await?;
    let settled = seen.settled.clone();
    let (number, before) = fast.noted.clone();
    let mut report = fast.report(Some(seen)).await?;
    let settled = |key: &str| settled.iter().any(|known| known.as_str() == key);
    if let Err(error) = note::update(system, number, &before, settled, &report, clock.now()).await {
        report.remarks.push(format!("what was found damaged could not be noted in the repository: {error}"));
    }
    Ok(report)
}

/// What was found by a fast look, to which more can be added.
struct Fast<'a> {
    system: &'a System,
    gathered: Gathered<'a>,
    horizons: Horizons,
    judged: Judged,
    /// What was found damaged before, and the number of the note that says so.
    noted: (u32, DamageNote),
    /// The backups whose documents can be read.
    backups: Vec<BackupDocument>,
    /// The document of each folder that has one.
    documents: BTreeMap<BackupId, Key>,
}

impl<'a> Fast<'a> {
    async fn new(system: &'a System, watch: &'a Watch) -> Result<Self> {
        let folders = keep::folders(system).await?;
        let (backups, damaged) = system.readable_backups().await?;
        let known = needs(system, &backups, watch).await?;
        let damaged = damaged.iter().map(|(id, _)| *id).collect();
        let mut judged = backups::judge(&system.folder, &folders, &known, &damaged)?;
        // It reads the documents again: what an expiry has removed by now is no damage.
        let gathered = match Gathered::new(system, window::Depth::Records, watch).await {
            Err(error) if error.kind() == Kind::Refused => {
                judged
                    .remarks
                    .push(format!("only the names of segments were looked at, not how they are linked: {error}"));
                Gathered::new(system, window::Depth::Ends, watch).await?
            }
            gathered => gathered?,
        };
        let documents = documents(system, &folders)?;
        Ok(Self {
            system,
            gathered,
            horizons: system.horizons().await?,
            judged,
            noted: system.damage_note().await?,
            backups,
            documents,
        })
    }

    /// The report, with what was found besides.
    async fn report(mut self, seen: Option<Seen>) -> Result<Report> {
        let Judged { damage: mut findings, lost, leftovers, needed, mut looked, mut remarks } = self.judged;
        let folder = &self.system.folder;
        let mut damage = Damage { backups: lost, ..Damage::default() };
        findings.extend(note::findings(&self.noted.1, seen.as_ref(), &mut damage));
        let deep = seen.map(|seen| {
            findings.extend(seen.bad.iter().map(|bad| costs::finding(folder, bad, &needed, &mut damage)));
            remarks.extend(seen.remarks);
            seen.deep
        });
        let now = self.gathered.timelines(&damage).await?;
        let intact = self.gathered.timelines(&Damage { spared: true, ..Damage::default() }).await?;
        for unreadable in &now.unreadable {
            let key = self.documents.get(&unreadable.id).map_or_else(|| folder.backup(unreadable.id), Key::to_string);
            findings.push(Finding::new(key, Wrong::Content, &unreadable.why).backups(vec![unreadable.id]));
        }
        findings.extend(wal::broken(folder, &self.gathered)?);
        findings.extend(wal::histories(folder, &now)?);
        findings.extend(wal::missing(folder, &now, &self.horizons)?);
        // What both looks have found is told once.
        findings.sort_by(|a, b| a.object.cmp(&b.object));
        findings.dedup_by(|a, b| a.object == b.object);
        (looked.segments, looked.segment_bytes) = self.gathered.segments();
        Ok(Report {
            incarnation: folder.incarnation,
            depth: if deep.is_some() { Depth::Deep } else { Depth::Fast },
            looked,
            deep,
            lost_backups: lost_backups(&now),
            lost_instants: wal::lost(&intact, &now, &self.horizons),
            recoverable: recoverable(&now),
            damage: findings,
            leftovers,
            remarks,
        })
    }
}

/// What each backup needs, read from its manifest.
async fn needs(system: &System, documents: &[BackupDocument], watch: &Watch) -> Result<Vec<Known>> {
    let one = |document: BackupDocument| async move {
        watch.interrupt.check()?;
        let needs = match system.needs(&document).await {
            Ok(needs) => Ok(needs),
            Err(error) if error.kind() == Kind::Damaged => Err(Unknown::Damaged(error.to_string())),
            Err(error) if error.kind() == Kind::Refused => Err(Unknown::Refused(error.to_string())),
            Err(error) => return Err(error),
        };
        Ok(Known { document, needs })
    };
    watch.progress.start("reading the manifests", None);
    let read = stream::iter(documents.iter().cloned().map(one)).buffered(MANIFESTS).try_collect().await;
    watch.progress.finish();
    read
}

/// The documents that count.
fn documents(system: &System, folders: &BTreeMap<BackupId, Folder>) -> Result<BTreeMap<BackupId, Key>> {
    let number = |folder: &Folder| {
        let numbers = folder.objects.iter().filter_map(|(object, _)| match object {
            BackupObject::Document(number) => Some(*number),
            _ => None,
        });
        numbers.max()
    };
    let counts = folders.iter().filter_map(|(id, folder)| Some((*id, number(folder)?)));
    counts.map(|(id, number)| Ok((id, system.folder.backup_document(id, number)?))).collect()
}

fn lost_backups(now: &Timelines) -> Vec<LostBackup> {
    let broken = now.backups().into_iter().filter_map(|b| Some((b.id, b.broken.as_ref()?.why.clone())));
    let unreadable = now.unreadable.iter().map(|lost| (lost.id, "its document is damaged".to_owned()));
    let mut lost: Vec<_> = broken.chain(unreadable).map(|(id, why)| LostBackup { id, why }).collect();
    let mut seen = BTreeSet::new();
    lost.retain(|backup| seen.insert(backup.id));
    lost.sort_by_key(|backup| backup.id);
    lost
}

fn recoverable(now: &Timelines) -> Vec<Recoverable> {
    let of = |t: &window::Timeline| Recoverable { timeline: t.timeline, live: t.live, windows: t.windows.clone() };
    now.timelines.iter().map(of).collect()
}
