//! What an answer of S3, or the lack of one, means for us: the codes as AWS documents them, turned into our few kinds.

use std::error::Error as StdError;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;

use super::{Call, client::CHAIN};
use crate::error::Error;

/// A request that failed: what it means, and what some callers look at before that.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: Error,
    /// The HTTP status, 0 without an answer.
    pub(super) status: u16,
    code: String,
    /// The newest version of the object says that it was deleted.
    pub(super) delete_marker: bool,
}

impl Failure {
    /// S3's code for the error.
    pub(super) fn is(&self, code: &str) -> bool {
        self.code == code
    }
}

impl Call {
    /// Judges a failed request. Where it was refused because credentials are too old, they are renewed, once.
    pub(super) fn failure<E>(&self, error: SdkError<E, HttpResponse>) -> Failure
    where
        E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
    {
        let SdkError::ServiceError(answer) = &error else {
            return Failure {
                error: self.error(no_answer(&self.bucket.endpoint, self.bucket.unfilled.as_deref(), &error)),
                status: 0,
                code: String::new(),
                delete_marker: false,
            };
        };
        let (raw, meta) = (answer.raw(), answer.err().meta());
        let header = |name: &str| raw.headers().get(name).map(str::to_owned);
        let refusal = Refusal {
            locking: self.bucket.options.lock.is_some() && (["put", "begin an upload of"].contains(&self.doing)),
            status: raw.status().as_u16(),
            code: meta.code().unwrap_or_default(),
            message: meta.message().unwrap_or_default(),
            region: header("x-amz-bucket-region"),
            bucket: &self.bucket.options.bucket,
            renewed: refused_as_old(meta.code().unwrap_or_default()) && self.renew_credentials_once(),
        };
        Failure {
            error: self.error(refusal.judge()),
            status: refusal.status,
            code: refusal.code.to_owned(),
            delete_marker: header("x-amz-delete-marker").is_some_and(|v| v == "true"),
        }
    }
}

/// An error that S3 answered.
struct Refusal<'a> {
    status: u16,
    /// Whether a retention may have been asked for.
    locking: bool,
    code: &'a str,
    message: &'a str,
    region: Option<String>,
    bucket: &'a str,
    renewed: bool,
}

impl Refusal<'_> {
    fn judge(&self) -> Error {
        let bucket = self.bucket;
        match (self.status, self.code) {
            (_, "NoSuchBucket") => Error::denied(format!("there is no bucket {bucket}"))
                .hint("create the bucket, or correct `url` under [repository]"),
            (_, code) if refused_as_old(code) && self.renewed => Error::unavailable(self.said("credentials are old")),
            (_, "RequestTimeTooSkewed") => Error::denied(self.said("the store's clock and ours differ"))
                .hint("set this host's clock, for instance by NTP"),
            (_, code) if refused_as_old(code) => Error::denied(self.said("the credentials have expired"))
                .hint("renew the session's keys, or the role that gives them out"),
            (_, "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "InvalidToken" | "InvalidSecurity") => {
                Error::denied(self.said(&format!("bucket {bucket} refused the credentials")))
                    .hint("check the access key and its secret in the environment or the AWS profile")
            }
            (_, "InvalidObjectState") => Error::denied(self.said("the object is in an archive class"))
                .hint("restore it from the archive class first"),
            (
                301 | 307 | 400,
                "PermanentRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException",
            )
            | (301, _) => {
                let region = self.region.as_deref().map_or("the bucket's own".to_owned(), |r| format!("\"{r}\""));
                Error::denied(self.said(&format!("bucket {bucket} is in another region")))
                    .hint(format!("set region = {region} under [repository]"))
            }
            (_, "BadDigest" | "XAmzContentSHA256Mismatch" | "IncompleteBody" | "RequestTimeout") => {
                Error::unavailable(self.said("it did not arrive as it was sent"))
                    .hint("something on the way to the store cuts or changes what is sent: a proxy, a bad line")
            }
            (409, "ConditionalRequestConflict" | "OperationAborted")
            | (408 | 425 | 429 | 500 | 502..=599, _)
            | (_, "SlowDown") => Error::unavailable(self.said("the store said not now"))
                .hint("it is overloaded or out of order: try again later"),
            (501, _) | (_, "NotImplemented") => Error::denied(self.said("the store cannot do this"))
                .hint("does it know conditional writes (If-None-Match)? see conditional_writes under [repository]"),
            (400, "InvalidRequest") if self.locking => {
                Error::denied(self.said(&format!("bucket {bucket} does not lock objects"))).hint(NO_LOCK)
            }
            (401 | 403, _) => Error::denied(self.said(&format!("bucket {bucket} refused access")))
                .hint("the credentials need the rights to get, put, list and delete objects in this bucket"),
            (404, "") => Error::denied(self.said("the endpoint does not answer as S3 does"))
                .hint("check `endpoint` and `path_style` under [repository]"),
            _ => Error::failed(self.said("the store refused the request")),
        }
    }

    /// `what` and what S3 said, cut to a line.
    fn said(&self, what: &str) -> String {
        let message: String = self.message.chars().filter(|c| !c.is_control()).take(300).collect();
        let colon = if message.is_empty() { "" } else { ": " };
        format!("{what} ({} {}{colon}{})", self.status, self.code, message.trim_end_matches('.'))
    }
}

/// These mean that the same request may pass with new credentials or a corrected time.
fn refused_as_old(code: &str) -> bool {
    matches!(
        code,
        "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired" | "RequestTimeTooSkewed" | "RequestExpired"
    )
}

/// The mend where a bucket has no object lock.
pub(crate) const NO_LOCK: &str = "make the bucket anew with object lock (AWS also turns it on for one that is there), or remove `lock` under [repository]";

/// The mend where nobody answered.
pub(super) const UNREACHED: &str =
    "is the store running, and can it be reached from this host? see `endpoint` under [repository]";

/// `unfilled` is where a key still has to be written.
fn no_answer<E: StdError + 'static>(
    endpoint: &str,
    unfilled: Option<&str>,
    error: &SdkError<E, HttpResponse>,
) -> Error {
    let chain: Vec<&dyn StdError> = std::iter::successors(error.source(), |e| (*e).source()).collect();
    let cause = chain.last().map_or_else(|| error.to_string(), ToString::to_string);
    if let Some(e) = chain.iter().find_map(|e| e.downcast_ref::<CredentialsError>()) {
        let text = format!("there are no credentials to use: {cause}");
        return match (unfilled, e) {
            (Some(place), _) => {
                Error::denied("the access keys were left out of the recovery kit").hint(format!("fill in {place}"))
            }
            (None, CredentialsError::ProviderTimedOut(_)) => Error::unavailable(text),
            (None, _) => Error::denied(text).hint(CHAIN),
        };
    }
    if cause.contains("invalid peer certificate") {
        return Error::denied(format!("{endpoint} is not trusted: {cause}"))
            .hint("name the certificate of its authority as `ca_file` under [repository]");
    }
    match error {
        SdkError::ConstructionFailure(_) => Error::invalid(format!("the request cannot be made: {cause}")),
        SdkError::ResponseError(_) => Error::unavailable(format!("{endpoint} answered with something odd: {cause}"))
            .hint("is it an S3 server that stands at `endpoint` under [repository]?"),
        _ => Error::unavailable(format!("no answer from {endpoint}: {cause}")).hint(UNREACHED),
    }
}
