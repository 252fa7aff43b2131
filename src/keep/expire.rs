//! An expiry: gather, plan, condemn, look again, delete.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::{
    choose::{Chosen, choose, relied_on},
    execute::{self, Done},
    gather,
    inventory::Inventory,
    mirrors::Mirrors,
    plan::SystemPlan,
    planning::{manifests_wanted, plan},
    policy::Policy,
};
use crate::{
    clock::{Clock, Random},
    error::{Error, Kind, Result},
    interrupt::Interrupt,
    mirror::Mirror,
    repository::{self, BackupDocument, BackupId, ClusterName, System, lease::Lease},
    store::Store,
};

/// What is to be done with a cluster.
#[derive(Debug, Serialize)]
pub struct ExpiryPlan {
    /// The cluster.
    pub cluster: ClusterName,
    /// The instant that it was made for.
    pub planned: DateTime<Utc>,
    /// What is kept, in words.
    pub rules: String,
    /// From when on every instant is to stay recoverable, where a window is configured.
    pub window_from: Option<DateTime<Utc>>,
    /// What was promised and is lost by it, in words: only where that was asked for by force.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub costs: Vec<String>,
    /// Its systems, the newest last.
    pub systems: Vec<SystemPlan>,
    #[serde(skip)]
    opened: Vec<System>,
}

impl ExpiryPlan {
    /// Whether something could not be read.
    #[must_use]
    pub fn has_doubts(&self) -> bool {
        self.systems.iter().any(|system| !system.doubts.is_empty())
    }
}

/// What was found of a cluster.
pub struct Gathered {
    opened: Vec<System>,
    /// Each of its systems.
    pub found: Vec<Inventory>,
    documents: Vec<Vec<BackupDocument>>,
}

/// Reads all that a plan is made from.
pub async fn gather_all(store: &Arc<dyn Store>, cluster: &ClusterName, now: DateTime<Utc>) -> Result<Gathered> {
    let opened = System::all(store, cluster).await?;
    let (mut found, mut documents) = (Vec::new(), Vec::new());
    for system in &opened {
        let (inventory, of) = gather::gather(system, now).await?;
        found.push(inventory);
        documents.push(of);
    }
    Ok(Gathered { opened, found, documents })
}

/// Plans an expiry by these rules. Changes nothing.
pub async fn plan_expiry(
    store: &Arc<dyn Store>,
    cluster: &ClusterName,
    policy: &Policy,
    now: DateTime<Utc>,
) -> Result<ExpiryPlan> {
    let mut gathered = gather_all(store, cluster, now).await?;
    let chosen = choose_proven(&mut gathered, policy, now).await?;
    finish_plan(gathered, &chosen, cluster, policy, now, None).await
}

/// Chooses which backups stay, and proves the manifests of those on which it rests that others go: without a damaged one
/// it is chosen again.
pub async fn choose_proven(gathered: &mut Gathered, policy: &Policy, now: DateTime<Utc>) -> Result<Vec<Chosen>> {
    loop {
        let chosen = choose(&gathered.found, policy, now);
        let mut is_proven = true;
        for (at, system) in gathered.opened.iter().enumerate() {
            let found = &mut gathered.found[at];
            let mut wanted = relied_on(found, &chosen[at]);
            wanted.retain(|id| !found.needed.contains_key(id));
            gather::manifests(system, found, &gathered.documents[at], &wanted).await?;
            is_proven &= wanted.iter().all(|id| matches!(found.needed.get(id), Some(Ok(_))));
        }
        if is_proven {
            return Ok(chosen);
        }
    }
}

/// Makes the plan once it is known which backups stay: of all systems, or of the one alone.
pub async fn finish_plan(
    gathered: Gathered,
    chosen: &[Chosen],
    cluster: &ClusterName,
    policy: &Policy,
    now: DateTime<Utc>,
    only: Option<usize>,
) -> Result<ExpiryPlan> {
    let (mut systems, mut opened) = (Vec::new(), Vec::new());
    let each = gathered.opened.into_iter().zip(gathered.found).zip(&gathered.documents).zip(chosen).enumerate();
    for (at, (((system, mut found), documents), chosen)) in each {
        if only.is_some_and(|only| only != at) {
            continue;
        }
        let wanted = manifests_wanted(&found, chosen);
        gather::manifests(&system, &mut found, documents, &wanted).await?;
        systems.push(plan(&found, chosen, policy, now));
        opened.push(system);
    }
    Ok(ExpiryPlan {
        cluster: cluster.clone(),
        planned: now,
        rules: policy.words(),
        window_from: policy.window.map(|_| policy.since(now)),
        costs: Vec::new(),
        systems,
        opened,
    })
}

/// Carries a plan out, system by system.
pub async fn carry_out(
    plan: &ExpiryPlan,
    mirrors: &[Arc<Mirror>],
    clock: Arc<dyn Clock>,
    random: &Random,
    interrupt: &Interrupt,
) -> Result<Vec<Done>> {
    let mut all = Vec::new();
    for (system, plan) in plan.opened.iter().zip(&plan.systems) {
        let owes = |mirror: &Arc<Mirror>| plan.condemned.owed.get(&mirror.name).is_some_and(|owed| !owed.is_empty());
        if plan.is_empty() && !mirrors.iter().any(owes) {
            all.push(Done::default());
            continue;
        }
        let mut lease = Lease::take(system, "expiry", clock.clone(), random).await?;
        let mirrors = Mirrors { all: mirrors, first: repository::open(&*system.store).await? };
        let done = {
            let work = execute::execute(system, plan, &mirrors, clock.as_ref(), interrupt);
            tokio::pin!(work);
            loop {
                tokio::select! {
                    done = &mut work => break done,
                    () = tokio::time::sleep(Lease::interval()) => lease.renew().await?,
                }
            }
        };
        if let Err(error) = lease.release().await {
            tracing::debug!(%error, "the lease of this expiry was not given back");
        }
        all.push(done?);
    }
    Ok(all)
}

/// The system that has a backup of that id; refused where several have. One whose document is damaged counts, and other
/// backups are not read.
pub async fn system_of(store: &Arc<dyn Store>, cluster: &ClusterName, id: BackupId) -> Result<System> {
    let mut having = Vec::new();
    for system in System::all(store, cluster).await? {
        match system.backup_exists(id).await {
            Ok(true) => having.push(system),
            Ok(false) => {}
            Err(error) if error.kind() == Kind::Damaged => {
                tracing::warn!("{error}");
                having.push(system);
            }
            Err(error) => return Err(error),
        }
    }
    match having.len() {
        0 | 1 => having.pop().ok_or_else(|| {
            Error::not_found(format!("there is no backup {id} of cluster {cluster}"))
                .hint("walden list shows the backups")
        }),
        _ => Err(Error::refused(format!("several systems of cluster {cluster} have a backup {id}"))),
    }
}
