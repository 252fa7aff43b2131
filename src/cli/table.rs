//! Tables with aligned columns, as psql's unaligned eye expects them: a header, no lines, two spaces between.

use std::fmt;

/// On which side a column's cells are filled up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Words.
    Left,
    /// Numbers and sizes.
    Right,
}

/// A table; [`fmt::Display`] draws it without a last line break.
#[derive(Clone, Debug)]
pub struct Table {
    columns: Vec<Align>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns.
    #[must_use]
    pub fn new<const N: usize>(columns: [(&str, Align); N]) -> Self {
        let header = columns.iter().map(|(name, _)| (*name).to_owned()).collect();
        Self { columns: columns.iter().map(|(_, align)| *align).collect(), rows: vec![header] }
    }

    /// Adds a row of as many cells as there are columns.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        debug_assert_eq!(N, self.columns.len(), "one cell a column");
        self.rows.push(cells.into());
    }

    /// Whether there is nothing below the header.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.len() <= 1
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |column: usize| self.rows.iter().map(|row| row.get(column).map_or(0, |c| columns(c))).max();
        let widths: Vec<usize> = (0..self.columns.len()).map(|c| width(c).unwrap_or(0)).collect();
        for (number, row) in self.rows.iter().enumerate() {
            let mut line = String::new();
            for ((cell, align), width) in row.iter().zip(&self.columns).zip(&widths) {
                let fill = " ".repeat(width - columns(cell));
                match align {
                    Align::Left => line.extend([cell, fill.as_str(), "  "]),
                    Align::Right => line.extend([fill.as_str(), cell, "  "]),
                }
            }
            let line = line.trim_end();
            if number == 0 { f.write_str(line)? } else { write!(f, "\n{line}")? }
        }
        Ok(())
    }
}

/// How many columns of a terminal the text takes: characters, without the sequences that only set a colour.
fn columns(text: &str) -> usize {
    let mut in_sequence = false;
    text.chars()
        .filter(|&c| {
            let hidden = in_sequence || c == '\x1b';
            in_sequence = hidden && c != 'm';
            !hidden
        })
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_whatever_their_colour() {
        let mut table = Table::new([("ID", Align::Left), ("SIZE", Align::Right), ("LABEL", Align::Left)]);
        assert!(table.is_empty());
        table.row(["20261121T014500Z".into(), "1.2 GB".into(), "\x1b[1mnächtlich\x1b[0m".into()]);
        table.row(["x".into(), "900 kB".into(), String::new()]);
        assert_eq!(
            table.to_string(),
            "ID                  SIZE  LABEL\n\
             20261121T014500Z  1.2 GB  \x1b[1mnächtlich\x1b[0m\n\
             x                 900 kB"
        );
    }
}
