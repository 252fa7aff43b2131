//! What sealed objects are called in the store: those whose names tell their format bear `.age` behind them, so that
//! they can be read by hand. Everybody above asks for them without it, whether they are sealed or not.
//!
//! Of two objects that differ in `.age` alone one counts: the sealed one where encryption is configured, so that nobody
//! can plant another one before it, else the plain one. Walden makes no such two: what is sealed is not put where the
//! plain object is.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;

use crate::{
    error::{Error, Kind, Result},
    seal::age,
    store::{Answer, Download, Key, Listed, Put, Store, Tag, Upload},
};

const ENDING: &str = ".age";

/// A store whose sealed objects are called by their names without `.age`. Their bytes are as they are stored.
#[derive(Debug)]
pub(super) struct Names {
    inner: Arc<dyn Store>,
    /// Which names get the ending.
    bears: fn(&Key) -> bool,
    sealed_first: bool,
}

impl Names {
    pub(super) fn new(inner: Arc<dyn Store>, bears: fn(&Key) -> bool, sealed_first: bool) -> Self {
        Self { inner, bears, sealed_first }
    }

    /// The name of the sealed object, where that is another one.
    fn sealed(&self, key: &Key) -> Result<Option<Key>> {
        (self.bears)(key).then(|| Key::new(format!("{key}{ENDING}"))).transpose()
    }

    /// What the object is called that is there: the sealed one where there are two.
    async fn stored(&self, key: &Key) -> Result<Key> {
        match self.sealed(key)? {
            Some(sealed) if is_there(&*self.inner, &sealed).await? => Ok(sealed),
            _ => Ok(key.clone()),
        }
    }

    /// An object of the store as it is listed.
    fn listed(&self, stored: Listed) -> (Listed, bool) {
        let name = stored.key.as_str().strip_suffix(ENDING).and_then(|name| Key::new(name).ok());
        match name.filter(|name| (self.bears)(name)) {
            Some(key) => (Listed { key, length: content(stored.length) }, true),
            None => (stored, false),
        }
    }
}

/// What a listing tells of a sealed object of so many bytes. All headers that Walden writes are of one length.
fn content(stored: u64) -> u64 {
    age::content_length(age::HEADER, stored).unwrap_or(0)
}

impl Store for Names {
    fn url(&self) -> String {
        self.inner.url()
    }

    fn put<'a>(&'a self, key: &'a Key, bytes: Bytes) -> Answer<'a, Put> {
        Box::pin(async move {
            match self.sealed(key)?.filter(|_| age::is_age(&bytes)) {
                Some(_) if is_there(&*self.inner, key).await? => Ok(Put::Exists),
                Some(sealed) => self.inner.put(&sealed, bytes).await,
                None => self.inner.put(key, bytes).await,
            }
        })
    }

    fn upload<'a>(&'a self, key: &'a Key) -> Answer<'a, Box<dyn Upload>> {
        Box::pin(async move {
            let Some(sealed) = self.sealed(key)? else { return self.inner.upload(key).await };
            let upload = Undecided { store: self.inner.clone(), plain: key.clone(), sealed, upload: None };
            Ok(Box::new(upload) as Box<dyn Upload>)
        })
    }

    fn get<'a>(&'a self, key: &'a Key, range: Option<Range<u64>>) -> Answer<'a, Download> {
        Box::pin(async move {
            let Some(sealed) = self.sealed(key)? else { return self.inner.get(key, range).await };
            let named = async |range| {
                let download = self.inner.get(&sealed, range).await?;
                Ok(Download { listed: content(download.length), ..download })
            };
            if self.sealed_first {
                match named(range.clone()).await {
                    Err(error) if is_absent(&error) => self.inner.get(key, range).await,
                    got => got,
                }
            } else {
                match self.inner.get(key, range.clone()).await {
                    Err(error) if is_absent(&error) => {
                        named(range).await.map_err(|e| if is_absent(&e) { error } else { e })
                    }
                    got => got,
                }
            }
        })
    }

    fn list<'a>(&'a self, prefix: &'a str, after: Option<&'a Key>, limit: usize) -> Answer<'a, Vec<Listed>> {
        Box::pin(async move {
            let mut found: Vec<Listed> = Vec::new();
            let mut from = match after {
                Some(after) => Some(self.sealed(after)?.unwrap_or_else(|| after.clone())),
                None => None,
            };
            loop {
                let wanted = limit - found.len();
                let page = self.inner.list(prefix, from.as_ref(), wanted).await?;
                let ended = page.len() < wanted;
                from = page.last().map(|stored| stored.key.clone()).or(from);
                for (listed, sealed) in page.into_iter().map(|stored| self.listed(stored)) {
                    match found.last_mut().filter(|last| last.key == listed.key) {
                        // They come one after the other, the plain one first.
                        Some(last) if sealed == self.sealed_first => *last = listed,
                        Some(_) => {}
                        None => found.push(listed),
                    }
                }
                if ended || found.len() >= limit {
                    return Ok(found);
                }
            }
        })
    }

    fn tag<'a>(&'a self, key: &'a Key) -> Answer<'a, Tag> {
        Box::pin(async move { self.inner.tag(&self.stored(key).await?).await })
    }

    fn replace<'a>(&'a self, key: &'a Key, tag: &'a Tag) -> Answer<'a, Box<dyn Upload>> {
        Box::pin(async move { self.inner.replace(&self.stored(key).await?, tag).await })
    }

    fn folders<'a>(&'a self, prefix: &'a str) -> Answer<'a, Vec<String>> {
        self.inner.folders(prefix)
    }

    fn delete<'a>(&'a self, key: &'a Key) -> Answer<'a, ()> {
        Box::pin(async move {
            if let Some(sealed) = self.sealed(key)? {
                self.inner.delete(&sealed).await?;
            }
            self.inner.delete(key).await
        })
    }

    fn delete_many<'a>(&'a self, keys: &'a [Key]) -> Answer<'a, Vec<(Key, Error)>> {
        Box::pin(async move {
            let mut sealed = Vec::new();
            for key in keys {
                sealed.extend(self.sealed(key)?.map(|name| (name, key)));
            }
            let (names, of): (Vec<Key>, Vec<&Key>) = sealed.into_iter().unzip();
            let mut kept = Vec::new();
            if !names.is_empty() {
                let locked = self.inner.delete_many(&names).await?.into_iter();
                let known = locked.filter_map(|(name, error)| Some((names.iter().position(|n| *n == name)?, error)));
                kept.extend(known.map(|(at, error)| (of[at].clone(), error)));
            }
            let plain: Vec<Key> = keys.iter().filter(|key| !kept.iter().any(|(k, _)| k == *key)).cloned().collect();
            if !plain.is_empty() {
                kept.extend(self.inner.delete_many(&plain).await?);
            }
            Ok(kept)
        })
    }
}

fn is_absent(error: &Error) -> bool {
    error.kind() == Kind::NotFound
}

async fn is_there(store: &dyn Store, key: &Key) -> Result<bool> {
    match store.get(key, Some(0..0)).await {
        Ok(_) => Ok(true),
        Err(error) if is_absent(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// An upload whose first bytes decide what it is called.
struct Undecided {
    store: Arc<dyn Store>,
    plain: Key,
    sealed: Key,
    upload: Option<(Box<dyn Upload>, bool)>,
}

impl Undecided {
    async fn decided(&mut self, is_sealed: bool) -> Result<(Box<dyn Upload>, bool)> {
        match self.upload.take() {
            Some(begun) => Ok(begun),
            None => {
                let name = if is_sealed { &self.sealed } else { &self.plain };
                Ok((self.store.upload(name).await?, is_sealed))
            }
        }
    }
}

impl Upload for Undecided {
    fn write(&mut self, bytes: Bytes) -> Answer<'_, ()> {
        Box::pin(async move {
            let (mut upload, is_sealed) = self.decided(age::is_age(&bytes)).await?;
            upload.write(bytes).await?;
            self.upload = Some((upload, is_sealed));
            Ok(())
        })
    }

    fn finish(mut self: Box<Self>) -> Answer<'static, Put> {
        Box::pin(async move {
            let (upload, is_sealed) = self.decided(false).await?;
            if is_sealed && is_there(&*self.store, &self.plain).await? {
                Ok(Put::Exists)
            } else {
                upload.finish().await
            }
        })
    }
}
