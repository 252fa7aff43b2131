//! Whole objects, put if absent, and whose object it is that was found there.

use std::{collections::HashMap, sync::Arc};

use aws_sdk_s3::{
    primitives::ByteStream,
    types::{ServerSideEncryption, StorageClass},
};
use bytes::Bytes;

use super::{Bucket, Call, Encryption};
use crate::{
    error::{Error, Result},
    store::Put,
};

/// The metadata that names the write an object was made by.
const IDENTITY: &str = "walden-write";

/// The metadata of an object that the write `identity` makes.
pub(super) fn metadata(identity: &str) -> Option<HashMap<String, String>> {
    Some(HashMap::from([(IDENTITY.to_owned(), identity.to_owned())]))
}

/// What has to be there when an object is written.
#[derive(Clone, Debug)]
pub(super) enum Condition {
    /// Nothing.
    Absent,
    /// The object with this ETag.
    Unchanged(String),
}

impl Condition {
    /// What `If-None-Match` and `If-Match` say.
    pub(super) fn headers(&self, bucket: &Bucket) -> (Option<String>, Option<String>) {
        match self {
            _ if !bucket.options.conditional_writes => (None, None),
            Self::Absent => (Some("*".to_owned()), None),
            Self::Unchanged(etag) => (None, Some(etag.clone())),
        }
    }

    /// What it means that the condition did not hold, and nothing is there.
    pub(super) fn gone(&self, call: &Call) -> Error {
        match self {
            Self::Absent => call.error(Error::unavailable("the object was there, and is gone")),
            Self::Unchanged(_) => call.error(Error::not_found("the object that was to be replaced is gone")),
        }
    }
}

impl Bucket {
    pub(super) fn storage_class(&self) -> Option<StorageClass> {
        self.options.storage_class.as_deref().map(StorageClass::from)
    }

    /// What the headers for server-side encryption say: the way, and the key.
    pub(super) fn encryption(&self) -> (Option<ServerSideEncryption>, Option<String>) {
        match &self.options.encryption {
            Encryption::Bucket => (None, None),
            Encryption::Aes256 => (Some(ServerSideEncryption::Aes256), None),
            Encryption::Kms(key) => (Some(ServerSideEncryption::AwsKms), key.clone()),
        }
    }
}

/// Writes an object in one request. `identity` is this write's own name, the same in every attempt.
pub(super) async fn put(
    bucket: &Arc<Bucket>,
    name: &str,
    bytes: Bytes,
    identity: String,
    condition: &Condition,
) -> Result<Put> {
    let call = bucket.call("put", name);
    call.persist(bytes.len(), |_| async {
        let (encryption, kms_key) = bucket.encryption();
        let (lock_mode, locked_until) = bucket.retention(name);
        let (if_none_match, if_match) = condition.headers(bucket);
        let request = bucket
            .client()
            .put_object()
            .bucket(&bucket.options.bucket)
            .key(bucket.object(name))
            .set_if_none_match(if_none_match)
            .set_if_match(if_match)
            .set_metadata(metadata(&identity))
            .set_storage_class(bucket.storage_class())
            .set_server_side_encryption(encryption)
            .set_ssekms_key_id(kms_key)
            .set_object_lock_mode(lock_mode)
            .set_object_lock_retain_until_date(locked_until)
            .body(ByteStream::from(bytes.clone()));
        let sent = if bucket.unsigned_payload {
            request.customize().disable_payload_signing().send().await
        } else {
            request.send().await
        };
        match sent.map_err(|e| call.failure(e)) {
            Ok(_) => Ok(Put::Created),
            // Also after the first attempt: a proxy in between may have made a second one of it.
            Err(failure) if failure.status == 412 => match call.whose(&identity).await? {
                Some(put) => Ok(put),
                None => Err(condition.gone(&call)),
            },
            Err(failure) if failure.is("NoSuchKey") => Err(condition.gone(&call)),
            Err(failure) => Err(failure.error),
        }
    })
    .await
}

impl Call {
    /// Whether the object that is there was made by the write `identity`; `None` when none is there.
    pub(super) async fn whose(&self, identity: &str) -> Result<Option<Put>> {
        let bucket = &self.bucket;
        let request = bucket.client().head_object().bucket(&bucket.options.bucket).key(bucket.object(&self.name));
        match request.send().await.map_err(|e| self.failure(e)) {
            Ok(object) => {
                let ours = object.metadata().and_then(|m| m.get(IDENTITY)).is_some_and(|i| i == identity);
                Ok(Some(if ours { Put::Created } else { Put::Exists }))
            }
            Err(failure) if failure.status == 404 => Ok(None),
            Err(failure) => Err(failure.error),
        }
    }
}
