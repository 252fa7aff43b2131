//! From the configured address to an open store.

use std::sync::Arc;

use super::{RepositoryConfig, RepositoryUrl};
use crate::{
    clock::Random,
    error::{Error, Result},
    repository::{SEALING, is_lasting},
    store::{
        Store,
        check_then_put::CheckThenPut,
        dir::DirStore,
        retry::Patience,
        s3::{Encryption, Guards, Lock, NO_LOCK, S3Options, S3Store},
        sealed::{Keys, Sealed},
    },
};

/// The store that must be there already.
pub async fn open_store(repository: &RepositoryConfig, random: Arc<Random>) -> Result<Arc<dyn Store>> {
    let store: Arc<dyn Store> = match &repository.url {
        RepositoryUrl::S3 { bucket, prefix } if repository.check_then_put => {
            let options = S3Options { conditional_writes: false, ..s3(repository, bucket, prefix) };
            let store = S3Store::open(options, random).await?;
            Arc::new(CheckThenPut::new(Arc::new(store)))
        }
        _ => open_conditional_store(repository, random).await?,
    };
    Ok(sealed(store, repository))
}

/// That store, with what is configured of encryption above it. Without any, it still tells what is encrypted.
fn sealed(store: Arc<dyn Store>, repository: &RepositoryConfig) -> Arc<dyn Store> {
    let encryption = &repository.encryption;
    let keys = Keys::new(encryption.recipients.clone(), encryption.identity_file.clone());
    Arc::new(Sealed::new(store, SEALING, keys))
}

/// The same, asked for put-if-absent even where the configuration does without: to find out whether it honours that.
/// Nothing is encrypted or opened here.
pub async fn open_conditional_store(repository: &RepositoryConfig, random: Arc<Random>) -> Result<Arc<dyn Store>> {
    Ok(match &repository.url {
        RepositoryUrl::File(path) => Arc::new(DirStore::open(path.clone(), random)?),
        RepositoryUrl::S3 { bucket, prefix } => Arc::new(S3Store::open(s3(repository, bucket, prefix), random).await?),
    })
}

/// The store for a repository that is to be made: a missing directory is made, a missing bucket is not.
pub async fn create_store(repository: &RepositoryConfig, random: Arc<Random>) -> Result<Arc<dyn Store>> {
    match &repository.url {
        RepositoryUrl::File(path) => Ok(sealed(Arc::new(DirStore::create(path.clone(), random)?), repository)),
        RepositoryUrl::S3 { .. } => open_store(repository, random).await,
    }
}

/// What the bucket says of itself; `None` where there is no bucket.
pub async fn guards(repository: &RepositoryConfig, random: Arc<Random>) -> Result<Option<Guards>> {
    match &repository.url {
        RepositoryUrl::File(_) => Ok(None),
        RepositoryUrl::S3 { bucket, prefix } => {
            S3Store::open(s3(repository, bucket, prefix), random).await?.guards().await.map(Some)
        }
    }
}

/// Whether objects are to be locked. A bucket that does not, or does not tell, is refused then.
pub async fn prove_lock(repository: &RepositoryConfig, random: Arc<Random>) -> Result<bool> {
    if repository.lock.is_none() {
        return Ok(false);
    }
    let wished = format!("{} is to lock objects ([repository] lock)", repository.url);
    match guards(repository, random).await?.and_then(|guards| guards.lock) {
        Some(true) => Ok(true),
        Some(false) => Err(Error::refused(format!("{wished}, and its bucket has no object lock")).hint(NO_LOCK)),
        None => Err(Error::refused(format!("{wished}, and does not tell whether its bucket has object lock")).hint(
            "give the credentials the right s3:GetBucketObjectLockConfiguration; a store that does not know the question locks nothing",
        )),
    }
}

/// How the bucket of a repository is spoken to; `None` of one that is a directory.
#[must_use]
pub fn s3_options(repository: &RepositoryConfig) -> Option<S3Options> {
    match &repository.url {
        RepositoryUrl::S3 { bucket, prefix } => Some(s3(repository, bucket, prefix)),
        RepositoryUrl::File(_) => None,
    }
}

fn s3(repository: &RepositoryConfig, bucket: &str, prefix: &str) -> S3Options {
    let encryption = match repository.sse.as_deref() {
        None => Encryption::Bucket,
        Some("AES256") => Encryption::Aes256,
        Some(_) => Encryption::Kms(repository.sse_kms_key_id.clone()),
    };
    S3Options {
        region: repository.region.clone(),
        profile: repository.profile.clone(),
        lock: repository.lock.map(|time| Lock { time, compliance: repository.lock_compliance, of: is_lasting }),
        credentials_file: repository
            .credentials_file
            .clone()
            .or_else(|| repository.credentials_beside.clone().filter(|path| path.exists())),
        endpoint: repository.endpoint.clone(),
        path_style: repository.path_style,
        storage_class: repository.storage_class.clone(),
        encryption,
        ca_file: repository.ca_file.clone(),
        connect_timeout: repository.connect_timeout,
        patience: Patience {
            attempt: repository.request_timeout,
            deadline: repository.deadline,
            ..Patience::default()
        },
        ..S3Options::new(bucket, prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn what_is_configured_reaches_the_bucket() {
        let text = r#"
            [repository]
            url = "s3://b/p"
            endpoint = "http://localhost:1"
            path_style = true
            sse = "aws:kms"
            sse_kms_key_id = "k"
            deadline = "7s"
        "#;
        let config = Config::of(Some(("/w.toml".into(), text.into())), std::iter::empty(), &[]).unwrap();
        let options = s3(config.repository().unwrap(), "b", "p");
        assert_eq!((options.bucket.as_str(), options.prefix.as_str(), options.path_style), ("b", "p", true));
        assert_eq!(options.endpoint.as_deref(), Some("http://localhost:1"));
        assert_eq!(options.encryption, Encryption::Kms(Some("k".into())));
        assert_eq!(options.patience.deadline, std::time::Duration::from_secs(7));
    }
}
