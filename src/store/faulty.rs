//! A store that fails where a test wants it to, over a real one. A test runs some work with trouble at call 0, then
//! at call 1 and so on, until the work no longer reaches the trouble, and looks each time at what is left.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;

use super::{Answer, Download, Key, Listed, Put, Store, Tag, Upload};
use crate::error::{Error, Result};

/// What befalls a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// It fails, and nothing is done.
    Fail,
    /// It is carried out, and then reported as failed.
    LoseAnswer,
    /// It and every later one fail, as if the process had been killed.
    Die,
}

/// A store with trouble at one of its calls. They are counted from 0; the end of an upload is a call of its own.
#[derive(Debug)]
pub struct Faulty {
    inner: Arc<dyn Store>,
    trouble: Arc<Counted>,
}

#[derive(Debug)]
struct Counted {
    calls: AtomicUsize,
    at: usize,
    trouble: Trouble,
}

impl Counted {
    fn next(&self) -> Option<Trouble> {
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        (call == self.at || (call > self.at && self.trouble == Trouble::Die)).then_some(self.trouble)
    }

    async fn over<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let lost = || Error::unavailable("the test wants this call to fail");
        match self.next() {
            None => work.await,
            Some(Trouble::LoseAnswer) => work.await.and(Err(lost())),
            Some(Trouble::Fail | Trouble::Die) => Err(lost()),
        }
    }
}

impl Faulty {
    /// The same store, with this trouble at call number `at`.
    #[must_use]
    pub fn new(inner: Arc<dyn Store>, at: usize, trouble: Trouble) -> Self {
        Self { inner, trouble: Arc::new(Counted { calls: AtomicUsize::new(0), at, trouble }) }
    }

    /// Whether the trouble was met.
    #[must_use]
    pub fn met(&self) -> bool {
        self.trouble.calls.load(Ordering::Relaxed) > self.trouble.at
    }
}

impl Store for Faulty {
    fn url(&self) -> String {
        self.inner.url()
    }

    fn put<'a>(&'a self, key: &'a Key, bytes: Bytes) -> Answer<'a, Put> {
        Box::pin(self.trouble.over(self.inner.put(key, bytes)))
    }

    fn upload<'a>(&'a self, key: &'a Key) -> Answer<'a, Box<dyn Upload>> {
        Box::pin(async move {
            let upload = self.trouble.over(self.inner.upload(key)).await?;
            Ok(Box::new(FaultyUpload { upload, trouble: Arc::clone(&self.trouble) }) as Box<dyn Upload>)
        })
    }

    fn get<'a>(&'a self, key: &'a Key, range: Option<Range<u64>>) -> Answer<'a, Download> {
        Box::pin(self.trouble.over(self.inner.get(key, range)))
    }

    fn list<'a>(&'a self, prefix: &'a str, after: Option<&'a Key>, limit: usize) -> Answer<'a, Vec<Listed>> {
        Box::pin(self.trouble.over(self.inner.list(prefix, after, limit)))
    }

    fn folders<'a>(&'a self, prefix: &'a str) -> Answer<'a, Vec<String>> {
        Box::pin(self.trouble.over(self.inner.folders(prefix)))
    }

    fn delete<'a>(&'a self, key: &'a Key) -> Answer<'a, ()> {
        Box::pin(self.trouble.over(self.inner.delete(key)))
    }

    fn delete_many<'a>(&'a self, keys: &'a [Key]) -> Answer<'a, Vec<(Key, Error)>> {
        Box::pin(self.trouble.over(self.inner.delete_many(keys)))
    }

    fn encrypts(&self) -> bool {
        self.inner.encrypts()
    }

    fn tag<'a>(&'a self, key: &'a Key) -> Answer<'a, Tag> {
        Box::pin(self.trouble.over(self.inner.tag(key)))
    }

    fn replace<'a>(&'a self, key: &'a Key, tag: &'a Tag) -> Answer<'a, Box<dyn Upload>> {
        Box::pin(async move {
            let upload = self.trouble.over(self.inner.replace(key, tag)).await?;
            Ok(Box::new(FaultyUpload { upload, trouble: Arc::clone(&self.trouble) }) as Box<dyn Upload>)
        })
    }
}

struct FaultyUpload {
    upload: Box<dyn Upload>,
    trouble: Arc<Counted>,
}

impl Upload for FaultyUpload {
    fn write(&mut self, bytes: Bytes) -> Answer<'_, ()> {
        self.upload.write(bytes)
    }

    fn finish(self: Box<Self>) -> Answer<'static, Put> {
        Box::pin(async move { self.trouble.over(self.upload.finish()).await })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{clock::Random, store::dir::DirStore};

    /// Puts `a` and then `b`, with trouble at the first; what the two calls said, and what is there afterwards.
    async fn two_puts(trouble: Trouble) -> (Vec<bool>, Vec<String>) {
        let folder = tempfile::tempdir().unwrap();
        let inner = DirStore::create(folder.path().to_owned(), Arc::new(Random::seeded(1))).unwrap();
        let inner: Arc<dyn Store> = Arc::new(inner);
        let store = Faulty::new(Arc::clone(&inner), 0, trouble);
        assert!(!store.met());
        let mut said = Vec::new();
        for name in ["a", "b"] {
            said.push(store.put(&Key::new(name).unwrap(), Bytes::from("x")).await.is_ok());
        }
        assert!(store.met());
        let there = inner.list("", None, 9).await.unwrap();
        (said, there.into_iter().map(|l| l.key.to_string()).collect())
    }

    #[tokio::test]
    async fn trouble_befalls_the_call_it_is_meant_for() {
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(two_puts(Trouble::Fail).await, (vec![false, true], names(&["b"])));
        assert_eq!(two_puts(Trouble::LoseAnswer).await, (vec![false, true], names(&["a", "b"])));
        assert_eq!(two_puts(Trouble::Die).await, (vec![false, false], names(&[])));
    }
}
