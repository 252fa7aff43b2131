//! The weaker way, for stores that do not honour put-if-absent: look first, then write. Two writers of one name at
//! the same instant can still replace each other's object. Only a repository whose owner accepted that by name
//! (`conditional_writes = "check-then-put"`) is opened like this.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;

use super::{Answer, Download, Key, Listed, Put, Store, Tag, Upload};
use crate::error::{Error, Kind, Result};

/// A store that looks for an object before it writes it.
#[derive(Debug)]
pub struct CheckThenPut {
    inner: Arc<dyn Store>,
}

impl CheckThenPut {
    /// The same store, looking first.
    #[must_use]
    pub fn new(inner: Arc<dyn Store>) -> Self {
        Self { inner }
    }
}

async fn is_there(store: &dyn Store, key: &Key) -> Result<bool> {
    match store.get(key, Some(0..0)).await {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == Kind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

impl Store for CheckThenPut {
    fn url(&self) -> String {
        self.inner.url()
    }

    fn put<'a>(&'a self, key: &'a Key, bytes: Bytes) -> Answer<'a, Put> {
        Box::pin(async move {
            if is_there(&*self.inner, key).await? { Ok(Put::Exists) } else { self.inner.put(key, bytes).await }
        })
    }

    fn upload<'a>(&'a self, key: &'a Key) -> Answer<'a, Box<dyn Upload>> {
        Box::pin(async move {
            let (store, key, upload) = (Arc::clone(&self.inner), key.clone(), self.inner.upload(key).await?);
            Ok(Box::new(Checked { store, key, upload, replaced: None }) as Box<dyn Upload>)
        })
    }

    fn get<'a>(&'a self, key: &'a Key, range: Option<Range<u64>>) -> Answer<'a, Download> {
        self.inner.get(key, range)
    }

    fn list<'a>(&'a self, prefix: &'a str, after: Option<&'a Key>, limit: usize) -> Answer<'a, Vec<Listed>> {
        self.inner.list(prefix, after, limit)
    }

    fn folders<'a>(&'a self, prefix: &'a str) -> Answer<'a, Vec<String>> {
        self.inner.folders(prefix)
    }

    fn delete<'a>(&'a self, key: &'a Key) -> Answer<'a, ()> {
        self.inner.delete(key)
    }

    fn delete_many<'a>(&'a self, keys: &'a [Key]) -> Answer<'a, Vec<(Key, Error)>> {
        self.inner.delete_many(keys)
    }

    fn tag<'a>(&'a self, key: &'a Key) -> Answer<'a, Tag> {
        self.inner.tag(key)
    }

    fn replace<'a>(&'a self, key: &'a Key, tag: &'a Tag) -> Answer<'a, Box<dyn Upload>> {
        Box::pin(async move {
            let (store, key, tag) = (Arc::clone(&self.inner), key.clone(), tag.clone());
            let upload = self.inner.replace(&key, &tag).await?;
            Ok(Box::new(Checked { store, key, upload, replaced: Some(tag) }) as Box<dyn Upload>)
        })
    }
}

/// An upload that looks when it is whole, as late as it can.
struct Checked {
    store: Arc<dyn Store>,
    key: Key,
    upload: Box<dyn Upload>,
    /// What has to be there: nothing, or the object of this tag.
    replaced: Option<Tag>,
}

impl Upload for Checked {
    fn write(&mut self, bytes: Bytes) -> Answer<'_, ()> {
        self.upload.write(bytes)
    }

    fn finish(self: Box<Self>) -> Answer<'static, Put> {
        Box::pin(async move {
            let other = match &self.replaced {
                None => is_there(&*self.store, &self.key).await?,
                Some(tag) => self.store.tag(&self.key).await? != *tag,
            };
            if other { Ok(Put::Exists) } else { self.upload.finish().await }
        })
    }
}
