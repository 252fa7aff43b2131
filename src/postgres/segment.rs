//! Names and sizes of the files that PostgreSQL archives: segments, partial segments, timeline histories
//! and backup labels (`src/include/access/xlog_internal.h`).

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{Lsn, TimelineId};
use crate::error::{Error, Result};

/// The size of a WAL segment in bytes: a power of two from 1 MB to 1 GB (`IsValidWalSegSize`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct SegmentSize(u32);

impl SegmentSize {
    /// 16 MB, PostgreSQL's own choice.
    pub const DEFAULT: Self = Self(16 << 20);

    /// That many bytes, when PostgreSQL allows it.
    pub fn new(bytes: u64) -> Result<Self> {
        match u32::try_from(bytes) {
            Ok(size) if size.is_power_of_two() && (1 << 20..=1 << 30).contains(&size) => Ok(Self(size)),
            _ => Err(Error::invalid(format!(
                "{bytes} bytes is no WAL segment size; PostgreSQL allows powers of two from 1 MB to 1 GB"
            ))),
        }
    }

    /// In bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        u64::from(self.0)
    }

    /// How many segments share the middle eight digits of the name (`XLogSegmentsPerXLogId`).
    #[must_use]
    pub fn per_log(self) -> u64 {
        (1 << 32) / self.bytes()
    }

    /// The number, from the start of the log, of the segment that holds `lsn`.
    #[must_use]
    pub fn number_of(self, lsn: Lsn) -> u64 {
        lsn.0 / self.bytes()
    }

    /// The offset of `lsn` in its segment, in bytes.
    #[must_use]
    pub fn offset_of(self, lsn: Lsn) -> u64 {
        lsn.0 % self.bytes()
    }
}

impl TryFrom<u32> for SegmentSize {
    type Error = Error;

    fn try_from(bytes: u32) -> Result<Self> {
        Self::new(bytes.into())
    }
}

impl From<SegmentSize> for u32 {
    fn from(size: SegmentSize) -> Self {
        size.0
    }
}

/// A segment's name: 24 hexadecimal digits, `TTTTTTTTLLLLLLLLSSSSSSSS`.
///
/// Which LSN it holds depends on the segment size; names of one timeline sort as their LSNs do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentName {
    /// The timeline that wrote it.
    pub timeline: TimelineId,
    /// The middle eight digits: the high 32 bits of its LSNs.
    pub log: u32,
    /// The last eight digits: which segment of that log.
    pub segment: u32,
}

impl SegmentName {
    /// The name of segment `number` (from the start of the log). `None` past the end of the address space.
    #[must_use]
    pub fn from_number(timeline: TimelineId, number: u64, size: SegmentSize) -> Option<Self> {
        let log = u32::try_from(number / size.per_log()).ok()?;
        let segment = u32::try_from(number % size.per_log()).ok()?;
        Some(Self { timeline, log, segment })
    }

    /// The name of the segment that holds `lsn` on `timeline`.
    #[must_use]
    pub fn holding(timeline: TimelineId, lsn: Lsn, size: SegmentSize) -> Self {
        let per_log = size.per_log();
        let number = size.number_of(lsn);
        // An LSN has 64 bits, so that the quotient fits 32 bits whatever the size.
        Self { timeline, log: (number / per_log) as u32, segment: (number % per_log) as u32 }
    }

    /// Its number from the start of the log. An error when the last eight digits are impossible at this size.
    pub fn number(self, size: SegmentSize) -> Result<u64> {
        if u64::from(self.segment) >= size.per_log() {
            return Err(Error::invalid(format!(
                "{self} cannot be a segment of {} MB: its last eight digits are too high",
                size.bytes() >> 20
            )));
        }
        Ok(u64::from(self.log) * size.per_log() + u64::from(self.segment))
    }

    /// The LSN of its first byte.
    pub fn start(self, size: SegmentSize) -> Result<Lsn> {
        Ok(Lsn(self.number(size)? * size.bytes()))
    }

    /// The segment after it on the same timeline.
    pub fn next(self, size: SegmentSize) -> Result<Self> {
        let number = self.number(size)? + 1;
        Self::from_number(self.timeline, number, size)
            .ok_or_else(|| Error::invalid(format!("{self} is the last segment of the log")))
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08X}{:08X}{:08X}", self.timeline.get(), self.log, self.segment)
    }
}

impl FromStr for SegmentName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.parse()? {
            WalFile::Segment(name) => Ok(name),
            _ => Err(Error::invalid(format!("\"{text}\" is not the name of a WAL segment"))
                .hint("a segment's name has 24 upper-case hexadecimal digits")),
        }
    }
}

text_in_json!(SegmentName);

/// A file that PostgreSQL hands to `archive_command` or asks of `restore_command`, known by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WalFile {
    /// A whole segment.
    Segment(SegmentName),
    /// `<segment>.partial`: the unfinished last segment of a timeline that a promotion left.
    Partial(SegmentName),
    /// `<segment>.<offset>.backup`: the label file of a base backup that started there.
    BackupLabel(SegmentName, u32),
    /// `<timeline>.history`.
    History(TimelineId),
}

impl WalFile {
    /// The segment that it is, or that it belongs to; none of a history file.
    #[must_use]
    pub fn segment(self) -> Option<SegmentName> {
        match self {
            Self::Segment(name) | Self::Partial(name) | Self::BackupLabel(name, _) => Some(name),
            Self::History(_) => None,
        }
    }
}

impl fmt::Display for WalFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Segment(name) => name.fmt(f),
            Self::Partial(name) => write!(f, "{name}.partial"),
            Self::BackupLabel(name, offset) => write!(f, "{name}.{offset:08X}.backup"),
            Self::History(timeline) => write!(f, "{}.history", timeline.hex()),
        }
    }
}

impl FromStr for WalFile {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        parse(text).ok_or_else(|| {
            Error::invalid(format!("\"{text}\" is not the name of a file that PostgreSQL archives"))
                .hint("expected a segment (24 hexadecimal digits), <segment>.partial, <segment>.<offset>.backup or <timeline>.history")
        })
    }
}

text_in_json!(WalFile);

/// Eight upper-case hexadecimal digits, the only form PostgreSQL writes and accepts.
fn hex(digits: &str) -> Option<u32> {
    let strict = digits.len() == 8 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'));
    strict.then(|| u32::from_str_radix(digits, 16).ok()).flatten()
}

fn parse(text: &str) -> Option<WalFile> {
    if let Some(digits) = text.strip_suffix(".history") {
        return Some(WalFile::History(TimelineId::new(hex(digits)?).ok()?));
    }
    let (digits, rest) = text.split_at_checked(24)?;
    let name = SegmentName {
        timeline: TimelineId::new(hex(digits.get(..8)?)?).ok()?,
        log: hex(digits.get(8..16)?)?,
        segment: hex(digits.get(16..)?)?,
    };
    match rest {
        "" => Some(WalFile::Segment(name)),
        ".partial" => Some(WalFile::Partial(name)),
        _ => {
            let offset = rest.strip_prefix('.')?.strip_suffix(".backup")?;
            Some(WalFile::BackupLabel(name, hex(offset)?))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_every_kind_of_name() {
        for text in [
            "000000010000000000000001",
            "0000000100000000000000FF.partial",
            "000000020000000A000000FE.00000028.backup",
            "0000000B.history",
        ] {
            assert_eq!(text.parse::<WalFile>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn refuses_what_is_no_name() {
        for text in [
            "",
            "00000000.history",
            "1.history",
            "000000000000000000000001",
            "00000001000000000000000g",
            "00000001000000000000000a",
            "000000010000000000000001.backup",
            "000000010000000000000001.tmp",
            "../000000010000000000001",
            "ééééééééééééé",
        ] {
            assert!(text.parse::<WalFile>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_last_digits_depend_on_the_size() {
        let name: SegmentName = "0000000100000000000000FF".parse().unwrap();
        assert_eq!(name.start(SegmentSize::DEFAULT).unwrap(), Lsn(0xFF00_0000));
        assert_eq!(name.next(SegmentSize::DEFAULT).unwrap().to_string(), "000000010000000100000000");
        assert!(name.start(SegmentSize::new(64 << 20).unwrap()).is_err());
        assert!(SegmentSize::new(3 << 20).is_err());
        assert!(SegmentSize::new(2 << 30).is_err());
    }

    proptest! {
        #[test]
        fn a_segment_holds_its_own_start(lsn: u64, shift in 20_u32..=30) {
            let size = SegmentSize::new(1 << shift).unwrap();
            let name = SegmentName::holding(TimelineId::FIRST, Lsn(lsn), size);
            prop_assert_eq!(name.to_string().parse::<SegmentName>().unwrap(), name);
            let start = name.start(size).unwrap();
            prop_assert!(start.0 <= lsn && lsn - start.0 < size.bytes());
            prop_assert_eq!(SegmentName::from_number(TimelineId::FIRST, size.number_of(Lsn(lsn)), size), Some(name));
        }
    }
}
