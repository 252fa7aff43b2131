//! Which backups the rules of `[keep]` name: the last ones, and the newest of each of the last days, weeks, months and
//! years that have one. Days are those of one zone, whatever the zone of whoever looks.

use std::time::Duration;

use chrono::{DateTime, Datelike, Utc};
use chrono_tz::Tz;
use serde::Serialize;

use crate::human;

/// What is to be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// So many of the newest backups.
    pub last: u32,
    /// The newest of each of so many days that have one.
    pub daily: u32,
    /// The same of weeks, which begin on Monday (ISO 8601).
    pub weekly: u32,
    /// The same of months.
    pub monthly: u32,
    /// The same of years.
    pub yearly: u32,
    /// Every instant of this time up to now.
    pub window: Option<Duration>,
    /// Whose days these are.
    pub zone: Tz,
}

impl Default for Policy {
    fn default() -> Self {
        Self { last: 0, daily: 0, weekly: 0, monthly: 0, yearly: 0, window: None, zone: Tz::UTC }
    }
}

/// Why a backup stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// No rule is configured.
    NoRules,
    /// It is one of the last.
    Last,
    /// The newest of its day.
    Daily,
    /// The newest of its week.
    Weekly,
    /// The newest of its month.
    Monthly,
    /// The newest of its year.
    Yearly,
    /// Instants of the window are recovered from it.
    Window,
    /// What comes now is recovered from it.
    Newest,
    /// It is pinned.
    Pinned,
    /// Another one was named to be removed.
    NotNamed,
    /// Somebody reads it.
    Held,
    /// Something about the system cannot be read.
    Doubt,
}

impl Reason {
    /// As it is written.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::NoRules => "no rules",
            Self::Last => "last",
            Self::Daily => "daily",
            Self::Weekly => "weekly",
            Self::Monthly => "monthly",
            Self::Yearly => "yearly",
            Self::Window => "window",
            Self::Newest => "newest",
            Self::Pinned => "pinned",
            Self::NotNamed => "not named",
            Self::Held => "held",
            Self::Doubt => "doubt",
        }
    }
}

/// What tells the period that an instant lies in from all others of its kind.
type Period = fn(DateTime<Tz>) -> (i32, u32);

impl Policy {
    /// Whether no rule is there: then no backup and no WAL is ever removed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.window.is_none() && [self.last, self.daily, self.weekly, self.monthly, self.yearly] == [0; 5]
    }

    /// From when on every instant is to stay recoverable. Without a window that is only what is still to come.
    #[must_use]
    pub fn since(&self, now: DateTime<Utc>) -> DateTime<Utc> {
        let window = self.window.and_then(|window| chrono::Duration::from_std(window).ok());
        window.and_then(|window| now.checked_sub_signed(window)).unwrap_or(now)
    }

    /// For each of these instants, newest first, the rules that name it.
    #[must_use]
    pub fn name(&self, newest_first: &[DateTime<Utc>]) -> Vec<Vec<Reason>> {
        let mut named = vec![Vec::new(); newest_first.len()];
        for place in named.iter_mut().take(self.last as usize) {
            place.push(Reason::Last);
        }
        for (reason, most, period) in self.periods() {
            let (mut left, mut before) = (most, None);
            for (place, instant) in named.iter_mut().zip(newest_first) {
                let here = period(instant.with_timezone(&self.zone));
                if left > 0 && before != Some(here) {
                    place.push(reason);
                    left -= 1;
                }
                before = Some(here);
            }
        }
        named
    }

    fn periods(&self) -> [(Reason, u32, Period); 4] {
        [
            (Reason::Daily, self.daily, |at| (at.year(), at.ordinal())),
            (Reason::Weekly, self.weekly, |at| (at.iso_week().year(), at.iso_week().week())),
            (Reason::Monthly, self.monthly, |at| (at.year(), at.month())),
            (Reason::Yearly, self.yearly, |at| (at.year(), 0)),
        ]
    }

    /// In words: what is kept.
    #[must_use]
    pub fn words(&self) -> String {
        let mut words = Vec::new();
        if let Some(window) = self.window {
            words.push(format!("every instant of the last {}", human::duration(window)));
        }
        let counts = [
            (self.last, "of the last"),
            (self.daily, "daily"),
            (self.weekly, "weekly"),
            (self.monthly, "monthly"),
            (self.yearly, "yearly"),
        ];
        words.extend(counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| match *what {
            "of the last" if *count == 1 => "the last backup".to_owned(),
            "of the last" => format!("the last {count} backups"),
            what => format!("{count} {what}"),
        }));
        let calendar = [self.daily, self.weekly, self.monthly, self.yearly] != [0; 4];
        let zone = if calendar { format!(" (days, weeks, months and years of {})", self.zone) } else { String::new() };
        match words.as_slice() {
            [] => "everything".to_owned(),
            words => format!("{}{zone}", words.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(texts: &[&str]) -> Vec<DateTime<Utc>> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn names(policy: Policy, texts: &[&str]) -> Vec<String> {
        let words = |reasons: Vec<Reason>| reasons.iter().map(|r| r.word()).collect::<Vec<_>>().join(" ");
        policy.name(&at(texts)).into_iter().map(words).collect()
    }

    const BACKUPS: [&str; 7] = [
        "2026-11-21T12:00:00Z",
        "2026-11-21T01:00:00Z",
        "2026-11-19T01:00:00Z",
        "2026-11-16T01:00:00Z",
        "2026-11-15T23:30:00Z",
        "2026-10-31T23:30:00Z",
        "2025-12-31T23:30:00Z",
    ];

    #[test]
    fn the_newest_of_each_period_that_has_one() {
        let policy = Policy { last: 1, daily: 3, weekly: 2, monthly: 2, yearly: 9, ..Policy::default() };
        let found = names(policy, &BACKUPS);
        assert_eq!(found, ["last daily weekly monthly yearly", "", "daily", "daily", "weekly", "monthly", "yearly"]);
    }

    #[test]
    fn days_are_those_of_the_zone() {
        let berlin = Policy { weekly: 9, monthly: 9, zone: Tz::Europe__Berlin, ..Policy::default() };
        // 23:30 UTC is the next day there: Monday, the first of November, New Year's Day.
        let found = names(berlin, &BACKUPS);
        assert_eq!(found, ["weekly monthly", "", "", "", "", "weekly", "weekly monthly"]);
        assert!(berlin.words().contains("of Europe/Berlin"));
    }

    #[test]
    fn no_rules_name_nothing() {
        assert!(Policy::default().is_empty());
        assert_eq!(names(Policy::default(), &BACKUPS), [""; 7]);
        assert!(!Policy { window: Some(Duration::from_secs(1)), ..Policy::default() }.is_empty());
    }
}
