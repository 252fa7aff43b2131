//! How often a mirror that is away is tried again by processes that live for one segment only.

use std::{
    fs,
    path::{Path, PathBuf},
};

use chrono::{DateTime, TimeDelta, Utc};

use crate::{clock::Random, repository::RepositoryName};

const FIRST: i64 = 10;
const LONGEST: i64 = 300;

/// What this host remembers of a mirror that did not answer, in `<state_dir>/mirrors/away-<name>`: until when it is left
/// alone, and how long that was, in seconds. What cannot be read means that it is tried.
#[derive(Debug)]
pub struct Patience {
    place: PathBuf,
}

impl Patience {
    /// That of a mirror.
    #[must_use]
    pub fn with(state_dir: &Path, name: &RepositoryName) -> Self {
        Self { place: state_dir.join("mirrors").join(format!("away-{name}")) }
    }

    /// Whether it may be tried.
    #[must_use]
    pub fn is_over(&self, now: DateTime<Utc>) -> bool {
        // A clock that was set back must not make it wait for long.
        self.read().is_none_or(|(until, pause)| now.timestamp() >= until || now.timestamp() < until - pause)
    }

    /// It did not answer: the next time is twice as far away, with some jitter.
    pub fn failed(&self, now: DateTime<Utc>, random: &Random) {
        let pause = self.read().map_or(FIRST, |(_, pause)| (pause * 2).clamp(FIRST, LONGEST));
        #[expect(clippy::cast_possible_truncation, reason = "a few hundred seconds")]
        let until = now + TimeDelta::seconds((pause as f64 * (0.5 + 0.5 * random.fraction())) as i64);
        let folder = self.place.parent().map(fs::create_dir_all);
        let written =
            folder.map(|made| made.and_then(|()| fs::write(&self.place, format!("{} {pause}", until.timestamp()))));
        if let Some(Err(error)) = written {
            tracing::debug!("write {}: {error}", self.place.display());
        }
    }

    /// It answered.
    pub fn answered(&self) {
        _ = fs::remove_file(&self.place);
    }

    fn read(&self) -> Option<(i64, i64)> {
        let text = fs::read_to_string(&self.place).ok()?;
        let (until, pause) = text.split_once(' ')?;
        Some((until.parse().ok()?, pause.parse().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mirror_that_is_away_is_left_alone_for_longer_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let patience = Patience::with(folder.path(), &"offsite".parse().unwrap());
        let (mut now, random) = (DateTime::UNIX_EPOCH + TimeDelta::days(1), Random::seeded(1));
        assert!(patience.is_over(now));
        for _ in 0..10 {
            patience.failed(now, &random);
            assert!(!patience.is_over(now));
            now += TimeDelta::seconds(LONGEST);
            assert!(patience.is_over(now));
        }
        patience.failed(now, &random);
        assert!(!patience.is_over(now + TimeDelta::seconds(LONGEST / 2 - 1)));
        assert!(patience.is_over(now - TimeDelta::days(1)), "the clock was set back");
        patience.answered();
        assert!(patience.is_over(now));
    }
}
