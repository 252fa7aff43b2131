//! Names out of rows of catalogues: what is made or renamed between two backups is in no backup's catalogue.
//!
//! A catalogue is known by the number that its file has at first. After `VACUUM FULL` of one its names are not told.

use std::borrow::Cow;

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

/// `pg_type`.
pub(crate) const TYPE: u32 = 1247;

/// `SizeofHeapTupleHeader` in `src/include/access/htup_details.h`, of which `t_hoff` is the last byte.
const TUPLE_HEADER: usize = 23;
/// `NAMEDATALEN`.
const NAME: usize = 64;

/// The bytes of a row that hold its OID and its name.
pub(crate) const NAMED: usize = 4 + NAME;

/// Whether rows of that catalogue give names.
pub(super) fn is_told_of(catalogue: u32) -> bool {
    matches!(catalogue, CLASS | NAMESPACE | DATABASE | TABLESPACE)
}

/// The name that the row inserted at `offset` gives; `None` when it gives none that matters, or is not told.
pub(super) fn named(catalogue: u32, offset: u16, content: &Content<'_>, version: Version) -> Option<Named> {
    if !is_told_of(catalogue) {
        return None;
    }
    name_of(catalogue, &row(offset, content)?, version)
}

/// What an update of a row does to its name.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Updated {
    /// Nothing, or the name is one that does not matter.
    Same,
    /// The name is this one now, or still.
    Named(Named),
    /// These bytes changed, from that one on; unknown ones where the record does not tell.
    Changed { at: u8, bytes: Option<Vec<u8>> },
}

/// What an update says of the row that is at `offset` now. `flags` are those of `xl_heap_update`: what is the same at
/// both ends of the row may be left out (`log_heap_update` in `src/backend/access/heap/heapam.c`).
pub(super) fn updated(catalogue: u32, flags: u8, offset: u16, content: &Content<'_>, version: Version) -> Updated {
    const PREFIX_FROM_OLD: u8 = 1 << 5;
    const SUFFIX_FROM_OLD: u8 = 1 << 6;
    const UNKNOWN: Updated = Updated::Changed { at: 0, bytes: None };
    if flags & (PREFIX_FROM_OLD | SUFFIX_FROM_OLD) == 0 {
        return match row(offset, content) {
            Some(row) => match name_of(catalogue, &row, version) {
                Some(named) => Updated::Named(named),
                None if row.get(4..NAMED).and_then(text).is_none() => UNKNOWN,
                None => Updated::Same,
            },
            None => UNKNOWN,
        };
    }
    let mut fields = Fields::of(content.data);
    let mut same = |flag| if flags & flag != 0 { fields.u16() } else { Some(0) };
    let (prefix, suffix) = (same(PREFIX_FROM_OLD), same(SUFFIX_FROM_OLD));
    let (Some(at), Some(_), Some(middle)) = (prefix, suffix, columns(fields.up_to(usize::MAX))) else {
        return UNKNOWN;
    };
    // Behind the name the number of a relation's schema.
    let end = if catalogue == CLASS { NAMED + 4 } else { NAMED };
    let end = end.saturating_sub(at.into()).min(middle.len());
    match u8::try_from(at) {
        Ok(at) if end > 0 => Updated::Changed { at, bytes: Some(middle[..end].to_vec()) },
        _ => Updated::Same,
    }
}

fn name_of(catalogue: u32, row: &[u8], version: Version) -> Option<Named> {
    let mut row = Fields::of(row);
    let oid = row.u32()?;
    let name = text(row.take(NAME)?)?;
    if oid == 0 {
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

/// `NameData`: a text and zeros behind it.
pub(crate) fn text(name: &[u8]) -> Option<String> {
    let end = name.iter().position(|byte| *byte == 0)?;
    let (name, rest) = name.split_at(end);
    let sound = !name.is_empty() && rest.iter().all(|byte| *byte == 0);
    std::str::from_utf8(name).ok().filter(|_| sound).map(str::to_owned)
}

/// The columns of the row: out of what the record says of it, or out of the page.
fn row<'a>(offset: u16, content: &Content<'a>) -> Option<Cow<'a, [u8]>> {
    if !content.data.is_empty() {
        return columns(content.data).map(Cow::Borrowed);
    }
    let image = content.image?;
    let page = image.page()?;
    let at = |at: usize| -> Option<u32> { Some(u32::from_le_bytes(page.get(at..at + 4)?.try_into().ok()?)) };
    // `src/include/storage/bufpage.h`: the size in the high bits of pd_pagesize_version; line pointers from byte 24 on.
    let size = (at(16)? >> 16) as usize & 0xFF00;
    let pointer = at(24 + usize::from(offset.checked_sub(1)?) * 4)?;
    let (start, length) = ((pointer & 0x7FFF) as usize, (pointer >> 17) as usize);
    let start = if start < image.hole { start } else { start.checked_sub(size.checked_sub(page.len())?)? };
    let header = usize::from(*page.get(start..start + length)?.get(TUPLE_HEADER - 1)?);
    if header > length {
        return None;
    }
    Some(match page {
        Cow::Borrowed(page) => page[start + header..start + length].into(),
        Cow::Owned(page) => page[start + header..start + length].to_vec().into(),
    })
}

/// `xl_heap_header`: t_infomask2, t_infomask, t_hoff; then what follows the tuple's own header.
fn columns(data: &[u8]) -> Option<&[u8]> {
    let header = usize::from(*data.get(4)?).checked_sub(TUPLE_HEADER)?;
    data.get(5 + header..)
}

#[cfg(test)]
mod tests {
    use super::{
        super::image::{Compression, Image},
        *,
    };

    fn content<'a>(page: &'a [u8], compression: Compression) -> Content<'a> {
        Content { image: Some(Image { bytes: page, hole: 32, compression }), data: &[] }
    }

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
            let from_data = named(CLASS, 2, &Content { image: None, data: &data }, Version(version)).unwrap();
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
            let packed = zstd::bulk::compress(&page, 1).unwrap();
            for content in [content(&page, Compression::None), content(&packed, Compression::Zstd)] {
                assert_eq!(named(CLASS, 2, &content, Version(version)).as_ref(), Some(&from_data));
                let updated = updated(CLASS, 0, 2, &content, Version(version));
                assert_eq!(updated, Updated::Named(from_data.clone()));
            }
            let plain = content(&page, Compression::None);
            for offset in [0, 1, 3, 900] {
                assert_eq!(named(CLASS, offset, &plain, Version(version)), None);
            }
            for end in 0..page.len() {
                named(CLASS, 2, &content(&page[..end], Compression::None), Version(version));
            }
        }
    }

    #[test]
    fn an_update_tells_what_it_changes_of_a_name() {
        let update = |flags: u8, lengths: &[u16], middle: &[u8]| {
            let mut data: Vec<u8> = lengths.iter().flat_map(|n| n.to_le_bytes()).collect();
            data.extend_from_slice(&[0, 0, 0, 0, 24, 0]);
            data.extend_from_slice(middle);
            updated(CLASS, flags, 3, &Content { image: None, data: &data }, Version(17))
        };
        let changed = |at, bytes: &[u8]| Updated::Changed { at, bytes: Some(bytes.to_vec()) };
        assert_eq!(update(0x60, &[10, 90], b"_old"), changed(10, b"_old"));
        assert_eq!(update(0x60, &[68, 90], &[7, 7, 7, 7, 7]), changed(68, &[7, 7, 7, 7]), "its schema, and more");
        assert_eq!(update(0x60, &[92, 4], &[7, 7]), Updated::Same, "its file, for one");
        assert_eq!(update(0x60, &[300, 4], &[7, 7]), Updated::Same);
        assert_eq!(updated(CLASS, 0, 3, &Content::default(), Version(17)), Updated::Changed { at: 0, bytes: None });
        assert_eq!(updated(CLASS, 0x60, 3, &Content::default(), Version(17)), Updated::Changed { at: 0, bytes: None });
    }

    #[test]
    fn what_is_temporary_or_goes_with_its_table_is_not_named() {
        for (kind, persistence) in [(b'i', b'p'), (b't', b'p'), (b'r', b't')] {
            let data = [vec![0, 0, 0, 0, 23], class(16, kind, persistence)].concat();
            assert_eq!(named(CLASS, 1, &Content { image: None, data: &data }, Version(16)), None);
        }
    }
}
