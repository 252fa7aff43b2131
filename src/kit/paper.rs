//! A kit as text that can be printed and typed in again: base32 in numbered lines, each with a check of its own, so that
//! a mistake is found by its line.
//!
//! ```text
//! WALDEN KIT 1
//! 001 5N5H Q3VC ... 0G2M 7KXQ
//! 002 ...
//! END 002 4X7TKZR
//! ```
//!
//! A line is its number, 48 digits (30 bytes; the last has fewer) and a check of four. `END` tells how many lines there
//! are, with a check of everything. The digits are Crockford's: no I, L, O, U; capitals and small letters are the same,
//! I and L are read as 1 and O as 0, blanks and dashes do not matter. `/` ends a line as a line feed does: a QR code
//! holds some of the lines in this form, and what a scanner makes of it is read in any order.

use std::collections::BTreeMap;

use crate::error::{Error, Result};

const TITLE: &str = "WALDEN KIT 1";
const DIGITS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
/// Bytes in a line.
const LINE: usize = 30;
/// Digits of a line's check: one mistake in a million is not found by it, and then by the check of everything.
const CHECK: usize = 4;
/// Digits of the check of everything.
const WHOLE: usize = 7;
/// Lines in a QR code: as many as can still be scanned from paper.
const LINES_IN_CODE: usize = 16;
/// Lines are numbered by three digits.
const MOST_LINES: usize = 999;

/// The lines of the text, without line feeds; an error when the kit is too long to be typed.
pub fn lines(bytes: &[u8]) -> Result<Vec<String>> {
    let compact = compact(bytes)?;
    let spaced = |line: &String| -> String {
        let (number, rest) = line.split_at(3);
        let (data, check) = rest.split_at(rest.len() - CHECK);
        let groups: Vec<&str> = (0..data.len()).step_by(4).map(|at| &data[at..data.len().min(at + 4)]).collect();
        format!("{number} {} {check}", groups.join(" "))
    };
    let mut lines = vec![TITLE.to_owned()];
    lines.extend(compact.iter().map(spaced));
    lines.push(end(compact.len(), bytes));
    Ok(lines)
}

/// What each of the QR codes holds. All characters are of QR's alphanumeric mode.
pub fn codes(bytes: &[u8]) -> Result<Vec<String>> {
    let mut lines = compact(bytes)?;
    let count = lines.len();
    lines.push(end(count, bytes));
    let codes = lines.len().div_ceil(LINES_IN_CODE);
    let code =
        |(number, lines): (usize, &[String])| format!("{TITLE}/CODE {} OF {codes}/{}", number + 1, lines.join("/"));
    Ok(lines.chunks(LINES_IN_CODE).enumerate().map(code).collect())
}

/// Whether that text is meant to be a printed kit.
#[must_use]
pub fn is_paper(text: &str) -> bool {
    rows(text).next().is_some_and(|(_, row)| row == plain(TITLE))
}

/// Reads the text again. A mistake is told with the numbers of the lines that have one.
pub fn read(text: &str) -> Result<Vec<u8>> {
    let mut lines: BTreeMap<usize, Vec<u8>> = BTreeMap::new();
    let (mut wrong, mut last) = (Vec::new(), None);
    for (typed, row) in rows(text) {
        if row == plain(TITLE) || row.starts_with("C0DE") {
            continue;
        }
        if let Some(rest) = row.strip_prefix("END") {
            last = Some(rest.to_owned());
            continue;
        }
        match line(&row) {
            Some((number, bytes)) => _ = lines.insert(number, bytes),
            None => wrong.push(match row.get(..3).filter(|number| number.bytes().all(|b| b.is_ascii_digit())) {
                Some(number) => format!("{number} (line {typed} of the text)"),
                None => format!("line {typed} of the text"),
            }),
        }
    }
    if !wrong.is_empty() {
        return Err(mistyped(&format!("{} does not fit its check at the end", wrong.join(", "))));
    }
    let end = last.ok_or_else(|| mistyped("the last line, which begins with END, is missing"))?;
    let count: Option<usize> = end.get(..3).and_then(|number| number.parse().ok());
    let count = count.filter(|count| (1..=MOST_LINES).contains(count));
    let count = count.ok_or_else(|| mistyped("the line that begins with END is not right"))?;
    let missing: Vec<String> =
        (1..=count).filter(|number| !lines.contains_key(number)).map(|number| format!("{number:03}")).collect();
    if !missing.is_empty() {
        return Err(mistyped(&format!("{} of {count} lines are missing: {}", missing.len(), missing.join(", "))));
    }
    let bytes = lines.into_values().take(count).flatten().collect::<Vec<u8>>();
    if plain(&self::end(count, &bytes)) == format!("END{end}") {
        Ok(bytes)
    } else {
        Err(mistyped("the lines do not fit the check of all of them: are they of one kit?"))
    }
}

fn mistyped(what: &str) -> Error {
    Error::damaged(format!("the text of the kit is not right: {what}"))
        .hint("compare these lines with the paper; the letters I, L, O and U do not occur")
}

/// Lines without blanks.
fn compact(bytes: &[u8]) -> Result<Vec<String>> {
    let chunks = bytes.chunks(LINE);
    if chunks.len() > MOST_LINES {
        return Err(Error::invalid(format!("the kit has {} bytes: too many to be printed and typed", bytes.len()))
            .hint("print a kit without large certificate files, or keep the file"));
    }
    Ok(chunks
        .zip(1..)
        .map(|(chunk, number)| {
            let data = base32(chunk);
            format!("{number:03}{data}{}", check(number, &data))
        })
        .collect())
}

fn end(lines: usize, bytes: &[u8]) -> String {
    format!("END {lines:03} {}", digits(u64::from(crc32c::crc32c(bytes)), WHOLE))
}

/// What was typed, row by row with its number, in plain digits. Empty ones and remarks are left out.
fn rows(text: &str) -> impl Iterator<Item = (usize, String)> {
    // A remark may hold what ends a row.
    let lines = text.lines().zip(1..).filter(|(line, _)| !line.trim_start().starts_with('#'));
    let rows = lines.flat_map(|(line, number)| line.split('/').map(move |row| (number, plain(row))));
    rows.filter(|(_, row)| !row.is_empty())
}

/// Capitals, without blanks and dashes, and with the digits that letters are taken for.
fn plain(row: &str) -> String {
    let kept = row.chars().filter(|c| !c.is_whitespace() && *c != '-');
    kept.map(|c| match c.to_ascii_uppercase() {
        'O' => '0',
        'I' | 'L' => '1',
        c => c,
    })
    .collect()
}

/// The number and the bytes of a line whose check fits.
fn line(row: &str) -> Option<(usize, Vec<u8>)> {
    let number: usize = row.get(..3)?.parse().ok()?;
    let data = row.get(3..row.len().checked_sub(CHECK)?)?;
    let is_right = row.get(row.len() - CHECK..)? == check(number, data);
    Some((number, unbase32(data)?)).filter(|_| is_right && number > 0)
}

fn check(number: usize, data: &str) -> String {
    digits(u64::from(crc32c::crc32c(format!("{number:03}{data}").as_bytes())) & 0xF_FFFF, CHECK)
}

/// A number in so many base32 digits.
fn digits(number: u64, count: usize) -> String {
    (0..count).rev().map(|place| char::from(DIGITS[(number >> (5 * place)) as usize & 31])).collect()
}

fn base32(bytes: &[u8]) -> String {
    let (mut bits, mut waiting, mut text) = (0_u32, 0, String::new());
    for byte in bytes {
        bits = bits << 8 | u32::from(*byte);
        waiting += 8;
        while waiting >= 5 {
            waiting -= 5;
            text.push(char::from(DIGITS[(bits >> waiting) as usize & 31]));
        }
    }
    if waiting > 0 {
        text.push(char::from(DIGITS[(bits << (5 - waiting)) as usize & 31]));
    }
    text
}

/// The bytes again; `None` where there is another character, or bits that no byte has.
fn unbase32(text: &str) -> Option<Vec<u8>> {
    let (mut bits, mut waiting, mut bytes) = (0_u32, 0, Vec::new());
    for digit in text.bytes() {
        let value = DIGITS.iter().position(|known| *known == digit)?;
        bits = bits << 5 | u32::try_from(value).ok()?;
        waiting += 5;
        if waiting >= 8 {
            waiting -= 8;
            bytes.push((bits >> waiting) as u8);
        }
    }
    (waiting < 5 && bits & ((1 << waiting) - 1) == 0).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(length: usize) -> Vec<u8> {
        (0..length).map(|n| (n * 37 + n / 11) as u8).collect()
    }

    #[test]
    fn what_is_printed_is_read_however_it_is_typed() {
        for length in [1, 4, 29, 30, 31, 480, 2000] {
            let bytes = bytes(length);
            let text = lines(&bytes).unwrap().join("\n");
            assert!(is_paper(&text));
            assert_eq!(read(&text).unwrap(), bytes);
            let typed = text.to_lowercase().replace(' ', "").replace('0', "o").replace('1', "l");
            assert_eq!(
                read(&format!("# found in the safe of s3://b/p\r\n\n{}", typed.replace('\n', "\r\n"))).unwrap(),
                bytes
            );
            let mut codes = codes(&bytes).unwrap();
            codes.reverse();
            codes.push(codes[0].clone());
            assert_eq!(read(&codes.join("\n")).unwrap(), bytes, "scanned in another order, and one twice");
        }
        assert!(lines(&bytes(30 * 1000)).is_err());
        assert!(!is_paper("[repository]\nurl = 1"));
    }

    #[test]
    fn every_mistyped_character_is_found_by_its_line() {
        let text = lines(&bytes(200)).unwrap();
        for (at, line) in text.iter().enumerate().skip(1).take(7) {
            for place in (0..line.len()).filter(|place| line.as_bytes()[*place] != b' ') {
                let other = if line.as_bytes()[place] == b'7' { "8" } else { "7" };
                let mut typed = text.clone();
                typed[at].replace_range(place..=place, other);
                let error = read(&typed.join("\n")).expect_err("a mistake").to_string();
                let line = format!("line {}", at + 1);
                assert!(error.contains(&line), "{line}: {error}");
            }
            let mut without = text.clone();
            without.remove(at);
            let error = read(&without.join("\n")).expect_err("a gap").to_string();
            assert!(error.contains(&format!("missing: {at:03}")), "{error}");
            let mut swapped = line.clone().into_bytes();
            swapped.swap(4, 6);
            let mut typed = text.clone();
            typed[at] = String::from_utf8(swapped).unwrap();
            assert!(typed == text || read(&typed.join("\n")).is_err());
        }
        assert!(read(&text[..text.len() - 1].join("\n")).unwrap_err().to_string().contains("END"));
        let mut mixed = text.clone();
        mixed[3] = lines(&[1; 200]).unwrap()[3].clone();
        assert!(read(&mixed.join("\n")).unwrap_err().to_string().contains("of one kit"));
    }
}
