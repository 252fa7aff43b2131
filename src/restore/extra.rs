//! The files of a backup from outside its data directory: into a folder beside the copy, to look at, or back to where
//! they were. They are compared before anything is written; what is there and differs is replaced by `--force` alone.

use std::{
    collections::{BTreeSet, HashSet},
    fs::File,
    io::{self, Read},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, RenameFlags},
    io::Errno,
};
use serde::Serialize;

use super::{
    ground::{Ground, Stamp},
    owner::Owner,
    request::{ExtraFiles, RestoreRequest},
};
use crate::{
    error::{Error, Result},
    repository::{BackupDocument, Member, MemberKind, System, join},
};

/// Bytes compared at a time.
const CHUNK: usize = 64 << 10;

/// What is to be written, and how it differs from what is there.
#[derive(Debug)]
pub struct Extra {
    backup: BackupDocument,
    root: PathBuf,
    in_place: bool,
    found: Arc<Found>,
    owner: Owner,
}

/// What was written.
#[derive(Clone, Debug, Serialize)]
pub struct Written {
    /// The folder; `/` when the files are in their places.
    pub folder: PathBuf,
    /// How many files it has.
    pub files: u64,
    /// How many of them were there already.
    pub kept: u64,
    /// What could not be made as it was, in words.
    pub remarks: Vec<String>,
}

/// How the members compare with what is there.
#[derive(Debug, Default)]
struct Found {
    /// Files and links that are there, with that content.
    right: HashSet<PathBuf>,
    /// There with other content.
    differing: Vec<PathBuf>,
    /// What could never be replaced, with the reason.
    obstacles: Vec<String>,
    /// Right, but with another owner or mode.
    others: Vec<PathBuf>,
}

impl Extra {
    /// Compares, and refuses what would be lost. `None` where nothing is to be written. `apart` are the directories of
    /// the copy.
    pub async fn look(
        system: &System,
        backup: &BackupDocument,
        request: &RestoreRequest,
        owner: &Owner,
        apart: Vec<PathBuf>,
    ) -> Result<Option<Self>> {
        let Some(object) = &backup.extra else { return Ok(None) };
        let in_place = match request.extra_files {
            ExtraFiles::LeaveOut => return Ok(None),
            ExtraFiles::InPlace => true,
            ExtraFiles::Beside => false,
        };
        let root = if in_place { PathBuf::from("/") } else { folder(&request.pgdata)?.join(backup.id.to_string()) };
        let ground = Ground::open(&root)?;
        let found = system
            .extra(backup.id, object, Found::default(), move |found, member, content| {
                compare(ground.as_ref(), member, content, &apart, found)
            })
            .await?;
        if let Some(obstacle) = found.obstacles.first() {
            return Err(Error::refused(obstacle.clone()).hint("put the files beside the copy: --extra-files beside"));
        }
        if let ([first, rest @ ..], false) = (found.differing.as_slice(), request.force) {
            let more = if rest.is_empty() { String::new() } else { format!(", and {} more files", rest.len()) };
            return Err(Error::refused(format!(
                "{}{more}: what is there differs from the backup",
                root.join(first).display()
            ))
            .hint(match in_place {
                true => "put them beside the copy to compare: --extra-files beside; or replace them: --force",
                false => "move that folder away, or leave the files out: --extra-files leave-out",
            }));
        }
        let (backup, found) = (backup.clone(), Arc::new(found));
        Ok(Some(Self { backup, root, in_place, found, owner: owner.clone() }))
    }

    /// What will be done, in words.
    pub fn steps(&self) -> Vec<String> {
        let count = self.backup.extra.as_ref().map_or(0, |e| e.files);
        let root = self.root.display();
        let mut steps = vec![match self.in_place {
            true => format!("write {count} files from outside the data directory to where they were"),
            false => format!("put {count} files from outside the data directory into {root}, to look at"),
        }];
        steps.extend(self.found.differing.iter().map(|p| format!("replace {}", self.root.join(p).display())));
        steps
    }

    /// What a person should know before.
    pub fn warnings(&self) -> Vec<String> {
        let other = |p: &PathBuf| {
            format!("{} has another owner or mode than in the backup, and is left so", self.root.join(p).display())
        };
        self.found.others.iter().map(other).collect()
    }

    /// Writes the files, durably.
    pub async fn write(&self, system: &System) -> Result<Option<Written>> {
        let Some(object) = &self.backup.extra else { return Ok(None) };
        let (root, owner, in_place) = (self.root.clone(), self.owner.clone(), self.in_place);
        let ground = join(
            tokio::task::spawn_blocking(move || match in_place {
                true => Ground::make(&root, &[], &owner),
                false => Ground::make(&root, &[root.parent().unwrap_or(&root), &root], &owner),
            })
            .await,
        )??;
        let writing = Writing {
            ground,
            found: self.found.clone(),
            in_place,
            made: Vec::new(),
            touched: BTreeSet::new(),
            written: Written { folder: self.root.clone(), files: 0, kept: 0, remarks: Vec::new() },
        };
        let writing = system.extra(self.backup.id, object, writing, Writing::member).await?;
        join(tokio::task::spawn_blocking(move || writing.end()).await)?.map(Some)
    }
}

/// The folder beside a data directory.
fn folder(pgdata: &Path) -> Result<PathBuf> {
    let name = pgdata.file_name().ok_or_else(|| Error::invalid("the root directory cannot be a data directory"))?;
    let mut name = name.to_owned();
    name.push(".walden-extra");
    Ok(pgdata.with_file_name(name))
}

fn compare(
    ground: Option<&Ground>,
    member: Member,
    content: &mut dyn Read,
    apart: &[PathBuf],
    found: &mut Found,
) -> Result<()> {
    let Some(ground) = ground else { return Ok(()) };
    let whole = ground.whole(&member.path);
    if let Some(inside) = apart.iter().find(|path| whole.starts_with(path)) {
        let why = "a file of its own name could be the copy's";
        found.obstacles.push(format!("{} would lie in {}: {why}", whole.display(), inside.display()));
        return Ok(());
    }
    let parent = match ground.folder(member.path.parent().unwrap_or(Path::new(""))) {
        Ok(parent) => parent,
        Err(Errno::NOENT) => return Ok(()),
        Err(Errno::LOOP | Errno::NOTDIR) => {
            let why = "on the way there is a link, or something that is no folder";
            found.obstacles.push(format!("{} cannot be written: {why}", whole.display()));
            return Ok(());
        }
        Err(e) => return Err(Error::io("look at", &whole, e.into())),
    };
    let Some(name) = member.path.file_name() else { return Ok(()) };
    let stat = match rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(()),
        Err(e) => return Err(Error::io("look at", &whole, e.into())),
    };
    let failed = |e: io::Error| Error::io("read", &whole, e);
    let same = match (&member.kind, FileType::from_raw_mode(stat.st_mode)) {
        (MemberKind::Directory, FileType::Directory) => return Ok(()),
        (MemberKind::Directory, _) | (_, FileType::Directory) => {
            found.obstacles.push(format!("{} cannot be written: something else is called so", whole.display()));
            return Ok(());
        }
        (MemberKind::Link(to), FileType::Symlink) => {
            let there = rustix::fs::readlinkat(&parent, name, Vec::new()).map_err(|e| failed(e.into()))?;
            there.as_bytes() == to.as_os_str().as_bytes()
        }
        (MemberKind::File(size), FileType::RegularFile) => {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let there = rustix::fs::openat(&parent, name, flags, Mode::empty()).map_err(|e| failed(e.into()))?;
            u64::try_from(stat.st_size) == Ok(*size) && equal(File::from(there), content, &failed)?
        }
        _ => false,
    };
    match same {
        false => found.differing.push(member.path),
        true => {
            let stamp = Stamp::of(&member);
            if matches!(member.kind, MemberKind::File(_)) && !stamp.is(&stat) && ground.is_root_folder() {
                found.others.push(member.path.clone());
            }
            found.right.insert(member.path);
        }
    }
    Ok(())
}

fn equal(mut there: File, content: &mut dyn Read, failed: &impl Fn(io::Error) -> Error) -> Result<bool> {
    let (mut ours, mut theirs) = (vec![0; CHUNK], vec![0; CHUNK]);
    loop {
        let count = content.read(&mut ours).map_err(|e| Error::damaged("the archive cannot be read").source(e))?;
        if count == 0 {
            return Ok(there.read(&mut theirs[..1]).map_err(failed)? == 0);
        }
        match there.read_exact(&mut theirs[..count]) {
            Ok(()) if ours[..count] == theirs[..count] => {}
            Err(e) if e.kind() != io::ErrorKind::UnexpectedEof => return Err(failed(e)),
            _ => return Ok(false),
        }
    }
}

struct Writing {
    ground: Ground,
    found: Arc<Found>,
    in_place: bool,
    /// Folders that were made, and get what they are to have when all is in them.
    made: Vec<Member>,
    /// Folders whose entries must become durable.
    touched: BTreeSet<PathBuf>,
    written: Written,
}

impl Writing {
    fn member(&mut self, member: Member, content: &mut dyn Read) -> Result<()> {
        let parent = member.path.parent().unwrap_or(Path::new("")).to_path_buf();
        let is_file = matches!(member.kind, MemberKind::File(_));
        self.written.files += u64::from(is_file);
        if self.found.right.contains(&member.path) {
            self.written.kept += u64::from(is_file);
            return Ok(());
        }
        self.touched.insert(parent.clone());
        let whole = self.ground.whole(&member.path);
        let failed = |doing: &str, e: Errno| Error::io(doing, &whole, e.into());
        let above = self.ground.folder(&parent).map_err(|e| failed("open the folder of", e))?;
        let Some(name) = member.path.file_name() else { return Ok(()) };
        let mut temporary = std::ffi::OsString::from(".");
        temporary.push(name);
        temporary.push(".walden-new");
        if member.kind != MemberKind::Directory {
            match rustix::fs::unlinkat(&above, &temporary, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(e) => return Err(failed("clear the way for", e)),
            }
        }
        match &member.kind {
            MemberKind::Directory => {
                match rustix::fs::mkdirat(&above, name, Mode::RWXU) {
                    Ok(()) => self.made.push(member),
                    Err(Errno::EXIST) => {}
                    Err(e) => return Err(failed("create", e)),
                }
                return Ok(());
            }
            MemberKind::Link(to) => {
                rustix::fs::symlinkat(to, &above, &temporary).map_err(|e| failed("link", e))?;
                Stamp::of(&member).own_link(&above, &temporary);
            }
            MemberKind::File(_) => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let made = rustix::fs::openat(&above, &temporary, flags, Mode::RUSR | Mode::WUSR)
                    .map_err(|e| failed("create", e))?;
                let mut made = File::from(made);
                io::copy(content, &mut made).map_err(|e| Error::io("write", &whole, e))?;
                self.stamp(&made, &member)?;
                made.sync_all().map_err(|e| Error::io("fsync", &whole, e))?;
            }
        }
        if self.found.differing.contains(&member.path) {
            return rustix::fs::renameat(&above, &temporary, &above, name).map_err(|e| failed("replace", e));
        }
        match rustix::fs::renameat_with(&above, &temporary, &above, name, RenameFlags::NOREPLACE) {
            // Not every file system knows how to.
            Err(Errno::INVAL | Errno::NOSYS)
                if rustix::fs::statat(&above, name, AtFlags::SYMLINK_NOFOLLOW).is_err() =>
            {
                rustix::fs::renameat(&above, &temporary, &above, name).map_err(|e| failed("rename", e))
            }
            Err(Errno::EXIST) => {
                Err(Error::refused(format!("{} has appeared meanwhile", whole.display())).hint("repeat the command"))
            }
            done => done.map_err(|e| failed("rename", e)),
        }
    }

    /// Gives an open file what the archive tells of it.
    fn stamp(&mut self, file: &File, member: &Member) -> Result<()> {
        let whole = self.ground.whole(&member.path);
        let (stamp, in_place) = (Stamp::of(member), self.in_place);
        let remarks = stamp.put(file, member, in_place).map_err(|e| Error::io("set the attributes of", &whole, e))?;
        self.written.remarks.extend(remarks.into_iter().map(|r| format!("{}: {r}", whole.display())));
        Ok(())
    }

    /// Folders last, from the inside out, and everything durable.
    fn end(mut self) -> Result<Written> {
        let made = std::mem::take(&mut self.made);
        for member in made.iter().rev() {
            let whole = self.ground.whole(&member.path);
            let folder = self.ground.folder(&member.path).map_err(|e| Error::io("open", &whole, e.into()))?;
            let folder = File::from(folder);
            folder.sync_all().map_err(|e| Error::io("fsync", &whole, e))?;
            self.touched.remove(&member.path);
            self.stamp(&folder, member)?;
        }
        for path in &self.touched {
            let whole = self.ground.whole(path);
            let folder = self.ground.folder(path).map_err(|e| Error::io("open", &whole, e.into()))?;
            rustix::fs::fsync(&folder).map_err(|e| Error::io("fsync", &whole, e.into()))?;
        }
        if !self.in_place {
            for folder in self.written.folder.ancestors().skip(1).take(2) {
                super::sync_folder(folder)?;
            }
        }
        Ok(self.written)
    }
}
