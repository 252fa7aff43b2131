//! From times to places on an axis, and the ticks of that axis.

use chrono::{DateTime, Datelike, TimeDelta, Utc};

/// The share of the axis that the time since the last event may take.
const IDLE: f64 = 0.15;

/// Times from left to right. When nothing happened for long, the time since then is shortened.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    from: DateTime<Utc>,
    last: DateTime<Utc>,
    now: DateTime<Utc>,
    width: f64,
    /// Where `last` lies.
    knee: f64,
}

/// A mark on the axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Tick {
    /// Where.
    pub x: f64,
    /// What is written there.
    pub label: String,
}

#[expect(clippy::cast_precision_loss, reason = "a drawing has far fewer places than 2^52")]
fn seconds(length: TimeDelta) -> f64 {
    length.num_milliseconds() as f64 / 1000.0
}

impl Scale {
    /// An axis of that width from the first to the last event, and on to `now`.
    #[must_use]
    pub fn new(from: DateTime<Utc>, last: DateTime<Utc>, now: DateTime<Utc>, width: f64) -> Self {
        // Something has to be between the ends.
        let from = from.min(last - TimeDelta::seconds(10));
        let now = now.max(last);
        let idle = seconds(now - last) / seconds(now - from);
        let knee = if idle > IDLE { width * (1.0 - IDLE) } else { width * (1.0 - idle) };
        Self { from, last, now, width, knee }
    }

    /// Where a time lies, from 0 to the width.
    #[must_use]
    pub fn x(&self, time: DateTime<Utc>) -> f64 {
        let share = |time, from, to| (seconds(time - from) / seconds(to - from).max(0.001)).clamp(0.0, 1.0);
        if time <= self.last {
            self.knee * share(time, self.from, self.last)
        } else {
            self.knee + (self.width - self.knee) * share(time, self.last, self.now)
        }
    }

    /// From where on the axis is shortened; none when it is not.
    #[must_use]
    pub fn shortened(&self) -> Option<f64> {
        let idle = seconds(self.now - self.last) / seconds(self.now - self.from);
        (idle > IDLE).then_some(self.knee)
    }

    /// Ticks at round times, at least `apart` from each other.
    #[must_use]
    pub fn ticks(&self, apart: f64) -> Vec<Tick> {
        let end = if self.shortened().is_some() { self.last } else { self.now };
        let a_second = self.knee / seconds(self.last - self.from).max(0.001);
        let Some(step) = STEPS.into_iter().find(|step| (*step as f64) * a_second >= apart) else { return Vec::new() };
        let mut ticks = Vec::new();
        let mut at = self.from.timestamp().div_euclid(step) * step;
        let mut before: Option<DateTime<Utc>> = None;
        while at <= end.timestamp() {
            let Some(time) = DateTime::from_timestamp(at, 0) else { break };
            if time >= self.from {
                ticks.push(Tick { x: self.x(time), label: label(time, before, step) });
                before = Some(time);
            }
            at += step;
        }
        ticks
    }
}

const DAY: i64 = 86_400;
const STEPS: [i64; 23] = [
    1,
    2,
    5,
    10,
    15,
    30,
    60,
    120,
    300,
    600,
    900,
    1800,
    3600,
    2 * 3600,
    3 * 3600,
    6 * 3600,
    12 * 3600,
    DAY,
    2 * DAY,
    7 * DAY,
    28 * DAY,
    91 * DAY,
    364 * DAY,
];

fn label(time: DateTime<Utc>, before: Option<DateTime<Utc>>, step: i64) -> String {
    let same_day = before.is_some_and(|b| b.date_naive() == time.date_naive());
    let same_year = before.is_some_and(|b| b.year() == time.year());
    let format = match (step, same_day, same_year) {
        (DAY.., _, true) => "%m-%d",
        (DAY.., _, false) => "%Y-%m-%d",
        (0..60, true, _) => "%H:%M:%S",
        (0..60, false, _) => "%m-%d %H:%M:%S",
        (_, true, _) => "%H:%M",
        (_, false, _) => "%m-%d %H:%M",
    };
    time.format(format).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        format!("2026-11-{text}:00Z").parse().unwrap()
    }

    #[test]
    fn ticks_are_round_and_say_the_date_once() {
        let scale = Scale::new(at("20T22:10"), at("21T10:00"), at("21T10:00"), 100.0);
        let labels: Vec<_> = scale.ticks(18.0).into_iter().map(|t| t.label).collect();
        assert_eq!(labels, ["11-21 00:00", "03:00", "06:00", "09:00"]);
        assert_eq!(scale.x(at("21T10:00")), 100.0);
        assert_eq!(scale.shortened(), None);
    }

    #[test]
    fn a_long_silence_is_shortened() {
        let scale = Scale::new(at("01T00:00"), at("01T01:00"), at("21T00:00"), 100.0);
        assert_eq!(scale.x(at("01T01:00")), 85.0);
        assert_eq!(scale.x(at("21T00:00")), 100.0);
        assert_eq!(scale.shortened(), Some(85.0));
        assert!(scale.ticks(18.0).iter().all(|t| t.x <= 85.0));
    }

    #[test]
    fn one_instant_has_an_axis_too() {
        let scale = Scale::new(at("01T00:00"), at("01T00:00"), at("01T00:00"), 60.0);
        assert_eq!(scale.x(at("01T00:00")), 60.0);
        assert!(!scale.ticks(18.0).is_empty());
    }
}
