//! From the configured address to an open store.

use std::sync::Arc;

use super::{RepositoryConfig, RepositoryUrl};
use crate::{
    clock::Random,
    error::{Error, Result},
    store::{Store, dir::DirStore},
};

/// The store that must be there already.
pub async fn open_store(repository: &RepositoryConfig, random: Arc<Random>) -> Result<Arc<dyn Store>> {
    match &repository.url {
        RepositoryUrl::File(path) => Ok(Arc::new(DirStore::open(path.clone(), random)?)),
        RepositoryUrl::S3 { .. } => s3(repository, random).await,
    }
}

/// The store for a repository that is to be made: a missing directory is made, a missing bucket is not.
pub async fn create_store(repository: &RepositoryConfig, random: Arc<Random>) -> Result<Arc<dyn Store>> {
    match &repository.url {
        RepositoryUrl::File(path) => Ok(Arc::new(DirStore::create(path.clone(), random)?)),
        RepositoryUrl::S3 { .. } => s3(repository, random).await,
    }
}

async fn s3(repository: &RepositoryConfig, _random: Arc<Random>) -> Result<Arc<dyn Store>> {
    Err(Error::internal(format!("{}: buckets are not wired up yet", repository.url)))
}
