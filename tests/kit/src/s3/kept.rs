//! Objects in a folder, so that a server that was killed has them when it is started again: one file for each, named by
//! its ETag, which holds bucket, key and metadata in lines, an empty line, and the bytes.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::PathBuf,
};

use s3s::dto::Checksum;

use super::backend::{Object, State};

/// The folder.
#[derive(Debug)]
pub(super) struct Kept {
    folder: PathBuf,
}

impl Kept {
    /// Answers when the object is durable.
    pub(super) fn keep(&self, bucket: &str, key: &str, object: &Object) -> io::Result<()> {
        let temporary = self.folder.join("new");
        let mut file = File::create(&temporary)?;
        writeln!(file, "{bucket}\n{key}")?;
        object.metadata.iter().try_for_each(|(name, value)| writeln!(file, "{name}={value}"))?;
        writeln!(file)?;
        file.write_all(&object.bytes)?;
        file.sync_all()?;
        fs::rename(temporary, self.folder.join(&object.etag))?;
        File::open(&self.folder)?.sync_all()
    }

    pub(super) fn forget(&self, object: &Object) -> io::Result<()> {
        fs::remove_file(self.folder.join(&object.etag))
    }
}

impl State {
    /// Reads what is there, and keeps there what comes.
    pub(super) fn keep_in(&mut self, folder: PathBuf) -> io::Result<()> {
        fs::create_dir_all(&folder)?;
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let etag = entry.file_name().to_string_lossy().into_owned();
            // What was being written when the server was killed was not answered.
            let Ok(number) = u64::from_str_radix(&etag, 16) else { continue };
            self.written = self.written.max(number);
            let content = fs::read(entry.path())?;
            let end = content.windows(2).position(|two| two == b"\n\n").ok_or(io::ErrorKind::InvalidData)?;
            let head = String::from_utf8_lossy(&content[..end]);
            let mut lines = head.lines();
            let (bucket, key) = lines.next().zip(lines.next()).ok_or(io::ErrorKind::InvalidData)?;
            let metadata = lines.filter_map(|line| line.split_once('='));
            let object = Object {
                metadata: metadata.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
                bytes: content[end + 2..].to_vec().into(),
                storage_class: None,
                encryption: (None, None),
                etag,
                checksum: Checksum::default(),
            };
            self.buckets.entry(bucket.to_owned()).or_default().insert(key.to_owned(), object);
        }
        self.kept = Some(Kept { folder });
        Ok(())
    }
}
