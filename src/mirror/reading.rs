//! The configured repositories as one to read from: whichever has an object gives it.

use std::{sync::Arc, time::Duration};

use tokio::sync::OnceCell;

use crate::{
    clock::Random,
    config::{self, Config, RepositoryConfig},
    error::{Error, Result},
    repository::{self, RepositoryName},
    store::{
        Answer, Store,
        several::{Open, Several},
    },
};

/// How long one is waited for when there are others.
const PATIENCE: Duration = Duration::from_secs(10);

/// The store to read from: the only repository, the one of that name, or all of them as one. Of several none is opened
/// before it is asked.
pub async fn reading(config: &Config, only: Option<&RepositoryName>, random: &Arc<Random>) -> Result<Arc<dyn Store>> {
    let first = config.repository()?;
    if let Some(name) = only {
        return config::open_store(of_name(config, name)?, random.clone()).await;
    }
    if config.mirrors().is_empty() {
        return config::open_store(first, random.clone()).await;
    }
    let lineage: Arc<OnceCell<String>> = Arc::default();
    let all =
        [(RepositoryName::first(), first)].into_iter().chain(config.mirrors().iter().map(|(n, c)| (n.clone(), c)));
    let member = |(name, config): (RepositoryName, &RepositoryConfig)| {
        let patient = RepositoryConfig { deadline: config.deadline.min(PATIENCE), ..config.clone() };
        let (lineage, random) = (lineage.clone(), random.clone());
        let open: Open = Box::new(move || of_family(patient.clone(), lineage.clone(), random.clone()));
        (name.to_string(), config.url.to_string(), open)
    };
    let (to_write, random) = (first.clone(), random.clone());
    let to_write: Open = Box::new(move || {
        let (to_write, random) = (to_write.clone(), random.clone());
        Box::pin(async move { config::open_store(&to_write, random).await })
    });
    Ok(Arc::new(Several::new(all.map(member).collect(), to_write)))
}

/// Opens a repository that holds the same objects as the one that was opened first.
fn of_family(
    config: RepositoryConfig,
    lineage: Arc<OnceCell<String>>,
    random: Arc<Random>,
) -> Answer<'static, Arc<dyn Store>> {
    Box::pin(async move {
        let store = config::open_store(&config, random).await?;
        let document = repository::open(&*store).await?;
        let known = lineage.get_or_init(async || document.lineage().to_owned()).await;
        if known == document.lineage() {
            return Ok(store);
        }
        Err(Error::refused(format!("{} does not hold the objects of the other repositories", store.url())).hint(
            "read from one of them alone: --repository NAME; its configuration names another, or one was made anew",
        ))
    })
}

fn of_name<'a>(config: &'a Config, name: &RepositoryName) -> Result<&'a RepositoryConfig> {
    if name.as_str() == RepositoryName::FIRST {
        return config.repository();
    }
    config.mirrors().iter().find(|(known, _)| known == name).map(|(_, found)| found).ok_or_else(|| {
        let known = config.mirrors().iter().map(|(name, _)| name.to_string());
        let known: Vec<String> = [RepositoryName::FIRST.to_owned()].into_iter().chain(known).collect();
        Error::invalid(format!("no repository \"{name}\" is configured"))
            .hint(format!("configured are {}", known.join(", ")))
    })
}
