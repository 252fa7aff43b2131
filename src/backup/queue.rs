//! What is still to be read: great files first, so that the threads end together; small ones, of which there may be a
//! million, packed, in the order of their paths.

use std::{
    collections::VecDeque,
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use crate::postgres::datadir::FileEntry;

/// Files of at least so many bytes are great.
const GREAT: u64 = 16 << 20;

/// The queue.
#[derive(Debug, Default)]
pub struct Queue {
    great: VecDeque<FileEntry>,
    /// Paths, each ended by a zero byte, which no path holds.
    small: Vec<u8>,
    /// Where the next of them begins.
    next: usize,
}

impl Queue {
    /// Of these files, which come in the order of their paths.
    pub fn of(files: Vec<FileEntry>) -> Self {
        let mut queue = Self::default();
        for file in files {
            if file.size >= GREAT {
                queue.great.push_back(file);
            } else {
                queue.small.extend_from_slice(file.path.as_os_str().as_bytes());
                queue.small.push(0);
            }
        }
        queue.great.make_contiguous().sort_by_key(|file| std::cmp::Reverse(file.size));
        queue
    }

    /// The path of the next file.
    pub fn next(&mut self) -> Option<PathBuf> {
        if let Some(file) = self.great.pop_front() {
            return Some(file.path);
        }
        let rest = self.small.get(self.next..)?;
        let length = rest.iter().position(|byte| *byte == 0)?;
        self.next += length + 1;
        Some(Path::new(OsStr::from_bytes(&rest[..length])).to_path_buf())
    }

    /// Leaves nothing to do.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greatest_come_first_and_the_small_in_order() {
        let file = |(path, size): (&str, u64)| FileEntry { path: path.into(), size };
        let files = [("a", 1), ("b/1", GREAT), ("b/2", 0), ("c", GREAT + 1), ("d", GREAT - 1)].map(file);
        let mut queue = Queue::of(files.into());
        let taken: Vec<_> = std::iter::from_fn(|| queue.next()).collect();
        assert_eq!(taken, ["c", "b/1", "a", "b/2", "d"].map(PathBuf::from));
        assert_eq!(Queue::default().next(), None);
    }
}
