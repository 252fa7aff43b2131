//! Everything that must hold before a byte is written, and what will be done, in words.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use chrono::{DateTime, Utc};

use super::{
    configuration,
    extra::Extra,
    mark::{self, Mark, Phase},
    owner::Owner,
    request::{ExtraFiles, RestoreRequest, Then},
    rescue::Rescue,
    space::{self, Need},
};
use crate::{
    error::{Error, Kind, Result},
    human,
    plan::Plan,
    postgres::{
        ControlFile,
        server::{self, Running},
    },
    repository::{Manifest, System},
};

/// What is in the directory before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Before {
    /// Nothing.
    Nothing,
    /// An unfinished restore of the same plan, which goes on.
    Unfinished,
    /// A copy of the same cluster, which is mended.
    Compared,
    /// Something that is removed.
    Removed,
}

/// A restore that may begin.
#[derive(Debug)]
pub struct Restore {
    pub(super) system: System,
    pub(super) plan: Plan,
    pub(super) request: RestoreRequest,
    pub(super) manifest: Arc<Manifest>,
    pub(super) owner: Owner,
    /// OID and directory of each tablespace that lies elsewhere.
    pub(super) tablespaces: Vec<(u32, PathBuf)>,
    /// Where `pg_wal` lies, when elsewhere.
    pub(super) waldir: Option<PathBuf>,
    pub(super) before: Before,
    pub(super) rescue: Option<Rescue>,
    pub(super) extra: Option<Extra>,
    pub(super) begun: DateTime<Utc>,
    steps: Vec<String>,
    warnings: Vec<String>,
}

/// The plan of the unfinished restore that this request would go on with; `None` where there is none, and where
/// `--force` gives it up. An unfinished restore of something else is refused.
pub fn resumable(request: &RestoreRequest) -> Result<Option<Plan>> {
    let Some(mark) = mark::unfinished(&request.pgdata)? else { return Ok(None) };
    if mark.request.asks_the_same(request) {
        return Ok(Some(mark.plan));
    }
    if request.force {
        return Ok(None);
    }
    Err(Error::refused(format!(
        "{} holds an unfinished restore of something else: --to {}, begun {}",
        request.pgdata.display(),
        mark.request.wish.to,
        human::time(mark.begun)
    ))
    .hint("repeat that command to finish it, or give it up with --force"))
}

impl Restore {
    /// Checks everything. `plan` is the one of [`resumable`], where there is one. Nothing is written.
    pub async fn prepare(system: System, plan: Plan, request: RestoreRequest, now: DateTime<Utc>) -> Result<Self> {
        let pgdata = request.pgdata.clone();
        not_running(&pgdata)?;
        enough(&plan, &request)?;
        let mark = mark::unfinished(&pgdata)?;
        let before = before(&request, mark.as_ref(), &plan)?;
        let begun = mark.as_ref().map_or(now, |m| m.begun);
        let owner = Owner::choose(request.owner.as_deref(), &pgdata)?;
        let manifest = Arc::new(system.manifest(&plan.backup).await?);
        let old = Old::of(&pgdata, before);
        created(&plan, &request)?;
        let tablespaces = tablespaces(&manifest, &request, &old)?;
        let waldir = waldir(&request, &old)?;
        let mut warnings = Vec::new();
        let saved = configuration::is_saved(&plan.backup) && request.extra_files != ExtraFiles::LeaveOut;
        if lacks_configuration(&manifest) && !saved {
            warnings.push(
                "postgresql.conf lay outside the data directory, and the copy has none: --start makes the least that lets it recover; else put one there before the start"
                    .to_owned(),
            );
        }
        let others = tablespaces.iter().map(|(_, path)| path).chain(&waldir);
        let apart = others.chain([&pgdata]).cloned().collect();
        let extra = Extra::look(&system, &plan.backup, &request, &owner, apart).await?;
        warnings.extend(extra.iter().flat_map(Extra::warnings));
        let left_out = plan.backup.extra_left_out.iter();
        warnings.extend(left_out.map(|l| format!("the backup could not save {}: {}", l.path, l.why)));
        warnings.extend(room(&manifest, &plan, &system, &pgdata, &tablespaces, waldir.as_deref(), before)?);
        let rescue = match (before, mark.as_ref().map(|m| m.phase)) {
            (Before::Compared | Before::Removed, _) | (Before::Unfinished, Some(Phase::Clearing)) => {
                let aside = mark::beside(&pgdata, &format!("walden-wal-{}", begun.format("%Y%m%dT%H%M%SZ")))?;
                Some(Rescue::look(&pgdata, &system, aside).await?)
            }
            _ => None,
        };
        let mut restore = Self {
            system,
            plan,
            request,
            manifest,
            owner,
            tablespaces,
            waldir,
            before,
            rescue,
            extra,
            begun,
            steps: Vec::new(),
            warnings,
        };
        restore.steps = restore.describe();
        Ok(restore)
    }

    /// What is carried out.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// How, with its paths made absolute.
    #[must_use]
    pub fn request(&self) -> &RestoreRequest {
        &self.request
    }

    /// Who will own the files.
    #[must_use]
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// What will be done, one thing a line.
    #[must_use]
    pub fn steps(&self) -> &[String] {
        &self.steps
    }

    /// What a person should know before.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    fn describe(&self) -> Vec<String> {
        let pgdata = self.request.pgdata.display();
        let mut steps = Vec::new();
        if let Some(rescue) = self.rescue.as_ref().filter(|r| !r.files.is_empty()) {
            let count = rescue.files.len();
            let aside = rescue.aside.display();
            steps.push(if rescue.belongs {
                format!("save {count} WAL files of the old pg_wal that the repository lacks: push them, or move them to {aside}")
            } else {
                format!("move {count} WAL files of the old pg_wal that the repository lacks to {aside}")
            });
        }
        steps.push(match self.before {
            Before::Nothing => format!("write {pgdata}, owned by {}", self.owner.name),
            Before::Unfinished => {
                format!("go on with the restore into {pgdata} that was begun {}", human::time(self.begun))
            }
            Before::Compared => {
                format!("make {pgdata} equal to the backup: keep the files that are right, rewrite the others, remove what is not in it")
            }
            Before::Removed => format!("remove everything in {pgdata}, then write it, owned by {}", self.owner.name),
        });
        steps
            .extend(self.tablespaces.iter().map(|(oid, path)| format!("write tablespace {oid} to {}", path.display())));
        steps.extend(self.waldir.iter().map(|path| format!("make pg_wal a link to {}", path.display())));
        let created = self.plan.created_tablespaces.iter().filter(|t| !t.path.is_empty());
        steps.extend(created.map(|t| format!("make the directory {} for a tablespace that replay creates", t.path)));
        steps.extend(self.extra.iter().flat_map(Extra::steps));
        steps.push(
            match (self.request.standby, self.request.then) {
                (true, _) => "leave it ready to start as a standby",
                (_, Then::Pause) => {
                    "leave it ready to start: it will recover up to the target and wait there, read-only"
                }
                (_, Then::Promote) => {
                    "leave it ready to start: it will recover up to the target and open a new timeline"
                }
                (_, Then::Shutdown) => "leave it ready to start: it will recover up to the target and shut down",
            }
            .to_owned(),
        );
        steps.push(if self.request.clone {
            "turn archiving off in the copy, for good".to_owned()
        } else {
            "hold back the WAL that the copy writes, until walden adopt".to_owned()
        });
        steps
    }
}

fn lacks_configuration(manifest: &Manifest) -> bool {
    manifest.files.find(Path::new("postgresql.conf")).is_none()
}

/// Refuses a directory in which a server runs.
fn not_running(pgdata: &Path) -> Result<()> {
    match server::running(pgdata)? {
        Running::Yes(postmaster) => {
            Err(Error::refused(format!("a server runs in {} (process {})", pgdata.display(), postmaster.pid))
                .hint("stop it first, or restore into another directory"))
        }
        Running::No | Running::Stale(_) => Ok(()),
    }
}

fn before(request: &RestoreRequest, mark: Option<&Mark>, plan: &Plan) -> Result<Before> {
    let pgdata = &request.pgdata;
    if let Some(mark) = mark {
        if !mark.request.asks_the_same(request) || mark.plan != *plan {
            return Ok(Before::Removed);
        }
        let started = mark.phase == Phase::Writing && ControlFile::read(pgdata).is_ok_and(|c| !c.is_guarded());
        if started && !request.force {
            return Err(Error::refused(format!(
                "the restore into {} was done but for its mark, and a server has run there since",
                pgdata.display()
            ))
            .hint(format!("keep it: remove {}; restore anew: add --force", mark::path_of(pgdata)?.display())));
        }
        return Ok(if started { Before::Removed } else { Before::Unfinished });
    }
    if is_vacant(pgdata)? {
        return Ok(Before::Nothing);
    }
    if request.force {
        if pgdata.join("PG_VERSION").is_file() || pgdata.join("global").is_dir() {
            return Ok(Before::Removed);
        }
        return Err(Error::refused(format!("{} is not empty, and holds no PostgreSQL", pgdata.display()))
            .hint("is it the right directory? If so, empty it by hand"));
    }
    if !request.delta {
        return Err(Error::refused(format!("{} is not empty", pgdata.display()))
            .hint("restore elsewhere, or add --delta to mend what is there, or --force to remove it first"));
    }
    let there = ControlFile::read(pgdata).map_err(|e| {
        Error::refused(format!("{} is no data directory that could be mended", pgdata.display()))
            .hint("use --force to remove what is there")
            .source(e)
    })?;
    if there.system != plan.incarnation.system {
        return Err(Error::refused(format!(
            "{} belongs to system {}, the backup to system {}",
            pgdata.display(),
            there.system,
            plan.incarnation.system
        ))
        .hint("--delta mends a copy of the same cluster only; use --force to remove what is there"));
    }
    Ok(Before::Compared)
}

/// Whether a directory is absent or empty.
pub(super) fn is_vacant(path: &Path) -> Result<bool> {
    match fs::read_dir(path) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotADirectory => {
            Err(Error::refused(format!("{} is no directory", path.display())))
        }
        Err(e) => Err(Error::io("read the directory", path, e)),
    }
}

/// The links of the directory that is replaced: what they point to may be written again.
struct Old {
    targets: HashSet<PathBuf>,
    wal: Option<PathBuf>,
}

impl Old {
    fn of(pgdata: &Path, before: Before) -> Self {
        if before == Before::Nothing {
            return Self { targets: HashSet::new(), wal: None };
        }
        let links = fs::read_dir(pgdata.join("pg_tblspc")).into_iter().flatten().flatten();
        let wal = fs::read_link(pgdata.join("pg_wal")).ok();
        let targets = links.filter_map(|entry| fs::read_link(entry.path()).ok()).chain(wal.clone()).collect();
        Self { targets, wal }
    }

    /// Refuses a directory that holds something of somebody else's.
    fn check(&self, what: &str, path: &Path, hint: &str) -> Result<()> {
        if self.targets.contains(path) || is_vacant(path)? {
            return Ok(());
        }
        Err(Error::refused(format!("{what} is to lie in {}, which is not empty", path.display())).hint(hint))
    }
}

fn tablespaces(manifest: &Manifest, request: &RestoreRequest, old: &Old) -> Result<Vec<(u32, PathBuf)>> {
    let mut found = Vec::new();
    for tablespace in &manifest.tablespaces {
        let location = Path::new(&tablespace.location);
        let mapped = request.maps.iter().find(|(from, _)| from == location);
        let path = mapped.map_or(location, |(_, to)| to.as_path());
        if !path.is_absolute() {
            return Err(Error::damaged(format!("tablespace {} lies in \"{}\"", tablespace.oid, path.display())));
        }
        let hint = format!("put it elsewhere: --map {}=NEW", location.display());
        old.check(&format!("tablespace {}", tablespace.oid), path, &hint)?;
        let clash = |other: &Path| path.starts_with(other) || other.starts_with(path);
        if clash(&request.pgdata) || found.iter().any(|(_, other): &(u32, PathBuf)| clash(other)) {
            return Err(Error::invalid(format!(
                "tablespace {} cannot lie in {}: it must lie apart from the data directory and from other tablespaces",
                tablespace.oid,
                path.display()
            ))
            .hint(hint));
        }
        found.push((tablespace.oid, path.to_path_buf()));
    }
    let locations: Vec<&str> = manifest.tablespaces.iter().map(|t| t.location.as_str()).collect();
    match request.maps.iter().find(|(from, _)| !locations.iter().any(|l| Path::new(l) == from)) {
        Some((from, _)) => Err(Error::invalid(format!("the backup has no tablespace in {}", from.display())).hint(
            match locations.as_slice() {
                [] => "it has no tablespaces at all".to_owned(),
                some => format!("its tablespaces lie in {}", some.join(", ")),
            },
        )),
        None => Ok(found),
    }
}

fn waldir(request: &RestoreRequest, old: &Old) -> Result<Option<PathBuf>> {
    let Some(path) = &request.waldir else { return Ok(old.wal.clone()) };
    if path.starts_with(&request.pgdata) {
        return Err(Error::invalid(format!("{} lies in the data directory", path.display()))
            .hint("leave --waldir out, or name a directory elsewhere"));
    }
    old.check("pg_wal", path, "name an empty directory with --waldir")?;
    Ok(Some(path.clone()))
}

/// Refuses settings with which recovery would stop (`RecoveryRequiresIntParameter` in `xlogrecovery.c`).
fn enough(plan: &Plan, request: &RestoreRequest) -> Result<()> {
    let required = plan.required.each();
    for (name, value) in &request.settings {
        let least = required.iter().find(|(other, _)| other.eq_ignore_ascii_case(name)).map_or(0, |(_, least)| *least);
        if value.trim().parse::<u32>().is_ok_and(|value| value < least) {
            return Err(Error::invalid(format!("{name} must be at least {least}, or recovery stops"))
                .hint("leave it out of --set until recovery has ended"));
        }
    }
    Ok(())
}

/// Replay creates these at their old paths, whatever is asked for here: the path stands in the log, and where a link
/// in `pg_tblspc` leads elsewhere replay makes it anew (`create_tablespace_directories` in `tablespace.c`).
fn created(plan: &Plan, request: &RestoreRequest) -> Result<()> {
    for tablespace in plan.created_tablespaces.iter().filter(|t| !t.path.is_empty()) {
        let path = Path::new(&tablespace.path);
        let hint = format!(
            "move away what lies there, restore on another host, or stop earlier: --to before:{}",
            tablespace.lsn
        );
        if request.maps.iter().any(|(from, _)| from == path) {
            return Err(Error::refused(format!(
                "tablespace {} cannot be mapped: it was created after the backup, and replay creates it in {} again",
                tablespace.oid, tablespace.path
            ))
            .hint(hint));
        }
        if !is_vacant(path)? {
            return Err(Error::refused(format!(
                "replay creates tablespace {} in {}, as the cluster did at {}; that directory is not empty",
                tablespace.oid, tablespace.path, tablespace.lsn
            ))
            .hint(hint));
        }
    }
    Ok(())
}

fn room(
    manifest: &Manifest,
    plan: &Plan,
    system: &System,
    pgdata: &Path,
    tablespaces: &[(u32, PathBuf)],
    waldir: Option<&Path>,
    before: Before,
) -> Result<Option<String>> {
    let replaces = before != Before::Nothing;
    let mut needs = vec![Need { path: pgdata.to_path_buf(), bytes: 0, replaces }];
    needs.extend(tablespaces.iter().map(|(_, path)| Need { path: path.clone(), bytes: 0, replaces }));
    let prefixes: Vec<_> = tablespaces.iter().map(|(oid, _)| Path::new("pg_tblspc").join(oid.to_string())).collect();
    for file in manifest.files.iter() {
        let at = prefixes.iter().position(|prefix| file.path.starts_with(prefix)).map_or(0, |at| at + 1);
        needs[at].bytes += file.size.next_multiple_of(4096);
    }
    let wal = plan.segments.saturating_mul(system.document.segment_size.bytes());
    space::check(&needs, waldir.unwrap_or(pgdata), wal)
}

impl RestoreRequest {
    /// Makes the paths absolute and free of links, as far as they exist.
    pub fn resolve(&mut self) -> Result<()> {
        self.pgdata = mark::resolved(&self.pgdata)?;
        if self.pgdata.parent().is_none() {
            return Err(Error::new(Kind::Invalid, "the root directory cannot be a data directory"));
        }
        if let Some(waldir) = &mut self.waldir {
            *waldir = mark::resolved(waldir)?;
        }
        for (_, to) in &mut self.maps {
            *to = mark::resolved(to)?;
        }
        Ok(())
    }
}
