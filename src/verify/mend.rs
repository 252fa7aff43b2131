//! Where a damaged object is whole, and what a person can do about it.

use super::{
    deep,
    report::{Finding, Report, Wrong},
};
use crate::{
    error::{Kind, Result},
    plan::Watch,
    repository::{RepositoryName, System, piece_of, roll_up_of, segment_of},
    store::Key,
};

/// No more objects than these are looked for elsewhere.
const MOST: usize = 1000;

/// Another repository that holds the same.
#[derive(Clone, Debug)]
pub struct Other {
    /// Its name.
    pub name: RepositoryName,
    /// What it has of the system.
    pub system: System,
}

/// Looks for whole copies of what is damaged in the repository `name`, and says how each can be mended. Copies are read
/// and proven. Another repository that does not answer has none.
pub async fn mend(
    report: &mut Report,
    name: &RepositoryName,
    system: &System,
    others: &[Other],
    watch: &Watch,
) -> Result<()> {
    if report.damage.is_empty() {
        return Ok(());
    }
    for other in others {
        let (backups, _) = match other.system.readable_backups().await {
            Err(error) if matches!(error.kind(), Kind::Unavailable | Kind::Denied) => continue,
            found => found?,
        };
        let checker = deep::checker(&other.system, &backups, None, watch).await?;
        for found in report.damage.iter_mut().take(MOST) {
            if is_whole(&checker, &other.system, found).await? {
                found.whole_in.push(other.name.to_string());
            }
        }
    }
    for found in &mut report.damage {
        let whole = others.iter().find(|other| found.whole_in.contains(&other.name.to_string()));
        found.mend = match whole {
            Some(other) => from_other(found, name, system, other),
            None => alone(found, system),
        };
    }
    Ok(())
}

async fn is_whole(checker: &deep::Checker, system: &System, found: &Finding) -> Result<bool> {
    let Ok(key) = Key::new(found.object.as_str()) else { return Ok(false) };
    if let (Some(first), Some(last)) = (segment_of(&key), &found.through) {
        let last = Key::new(last.as_str()).ok().and_then(|key| segment_of(&key));
        return Ok(system.segments(first.timeline, Some(first), last).await?.len() as u64 == found.objects);
    }
    match deep::is_whole(checker, &key).await {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == Kind::Interrupted => Err(error),
        Err(_) => Ok(false),
    }
}

/// The commands that bring it back from another repository.
fn from_other(found: &Finding, name: &RepositoryName, system: &System, other: &Other) -> Vec<String> {
    let (here, there) = (place(&system.store.url(), &found.object), place(&other.system.store.url(), &found.object));
    let mut steps = Vec::new();
    if found.wrong != Wrong::Missing {
        steps.push(here.remove());
    }
    if name.as_str() != RepositoryName::FIRST && other.name.as_str() == RepositoryName::FIRST {
        steps.push(format!("walden sync {name}"));
    } else if let Some(through) = &found.through {
        steps.push(format!("copy {} and what follows up to {through} to {}", there.address(), here.address()));
    } else {
        steps.push(there.copy_to(&here));
    }
    steps
}

/// What can be done where nobody has a copy.
fn alone(found: &Finding, system: &System) -> Vec<String> {
    let here = place(&system.store.url(), &found.object);
    let key = Key::new(found.object.as_str()).ok();
    if let Some(name) = key.as_ref().and_then(segment_of) {
        let file = if found.objects == 1 { name.to_string() } else { "the segments".to_owned() };
        let remove = if found.wrong == Wrong::Missing { String::new() } else { format!("{}; ", here.remove()) };
        return vec![
            format!(
                "if {file} is still in pg_wal of the server or of a standby: {remove}walden wal push pg_wal/{name}"
            ),
            "else walden backup: what comes after it is recovered without this".to_owned(),
        ];
    }
    if key.as_ref().is_some_and(|key| roll_up_of(key).is_some()) {
        return vec![here.remove(), "walden wal summarize".to_owned()];
    }
    if key.as_ref().is_some_and(|key| piece_of(key).is_some()) || found.object.ends_with(".pieces/") {
        return vec!["none is needed once the segment is archived whole".to_owned()];
    }
    if found.object.ends_with(".history") {
        let name = found.object.rsplit('/').next().unwrap_or_default();
        return vec![format!("{}; walden wal push pg_wal/{name}, on a server that still has it", here.remove())];
    }
    if !found.backups.is_empty() {
        return vec![
            "walden backup: what lay in it is stored anew, and what comes after it can be recovered".to_owned(),
        ];
    }
    Vec::new()
}

/// Where an object lies, as other programs name it.
enum Place {
    File(String),
    Bucket(String),
}

fn place(url: &str, key: &str) -> Place {
    match url.strip_prefix("file://") {
        Some(folder) => Place::File(format!("{}/{key}", folder.trim_end_matches('/'))),
        None => Place::Bucket(format!("{}/{key}", url.trim_end_matches('/'))),
    }
}

impl Place {
    fn address(&self) -> &str {
        match self {
            Self::File(address) | Self::Bucket(address) => address,
        }
    }

    fn remove(&self) -> String {
        match self {
            Self::File(path) => format!("rm {path}"),
            Self::Bucket(url) => format!("aws s3 rm {url}"),
        }
    }

    fn copy_to(&self, to: &Self) -> String {
        match (self, to) {
            (Self::File(from), Self::File(to)) => format!("cp -p {from} {to}"),
            (from, to) => format!("aws s3 cp {} {}", from.address(), to.address()),
        }
    }
}
