//! What this host remembers of deep looks: when each object was found whole, in lines that are only ever added.
//!
//! `<state_dir>/verify/<repository id>/<cluster>/<system>-<incarnation>/checked` has a line for each object:
//! `<seconds since 1970> <length> <name>`. A *round* is one way through everything: `round <seconds>` begins it,
//! `done <seconds>` ends it, so that one that was interrupted goes on. A line that is lost costs another reading; a
//! torn or foreign one counts for nothing.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, BufWriter, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::objects::{Name, Object};
use crate::{
    config,
    error::{Error, Result},
    repository::{RepositoryDocument, SystemFolder},
};

/// So many more lines than objects are left before the file is written anew.
const SLACK: usize = 10_000;

/// The file.
#[derive(Debug)]
pub struct Journal {
    file: File,
    /// When the last round began, if it did not end.
    pub round: Option<u64>,
}

impl Journal {
    /// Where a host keeps it. Refused where somebody else could write in it.
    pub fn place(state_dir: &Path, repository: &RepositoryDocument, system: &SystemFolder) -> Result<PathBuf> {
        config::prove_state_dir(state_dir)?;
        Ok(state_dir.join("verify").join(repository.folder_name()?).join(system.prefix()))
    }

    /// Reads what is known of these objects, which are in the order of their names, and goes on from there.
    pub fn open(folder: &Path, objects: &mut [Object]) -> Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|e| Error::io("create", folder, e))?;
        let path = folder.join("checked");
        let failed = |e| Error::io("read", &path, e);
        let (mut lines, mut round) = (0, None);
        match File::open(&path) {
            Ok(file) => {
                for line in BufReader::new(file).split(b'\n') {
                    lines += 1;
                    take(&String::from_utf8_lossy(&line.map_err(failed)?), objects, &mut round);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        if lines > 2 * objects.len() + SLACK {
            rewrite(&path, objects, round).map_err(|e| Error::io("write", &path, e))?;
        }
        let opened = OpenOptions::new().append(true).create(true).mode(0o600).open(&path);
        let file = opened.map_err(|e| Error::io("open", &path, e))?;
        // The last line may be torn: the next one must not be joined to it.
        let journal = Self { file, round };
        (&journal.file).write_all(b"\n").map_err(failed)?;
        Ok(journal)
    }

    /// An object was found whole.
    pub fn checked(&mut self, object: &Object, now: u64) {
        self.add(&line(now, object));
    }

    /// A round begins.
    pub fn begin(&mut self, now: u64) {
        self.round = Some(now);
        self.add(&format!("round {now}\n"));
    }

    /// The round is over.
    pub fn end(&mut self, now: u64) {
        self.round = None;
        self.add(&format!("done {now}\n"));
    }

    fn add(&mut self, line: &str) {
        // In one call, so that the lines of two processes do not mix.
        if let Err(error) = self.file.write_all(line.as_bytes()) {
            tracing::warn!("what was verified is not remembered: {error}");
        }
    }
}

fn line(checked: u64, object: &Object) -> String {
    match &object.name {
        Name::Segment(name) => format!("{checked} {} {name}\n", object.length),
        Name::Other(rest) => format!("{checked} {} {rest}\n", object.length),
    }
}

fn take(line: &str, objects: &mut [Object], round: &mut Option<u64>) {
    let mut words = line.split(' ');
    let (Some(first), Some(second)) = (words.next(), words.next().and_then(|word| word.parse::<u64>().ok())) else {
        return;
    };
    match (first, words.next(), words.next()) {
        ("round", None, None) => *round = Some(second),
        ("done", None, None) => *round = None,
        (checked, Some(name), None) => {
            let name = name.parse().map_or_else(|_| Name::Other(name.into()), Name::Segment);
            let Ok(at) = objects.binary_search_by(|object| object.name.cmp(&name)) else { return };
            // What has another length is another object.
            if let (Ok(checked), true) = (checked.parse(), objects[at].length == second) {
                objects[at].checked = checked;
            }
        }
        _ => {}
    }
}

fn rewrite(path: &Path, objects: &[Object], round: Option<u64>) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut to = BufWriter::new(OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?);
    for object in objects.iter().filter(|object| object.checked > 0) {
        to.write_all(line(object.checked, object).as_bytes())?;
    }
    if let Some(round) = round {
        writeln!(to, "round {round}")?;
    }
    to.into_inner()?.sync_all()?;
    fs::rename(new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn objects() -> Vec<Object> {
        let segment = |n: u32| Name::Segment(format!("0000000100000000{n:08X}").parse().unwrap());
        let other = |text: &str| Name::Other(text.into());
        let names =
            [segment(1), segment(2), other("backups/20261121T014500Z/part-00001.tar.zst"), other("system.json")];
        (10..).zip(names).map(|(length, name)| Object { name, length, checked: 0 }).collect()
    }

    #[test]
    fn what_was_found_whole_is_remembered_and_a_torn_line_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let mut known = objects();
        let mut journal = Journal::open(folder.path(), &mut known).unwrap();
        journal.begin(5);
        journal.checked(&known[1], 7);
        journal.checked(&known[2], 8);
        journal.checked(&Object { length: 99, ..known[3].clone() }, 9);
        drop(journal);
        let path = folder.path().join("checked");
        let torn = format!("{}11 10 00000001000000", fs::read_to_string(&path).unwrap());
        fs::write(&path, torn).unwrap();
        let mut again = objects();
        let mut journal = Journal::open(folder.path(), &mut again).unwrap();
        assert_eq!(journal.round, Some(5));
        assert_eq!(again.iter().map(|object| object.checked).collect::<Vec<_>>(), [0, 7, 8, 0]);
        journal.checked(&again[0], 12);
        journal.end(13);
        drop(journal);
        let mut last = objects();
        assert_eq!(Journal::open(folder.path(), &mut last).unwrap().round, None);
        assert_eq!(last[0].checked, 12);
        rewrite(&path, &last, Some(3)).unwrap();
        let mut rewritten = objects();
        assert_eq!(Journal::open(folder.path(), &mut rewritten).unwrap().round, Some(3));
        assert_eq!(rewritten, last);
    }
}
