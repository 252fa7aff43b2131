//! Which files are meant: the server's configuration with all that it takes in, and what the user names. Every path that
//! comes out of here is free of links on its way; the links are paths of their own.

use std::{
    collections::{BTreeSet, HashSet, VecDeque},
    fs, io,
    path::{Component, Path, PathBuf},
};

use super::{glob, why};
use crate::{
    error::{Error, Result},
    postgres::configuration::{self, Include, Syntax},
    repository::LeftOut,
};

/// So many links on the way to one file, and the kernel gives up.
const LINKS: u32 = 40;
/// No configuration file is longer than this many bytes.
const LONGEST: u64 = 16 << 20;

/// Collects paths.
pub struct Finder {
    pgdata: PathBuf,
    /// Without links on their way.
    paths: BTreeSet<PathBuf>,
    left_out: Vec<LeftOut>,
}

impl Finder {
    /// For a server with that data directory, the content of which the backup holds anyway.
    pub fn new(pgdata: &Path) -> Result<Self> {
        let pgdata = fs::canonicalize(pgdata).map_err(|e| Error::io("find", pgdata, e))?;
        Ok(Self { pgdata, paths: BTreeSet::new(), left_out: Vec::new() })
    }

    /// Notes something that cannot be saved.
    pub fn leave_out(&mut self, path: impl AsRef<Path>, why: &str) {
        self.left_out.push(LeftOut { path: path.as_ref().display().to_string(), why: why.to_owned() });
    }

    /// The paths, folders before what is in them, and what is left out.
    pub fn finish(self) -> (Vec<PathBuf>, Vec<LeftOut>) {
        let above = |path: &PathBuf| path.ancestors().skip(1).map(Path::to_path_buf).collect::<Vec<_>>();
        let mut all: BTreeSet<PathBuf> = self.paths.iter().flat_map(above).collect();
        all.extend(self.paths);
        all.remove(Path::new("/"));
        (all.into_iter().collect(), self.left_out)
    }

    /// The server's own configuration files with all that they take in, as far as it lies outside the data directory.
    pub fn configuration(&mut self, files: &[PathBuf]) {
        let mut seen = HashSet::new();
        let syntax = |at: usize| if at == 0 { Syntax::Settings } else { Syntax::Access };
        let mut queue: VecDeque<_> = files.iter().enumerate().map(|(at, p)| (p.clone(), syntax(at), false)).collect();
        while let Some((path, syntax, may_lack)) = queue.pop_front() {
            if !seen.insert(path.clone()) {
                continue;
            }
            let real = match self.resolve(&path) {
                Ok(real) => real,
                Err(e) if may_lack && e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => {
                    self.leave_out(&path, &why(&e));
                    continue;
                }
            };
            self.add(real.clone());
            match read(&real) {
                Ok(text) => self.follow(&text, syntax, &path, &mut queue),
                Err(e) => self.leave_out(&path, &why(&e)),
            }
        }
    }

    fn follow(&mut self, text: &[u8], syntax: Syntax, path: &Path, queue: &mut VecDeque<(PathBuf, Syntax, bool)>) {
        for include in configuration::includes(text, syntax, path) {
            match include {
                Include::File(path) => queue.push_back((path, syntax, false)),
                Include::IfExists(path) => queue.push_back((path, syntax, true)),
                Include::Directory(folder) => {
                    match self.resolve(&folder).and_then(|real| names(&real).map(|n| (real, n))) {
                        Ok((real, names)) => {
                            self.add(real);
                            let taken = names.into_iter().filter(|name| configuration::is_taken_in(name));
                            queue.extend(taken.map(|name| (folder.join(name), syntax, false)));
                        }
                        Err(e) => self.leave_out(&folder, &why(&e)),
                    }
                }
            }
        }
    }

    /// What a pattern of the user's stands for, folders with all that is in them.
    pub fn pattern(&mut self, pattern: &str) {
        let paths = match glob::expand(pattern) {
            Ok(paths) if paths.is_empty() => return self.leave_out(pattern, "nothing is called so"),
            Ok(paths) => paths,
            Err(e) => return self.leave_out(pattern, &why(&e)),
        };
        for path in paths {
            match self.resolve(&path) {
                Ok(real) if real.starts_with(&self.pgdata) => {
                    self.leave_out(&path, "it lies in the data directory, and the backup has it as far as it needs it");
                }
                Ok(real) if real.is_dir() => self.folder(real),
                Ok(real) => self.add(real),
                Err(e) => self.leave_out(&path, &why(&e)),
            }
        }
    }

    fn add(&mut self, path: PathBuf) {
        if !path.starts_with(&self.pgdata) {
            self.paths.insert(path);
        }
    }

    /// A folder and everything in it. Links in it are kept as links.
    fn folder(&mut self, folder: PathBuf) {
        let mut queue = vec![folder];
        while let Some(folder) = queue.pop() {
            if folder.starts_with(&self.pgdata) {
                continue;
            }
            let entries: io::Result<Vec<_>> = fs::read_dir(&folder).and_then(Iterator::collect);
            match entries {
                Ok(entries) => {
                    for entry in entries {
                        match entry.file_type() {
                            Ok(kind) if kind.is_dir() => queue.push(entry.path()),
                            _ => self.add(entry.path()),
                        }
                    }
                }
                Err(e) => self.leave_out(&folder, &why(&e)),
            }
            self.add(folder);
        }
    }

    /// Where a path leads, and on the way every link outside the data directory is noted.
    fn resolve(&mut self, path: &Path) -> io::Result<PathBuf> {
        let mut real = PathBuf::from("/");
        let mut rest: VecDeque<PathBuf> = parts(path);
        let mut links = Vec::new();
        while let Some(part) = rest.pop_front() {
            if part == Path::new("..") {
                real.pop();
                continue;
            }
            real.push(part);
            if !fs::symlink_metadata(&real)?.is_symlink() {
                continue;
            }
            links.push(real.clone());
            if links.len() as u32 > LINKS {
                return Err(io::Error::other("too many links"));
            }
            let to = fs::read_link(&real)?;
            real.pop();
            if to.is_absolute() {
                real = PathBuf::from("/");
            }
            let mut more = parts(&to);
            more.append(&mut rest);
            rest = more;
        }
        for link in links {
            self.add(link);
        }
        Ok(real)
    }
}

fn parts(path: &Path) -> VecDeque<PathBuf> {
    let wanted = path.components().filter(|c| matches!(c, Component::Normal(_) | Component::ParentDir));
    wanted.map(|c| PathBuf::from(c.as_os_str())).collect()
}

fn names(folder: &Path) -> io::Result<Vec<std::ffi::OsString>> {
    fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name())).collect()
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let metadata = fs::metadata(path)?;
    if !metadata.is_file() || metadata.len() > LONGEST {
        return Err(io::Error::other("it is no configuration file"));
    }
    fs::read(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// The paths below `root` that are found, and what is left out.
    fn found(root: &Path, find: impl FnOnce(&mut Finder)) -> (Vec<String>, Vec<LeftOut>) {
        let mut finder = Finder::new(&root.join("data")).unwrap();
        find(&mut finder);
        let (paths, left_out) = finder.finish();
        let below = paths.iter().filter_map(|p| p.strip_prefix(root).ok()).filter(|p| !p.as_os_str().is_empty());
        (below.map(|p| p.to_str().unwrap().to_owned()).collect(), left_out)
    }

    fn make(root: &Path, files: &[(&str, &str)]) {
        for (path, text) in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }

    #[test]
    fn configuration_is_followed_through_links_and_includes() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        make(
            &root,
            &[
                ("data/PG_VERSION", "17"),
                ("data/own.conf", "include '../etc/odd.conf'"),
                ("etc/odd.conf", "include 'odd.conf'"),
                ("srv/main.conf", "include_dir 'conf.d'\ninclude_if_exists 'nowhere'\ninclude 'lost'\n"),
                ("etc/conf.d/a.conf", ""),
                ("etc/conf.d/a.conf~", ""),
                ("etc/hba.conf", "local all @who peer"),
                ("etc/who", "somebody"),
            ],
        );
        symlink("../srv/main.conf", root.join("etc/main.conf")).unwrap();
        symlink("etc", root.join("short")).unwrap();
        let files = ["short/main.conf", "short/hba.conf", "data/none"].map(|p| root.join(p));
        let (paths, left_out) = found(&root, |f| {
            f.configuration(&files);
            f.configuration(&[root.join("data/own.conf")]);
        });
        let expected = [
            "etc",
            "etc/conf.d",
            "etc/conf.d/a.conf",
            "etc/hba.conf",
            "etc/main.conf",
            "etc/odd.conf",
            "etc/who",
            "short",
            "srv",
            "srv/main.conf",
        ];
        assert_eq!(paths, expected);
        // By the name that the file was called by, not where the link leads.
        let lost: Vec<&str> = left_out.iter().map(|l| l.path.as_str()).collect();
        assert_eq!(lost, [root.join("data/none").to_str().unwrap(), root.join("short/lost").to_str().unwrap()]);
    }

    #[test]
    fn folders_are_taken_whole_but_for_the_data_directory() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        make(&root, &[("data/PG_VERSION", "17"), ("a/b/c", ""), ("other/x", "")]);
        symlink("../other", root.join("a/link")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        let (paths, left_out) = found(&root, |f| {
            f.pattern(root.join("a").to_str().unwrap());
            f.pattern(root.join("data/PG_VERSION").to_str().unwrap());
            f.pattern(root.join("no*").to_str().unwrap());
            f.pattern(root.join("loop").to_str().unwrap());
        });
        assert_eq!(paths, ["a", "a/b", "a/b/c", "a/link"]);
        assert_eq!(left_out.len(), 3, "{left_out:?}");
    }
}
