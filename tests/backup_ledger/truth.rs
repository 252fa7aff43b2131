//! What is committed: a hash of each table that rests during a backup, and the numbers of the transactions that are in
//! the ledger.

use std::collections::{BTreeMap, BTreeSet};

use walden_testkit::postgres::Cluster;

/// The hashes of all tables but those that are written during backups, as statements.
const SUMS: &str =
    "select format('select %L, md5(coalesce(string_agg(x::text, '','' order by x::text), '''')) from %s x',
    relname, oid::regclass)
    from pg_class where relkind = 'r' and relpersistence = 'p' and relnamespace = 'public'::regnamespace
    and relname !~ '^(ledger|account|churn)' order by relname \\gexec";

/// What is committed at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Truth {
    /// By database.
    tables: BTreeMap<String, String>,
    ledger: BTreeSet<u64>,
}

impl Truth {
    /// What a server holds.
    pub fn of(cluster: &Cluster) -> Self {
        let databases = cluster.psql("select datname from pg_database where datallowconn and datname !~ '^template'");
        let tables = databases.lines().map(|name| (name.to_owned(), cluster.psql_db(name, SUMS)));
        let tables = tables.collect();
        let ledger = cluster.psql("select n from ledger").lines().map(|n| n.parse().unwrap()).collect();
        Self { tables, ledger }
    }

    /// The number of the next transaction.
    pub fn next_transaction(&self) -> u64 {
        self.ledger.last().map_or(1, |last| last + 1)
    }

    /// Adds transactions.
    pub fn add(&mut self, numbers: impl Iterator<Item = u64>) {
        self.ledger.extend(numbers);
    }

    /// Insists that a server holds this and nothing else.
    #[track_caller]
    pub fn check(&self, cluster: &Cluster, what: &str) {
        let found = Self::of(cluster);
        let missing: Vec<_> = self.ledger.difference(&found.ledger).collect();
        let extra: Vec<_> = found.ledger.difference(&self.ledger).collect();
        assert!(missing.is_empty() && extra.is_empty(), "{what}: missing {missing:?}, too many {extra:?}");
        for (database, tables) in &self.tables {
            assert_eq!(found.tables.get(database), Some(tables), "{what}: tables of {database}");
        }
        let names = |truth: &Self| truth.tables.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&found), names(self), "{what}: databases");
        let wrong = "select count(*) from account left join (select k, sum(n) as s from
            (select a as k, n from ledger union all select b, n from ledger) e group by k) l on l.k = account.k
            where account.balance <> coalesce(s, 0)";
        assert_eq!(cluster.psql(wrong), "0", "{what}: accounts that contradict the ledger");
    }
}
