//! A store whose bytes are counted, never come faster than is allowed, and stop when somebody asks.

use std::{fmt, ops::Range, sync::Arc};

use bytes::Bytes;

use crate::{
    interrupt::Interrupt,
    pace::Throttle,
    progress::Progress,
    repository::join,
    seal::age::Declared,
    store::{Answer, Body, Download, Key, Listed, Put, Store, Upload},
};

/// The store.
pub struct Metered {
    inner: Arc<dyn Store>,
    meter: Meter,
}

#[derive(Clone)]
struct Meter {
    /// None where there is no limit.
    throttle: Option<Arc<Throttle>>,
    progress: Arc<dyn Progress>,
    interrupt: Interrupt,
}

impl Metered {
    /// Reads from `inner`, at most `rate_limit` bytes a second.
    pub fn new(
        inner: Arc<dyn Store>,
        rate_limit: Option<u64>,
        progress: Arc<dyn Progress>,
        interrupt: Interrupt,
    ) -> Self {
        let throttle = rate_limit.map(|rate| Arc::new(Throttle::new(Some(rate))));
        Self { inner, meter: Meter { throttle, progress, interrupt } }
    }
}

impl fmt::Debug for Metered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metered").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl Store for Metered {
    fn url(&self) -> String {
        self.inner.url()
    }

    fn put<'a>(&'a self, key: &'a Key, bytes: Bytes) -> Answer<'a, Put> {
        self.inner.put(key, bytes)
    }

    fn upload<'a>(&'a self, key: &'a Key) -> Answer<'a, Box<dyn Upload>> {
        self.inner.upload(key)
    }

    fn get<'a>(&'a self, key: &'a Key, range: Option<Range<u64>>) -> Answer<'a, Download> {
        Box::pin(async move {
            let Download { length, listed, body } = self.inner.get(key, range).await?;
            Ok(Download { length, listed, body: Box::new(MeteredBody { body, meter: self.meter.clone() }) })
        })
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

    fn declared<'a>(&'a self, key: &'a Key) -> Answer<'a, Option<Declared>> {
        self.inner.declared(key)
    }

    fn as_stored(&self) -> Option<Arc<dyn Store>> {
        self.inner.as_stored()
    }
}

struct MeteredBody {
    body: Box<dyn Body>,
    meter: Meter,
}

impl Body for MeteredBody {
    fn chunk(&mut self) -> Answer<'_, Option<Bytes>> {
        Box::pin(async move {
            self.meter.interrupt.check()?;
            let chunk = self.body.chunk().await?;
            let bytes = chunk.as_ref().map_or(0, Bytes::len) as u64;
            if let Some(throttle) = self.meter.throttle.clone() {
                join(tokio::task::spawn_blocking(move || throttle.pass(bytes)).await)?;
            }
            self.meter.progress.advance(bytes);
            Ok(chunk)
        })
    }
}
