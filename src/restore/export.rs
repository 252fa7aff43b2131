//! Export: a backup as PostgreSQL's own `pg_basebackup --format=tar --wal-method=stream` would have written it, for
//! those who want to go on without Walden.
//!
//! `base.tar` holds the data directory, `<oid>.tar` each tablespace, `pg_wal.tar` the WAL that makes it consistent;
//! `backup_manifest` is what `pg_verifybackup` reads (`src/bin/pg_basebackup/pg_basebackup.c`). The folder appears when
//! it is whole.

use std::{
    collections::{BTreeMap, HashSet},
    ffi::OsString,
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use chrono::{DateTime, Utc};
use serde::Serialize;
use tar::{Builder, EntryType, Header};

use super::{fetch::Source, files::Job, owner::Owner, place::Place, sync_folder};
use crate::{
    error::{Error, Result},
    plan::Watch,
    postgres::{
        backup_label::{BACKUP_LABEL, TABLESPACE_MAP},
        backup_manifest::{BACKUP_MANIFEST, ManifestWriter, WalRange},
        control::CONTROL_FILE,
    },
    repository::{BackupDocument, Manifest, System, join, wal_object},
    store::Key,
};

/// So many bytes of files are put together at a time, before they go into a tar.
const BATCH: u64 = 1 << 30;
const MODE: u32 = 0o600;

/// What was written.
#[derive(Clone, Debug, Serialize)]
pub struct Exported {
    /// The folder.
    pub to: PathBuf,
    /// The files in it.
    pub written: Vec<String>,
    /// Their size in bytes.
    pub bytes: u64,
}

/// Writes `backup` to the folder `to`, which must be absent or empty.
pub async fn export(
    system: &System,
    backup: &BackupDocument,
    to: &Path,
    parallel: usize,
    watch: &Watch,
) -> Result<Exported> {
    let vacant = fs::read_dir(to).map(|mut entries| entries.next().is_none());
    if !vacant
        .or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(true) } else { Err(e) })
        .map_err(|e| Error::io("read", to, e))?
    {
        return Err(Error::refused(format!("{} is not empty", to.display())).hint("name a new folder"));
    }
    let unfinished = beside(to);
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).map_err(|e| Error::io("remove", &unfinished, e))?;
    }
    fs::create_dir_all(&unfinished).map_err(|e| Error::io("create", &unfinished, e))?;
    let done = Export::of(system, backup, &unfinished, parallel, watch).await;
    let done = match done {
        Ok(export) => export.run().await,
        Err(error) => Err(error),
    };
    watch.progress.finish();
    let (written, bytes) = done.inspect_err(|_| {
        // Nothing of it is of use; what cannot be removed is removed by the next export to that place.
        let _ = fs::remove_dir_all(&unfinished);
    })?;
    fs::rename(&unfinished, to).map_err(|e| Error::io("rename", &unfinished, e))?;
    to.parent().filter(|p| !p.as_os_str().is_empty()).map_or(Ok(()), sync_folder)?;
    Ok(Exported { to: to.to_path_buf(), written, bytes })
}

/// Where the files lie until all are there.
fn beside(to: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(to.file_name().unwrap_or_default());
    name.push(".walden-export");
    to.with_file_name(name)
}

struct Export<'a> {
    system: &'a System,
    backup: &'a BackupDocument,
    manifest: Arc<Manifest>,
    folder: &'a Path,
    job: Arc<Job>,
    watch: &'a Watch,
}

impl<'a> Export<'a> {
    async fn of(
        system: &'a System,
        backup: &'a BackupDocument,
        folder: &'a Path,
        parallel: usize,
        watch: &'a Watch,
    ) -> Result<Self> {
        let manifest = Arc::new(system.manifest(backup).await?);
        let own = Owner { name: String::new(), uid: 0, gid: 0, hand_over: false };
        let place = Place::open(&folder.join("scratch"), 0o700, None, &[], &own)?;
        for directory in &manifest.directories {
            place.directory(&directory.path, 0o700)?;
        }
        let job = Arc::new(Job {
            source: Source::new(system.clone(), manifest.clone(), None),
            manifest: manifest.clone(),
            place: Arc::new(place),
            parallel,
            progress: watch.progress.clone(),
            interrupt: watch.interrupt.clone(),
        });
        Ok(Self { system, backup, manifest, folder, job, watch })
    }

    async fn run(self) -> Result<(Vec<String>, u64)> {
        let size = self.manifest.files.iter().map(|f| f.size).sum();
        self.watch.progress.start("exporting", Some(size));
        let mut written = Vec::new();
        for (oid, files) in self.archives() {
            written.push(self.archive(oid, files).await?);
        }
        written.push(self.wal().await?);
        let scratch = self.folder.join("scratch");
        fs::remove_dir_all(&scratch).map_err(|e| Error::io("remove", &scratch, e))?;
        written.push(self.listing()?);
        sync_folder(self.folder)?;
        let length = |name: &String| {
            let path = self.folder.join(name);
            fs::metadata(&path).map(|m| m.len()).map_err(|e| Error::io("stat", &path, e))
        };
        let bytes = written.iter().map(length).sum::<Result<u64>>()?;
        Ok((written, bytes))
    }

    /// The files of each archive, by their numbers: of the data directory (`None`), and of each tablespace. What ends
    /// a backup begins the archive, and `pg_control` ends it, as PostgreSQL sends them.
    fn archives(&self) -> BTreeMap<Option<u32>, Vec<usize>> {
        let mut archives: BTreeMap<Option<u32>, Vec<usize>> = BTreeMap::from([(None, Vec::new())]);
        archives.extend(self.manifest.tablespaces.iter().map(|t| (Some(t.oid), Vec::new())));
        for (number, file) in self.manifest.files.paths().enumerate() {
            let oid = self.tablespace_of(file);
            archives.entry(oid).or_default().push(number);
        }
        for files in archives.values_mut() {
            files.sort_by_key(|number| match self.manifest.files.path(*number).to_str() {
                Some(BACKUP_LABEL | TABLESPACE_MAP) => 0,
                Some(CONTROL_FILE) => 2,
                _ => 1,
            });
        }
        archives
    }

    fn tablespace_of(&self, path: &Path) -> Option<u32> {
        let root = |oid: u32| Path::new("pg_tblspc").join(oid.to_string());
        self.manifest.tablespaces.iter().map(|t| t.oid).find(|oid| path.starts_with(root(*oid)))
    }

    async fn archive(&self, oid: Option<u32>, files: Vec<usize>) -> Result<String> {
        let name = oid.map_or_else(|| "base.tar".to_owned(), |oid| format!("{oid}.tar"));
        let root = oid.map_or_else(PathBuf::new, |oid| Path::new("pg_tblspc").join(oid.to_string()));
        let mut tar = Tar::create(self.folder.join(&name))?;
        let inside = |path: &Path| self.tablespace_of(path) == oid && path != root;
        for directory in self.manifest.directories.iter().filter(|d| inside(&d.path)) {
            let path = directory.path.strip_prefix(&root).unwrap_or(&directory.path);
            tar.directory(path, directory.mode)?;
        }
        if oid.is_none() {
            for tablespace in &self.manifest.tablespaces {
                tar.link(&format!("pg_tblspc/{}", tablespace.oid), &tablespace.location)?;
            }
        }
        let mut rest = files.as_slice();
        while !rest.is_empty() {
            let (mut count, mut size) = (0, 0);
            for number in rest {
                size += self.manifest.files.at(*number).size;
                if count > 0 && size > BATCH {
                    break;
                }
                count += 1;
            }
            let (batch, later) = rest.split_at(count);
            self.job.write(batch, HashSet::new()).await?;
            let (job, batch, root) = (self.job.clone(), batch.to_vec(), root.clone());
            tar = join(tokio::task::spawn_blocking(move || tar.take_in(&job, &batch, &root)).await)??;
            rest = later;
        }
        tar.finish()?;
        Ok(name)
    }

    /// The WAL from the backup's start to its stop, with the history of its timeline; marked as archived, as
    /// `pg_basebackup` marks it.
    async fn wal(&self) -> Result<String> {
        let (timeline, size) = (self.backup.timeline, self.system.document.segment_size);
        let numbers = self.backup.first_segment.number(size)?..=self.backup.last_segment.number(size)?;
        let mut tar = Tar::create(self.folder.join("pg_wal.tar"))?;
        let mut wanted = Vec::new();
        if timeline != crate::postgres::TimelineId::FIRST {
            wanted.push((format!("{}.history", timeline.hex()), self.system.folder.history(timeline)?));
        }
        for number in numbers {
            let name = crate::postgres::SegmentName::from_number(timeline, number, size)
                .ok_or_else(|| Error::internal("a segment without a name"))?;
            wanted.push((name.to_string(), self.system.folder.segment(name)?));
        }
        tar.directory(Path::new("archive_status"), 0o700)?;
        for (name, key) in &wanted {
            let content = self.content(key).await?;
            tar.bytes(Path::new(name), &content, self.backup.stopped)?;
            tar.bytes(&Path::new("archive_status").join(format!("{name}.done")), &[], self.backup.stopped)?;
        }
        tar.finish()?;
        Ok("pg_wal.tar".to_owned())
    }

    async fn content(&self, key: &Key) -> Result<Vec<u8>> {
        wal_object::open(&*self.system.store, key).await?.content().await
    }

    fn listing(&self) -> Result<String> {
        let path = self.folder.join(BACKUP_MANIFEST);
        let file = File::create_new(&path).map_err(|e| Error::io("create", &path, e))?;
        let mut writer =
            ManifestWriter::new(BufWriter::new(file), self.backup.postgres, self.manifest.incarnation.system)?;
        for file in self.manifest.files.iter() {
            writer.file(&file.path, file.size, file.mtime, file.crc32c)?;
        }
        let (timeline, start, end) = (self.backup.timeline, self.backup.start_lsn, self.backup.stop_lsn);
        let file = writer.finish(&[WalRange { timeline, start, end }])?;
        file.get_ref().sync_all().map_err(|e| Error::io("fsync", &path, e))?;
        Ok(BACKUP_MANIFEST.to_owned())
    }
}

/// A tar that is being written.
struct Tar {
    path: PathBuf,
    builder: Builder<BufWriter<File>>,
}

impl Tar {
    fn create(path: PathBuf) -> Result<Self> {
        let file = File::create_new(&path).map_err(|e| Error::io("create", &path, e))?;
        Ok(Self { path, builder: Builder::new(BufWriter::with_capacity(256 << 10, file)) })
    }

    /// Puts these files in, and removes them from the place.
    fn take_in(mut self, job: &Job, files: &[usize], root: &Path) -> Result<Self> {
        for number in files {
            job.interrupt.check()?;
            let file = job.manifest.files.at(*number);
            let name = file.path.strip_prefix(root).unwrap_or(&file.path);
            let whole = job.place.whole(&file.path);
            let from = File::open(&whole).map_err(|e| Error::io("open", &whole, e))?;
            let mut header = header(EntryType::Regular, file.size, file.mode, file.mtime);
            let added = self.builder.append_data(&mut header, name, from);
            added.map_err(|e| self.failed(e))?;
            job.place.remove(&file.path)?;
        }
        Ok(self)
    }

    fn bytes(&mut self, name: &Path, content: &[u8], time: DateTime<Utc>) -> Result<()> {
        let mut header = header(EntryType::Regular, content.len() as u64, MODE, time);
        let added = self.builder.append_data(&mut header, name, content);
        added.map_err(|e| self.failed(e))
    }

    fn directory(&mut self, name: &Path, mode: u32) -> Result<()> {
        let mut header = header(EntryType::Directory, 0, mode, DateTime::UNIX_EPOCH);
        let added = self.builder.append_data(&mut header, name, io::empty());
        added.map_err(|e| self.failed(e))
    }

    fn link(&mut self, name: &str, to: &str) -> Result<()> {
        let mut header = header(EntryType::Symlink, 0, 0o777, DateTime::UNIX_EPOCH);
        let added = self.builder.append_link(&mut header, name, to);
        added.map_err(|e| self.failed(e))
    }

    fn finish(mut self) -> Result<()> {
        self.builder.finish().map_err(|e| self.failed(e))?;
        let path = self.path.clone();
        let failed = |e| Error::io("write", &path, e);
        let mut buffer = self.builder.into_inner().map_err(failed)?;
        buffer.flush().map_err(failed)?;
        buffer.get_ref().sync_all().map_err(failed)
    }

    fn failed(&self, error: io::Error) -> Error {
        Error::io("write", &self.path, error)
    }
}

fn header(kind: EntryType, size: u64, mode: u32, time: DateTime<Utc>) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode & 0o7777);
    header.set_mtime(u64::try_from(time.timestamp()).unwrap_or(0));
    header.set_uid(0);
    header.set_gid(0);
    header
}
