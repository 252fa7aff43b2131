//! `BASE_BACKUP`: the server reads its own files and sends them as tar archives, one a tablespace, the data directory
//! last, then its `backup_manifest` (`src/backend/backup/basebackup.c`, `basebackup_copy.c`).
//!
//! 14 knows bare keywords and sends each archive as a copy of its own, without the blocks that end a tar; 15 and later
//! take options in parentheses and send one copy whose messages say by their first byte what they are.

use std::{ffi::OsString, os::unix::ffi::OsStringExt, path::PathBuf, time::Duration};

use bytes::{Buf, Bytes};
use postgres_protocol::message::frontend;
use tokio::sync::mpsc::Receiver;

use super::{
    QUICK, Replication, garbled,
    message::{self, Message},
    refusal, text, unexpected, within,
};
use crate::{
    error::{Error, Result},
    postgres::{Lsn, TimelineId},
};

/// For so long a server that is sending may send nothing.
const SILENCE: Duration = Duration::from_secs(600);
/// What `MAX_RATE` may be, in kB a second.
const RATES: std::ops::RangeInclusive<u64> = 32..=1_048_576;
/// `ERRCODE_DATA_CORRUPTED`: how a server ends that found wrong checksums, after it has sent everything.
const CORRUPTED: &str = "XX001";

/// What to ask for.
#[derive(Clone, Debug)]
pub struct Options {
    /// What `backup_label` will say.
    pub label: String,
    /// Only what changed since the backup whose manifest was uploaded (17 on).
    pub incremental: bool,
    /// The most bytes a second to send. The server knows 32 kB to 1 GB; it is given the nearest, and above that none.
    pub rate_limit: Option<u64>,
}

impl Options {
    /// The command in the words of that version.
    fn command(&self, version_number: u32) -> String {
        let label = self.label.replace('\'', "''");
        let rate = self.rate_limit.map(|bytes| (bytes / 1024).max(*RATES.start())).filter(|r| RATES.contains(r));
        let rate = |comma: &str| rate.map_or_else(String::new, |rate| format!("{comma} MAX_RATE {rate}"));
        if version_number >= 150_000 {
            // WAIT: whether the server itself waits for its archiving; we look into the archive instead.
            let incremental = if self.incremental { ", INCREMENTAL" } else { "" };
            format!(
                "BASE_BACKUP (LABEL '{label}', PROGRESS, CHECKPOINT 'fast', WAIT false, \
                 MANIFEST 'yes', MANIFEST_CHECKSUMS 'CRC32C'{incremental}{})",
                rate(",")
            )
        } else {
            format!(
                "BASE_BACKUP LABEL '{label}' PROGRESS FAST NOWAIT MANIFEST 'yes' \
                 MANIFEST_CHECKSUMS 'CRC32C'{}",
                rate("")
            )
        }
    }
}

/// A place in the WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Where.
    pub lsn: Lsn,
    /// On which timeline.
    pub timeline: TimelineId,
}

/// An archive that the server sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Archive {
    /// The tablespace's OID; `None` for the data directory itself.
    pub tablespace: Option<u32>,
    /// Where the tablespace lies; relative when it is an ordinary directory in `pg_tblspc`. Empty for the data directory.
    pub location: PathBuf,
    /// About how many bytes it will have.
    pub size: u64,
}

/// A piece of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// The archive with that number, from 0, begins.
    Archive(usize),
    /// The server's manifest begins.
    Manifest,
    /// Bytes of what has begun.
    Data(Bytes),
}

/// How the server ended the backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// WAL up to there makes the backup consistent.
    pub stop: Position,
    /// Whether the server found pages with wrong checksums. Everything was sent nonetheless.
    pub damaged: bool,
}

/// A base backup that has started: the server will send it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started {
    /// Where the backup starts.
    pub start: Position,
    /// What will come, in this order.
    pub archives: Vec<Archive>,
}

/// A base backup that the server is sending.
#[derive(Debug)]
pub struct BaseBackup<'a> {
    connection: &'a mut Replication,
    /// Where the backup starts.
    pub start: Position,
    /// What will come, in this order.
    pub archives: Vec<Archive>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Between copies; so many have begun (14).
    Between(usize),
    /// In a copy of one archive (14).
    Plain(usize),
    /// In the one copy whose messages tell what they are.
    Marked,
    /// The copies are over, and the end position follows.
    Over,
}

impl Replication {
    /// Starts a base backup. It comes back when the server has made its checkpoint.
    pub async fn base_backup(&mut self, options: &Options) -> Result<BaseBackup<'_>> {
        let Started { start, archives } = self.start_base_backup(options).await?;
        Ok(self.receive_base_backup(start, archives))
    }

    /// The first half of it.
    pub async fn start_base_backup(&mut self, options: &Options) -> Result<Started> {
        self.send(&options.command(self.version_number)).await?;
        let start = self.position(None).await?;
        let mut archives = Vec::new();
        for row in self.result(None).await? {
            archives.push(archive(&row)?);
        }
        if archives.last().is_none_or(|last| last.tablespace.is_some()) {
            return Err(garbled());
        }
        Ok(Started { start, archives })
    }

    /// The second half, of what [`Replication::start_base_backup`] gave.
    pub fn receive_base_backup(&mut self, start: Position, archives: Vec<Archive>) -> BaseBackup<'_> {
        BaseBackup { connection: self, start, archives, state: State::Between(0) }
    }

    /// `UPLOAD_MANIFEST` (17 on): tells the server which backup an incremental one builds on. The manifest comes in
    /// pieces (`src/backend/backup/basebackup_incremental.c`).
    pub async fn upload_manifest(&mut self, mut manifest: Receiver<Bytes>) -> Result<()> {
        self.send("UPLOAD_MANIFEST").await?;
        match within(Some(QUICK), self.next()).await? {
            Message::CopyIn => {}
            Message::Error(said) => return Err(self.fail(said).await),
            _ => return Err(unexpected("in place of a wish for a manifest")),
        }
        while let Some(piece) = manifest.recv().await {
            let sent = self.wire.send(|out| {
                frontend::CopyData::new(piece)?.write(out);
                Ok(())
            });
            within(Some(SILENCE), sent).await?;
        }
        self.wire
            .send(|out| {
                frontend::copy_done(out);
                Ok(())
            })
            .await?;
        loop {
            match within(Some(SILENCE), self.next()).await? {
                Message::Complete => {}
                Message::Ready => return Ok(()),
                Message::Error(said) => return Err(self.fail(said).await),
                _ => return Err(unexpected("in answer to a manifest")),
            }
        }
    }

    /// The rows of the next result set.
    async fn result(&mut self, limit: Option<Duration>) -> Result<Vec<Vec<Option<Bytes>>>> {
        let mut rows = Vec::new();
        loop {
            match within(limit, self.next()).await? {
                Message::Columns => {}
                Message::Row(row) => rows.push(row),
                Message::Complete => return Ok(rows),
                Message::Error(said) => return Err(self.fail(said).await),
                _ => return Err(unexpected("in place of a result")),
            }
        }
    }

    async fn position(&mut self, limit: Option<Duration>) -> Result<Position> {
        let rows = self.result(limit).await?;
        let Some([lsn, timeline, ..]) = rows.first().map(Vec::as_slice) else { return Err(garbled()) };
        Ok(Position { lsn: text(lsn)?.parse()?, timeline: text(timeline)?.parse()? })
    }
}

impl BaseBackup<'_> {
    /// The next piece; `None` when all was sent. May be dropped while it waits: nothing is lost.
    pub async fn next(&mut self) -> Result<Option<Piece>> {
        loop {
            if self.state == State::Over {
                return Ok(None);
            }
            let message = within(Some(SILENCE), self.connection.next()).await?;
            let piece = match (message, self.state) {
                (Message::Error(said), _) => return Err(self.connection.fail(said).await),
                (Message::CopyOut, State::Between(count)) => self.begin(count)?,
                (Message::CopyData(bytes), State::Plain(_)) => Some(Piece::Data(bytes)),
                (Message::CopyData(bytes), State::Marked) => self.marked(bytes)?,
                (Message::CopyDone, State::Plain(count)) => {
                    self.state = State::Between(count);
                    None
                }
                (Message::CopyDone, State::Marked) | (Message::Columns, State::Between(_)) => {
                    self.state = State::Over;
                    None
                }
                _ => return Err(unexpected("in the middle of a base backup")),
            };
            if piece.is_some() {
                return Ok(piece);
            }
        }
    }

    /// A copy begins.
    fn begin(&mut self, count: usize) -> Result<Option<Piece>> {
        if self.connection.version_number >= 150_000 {
            self.state = State::Marked;
            return Ok(None);
        }
        self.state = State::Plain(count + 1);
        match count.cmp(&self.archives.len()) {
            std::cmp::Ordering::Less => Ok(Some(Piece::Archive(count))),
            std::cmp::Ordering::Equal => Ok(Some(Piece::Manifest)),
            std::cmp::Ordering::Greater => Err(garbled()),
        }
    }

    /// A message that says by its first byte what it is.
    fn marked(&self, mut bytes: Bytes) -> Result<Option<Piece>> {
        match bytes.try_get_u8().map_err(|_| garbled())? {
            b'd' => Ok(Some(Piece::Data(bytes))),
            b'm' => Ok(Some(Piece::Manifest)),
            // How far the server is: we count ourselves.
            b'p' => Ok(None),
            b'n' => {
                let name = message::cstring(&mut bytes)?;
                let named = self.archives.iter().position(|archive| name == archive.name().as_bytes());
                let other = || {
                    Error::failed(format!(
                        "the server sends an archive \"{}\" that it did not announce",
                        name.escape_ascii()
                    ))
                };
                Ok(Some(Piece::Archive(named.ok_or_else(other)?)))
            }
            other => Err(unexpected(format_args!("\"{}\" in a base backup", other.escape_ascii()))),
        }
    }

    /// Reads the end position, and on until the server is ready: only then the backup counts as taken.
    pub async fn finish(mut self) -> Result<Ended> {
        while self.next().await?.is_some() {}
        let stop = self.connection.position(Some(SILENCE)).await?;
        let mut failure = None;
        loop {
            match within(Some(SILENCE), self.connection.next()).await? {
                Message::Complete => {}
                Message::Error(said) if said.severity == "FATAL" => return Err(refusal(said)),
                Message::Error(said) => failure = Some(said),
                Message::Ready => break,
                _ => return Err(unexpected("after a base backup")),
            }
        }
        match failure {
            None => Ok(Ended { stop, damaged: false }),
            Some(said) if said.code == CORRUPTED => Ok(Ended { stop, damaged: true }),
            Some(said) => Err(refusal(said)),
        }
    }
}

impl Archive {
    /// What the server calls it.
    fn name(&self) -> String {
        self.tablespace.map_or_else(|| "base.tar".to_owned(), |oid| format!("{oid}.tar"))
    }
}

/// A row of the list of tablespaces: OID, location, size in kB.
fn archive(row: &[Option<Bytes>]) -> Result<Archive> {
    let [oid, location, size, ..] = row else { return Err(garbled()) };
    let size: Option<u64> = size.as_ref().and_then(|size| std::str::from_utf8(size).ok()?.parse().ok());
    Ok(Archive {
        tablespace: match oid {
            Some(_) => Some(text(oid)?.parse().map_err(|_| garbled())?),
            None => None,
        },
        location: OsString::from_vec(location.as_deref().unwrap_or_default().to_vec()).into(),
        size: size.unwrap_or(0) * 1024,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_is_asked_in_its_own_words() {
        let options = |rate| Options { label: "it's".to_owned(), incremental: false, rate_limit: rate };
        let new = options(Some(10 << 20)).command(180_001);
        assert!(new.starts_with("BASE_BACKUP (LABEL 'it''s', ") && new.ends_with(", MAX_RATE 10240)"), "{new}");
        let old = options(Some(10 << 20)).command(140_010);
        assert!(old.starts_with("BASE_BACKUP LABEL 'it''s' ") && old.ends_with(" MAX_RATE 10240"), "{old}");
        assert!(!old.contains('(') && !old.contains(','));
        let changes = Options { incremental: true, ..options(None) }.command(170_000);
        assert!(changes.ends_with(", INCREMENTAL)"), "{changes}");
    }

    #[test]
    fn the_server_is_given_only_rates_that_it_takes() {
        let command = |rate| Options { label: String::new(), incremental: false, rate_limit: rate }.command(170_000);
        assert!(command(Some(1)).contains("MAX_RATE 32)"));
        assert!(command(Some(1 << 30)).contains("MAX_RATE 1048576)"));
        assert!(!command(Some(2 << 30)).contains("MAX_RATE"));
        assert!(!command(None).contains("MAX_RATE"));
    }
}
