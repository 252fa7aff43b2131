//! Follows the names that transactions change between two catalogues. The log has of a renamed row no more than the
//! bytes that changed, so that which one it is has to be concluded: a table is locked before it is renamed, and the bytes
//! must fit what it was called. What fits several has no name from then on: a wrong one would be worse.

use std::collections::HashMap;

use super::{
    gather::{Gatherer, How, Renaming, Renamings},
    names::{Names, Since, UNKNOWN, entry_at, turn},
};
use crate::{
    postgres::{
        Lsn,
        sql::catalogue::{RelationKind, RelationName},
    },
    wal::{
        Named, RelFile,
        named::{CLASS, DATABASE, NAMED, NAMESPACE, TABLESPACE, text},
    },
};

type Key = (u32, u32);

/// What fits, and what it is called then; none where that is no text.
type Fit<T> = (T, Option<String>, [u8; 4]);

impl Names {
    /// Takes in what the log tells of renamings, when all catalogues are read. A name that changed holds from behind the
    /// commit on: what the same transaction dropped was called otherwise for everybody else.
    pub fn follow(&mut self, named: Vec<(Lsn, RelFile, Named)>, gathered: &Gatherer) {
        let Gatherer { renamings, locked, remapped, .. } = gathered;
        // The first time counts, unless it was so from the beginning.
        for (lsn, database) in remapped.iter().rev() {
            if self.blind.get(database) != Some(&Lsn(0)) {
                self.blind.insert(*database, *lsn);
            }
        }
        let mut named = named.into_iter().peekable();
        let mut locked = locked.iter().peekable();
        for renamings in renamings {
            while let Some((lsn, file, name)) = named.next_if(|(lsn, ..)| *lsn < renamings.lsn) {
                self.named(lsn, file, name);
            }
            while let Some((lsn, key)) = locked.next_if(|(lsn, _)| *lsn < renamings.lsn) {
                self.doubt(*lsn, *key);
            }
            let since = renamings.lsn + 1;
            let mut places = HashMap::new();
            for renaming in &renamings.items {
                match renaming.file.number {
                    CLASS => self.relation_renamed(since, renaming, renamings, &mut places),
                    NAMESPACE => self.schema_renamed(since, renaming),
                    DATABASE => other_renamed(&mut self.databases, since, renaming),
                    TABLESPACE => other_renamed(&mut self.tablespaces, since, renaming),
                    _ if self.may_hold_databases(renaming, remapped) => {
                        other_renamed(&mut self.databases, since, renaming);
                    }
                    _ => {}
                }
            }
        }
        named.for_each(|(lsn, file, name)| self.named(lsn, file, name));
        locked.for_each(|(lsn, key)| self.doubt(*lsn, *key));
    }

    /// What was known before a gap of the log, which ends there, may be called otherwise behind it.
    pub fn gap(&mut self, lsn: Lsn) {
        let keys: Vec<Key> = self.relations.keys().copied().collect();
        for key in keys {
            if self.is_older(key, lsn) {
                self.relation_turns(lsn, key, None, None);
            }
        }
        let others = self.databases.values_mut().chain(self.tablespaces.values_mut()).chain(self.schemas.values_mut());
        others
            .filter(|since| since.first().is_some_and(|(from, _)| *from < lsn))
            .for_each(|since| turn(since, lsn, None));
    }

    fn is_older(&self, key: Key, lsn: Lsn) -> bool {
        self.relations.get(&key).and_then(|since| since.first()).is_some_and(|(from, _)| *from < lsn)
    }

    /// Whether a shared catalogue that was written anew may be that of the databases, as far as the last catalogue tells.
    fn may_hold_databases(&self, renaming: &Renaming, remapped: &[(Lsn, u32)]) -> bool {
        let known = self.relations.get(&(0, DATABASE)).and_then(|since| entry_at(since, renaming.lsn));
        known.is_none_or(|(from, databases)| {
            let since = remapped.iter().any(|(at, database)| *database == 0 && from < *at && *at < renaming.lsn);
            since || databases.file == Some(renaming.file.number)
        })
    }

    /// A relation that was locked where renamings are not told may have another name since.
    fn doubt(&mut self, lsn: Lsn, key: Key) {
        if self.blind.get(&key.0).is_some_and(|blind| *blind <= lsn) {
            self.relation_turns(lsn + 1, key, None, None);
        }
    }

    fn relation_renamed(
        &mut self,
        lsn: Lsn,
        renaming: &Renaming,
        all: &Renamings,
        places: &mut HashMap<Key, (u32, u16)>,
    ) {
        let database = renaming.file.database;
        let (place, at, bytes) = match &renaming.how {
            How::Whole { place, named } => {
                places.insert((database, named.oid), *place);
                return self.relation_is(lsn, database, named);
            }
            How::Changed { place, at, bytes } => (place, *at, bytes.as_deref()),
        };
        let locks = all.locks.iter().filter(|(locked, key)| *locked < renaming.lsn && key.0 == database);
        let candidates: Vec<Key> = locks.map(|(_, key)| *key).filter(|key| self.relations.contains_key(key)).collect();
        let Some(bytes) = bytes else {
            return candidates.iter().for_each(|key| self.relation_turns(lsn, *key, None, None));
        };
        // Without its type no table is renamed: it is an index, the TOAST table of one that is written anew, or a sequence.
        let may_be = |kind: RelationKind| all.types || kind == RelationKind::Sequence;
        let fits = candidates.into_iter().filter_map(|key| {
            let (_, old) =
                entry_at(self.relations.get(&key)?, lsn).filter(|(_, old)| !old.name.is_empty() && may_be(old.kind))?;
            let schema = self.schema(key, lsn).and_then(|schema| self.schema_oid(database, &schema, lsn));
            let schema = schema.unwrap_or_default();
            let (name, schema) = changed(key.1, &old.name, schema.to_le_bytes(), at, bytes)?;
            Some((key, name, schema))
        });
        let fits: Vec<Fit<Key>> = fits.collect();
        // Where this transaction renamed one before, its row is known by its place.
        let own = fits.iter().find(|(key, ..)| places.get(key) == Some(&renaming.place));
        let others: Vec<_> = fits.iter().filter(|(key, ..)| !places.contains_key(key)).collect();
        let only = if let [only] = others[..] { Some(only) } else { None };
        match own.or(only).filter(|_| all.types) {
            Some((key, name, schema)) => {
                places.insert(*key, *place);
                let schema = (usize::from(at) + bytes.len() > NAMED).then(|| u32::from_le_bytes(*schema));
                self.relation_turns(lsn, *key, name.clone(), schema);
            }
            None => fits.iter().for_each(|(key, ..)| self.relation_turns(lsn, *key, None, None)),
        }
    }

    /// From `lsn` on that relation is called so, and lies in that schema if it is another one.
    fn relation_turns(&mut self, lsn: Lsn, key: Key, name: Option<String>, schema: Option<u32>) {
        let now = self.schema(key, lsn);
        let schema = match schema {
            Some(oid) => self.schemas.get(&(key.0, oid)).and_then(|since| entry_at(since, lsn)).map(|(_, s)| s.clone()),
            None => now,
        };
        let Some(since) = self.relations.get_mut(&key) else { return };
        let old = entry_at(since, lsn).map(|(_, old)| old.clone());
        let new = old.map(|old| RelationName {
            name: name.unwrap_or_default(),
            schema: schema.unwrap_or_else(|| UNKNOWN.into()),
            ..old
        });
        turn(since, lsn, new);
    }

    /// A row that is known as a whole.
    fn relation_is(&mut self, lsn: Lsn, database: u32, named: &Named) {
        let key = (database, named.oid);
        let Some((schema, kind)) = named.schema.zip(named.kind) else { return };
        if self.relation(key, lsn).is_none() {
            let relation = RelationName {
                database,
                oid: named.oid,
                schema: UNKNOWN.into(),
                name: named.name.clone(),
                kind: RelationKind::from_letter(kind),
                file: None,
                tablespace: 0,
                parent: None,
            };
            turn(self.relations.entry(key).or_default(), lsn, Some(relation));
        }
        self.relation_turns(lsn, key, Some(named.name.clone()), Some(schema));
    }

    fn schema_oid(&self, database: u32, name: &str, lsn: Lsn) -> Option<u32> {
        let is = |since: &Since<String>| entry_at(since, lsn).is_some_and(|(_, known)| known == name);
        let mut named = self.schemas.iter().filter(|((of, _), since)| *of == database && is(since));
        named.next().map(|((_, oid), _)| *oid)
    }

    fn schema_renamed(&mut self, lsn: Lsn, renaming: &Renaming) {
        let database = renaming.file.database;
        let known = self.schemas.iter().filter(|((of, _), _)| *of == database);
        let turns = turns(known.map(|((_, oid), since)| (*oid, since)), lsn, renaming);
        for (oid, name) in turns {
            let since = self.schemas.entry((database, oid)).or_default();
            let before = entry_at(since, lsn).map(|(_, name)| name.clone());
            turn(since, lsn, name.clone());
            if let Some(before) = before.filter(|before| name.as_ref() != Some(before)) {
                self.renamed_schemas.push((lsn, database, before, name));
            }
        }
    }
}

fn other_renamed(names: &mut HashMap<u32, Since<String>>, lsn: Lsn, renaming: &Renaming) {
    for (oid, name) in turns(names.iter().map(|(oid, since)| (*oid, since)), lsn, renaming) {
        turn(names.entry(oid).or_default(), lsn, name);
    }
}

/// What of that which is `known` may be called otherwise since, and how; none where that is not certain.
fn turns<'n>(
    known: impl Iterator<Item = (u32, &'n Since<String>)>,
    lsn: Lsn,
    renaming: &Renaming,
) -> Vec<(u32, Option<String>)> {
    match &renaming.how {
        How::Whole { named, .. } => vec![(named.oid, Some(named.name.clone()))],
        How::Changed { bytes: None, .. } => known.map(|(oid, _)| (oid, None)).collect(),
        How::Changed { at, bytes: Some(bytes), .. } => {
            let fits = known.filter_map(|(oid, since)| {
                let (name, _) = changed(oid, entry_at(since, lsn)?.1, [0; 4], *at, bytes)?;
                Some((oid, name))
            });
            let fits: Vec<_> = fits.collect();
            match fits.len() {
                1 => fits,
                _ => fits.into_iter().map(|(oid, _)| (oid, None)).collect(),
            }
        }
    }
}

/// The name and the number of the schema when `bytes` of the row changed from `at` on; `None` when it cannot have been this
/// row.
fn changed(oid: u32, name: &str, schema: [u8; 4], at: u8, bytes: &[u8]) -> Option<(Option<String>, [u8; 4])> {
    let mut row = [0; NAMED + 4];
    row[..4].copy_from_slice(&oid.to_le_bytes());
    row[4..NAMED].get_mut(..name.len())?.copy_from_slice(name.as_bytes());
    row[NAMED..].copy_from_slice(&schema);
    let (start, end) = (usize::from(at), usize::from(at) + bytes.len());
    let old = row.get(start..end)?;
    // What is the same at both ends was left out, as far as these are the ends.
    let reaches_further = end == NAMED || end == NAMED + 4;
    let known = end <= NAMED || schema != [0; 4];
    let ends_same = start > 0 && old.first() == bytes.first() || !reaches_further && old.last() == bytes.last();
    if known && ends_same {
        return None;
    }
    row[start..end].copy_from_slice(bytes);
    let text_end = row[4..NAMED].iter().rposition(|byte| *byte != 0)?;
    if row[4..4 + text_end].contains(&0) {
        return None;
    }
    let same = row[..4] == oid.to_le_bytes();
    let schema = row[NAMED..].first_chunk().copied().filter(|_| known).unwrap_or_default();
    same.then(|| (text(&row[4..NAMED]), schema))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_bytes_fit_what_they_changed() {
        let one = |name: &str, at: u8, bytes: &[u8]| changed(16_389, name, [0; 4], at, bytes);
        let is = |name: &str| Some((Some(name.to_owned()), [0; 4]));
        assert_eq!(one("orders", 10, b"_old"), is("orders_old"));
        assert_eq!(one("orders_new", 10, b"_old"), None, "the underscore would be the same");
        assert_eq!(one("orders_new", 10, &[0; 4]), is("orders"));
        assert_eq!(one("order", 10, b"_old"), None, "a zero would be in it");
        assert_eq!(one("a", 4, b"b"), is("b"));
        assert_eq!(one("a", 0, &16_389_u32.to_le_bytes()), None, "the last byte would be the same");
        // Of LATIN1 no text can be made.
        assert_eq!(one("a", 4, &[0xFC]), Some((None, [0; 4])));
        let schema = changed(16_389, "t", [0x98, 8, 0, 0], 68, &[9]);
        assert_eq!(schema, Some((Some("t".into()), [9, 8, 0, 0])));
        assert_eq!(one(&"x".repeat(65), 4, b"b"), None);
    }
}
