//! Objects written piece by piece: one put while they are small, a multipart upload when they grow.
//!
//! At most [`IN_FLIGHT`] parts are on their way while the next one fills, so that an upload holds three parts in
//! memory at most. An upload that does not end well is aborted, for its parts would be paid for without being seen.

use std::sync::{Arc, Mutex, PoisonError};

use aws_sdk_s3::{
    primitives::ByteStream,
    types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart},
};
use bytes::{Bytes, BytesMut};
use tokio::{
    runtime::Handle,
    task::{JoinHandle, JoinSet},
};

use super::{
    Bucket,
    write::{self, Condition},
};
use crate::{
    error::{Error, Result},
    store::{Answer, Put, Upload},
};

/// How many parts are sent at once.
const IN_FLIGHT: usize = 2;

/// The most parts that S3 takes.
const MOST_PARTS: i32 = 10_000;

/// The length of the part with that number (from 1), in bytes. 8 MiB, doubled after each 2 500 parts: 10 000 hold
/// 293 GiB, and no part is too long to be held in memory three times.
fn part_length(number: i32) -> usize {
    (8 << 20) << (number.saturating_sub(1) / 2500).clamp(0, 3)
}

/// An object that is being written.
pub(super) struct S3Upload {
    bucket: Arc<Bucket>,
    name: String,
    identity: String,
    condition: Condition,
    /// What has not been handed to a part yet; shorter than a part.
    filling: BytesMut,
    open: Option<Open>,
    failed: bool,
}

/// An upload of several parts that S3 knows of.
struct Open {
    bucket: Arc<Bucket>,
    name: String,
    id: String,
    sending: JoinSet<Result<CompletedPart>>,
    sent: Vec<CompletedPart>,
    begun: i32,
    /// Where to abort it from when it is dropped outside the runtime.
    runtime: Handle,
    completed: bool,
}

pub(super) fn begin(bucket: Arc<Bucket>, name: String, condition: Condition) -> S3Upload {
    let identity = bucket.random.name();
    S3Upload { bucket, name, identity, condition, filling: BytesMut::new(), open: None, failed: false }
}

impl S3Upload {
    async fn add(&mut self, mut bytes: Bytes) -> Result<()> {
        loop {
            let wanted = part_length(self.open.as_ref().map_or(1, |open| open.begun + 1));
            if self.filling.is_empty() && self.open.is_some() {
                self.filling.reserve(wanted);
            }
            let room = wanted - self.filling.len();
            // A part that is full waits for another byte: what fits into one part is one put.
            if bytes.len() <= room {
                self.filling.extend_from_slice(&bytes);
                return Ok(());
            }
            self.filling.extend_from_slice(&bytes.split_to(room));
            let part = std::mem::take(&mut self.filling).freeze();
            self.open().await?.send(part).await?;
        }
    }

    async fn open(&mut self) -> Result<&mut Open> {
        if self.open.is_none() {
            self.open = Some(Open::begin(&self.bucket, &self.name, &self.identity).await?);
        }
        self.open.as_mut().ok_or_else(|| Error::internal("an upload that was just begun is gone"))
    }
}

impl Upload for S3Upload {
    fn write(&mut self, bytes: Bytes) -> Answer<'_, ()> {
        Box::pin(async move {
            if self.failed {
                return Err(Error::internal(format!("{} was written to after an error", self.name)));
            }
            // Set before the work, for a future that is dropped half-way has lost a piece.
            self.failed = true;
            self.add(bytes).await?;
            self.failed = false;
            Ok(())
        })
    }

    fn finish(self: Box<Self>) -> Answer<'static, Put> {
        let Self { bucket, name, identity, condition, filling, open, failed } = *self;
        Box::pin(async move {
            if failed {
                return Err(Error::internal(format!("{name} was finished after an error")));
            }
            match open {
                None => write::put(&bucket, &name, filling.freeze(), identity, &condition).await,
                Some(mut open) => {
                    open.send(filling.freeze()).await?;
                    open.complete(&identity, &condition).await
                }
            }
        })
    }
}

impl Open {
    async fn begin(bucket: &Arc<Bucket>, name: &str, identity: &str) -> Result<Self> {
        let call = bucket.call("begin an upload of", name);
        let id = call
            .persist(0, |_| async {
                let (encryption, kms_key) = bucket.encryption();
                let (lock_mode, locked_until) = bucket.retention(name);
                let request = bucket
                    .client()
                    .create_multipart_upload()
                    .bucket(&bucket.options.bucket)
                    .key(bucket.object(name))
                    .checksum_algorithm(ChecksumAlgorithm::Crc32)
                    .set_metadata(write::metadata(identity))
                    .set_storage_class(bucket.storage_class())
                    .set_server_side_encryption(encryption)
                    .set_ssekms_key_id(kms_key)
                    .set_object_lock_mode(lock_mode)
                    .set_object_lock_retain_until_date(locked_until);
                let begun = request.send().await.map_err(|e| call.failure(e).error)?;
                begun.upload_id.ok_or_else(|| call.error(Error::failed("the store gave the upload no id")))
            })
            .await?;
        Ok(Self {
            bucket: Arc::clone(bucket),
            name: name.to_owned(),
            id,
            sending: JoinSet::new(),
            sent: Vec::new(),
            begun: 0,
            runtime: Handle::current(),
            completed: false,
        })
    }

    /// Sends the next part, once fewer than [`IN_FLIGHT`] are on their way.
    async fn send(&mut self, part: Bytes) -> Result<()> {
        while self.sending.len() >= IN_FLIGHT {
            self.await_one().await?;
        }
        if self.begun == MOST_PARTS {
            return Err(Error::failed(format!("{} is longer than {MOST_PARTS} parts can hold", self.name)));
        }
        self.begun += 1;
        let (bucket, name, id) = (Arc::clone(&self.bucket), self.name.clone(), self.id.clone());
        self.sending.spawn(send_part(bucket, name, id, self.begun, part));
        Ok(())
    }

    async fn await_one(&mut self) -> Result<()> {
        match self.sending.join_next().await {
            Some(ended) => {
                self.sent.push(ended.map_err(|e| Error::internal("sending a part did not end").source(e))??);
                Ok(())
            }
            None => Ok(()),
        }
    }

    async fn complete(mut self, identity: &str, condition: &Condition) -> Result<Put> {
        while !self.sending.is_empty() {
            self.await_one().await?;
        }
        self.sent.sort_unstable_by_key(CompletedPart::part_number);
        let parts = CompletedMultipartUpload::builder().set_parts(Some(self.sent.clone())).build();
        let (bucket, call) = (&self.bucket, self.bucket.call("finish the upload of", self.name.as_str()));
        let put = call
            .persist(0, |_| async {
                let (if_none_match, if_match) = condition.headers(bucket);
                let request = bucket
                    .client()
                    .complete_multipart_upload()
                    .bucket(&bucket.options.bucket)
                    .key(bucket.object(&self.name))
                    .upload_id(&self.id)
                    .set_if_none_match(if_none_match)
                    .set_if_match(if_match)
                    .multipart_upload(parts.clone());
                match request.send().await.map_err(|e| call.failure(e)) {
                    Ok(_) => Ok(Put::Created),
                    // Either may be the echo of a completion whose answer was lost.
                    Err(failure) if failure.status == 412 || failure.is("NoSuchUpload") => {
                        match call.whose(identity).await? {
                            Some(put) => Ok(put),
                            None if failure.status == 412 => Err(condition.gone(&call)),
                            None => Err(call
                                .error(Error::failed("the store has dropped the upload"))
                                .hint("does a lifecycle rule abort uploads that take longer than it allows?")),
                        }
                    }
                    Err(failure) if failure.is("NoSuchKey") => Err(condition.gone(&call)),
                    Err(failure) => Err(failure.error),
                }
            })
            .await?;
        self.completed = put == Put::Created;
        Ok(put)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if self.completed {
            return;
        }
        self.sending.abort_all();
        let (bucket, name, id) = (Arc::clone(&self.bucket), self.name.clone(), self.id.clone());
        let aborting = self.runtime.spawn(async move {
            if let Err(error) = abort(&bucket, &name, &id).await {
                tracing::warn!(%error, "parts of an upload remain until a lifecycle rule removes them");
            }
        });
        let mut all = ABORTING.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|task| !task.is_finished());
        all.push(aborting);
    }
}

/// The aborts of uploads that were dropped. Nobody holds the upload any more when its abort is under way, so that only
/// the end of the process can wait for it.
static ABORTING: Mutex<Vec<JoinHandle<()>>> = Mutex::new(Vec::new());

/// Waits for the aborts that are under way: a program that ends before them leaves parts behind that cost money.
pub async fn settle() {
    let under_way = std::mem::take(&mut *ABORTING.lock().unwrap_or_else(PoisonError::into_inner));
    for abort in under_way {
        // It has said itself what went wrong.
        _ = abort.await;
    }
}

async fn send_part(bucket: Arc<Bucket>, name: String, id: String, number: i32, part: Bytes) -> Result<CompletedPart> {
    let call = bucket.call("upload a part of", name.as_str());
    let sent = call.persist(part.len(), |_| async {
        let request = bucket
            .client()
            .upload_part()
            .bucket(&bucket.options.bucket)
            .key(bucket.object(&name))
            .upload_id(&id)
            .part_number(number)
            .checksum_algorithm(ChecksumAlgorithm::Crc32)
            .body(ByteStream::from(part.clone()));
        let sent = if bucket.unsigned_payload {
            request.customize().disable_payload_signing().send().await
        } else {
            request.send().await
        };
        sent.map_err(|e| call.failure(e).error)
    });
    let sent = sent.await?;
    Ok(CompletedPart::builder()
        .part_number(number)
        .set_e_tag(sent.e_tag)
        .set_checksum_crc32(sent.checksum_crc32)
        .build())
}

async fn abort(bucket: &Arc<Bucket>, name: &str, id: &str) -> Result<()> {
    let call = bucket.call("abort the upload of", name);
    let aborted = call.persist(0, |_| async {
        let request = bucket
            .client()
            .abort_multipart_upload()
            .bucket(&bucket.options.bucket)
            .key(bucket.object(name))
            .upload_id(id);
        match request.send().await.map_err(|e| call.failure(e)) {
            Ok(_) => Ok(()),
            Err(failure) if failure.is("NoSuchUpload") => Ok(()),
            Err(failure) => Err(failure.error),
        }
    });
    aborted.await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_grow_so_that_ten_thousand_hold_any_file() {
        assert_eq!(part_length(1), 8 << 20);
        assert_eq!(part_length(2500), 8 << 20);
        assert_eq!(part_length(2501), 16 << 20);
        assert_eq!(part_length(MOST_PARTS), 64 << 20);
        let whole: usize = (1..=MOST_PARTS).map(part_length).sum();
        assert!(whole > 290 << 30);
    }
}
