//! Standbys of a cluster.

use std::{fs, path::PathBuf};

use super::Cluster;
use crate::run::run;

impl Cluster {
    /// A standby that streams from this server, or from this standby, in a directory of its own; it runs.
    ///
    /// # Panics
    /// When it cannot be made, or does not start.
    #[must_use]
    #[track_caller]
    pub fn standby(&self, pgdata: impl Into<PathBuf>) -> Self {
        let pgdata = pgdata.into();
        let mut program = self.pg("pg_basebackup");
        run(program.args(["-c", "fast", "--no-sync", "-D"]).arg(&pgdata)).expect_code(0);
        // What --write-recovery-conf would write, a server of another minor release than pg_basebackup may not know.
        let signal = pgdata.join("standby.signal");
        fs::write(&signal, "").unwrap_or_else(|error| panic!("{}: {error}", signal.display()));
        self.owner().own(&signal);
        let mut standby = Self::adopt(pgdata, self.installation());
        standby.append_configuration(&format!("primary_conninfo = '{}'\n", self.conninfo()));
        standby.start();
        standby
    }

    /// Waits until that standby has replayed everything that this primary has written by now.
    ///
    /// # Panics
    /// When it never does.
    #[track_caller]
    pub fn wait_replayed_by(&self, standby: &Self) {
        let written = self.psql("SELECT pg_current_wal_lsn()");
        standby.wait_for(&format!("SELECT pg_last_wal_replay_lsn() >= '{written}'"), "t");
    }
}
