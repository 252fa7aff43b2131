//! Sizes, durations and instants as people read and write them: one spelling everywhere, in tables,
//! messages and `walden.toml`.
//!
//! Units are PostgreSQL's: 1 kB is 1024 bytes, 1 MB is 1024 kB. Instants are shown in UTC and say so.

use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::error::{Error, Result};

const SIZES: [(&str, u64); 4] = [("TB", 1 << 40), ("GB", 1 << 30), ("MB", 1 << 20), ("kB", 1 << 10)];

/// A number of bytes: `512 bytes`, `16 MB`, `1.2 GB`.
#[must_use]
pub fn size(bytes: u64) -> String {
    for (unit, factor) in SIZES {
        // Half a tenth below the unit is written as the unit: 1023.96 kB is 1 MB.
        if bytes >= factor - factor / 20_480 {
            #[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
            let tenths = (bytes as f64 / factor as f64 * 10.0).round();
            return if tenths % 10.0 == 0.0 {
                format!("{:.0} {unit}", tenths / 10.0)
            } else {
                format!("{:.1} {unit}", tenths / 10.0)
            };
        }
    }
    if bytes == 1 { "1 byte".into() } else { format!("{bytes} bytes") }
}

/// So many things, whose plural only adds an s: `1 backup`, `2 backups`.
#[must_use]
pub fn count(number: u64, what: &str) -> String {
    match number {
        1 => format!("1 {what}"),
        number => format!("{number} {what}s"),
    }
}

/// A length of time: `340 ms`, `4.2 s`, `2 min 5 s`, `3 h 10 min`, `2 d 4 h`.
#[must_use]
pub fn duration(length: Duration) -> String {
    let seconds = length.as_secs();
    let pair = |large: u64, unit: &str, small: u64, below: &str| match small {
        0 => format!("{large} {unit}"),
        _ => format!("{large} {unit} {small} {below}"),
    };
    match seconds {
        0 => format!("{} ms", length.as_millis()),
        1..10 if length.subsec_millis() >= 50 => format!("{:.1} s", length.as_secs_f64().min(9.9)),
        1..60 => format!("{seconds} s"),
        60..3600 => pair(seconds / 60, "min", seconds % 60, "s"),
        3600..86400 => pair(seconds / 3600, "h", seconds % 3600 / 60, "min"),
        _ => pair(seconds / 86400, "d", seconds % 86400 / 3600, "h"),
    }
}

/// An instant, to the second: `2026-11-21 10:00:00 UTC`.
#[must_use]
pub fn time(instant: DateTime<Utc>) -> String {
    instant.format("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// An instant with its microseconds, as far as PostgreSQL records them: `2026-11-21 10:00:00.000123 UTC`.
#[must_use]
pub fn exact_time(instant: DateTime<Utc>) -> String {
    instant.format("%Y-%m-%d %H:%M:%S%.6f UTC").to_string()
}

/// Reads a size: `256MB`, `1.5 GB`, `512` (bytes). The units are those of `postgresql.conf`.
pub fn parse_size(text: &str) -> Result<u64> {
    let bad =
        || Error::invalid(format!("\"{text}\" is not a size")).hint("write it like 256MB (units: B, kB, MB, GB, TB)");
    let (number, unit) = split(text).ok_or_else(bad)?;
    let factor = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        unit => SIZES.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).ok_or_else(bad)?.1,
    };
    scaled(number, factor).ok_or_else(bad)
}

/// Reads a length of time: `60s`, `5min`, `1.5h`, `14 days`. The units are those of `postgresql.conf`, and days and weeks
/// in words; one is needed.
pub fn parse_duration(text: &str) -> Result<Duration> {
    let bad = || {
        Error::invalid(format!("\"{text}\" is not a length of time"))
            .hint("write it like 60s (units: ms, s, min, h, d)")
    };
    let (number, unit) = split(text).ok_or_else(bad)?;
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1000,
        "min" => 60_000,
        "h" => 3_600_000,
        "d" | "day" | "days" => 86_400_000,
        "week" | "weeks" => 7 * 86_400_000,
        _ => return Err(bad()),
    };
    scaled(number, milliseconds).map(Duration::from_millis).ok_or_else(bad)
}

fn split(text: &str) -> Option<(&str, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    (end > 0).then(|| (&text[..end], text[end..].trim()))
}

/// Exact for whole numbers; a fraction is rounded to the nearest unit.
fn scaled(number: &str, factor: u64) -> Option<u64> {
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor);
    }
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked")]
    number.parse::<f64>().ok().map(|n| (n * factor as f64).round()).filter(|n| *n < 9e15).map(|n| n as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (1, "1 byte"),
            (1000, "1000 bytes"),
            (1024, "1 kB"),
            (1536, "1.5 kB"),
            (16 << 20, "16 MB"),
            ((1 << 20) - 1, "1 MB"),
            (1_288_490_189, "1.2 GB"),
            (5 << 40, "5 TB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn durations_and_times_read_well() {
        for (millis, text) in [
            (340, "340 ms"),
            (4200, "4.2 s"),
            (5000, "5 s"),
            (9999, "9.9 s"),
            (42_000, "42 s"),
            (125_000, "2 min 5 s"),
            (3_600_000, "1 h"),
            (11_400_000, "3 h 10 min"),
            (187_200_000, "2 d 4 h"),
        ] {
            assert_eq!(duration(Duration::from_millis(millis)), text);
        }
        let instant = DateTime::from_timestamp(1_795_255_200, 123_456_789).unwrap();
        assert_eq!(time(instant), "2026-11-21 10:00:00 UTC");
        assert_eq!(exact_time(instant), "2026-11-21 10:00:00.123456 UTC");
    }

    #[test]
    fn sizes_and_durations_are_read_strictly() {
        assert_eq!(parse_size("256MB").unwrap(), 256 << 20);
        assert_eq!(parse_size(" 1.5 gb ").unwrap(), 3 << 29);
        assert_eq!(parse_size("8192").unwrap(), 8192);
        assert_eq!(parse_duration("5min").unwrap(), Duration::from_secs(300));
        assert_eq!(parse_duration("1.5 h").unwrap(), Duration::from_secs(5400));
        assert_eq!(parse_duration("14 days").unwrap(), parse_duration("2 weeks").unwrap());
        for bad in ["", "MB", "-1MB", "1 XB", "1e3", "99999999999TB", "1.2.3"] {
            assert!(parse_size(bad).is_err(), "{bad:?}");
        }
        // A bare number could be seconds or milliseconds, and M is a month to some.
        for bad in ["60", "5m", "1M", "s", "-5s"] {
            assert!(parse_duration(bad).is_err(), "{bad:?}");
        }
    }
}
