//! What can go wrong between a client and S3, on demand: a layer round the server that answers in its place, or
//! spoils what it answers.

use std::{
    convert::Infallible,
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use s3s::service::S3Service;

/// What happens to a request that a [`Fault`] takes.
#[derive(Clone, Debug)]
pub enum What {
    /// This status and S3 error code are the answer, and nothing is done.
    Error(u16, &'static str),
    /// As for an object whose newest version is a delete marker.
    DeleteMarker,
    /// There is never an answer.
    Stall,
    /// The connection is closed before anything is done.
    Close,
    /// The request is carried out, and the connection is closed instead of an answer.
    LoseAnswer,
    /// Half the body of the answer arrives, and then the connection is closed.
    CutBody,
    /// Half the body of the answer arrives, and then nothing more.
    StallBody,
    /// One bit in the middle of the body of the answer is flipped.
    FlipBit,
    /// The connection breaks when half the body of the request has come; nothing is done.
    CutRequest,
    /// The request is carried out after this time.
    Delay(Duration),
}

/// A rule: which requests are taken, and what happens to them. The first rule that takes a request counts.
#[derive(Clone, Debug)]
pub struct Fault {
    what: What,
    operation: Option<&'static str>,
    key: String,
    skip: usize,
    times: usize,
    every: usize,
    met: usize,
}

impl Fault {
    /// This happens to every request.
    #[must_use]
    pub fn new(what: What) -> Self {
        Self { what, operation: None, key: String::new(), skip: 0, times: usize::MAX, every: 1, met: 0 }
    }

    /// Only to requests of this operation, in S3's words: `PutObject`, `CompleteMultipartUpload`, ...
    #[must_use]
    pub fn on(self, operation: &'static str) -> Self {
        Self { operation: Some(operation), ..self }
    }

    /// Only to requests whose path holds this text.
    #[must_use]
    pub fn key(self, part: impl Into<String>) -> Self {
        Self { key: part.into(), ..self }
    }

    /// Not to the first `n` of them.
    #[must_use]
    pub fn skip(self, n: usize) -> Self {
        Self { skip: n, ..self }
    }

    /// Only to each `n`th of them; the others go on to the next rule.
    #[must_use]
    pub fn every(self, n: usize) -> Self {
        Self { every: n, ..self }
    }

    /// To `n` of them, and then no more.
    #[must_use]
    pub fn times(self, n: usize) -> Self {
        Self { times: n, ..self }
    }
}

/// A request as the server saw it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The operation in S3's words.
    pub operation: &'static str,
    /// `/bucket/key`.
    pub path: String,
    /// What came after the question mark.
    pub query: String,
    /// Its headers.
    pub headers: HeaderMap,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.operation, self.path)
    }
}

pub(super) type Answer = Response<UnsyncBoxBody<Bytes, s3s::StdError>>;

/// The server behind its faults.
#[derive(Clone)]
pub(super) struct Faulty {
    pub(super) service: S3Service,
    pub(super) rules: Arc<Mutex<Vec<Fault>>>,
    pub(super) seen: Arc<Mutex<Vec<Seen>>>,
    /// How long every request takes to arrive.
    pub(super) latency: Arc<Mutex<Duration>>,
}

impl Faulty {
    /// Answers one request; an error closes the connection.
    pub(super) async fn answer(self, request: Request<Incoming>) -> Result<Answer, s3s::StdError> {
        let seen = Seen {
            operation: operation(&request),
            path: request.uri().path().to_owned(),
            query: request.uri().query().unwrap_or_default().to_owned(),
            headers: request.headers().clone(),
        };
        let what = self.take(&seen);
        lock(&self.seen).push(seen);
        let latency = *lock(&self.latency);
        if latency > Duration::ZERO {
            tokio::time::sleep(latency).await;
        }
        match what {
            Some(What::Error(status, code)) => refuse(request, status, code, HeaderMap::new()).await,
            Some(What::DeleteMarker) => {
                let marker = HeaderMap::from_iter([(
                    http::HeaderName::from_static("x-amz-delete-marker"),
                    http::HeaderValue::from_static("true"),
                )]);
                refuse(request, 404, "NoSuchKey", marker).await
            }
            Some(What::Stall) => std::future::pending().await,
            Some(What::Close) => Err("closed before the answer".into()),
            Some(What::CutRequest) => {
                let mut body = request.into_body();
                let half = body.size_hint().exact().unwrap_or(0) / 2;
                let mut come = 0;
                while come < half {
                    let Some(frame) = body.frame().await else { break };
                    come += frame?.data_ref().map_or(0, |data| data.len() as u64);
                }
                Err("closed in the middle of the request".into())
            }
            Some(What::Delay(time)) => {
                tokio::time::sleep(time).await;
                self.serve(request).await
            }
            Some(What::LoseAnswer) => {
                self.serve(request).await?.into_body().collect().await?;
                Err("the answer is lost".into())
            }
            Some(what @ (What::CutBody | What::StallBody)) => {
                let (head, bytes) = whole(self.serve(request).await?).await?;
                let stalls = matches!(what, What::StallBody);
                let half = Half { half: Some(bytes.slice(..bytes.len() / 2)), length: bytes.len() as u64, stalls };
                Ok(Response::from_parts(head, UnsyncBoxBody::new(half)))
            }
            Some(What::FlipBit) => {
                let (head, bytes) = whole(self.serve(request).await?).await?;
                let mut spoilt = bytes.to_vec();
                let middle = spoilt.len() / 2;
                if let Some(byte) = spoilt.get_mut(middle) {
                    *byte ^= 4;
                }
                Ok(Response::from_parts(head, full(spoilt.into())))
            }
            None => self.serve(request).await,
        }
    }

    fn take(&self, seen: &Seen) -> Option<What> {
        let mut rules = lock(&self.rules);
        let mut taking = rules.iter_mut().filter(|rule| {
            let takes = rule.operation.is_none_or(|o| o == seen.operation) && seen.path.contains(&rule.key);
            takes && rule.times > 0
        });
        let rule = taking.find_map(|rule| {
            rule.met += 1;
            rule.met.is_multiple_of(rule.every).then_some(rule)
        })?;
        if rule.skip > 0 {
            rule.skip -= 1;
            return None;
        }
        rule.times -= 1;
        Some(rule.what.clone())
    }

    async fn serve(&self, request: Request<Incoming>) -> Result<Answer, s3s::StdError> {
        let answer = self.service.call(request.map(s3s::Body::from)).await?;
        Ok(answer.map(|body| body.boxed_unsync()))
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The operation of a path-style request.
fn operation(request: &Request<Incoming>) -> &'static str {
    let query = request.uri().query().unwrap_or_default();
    let asks = |name: &str| query.split('&').any(|q| q.split('=').next() == Some(name));
    let bucket_only = request.uri().path().trim_matches('/').find('/').is_none();
    match request.method().as_str() {
        "PUT" if bucket_only => "CreateBucket",
        "PUT" if asks("uploadId") => "UploadPart",
        "PUT" => "PutObject",
        "POST" if asks("delete") => "DeleteObjects",
        "POST" if asks("uploads") => "CreateMultipartUpload",
        "POST" if asks("uploadId") => "CompleteMultipartUpload",
        "DELETE" if asks("uploadId") => "AbortMultipartUpload",
        "DELETE" => "DeleteObject",
        "GET" if bucket_only => "ListObjectsV2",
        "GET" => "GetObject",
        "HEAD" if bucket_only => "HeadBucket",
        "HEAD" => "HeadObject",
        _ => "other",
    }
}

async fn refuse(
    request: Request<Incoming>,
    status: u16,
    code: &str,
    headers: HeaderMap,
) -> Result<Answer, s3s::StdError> {
    let head = request.method() == http::Method::HEAD;
    // A client that is still sending would otherwise see a broken connection instead of the answer.
    request.into_body().collect().await?;
    let text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>{code}</Code><Message>as the test wants it</Message></Error>"
    );
    let mut answer = Response::new(full(if head { Bytes::new() } else { text.into() }));
    *answer.status_mut() = StatusCode::from_u16(status)?;
    answer.headers_mut().extend(headers);
    answer.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/xml"));
    Ok(answer)
}

async fn whole(answer: Answer) -> Result<(http::response::Parts, Bytes), s3s::StdError> {
    let (head, body) = answer.into_parts();
    Ok((head, body.collect().await?.to_bytes()))
}

fn full(bytes: Bytes) -> UnsyncBoxBody<Bytes, s3s::StdError> {
    Full::new(bytes).map_err(|never: Infallible| match never {}).boxed_unsync()
}

/// A body that promises `length` bytes, and breaks off or stalls after half of them.
struct Half {
    half: Option<Bytes>,
    length: u64,
    stalls: bool,
}

impl http_body::Body for Half {
    type Data = Bytes;
    type Error = s3s::StdError;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.half.take() {
            Some(half) => Poll::Ready(Some(Ok(Frame::data(half)))),
            None if self.stalls => Poll::Pending,
            None => Poll::Ready(Some(Err("the connection broke".into()))),
        }
    }

    fn size_hint(&self) -> http_body::SizeHint {
        http_body::SizeHint::with_exact(self.length)
    }
}
