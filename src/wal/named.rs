//! Names out of rows that are inserted into catalogues: what is made between two backups is in no backup's catalogue.
//!
//! A catalogue is known by the number that its file has at first. After `VACUUM FULL` of one, or with `wal_compression`
//! for the first row on a page after a checkpoint, names are not told.

use super::{Named, fields::Fields, record::Content};
use crate::postgres::Version;

/// `pg_class`.
pub(crate) const CLASS: u32 = 1259;
/// `pg_namespace`.
pub(crate) const NAMESPACE: u32 = 2615;
/// `pg_database`.
pub(crate) const DATABASE: u32 = 1262;
/// `pg_tablespace`.
pub(crate) const TABLESPACE: u32 = 1213;

/// `SizeofHeapTupleHeader` in `src/include/access/htup_details.h`, of which `t_hoff` is the last byte.
const TUPLE_HEADER: usize = 23;
/// `NAMEDATALEN`.
const NAME: usize = 64;

/// The name that the row inserted at `offset` gives; `None` when it gives none that matters, or is not told.
pub(super) fn named(catalogue: u32, offset: u16, content: &Content<'_>, version: Version) -> Option<Named> {
    if !matches!(catalogue, CLASS | NAMESPACE | DATABASE | TABLESPACE) {
        return None;
    }
    let mut row = Fields::of(row(offset, content)?);
    let oid = row.u32()?;
    let name = row.take(NAME)?;
    let end = name.iter().position(|byte| *byte == 0)?;
    let name = std::str::from_utf8(&name[..end]).ok()?.to_owned();
    if oid == 0 || name.is_empty() {
        return None;
    }
    if catalogue != CLASS {
        return Some(Named { oid, name, schema: None, kind: None });
    }
    // `src/include/catalog/pg_class.h`.
    let schema = row.u32()?;
    // reltype to reltoastrelid; relallfrozen came with 18.
    row.skip(if version.0 >= 18 { 44 } else { 40 })?;
    // relhasindex and relisshared.
    row.skip(2)?;
    let (persistence, kind) = (row.u8()?, char::from(row.u8()?));
    // Indexes and TOAST tables go with their tables, and temporary ones are gone before anybody misses them.
    (persistence != b't' && matches!(kind, 'r' | 'p' | 'm' | 'v' | 'f' | 'S')).then_some(Named {
        oid,
        name,
        schema: Some(schema),
        kind: Some(kind),
    })
}

/// The columns of the row: out of what the record says of it, or out of the page.
fn row<'a>(offset: u16, content: &Content<'a>) -> Option<&'a [u8]> {
    if !content.data.is_empty() {
        // `xl_heap_header`: t_infomask2, t_infomask, t_hoff; then what follows the tuple's own header.
        let columns = usize::from(*content.data.get(4)?).checked_sub(TUPLE_HEADER)?;
        return content.data.get(5 + columns..);
    }
    let (page, hole) = content.page?;
    let at = |at: usize| -> Option<u32> { Some(u32::from_le_bytes(page.get(at..at + 4)?.try_into().ok()?)) };
    // `src/include/storage/bufpage.h`: the size in the high bits of pd_pagesize_version; line pointers from byte 24 on.
    let size = (at(16)? >> 16) as usize & 0xFF00;
    let pointer = at(24 + usize::from(offset.checked_sub(1)?) * 4)?;
    let (start, length) = ((pointer & 0x7FFF) as usize, (pointer >> 17) as usize);
    let start = if start < hole { start } else { start.checked_sub(size.checked_sub(page.len())?)? };
    let tuple = page.get(start..start + length)?;
    tuple.get(usize::from(*tuple.get(TUPLE_HEADER - 1)?)..)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(version: u32, kind: u8, persistence: u8) -> Vec<u8> {
        let mut row = 16389_u32.to_le_bytes().to_vec();
        row.extend_from_slice(b"orders");
        row.resize(4 + NAME, 0);
        row.extend_from_slice(&2200_u32.to_le_bytes());
        row.resize(row.len() + if version >= 18 { 46 } else { 42 }, 0);
        row.extend_from_slice(&[persistence, kind]);
        row
    }

    #[test]
    fn a_table_is_named_by_its_row_or_by_its_page() {
        for version in [14, 18] {
            let row = class(version, b'r', b'p');
            let data = [vec![0, 0, 0, 0, 24, 0], row.clone()].concat();
            let from_data = named(CLASS, 2, &Content { page: None, data: &data }, Version(version)).unwrap();
            assert_eq!((from_data.oid, from_data.name.as_str(), from_data.schema), (16389, "orders", Some(2200)));
            assert_eq!(from_data.kind, Some('r'));
            // A page of 8 kB with a hole from byte 32 on, and the tuple at its end.
            let mut tuple = vec![0; TUPLE_HEADER - 1];
            tuple.extend_from_slice(&[24, 0]);
            tuple.extend_from_slice(&row);
            let mut page = vec![0; 32];
            page[18..20].copy_from_slice(&0x2004_u16.to_le_bytes());
            let pointer = (8192 - tuple.len()) as u32 | 1 << 15 | (tuple.len() as u32) << 17;
            page[28..32].copy_from_slice(&pointer.to_le_bytes());
            page.extend_from_slice(&tuple);
            let content = Content { page: Some((&page, 32)), data: &[] };
            assert_eq!(named(CLASS, 2, &content, Version(version)), Some(from_data));
            for offset in [0, 1, 3, 900] {
                assert_eq!(named(CLASS, offset, &content, Version(version)), None);
            }
            for end in 0..page.len() {
                named(CLASS, 2, &Content { page: Some((&page[..end], 32)), data: &[] }, Version(version));
            }
        }
    }

    #[test]
    fn what_is_temporary_or_goes_with_its_table_is_not_named() {
        for (kind, persistence) in [(b'i', b'p'), (b't', b'p'), (b'r', b't')] {
            let data = [vec![0, 0, 0, 0, 23], class(16, kind, persistence)].concat();
            assert_eq!(named(CLASS, 1, &Content { page: None, data: &data }, Version(16)), None);
        }
    }
}
