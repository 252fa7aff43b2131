//! Names of tables and databases as psql takes them: what is not quoted is folded to lower case, double quotes keep
//! what is between them, and two of them mean one.

use std::{fmt, str::FromStr};

use crate::error::{Error, Result};

/// The name of a table, as far as it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableName {
    /// The database; any, when it was not given.
    pub database: Option<String>,
    /// The schema; any, when it was not given.
    pub schema: Option<String>,
    /// The table.
    pub table: String,
}

impl FromStr for TableName {
    type Err = Error;

    /// `TABLE`, `SCHEMA.TABLE` or `DATABASE.SCHEMA.TABLE`.
    fn from_str(text: &str) -> Result<Self> {
        let mut parts = identifiers(text)?.into_iter().rev();
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(table), schema, database, None) => Ok(Self { database, schema, table }),
            _ => Err(Error::invalid(format!("\"{text}\" does not name a table"))
                .hint("TABLE, SCHEMA.TABLE or DATABASE.SCHEMA.TABLE; a name with a dot in it takes double quotes")),
        }
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in [&self.database, &self.schema].into_iter().flatten() {
            write!(f, "{}.", quoted(part))?;
        }
        f.write_str(&quoted(&self.table))
    }
}

/// The name of a database.
pub(super) fn database(text: &str) -> Result<String> {
    let mut parts = identifiers(text)?.into_iter();
    match (parts.next(), parts.next()) {
        (Some(name), None) => Ok(name),
        _ => Err(Error::invalid(format!("\"{text}\" does not name a database"))
            .hint("a name with a dot in it takes double quotes")),
    }
}

/// The name as [`TableName`] would read it again.
pub(super) fn quoted(name: &str) -> String {
    let plain = |c: char| !matches!(c, '"' | '.') && !c.is_ascii_uppercase();
    if name.chars().all(plain) && name.trim() == name {
        name.to_owned()
    } else {
        format!("\"{}\"", name.replace('"', "\"\""))
    }
}

/// How much two names are alike: 1 when they are the same but for capital letters, 0 when they have nothing in common.
pub(super) fn likeness(a: &str, b: &str) -> f64 {
    strsim::normalized_damerau_levenshtein(&a.to_lowercase(), &b.to_lowercase())
}

/// From this likeness on one name may have been meant by the other.
pub(super) const ALIKE: f64 = 0.5;

/// The parts between the dots, from left to right.
fn identifiers(text: &str) -> Result<Vec<String>> {
    let bad = |why: &str| {
        Error::invalid(format!("\"{text}\" is not a name: {why}")).hint("as in orders, public.orders or \"Orders\"")
    };
    let mut parts = Vec::new();
    let mut rest = text.trim();
    loop {
        let mut part = String::new();
        if let Some(mut inner) = rest.strip_prefix('"') {
            loop {
                let end = inner.find('"').ok_or_else(|| bad("a double quote is not closed"))?;
                part.push_str(&inner[..end]);
                inner = &inner[end + 1..];
                match inner.strip_prefix('"') {
                    Some(more) => (part.push('"'), inner = more),
                    None => break,
                };
            }
            rest = inner;
        } else {
            let end = rest.find(['.', '"']).unwrap_or(rest.len());
            part = rest[..end].to_ascii_lowercase();
            rest = &rest[end..];
        }
        if part.is_empty() {
            return Err(bad("a part of it is empty"));
        }
        parts.push(part);
        match rest.strip_prefix('.') {
            Some(more) => rest = more,
            None if rest.is_empty() => return Ok(parts),
            None => return Err(bad("a double quote stands inside it")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_psql_reads_them() {
        for (text, said) in [
            ("Orders", "orders"),
            (" shop.Orders ", "shop.orders"),
            ("\"Shop\".orders", "\"Shop\".orders"),
            ("a.\"b.c\".\"d\"\"e\"", "a.\"b.c\".\"d\"\"e\""),
            ("two words", "two words"),
            ("Größe", "größe"),
        ] {
            let name: TableName = text.parse().unwrap();
            assert_eq!(name.to_string(), said);
            assert_eq!(said.parse::<TableName>().unwrap(), name);
        }
        let whole: TableName = "db.shop.orders".parse().unwrap();
        assert_eq!(
            (whole.database.as_deref(), whole.schema.as_deref(), &*whole.table),
            (Some("db"), Some("shop"), "orders")
        );
        assert_eq!(database("\"My.Base\"").unwrap(), "My.Base");
        for text in ["", ".", "a.", ".a", "a..b", "\"a", "a\"b\"", "\"a\"b", "a.b.c.d", "\"\""] {
            assert!(text.parse::<TableName>().is_err(), "{text}");
        }
        assert!(database("a.b").is_err());
    }
}
