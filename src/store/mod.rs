//! Objects: put-if-absent, get, list, delete, over a directory or a bucket. Knows no PostgreSQL.
//!
//! [`Store`] is the contract; `tests/store_conformance.rs` holds every store to it.

pub mod bridge;
pub mod check_then_put;
pub mod dir;
pub mod faulty;
pub mod probe;
pub mod retry;
pub mod s3;
pub mod sealed;
pub mod several;

use std::{fmt, future::Future, ops::Range, pin::Pin, sync::Arc};

use bytes::Bytes;

use crate::{
    error::{Error, Kind, Result},
    seal::age::Declared,
};

/// What an asynchronous method of an object-safe trait returns.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

/// The name of an object below the root of its store: segments separated by `/`, none empty, `.` or `..`.
///
/// Only letters, digits and `-_.` occur, so that a key is the same in a URL, in a listing and on a disk.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(String);

impl Key {
    /// The key of that text.
    pub fn new(text: impl Into<String>) -> Result<Self> {
        let text = text.into();
        let plain = |s: &str| {
            !s.is_empty()
                && s != "."
                && s != ".."
                && s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        };
        if text.split('/').all(plain) && text.len() <= 900 {
            Ok(Self(text))
        } else {
            Err(Error::invalid(format!("\"{text}\" cannot be the name of an object"))
                .hint("letters, digits and -_. separated by / are allowed"))
        }
    }

    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How a put ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// The object is durable, and this call wrote it.
    Created,
    /// Somebody else's object of that name was there before; nothing was changed. It is durable as well
    /// (rule 3: a directory store fsyncs it and its folders before it says so).
    Exists,
}

/// An object in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub key: Key,
    /// Its length in bytes: as it is stored, and of one whose name says that it is sealed that of what it holds.
    pub length: u64,
}

/// What tells the bytes that are under a name now from all others that were or will be there. Only this store's own
/// words mean anything to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tag(pub(super) String);

/// What a get gives: the object's whole length, and the bytes asked for as they come in.
pub struct Download {
    /// The length of the whole object in bytes, whatever range was asked for.
    pub length: u64,
    /// The length that a listing tells of it. It is another one where a sealed object was opened whose name does not say
    /// that it is sealed.
    pub listed: u64,
    /// The bytes.
    pub body: Box<dyn Body>,
}

impl fmt::Debug for Download {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Download").field("length", &self.length).finish_non_exhaustive()
    }
}

/// Bytes as they come in. The end is only reported after every byte asked for has been delivered: a
/// connection that breaks in the middle is resumed by the store, or is an error, never a short body.
pub trait Body: Send {
    /// The next bytes, never empty; `None` at the end.
    fn chunk(&mut self) -> Answer<'_, Option<Bytes>>;
}

/// An object that is being written piece by piece. It does not exist until [`Upload::finish`] has answered;
/// when it is dropped before, nothing remains that a listing would show.
///
/// What two writers contend for is written by [`Store::put`]: some S3 servers (SeaweedFS 4.48 was seen to) let several
/// uploads of one name that end at the same instant all win. An upload is for names that only one writer has.
pub trait Upload: Send {
    /// Appends bytes. Waits while the store is busy, so that memory stays bounded.
    fn write(&mut self, bytes: Bytes) -> Answer<'_, ()>;
    /// Makes the object appear, whole, if no object of that name is there.
    fn finish(self: Box<Self>) -> Answer<'static, Put>;
}

/// A place that keeps objects.
///
/// * Every method is safe to repeat. A store answers within its own deadline: what can be tried again (no
///   answer, "slow down", a broken connection, expired credentials that can be refreshed) it has tried again by
///   then, and reports as [`Kind::Unavailable`].
/// * [`Kind::NotFound`] means proven absent: the place answered that it has no such
///   object. A missing bucket or root folder, refused credentials (`Denied`) and silence are never "absent".
/// * Objects are never changed, but for their encryption ([`Store::replace`]): whoever reads a name twice reads the same
///   content.
/// * No key is another one's folder: `a` and `a/b` are not both objects.
pub trait Store: fmt::Debug + Send + Sync {
    /// The store's URL for people. Holds no secret.
    fn url(&self) -> String;

    /// Writes a whole object if no object of that name is there. When it answers `Created`, the object
    /// survives a crash of everything. A write of ours whose answer was lost is recognised as ours.
    fn put<'a>(&'a self, key: &'a Key, bytes: Bytes) -> Answer<'a, Put>;

    /// Begins an object that is written piece by piece.
    fn upload<'a>(&'a self, key: &'a Key) -> Answer<'a, Box<dyn Upload>>;

    /// Reads an object, or a range of its bytes. A range that reaches past the end is cut there; one that
    /// starts at or past the end is empty.
    fn get<'a>(&'a self, key: &'a Key, range: Option<Range<u64>>) -> Answer<'a, Download>;

    /// Every object whose key starts with `prefix` (empty, or ending in `/`) and sorts after `after`, in the byte
    /// order of their keys. `limit` bounds how many; fewer than that means there are no more.
    fn list<'a>(&'a self, prefix: &'a str, after: Option<&'a Key>, limit: usize) -> Answer<'a, Vec<Listed>>;

    /// The names directly below `prefix` (empty, or ending in `/`) that have something below them: `a` for
    /// `<prefix>a/b`. Sorted, without the slash.
    fn folders<'a>(&'a self, prefix: &'a str) -> Answer<'a, Vec<String>>;

    /// Removes an object. One that is not there is a success.
    fn delete<'a>(&'a self, key: &'a Key) -> Answer<'a, ()>;

    /// Removes up to a thousand objects, in no order. Gives back those that the place does not let go (a lock, a missing
    /// right), each with its words; the others are gone.
    fn delete_many<'a>(&'a self, keys: &'a [Key]) -> Answer<'a, Vec<(Key, Error)>> {
        Box::pin(async move {
            let mut kept = Vec::new();
            for key in keys {
                match self.delete(key).await {
                    Ok(()) => {}
                    Err(error) if error.kind() == Kind::Denied => kept.push((key.clone(), error)),
                    Err(error) => return Err(error),
                }
            }
            Ok(kept)
        })
    }

    /// Whether what tells of the data is encrypted when it is put here.
    fn encrypts(&self) -> bool {
        false
    }

    /// The tag of an object as it is now.
    fn tag<'a>(&'a self, key: &'a Key) -> Answer<'a, Tag> {
        Box::pin(async move { Err(cannot_replace(self.url(), key)) })
    }

    /// Begins what is to take the place of an object, in one step, if by then it is still the one that had this tag.
    /// [`Upload::finish`] says `Created` when it has, and `Exists` when another object is there: that is then untouched.
    /// `NotFound` when none is there any more. For a new key alone: the content has to be the same.
    fn replace<'a>(&'a self, key: &'a Key, _: &'a Tag) -> Answer<'a, Box<dyn Upload>> {
        Box::pin(async move { Err(cannot_replace(self.url(), key)) })
    }

    /// Whether there may be several copies of an object, so that one that is damaged can be done without.
    fn has_copies(&self) -> bool {
        false
    }

    /// What was read of an object is damaged: whether another copy of it will be read from now on.
    fn set_aside(&self, _: &Key) -> bool {
        false
    }

    /// An error unless everybody that is part of this store has answered when it was asked last, so that what is absent
    /// is absent from all.
    fn all_answer(&self) -> Result<()> {
        Ok(())
    }

    /// What a sealed object tells of its content to those who cannot open it; nothing where it is not sealed, or tells
    /// nothing.
    fn declared<'a>(&'a self, _: &'a Key) -> Answer<'a, Option<Declared>> {
        Box::pin(async { Ok(None) })
    }

    /// The same objects with the bytes that are stored, to copy them as they are; nothing where these are the ones that
    /// this store gives.
    fn as_stored(&self) -> Option<Arc<dyn Store>> {
        None
    }

    /// Opens what is written to instead of this store, where it is for reading alone.
    fn to_write(&self) -> Option<Answer<'static, Arc<dyn Store>>> {
        None
    }
}

fn cannot_replace(url: String, key: &Key) -> Error {
    Error::internal(format!("{key} cannot be replaced through {url}"))
}

/// Whether reading an object is to be tried again after this error: it was damage, and another copy can be had.
#[must_use]
pub fn another_copy(store: &dyn Store, key: &Key, error: &Error) -> bool {
    error.kind() == Kind::Damaged && store.set_aside(key)
}

/// The longest object that [`read`] accepts: documents, segments and manifests are shorter.
pub const WHOLE_LIMIT: u64 = 2 << 30;

/// A whole object in memory; an error when it is longer than `limit` bytes.
pub async fn read(store: &dyn Store, key: &Key, limit: u64) -> Result<Bytes> {
    let mut download = store.get(key, None).await?;
    if download.length > limit {
        return Err(Error::damaged(format!(
            "{key} is {} bytes long, where at most {limit} make sense",
            download.length
        )));
    }
    let mut whole = bytes::BytesMut::with_capacity(usize::try_from(download.length).unwrap_or(0));
    while let Some(chunk) = download.body.chunk().await? {
        whole.extend_from_slice(&chunk);
    }
    Ok(whole.freeze())
}

/// These bytes of an object.
pub async fn read_range(store: &dyn Store, key: &Key, range: Range<u64>) -> Result<Bytes> {
    let wanted = range.end - range.start;
    let mut download = store.get(key, Some(range)).await?;
    let mut bytes = bytes::BytesMut::with_capacity(usize::try_from(wanted).unwrap_or(0));
    while let Some(chunk) = download.body.chunk().await? {
        bytes.extend_from_slice(&chunk);
    }
    if bytes.len() as u64 == wanted {
        Ok(bytes.freeze())
    } else {
        Err(Error::damaged(format!("{key} is shorter than it should be")))
    }
}

/// The length that a listing tells of an object. It is not opened for that.
pub async fn listed_length(store: &dyn Store, key: &Key) -> Result<u64> {
    let stored = store.as_stored();
    Ok(stored.as_deref().unwrap_or(store).get(key, Some(0..0)).await?.listed)
}

/// Every object below `prefix`, however many there are.
pub async fn list_all(store: &dyn Store, prefix: &str) -> Result<Vec<Listed>> {
    store.list(prefix, None, usize::MAX).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_cannot_leave_its_store() {
        for text in ["", "/", "a//b", "../a", "a/./b", "a/..", "/a", "a/", "a b", "a\0", "ä"] {
            assert!(Key::new(text).is_err(), "{text:?}");
        }
        assert_eq!(Key::new("main/7-1/system.json").unwrap().as_str(), "main/7-1/system.json");
    }
}
