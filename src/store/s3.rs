//! Objects in a bucket of S3 or of a store that speaks its protocol: `s3://bucket/prefix`.
//!
//! Every write is conditional (`If-None-Match: *`) and carries a random identity in the object's metadata: when the
//! answer to a write is lost, and the repetition is told that the object exists, the identity tells whose it is.
//! All retries are made here, none by the SDK, so that their meaning is ours.

mod client;
mod errors;
mod guards;
pub mod keys_file;
mod lock;
mod read;
mod upload;
mod write;

use std::{
    future::Future,
    ops::Range,
    path::PathBuf,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use aws_sdk_s3::{
    Client,
    operation::list_objects_v2::ListObjectsV2Output,
    types::{Delete, ObjectIdentifier},
};
use bytes::Bytes;

pub(crate) use self::errors::NO_LOCK;
use self::write::Condition;
pub use self::{
    client::{Found, Keys, credentials},
    guards::Guards,
    lock::Lock,
    upload::settle,
};
use super::{
    Answer, Download, Key, Listed, Put, Store, Tag, Upload,
    retry::{Patience, persist},
};
use crate::{
    clock::Random,
    error::{Error, Kind, Result},
    human,
};

/// How the store encrypts what it keeps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Encryption {
    /// As the bucket is set up.
    #[default]
    Bucket,
    /// `AES256`: with keys that S3 keeps.
    Aes256,
    /// `aws:kms`: with a key in KMS, or with the account's own.
    Kms(Option<String>),
}

/// Where a bucket is and how it is spoken to.
#[derive(Clone, Debug)]
pub struct S3Options {
    /// The bucket's name.
    pub bucket: String,
    /// What every object's name begins with, without a slash at either end. May be empty.
    pub prefix: String,
    /// The region. Without one: the environment's or profile's; `us-east-1` where an endpoint is given.
    pub region: Option<String>,
    /// The profile of AWS's configuration files that has the credentials, above everything but `keys`.
    pub profile: Option<String>,
    /// A file in the form of `~/.aws/credentials`, whose section of that profile, or `default`, comes before AWS's chain.
    pub credentials_file: Option<PathBuf>,
    /// The URL of a store that is not AWS's own.
    pub endpoint: Option<String>,
    /// The bucket is named in the path of the URL instead of the host.
    pub path_style: bool,
    /// The storage class of new objects, in S3's words.
    pub storage_class: Option<String>,
    /// Encryption by the store.
    pub encryption: Encryption,
    /// How new objects are locked.
    pub lock: Option<Lock>,
    /// Credentials. Without them AWS's standard chain is asked: environment, profile, web identity, instance.
    pub keys: Option<Keys>,
    /// A file of certificates (PEM) that are trusted beside the system's.
    pub ca_file: Option<PathBuf>,
    /// Bodies go unsigned, with a checksum only. By default they do over TLS, which protects them itself:
    /// signing means a SHA-256 over every byte.
    pub unsigned_payload: Option<bool>,
    /// Writes carry the condition that makes them put-if-absent. Without it this store must only be used through
    /// [`CheckThenPut`](super::check_then_put::CheckThenPut).
    pub conditional_writes: bool,
    /// How long a connection may take to be made.
    pub connect_timeout: Duration,
    /// How long to try.
    pub patience: Patience,
}

impl S3Options {
    /// The options for `s3://bucket/prefix` when nothing else is said.
    #[must_use]
    pub fn new(bucket: impl Into<String>, prefix: impl Into<String>) -> Self {
        Self {
            bucket: bucket.into(),
            prefix: prefix.into(),
            region: None,
            profile: None,
            credentials_file: None,
            endpoint: None,
            path_style: false,
            storage_class: None,
            encryption: Encryption::default(),
            lock: None,
            keys: None,
            ca_file: None,
            unsigned_payload: None,
            conditional_writes: true,
            connect_timeout: Duration::from_secs(5),
            patience: Patience::default(),
        }
    }
}

/// A store in a bucket.
#[derive(Debug)]
pub struct S3Store {
    bucket: Arc<Bucket>,
}

impl S3Store {
    /// Gets ready to speak to the bucket. Finds credentials, but sends nothing to the bucket yet.
    pub async fn open(options: S3Options, random: Arc<Random>) -> Result<Self> {
        let made = client::make(&options).await?;
        Ok(Self {
            bucket: Arc::new(Bucket {
                options,
                random,
                endpoint: made.endpoint,
                unfilled: made.unfilled,
                unsigned_payload: made.unsigned_payload,
                client: RwLock::new(made.client),
            }),
        })
    }
}

/// The bucket and what it takes to speak to it.
#[derive(Debug)]
struct Bucket {
    options: S3Options,
    random: Arc<Random>,
    /// For people.
    endpoint: String,
    /// Where access keys still have to be filled in.
    unfilled: Option<String>,
    unsigned_payload: bool,
    client: RwLock<Client>,
}

impl Bucket {
    fn client(&self) -> Client {
        self.client.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Forgets the credentials at hand, so that the next request asks for new ones.
    fn refresh_credentials(&self) {
        let fresh = client::with_fresh_credentials(&self.client());
        *self.client.write().unwrap_or_else(PoisonError::into_inner) = fresh;
    }

    fn url(&self) -> String {
        let S3Options { bucket, prefix, .. } = &self.options;
        if prefix.is_empty() { format!("s3://{bucket}") } else { format!("s3://{bucket}/{prefix}") }
    }

    /// The name in the bucket of what has this name in the store.
    fn object(&self, name: &str) -> String {
        let prefix = &self.options.prefix;
        if prefix.is_empty() { name.to_owned() } else { format!("{prefix}/{name}") }
    }

    fn call(self: &Arc<Self>, doing: &'static str, name: impl Into<String>) -> Call {
        Call { bucket: Arc::clone(self), doing, name: name.into(), refreshed: AtomicBool::new(false) }
    }
}

/// One thing to do with one object, over all its attempts.
struct Call {
    bucket: Arc<Bucket>,
    doing: &'static str,
    /// The object's name in the store, for people.
    name: String,
    refreshed: AtomicBool,
}

impl Call {
    /// Makes attempts until one succeeds, fails for good, or patience ends. `length` is how many bytes it moves.
    async fn persist<T, F: Future<Output = Result<T>>>(
        &self,
        length: usize,
        attempt: impl FnMut(u32) -> F,
    ) -> Result<T> {
        let patience = self.bucket.options.patience.to_move(length);
        let silence = |time: Duration| {
            let endpoint = &self.bucket.endpoint;
            let text = format!("no answer from {endpoint} within {}", human::duration(time));
            self.error(Error::unavailable(text).hint(errors::UNREACHED))
        };
        persist(patience, &self.bucket.random, silence, attempt).await
    }

    /// Says what was being done, and to what.
    fn error(&self, error: Error) -> Error {
        error.context(format!("{} {} in {}", self.doing, self.name, self.bucket.url()))
    }

    /// True the first time: credentials that were refused as old have been renewed, and deserve one more attempt.
    fn renew_credentials_once(&self) -> bool {
        let first = !self.refreshed.swap(true, Ordering::Relaxed);
        if first {
            self.bucket.refresh_credentials();
        }
        first
    }
}

impl Store for S3Store {
    fn url(&self) -> String {
        self.bucket.url()
    }

    fn put<'a>(&'a self, key: &'a Key, bytes: Bytes) -> Answer<'a, Put> {
        Box::pin(write::put(&self.bucket, key.as_str(), bytes, self.bucket.random.name(), &Condition::Absent))
    }

    fn upload<'a>(&'a self, key: &'a Key) -> Answer<'a, Box<dyn Upload>> {
        let upload = upload::begin(Arc::clone(&self.bucket), key.as_str().to_owned(), Condition::Absent);
        Box::pin(async { Ok(Box::new(upload) as Box<dyn Upload>) })
    }

    fn tag<'a>(&'a self, key: &'a Key) -> Answer<'a, Tag> {
        Box::pin(read::tag(&self.bucket, key.as_str()))
    }

    fn replace<'a>(&'a self, key: &'a Key, tag: &'a Tag) -> Answer<'a, Box<dyn Upload>> {
        let condition = Condition::Unchanged(tag.0.clone());
        let upload = upload::begin(Arc::clone(&self.bucket), key.as_str().to_owned(), condition);
        Box::pin(async { Ok(Box::new(upload) as Box<dyn Upload>) })
    }

    fn get<'a>(&'a self, key: &'a Key, range: Option<Range<u64>>) -> Answer<'a, Download> {
        Box::pin(read::get(&self.bucket, key.as_str(), range))
    }

    fn list<'a>(&'a self, prefix: &'a str, after: Option<&'a Key>, limit: usize) -> Answer<'a, Vec<Listed>> {
        Box::pin(list(&self.bucket, prefix, after, limit))
    }

    fn folders<'a>(&'a self, prefix: &'a str) -> Answer<'a, Vec<String>> {
        Box::pin(async move {
            let whole = self.bucket.object(prefix);
            let mut names = Vec::new();
            let mut token = None;
            loop {
                let page = list_page(&self.bucket, prefix, None, Some("/"), 1000, token).await?;
                let found = page.common_prefixes().iter().filter_map(|p| p.prefix()?.strip_prefix(&whole));
                names.extend(found.map(|name| name.trim_end_matches('/').to_owned()));
                token = page.next_continuation_token;
                if token.is_none() {
                    names.retain(|name| Key::new(name.as_str()).is_ok());
                    names.sort_unstable();
                    return Ok(names);
                }
            }
        })
    }

    fn delete_many<'a>(&'a self, keys: &'a [Key]) -> Answer<'a, Vec<(Key, Error)>> {
        Box::pin(async move {
            if let Some(kept) = delete_many(&self.bucket, keys).await? {
                return Ok(kept);
            }
            let mut kept = Vec::new();
            for key in keys {
                match self.delete(key).await {
                    Err(error) if error.kind() == Kind::Denied => kept.push((key.clone(), error)),
                    deleted => deleted?,
                }
            }
            Ok(kept)
        })
    }

    fn delete<'a>(&'a self, key: &'a Key) -> Answer<'a, ()> {
        Box::pin(async move {
            let call = self.bucket.call("delete", key.as_str());
            call.persist(0, |_| async {
                let S3Options { bucket, .. } = &self.bucket.options;
                let request = self.bucket.client().delete_object().bucket(bucket).key(self.bucket.object(key.as_str()));
                match request.send().await.map_err(|e| call.failure(e)) {
                    Ok(_) => Ok(()),
                    Err(failure) if failure.is("NoSuchKey") => Ok(()),
                    Err(failure) => Err(failure.error),
                }
            })
            .await
        })
    }
}

/// Deletes up to a thousand objects with one request; `None` where the store does not know how.
async fn delete_many(bucket: &Arc<Bucket>, keys: &[Key]) -> Result<Option<Vec<(Key, Error)>>> {
    let call = bucket.call("delete", format!("{} objects", keys.len()));
    let call = &call;
    call.persist(0, |_| async move {
        let objects = keys.iter().map(|key| ObjectIdentifier::builder().key(bucket.object(key.as_str())).build());
        let objects = objects.collect::<Result<Vec<_>, _>>();
        let wanted = objects.and_then(|objects| Delete::builder().set_objects(Some(objects)).quiet(true).build());
        let wanted = wanted.map_err(|e| Error::internal("ask for objects to be deleted").source(e))?;
        let request = bucket.client().delete_objects().bucket(&bucket.options.bucket).delete(wanted);
        let answer = match request.send().await.map_err(|e| call.failure(e)) {
            Ok(answer) => answer,
            Err(failure) if failure.is("NotImplemented") || matches!(failure.status, 405 | 501) => return Ok(None),
            Err(failure) => return Err(failure.error),
        };
        let mut kept = Vec::new();
        for error in answer.errors() {
            let (code, words) = (error.code().unwrap_or_default(), error.message().unwrap_or_default());
            let key = keys.iter().find(|key| error.key() == Some(&bucket.object(key.as_str())));
            match (code, key) {
                ("NoSuchKey", _) => {}
                ("InternalError" | "SlowDown" | "ServiceUnavailable", _) | (_, None) => {
                    return Err(call.error(Error::unavailable(format!("the store said not now ({code}: {words})"))));
                }
                (_, Some(key)) => kept.push((key.clone(), Error::denied(format!("{words} ({code})")))),
            }
        }
        Ok(Some(kept))
    })
    .await
}

/// Lists from `after` on; where the store's order turns out not to be ours (some list folder by folder), everything.
async fn list(bucket: &Arc<Bucket>, prefix: &str, after: Option<&Key>, limit: usize) -> Result<Vec<Listed>> {
    let (mut found, complete) = list_pages(bucket, prefix, after, limit).await?;
    let ordered = found.is_sorted_by(|a, b| a.key < b.key) && found.first().is_none_or(|f| Some(&f.key) > after);
    if !ordered {
        if !complete || after.is_some() {
            found = list_pages(bucket, prefix, None, usize::MAX).await?.0;
        }
        found.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        found.dedup_by(|a, b| a.key == b.key);
        found.retain(|listed| Some(&listed.key) > after);
        found.truncate(limit);
    }
    Ok(found)
}

/// At most `limit` objects in the store's order, and whether these are all.
async fn list_pages(
    bucket: &Arc<Bucket>,
    prefix: &str,
    after: Option<&Key>,
    limit: usize,
) -> Result<(Vec<Listed>, bool)> {
    let root = bucket.object("");
    let mut found = Vec::new();
    let mut token = None;
    while found.len() < limit {
        let wanted = limit.saturating_sub(found.len()).min(1000);
        let page = list_page(bucket, prefix, after, None, wanted, token).await?;
        for object in page.contents() {
            // A name that no key can spell is none of ours.
            let key = object.key().and_then(|k| k.strip_prefix(&root)).and_then(|k| Key::new(k).ok());
            let length = object.size().and_then(|size| u64::try_from(size).ok());
            if let (Some(key), Some(length)) = (key, length) {
                found.push(Listed { key, length });
            }
        }
        token = page.next_continuation_token;
        if token.is_none() {
            return Ok((found, true));
        }
    }
    Ok((found, false))
}

async fn list_page(
    bucket: &Arc<Bucket>,
    prefix: &str,
    after: Option<&Key>,
    delimiter: Option<&str>,
    wanted: usize,
    token: Option<String>,
) -> Result<ListObjectsV2Output> {
    let call = bucket.call("list", if prefix.is_empty() { "everything" } else { prefix });
    call.persist(0, |_| async {
        let request = bucket
            .client()
            .list_objects_v2()
            .bucket(&bucket.options.bucket)
            .prefix(bucket.object(prefix))
            .set_start_after(after.map(|key| bucket.object(key.as_str())))
            .set_delimiter(delimiter.map(str::to_owned))
            .set_continuation_token(token.clone())
            .max_keys(i32::try_from(wanted).unwrap_or(1000));
        request.send().await.map_err(|e| call.failure(e).error)
    })
    .await
}
