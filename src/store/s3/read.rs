//! Reading: absence that is proven, ranges, and bodies that survive a broken connection.

use std::{ops::Range, sync::Arc};

use aws_sdk_s3::primitives::ByteStream;
use bytes::Bytes;
use tokio::time::{Instant, sleep, timeout};

use super::{Bucket, Call, errors::UNREACHED};
use crate::{
    error::{Error, Result},
    store::{Answer, Body, Download, Tag},
};

/// More than the length of any object: the greatest number that every store reads in a range.
const LONGEST: u64 = i64::MAX as u64;

/// Reads an object, or a range of it.
pub(super) async fn get(bucket: &Arc<Bucket>, name: &str, range: Option<Range<u64>>) -> Result<Download> {
    let call = bucket.call("get", name);
    // An empty range is asked for as one byte: that the object is there, and its length, are wanted all the same.
    // No object is as long as numbers in a header may be.
    let asked = range.clone().map(|r| {
        let start = r.start.min(LONGEST - 1);
        start..r.end.clamp(start + 1, LONGEST)
    });
    let answer = call.persist(0, |_| call.ask(asked.clone(), None)).await?;
    let range = range.map_or(0..answer.length, |r| r.start.min(answer.length)..r.end.min(answer.length));
    let stream = (range.start < range.end).then_some(answer.stream).flatten();
    Ok(Download {
        length: answer.length,
        listed: answer.length,
        body: Box::new(S3Body {
            call,
            etag: answer.etag,
            at: range.start,
            end: range.end.max(range.start),
            stream,
            progress: Instant::now(),
            barren: 0,
        }),
    })
}

/// The ETag of an object. By GET: HEAD cannot tell a missing object from a missing bucket.
pub(super) async fn tag(bucket: &Arc<Bucket>, name: &str) -> Result<Tag> {
    let call = bucket.call("look at", name);
    let found = call.persist(0, |_| call.ask(Some(0..1), None)).await?;
    found.etag.map(Tag).ok_or_else(|| call.error(Error::failed("the store does not say which version that is")))
}

/// What S3 gives back of an object.
struct Found {
    /// The length of the whole object.
    length: u64,
    etag: Option<String>,
    /// The bytes; none when the range lies past the end.
    stream: Option<ByteStream>,
}

impl Call {
    /// One request for an object, or a range of it, if it still has that tag.
    async fn ask(&self, range: Option<Range<u64>>, etag: Option<&str>) -> Result<Found> {
        let bucket = &self.bucket;
        let header = range.as_ref().map(|r| format!("bytes={}-{}", r.start, r.end.saturating_sub(1)));
        let request = bucket
            .client()
            .get_object()
            .bucket(&bucket.options.bucket)
            .key(bucket.object(&self.name))
            .set_range(header)
            .set_if_match(etag.map(str::to_owned));
        match request.send().await.map_err(|e| self.failure(e)) {
            Ok(object) => {
                let whole = match object.content_range() {
                    Some(range) => range.rsplit('/').next().and_then(|n| n.parse().ok()),
                    None if range.is_some() => None,
                    None => object.content_length().and_then(|n| u64::try_from(n).ok()),
                };
                let odd = || self.error(Error::failed("the store does not say how long the object is"));
                Ok(Found { length: whole.ok_or_else(odd)?, etag: object.e_tag, stream: Some(object.body) })
            }
            Err(failure) if failure.delete_marker => Err(self
                .error(Error::damaged("the newest version of the object says that it was deleted"))
                .hint("the bucket keeps versions: bring the one before back, or remove them all")),
            Err(failure) if failure.is("NoSuchKey") => {
                Err(Error::not_found(format!("{} is not in {}", self.name, bucket.url())))
            }
            // The object is there, and the range is past its end.
            Err(failure) if failure.status == 416 => self.length_only().await,
            Err(failure) if failure.status == 412 => Err(self.error(Error::damaged("it changed while it was read"))),
            Err(failure) => Err(failure.error),
        }
    }

    /// The length of an object that is known to be there.
    async fn length_only(&self) -> Result<Found> {
        let bucket = &self.bucket;
        let request = bucket.client().head_object().bucket(&bucket.options.bucket).key(bucket.object(&self.name));
        match request.send().await.map_err(|e| self.failure(e)) {
            Ok(object) => {
                let length = object.content_length().and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
                Ok(Found { length, etag: object.e_tag, stream: None })
            }
            Err(failure) if failure.status == 404 => {
                Err(self.error(Error::unavailable("the object was there, and is gone")))
            }
            Err(failure) => Err(failure.error),
        }
    }
}

/// The bytes `at..end` of an object that are still to come.
struct S3Body {
    call: Call,
    etag: Option<String>,
    at: u64,
    end: u64,
    /// Absent when the connection broke, and is to be made anew.
    stream: Option<ByteStream>,
    progress: Instant,
    /// How many connections in a row gave nothing.
    barren: u32,
}

impl S3Body {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            if self.at == self.end {
                return self.check_end().await;
            }
            let Some(stream) = &mut self.stream else {
                let again = self.at..self.end;
                let etag = self.etag.as_deref();
                self.stream = self.call.persist(0, |_| self.call.ask(Some(again.clone()), etag)).await?.stream;
                continue;
            };
            let patience = self.call.bucket.options.patience;
            let cause = match timeout(patience.attempt, stream.next()).await {
                Ok(Some(Ok(bytes))) if bytes.is_empty() => continue,
                Ok(Some(Ok(bytes))) => {
                    self.at += bytes.len() as u64;
                    if self.at > self.end {
                        return Err(self.call.error(Error::damaged("more bytes came than were asked for")));
                    }
                    (self.progress, self.barren) = (Instant::now(), 0);
                    return Ok(Some(bytes));
                }
                Ok(Some(Err(error))) => self.broken(error)?,
                Ok(None) => "it ended early".to_owned(),
                Err(_) => "nothing more came".to_owned(),
            };
            tracing::debug!(name = self.call.name, at = self.at, cause, "the connection broke, will resume");
            self.stream = None;
            let pause = patience.pause(self.barren, self.call.bucket.random.fraction());
            if self.progress.elapsed() + pause >= patience.deadline {
                let endpoint = &self.call.bucket.endpoint;
                return Err(self
                    .call
                    .error(Error::unavailable(format!("the answer of {endpoint} broke off: {cause}")))
                    .hint(UNREACHED));
            }
            self.barren += 1;
            sleep(pause).await;
        }
    }

    /// What broke a stream, unless it is a wrong checksum, which no new connection mends.
    fn broken(&self, error: aws_sdk_s3::primitives::ByteStreamError) -> Result<String> {
        let error: &(dyn std::error::Error + 'static) = &error;
        let causes: Vec<String> = std::iter::successors(Some(error), |e| e.source()).map(ToString::to_string).collect();
        if causes.iter().any(|cause| cause.contains("checksum")) {
            return Err(self.call.error(Error::damaged("the content does not match the checksum it was stored with")));
        }
        Ok(causes.last().cloned().unwrap_or_default())
    }

    /// All bytes are here. The checksum of a whole object is only compared when its stream has ended.
    async fn check_end(&mut self) -> Result<Option<Bytes>> {
        let Some(mut stream) = self.stream.take() else { return Ok(None) };
        match timeout(self.call.bucket.options.patience.attempt, stream.next()).await {
            Ok(Some(Ok(bytes))) if !bytes.is_empty() => {
                Err(self.call.error(Error::damaged("more bytes came than were asked for")))
            }
            Ok(Some(Err(error))) => self.broken(error).map(|_| None),
            _ => Ok(None),
        }
    }
}

impl Body for S3Body {
    fn chunk(&mut self) -> Answer<'_, Option<Bytes>> {
        Box::pin(self.next())
    }
}
