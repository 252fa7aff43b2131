//! What a person wishes recovery to reach, as it is typed after `--to`.

use std::{fmt, str::FromStr};

use chrono::{DateTime, Duration, FixedOffset, MappedLocalTime, NaiveDateTime, TimeZone, Utc};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize, de};

use super::name::{self, TableName};
use crate::{
    error::{Error, Result},
    postgres::Lsn,
    wal::StopRule,
};

/// A wish, not resolved yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The instant.
    pub point: Point,
    /// Whether recovery should stop just before it.
    pub before: bool,
}

/// An instant in one of the ways to name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Point {
    /// The end of the archive.
    Latest,
    /// As soon as the backup is consistent.
    Immediate,
    /// A time.
    Time(DateTime<Utc>),
    /// An address.
    Lsn(Lsn),
    /// The end of a transaction. Below 2^32 PostgreSQL's 32-bit number, else with its epoch.
    Xid(u64),
    /// A restore point.
    Name(String),
    /// The drop of a table; always exclusive.
    Drop(TableName),
    /// The drop of a database; always exclusive.
    DropDatabase(String),
}

impl Target {
    /// Reads a target. `now` is what "10 minutes ago" counts from.
    pub fn parse(text: &str, now: DateTime<Utc>) -> Result<Self> {
        let text = text.trim();
        if let Some(name) = text.strip_prefix("before-drop:") {
            return Ok(Self { point: Point::Drop(name.parse()?), before: true });
        }
        if let Some(name) = text.strip_prefix("before-drop-database:") {
            return Ok(Self { point: Point::DropDatabase(name::database(name)?), before: true });
        }
        if let Some(rest) = text.strip_prefix("before:") {
            let point = Point::parse(rest.trim(), now)?;
            if matches!(point, Point::Latest | Point::Immediate) {
                return Err(Error::invalid(format!("\"{text}\" makes no sense"))
                    .hint("before: takes an LSN, a time, xid:N or name:N"));
            }
            return Ok(Self { point, before: true });
        }
        Ok(Self { point: Point::parse(text, now)?, before: false })
    }

    /// The rule by which recovery stops there; none where the log must be searched for it first.
    pub(super) fn rule(&self) -> Option<StopRule> {
        let inclusive = !self.before;
        Some(match &self.point {
            Point::Latest | Point::Immediate => StopRule::Latest,
            Point::Time(time) => StopRule::Time { time: *time, inclusive },
            Point::Lsn(lsn) => StopRule::Lsn { lsn: *lsn, inclusive },
            Point::Xid(xid) => StopRule::Xid { xid: *xid, inclusive },
            Point::Name(name) => StopRule::Name { name: name.clone(), inclusive },
            Point::Drop(_) | Point::DropDatabase(_) => return None,
        })
    }
}

impl Point {
    fn parse(text: &str, now: DateTime<Utc>) -> Result<Self> {
        match text {
            "latest" => return Ok(Self::Latest),
            "immediate" => return Ok(Self::Immediate),
            "now" => return Ok(Self::Time(now)),
            _ => {}
        }
        if let Some(xid) = text.strip_prefix("xid:") {
            return match xid.parse::<u64>() {
                Ok(number) if number >= 3 => Ok(Self::Xid(number)),
                _ => Err(Error::invalid(format!("\"{xid}\" is not a transaction's number")).hint("as in xid:1234")),
            };
        }
        if let Some(name) = text.strip_prefix("name:") {
            // MAXFNAMELEN in xlog_internal.h, its final zero left out.
            return match name.len() {
                1..=63 => Ok(Self::Name(name.to_owned())),
                _ => Err(Error::invalid(format!("\"{name}\" is not a restore point's name; those have 1 to 63 bytes"))),
            };
        }
        if let Ok(lsn) = text.parse() {
            return Ok(Self::Lsn(lsn));
        }
        if let Some(ago) = text.strip_suffix("ago") {
            return Ok(Self::Time(now - span(ago.trim(), text)?));
        }
        time(text, now).map(Self::Time)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.point {
            Point::Drop(_) | Point::DropDatabase(_) => write!(f, "before-{}", self.point),
            _ if self.before => write!(f, "before:{}", self.point),
            _ => self.point.fmt(f),
        }
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => f.write_str("latest"),
            Self::Immediate => f.write_str("immediate"),
            Self::Time(time) => f.write_str(&time.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true)),
            Self::Lsn(lsn) => lsn.fmt(f),
            Self::Xid(xid) => write!(f, "xid:{xid}"),
            Self::Name(name) => write!(f, "name:{name}"),
            Self::Drop(name) => write!(f, "drop:{name}"),
            Self::DropDatabase(name) => write!(f, "drop-database:{}", name::quoted(name)),
        }
    }
}

impl Serialize for Target {
    fn serialize<S: serde::Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Target {
    /// Reads what was serialised, which names no time that counts from now.
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        Self::parse(&text, DateTime::UNIX_EPOCH).map_err(de::Error::custom)
    }
}

/// A length of time such as `10 minutes`, `2h` or `1 day 3 hours`.
fn span(text: &str, whole: &str) -> Result<Duration> {
    let bad = || {
        Error::invalid(format!("\"{whole}\" is not a time"))
            .hint("as in \"10 minutes ago\", \"2 hours ago\", \"1 day ago\"")
    };
    let mut total = Duration::zero();
    let mut rest = text;
    if rest.is_empty() {
        return Err(bad());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let count: i64 = rest[..digits].parse().map_err(|_| bad())?;
        rest = rest[digits..].trim_start();
        let letters = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
        let seconds = match &rest[..letters] {
            "s" | "sec" | "secs" | "second" | "seconds" => 1,
            "m" | "min" | "mins" | "minute" | "minutes" => 60,
            "h" | "hour" | "hours" => 3600,
            "d" | "day" | "days" => 86_400,
            "w" | "week" | "weeks" => 604_800,
            _ => return Err(bad()),
        };
        let part = count.checked_mul(seconds).and_then(Duration::try_seconds).ok_or_else(bad)?;
        total = total.checked_add(&part).ok_or_else(bad)?;
        rest = rest[letters..].trim_start_matches([' ', ',']);
    }
    Ok(total)
}

/// Forms of a time without its zone. A `T` in the middle has been made a space.
const FORMS: [&str; 2] = ["%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M"];

/// A time with its zone: an offset, `Z`, `UTC`, or a name of the IANA database.
fn time(text: &str, now: DateTime<Utc>) -> Result<DateTime<Utc>> {
    let spaced = match text.char_indices().nth(10) {
        Some((at, 'T' | 't')) => format!("{} {}", &text[..at], &text[at + 1..]),
        _ => text.to_owned(),
    };
    if let Some(naive) = naive(&spaced) {
        return Err(without_zone(text, naive, now));
    }
    let (naive_text, zone) = split_zone(&spaced);
    let Some(naive) = naive(naive_text.trim_end()) else {
        return Err(Error::invalid(format!("\"{text}\" is not a target")).hint(
            "latest, immediate, a time with its zone (2026-11-21 10:00:00 UTC), \"10 minutes ago\", an LSN (0/16B3740), xid:N, name:N, before: one of the last four, before-drop:TABLE, before-drop-database:NAME",
        ));
    };
    match zone {
        "Z" | "z" | "UTC" | "GMT" => return Ok(naive.and_utc()),
        _ => {}
    }
    if let Some(offset) = offset(zone) {
        return one(offset.from_local_datetime(&naive), text, zone);
    }
    let tz = Tz::from_str(zone).map_err(|_| {
        Error::invalid(format!("\"{zone}\" is not a time zone"))
            .hint("give an offset (+01:00), UTC, or a name such as Europe/Berlin; abbreviations such as EST mean different things in different places")
    })?;
    if zone.len() <= 4 {
        return Err(Error::invalid(format!("\"{zone}\" means different things in different places"))
            .hint("give an offset (+01:00), UTC, or a name such as Europe/Berlin"));
    }
    one(tz.from_local_datetime(&naive), text, zone)
}

fn naive(text: &str) -> Option<NaiveDateTime> {
    FORMS.iter().find_map(|form| NaiveDateTime::parse_from_str(text, form).ok())
}

/// Splits a zone off the end: what follows the last space, or a sign or Z right after the time of day.
fn split_zone(text: &str) -> (&str, &str) {
    let clock = text.find(':').unwrap_or(0);
    let end =
        text[clock..].find(|c: char| !(c.is_ascii_digit() || matches!(c, ':' | '.'))).map_or(text.len(), |i| clock + i);
    (&text[..end], text[end..].trim())
}

/// `+01`, `-0330`, `+05:45`.
fn offset(text: &str) -> Option<FixedOffset> {
    let (sign, digits) = match text.as_bytes().first()? {
        b'+' => (1, &text[1..]),
        b'-' => (-1, &text[1..]),
        _ => return None,
    };
    let digits = digits.replace(':', "");
    if !matches!(digits.len(), 2 | 4) || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let hours: i32 = digits[..2].parse().ok()?;
    let minutes: i32 = digits.get(2..).filter(|m| !m.is_empty()).map_or(Ok(0), str::parse).ok()?;
    (hours <= 15 && minutes < 60).then(|| FixedOffset::east_opt(sign * (hours * 3600 + minutes * 60))).flatten()
}

/// The one instant that a local time means; at the end of summer time it can be two, at its beginning none.
fn one<Z: TimeZone>(local: MappedLocalTime<DateTime<Z>>, text: &str, zone: &str) -> Result<DateTime<Utc>> {
    let show = |t: DateTime<Z>| t.with_timezone(&Utc).format("%Y-%m-%d %H:%M:%S UTC");
    match local {
        MappedLocalTime::Single(time) => Ok(time.with_timezone(&Utc)),
        MappedLocalTime::Ambiguous(first, second) => Err(Error::invalid(format!(
            "\"{text}\" was twice in {zone}, because the clocks went back"
        ))
        .hint(format!("give one of: {} or {}", show(first), show(second)))),
        MappedLocalTime::None => {
            Err(Error::invalid(format!("\"{text}\" never was in {zone}, because the clocks went forward"))
                .hint("give the time in UTC"))
        }
    }
}

fn without_zone(text: &str, naive: NaiveDateTime, now: DateTime<Utc>) -> Error {
    let here = local_zone();
    let mut readings = vec![format!("\"{naive} UTC\"")];
    if let Some(tz) = here
        && let MappedLocalTime::Single(local) = tz.from_local_datetime(&naive)
        && tz.offset_from_utc_datetime(&now.naive_utc()).to_string() != "UTC"
    {
        readings.push(format!(
            "\"{naive} {tz}\" (this machine's zone, {} UTC)",
            local.with_timezone(&Utc).format("%H:%M:%S")
        ));
    }
    readings.push(format!("\"{naive}+01:00\" or whatever offset you mean"));
    Error::invalid(format!("\"{text}\" has no time zone")).hint(format!("say which: {}", readings.join(", or ")))
}

/// The machine's zone as `/etc/localtime` names it.
fn local_zone() -> Option<Tz> {
    let named = std::env::var("TZ").ok().or_else(|| {
        let link = std::fs::read_link("/etc/localtime").ok()?;
        Some(link.to_str()?.rsplit_once("zoneinfo/")?.1.to_owned())
    })?;
    named.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> DateTime<Utc> {
        "2026-11-21T10:00:00Z".parse().unwrap()
    }

    fn at(text: &str) -> String {
        match Target::parse(text, now()).unwrap().point {
            Point::Time(time) => time.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true),
            other => panic!("{text} is {other:?}"),
        }
    }

    #[test]
    fn a_time_is_taken_with_its_zone() {
        for (text, utc) in [
            ("2026-11-21T10:00:00Z", "2026-11-21T10:00:00Z"),
            ("2026-11-21 11:00:00+01", "2026-11-21T10:00:00Z"),
            ("2026-11-21 11:00 Europe/Berlin", "2026-11-21T10:00:00Z"),
            ("2026-11-21 10:00:00.123456 UTC", "2026-11-21T10:00:00.123456Z"),
            ("2026-11-21 05:30:00 -04:30", "2026-11-21T10:00:00Z"),
            ("2026-11-21 15:45:00+05:45", "2026-11-21T10:00:00Z"),
            ("10 minutes ago", "2026-11-21T09:50:00Z"),
            ("1 day 2h ago", "2026-11-20T08:00:00Z"),
        ] {
            assert_eq!(at(text), utc, "{text}");
        }
    }

    #[test]
    fn what_could_mean_two_things_is_refused_with_both() {
        for (text, said) in [
            ("2026-11-21 10:00:00", "2026-11-21 10:00:00 UTC"),
            ("2026-10-25 02:30 Europe/Berlin", "2026-10-25 00:30:00 UTC or 2026-10-25 01:30:00 UTC"),
            ("2026-03-29 02:30 Europe/Berlin", "UTC"),
            ("2026-11-21 10:00:00 EST", "offset"),
            ("2026-11-21", "with its zone"),
            ("yesterday", "with its zone"),
            ("minutes ago", "10 minutes ago"),
        ] {
            let error = Target::parse(text, now()).unwrap_err();
            assert!(error.hint_text().is_some_and(|h| h.contains(said)), "{text}: {error} ({:?})", error.hint_text());
        }
    }

    #[test]
    fn the_other_ways_to_name_an_instant() {
        let parse = |text: &str| Target::parse(text, now()).unwrap();
        assert_eq!(parse("latest").point, Point::Latest);
        assert_eq!(parse("before:0/16B3740"), Target { point: Point::Lsn(Lsn(0x16B_3740)), before: true });
        assert_eq!(parse("before: xid:1234").point, Point::Xid(1234));
        assert_eq!(parse("name:before deploy").point, Point::Name("before deploy".into()));
        assert_eq!(parse("before-drop: Shop.orders").to_string(), "before-drop:shop.orders");
        let database = Target { point: Point::DropDatabase("Shop".into()), before: true };
        assert_eq!(parse("before-drop-database:\"Shop\""), database);
        for text in ["before:latest", "xid:x", "xid:1", "name:", "0/", "", "before-drop:", "before-drop-database:a.b"] {
            assert!(Target::parse(text, now()).is_err(), "{text}");
        }
        for text in [
            "latest",
            "before:0/16B3740",
            "xid:77",
            "before:name:a b",
            "2026-11-21T10:00:00Z",
            "before-drop:a.\"B\".c",
            "before-drop-database:\"A\"",
        ] {
            assert_eq!(parse(text).to_string(), text);
        }
    }
}
