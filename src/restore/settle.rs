//! The last steps, in their order: links, the files that tell PostgreSQL how to recover, `backup_manifest`, and when
//! all of that is durable the guarded `pg_control`, whose rename makes the directory startable.

use std::{
    io::{Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    files::{self, Job},
    place::{Attributes, Place},
    prepare::Restore,
};
use crate::{
    error::{Error, Result},
    postgres::{
        RequiredSettings, Version,
        backup_label::{BACKUP_LABEL, BackupLabel, TABLESPACE_MAP, TablespaceMap},
        backup_manifest::{BACKUP_MANIFEST, ManifestWriter, WalRange},
        control::{self, CONTROL_FILE},
        settings::{AUTO_CONF, Archiving, RECOVERY_SIGNAL, RecoverySettings, RecoveryTarget, STANDBY_SIGNAL},
    },
    repository::{self, Manifest, Member, MemberKind},
};

/// No configuration file is longer than this many bytes.
const LIMIT: u64 = 1 << 20;
/// Until it is renamed.
const NEW_CONTROL: &str = "global/pg_control.walden";

/// A small file that is at hand.
#[derive(Debug)]
struct Small {
    content: Vec<u8>,
    attributes: Attributes,
}

/// All that the last steps need.
#[derive(Debug)]
pub struct Settle {
    manifest: Arc<Manifest>,
    version: Version,
    wal: WalRange,
    links: Vec<(PathBuf, PathBuf)>,
    control: Small,
    label: Small,
    map: Option<Small>,
    auto_conf: Small,
    signal: &'static str,
}

impl Settle {
    /// Fetches what the backup has of it, and makes the rest.
    pub async fn fetch(restore: &Restore, job: &Arc<Job>) -> Result<Self> {
        let manifest = &restore.manifest;
        let mut control = needed(job, CONTROL_FILE).await?;
        control::guard(&mut control.content)?;
        let label = needed(job, BACKUP_LABEL).await?;
        let map = match small(job, TABLESPACE_MAP).await? {
            Some(map) => Some(mapped(map, restore)?),
            None => None,
        };
        let backup = &restore.plan.backup;
        let text = String::from_utf8_lossy(&label.content).into_owned();
        let parsed = BackupLabel::parse(&text)?;
        if parsed.start != backup.start_lsn {
            return Err(Error::damaged(format!(
                "the {BACKUP_LABEL} of backup {} begins at {}, its document says {}",
                backup.id, parsed.start, backup.start_lsn
            )));
        }
        let auto_conf = match small(job, AUTO_CONF).await? {
            Some(there) => there,
            None => Small { content: Vec::new(), attributes: label.attributes },
        };
        let configured = configured(job, &auto_conf).await?.and(configured_outside(restore).await?);
        let settings = settings(restore, &configured);
        let before = String::from_utf8(auto_conf.content)
            .map_err(|e| Error::failed(format!("{AUTO_CONF} is not UTF-8")).source(e))?;
        let content = settings.apply(&before, backup.postgres)?.into_bytes();
        Ok(Self {
            manifest: manifest.clone(),
            version: backup.postgres,
            wal: WalRange { timeline: backup.timeline, start: backup.start_lsn, end: backup.stop_lsn },
            links: restore.links(),
            control,
            label,
            map,
            auto_conf: Small { content, attributes: auto_conf.attributes },
            signal: if restore.request.standby { STANDBY_SIGNAL } else { RECOVERY_SIGNAL },
        })
    }

    /// Carries it out.
    pub fn carry_out(&self, place: &Place) -> Result<()> {
        for (path, to) in &self.links {
            place.link(path, to)?;
        }
        place.sync(Path::new("pg_tblspc"))?;
        self.put(place, AUTO_CONF, &self.auto_conf)?;
        match &self.map {
            Some(map) => self.put(place, TABLESPACE_MAP, map)?,
            None => place.remove(Path::new(TABLESPACE_MAP))?,
        }
        let listing = Path::new(BACKUP_MANIFEST);
        place.write_by(listing, self.label.attributes, |to| self.listing(to))?;
        for signal in [RECOVERY_SIGNAL, STANDBY_SIGNAL] {
            place.remove(Path::new(signal))?;
        }
        self.put(place, self.signal, &Small { content: Vec::new(), attributes: self.label.attributes })?;
        self.put(place, BACKUP_LABEL, &self.label)?;
        place.sync_roots()?;
        self.put(place, NEW_CONTROL, &self.control)?;
        place.rename(Path::new(NEW_CONTROL), Path::new(CONTROL_FILE))?;
        place.sync(Path::new("global"))
    }

    fn put(&self, place: &Place, path: &str, small: &Small) -> Result<()> {
        place.write(Path::new(path), &small.content, small.attributes)
    }

    /// `backup_manifest`, which names the files as they stand now.
    fn listing(&self, to: impl Write) -> Result<()> {
        let mut writer = ManifestWriter::new(to, self.version, self.manifest.incarnation.system)?;
        let own = [
            (CONTROL_FILE, Some(&self.control)),
            (BACKUP_LABEL, Some(&self.label)),
            (TABLESPACE_MAP, self.map.as_ref()),
            (AUTO_CONF, Some(&self.auto_conf)),
        ];
        for file in self.manifest.files.iter() {
            if !own.iter().any(|(path, _)| file.path == Path::new(path)) {
                writer.file(&file.path, file.size, file.mtime, file.crc32c)?;
            }
        }
        for (path, small) in own {
            if let Some(small) = small {
                let crc = crc32c::crc32c(&small.content);
                writer.file(Path::new(path), small.content.len() as u64, small.attributes.mtime, crc)?;
            }
        }
        writer.finish(&[self.wal])?;
        Ok(())
    }
}

fn find(manifest: &Manifest, path: &str) -> Option<usize> {
    manifest.files.find(Path::new(path))
}

async fn small(job: &Arc<Job>, path: &str) -> Result<Option<Small>> {
    match find(&job.manifest, path) {
        Some(index) => {
            let attributes = files::attributes(&job.manifest.files.at(index));
            Ok(Some(Small { content: job.content(index).await?, attributes }))
        }
        None => Ok(None),
    }
}

async fn needed(job: &Arc<Job>, path: &str) -> Result<Small> {
    small(job, path).await?.ok_or_else(|| Error::damaged(format!("the backup holds no {path}")))
}

/// The map with the locations of this copy.
fn mapped(map: Small, restore: &Restore) -> Result<Small> {
    let mut entries = TablespaceMap::parse(&map.content)?;
    for (oid, path) in &mut entries.entries {
        if let Some((_, here)) = restore.tablespaces.iter().find(|(other, _)| other == oid) {
            path.clone_from(here);
        }
    }
    Ok(Small { content: entries.to_bytes(), ..map })
}

fn settings(restore: &Restore, configured: &Configured) -> RecoverySettings {
    let (plan, request) = (&restore.plan, &restore.request);
    let target = match plan.stop {
        _ if request.standby => RecoveryTarget::None,
        Some(stop) => RecoveryTarget::Lsn { lsn: stop.lsn, inclusive: stop.inclusive },
        None => RecoveryTarget::Immediate,
    };
    let archiving =
        if request.clone { Archiving::Off } else { Archiving::HeldBack { command: hold_back(&request.pgdata) } };
    let mut further = request.settings.clone();
    // A segment that is made of pieces must not be archived as if it were whole.
    if plan.from_pieces > 0 && configured.archives_always && !request.clone {
        further.insert(0, ("archive_mode".into(), "on".into()));
    }
    RecoverySettings {
        restore_command: request.restore_command.clone(),
        target,
        timeline: (!request.standby).then_some(plan.timeline),
        action: request.then.into(),
        required: Some(plan.required.at_least(configured.required)),
        archiving,
        further,
    }
}

/// An `archive_command` that archives nothing and says why.
fn hold_back(pgdata: &Path) -> String {
    let why = format!(
        "walden: WAL is held back, because this is a restored copy; to make it the cluster: walden adopt --pgdata {}",
        pgdata.display()
    );
    format!("echo '{}' >&2; exit 1", why.replace('\'', r"'\''").replace('%', "%%"))
}

/// What configuration files of the backup say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Configured {
    /// The highest value of each setting: what a person raised for the next start must not be lowered.
    required: RequiredSettings,
    /// Whether one of them says `archive_mode = always`.
    archives_always: bool,
}

impl Configured {
    fn and(self, other: Self) -> Self {
        let archives_always = self.archives_always || other.archives_always;
        Self { required: self.required.at_least(other.required), archives_always }
    }
}

/// What the configuration files in the data directory say.
async fn configured(job: &Arc<Job>, auto_conf: &Small) -> Result<Configured> {
    let is_configuration = |f: &repository::File| {
        f.path.extension().is_some_and(|e| e == "conf") && f.size <= LIMIT && f.path != Path::new(AUTO_CONF)
    };
    let mut highest = highest(&String::from_utf8_lossy(&auto_conf.content));
    for (index, file) in job.manifest.files.iter().enumerate() {
        if is_configuration(&file) {
            let content = job.content(index).await?;
            highest = highest.and(self::highest(&String::from_utf8_lossy(&content)));
        }
    }
    Ok(highest)
}

/// The same in the files from outside the data directory.
async fn configured_outside(restore: &Restore) -> Result<Configured> {
    let backup = &restore.plan.backup;
    let (Some(object), true) = (&backup.extra, restore.extra.is_some()) else { return Ok(Configured::default()) };
    let look = |found: &mut Configured, member: Member, content: &mut dyn Read| {
        let is_configuration = member.path.extension().is_some_and(|e| e == "conf");
        if is_configuration && matches!(member.kind, MemberKind::File(size) if size <= LIMIT) {
            let mut text = Vec::new();
            content.read_to_end(&mut text).map_err(|e| Error::damaged("the archive cannot be read").source(e))?;
            *found = found.and(highest(&String::from_utf8_lossy(&text)));
        }
        Ok(())
    };
    restore.system.extra(backup.id, object, Configured::default(), look).await
}

fn highest(text: &str) -> Configured {
    let mut archives_always = false;
    let mut found = RequiredSettings::default();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let end = line.find(|c: char| c == '=' || c.is_whitespace()).unwrap_or(line.len());
        let (name, value) = line.split_at(end);
        let value = value.trim_start_matches(|c: char| c == '=' || c.is_whitespace()).trim_matches('\'');
        archives_always |= name.eq_ignore_ascii_case("archive_mode") && value.trim().eq_ignore_ascii_case("always");
        let Ok(value) = value.trim().parse::<u32>() else { continue };
        let slot = match name.to_ascii_lowercase().as_str() {
            "max_connections" => &mut found.max_connections,
            "max_worker_processes" => &mut found.max_worker_processes,
            "max_wal_senders" => &mut found.max_wal_senders,
            "max_prepared_transactions" => &mut found.max_prepared_transactions,
            "max_locks_per_transaction" => &mut found.max_locks_per_transaction,
            _ => continue,
        };
        *slot = value.max(*slot);
    }
    Configured { required: found, archives_always }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_a_person_raised_is_found() {
        let Configured { required: found, archives_always } = highest(
            "archive_mode = 'Always'\nmax_connections = 100\t# (change requires restart)\nMax_Connections '300'\nmax_wal_senders=7\n#max_worker_processes = 90\nmax_locks_per_transaction = many\n",
        );
        assert_eq!((found.max_connections, found.max_wal_senders, found.max_worker_processes), (300, 7, 0));
        assert!(archives_always && !highest("archive_mode = on\n").archives_always);
    }

    #[test]
    fn the_words_that_hold_wal_back_survive_shell_and_postgresql() {
        let command = hold_back(Path::new("/srv/100%/it's"));
        assert!(command.contains("100%%"));
        let said = std::process::Command::new("sh").args(["-c", &command]).output().unwrap();
        assert_eq!(said.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&said.stderr).contains("--pgdata /srv/100%%/it's\n"));
    }
}
