//! The record that straddles segments.

use super::{Ending, Lead, RowCount, Summary, Tail, add::filled};
use crate::{
    postgres::{Lsn, Version},
    wal::{
        Fact, Record,
        decode::{decode, needed},
        reader::HELD,
        record::{HEADER, RecordHeader},
    },
};

/// How the records of one segment go on in the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Joined {
    /// Nothing is open between the two any more.
    Whole,
    /// The record at the end of the first goes on past the second, too: join the first with the one after that.
    GoesOn,
    /// The second does not continue the first.
    Broken {
        /// Where the first ends that is proven.
        at: Lsn,
        /// What is wrong.
        why: String,
    },
}

impl Summary {
    /// Makes the record that straddles this segment and `next`, the one after it on the path, and adds what it tells to
    /// this summary. `version` is that of the segments. Proves that the records of both are one chain.
    ///
    /// The record is then gone from [`Summary::tail`] and [`Summary::lead`]; only when what it tells is not known it stays
    /// in this one's tail, marked ([`Summary::suffices`]). A second call changes nothing.
    pub fn join(&mut self, next: &mut Self, version: Version) -> Joined {
        match self.try_join(next, version) {
            Ok(joined) => joined,
            Err(why) => Joined::Broken { at: self.end, why },
        }
    }

    fn try_join(&mut self, next: &mut Self, version: Version) -> Result<Joined, String> {
        match &self.ending {
            Ending::Full | Ending::Switch => {}
            Ending::Zeros => return Err("nothing was written behind it".into()),
            Ending::Broken { why, .. } => return Err(why.clone()),
        }
        match (self.tail.take(), next.lead.take()) {
            (Some(tail), lead) if tail.unknown => {
                self.tail = Some(tail);
                next.lead = lead;
            }
            (Some(tail), _) if next.gives_up(tail.start) => self.give_up(&tail),
            (Some(tail), Some(lead)) => {
                let goes_on = lead.here < lead.left && next.first.is_none() && next.ending == Ending::Full;
                return self.go_on(tail, lead, goes_on, next, version);
            }
            (Some(tail), None) => {
                let why = format!("the record at {} is not continued in the next segment", tail.start);
                self.tail = Some(tail);
                return Err(why);
            }
            // It began before this segment.
            (None, Some(_)) if self.first.is_none() => {}
            (None, Some(lead)) => {
                next.lead = Some(lead);
                return Err("the next segment continues another record".into());
            }
            (None, None) => {}
        }
        self.check_link(next)
    }

    /// The record at the end of this segment, of which the next one holds `lead`.
    fn go_on(
        &mut self,
        mut tail: Tail,
        lead: Lead,
        goes_on: bool,
        next: &mut Self,
        version: Version,
    ) -> Result<Joined, String> {
        if !tail.fits(&lead) || (!goes_on && lead.here < lead.left) {
            let why = format!("the record at {} is not continued in the next segment", tail.start);
            (self.tail, next.lead) = (Some(tail), Some(lead));
            return Err(why);
        }
        let (end, until) = (lead.end, lead.until);
        tail.absorb(&lead);
        if goes_on {
            self.tail = Some(tail);
            return Ok(Joined::GoesOn);
        }
        let (header, fact) = match tail.proven().and_then(|header| Ok((header, tail.fact(&header, version)?))) {
            Ok(proven) => proven,
            Err(why) => {
                self.ending = Ending::Broken { at: tail.start, why: why.clone() };
                return Err(why);
            }
        };
        let mut record = Record {
            start: tail.start,
            end,
            prev: header.prev,
            xid: header.xid,
            rmid: header.rmid,
            info: header.info,
            length: header.length,
            fact: Fact::Other,
        };
        if self.first == Some(tail.start) {
            self.prev = Some(header.prev);
        }
        match fact {
            Some(fact) => {
                if fact == Fact::Switch {
                    record.end = until;
                    (next.end, next.ending) = (until, Ending::Switch);
                }
                record.fact = fact;
            }
            None => self.tail = Some(tail.mark_unknown()),
        }
        if filled(&record.fact).is_some_and(|file| self.made_database(file.database, record.xid)) {
            record.fact = Fact::Other;
        }
        self.count_rows(&record);
        self.add(record);
        self.check_link(next)
    }

    /// Whether this segment begins, behind what it holds of it, by giving up the record at `start`.
    fn gives_up(&self, start: Lsn) -> bool {
        let mut turns = self.turns.items.iter().take_while(|told| Some(told.lsn) == self.first);
        turns.any(|told| matches!(told.fact, Fact::OverwriteContrecord { overwritten, .. } if overwritten == start))
    }

    /// The record at the end counts as never written.
    fn give_up(&mut self, tail: &Tail) {
        self.last = tail.prev;
        if self.first == Some(tail.start) {
            (self.first, self.prev) = (None, None);
        }
    }

    fn check_link(&self, next: &Self) -> Result<Joined, String> {
        match (self.last, next.first, next.prev) {
            (Some(last), Some(first), Some(prev)) if last != prev => {
                Err(format!("the record at {first} says that it follows {prev}, but the one before it is {last}"))
            }
            _ => Ok(Joined::Whole),
        }
    }

    fn made_database(&self, database: u32, xid: u32) -> bool {
        let mut made = self.changes.items.iter().filter(|told| told.xid == xid);
        made.any(|told| matches!(told.fact, Fact::DatabaseCreate { oid, .. } if oid == database))
    }

    fn count_rows(&mut self, record: &Record) {
        let Some(mut count) = RowCount::of(record) else { return };
        let rows = &mut self.rows.items;
        match rows.iter_mut().find(|row| row.file == count.file && row.xid == count.xid) {
            Some(row) => row.add(&record.fact),
            None => {
                count.add(&record.fact);
                count.unended = true;
                rows.push(count);
            }
        }
        self.rows.sort();
    }
}

impl Tail {
    /// Whether `lead` has what this record still lacks.
    fn fits(&self, lead: &Lead) -> bool {
        let length = self.bytes.as_deref().and_then(<[u8]>::first_chunk).copied().map(u32::from_le_bytes);
        length.is_some() && self.here.checked_add(lead.left) == length
    }

    /// Adds the bytes that the next segment has of the record.
    fn absorb(&mut self, lead: &Lead) {
        let bytes = self.bytes.get_or_insert_default();
        let more = lead.bytes.as_deref().unwrap_or_default();
        // The CRC of the header is not part of this one.
        let head = &more[..more.len().min(HEADER.saturating_sub(self.here as usize))];
        let length = (lead.here as usize).saturating_sub(head.len());
        let crc = crc32c::crc32c_combine(crc32c::crc32c(head), lead.crc, length);
        self.crc = crc32c::crc32c_combine(self.crc, crc, length);
        if bytes.len() == self.here as usize {
            bytes.extend_from_slice(&more[..more.len().min(HELD.saturating_sub(bytes.len()))]);
        }
        self.here = self.here.saturating_add(lead.here);
    }

    /// The header of the record, of which all bytes were there, when its CRC is right.
    fn proven(&self) -> Result<RecordHeader, String> {
        let bytes: Option<&[u8; HEADER]> = self.bytes.as_deref().and_then(<[u8]>::first_chunk);
        let header = bytes.and_then(RecordHeader::parse);
        let (Some(bytes), Some(header)) = (bytes, header) else {
            return Err(format!("the header of the record at {} is missing", self.start));
        };
        if let Some(why) = header.fault(self.start, self.prev) {
            return Err(why);
        }
        if crc32c::crc32c_append(self.crc, &bytes[..HEADER - 4]) != header.crc {
            return Err(format!("the CRC of the record at {} is wrong", self.start));
        }
        Ok(header)
    }

    /// What the record says; none when too few of its bytes are here.
    fn fact(&self, header: &RecordHeader, version: Version) -> Result<Option<Fact>, String> {
        let body = self.bytes.as_deref().and_then(|bytes| bytes.get(HEADER..)).unwrap_or_default();
        let whole = (header.length as usize).saturating_sub(HEADER);
        if body.len() < needed(header.rmid, header.info).min(whole) {
            return Ok(None);
        }
        let fact = decode(header, body, version);
        fact.map(Some).ok_or_else(|| format!("the record at {} is not laid out as its version does", self.start))
    }

    fn mark_unknown(mut self) -> Self {
        self.unknown = true;
        self.bytes.iter_mut().for_each(|bytes| bytes.truncate(HEADER));
        self
    }
}
