//! Progress for programs: with `--json`, a line of JSON on standard error when a stretch of work begins, every second
//! while it goes on, and when it is over. docs/JSON.md tells the fields.

use std::{
    io::{self, Write},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::progress::time_left;
use crate::progress::Progress;

/// How often a stretch is told of.
const EVERY: Duration = Duration::from_secs(1);

/// Tells of one stretch of work after another.
#[derive(Debug, Default)]
pub struct Events(Mutex<Option<Stretch>>);

#[derive(Debug)]
struct Stretch {
    stage: String,
    total: Option<u64>,
    done: u64,
    began: Instant,
    told: Instant,
}

impl Stretch {
    fn event(&self, took: Duration, over: bool) -> Value {
        let Self { stage, total, done, .. } = self;
        let left = total.filter(|_| !over).and_then(|total| time_left(*done, total, took));
        json!({ "progress": {
            "stage": stage,
            "bytes": done,
            "total": total,
            "seconds": rounded(took),
            "rate": (*done as f64 / took.as_secs_f64().max(0.001)).round(),
            "seconds_left": left.map(rounded),
            "over": over,
        } })
    }

    fn tell(&mut self, over: bool) {
        self.told = Instant::now();
        let event = self.event(self.began.elapsed(), over);
        // Nobody reads there any more: the work goes on.
        _ = writeln!(io::stderr(), "{event}");
    }
}

fn rounded(time: Duration) -> f64 {
    (time.as_secs_f64() * 1000.0).round() / 1000.0
}

impl Events {
    fn with(&self, act: impl FnOnce(&mut Option<Stretch>)) {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Progress for Events {
    fn start(&self, label: &str, total: Option<u64>) {
        self.finish();
        let now = Instant::now();
        let mut stretch = Stretch { stage: label.to_owned(), total, done: 0, began: now, told: now };
        stretch.tell(false);
        self.with(|current| *current = Some(stretch));
    }

    fn advance(&self, bytes: u64) {
        self.with(|current| {
            if let Some(stretch) = current {
                stretch.done += bytes;
                if stretch.told.elapsed() >= EVERY {
                    stretch.tell(false);
                }
            }
        });
    }

    fn message(&self, text: &str) {
        tracing::debug!("{text}");
    }

    fn finish(&self) {
        self.with(|current| {
            if let Some(mut stretch) = current.take() {
                stretch.tell(true);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_tells_bytes_rate_and_what_is_left() {
        let now = Instant::now();
        let stretch = Stretch { stage: "backing up".into(), total: Some(400), done: 100, began: now, told: now };
        let event = |over| stretch.event(Duration::from_secs(2), over)["progress"].clone();
        let expected = json!({ "stage": "backing up", "bytes": 100, "total": 400, "seconds": 2.0, "rate": 50.0,
            "seconds_left": 6.0, "over": false });
        assert_eq!(event(false), expected);
        assert_eq!((&event(true)["seconds_left"], &event(true)["over"]), (&Value::Null, &json!(true)));
        let unknown = Stretch { total: None, ..stretch };
        assert_eq!(unknown.event(Duration::ZERO, false)["progress"]["seconds_left"], Value::Null);
    }
}
