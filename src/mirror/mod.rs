//! Other repositories that hold the same objects as the first, under the same keys, byte for byte.
//!
//! Objects are never changed and their names mean one thing for ever, so a copy needs no bookkeeping to be right: what
//! the first has and the mirror has not is copied, in an order in which nothing exists before what it needs. Copies go
//! one way only, from the first to the mirrors: what was removed from the first does not come back.

mod behind;
mod catch_up;
mod compare;
mod copy;
mod in_step;
mod patience;
mod reading;
mod round;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::Mutex;

pub use self::{
    behind::{Behind, State, behind},
    catch_up::{CatchUp, CaughtUp, Extent, Problem},
    in_step::InStep,
    patience::Patience,
    reading::reading,
    round::Round,
};
use crate::{
    clock::{Clock, Random},
    config::{self, Config, RepositoryConfig},
    error::{Error, Result, Told},
    repository::{self, RepositoryDocument, RepositoryName, System, SystemFolder},
    store::{Key, Listed, Put, Store},
};

/// How long it is believed that a place is the mirror that it was.
const TRUSTED: Duration = Duration::from_secs(60);
/// How long one that did not answer is not asked again: many wait for the same answer.
const AWAY: Duration = Duration::from_secs(5);

/// A repository that is configured besides the first. Nothing is asked of it before it is opened.
#[derive(Debug)]
pub struct Mirror {
    /// What the configuration calls it.
    pub name: RepositoryName,
    config: RepositoryConfig,
    random: Arc<Random>,
    contact: Mutex<Contact>,
}

/// What is known of it.
#[derive(Debug, Default)]
enum Contact {
    #[default]
    Unknown,
    Opened(Instant, Arc<Opened>),
    Away(Instant, Told),
}

/// A mirror that answers, and is one of the first.
#[derive(Debug)]
pub struct Opened {
    /// Its objects.
    pub store: Arc<dyn Store>,
    /// Its `walden.json`.
    pub document: RepositoryDocument,
    /// The systems that it knows for sure.
    known: Mutex<Vec<SystemFolder>>,
}

/// Those that are configured.
#[must_use]
pub fn configured(config: &Config, random: &Arc<Random>) -> Vec<Arc<Mirror>> {
    // Whoever waits for it within [archive] timeout is to hear which one did not answer.
    let most = config.archive.timeout / 2;
    let mirror = |(name, settings): &(RepositoryName, RepositoryConfig)| {
        Arc::new(Mirror {
            name: name.clone(),
            config: RepositoryConfig { deadline: settings.deadline.min(most), ..settings.clone() },
            random: random.clone(),
            contact: Mutex::default(),
        })
    };
    config.mirrors().iter().map(mirror).collect()
}

impl Mirror {
    /// Its address, for people.
    #[must_use]
    pub fn url(&self) -> String {
        self.config.url.to_string()
    }

    /// Its configuration.
    #[must_use]
    pub fn config(&self) -> &RepositoryConfig {
        &self.config
    }

    /// Opens it, and proves that it is a mirror of that repository. Errors name it.
    pub async fn open(&self, first: &RepositoryDocument) -> Result<Arc<Opened>> {
        let mut state = self.contact.lock().await;
        match &*state {
            Contact::Opened(at, opened) if at.elapsed() < TRUSTED => return Ok(opened.clone()),
            Contact::Away(at, told) if at.elapsed() < AWAY => return Err(told.again()),
            _ => {}
        }
        let open = async {
            let store = config::open_store(&self.config, self.random.clone()).await?;
            let document = repository::open(&*store).await?;
            self.prove(&document, first)?;
            Ok(Arc::new(Opened { store, document, known: Mutex::default() }))
        };
        let opened = open.await.map_err(|e: Error| self.told(e));
        *state = match &opened {
            Ok(opened) => Contact::Opened(Instant::now(), opened.clone()),
            Err(error) => Contact::Away(Instant::now(), Told::of(error)),
        };
        opened
    }

    /// Makes it, or finds that it was made.
    pub async fn init(&self, first: &RepositoryDocument, clock: &dyn Clock) -> Result<Arc<Opened>> {
        let made = async {
            let store = config::create_store(&self.config, self.random.clone()).await?;
            repository::init_mirror(&*store, first, clock, &self.random).await
        };
        made.await.map_err(|e| self.told(e))?;
        self.doubt().await;
        self.open(first).await
    }

    /// That error, with the name of the mirror.
    #[must_use]
    pub fn told(&self, error: Error) -> Error {
        error.context(format!("repository {}", self.name))
    }

    /// Forgets that it answered, when it did.
    pub(super) async fn doubt_unless_away(&self) {
        let mut state = self.contact.lock().await;
        if matches!(*state, Contact::Opened(..)) {
            *state = Contact::Unknown;
        }
    }

    /// What it says of itself, whatever it is a mirror of.
    pub async fn look(&self) -> Result<RepositoryDocument> {
        let store = config::open_store(&self.config, self.random.clone()).await.map_err(|e| self.told(e))?;
        repository::open(&*store).await.map_err(|e| self.told(e))
    }

    /// Forgets that it answered: perhaps it is not the repository any more that it was.
    pub async fn doubt(&self) {
        *self.contact.lock().await = Contact::Unknown;
    }

    fn prove(&self, document: &RepositoryDocument, first: &RepositoryDocument) -> Result<()> {
        let url = self.url();
        if document.id == first.id {
            return Err(Error::invalid(format!("{url} is the first repository itself"))
                .hint(format!("give [repository.{}] a place of its own", self.name)));
        }
        if document.lineage() == first.lineage() {
            return Ok(());
        }
        let what = match &document.mirror_of {
            None => "is a repository of its own, and no copy of the first",
            Some(_) => "is a copy of another repository than the first",
        };
        Err(Error::refused(format!("{url} {what}")).hint(format!(
            "give [repository.{0}] an empty place, and run walden init; if the first was lost and made anew: what \
             {0} holds can be restored with --repository {0}, and it can become the first when the two tables are exchanged",
            self.name
        )))
    }
}

impl Opened {
    /// Has the mirror know the system, as the first does.
    pub async fn know(&self, system: &System) -> Result<()> {
        let mut known = self.known.lock().await;
        if known.contains(&system.folder) {
            return Ok(());
        }
        let key = system.folder.system()?;
        let document = crate::store::read(&*system.store, &key, repository::DOCUMENT_LIMIT).await?;
        match self.store.put(&key, document.clone()).await? {
            Put::Exists if crate::store::read(&*self.store, &key, repository::DOCUMENT_LIMIT).await? != document => {
                Err(Error::refused(format!("{key} in {} is not what it is in the first", self.store.url()))
                    .hint("one of the two was made for another server: give the mirror an empty place"))
            }
            Put::Created | Put::Exists => {
                known.push(system.folder.clone());
                Ok(())
            }
        }
    }

    /// Copies one object of the archive; where the mirror has one of that name, makes sure that it is durable.
    pub async fn bring(&self, from: &dyn Store, key: &Key) -> Result<Put> {
        let length = crate::store::listed_length(from, key).await?;
        let listed = Listed { key: key.clone(), length };
        copy::copy(from, &*self.store, &listed, copy::Proof::of(key)).await
    }
}
