//! What works today and will not help on the day of need: what [`doctor`] judges, and what the bucket says of itself.

use chrono::{DateTime, TimeDelta, Utc};

use super::{Line, Request, Surroundings, Teller, server::Server};
use crate::{
    config::{self, RepositoryConfig},
    error::Result,
    human,
    interrupt::Interrupter,
    plan::{
        Watch,
        window::{Depth, Timelines},
    },
    report::{
        doctor::{self, Known},
        look,
    },
    repository::{RepositoryName, System},
    store::s3::Guards,
};

/// A store whose clock differs by more refuses signatures soon: AWS allows 15 minutes.
const CLOCKS: TimeDelta = TimeDelta::seconds(60);

pub(super) async fn look(
    request: &Request<'_>,
    around: &Surroundings,
    system: Option<&System>,
    server: Option<&Server>,
    told: &mut Teller<'_>,
) {
    let now = around.clock.now();
    let (mut timelines, mut restored, mut kit) = (None, None, None);
    if let Some(system) = system {
        timelines = windows(request, system, around).await.ok();
        restored = look::restored(system).await;
        kit = system.newest_kit().await.ok();
    }
    let slots = match server {
        Some(server) => server.session.slots().await.unwrap_or_default(),
        None => Vec::new(),
    };
    let known = Known {
        goals: &request.config.goals,
        keep: &request.config.keep,
        locks: look::locks(request.config),
        system: timelines.as_ref(),
        restored,
        archive_timeout: server.filter(|s| !s.facts.in_recovery).map(|s| s.asked.archive_timeout),
        received: look::received(request.config, request.cluster, &slots),
        identity: look::identity(request.config, request.cluster),
        recipients: &request.config.encryption.recipients,
        kit,
        file: look::configuration(request.config),
        now,
    };
    for advice in doctor::judge(&known) {
        told.add(Line::warn(advice.name, advice.what, advice.mend));
    }
    if let Ok(first) = request.config.repository() {
        bucket(None, first, around, told).await;
    }
    for (name, repository) in request.config.mirrors() {
        bucket(Some(name), repository, around, told).await;
    }
}

async fn windows(request: &Request<'_>, system: &System, around: &Surroundings) -> Result<Timelines> {
    let watch = Watch { progress: around.progress.clone(), interrupt: Interrupter::new().listen() };
    look::timelines(system, Depth::Ends, request.cluster, &watch).await
}

/// What a bucket tells of itself; one that does not, or not to these credentials, is passed over.
async fn bucket(
    name: Option<&RepositoryName>,
    repository: &RepositoryConfig,
    around: &Surroundings,
    told: &mut Teller<'_>,
) {
    let before = around.clock.now();
    let asked = config::guards(repository, around.random.clone()).await;
    let Ok(Some(guards)) = asked else { return };
    let of = name.map(|name| format!("{name}: ")).unwrap_or_default();
    let lines = [kept(&guards), clock(&guards, before, around.clock.now())];
    for line in lines.into_iter().flatten() {
        told.add(Line { text: format!("{of}{}", line.text), ..line });
    }
}

fn kept(guards: &Guards) -> Option<Line> {
    let name = "bucket";
    match (guards.versioning?, guards.lock) {
        (_, Some(true)) => Some(Line::ok(name, "it keeps versions, and objects in it can be locked")),
        (true, _) => Some(Line::ok(name, "it keeps the older versions of what is deleted")),
        (false, _) => Some(Line::warn(
            name,
            "it keeps no versions and no locks: whoever steals a key that may delete can delete everything for good",
            "turn on versioning or object lock; give the database host a key that may not delete",
        )),
    }
}

/// The store told its time, in full seconds, at some moment between these two.
fn clock(guards: &Guards, before: DateTime<Utc>, after: DateTime<Utc>) -> Option<Line> {
    let theirs = guards.time?;
    let (apart, side) = match theirs {
        ahead if ahead > after => (ahead - after, "ahead of"),
        behind if behind < before => (before - behind, "behind"),
        _ => return None,
    };
    (apart > CLOCKS).then(|| {
        Line::warn(
            "store-clock",
            format!("the store's clock is {} {side} this host's", human::duration(apart.to_std().unwrap_or_default())),
            "set this host's clock, for instance by NTP: a store refuses requests whose time is far from its own",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Verdict;

    #[test]
    fn a_bucket_that_keeps_nothing_is_told_and_one_that_says_nothing_is_not() {
        let verdict = |versioning, lock| kept(&Guards { versioning, lock, time: None }).map(|line| line.verdict);
        assert_eq!(verdict(None, None), None);
        assert_eq!(verdict(Some(false), Some(false)), Some(Verdict::Warn));
        assert_eq!(verdict(Some(true), None), Some(Verdict::Ok));
        assert_eq!(verdict(Some(true), Some(true)), Some(Verdict::Ok));
    }

    #[test]
    fn clocks_apart_are_told() {
        let at = |second: i64| DateTime::<Utc>::UNIX_EPOCH + TimeDelta::seconds(1_800_000_000 + second);
        let told = |theirs| {
            let guards = Guards { time: Some(at(theirs)), ..Guards::default() };
            clock(&guards, at(0), at(2)).map(|line| line.text)
        };
        assert_eq!((told(1), told(62), told(-60)), (None, None, None));
        assert_eq!(told(302).unwrap(), "the store's clock is 5 min ahead of this host's");
        assert!(told(-61).unwrap().contains("behind"));
    }
}
