//! The histories of all timelines of a system. One that is lost stands in the way of its own timeline alone, unless that
//! is the newest: what a wish means is then not known, and silently following another would lose what it holds.

use crate::{
    error::{Error, Kind, Result},
    postgres::{TimelineHistory, TimelineId},
    repository::System,
};

/// What is known of them.
#[derive(Debug)]
pub(super) struct Histories {
    /// The newest first.
    pub known: Vec<TimelineHistory>,
    /// Those whose history file is missing or damaged, and what is wrong with it.
    lost: Vec<(TimelineId, Error)>,
}

impl Histories {
    /// Of everything that has something in the archive.
    pub async fn of(system: &System) -> Result<Self> {
        let mut timelines = system.timelines().await?;
        timelines.sort();
        let mut found = Self { known: Vec::new(), lost: Vec::new() };
        for timeline in timelines.into_iter().rev() {
            match system.history(timeline).await {
                Ok(history) => found.known.push(history),
                Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Damaged) => {
                    found.lost.push((timeline, error));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    /// That of one timeline.
    pub fn get(&self, timeline: TimelineId) -> Result<Option<&TimelineHistory>> {
        match self.lost.iter().find(|(lost, _)| *lost == timeline) {
            None => Ok(self.known.iter().find(|history| history.timeline == timeline)),
            Some((_, error)) => Err(Error::damaged(format!("where timeline {timeline} began is not known: {error}"))
                .hint("bring its history file back from another copy")),
        }
    }

    /// That of the newest; an error if it is lost.
    pub fn newest(&self) -> Result<Option<&TimelineHistory>> {
        let newest = self.known.first();
        let Some((lost, error)) = self.lost.first().filter(|(lost, _)| newest.is_none_or(|n| n.timeline < *lost))
        else {
            return Ok(newest);
        };
        let other = newest.map(|other| format!("; or follow another timeline: --timeline {}", other.timeline));
        Err(Error::damaged(format!("timeline {lost} is the newest, and where it began is not known: {error}"))
            .hint(format!("bring its history file back from another copy{}", other.unwrap_or_default())))
    }

    /// Of those that are lost, in words.
    pub fn remarks(&self) -> Vec<String> {
        let remark = |(timeline, error): &(TimelineId, Error)| {
            format!("timeline {timeline} is left out, because where it began is not known: {error}")
        };
        self.lost.iter().map(remark).collect()
    }
}
