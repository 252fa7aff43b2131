//! The state of clusters as Prometheus reads it: the text format, version 0.0.4. Pure.
//!
//! Names and units stay. What is not known has no sample: a rule that asks for it by `absent()` hears of it, and one
//! that compares is not told a 0 that nobody saw.

use std::fmt::{self, Display, Write};

use chrono::{DateTime, Utc};

use super::status::{Status, Verdict};
use crate::repository::ClusterName;

/// What one sample is called and is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    /// Its name, with the unit; `_total` at the end of a counter's.
    pub name: &'static str,
    /// In words.
    pub help: &'static str,
}

/// The values of labels by their names.
pub type Labels<'a> = &'a [(&'a str, &'a dyn Display)];

/// Metrics as they are written down, each name once and its samples below it.
#[derive(Debug, Default)]
pub struct Page {
    families: Vec<(Metric, String)>,
}

impl Page {
    /// Adds a sample that is a whole number.
    pub fn count(&mut self, metric: Metric, labels: Labels<'_>, number: u64) {
        self.sample(metric, labels, Some(count(number)));
    }

    /// Adds a sample. One that is not known is left out; its name is there all the same.
    pub fn sample(&mut self, metric: Metric, labels: Labels<'_>, value: Option<f64>) {
        let at = self.families.iter().position(|(known, _)| known.name == metric.name);
        let at = at.unwrap_or_else(|| {
            self.families.push((metric, String::new()));
            self.families.len() - 1
        });
        let Some(value) = value else { return };
        let samples = &mut self.families[at].1;
        let labels = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(&value.to_string())));
        let labels = labels.collect::<Vec<_>>().join(",");
        let labels = if labels.is_empty() { labels } else { format!("{{{labels}}}") };
        // Writing to a String does not fail.
        _ = writeln!(samples, "{}{labels} {value}", metric.name);
    }
}

impl Display for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (Metric { name, help }, samples) in &self.families {
            let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
            write!(f, "# HELP {name} {help}\n# TYPE {name} {kind}\n{samples}")?;
        }
        Ok(())
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Figures of a status by their metrics, where each cluster has one sample.
type Figure = (Metric, fn(&Status) -> Option<f64>);

const fn metric(name: &'static str, help: &'static str) -> Metric {
    Metric { name, help }
}

const FIGURES: &[Figure] = &[
    (metric("walden_repository_reachable", "Whether the repository could be read; 0 or 1."), |s| {
        flag(Some(s.unreachable.is_none()))
    }),
    (metric("walden_needs_person", "Whether something needs a person, as walden status tells; 0 or 1."), |s| {
        flag(Some(s.verdict == Verdict::NeedsPerson))
    }),
    (metric("walden_concerns", "How many things need a person."), |s| Some(count(s.concerns.len() as u64))),
    (metric("walden_archive_waiting_segments", "Segments in pg_wal that wait to be archived."), |s| {
        s.lag.waiting_segments.map(count)
    }),
    (metric("walden_archive_waiting_bytes", "Their bytes."), |s| s.lag.waiting_bytes.map(count)),
    (metric("walden_archive_oldest_waiting_seconds", "How long ago the oldest of them was complete."), |s| {
        s.lag.oldest_waiting_seconds.map(count)
    }),
    (
        metric(
            "walden_archive_not_durable_bytes",
            "WAL that the server has written and that is not durable in the repository.",
        ),
        |s| s.lag.not_durable_bytes.map(count),
    ),
    (metric("walden_archive_not_durable_seconds", "How long ago the first of these bytes was written at most."), |s| {
        s.lag.not_durable_seconds
    }),
    (
        metric(
            "walden_archive_durable_lsn_bytes",
            "The end of the WAL that is durable in the repository, as a number of bytes.",
        ),
        |s| s.lag.durable_lsn.map(|lsn| count(lsn.0)),
    ),
    (metric("walden_archive_failing", "Whether the last call of archive_command failed; 0 or 1."), |s| flag(s.failing)),
    (metric("walden_archive_failed_total", "Calls of archive_command that failed, from pg_stat_archiver."), |s| {
        s.failed.and_then(|failed| u64::try_from(failed).ok()).map(count)
    }),
    (
        metric(
            "walden_archive_last_archived_timestamp_seconds",
            "When archive_command last succeeded, from pg_stat_archiver.",
        ),
        |s| s.last_archived.map(|last| seconds(last.at)),
    ),
    (
        metric(
            "walden_archive_not_arrived_segments",
            "Segments that PostgreSQL holds for archived and the repository does not have.",
        ),
        |s| s.not_arrived.map(|missing| count(missing.segments as u64)),
    ),
    (
        metric("walden_archive_suspended", "Whether archiving is suspended, so that WAL is stored nowhere; 0 or 1."),
        |s| flag(s.suspended),
    ),
    (metric("walden_wal_lsn_bytes", "The end of the WAL that the server has written, as a number of bytes."), |s| {
        s.lag.server_lsn.map(|lsn| count(lsn.0))
    }),
    (metric("walden_wal_bytes_per_second", "The rate of WAL in the last minutes."), |s| s.lag.wal_bytes_per_second),
    (metric("walden_pg_wal_free_bytes", "What is free on the file system of pg_wal."), |s| {
        s.lag.pg_wal_free_bytes.map(count)
    }),
    (
        metric(
            "walden_pg_wal_full_seconds",
            "When it is full at the present rate, if nothing can be removed from pg_wal.",
        ),
        |s| s.lag.pg_wal_full_seconds,
    ),
    (metric("walden_backups", "Backups in the repository."), |s| s.backups.map(|n| count(n as u64))),
    (metric("walden_backup_last_timestamp_seconds", "When the newest backup was complete."), |s| {
        s.newest_backup.as_ref().map(|b| seconds(b.stopped))
    }),
    (metric("walden_backup_last_usable", "Whether the newest backup can be used; 0 or 1."), |s| {
        flag(s.newest_backup.as_ref().map(|b| b.usable))
    }),
    (metric("walden_backup_last_size_bytes", "The size of the cluster's files in the newest backup."), |s| {
        s.newest_backup.as_ref().map(|b| count(b.size))
    }),
    (metric("walden_window_start_timestamp_seconds", "The first instant of the window that can be recovered."), |s| {
        s.window.as_ref().and_then(|w| w.from.time).map(seconds)
    }),
    (metric("walden_window_end_timestamp_seconds", "The last commit in that window."), |s| {
        s.window.as_ref().and_then(|w| w.to.time).map(seconds)
    }),
];

/// Adds what there is to tell of clusters, seen at `now`.
pub fn clusters(page: &mut Page, clusters: &[(&ClusterName, &Status)], now: DateTime<Utc>) {
    let build = metric("walden_build_info", "The version of Walden, as a label.");
    page.sample(build, &[("version", &env!("CARGO_PKG_VERSION"))], Some(1.0));
    page.sample(metric("walden_status_timestamp_seconds", "When all this was seen."), &[], Some(seconds(now)));
    for (metric, figure) in FIGURES {
        for (cluster, status) in clusters {
            page.sample(*metric, &[("cluster", cluster)], figure(status));
        }
    }
    let held = metric("walden_replication_slot_held_bytes", "WAL that a replication slot holds back in pg_wal.");
    for (cluster, status) in clusters {
        for slot in status.slots.iter().flatten() {
            page.sample(held, &[("cluster", cluster), ("slot", &slot.slot)], slot.bytes.map(count));
        }
    }
}

/// Exact up to 2^53.
#[expect(clippy::cast_precision_loss, reason = "samples are floating-point numbers")]
fn count(number: u64) -> f64 {
    number as f64
}

fn flag(known: Option<bool>) -> Option<f64> {
    known.map(|yes| if yes { 1.0 } else { 0.0 })
}

#[expect(clippy::cast_precision_loss, reason = "samples are floating-point numbers")]
fn seconds(at: DateTime<Utc>) -> f64 {
    at.timestamp_millis() as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{
        status::testing::{seen, server},
        trees::{self, at},
    };

    #[test]
    fn each_name_comes_once_and_what_is_not_known_has_no_sample() {
        let systems = trees::single();
        let unasked = Status::of(&seen(&systems));
        let mut seen = seen(&systems);
        seen.server = Ok(server());
        let asked = Status::of(&seen);
        let (one, two) = ("one".parse().unwrap(), "two".parse().unwrap());
        let mut page = Page::default();
        clusters(&mut page, &[(&one, &asked), (&two, &unasked)], at("21 10:05"));
        let text = page.to_string();
        assert!(text.contains("\nwalden_archive_not_durable_bytes{cluster=\"one\"} 0\n"), "{text}");
        assert!(!text.contains("walden_archive_not_durable_bytes{cluster=\"two\"}"), "{text}");
        assert!(text.contains("walden_archive_durable_lsn_bytes{cluster=\"two\"} 687865856\n"), "{text}");
        assert!(text.contains("walden_backup_last_timestamp_seconds{cluster=\"two\"} 1795237200\n"), "{text}");
        let mut types: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        let all = types.len();
        types.sort_unstable();
        types.dedup();
        assert_eq!(types.len(), all, "{text}");
    }

    #[test]
    fn labels_cannot_break_out() {
        let mut page = Page::default();
        page.sample(metric("x", "y."), &[("slot", &"a\"b\\c\nd")], Some(1.5));
        assert_eq!(page.to_string(), "# HELP x y.\n# TYPE x gauge\nx{slot=\"a\\\"b\\\\c\\nd\"} 1.5\n");
    }
}
