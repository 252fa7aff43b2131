//! Data pages (`src/include/storage/bufpage.h`) and their checksums (`src/include/storage/checksum_impl.h`).
//!
//! The checksum is a variant of FNV-1a over 32 columns of 32-bit words: the columns are independent, so that the
//! compiler turns the inner loop into vector instructions.

use super::Lsn;

/// How many columns are summed side by side (`N_SUMS`).
const COLUMNS: usize = 32;
/// One row of the columns, in bytes.
const ROW: usize = COLUMNS * 4;
/// `FNV_PRIME`.
const PRIME: u32 = 16_777_619;
/// Where each column starts (`checksumBaseOffsets`).
const START: [u32; COLUMNS] = [
    0x5B1F_36E9,
    0xB852_5960,
    0x02AB_50AA,
    0x1DE6_6D2A,
    0x79FF_467A,
    0x9BB9_F8A3,
    0x217E_7CD2,
    0x83E1_3D2C,
    0xF8D4_474F,
    0xE39E_B970,
    0x42C6_AE16,
    0x9932_16FA,
    0x7B09_3B5D,
    0x98DA_FF3C,
    0xF718_902A,
    0x0B1C_9CDB,
    0xE58F_764B,
    0x1876_36BC,
    0x5D7B_3BB1,
    0xE73D_E7DE,
    0x92BE_C979,
    0xCCA6_C0B2,
    0x304A_0979,
    0x85AA_43D4,
    0x7831_25BB,
    0x6CA8_EAA2,
    0xE407_EAC6,
    0x4B5C_FC3E,
    0x9FBF_8C76,
    0x15CA_20BE,
    0xF2CA_9FD3,
    0x959B_D756,
];
/// Where `pd_checksum` lies in the page.
const CHECKSUM_AT: usize = 8;

/// What the checksum says about a page that a backup read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The checksum fits.
    Good,
    /// All zero: allocated, never written. It has no checksum.
    New,
    /// Its LSN is at or past the backup's start: the page may have been caught half written, and its WAL is
    /// replayed anyway, so that the checksum is not judged.
    TooNew,
    /// The checksum does not fit.
    Bad {
        /// What the content demands.
        expected: u16,
        /// What the page says.
        found: u16,
    },
}

/// Judges a whole page of any block size. `block` is its number within the fork (not within the file), `start`
/// the LSN where the backup started. A slice that is no multiple of 128 bytes, and so no page, is bad.
#[must_use]
pub fn verify_page(page: &[u8], block: u32, start: Lsn) -> Verdict {
    let Some(found) = field(page, CHECKSUM_AT).map(u16::from_le_bytes) else {
        return Verdict::Bad { expected: 0, found: 0 };
    };
    let expected = checksum(page, block);
    if expected == found {
        Verdict::Good
    } else if page.iter().all(|&byte| byte == 0) {
        Verdict::New
    } else if page_lsn(page) >= start {
        Verdict::TooNew
    } else {
        Verdict::Bad { expected, found }
    }
}

/// The end of the last WAL record that changed the page (`pd_lsn`); `0/0` for a slice without a page header.
#[must_use]
pub fn page_lsn(page: &[u8]) -> Lsn {
    let high = field(page, 0).map_or(0, u32::from_le_bytes);
    let low = field(page, 4).map_or(0, u32::from_le_bytes);
    Lsn(u64::from(high) << 32 | u64::from(low))
}

/// The checksum of a page that lies at `block` of its fork (`pg_checksum_page`). Whatever the page says as its own
/// checksum counts as zero.
#[must_use]
pub fn checksum(page: &[u8], block: u32) -> u16 {
    let mut columns = START;
    let (rows, _) = page.as_chunks::<ROW>();
    if let Some((first, others)) = rows.split_first() {
        let mut first = *first;
        first[CHECKSUM_AT..CHECKSUM_AT + 2].fill(0);
        add(&mut columns, &first);
        for row in others {
            add(&mut columns, row);
        }
    }
    // Two rows of zeros mix the last words in.
    add(&mut columns, &[0; ROW]);
    add(&mut columns, &[0; ROW]);
    let folded = columns.iter().fold(block, |sum, column| sum ^ column);
    // Never zero, and at most 65 535.
    (folded % 65_535 + 1) as u16
}

#[inline(always)]
fn add(columns: &mut [u32; COLUMNS], row: &[u8; ROW]) {
    let (words, _) = row.as_chunks::<4>();
    for (column, word) in columns.iter_mut().zip(words) {
        let mixed = *column ^ u32::from_le_bytes(*word);
        *column = mixed.wrapping_mul(PRIME) ^ (mixed >> 17);
    }
}

fn field<const N: usize>(page: &[u8], at: usize) -> Option<[u8; N]> {
    page.get(at..at + N).and_then(|bytes| bytes.try_into().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A page with some content, an LSN and its right checksum.
    fn page(size: usize, block: u32, lsn: Lsn) -> Vec<u8> {
        let mut page: Vec<u8> = (0..size).map(|i| (i * 7 + i / 256) as u8).collect();
        page[0..4].copy_from_slice(&((lsn.0 >> 32) as u32).to_le_bytes());
        page[4..8].copy_from_slice(&(lsn.0 as u32).to_le_bytes());
        let sum = checksum(&page, block);
        page[8..10].copy_from_slice(&sum.to_le_bytes());
        page
    }

    #[test]
    fn every_flipped_byte_is_seen() {
        let start = Lsn(0x1_0000_0000);
        for size in [1024, 8192, 32768] {
            let mut page = page(size, 7, Lsn(0x16B_3740));
            assert_eq!(verify_page(&page, 7, start), Verdict::Good);
            for at in (8..size).step_by(251) {
                page[at] ^= 0x10;
                assert!(matches!(verify_page(&page, 7, start), Verdict::Bad { .. }), "{size} {at}");
                page[at] ^= 0x10;
            }
            assert!(matches!(verify_page(&page, 8, start), Verdict::Bad { .. }), "the block's number counts");
        }
    }

    #[test]
    fn new_and_changed_pages_are_not_judged() {
        assert_eq!(verify_page(&[0; 8192], 3, Lsn(1)), Verdict::New);
        let mut torn = page(8192, 3, Lsn(0x200_0028));
        assert_eq!(page_lsn(&torn), Lsn(0x200_0028));
        torn[5000] ^= 1;
        assert_eq!(verify_page(&torn, 3, Lsn(0x200_0028)), Verdict::TooNew);
        assert!(matches!(verify_page(&torn, 3, Lsn(0x200_0029)), Verdict::Bad { .. }));
        assert!(matches!(verify_page(&torn[..4], 3, Lsn(1)), Verdict::Bad { .. }));
    }
}
