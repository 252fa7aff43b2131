//! Records across pages and segments, however the bytes are cut; and damage, which ends the walk and invents nothing.

use proptest::prelude::*;

use super::{
    super::testing::{PAGE, SEGMENT, Writer},
    *,
};

const START: u64 = 0x500_0000;

fn commit(writer: &mut Writer, xid: u32) -> Lsn {
    writer.record(1, 0, xid, &1_000_000_i64.to_le_bytes())
}

/// Reads `bytes` in chunks: the xids of the commits with the addresses of their records, and why it ended.
fn read(start: u64, bytes: &[u8], chunk: usize) -> (Vec<(u32, Lsn)>, End) {
    let mut reader = Reader::new(Lsn(start));
    let mut commits = Vec::new();
    for part in bytes.chunks(chunk) {
        for record in reader.read(part) {
            if let Fact::Commit(end) = record.fact {
                commits.push((end.xid, record.start));
            }
        }
    }
    (commits, reader.end())
}

fn garbage(end: &End) -> (Lsn, &str) {
    match end {
        End::Garbage { at, why } => (*at, why),
        other => panic!("{other:?}"),
    }
}

#[test]
fn records_go_on_across_pages_and_segments() {
    let mut writer = Writer::at(START);
    let mut expected = vec![(1, commit(&mut writer, 1))];
    for left in [8, 16, 24, 32] {
        writer.fill_page(left);
        expected.push((left as u32, commit(&mut writer, left as u32)));
    }
    // It spans the whole second segment.
    writer.record(10, 0, 5, &vec![3; 2 * SEGMENT]);
    expected.push((6, commit(&mut writer, 6)));
    let unfinished = writer.torn();
    for chunk in [1, 4095, PAGE, PAGE + 1, SEGMENT, usize::MAX] {
        let (commits, end) = read(START, &writer.bytes, chunk);
        assert_eq!(commits, expected, "{chunk}");
        assert_eq!(end, End::OfInput { unfinished: Some(unfinished) });
    }
    for skipped in [1, 2] {
        let (commits, _) = read(START + (skipped * SEGMENT) as u64, &writer.bytes[skipped * SEGMENT..], PAGE);
        assert_eq!(commits, &expected[5..], "it begins with the rest of the long record");
    }
}

#[test]
fn a_subtransaction_list_longer_than_a_page_is_whole() {
    let mut writer = Writer::at(START);
    let mut main = 5_i64.to_le_bytes().to_vec();
    main.extend_from_slice(&2_u32.to_le_bytes());
    main.extend_from_slice(&5_000_u32.to_le_bytes());
    (0..5_000_u32).for_each(|xid| main.extend_from_slice(&xid.to_le_bytes()));
    writer.record(1, 0x80, 77, &main);
    let mut reader = Reader::new(Lsn(START));
    writer.fill();
    let record = reader.read(&writer.bytes).next().unwrap();
    let Fact::Commit(end) = record.fact else { panic!("{record:?}") };
    assert_eq!((end.xid, end.subtransactions.len(), end.subtransactions[4_999]), (77, 5_000, 4_999));
}

#[test]
fn a_switch_leads_to_the_next_segment() {
    for left in [64, 24, 16, 8] {
        let mut writer = Writer::at(START);
        writer.fill_page(left);
        let switch = writer.switch();
        let after = commit(&mut writer, 8);
        let mut reader = Reader::new(Lsn(START));
        writer.fill();
        // What a crash leaves behind the switch record is not looked at.
        writer.bytes[SEGMENT - PAGE..SEGMENT].fill(0xAA);
        let records: Vec<_> = reader.read(&writer.bytes).collect();
        assert_eq!((records[1].start, records[1].end), (switch, Lsn(START + SEGMENT as u64)));
        assert_eq!((records[2].start, records[2].prev), (after, switch));
        assert_eq!(reader.end(), End::Zeros { at: reader.proven() });
    }
}

#[test]
fn a_switch_that_straddles_segments_empties_the_second() {
    let mut writer = Writer::at(START);
    commit(&mut writer, 1);
    writer.fill_page(8);
    while writer.bytes.len() != SEGMENT - 8 {
        writer.record(10, 0, 1, &[0; 8 - 5]);
        writer.fill_page(8);
    }
    writer.switch();
    let after = commit(&mut writer, 2);
    writer.fill();
    let (commits, end) = read(START, &writer.bytes, SEGMENT);
    assert_eq!(commits.last(), Some(&(2, after)), "{end:?}");
    assert_eq!(after, Lsn(START + 2 * SEGMENT as u64 + 40));
}

#[test]
fn a_record_that_a_crash_tore_is_given_up() {
    let mut writer = Writer::at(START);
    commit(&mut writer, 1);
    let torn = writer.torn();
    writer.overwrite(torn);
    let after = commit(&mut writer, 2);
    let mut reader = Reader::new(Lsn(START));
    writer.fill();
    let records: Vec<_> = reader.read(&writer.bytes).collect();
    assert!(matches!(records[1].fact, Fact::OverwriteContrecord { overwritten, .. } if overwritten == torn));
    assert_eq!((records[2].start, records.len()), (after, 3));
}

#[test]
fn damage_ends_the_walk_where_it_lies() {
    let mut writer = Writer::at(START);
    commit(&mut writer, 1);
    let second = commit(&mut writer, 2);
    commit(&mut writer, 3);
    writer.fill();
    let offset = second.since(Lsn(START)) as usize;
    let ended = |at: usize, bit: u8| {
        let mut bytes = writer.bytes.clone();
        bytes[at] ^= bit;
        let (commits, end) = read(START, &bytes, PAGE);
        (commits.len(), end)
    };
    for (at, bit, expected) in [
        (offset + 30, 1, "CRC"),
        (offset + 8, 1, "says that it follows"),
        (offset + 17, 0x20, "no resource manager 33"),
        (offset, 32, "cannot have 5 bytes"),
    ] {
        let (commits, end) = ended(at, bit);
        let (place, why) = garbage(&end);
        assert_eq!((commits, place), (1, second), "{why}");
        assert!(why.contains(expected), "{why}");
    }
    let (commits, end) = ended(PAGE + 8, 1);
    assert_eq!((commits, end), (3, End::Zeros { at: Lsn(writer.prev.0 + 40) }), "the next page is not looked at");
}

#[test]
fn a_page_that_is_not_in_its_place_ends_the_walk() {
    let mut writer = Writer::at(START);
    let long = writer.record(10, 0, 5, &[3; 5 * PAGE]);
    commit(&mut writer, 1);
    writer.fill();
    for page in 0..5 {
        writer.bytes[page * PAGE + 4] = 5;
    }
    let why = |at: usize, byte: u8| {
        let mut bytes = writer.bytes.clone();
        bytes[at] = byte;
        let (commits, end) = read(START, &bytes, PAGE);
        let (place, why) = garbage(&end);
        assert_eq!((commits.len(), place), (0, long));
        why.to_owned()
    };
    assert!(why(2 * PAGE + 10, 4).contains("holds the WAL of 0/5044000"));
    assert!(why(2 * PAGE, 0).contains("magic"));
    assert!(why(2 * PAGE + 2, 0).contains("does not continue it"));
    assert!(why(2 * PAGE + 16, 1).contains("does not continue it"));
    assert!(why(PAGE + 4, 4).contains("older than the page before"));
}

#[test]
fn another_systems_segment_does_not_follow() {
    let mut writer = Writer::at(START);
    writer.switch();
    commit(&mut writer, 1);
    writer.fill();
    writer.bytes[SEGMENT + 24] ^= 1;
    let (commits, end) = read(START, &writer.bytes, PAGE);
    assert!(commits.is_empty() && garbage(&end).1.contains("another system"));
    let (_, end) = read(START + SEGMENT as u64, &writer.bytes, PAGE);
    assert!(garbage(&end).1.contains("holds the WAL of"));
    let (_, end) = read(START, b"no WAL at all, but more than forty bytes long", 7);
    assert!(garbage(&end).1.contains("unknown magic"));
    assert_eq!(read(START, b"short", 1).1, End::OfInput { unfinished: None });
}

proptest! {
    /// Whatever happens to the bytes: no panic, and no record that was not written.
    #[test]
    fn damage_invents_no_records(
        seed in 0_usize..5000,
        damage in prop::collection::vec((0_usize..6 * PAGE, any::<u8>()), 1..8),
        chunk in 1_usize..3 * PAGE,
    ) {
        let mut writer = Writer::at(START);
        let mut expected = Vec::new();
        for xid in 0..40 {
            expected.push((xid, commit(&mut writer, xid)));
            writer.record(10, 0, xid, &vec![xid as u8; (xid as usize * seed) % 3000]);
        }
        for (at, byte) in damage {
            let at = at % writer.bytes.len();
            writer.bytes[at] = byte;
        }
        let (commits, _) = read(START, &writer.bytes, chunk);
        prop_assert_eq!(&commits[..], &expected[..commits.len()]);
    }

    /// The decoders are safe from main data of any kind.
    #[test]
    fn any_main_data_is_decoded_or_refused(
        rmid in prop_oneof![Just(0_u8), Just(1), Just(5)],
        info: u8,
        main in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut writer = Writer::at(START);
        writer.record(rmid, info, 1, &main);
        writer.fill();
        let mut reader = Reader::new(Lsn(START));
        prop_assert!(reader.read(&writer.bytes).count() <= 1);
    }
}
