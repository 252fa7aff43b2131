//! Out of a record's bytes what it says ([`Fact`]). The layouts differ between versions; each decoder names its source.

use chrono::{DateTime, Utc};

use super::{
    Change, Checkpoint, Dropped, Fact, Lock, Parameters, Prepared, Rows, TransactionEnd, WalLevel,
    fields::Fields,
    named::{self, Updated, named},
    record::{Block, Body, HEADER, RecordHeader, resource_manager},
};
use crate::postgres::{Lsn, TimelineId, Version};

/// Of a logical message no more bytes than these are looked at.
const MESSAGE: usize = 4096;
/// Of page images no more bytes than these: up to 32 block references.
const IMAGES: usize = 1024;
/// The most bytes of a message, and of its prefix, that a fact repeats.
const MESSAGE_TEXT: usize = 200;

/// What records of one kind matter to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Interest {
    /// They tell nothing.
    None,
    /// What happened to tables and databases.
    Search,
    /// Where recovery can stop and what it needs, too.
    Plan,
}

impl Interest {
    /// That of such records.
    pub(super) fn of(rmid: u8, info: u8) -> Self {
        let told = |is: bool, interest| if is { interest } else { Self::None };
        let op = info & 0xF0;
        match rmid {
            resource_manager::HEAP => told(matches!(op & 0x70, 0x00 | 0x10 | 0x20 | 0x40 | 0x70), Self::Search),
            resource_manager::HEAP2 => told(op & 0x70 == 0x50, Self::Search),
            resource_manager::XACT if op & 0x70 == 0x50 => Self::Search,
            resource_manager::XACT => told(op & 0x70 <= 0x40, Self::Plan),
            resource_manager::XLOG if op == 0xB0 => Self::Search,
            resource_manager::XLOG => {
                told(matches!(op, 0x00 | 0x10 | 0x40 | 0x50 | 0x60 | 0x70 | 0x90 | 0xD0 | 0xE0), Self::Plan)
            }
            resource_manager::TABLESPACE => told(op <= 0x10, Self::Plan),
            resource_manager::SMGR => told(matches!(op, 0x10 | 0x20), Self::Search),
            resource_manager::DATABASE => told(op <= 0x20, Self::Search),
            resource_manager::RELMAP | resource_manager::STANDBY | resource_manager::LOGICALMSG => {
                told(op == 0, Self::Search)
            }
            _ => Self::None,
        }
    }
}

/// How many bytes of the body of such a record, from its first on, are needed to tell its fact: 0 when it tells none, and
/// `usize::MAX` when all are.
pub(super) fn needed(rmid: u8, info: u8) -> usize {
    match Interest::of(rmid, info) {
        Interest::None => 0,
        _ if rmid == resource_manager::LOGICALMSG => MESSAGE,
        _ if rmid == resource_manager::XLOG && info & 0xF0 == 0xB0 => IMAGES,
        _ => usize::MAX,
    }
}

/// The fact that a record with this body tells, of which [`needed`] says how much must be there; `None` when it is not
/// what the version writes.
pub(super) fn decode(header: &RecordHeader, body: &[u8], version: Version) -> Option<Fact> {
    let needed = needed(header.rmid, header.info);
    if needed == 0 {
        return Some(Fact::Other);
    }
    let body = &body[..body.len().min(needed)];
    let body = Body::parse(body, (header.length as usize).checked_sub(HEADER)?, version)?;
    let op = header.info & 0xF0;
    let fields = Fields::of(body.main);
    match header.rmid {
        resource_manager::HEAP => Some(heap(op & 0x70, &body, version).unwrap_or(Fact::Other)),
        resource_manager::HEAP2 => Some(multi_insert(&body).unwrap_or(Fact::Other)),
        resource_manager::XLOG if op == 0xB0 => Some(page_image(&body)),
        resource_manager::XLOG => xlog(op, fields, version),
        resource_manager::XACT => xact(header, fields, version),
        resource_manager::TABLESPACE => tablespace(op, fields),
        resource_manager::SMGR => smgr(op, fields),
        resource_manager::DATABASE => database(op, fields, version),
        resource_manager::RELMAP => relation_map(fields),
        resource_manager::STANDBY => locks(fields),
        resource_manager::LOGICALMSG => message(fields),
        _ => Some(Fact::Other),
    }
}

/// `src/include/access/heapam_xlog.h`. Block 0 is the row's page, in an update that of its new version; block 1 is that of
/// the old version where this is another one.
fn heap(op: u8, body: &Body<'_>, version: Version) -> Option<Fact> {
    const MOVED_TO_ANOTHER_PARTITION: u8 = 1 << 4;
    let mut fields = Fields::of(body.main);
    let mut block = body.blocks[0]?;
    let (change, offset) = match op {
        0x00 => (Change::Insert, fields.u16()?),
        0x70 => (Change::Inplace, fields.u16()?),
        _ => {
            // xmax, or old_xmax.
            fields.skip(4)?;
            let offset = fields.u16()?;
            // infobits_set.
            fields.skip(1)?;
            let moved = op == 0x10 && fields.u8()? & MOVED_TO_ANOTHER_PARTITION != 0;
            (if op == 0x10 && !moved { Change::Delete } else { Change::Update }, offset)
        }
    };
    let new = block;
    if change == Change::Update {
        block = body.blocks[1].filter(|old| old.fork == MAIN_FORK).unwrap_or(block);
    }
    let rows = rows(change, block, offset, 1);
    if change == Change::Insert
        && let Some(named) = named(rows.file.number, offset, &body.content, version)
    {
        return Some(Fact::Named { rows, named: Box::new(named), to: None });
    }
    if matches!(op, 0x20 | 0x40) && named::is_told_of(rows.file.number) {
        let flags = fields.u8()?;
        // new_xmax.
        fields.skip(4)?;
        let offset = fields.u16()?;
        return Some(match named::updated(rows.file.number, flags, offset, &body.content, version) {
            Updated::Same => Fact::Rows(rows),
            Updated::Named(named) => Fact::Named { rows, named: Box::new(named), to: Some((new.number, offset)) },
            Updated::Changed { at, bytes } => Fact::Renamed { rows, to: (new.number, offset), at, bytes },
        });
    }
    Some(Fact::Rows(rows))
}

const MAIN_FORK: u8 = 0;

/// `xl_heap_multi_insert`.
fn multi_insert(body: &Body<'_>) -> Option<Fact> {
    let mut fields = Fields::of(body.main);
    // flags and padding.
    fields.skip(2)?;
    Some(Fact::Rows(rows(Change::Insert, body.blocks[0]?, 0, fields.u16()?)))
}

fn rows(change: Change, block: Block, offset: u16, count: u16) -> Rows {
    Rows { change, file: block.file, block: block.number, offset, count }
}

/// `XLOG_FPI`: pages as they are, up to 32 in a record.
fn page_image(body: &Body<'_>) -> Fact {
    match body.blocks[0] {
        Some(block) if block.fork == MAIN_FORK => Fact::PageImage { file: block.file, pages: body.count },
        _ => Fact::Other,
    }
}

/// `src/include/catalog/storage_xlog.h`.
fn smgr(op: u8, mut fields: Fields<'_>) -> Option<Fact> {
    Some(match op {
        0x10 => {
            let file = fields.rel_file()?;
            if fields.u32()? == u32::from(MAIN_FORK) { Fact::FileCreate { file } } else { Fact::Other }
        }
        _ => {
            let blocks = fields.u32()?;
            Fact::FileTruncate { blocks, file: fields.rel_file()? }
        }
    })
}

/// `src/include/commands/dbcommands_xlog.h`: since 15 there are two ways to make a database, and `DROP` has the number
/// after both.
fn database(op: u8, mut fields: Fields<'_>, version: Version) -> Option<Fact> {
    const CREATE: u8 = 0x00;
    const CREATE_WAL_LOG: u8 = 0x10;
    let oid = fields.u32()?;
    let op = if version.0 < 15 && op == 0x10 { 0x20 } else { op };
    Some(match op {
        CREATE => Fact::DatabaseCreate { oid, tablespace: fields.u32()?, template: Some(fields.u32()?) },
        CREATE_WAL_LOG => Fact::DatabaseCreate { oid, tablespace: fields.u32()?, template: None },
        _ => {
            let mut list = list(&mut fields, 4)?;
            Fact::DatabaseDrop { oid, tablespaces: std::iter::from_fn(|| list.u32()).collect() }
        }
    })
}

/// `src/include/utils/relmapper.h`.
fn relation_map(mut fields: Fields<'_>) -> Option<Fact> {
    Some(Fact::RelationMap { database: fields.u32()? })
}

/// `xl_standby_locks` in `src/include/storage/standbydefs.h`.
fn locks(mut fields: Fields<'_>) -> Option<Fact> {
    let mut list = list(&mut fields, 12)?;
    let lock = || Some(Lock { xid: list.u32()?, database: list.u32()?, relation: list.u32()? });
    Some(Fact::Locks { locks: std::iter::from_fn(lock).collect() })
}

/// `xl_logical_message` in `src/include/replication/message.h`, of which `fields` may lack the end.
fn message(mut fields: Fields<'_>) -> Option<Fact> {
    let database = fields.u32()?;
    let transactional = fields.u8()? != 0;
    // Padding.
    fields.skip(3)?;
    let prefix_size = usize::try_from(fields.u64()?).ok()?;
    let size = u32::try_from(fields.u64()?).ok()?;
    let mut prefix = fields;
    let prefix = text(prefix.up_to(prefix_size.saturating_sub(1)));
    let text = if fields.skip(prefix_size).is_some() { text(fields.up_to(size as usize)) } else { String::new() };
    Some(Fact::Message { transactional, database, prefix, text, size })
}

/// The first bytes, as far as they are text.
fn text(bytes: &[u8]) -> String {
    let bytes = &bytes[..bytes.len().min(MESSAGE_TEXT)];
    bytes.utf8_chunks().next().map_or("", |chunk| chunk.valid()).to_owned()
}

/// `src/include/catalog/pg_control.h` (the opcodes) and `src/include/access/xlog_internal.h`.
fn xlog(op: u8, mut fields: Fields<'_>, version: Version) -> Option<Fact> {
    Some(match op {
        0x00 | 0x10 => Fact::Checkpoint(checkpoint(op == 0x00, fields, version)?),
        0x40 => Fact::Switch,
        0x50 => Fact::BackupEnd { start: Lsn(fields.u64()?) },
        0x60 => Fact::ParameterChange(parameters(fields)?),
        0x70 => Fact::RestorePoint { time: timestamp(fields.i64()?), name: fields.text() },
        0x90 => Fact::EndOfRecovery {
            time: timestamp(fields.i64()?),
            timeline: TimelineId::new(fields.u32()?).ok()?,
            previous: TimelineId::new(fields.u32()?).ok()?,
            wal_level: if version.0 >= 17 { WalLevel::from_number(fields.i32()?) } else { None },
        },
        0xD0 => Fact::OverwriteContrecord { overwritten: Lsn(fields.u64()?), time: timestamp(fields.i64()?) },
        0xE0 => Fact::CheckpointRedo { wal_level: fields.i32().and_then(WalLevel::from_number) },
        _ => Fact::Other,
    })
}

fn checkpoint(shutdown: bool, mut fields: Fields<'_>, version: Version) -> Option<Checkpoint> {
    let redo = Lsn(fields.u64()?);
    let timeline = TimelineId::new(fields.u32()?).ok()?;
    let previous = TimelineId::new(fields.u32()?).ok()?;
    // fullPageWrites and padding.
    fields.skip(4)?;
    // wal_level came with 17, in what was padding.
    let wal_level = fields.i32()?;
    let wal_level = if version.0 >= 17 { WalLevel::from_number(wal_level) } else { None };
    if version.0 >= 19 {
        // logicalDecodingEnabled and padding.
        fields.skip(8)?;
    }
    let next_xid = fields.u64()?;
    // nextOid to oldestMultiDB, with padding up to the time; nextMultiOffset has 8 bytes since 19.
    fields.skip(32)?;
    let time = DateTime::from_timestamp(fields.i64()?, 0)?;
    Some(Checkpoint { shutdown, redo, timeline, previous, wal_level, next_xid, time })
}

fn parameters(mut fields: Fields<'_>) -> Option<Parameters> {
    Some(Parameters {
        max_connections: fields.i32()?,
        max_worker_processes: fields.i32()?,
        max_wal_senders: fields.i32()?,
        max_prepared_transactions: fields.i32()?,
        max_locks_per_transaction: fields.i32()?,
        wal_level: WalLevel::from_number(fields.i32()?),
        wal_log_hints: fields.u8()? != 0,
        track_commit_timestamp: fields.u8()? != 0,
    })
}

/// `src/include/access/xact.h`.
fn xact(header: &RecordHeader, fields: Fields<'_>, version: Version) -> Option<Fact> {
    let op = header.info & 0x70;
    Some(match op {
        0x00 | 0x30 => Fact::Commit(Box::new(transaction_end(header, fields, version)?)),
        0x20 | 0x40 => Fact::Abort(Box::new(transaction_end(header, fields, version)?)),
        0x10 => Fact::Prepare(prepared(fields, version)?),
        0x50 => assignment(fields)?,
        _ => Fact::Other,
    })
}

/// `ParseCommitRecord` and `ParseAbortRecord` in `rmgrdesc/xactdesc.c`: the parts that `xinfo` announces follow each
/// other in the order of the tests below.
fn transaction_end(header: &RecordHeader, mut fields: Fields<'_>, version: Version) -> Option<TransactionEnd> {
    const HAS_INFO: u8 = 0x80;
    let prepared = header.info & 0x70 >= 0x30;
    let time = timestamp(fields.i64()?);
    let info = if header.info & HAS_INFO != 0 { fields.u32()? } else { 0 };
    let has = |bit: u32| info & (1 << bit) != 0;
    let mut end = TransactionEnd::new(header.xid, time);
    end.prepared = prepared;
    if has(0) {
        end.database = Some(fields.u32()?);
        // Its tablespace.
        fields.skip(4)?;
    }
    if has(1) {
        let mut list = list(&mut fields, 4)?;
        end.subtransactions = std::iter::from_fn(|| list.u32()).collect();
    }
    if has(2) {
        let mut list = list(&mut fields, 12)?;
        end.removed = std::iter::from_fn(|| list.rel_file()).collect();
    }
    if has(8) {
        // Dropped statistics came with 15, and grew to 64-bit object ids with 18.
        let item = if version.0 >= 18 { 16 } else { 12 };
        let mut list = list(&mut fields, item)?;
        end.dropped = std::iter::from_fn(|| list.take(item)).filter_map(dropped).collect();
    }
    if has(3) {
        // Cache invalidation messages.
        list(&mut fields, 16)?;
    }
    end.catalogues = has(3) || has(6);
    if has(4) {
        end.xid = fields.u32()?;
        if has(7) {
            end.gid = Some(fields.text());
        }
    } else if prepared {
        return None;
    }
    Some(end)
}

/// `xl_xact_assignment`.
fn assignment(mut fields: Fields<'_>) -> Option<Fact> {
    let top = fields.u32()?;
    let mut list = list(&mut fields, 4)?;
    Some(Fact::Assignment { top, subtransactions: std::iter::from_fn(|| list.u32()).collect() })
}

/// A list of items of this size, behind their count.
fn list<'a>(fields: &mut Fields<'a>, item: usize) -> Option<Fields<'a>> {
    let count = fields.count()?;
    fields.take(count.checked_mul(item)?).map(Fields::of)
}

/// The relation that an `xl_xact_stats_item` is about.
fn dropped(item: &[u8]) -> Option<Dropped> {
    const RELATION: i32 = 2;
    let mut fields = Fields::of(item);
    let kind = fields.i32()?;
    let dropped = Dropped { database: fields.u32()?, relation: fields.u32()? };
    (kind == RELATION).then_some(dropped)
}

/// `xl_xact_prepare`, and after it the name.
fn prepared(mut fields: Fields<'_>, version: Version) -> Option<Prepared> {
    // magic and total_len.
    fields.skip(8)?;
    let xid = fields.u32()?;
    // The database.
    fields.skip(4)?;
    let time = timestamp(fields.i64()?);
    // owner, nsubxacts, ncommitrels, nabortrels; ncommitstats and nabortstats came with 15; then ninvalmsgs,
    // initfileinval and a byte of padding.
    fields.skip(16 + if version.0 >= 15 { 8 } else { 0 } + 6)?;
    let length = usize::from(fields.u16()?);
    // origin_lsn and origin_timestamp.
    fields.skip(16)?;
    let gid = Fields::of(fields.take(length)?).text();
    Some(Prepared { xid, gid, time })
}

/// `src/include/commands/tablespace.h`.
fn tablespace(op: u8, mut fields: Fields<'_>) -> Option<Fact> {
    let oid = fields.u32()?;
    Some(match op {
        0x00 => Fact::TablespaceCreate { oid, path: fields.text() },
        0x10 => Fact::TablespaceDrop { oid },
        _ => Fact::Other,
    })
}

/// A `TimestampTz`: microseconds since the start of the year 2000. What no calendar holds becomes its first or last
/// instant, so that it compares as PostgreSQL compares it.
fn timestamp(micros: i64) -> DateTime<Utc> {
    const POSTGRES_EPOCH: i64 = 946_684_800_000_000;
    let bound = if micros < 0 { DateTime::<Utc>::MIN_UTC } else { DateTime::<Utc>::MAX_UTC };
    micros.checked_add(POSTGRES_EPOCH).and_then(DateTime::from_timestamp_micros).unwrap_or(bound)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::RelFile;

    /// What a record with this main data, and these block references in front, tells.
    fn told(rmid: u8, info: u8, blocks: &[u8], main: &[u8], version: u32) -> Option<Fact> {
        let mut body = blocks.to_vec();
        body.push(254);
        body.extend_from_slice(&(main.len() as u32).to_le_bytes());
        body.extend_from_slice(main);
        let length = (HEADER + body.len()) as u32;
        let header = RecordHeader { length, xid: 7, prev: Lsn(0), info, rmid, crc: 0 };
        decode(&header, &body, Version(version))
    }

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    fn file(number: u32) -> RelFile {
        RelFile { tablespace: 1663, database: 5, number }
    }

    /// A block reference without data.
    fn block(id: u8, flags: u8, number: u32, block: u32) -> Vec<u8> {
        [vec![id, flags, 0, 0], words(&[1663, 5, number, block])].concat()
    }

    #[test]
    fn a_prepared_commit_bears_its_own_xid() {
        for (version, stats_item) in [(14, 0), (17, 12), (18, 16)] {
            let bits = 0b1_1001_1111_u32 & !if version == 14 { 1 << 8 } else { 0 };
            let mut main = 1_000_000_i64.to_le_bytes().to_vec();
            main.extend_from_slice(&bits.to_le_bytes());
            main.extend_from_slice(&words(&[5, 1663]));
            main.extend_from_slice(&[2, 0, 0, 0, 51, 0, 0, 0, 52, 0, 0, 0]);
            main.extend_from_slice(&words(&[1, 1663, 5, 9]));
            if stats_item > 0 {
                // A function's statistics, and a relation's.
                main.extend_from_slice(&words(&[2]));
                for item in [[3, 5, 16_388, 0], [2, 5, 16_389, 0]] {
                    main.extend_from_slice(&words(&item)[..stats_item]);
                }
            }
            main.extend_from_slice(&[1, 0, 0, 0]);
            main.extend_from_slice(&[0xCC; 16]);
            main.extend_from_slice(&[50, 0, 0, 0]);
            main.extend_from_slice(b"my gid\0");
            let Some(Fact::Commit(end)) = told(1, 0xB0, &[], &main, version) else {
                panic!("{version}");
            };
            assert_eq!(end.time.to_rfc3339(), "2000-01-01T00:00:01+00:00");
            assert_eq!((end.xid, end.prepared, end.gid.as_deref()), (50, true, Some("my gid")));
            assert!(end.includes(50) && end.includes(52) && !end.includes(7));
            assert_eq!((end.database, &end.removed[..]), (Some(5), &[file(9)][..]));
            let dropped = Dropped { database: 5, relation: 16_389 };
            assert_eq!(end.dropped, if version == 14 { vec![] } else { vec![dropped] });
            assert_eq!(told(1, 0xB0, &[], &main[..40], version), None);
        }
    }

    #[test]
    fn times_that_no_calendar_holds_still_compare() {
        assert_eq!(timestamp(i64::MAX), DateTime::<Utc>::MAX_UTC);
        assert_eq!(timestamp(i64::MIN), DateTime::<Utc>::MIN_UTC);
        assert_eq!(timestamp(-1).to_rfc3339(), "1999-12-31T23:59:59.999999+00:00");
    }

    #[test]
    fn rows_name_where_they_lay() {
        let row = |change, number, block, offset, count| {
            Some(Fact::Rows(Rows { change, file: file(number), block, offset, count }))
        };
        let one = block(0, 0, 9, 77);
        // xmax, offset, infobits, flags.
        let delete = [9, 0, 0, 0, 3, 0, 0, 0];
        assert_eq!(told(10, 0x10, &one, &delete, 14), row(Change::Delete, 9, 77, 3, 1));
        let moved = [9, 0, 0, 0, 3, 0, 0, 0x10];
        assert_eq!(told(10, 0x10, &one, &moved, 18), row(Change::Update, 9, 77, 3, 1));
        // The new version of the row is on page 77, the old one on 78; the map of visibility comes behind.
        let two = [one.clone(), vec![1, 0x80, 0, 0, 78, 0, 0, 0], block(2, 2, 9, 0)].concat();
        let update = [9, 0, 0, 0, 4, 0, 0, 0, 9, 0, 0, 0, 1, 0];
        assert_eq!(told(10, 0x20, &two, &update, 18), row(Change::Update, 9, 78, 4, 1));
        assert_eq!(told(10, 0xC0, &one, &update, 17), row(Change::Update, 9, 77, 4, 1));
        assert_eq!(told(10, 0x80, &one, &[5, 0, 0], 17), row(Change::Insert, 9, 77, 5, 1));
        assert_eq!(told(10, 0x70, &one, &[6, 0, 1, 1, 1, 1], 18), row(Change::Inplace, 9, 77, 6, 1));
        assert_eq!(told(9, 0xD0, &one, &[0, 0, 60, 0], 16), row(Change::Insert, 9, 77, 0, 60));
        assert_eq!(told(10, 0x60, &one, &delete, 16), Some(Fact::Other), "a lock");
        assert_eq!(told(10, 0x10, &[], &delete, 16), Some(Fact::Other));
        let pages = [block(0, 0, 9, 1), block(1, 0, 9, 2), block(2, 0, 9, 3)].concat();
        assert_eq!(told(0, 0xB0, &pages, &[], 16), Some(Fact::PageImage { file: file(9), pages: 3 }));
        assert_eq!(told(0, 0xB0, &block(0, 1, 9, 1), &[], 16), Some(Fact::Other), "a map of free space");
    }

    #[test]
    fn the_numbers_of_database_records_moved() {
        let create = |template| Some(Fact::DatabaseCreate { oid: 20, tablespace: 1663, template });
        let drop = || Some(Fact::DatabaseDrop { oid: 20, tablespaces: vec![1663, 17_000] });
        for version in 14..=19 {
            assert_eq!(told(4, 0, &[], &words(&[20, 1663, 1, 1663]), version), create(Some(1)));
            let dropped = words(&[20, 2, 1663, 17_000]);
            assert_eq!(told(4, if version < 15 { 0x10 } else { 0x20 }, &[], &dropped, version), drop());
            assert_eq!(told(4, if version < 15 { 0x10 } else { 0x20 }, &[], &dropped[..12], version), None);
        }
        assert_eq!(told(4, 0x10, &[], &words(&[20, 1663]), 15), create(None));
    }

    #[test]
    fn files_locks_maps_and_messages() {
        let made = words(&[1663, 5, 9, 0]);
        assert_eq!(told(2, 0x10, &[], &made, 17), Some(Fact::FileCreate { file: file(9) }));
        assert_eq!(told(2, 0x10, &[], &words(&[1663, 5, 9, 2]), 17), Some(Fact::Other), "another fork");
        let cut = words(&[12, 1663, 5, 9, 7]);
        assert_eq!(told(2, 0x20, &[], &cut, 17), Some(Fact::FileTruncate { file: file(9), blocks: 12 }));
        let lock = |xid| Lock { xid, database: 5, relation: 9 };
        let locks = words(&[2, 30, 5, 9, 31, 5, 9]);
        assert_eq!(told(8, 0, &[], &locks, 17), Some(Fact::Locks { locks: vec![lock(30), lock(31)] }));
        assert_eq!(told(8, 0x10, &[], &locks, 17), Some(Fact::Other));
        assert_eq!(told(7, 0, &[], &words(&[5, 1663, 0]), 17), Some(Fact::RelationMap { database: 5 }));
        let message = |prefix: &str, text: &str| {
            let mut main = words(&[5, 0xAAAA_AA01, prefix.len() as u32 + 1, 0, text.len() as u32, 0]);
            main.extend_from_slice(format!("{prefix}\0{text}").as_bytes());
            told(21, 0, &[], &main, 17)
        };
        let expected = |prefix: &str, text: &str, size| {
            let (prefix, text) = (prefix.to_owned(), text.to_owned());
            Some(Fact::Message { transactional: true, database: 5, prefix, text, size })
        };
        assert_eq!(message("p", "before deploy 123"), expected("p", "before deploy 123", 17));
        let long = format!("{}\u{fc}{}", "x".repeat(199), "y".repeat(9_000));
        assert_eq!(message("", &long), expected("", &"x".repeat(199), 9_201), "no half character");
        assert_eq!(message(&"p".repeat(5_000), "text"), expected(&"p".repeat(200), "", 4));
    }
}
