//! What the repository says: whether it is one, whether it knows this system, whether it keeps its promises.

use std::sync::Arc;

use super::{Line, Request, Surroundings, Teller};
use crate::{
    config::{self, RepositoryConfig, RepositoryUrl},
    error::{Error, Kind, Result},
    human,
    mirror::{self, Mirror},
    postgres::SystemId,
    repository::{self, Incarnation, RepositoryDocument, System},
    store::{
        Key, Store,
        probe::{self, Probe},
    },
};

/// Opens the repository and the system in it; says how each step went, and ends at the first that fails.
pub(super) async fn look(
    request: &Request<'_>,
    around: &Surroundings,
    system: Option<SystemId>,
    told: &mut Teller<'_>,
) -> Option<System> {
    let (store, document) = match open(request, around).await {
        Ok(opened) => opened,
        Err(error) => {
            told.report.repository_failed(&error);
            told.add(Line::error("repository", &error));
            return None;
        }
    };
    told.add(Line::ok("repository", format!("{}, format {}", store.url(), document.format)));
    let incarnation = Incarnation { system: system?, number: request.cluster.incarnation };
    let system = match System::open(store, &request.cluster.name, incarnation).await {
        Ok(system) => system,
        Err(error) => {
            told.report.repository_failed(&error);
            told.add(Line::error("system", &error));
            return None;
        }
    };
    let known = &system.document;
    told.add(Line::ok(
        "system",
        format!("cluster {}, system {incarnation}, PostgreSQL {}", known.cluster, known.postgres),
    ));
    told.add(absence(&system, around).await);
    if let Ok(repository) = request.config.repository() {
        told.add(conditional_writes(&system, repository, around).await);
        object_lock(repository, around).await.into_iter().for_each(|line| told.add(line));
    }
    for mirror in mirror::configured(request.config, &around.random) {
        beside(&mirror, &document, &system, around).await.into_iter().for_each(|line| told.add(line));
    }
    Some(system)
}

async fn open(request: &Request<'_>, around: &Surroundings) -> Result<(Arc<dyn Store>, RepositoryDocument)> {
    let store = config::open_store(request.config.repository()?, around.random.clone()).await?;
    let document = repository::open(&*store).await?;
    Ok((store, document))
}

/// The same of a repository that is to hold what the first holds.
async fn beside(mirror: &Mirror, first: &RepositoryDocument, system: &System, around: &Surroundings) -> Vec<Line> {
    let name = "mirror";
    let opened = async {
        let there = mirror.open(first).await?;
        there.know(system).await.map_err(|e| mirror.told(e))?;
        Ok::<_, Error>(there)
    };
    let there = match opened.await {
        Ok(there) => there,
        Err(error) => return vec![Line::error(name, &error)],
    };
    let there = System { store: there.store.clone(), ..system.clone() };
    let lines = [absence(&there, around).await, conditional_writes(&there, mirror.config(), around).await];
    let lines = lines.into_iter().chain(object_lock(mirror.config(), around).await);
    let of_mirror = |line: Line| Line { name, text: format!("{}: {}", mirror.name, line.text), ..line };
    [Line::ok(name, format!("{}: {}", mirror.name, mirror.url()))].into_iter().chain(lines.map(of_mirror)).collect()
}

/// Without the right to list, S3 answers "forbidden" for what is not there, and a recovery could not end.
async fn absence(system: &System, around: &Surroundings) -> Line {
    let name = "absence";
    let nobody = Key::new(format!("{}{}", system.folder.probes(), around.random.name()));
    let answer = match nobody {
        Ok(key) => system.store.get(&key, None).await,
        Err(error) => Err(error),
    };
    match answer {
        Err(error) if error.kind() == Kind::NotFound => Line::ok(name, "what is not there is answered as such"),
        Err(error) if error.kind() == Kind::Denied => Line::fail(
            name,
            format!("whether an object is there cannot be told: {error}"),
            "give the credentials the right to list the bucket (s3:ListBucket)",
        ),
        Err(error) => Line::error(name, &error),
        Ok(_) => Line::fail(
            name,
            "an object that nobody wrote was answered",
            "the store, or a proxy before it, answers for objects that are not there: use another",
        ),
    }
}

async fn conditional_writes(system: &System, repository: &RepositoryConfig, around: &Surroundings) -> Line {
    let name = "conditional-writes";
    let url = system.store.url();
    let probed = probe(system, repository, around).await;
    let accepted = "accepted by conditional_writes = \"check-then-put\": two servers that archive under one name at the same moment can overwrite each other";
    match (probed, repository.check_then_put) {
        (Ok(Probe::Honoured), false) => Line::ok(name, "what is there is never overwritten"),
        (Ok(Probe::Honoured), true) if matches!(repository.url, RepositoryUrl::File(_)) => Line::ok(
            name,
            "what is there is never overwritten; conditional_writes = \"check-then-put\" means nothing for a directory",
        ),
        (Ok(Probe::Honoured), true) => Line::warn(
            name,
            format!("{url} honours put-if-absent, but is not asked to: {accepted}"),
            "remove conditional_writes from [repository]",
        ),
        (Ok(Probe::NotHonoured(how)), true) => Line::warn(
            name,
            format!("{url} does not honour put-if-absent ({how}); {accepted}"),
            "use a store that honours If-None-Match",
        ),
        (Ok(Probe::NotHonoured(how)), false) => Line::fail(
            name,
            format!("{url} does not honour put-if-absent: {how}"),
            "use another store, or accept that two servers could destroy each other's WAL: conditional_writes = \"check-then-put\" under [repository]",
        ),
        (Err(error), true) if error.kind() != Kind::Unavailable => Line::warn(
            name,
            format!("{url} does not take conditional writes ({error}); {accepted}"),
            "use a store that honours If-None-Match",
        ),
        (Err(error), _) => Line::error(name, &error),
    }
}

/// Whether the bucket locks what it is asked to lock; nothing where it is not asked.
async fn object_lock(repository: &RepositoryConfig, around: &Surroundings) -> Option<Line> {
    let name = "object-lock";
    let length = human::duration(repository.lock?);
    Some(match config::prove_lock(repository, around.random.clone()).await {
        Ok(_) => Line::ok(name, format!("what is stored is locked for {length}")),
        Err(error) => Line::error(name, &error),
    })
}

async fn probe(system: &System, repository: &RepositoryConfig, around: &Surroundings) -> Result<Probe> {
    let store = config::open_conditional_store(repository, around.random.clone()).await?;
    probe::put_if_absent(&*store, &system.folder.prefix(), &around.random).await
}
