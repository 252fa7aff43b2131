//! What a bucket itself does so that nobody can undo what was written: versions, object lock; and its clock.

use std::sync::{Arc, Mutex, PoisonError};

use aws_sdk_s3::{
    config::{ConfigBag, Intercept, RuntimeComponents, interceptors::BeforeDeserializationInterceptorContextRef},
    error::BoxError,
    types::{BucketVersioningStatus, ObjectLockEnabled},
};
use chrono::{DateTime, Utc};

use super::S3Store;
use crate::error::{Error, Result};

/// What a bucket says of itself. What it does not tell, or not to these credentials, is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guards {
    /// Whether what is deleted or written over stays as an older version.
    pub versioning: Option<bool>,
    /// Whether objects can be locked, so that nobody can delete them before their time.
    pub lock: Option<bool>,
    /// The time by its clock, to the second, as it answered.
    pub time: Option<DateTime<Utc>>,
}

impl S3Store {
    /// Asks the bucket how it is set up (`s3:GetBucketVersioning`, `s3:GetBucketObjectLockConfiguration`).
    pub async fn guards(&self) -> Result<Guards> {
        let clock = Dates::default();
        let (bucket, name) = (&self.bucket, &self.bucket.options.bucket);
        let call = bucket.call("ask about", name.as_str());
        let versioning = call
            .persist(0, |_| async {
                let asked = bucket.client().get_bucket_versioning().bucket(name);
                match asked.customize().interceptor(clock.clone()).send().await {
                    Ok(said) => Ok(Some(said.status() == Some(&BucketVersioningStatus::Enabled))),
                    Err(error) => not_told(call.failure(error).error),
                }
            })
            .await?;
        let lock = call
            .persist(0, |_| async {
                match bucket.client().get_object_lock_configuration().bucket(name).send().await {
                    Ok(said) => {
                        let enabled = said.object_lock_configuration().and_then(|lock| lock.object_lock_enabled());
                        Ok(Some(enabled == Some(&ObjectLockEnabled::Enabled)))
                    }
                    Err(error) => match call.failure(error) {
                        none if none.is("ObjectLockConfigurationNotFoundError") => Ok(Some(false)),
                        other => not_told(other.error),
                    },
                }
            })
            .await?;
        Ok(Guards { versioning, lock, time: clock.last() })
    }
}

/// Many servers do not know these questions, and least rights do not allow them: that is no failure.
fn not_told<T>(error: Error) -> Result<Option<T>> {
    match error.kind() {
        crate::error::Kind::Unavailable => Err(error),
        _ => Ok(None),
    }
}

/// The `Date` of the last answer.
#[derive(Clone, Debug, Default)]
struct Dates(Arc<Mutex<Option<DateTime<Utc>>>>);

impl Dates {
    fn last(&self) -> Option<DateTime<Utc>> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Intercept for Dates {
    fn name(&self) -> &'static str {
        "the date of the answer"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> std::result::Result<(), BoxError> {
        let date = context.response().headers().get("date");
        let date = date.and_then(|date| DateTime::parse_from_rfc2822(date).ok()).map(|date| date.to_utc());
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = date;
        Ok(())
    }
}
