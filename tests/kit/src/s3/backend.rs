//! What the server keeps, and how S3 behaves over it: conditional writes, multipart uploads, ranges, listings and
//! checksums as AWS documents them. All in memory.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use s3s::{
    S3, S3Request, S3Response, S3Result, TrailingHeaders,
    checksum::ChecksumHasher,
    crypto::{Checksum as _, Crc32, Crc32c, Crc64Nvme, Sha1, Sha256},
    dto::*,
    s3_error,
};

use super::kept::Kept;

/// How the server treats `If-None-Match` on writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Conditions {
    /// As S3 does: one writer wins.
    #[default]
    Honoured,
    /// The header is silently passed over, as some gateways and older servers do.
    Ignored,
    /// The header is looked at, but not in one step with the write: two writers at once both win.
    Racy,
}

/// An object, its length cheap to share.
#[derive(Clone, Debug)]
pub struct Object {
    /// Its bytes.
    pub bytes: Bytes,
    /// User metadata, the names in lower case.
    pub metadata: HashMap<String, String>,
    /// The storage class it was written with.
    pub storage_class: Option<String>,
    /// The server-side encryption it was written with, and its key.
    pub encryption: (Option<String>, Option<String>),
    pub(super) etag: String,
    pub(super) checksum: Checksum,
}

impl Object {
    /// Other bytes, of which no checksum is known.
    pub(super) fn set(&mut self, bytes: Vec<u8>) {
        (self.bytes, self.checksum) = (bytes.into(), Checksum::default());
    }
}

#[derive(Debug)]
struct Multipart {
    key: String,
    object: Object,
    parts: BTreeMap<i32, Object>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) buckets: BTreeMap<String, BTreeMap<String, Object>>,
    uploads: BTreeMap<String, Multipart>,
    pub(super) conditions: Conditions,
    pub(super) page: Option<usize>,
    /// Objects whose keys hold one of these are not deleted.
    pub(super) locked: Vec<String>,
    pub(super) written: u64,
    pub(super) kept: Option<Kept>,
}

impl State {
    pub(super) fn open_uploads(&self) -> usize {
        self.uploads.len()
    }

    fn bucket(&mut self, name: &str) -> S3Result<&mut BTreeMap<String, Object>> {
        self.buckets.get_mut(name).ok_or_else(|| s3_error!(NoSuchBucket, "The specified bucket does not exist"))
    }

    fn delete(&mut self, bucket: &str, key: &str) -> S3Result<()> {
        if self.locked.iter().any(|part| key.contains(part)) {
            return Err(s3_error!(AccessDenied, "Access Denied because object protected by object lock."));
        }
        let removed = self.bucket(bucket)?.remove(key);
        if let (Some(kept), Some(object)) = (&self.kept, removed) {
            kept.forget(&object).map_err(|error| s3_error!(InternalError, "{error}"))?;
        }
        Ok(())
    }

    fn object(&mut self, bucket: &str, key: &str) -> S3Result<Object> {
        let object = self.bucket(bucket)?.get(key).cloned();
        object.ok_or_else(|| s3_error!(NoSuchKey, "The specified key does not exist."))
    }

    fn next_name(&mut self) -> String {
        self.written += 1;
        format!("{:032x}", self.written)
    }

    fn check(&mut self, bucket: &str, key: &str, condition: &Condition) -> S3Result<()> {
        let there = self.bucket(bucket)?.get(key).cloned();
        if self.conditions == Conditions::Ignored {
            return Ok(());
        }
        match (condition, there) {
            (Condition { absent: Some(_), .. }, Some(_)) => {
                Err(s3_error!(PreconditionFailed, "At least one of the pre-conditions you specified did not hold"))
            }
            (Condition { unchanged: Some(_), .. }, None) => {
                Err(s3_error!(NoSuchKey, "The specified key does not exist."))
            }
            (Condition { unchanged, .. }, Some(object)) => must_match(unchanged.as_ref(), &object),
            _ => Ok(()),
        }
    }
}

/// What a write says of the object that is there.
#[derive(Clone, Debug)]
struct Condition {
    absent: Option<IfNoneMatch>,
    unchanged: Option<IfMatch>,
}

const ANYTHING: Condition = Condition { absent: None, unchanged: None };

/// The S3 service over a shared [`State`].
#[derive(Clone, Debug)]
pub(super) struct Backend(pub(super) Arc<Mutex<State>>);

impl Backend {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the condition and then writes: in one step, or not, as [`Conditions`] says.
    async fn write(&self, bucket: &str, key: &str, condition: Condition, object: Object) -> S3Result<()> {
        let racy = self.state().conditions == Conditions::Racy;
        if racy {
            self.state().check(bucket, key, &condition)?;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let mut state = self.state();
        state.check(bucket, key, if racy { &ANYTHING } else { &condition })?;
        if let Some(kept) = &state.kept {
            kept.keep(bucket, key, &object).map_err(|error| s3_error!(InternalError, "{error}"))?;
        }
        state.bucket(bucket)?.insert(key.to_owned(), object);
        Ok(())
    }
}

#[async_trait::async_trait]
impl S3 for Backend {
    async fn put_object(&self, req: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let PutObjectInput { bucket, key, body, if_none_match, if_match, metadata, storage_class, .. } = req.input;
        self.state().bucket(&bucket)?;
        let bytes = collect(body).await?;
        let sent = Checksum {
            checksum_crc32: req.input.checksum_crc32,
            checksum_crc32c: req.input.checksum_crc32c,
            checksum_crc64nvme: req.input.checksum_crc64nvme,
            checksum_sha1: req.input.checksum_sha1,
            checksum_sha256: req.input.checksum_sha256,
            checksum_type: None,
        };
        let checksum = verify(&bytes, with_trailers(sent, req.trailing_headers.as_ref()))?;
        let object = Object {
            bytes,
            metadata: metadata.unwrap_or_default(),
            storage_class: storage_class.map(|s| s.as_str().to_owned()),
            encryption: (req.input.server_side_encryption.map(|s| s.as_str().to_owned()), req.input.ssekms_key_id),
            etag: self.state().next_name(),
            checksum: checksum.clone(),
        };
        let e_tag = Some(ETag::Strong(object.etag.clone()));
        self.write(&bucket, &key, Condition { absent: if_none_match, unchanged: if_match }, object).await?;
        let (checksum_crc32, checksum_crc32c) = (checksum.checksum_crc32, checksum.checksum_crc32c);
        Ok(S3Response::new(PutObjectOutput { e_tag, checksum_crc32, checksum_crc32c, ..Default::default() }))
    }

    async fn get_object(&self, req: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let object = self.state().object(&req.input.bucket, &req.input.key)?;
        must_match(req.input.if_match.as_ref(), &object)?;
        let length = object.bytes.len() as u64;
        let range = match req.input.range {
            Some(range) => Some(range.check(length).map_err(|_| s3_error!(InvalidRange))?),
            None => None,
        };
        let (body, content_range) = match range {
            None => (object.bytes.clone(), None),
            Some(r) => (slice(&object.bytes, &r), Some(format!("bytes {}-{}/{length}", r.start, r.end - 1))),
        };
        let asked = req.input.checksum_mode.is_some() && content_range.is_none();
        let checksum = if asked { object.checksum.clone() } else { Checksum::default() };
        Ok(S3Response::new(GetObjectOutput {
            content_length: i64::try_from(body.len()).ok(),
            body: Some(s3s::Body::from(body).into()),
            content_range,
            e_tag: Some(ETag::Strong(object.etag)),
            metadata: Some(object.metadata),
            checksum_crc32: checksum.checksum_crc32,
            checksum_crc32c: checksum.checksum_crc32c,
            checksum_crc64nvme: checksum.checksum_crc64nvme,
            checksum_sha1: checksum.checksum_sha1,
            checksum_sha256: checksum.checksum_sha256,
            ..Default::default()
        }))
    }

    async fn head_object(&self, req: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        let object = self.state().object(&req.input.bucket, &req.input.key)?;
        Ok(S3Response::new(HeadObjectOutput {
            content_length: i64::try_from(object.bytes.len()).ok(),
            e_tag: Some(ETag::Strong(object.etag)),
            metadata: Some(object.metadata),
            ..Default::default()
        }))
    }

    async fn delete_object(&self, req: S3Request<DeleteObjectInput>) -> S3Result<S3Response<DeleteObjectOutput>> {
        self.state().delete(&req.input.bucket, &req.input.key)?;
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn delete_objects(&self, req: S3Request<DeleteObjectsInput>) -> S3Result<S3Response<DeleteObjectsOutput>> {
        let mut state = self.state();
        let mut errors = Vec::new();
        for object in req.input.delete.objects {
            if let Err(error) = state.delete(&req.input.bucket, &object.key) {
                errors.push(Error {
                    code: Some(error.code().as_str().to_owned()),
                    key: Some(object.key),
                    message: error.message().map(str::to_owned),
                    ..Error::default()
                });
            }
        }
        Ok(S3Response::new(DeleteObjectsOutput { errors: Some(errors), ..DeleteObjectsOutput::default() }))
    }

    async fn head_bucket(&self, req: S3Request<HeadBucketInput>) -> S3Result<S3Response<HeadBucketOutput>> {
        self.state().bucket(&req.input.bucket)?;
        Ok(S3Response::new(HeadBucketOutput::default()))
    }

    async fn create_bucket(&self, req: S3Request<CreateBucketInput>) -> S3Result<S3Response<CreateBucketOutput>> {
        self.state().buckets.entry(req.input.bucket).or_default();
        Ok(S3Response::new(CreateBucketOutput::default()))
    }

    async fn list_objects_v2(&self, req: S3Request<ListObjectsV2Input>) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = req.input;
        let prefix = input.prefix.clone().unwrap_or_default();
        let mut state = self.state();
        let page = usize::try_from(input.max_keys.unwrap_or(1000)).unwrap_or(0).min(state.page.unwrap_or(1000));
        let start = input.continuation_token.clone().or_else(|| input.start_after.clone()).unwrap_or_default();
        let delimiter = input.delimiter.clone().filter(|d| !d.is_empty());
        let (mut contents, mut prefixes, mut last, mut truncated) = (Vec::new(), Vec::new(), String::new(), false);
        for (key, object) in state.bucket(&input.bucket)?.iter().filter(|(key, _)| key.starts_with(&prefix)) {
            let group = delimiter
                .as_deref()
                .and_then(|d| key[prefix.len()..].find(d).map(|at| key[..prefix.len() + at + d.len()].to_owned()));
            let name = group.as_ref().unwrap_or(key);
            if *name <= start || *name == last {
                continue;
            }
            if contents.len() + prefixes.len() == page {
                truncated = true;
                break;
            }
            last.clone_from(name);
            match group {
                Some(prefix) => prefixes.push(CommonPrefix { prefix: Some(prefix) }),
                None => contents.push(s3s::dto::Object {
                    key: Some(key.clone()),
                    size: i64::try_from(object.bytes.len()).ok(),
                    e_tag: Some(ETag::Strong(object.etag.clone())),
                    ..Default::default()
                }),
            }
        }
        Ok(S3Response::new(ListObjectsV2Output {
            name: Some(input.bucket),
            prefix: Some(prefix),
            max_keys: i32::try_from(page).ok(),
            key_count: i32::try_from(contents.len() + prefixes.len()).ok(),
            is_truncated: Some(truncated),
            next_continuation_token: truncated.then_some(last),
            contents: Some(contents),
            common_prefixes: Some(prefixes),
            delimiter,
            ..Default::default()
        }))
    }

    async fn create_multipart_upload(
        &self,
        req: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let CreateMultipartUploadInput { bucket, key, metadata, storage_class, .. } = req.input;
        let mut state = self.state();
        state.bucket(&bucket)?;
        let upload_id = state.next_name();
        let object = Object {
            bytes: Bytes::new(),
            metadata: metadata.unwrap_or_default(),
            storage_class: storage_class.map(|s| s.as_str().to_owned()),
            encryption: (req.input.server_side_encryption.map(|s| s.as_str().to_owned()), req.input.ssekms_key_id),
            etag: String::new(),
            checksum: Checksum::default(),
        };
        state.uploads.insert(upload_id.clone(), Multipart { key: key.clone(), object, parts: BTreeMap::new() });
        let (bucket, key, upload_id) = (Some(bucket), Some(key), Some(upload_id));
        Ok(S3Response::new(CreateMultipartUploadOutput { bucket, key, upload_id, ..Default::default() }))
    }

    async fn upload_part(&self, req: S3Request<UploadPartInput>) -> S3Result<S3Response<UploadPartOutput>> {
        let bytes = collect(req.input.body).await?;
        let sent = Checksum {
            checksum_crc32: req.input.checksum_crc32,
            checksum_crc32c: req.input.checksum_crc32c,
            checksum_crc64nvme: req.input.checksum_crc64nvme,
            checksum_sha1: req.input.checksum_sha1,
            checksum_sha256: req.input.checksum_sha256,
            checksum_type: None,
        };
        let checksum = verify(&bytes, with_trailers(sent, req.trailing_headers.as_ref()))?;
        let mut state = self.state();
        let etag = state.next_name();
        let upload = state.uploads.get_mut(&req.input.upload_id).filter(|u| u.key == req.input.key);
        let upload = upload.ok_or_else(|| s3_error!(NoSuchUpload))?;
        let part = Object { bytes, etag: etag.clone(), checksum: checksum.clone(), ..upload.object.clone() };
        upload.parts.insert(req.input.part_number, part);
        Ok(S3Response::new(UploadPartOutput {
            e_tag: Some(ETag::Strong(etag)),
            checksum_crc32: checksum.checksum_crc32,
            checksum_crc32c: checksum.checksum_crc32c,
            ..Default::default()
        }))
    }

    async fn complete_multipart_upload(
        &self,
        req: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let CompleteMultipartUploadInput { bucket, key, upload_id, if_none_match, if_match, multipart_upload, .. } =
            req.input;
        let object = {
            let state = self.state();
            let upload = state.uploads.get(&upload_id).filter(|u| u.key == key);
            let upload = upload.ok_or_else(|| s3_error!(NoSuchUpload, "The specified upload does not exist."))?;
            assemble(upload, multipart_upload.and_then(|m| m.parts).unwrap_or_default())?
        };
        let e_tag = Some(ETag::Strong(object.etag.clone()));
        self.write(&bucket, &key, Condition { absent: if_none_match, unchanged: if_match }, object).await?;
        self.state().uploads.remove(&upload_id);
        let (bucket, key) = (Some(bucket), Some(key));
        Ok(S3Response::new(CompleteMultipartUploadOutput { bucket, key, e_tag, ..Default::default() }))
    }

    async fn abort_multipart_upload(
        &self,
        req: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        let removed = self.state().uploads.remove(&req.input.upload_id);
        removed.ok_or_else(|| s3_error!(NoSuchUpload))?;
        Ok(S3Response::new(AbortMultipartUploadOutput::default()))
    }
}

/// The object that the listed parts make.
fn assemble(upload: &Multipart, listed: CompletedPartList) -> S3Result<Object> {
    if listed.is_empty() {
        return Err(s3_error!(MalformedXML));
    }
    let (count, mut whole, mut before) = (listed.len(), BytesMut::new(), 0);
    for (i, part) in listed.into_iter().enumerate() {
        let number = part.part_number.unwrap_or_default();
        if number <= before {
            return Err(s3_error!(InvalidPartOrder));
        }
        before = number;
        let stored = upload.parts.get(&number).ok_or_else(|| s3_error!(InvalidPart))?;
        let tag = part.e_tag.as_ref().map(ETag::value);
        if tag != Some(stored.etag.as_str()) || differs(part.checksum_crc32, &stored.checksum.checksum_crc32) {
            return Err(s3_error!(InvalidPart));
        }
        if i + 1 < count && stored.bytes.len() < 5 << 20 {
            return Err(s3_error!(EntityTooSmall));
        }
        whole.extend_from_slice(&stored.bytes);
    }
    let etag = upload.parts.values().map(|p| p.etag.as_str()).next_back().unwrap_or_default();
    Ok(Object { bytes: whole.freeze(), etag: format!("{etag}-{count}"), ..upload.object.clone() })
}

fn differs(sent: Option<String>, stored: &Option<String>) -> bool {
    sent.is_some() && sent != *stored
}

fn must_match(condition: Option<&IfMatch>, object: &Object) -> S3Result<()> {
    match condition.and_then(ETagCondition::as_etag) {
        Some(tag) if tag.value() != object.etag => Err(s3_error!(PreconditionFailed)),
        _ => Ok(()),
    }
}

fn slice(bytes: &Bytes, range: &std::ops::Range<u64>) -> Bytes {
    let at = |n: u64| usize::try_from(n).unwrap_or(usize::MAX).min(bytes.len());
    bytes.slice(at(range.start)..at(range.end))
}

async fn collect(body: Option<StreamingBlob>) -> S3Result<Bytes> {
    let Some(mut body) = body else { return Ok(Bytes::new()) };
    let mut whole = BytesMut::new();
    while let Some(chunk) = body.next().await {
        whole.extend_from_slice(&chunk.map_err(|_| s3_error!(IncompleteBody))?);
    }
    Ok(whole.freeze())
}

fn with_trailers(mut sent: Checksum, trailers: Option<&TrailingHeaders>) -> Checksum {
    let Some(trailers) = trailers.and_then(TrailingHeaders::take) else { return sent };
    let named = |name: &str| Some(trailers.get(format!("x-amz-checksum-{name}"))?.to_str().ok()?.to_owned());
    sent.checksum_crc32 = sent.checksum_crc32.or_else(|| named("crc32"));
    sent.checksum_crc32c = sent.checksum_crc32c.or_else(|| named("crc32c"));
    sent.checksum_crc64nvme = sent.checksum_crc64nvme.or_else(|| named("crc64nvme"));
    sent.checksum_sha1 = sent.checksum_sha1.or_else(|| named("sha1"));
    sent.checksum_sha256 = sent.checksum_sha256.or_else(|| named("sha256"));
    sent
}

fn verify(bytes: &[u8], sent: Checksum) -> S3Result<Checksum> {
    let mut hasher = ChecksumHasher {
        crc32: sent.checksum_crc32.as_ref().map(|_| Crc32::new()),
        crc32c: sent.checksum_crc32c.as_ref().map(|_| Crc32c::new()),
        crc64nvme: sent.checksum_crc64nvme.as_ref().map(|_| Crc64Nvme::new()),
        sha1: sent.checksum_sha1.as_ref().map(|_| Sha1::new()),
        sha256: sent.checksum_sha256.as_ref().map(|_| Sha256::new()),
    };
    hasher.update(bytes);
    let computed = hasher.finalize();
    if computed == sent { Ok(computed) } else { Err(s3_error!(BadDigest, "The checksum did not match the content")) }
}
