//! Objects as plain files below a root folder: the embedded default, `file:///path`.
//!
//! A key is the path below the root. What is written goes to a temporary file in [`WRITING`] first, a name no key
//! can spell, and appears under its own name, whole and durable, by a hard link: unlike a rename, a link never
//! replaces what is there. Each operation is one blocking call on a thread of its own.
//!
//! A folder with nothing in it at all is taken for a mount point whose file system is missing, never for a
//! store in which nothing is found: [`DirStore::create`] leaves [`WRITING`] behind.

mod temporary;

use std::{
    cmp::Ordering,
    collections::BTreeMap,
    fs::{self, DirBuilder, File},
    io::{self, Read, Seek, SeekFrom},
    ops::{ControlFlow, Range},
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use rustix::fs::{Advice, Mode, OFlags, fadvise};

use self::temporary::Temporary;
use super::{Answer, Body, Download, Key, Listed, Put, Store, Tag, Upload};
use crate::{
    clock::Random,
    error::{Error, Kind, Result},
};

/// The folder below the root that holds the files being written.
const WRITING: &str = "~writing";

/// How much is read from or written to a file at once, in bytes: enough that the hand-over between threads is
/// not felt.
const CHUNK: usize = 1 << 20;

/// A store in a directory.
#[derive(Debug)]
pub struct DirStore {
    root: Arc<Root>,
}

#[derive(Debug)]
struct Root {
    path: PathBuf,
    random: Arc<Random>,
}

impl DirStore {
    /// The store in the existing folder `root`. `Denied` when there is none, or nothing is in it.
    pub fn open(root: PathBuf, random: Arc<Random>) -> Result<Self> {
        let root = Root { path: root, random };
        root.must_stand()?;
        Ok(Self { root: Arc::new(root) })
    }

    /// The store in the folder `root`, which is made, durably, where it is missing.
    pub fn create(root: PathBuf, random: Arc<Random>) -> Result<Self> {
        let writing = root.join(WRITING);
        let missing: Vec<&Path> = writing.ancestors().take_while(|folder| !folder.exists()).collect();
        make_folders(&writing).map_err(|e| failed("create", &writing, e))?;
        missing.iter().filter_map(|made| made.parent()).try_for_each(sync_folder)?;
        Self::open(root, random)
    }
}

impl Store for DirStore {
    fn url(&self) -> String {
        format!("file://{}", self.root.path.display())
    }

    fn put<'a>(&'a self, key: &'a Key, bytes: Bytes) -> Answer<'a, Put> {
        let (root, key) = (Arc::clone(&self.root), key.clone());
        Box::pin(blocking(move || {
            if root.has(&key)? {
                return root.settle_existing(&key);
            }
            let mut temporary = Temporary::create(&root)?;
            temporary.write(&bytes)?;
            temporary.publish(&root, &key)
        }))
    }

    fn upload<'a>(&'a self, key: &'a Key) -> Answer<'a, Box<dyn Upload>> {
        let (root, key) = (Arc::clone(&self.root), key.clone());
        Box::pin(blocking(move || {
            let temporary = Some(Temporary::create(&root)?);
            let upload = DirUpload { root, key, temporary, replaced: None, pending: Vec::new(), pending_length: 0 };
            Ok(Box::new(upload) as Box<dyn Upload>)
        }))
    }

    fn tag<'a>(&'a self, key: &'a Key) -> Answer<'a, Tag> {
        let (root, key) = (Arc::clone(&self.root), key.clone());
        Box::pin(blocking(move || root.open(&key).and_then(|file| tag_of(&file, &root.file(&key)))))
    }

    fn replace<'a>(&'a self, key: &'a Key, tag: &'a Tag) -> Answer<'a, Box<dyn Upload>> {
        let (root, key, replaced) = (Arc::clone(&self.root), key.clone(), Some(tag.clone()));
        Box::pin(blocking(move || {
            let temporary = Some(Temporary::create(&root)?);
            let upload = DirUpload { root, key, temporary, replaced, pending: Vec::new(), pending_length: 0 };
            Ok(Box::new(upload) as Box<dyn Upload>)
        }))
    }

    fn get<'a>(&'a self, key: &'a Key, range: Option<Range<u64>>) -> Answer<'a, Download> {
        let (root, key) = (Arc::clone(&self.root), key.clone());
        Box::pin(blocking(move || root.get(&key, range)))
    }

    fn list<'a>(&'a self, prefix: &'a str, after: Option<&'a Key>, limit: usize) -> Answer<'a, Vec<Listed>> {
        let (root, prefix, after) = (Arc::clone(&self.root), prefix.to_owned(), after.cloned());
        Box::pin(blocking(move || {
            root.must_stand()?;
            let mut found = Vec::new();
            if limit > 0 {
                let _ = root.walk(&prefix, after.as_ref().map_or("", Key::as_str), &mut |listed| {
                    found.push(listed);
                    if found.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
                })?;
            }
            Ok(found)
        }))
    }

    fn folders<'a>(&'a self, prefix: &'a str) -> Answer<'a, Vec<String>> {
        let (root, prefix) = (Arc::clone(&self.root), prefix.to_owned());
        Box::pin(blocking(move || {
            root.must_stand()?;
            let mut names = Vec::new();
            for entry in root.entries(&prefix)?.into_iter().filter(|e| e.folder) {
                let below = format!("{prefix}{}/", entry.name);
                if root.walk(&below, "", &mut |_| ControlFlow::Break(()))?.is_break() {
                    names.push(entry.name);
                }
            }
            names.sort_unstable();
            Ok(names)
        }))
    }

    fn delete<'a>(&'a self, key: &'a Key) -> Answer<'a, ()> {
        let (root, key) = (Arc::clone(&self.root), key.clone());
        Box::pin(blocking(move || root.delete(&key)))
    }

    fn delete_many<'a>(&'a self, keys: &'a [Key]) -> Answer<'a, Vec<(Key, Error)>> {
        let (root, keys) = (Arc::clone(&self.root), keys.to_vec());
        Box::pin(blocking(move || root.delete_many(&keys)))
    }
}

/// One name in a folder of the store.
struct Entry {
    name: String,
    folder: bool,
}

impl Root {
    fn file(&self, key: &Key) -> PathBuf {
        self.path.join(key.as_str())
    }

    /// The root is there and is no empty mount point. Only then does a name that is not found mean anything.
    fn must_stand(&self) -> Result<()> {
        let denied = |what: &str| {
            Error::denied(format!("the folder {} {what}", self.path.display()))
                .hint("is its file system mounted? `walden init` makes a new repository")
        };
        match fs::read_dir(&self.path).map(|mut entries| entries.next().is_some()) {
            Ok(true) => Ok(()),
            Ok(false) => Err(denied("is empty, so it is not the repository")),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(denied("is not there")),
            Err(e) if e.kind() == io::ErrorKind::NotADirectory => Err(denied("is not a folder")),
            Err(e) => Err(failed("read the folder", &self.path, e)),
        }
    }

    fn has(&self, key: &Key) -> Result<bool> {
        match fs::symlink_metadata(self.file(key)) {
            Ok(_) => Ok(true),
            Err(e) if is_absent(&e) => Ok(false),
            Err(e) => Err(failed("look for", &self.file(key), e)),
        }
    }

    /// Makes `folder` and what is missing above it, durably, before anything appears in it. So a folder that holds
    /// an object has a durable way up to the root, whoever made it, and costs no fsync above itself.
    fn make_way(&self, folder: &Path) -> io::Result<()> {
        make_folders(folder).map_err(|e| match e.kind() {
            // That is what a link says when the object is there. Here it is a file in the way, or a folder that was
            // there and that somebody has removed as empty before it was looked at.
            io::ErrorKind::AlreadyExists if self.is_blocked(folder) => io::ErrorKind::NotADirectory.into(),
            io::ErrorKind::AlreadyExists => io::ErrorKind::NotFound.into(),
            _ => e,
        })?;
        for folder in folder.ancestors().take_while(|f| f.starts_with(&self.path) && *f != self.path) {
            let mut entries = fs::read_dir(folder)?.filter_map(Result::ok);
            if entries.any(|entry| entry.file_type().is_ok_and(|kind| kind.is_file())) {
                break;
            }
            // It may have been there already: made a moment ago by a process that has not come to its own fsync.
            folder.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())?;
        }
        Ok(())
    }

    /// Whether something that is no folder stands where this folder or one above it has to be.
    fn is_blocked(&self, folder: &Path) -> bool {
        let mut folders = folder.ancestors().take_while(|f| f.starts_with(&self.path));
        folders.any(|folder| fs::metadata(folder).is_ok_and(|found| !found.is_dir()))
    }

    /// Makes sure that an object that was found is as durable as one that was written, also when it was copied here
    /// by something else.
    fn settle_existing(&self, key: &Key) -> Result<Put> {
        let path = self.file(key);
        open_object(&path)
            .and_then(|file| file.sync_all())
            .map_err(|e| failed("make durable what is there already:", &path, e))?;
        self.sync_folders(key)?;
        Ok(Put::Exists)
    }

    /// Makes the key's folder and every one above it durable.
    fn sync_folders(&self, key: &Key) -> Result<()> {
        let path = self.file(key);
        path.ancestors().skip(1).take_while(|folder| folder.starts_with(&self.path)).try_for_each(sync_folder)
    }

    fn open(&self, key: &Key) -> Result<File> {
        let path = self.file(key);
        match open_object(&path) {
            Ok(file) => Ok(file),
            // A folder is none either: there are objects below that name, but no object of that name.
            Err(e) if is_absent(&e) || e.kind() == io::ErrorKind::IsADirectory => {
                self.must_stand()?;
                Err(Error::not_found(format!("{key} is not in {}", self.path.display())))
            }
            Err(e) => Err(failed("open", &path, e)),
        }
    }

    fn get(&self, key: &Key, range: Option<Range<u64>>) -> Result<Download> {
        let path = self.file(key);
        let mut file = self.open(key)?;
        let length = file.metadata().map_err(|e| failed("read", &path, e))?.len();
        let range = range.map_or(0..length, |r| r.start.min(length)..r.end.min(length));
        if range.start > 0 {
            file.seek(SeekFrom::Start(range.start)).map_err(|e| failed("read", &path, e))?;
        }
        // Advice that a file system does not take changes nothing.
        let _ = fadvise(&file, 0, None, Advice::Sequential);
        let left = range.end.saturating_sub(range.start);
        Ok(Download { length, listed: length, body: Box::new(DirBody { path, file: Some(file), left }) })
    }

    fn delete(&self, key: &Key) -> Result<()> {
        self.remove(key)?;
        self.settle(&self.file(key))
    }

    /// Removes objects, and makes that durable folder by folder. Gives back those that may not be removed.
    fn delete_many(&self, keys: &[Key]) -> Result<Vec<(Key, Error)>> {
        let (mut kept, mut folders) = (Vec::new(), BTreeMap::new());
        for key in keys {
            match self.remove(key) {
                Ok(()) => {
                    let path = self.file(key);
                    folders.insert(path.parent().map(Path::to_path_buf), path);
                }
                Err(error) if error.kind() == Kind::Denied => {
                    self.must_stand()?;
                    kept.push((key.clone(), error));
                }
                Err(error) => return Err(error),
            }
        }
        folders.values().try_for_each(|path| self.settle(path))?;
        Ok(kept)
    }

    fn remove(&self, key: &Key) -> Result<()> {
        let path = self.file(key);
        match fs::remove_file(&path) {
            Ok(()) => Ok(()),
            Err(e) if is_absent(&e) => self.must_stand(),
            Err(e) => Err(failed("delete", &path, e)),
        }
    }

    /// Makes it durable that a file is gone.
    fn settle(&self, path: &Path) -> Result<()> {
        let folders = || path.ancestors().skip(1).take_while(|f| f.starts_with(&self.path));
        // Also when the object was gone: whoever removed it may not have lived to make that durable. Where its
        // folder is gone as well, that is what has to be durable.
        for folder in folders() {
            match File::open(folder).and_then(|folder| folder.sync_all()) {
                Err(e) if is_absent(&e) => {}
                synced => {
                    synced.map_err(|e| failed("make durable the folder", folder, e))?;
                    break;
                }
            }
        }
        // A bucket has no empty folders. One that is not empty stays, and ends the way up.
        let _ = folders().filter(|f| *f != self.path).try_for_each(fs::remove_dir);
        Ok(())
    }

    /// The names in a folder of the store, in the byte order of the keys below them: a folder `a` sorts as `a/`,
    /// after `a-b` and before `a0`. A name that no key can spell is none of ours.
    fn entries(&self, folder: &str) -> Result<Vec<Entry>> {
        let path = self.path.join(folder);
        let listing = match fs::read_dir(&path) {
            Ok(listing) => listing,
            Err(e) if is_absent(&e) => return Ok(Vec::new()),
            Err(e) => return Err(failed("list", &path, e)),
        };
        let mut entries = Vec::new();
        for entry in listing {
            let entry = entry.map_err(|e| failed("list", &path, e))?;
            let Some(name) = entry.file_name().to_str().filter(|n| Key::new(*n).is_ok()).map(str::to_owned) else {
                continue;
            };
            let kind = entry.file_type().map_err(|e| failed("list", &entry.path(), e))?;
            if !kind.is_dir() && !kind.is_file() {
                return Err(odd(&entry.path()));
            }
            entries.push(Entry { name, folder: kind.is_dir() });
        }
        entries.sort_unstable_by(key_order);
        Ok(entries)
    }

    /// Shows every object below `prefix` that sorts after `after`, in order, until `show` has had enough.
    fn walk(
        &self,
        prefix: &str,
        after: &str,
        show: &mut dyn FnMut(Listed) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>> {
        for entry in self.entries(prefix)? {
            let step = if entry.folder {
                let folder = format!("{prefix}{}/", entry.name);
                if folder.as_str() < after && !after.starts_with(&folder) {
                    continue;
                }
                self.walk(&folder, after, show)?
            } else {
                let text = format!("{prefix}{}", entry.name);
                if text.as_str() <= after {
                    continue;
                }
                let Ok(key) = Key::new(text) else { continue };
                match fs::symlink_metadata(self.file(&key)) {
                    Ok(facts) => show(Listed { key, length: facts.len() }),
                    // It was deleted while we listed.
                    Err(e) if is_absent(&e) => continue,
                    Err(e) => return Err(failed("list", &self.file(&key), e)),
                }
            };
            if step.is_break() {
                return Ok(step);
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// A file that is read chunk by chunk. The file is absent while a thread reads it, and after an error.
struct DirBody {
    path: PathBuf,
    file: Option<File>,
    left: u64,
}

impl Body for DirBody {
    fn chunk(&mut self) -> Answer<'_, Option<Bytes>> {
        Box::pin(async move {
            if self.left == 0 {
                return Ok(None);
            }
            let file = self.file.take().ok_or_else(|| Error::internal("read on after an error"))?;
            let (path, wanted) = (self.path.clone(), self.left.min(CHUNK as u64));
            let (file, chunk) = blocking(move || {
                let mut chunk = Vec::with_capacity(usize::try_from(wanted).unwrap_or(CHUNK));
                (&file).take(wanted).read_to_end(&mut chunk).map_err(|e| failed("read", &path, e))?;
                if (chunk.len() as u64) < wanted {
                    return Err(Error::damaged(format!("{} became shorter while it was read", path.display())));
                }
                Ok((file, chunk))
            })
            .await?;
            self.file = Some(file);
            self.left -= wanted;
            Ok(Some(Bytes::from(chunk)))
        })
    }
}

/// An object that is written to its temporary file in large pieces. The file is absent while a thread writes to
/// it, so that a dropped upload, or one that failed, has removed it in the end.
struct DirUpload {
    root: Arc<Root>,
    key: Key,
    temporary: Option<Temporary>,
    /// The tag of the object whose place it takes.
    replaced: Option<Tag>,
    pending: Vec<Bytes>,
    pending_length: usize,
}

impl DirUpload {
    async fn flush(&mut self) -> Result<()> {
        let pieces = std::mem::take(&mut self.pending);
        self.pending_length = 0;
        let mut temporary = self.temporary.take().ok_or_else(|| Error::internal("written to after an error"))?;
        self.temporary = Some(
            blocking(move || {
                pieces.iter().try_for_each(|piece| temporary.write(piece))?;
                Ok(temporary)
            })
            .await?,
        );
        Ok(())
    }
}

impl Upload for DirUpload {
    fn write(&mut self, bytes: Bytes) -> Answer<'_, ()> {
        Box::pin(async move {
            self.pending_length += bytes.len();
            self.pending.push(bytes);
            if self.pending_length >= CHUNK { self.flush().await } else { Ok(()) }
        })
    }

    fn finish(mut self: Box<Self>) -> Answer<'static, Put> {
        Box::pin(async move {
            self.flush().await?;
            let Self { root, key, temporary, replaced, .. } = *self;
            let temporary = temporary.ok_or_else(|| Error::internal("finished after an error"))?;
            blocking(move || match replaced {
                None => temporary.publish(&root, &key),
                Some(tag) => temporary.replace(&root, &key, &tag),
            })
            .await
        })
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let ended = tokio::task::spawn_blocking(work).await;
    ended.unwrap_or_else(|e| Err(Error::internal("a file operation did not end").source(e)))
}

fn key_order(a: &Entry, b: &Entry) -> Ordering {
    let bytes = |e: &Entry| e.name.clone().into_bytes().into_iter().chain(e.folder.then_some(b'/'));
    bytes(a).cmp(bytes(b))
}

/// Opens a plain file for reading. A link in its place is refused (`ELOOP`), a pipe does not block.
fn open_object(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    match file.metadata()?.file_type() {
        kind if kind.is_file() => Ok(file),
        kind if kind.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
        // What the system says of a symbolic link. See `failed`.
        _ => Err(rustix::io::Errno::LOOP.into()),
    }
}

/// What a file system says of a file, and never says again of another one in its place: a new file has its own inode as
/// long as the old one is there, and its own times afterwards.
fn tag_of(file: &File, path: &Path) -> Result<Tag> {
    let found = file.metadata().map_err(|e| failed("look at", path, e))?;
    let time = |seconds: i64, nanoseconds: i64| format!("{seconds}.{nanoseconds:09}");
    Ok(Tag(format!("{}-{}-{}-{}", found.dev(), found.ino(), found.len(), time(found.mtime(), found.mtime_nsec()))))
}

/// Makes a folder and what is missing above it.
fn make_folders(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o750).create(path)
}

fn sync_folder(path: &Path) -> Result<()> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    File::open(path).and_then(|folder| folder.sync_all()).map_err(|e| failed("make durable the folder", path, e))
}

/// No such name: nothing there, or a file where the path wants a folder.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn failed(doing: &str, path: &Path, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            Error::denied(format!("{doing} {}", path.display()))
                .source(error)
                .hint("give the user that runs Walden the right to write there")
        }
        io::ErrorKind::IsADirectory => {
            Error::invalid(format!("{} is a folder of other objects, and cannot be one itself", path.display()))
        }
        _ if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => odd(path),
        _ => Error::io(doing, path, error),
    }
}

fn odd(path: &Path) -> Error {
    Error::failed(format!("{} is neither a file nor a folder", path.display()))
        .hint("a repository holds plain files and folders only: move it away, or mount what it points to in its place")
}
