//! `walden wal receive` on a host without an identity.

use std::{
    fs::{self, File},
    process::Child,
};

use walden_testkit::{
    postgres::{Stop, any},
    protected::{Place, Protected},
};

use crate::scene::{Keyless, bytes_below, until};

/// A receiver that runs; killed when it is dropped.
struct Receiver(Child);

impl Receiver {
    /// Starts one and waits until WAL comes in.
    fn start(p: &Protected) -> Self {
        let log = p.scene.path().join(format!("receive-{}.log", fs::read_dir(p.scene.path()).unwrap().count()));
        let mut command = p.command(["-vv", "wal", "receive"]);
        let receiver = Self(command.stderr(File::create(&log).unwrap()).spawn().unwrap());
        until("WAL comes in", || fs::read_to_string(&log).unwrap().contains("receiving timeline"));
        receiver
    }

    /// Waits until it has told the server that all is stored that was written by now.
    fn wait_stored(&self, p: &Protected) {
        let at = p.cluster.psql("select pg_current_wal_flush_lsn()");
        let sql = format!("select flush_lsn >= '{at}' from pg_stat_replication where application_name = 'walden'");
        p.cluster.wait_for(&sql, "t");
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

#[test]
fn a_killed_receiver_goes_on_and_the_identity_recovers_all_that_was_said_to_be_stored() {
    let more = "\n[receive]\nflush_interval = \"200ms\"\n";
    let mut k = Keyless::with(any(), Place::Directory, more, |b| b);
    k.write(1, 1000);
    k.p.archive();
    k.backup("before");
    for round in 0..3 {
        let receiver = Receiver::start(&k.p);
        k.write(1001 + 100 * round, 1100 + 100 * round);
        receiver.wait_stored(&k.p);
        drop(receiver);
        if round == 1 {
            // The third one knows nothing of what the others have received.
            fs::remove_dir_all(k.p.scene.path().join("state/receive")).unwrap();
        }
    }
    k.p.cluster.psql("create table unstored as select 1 as a");
    let pieces: Vec<_> = bytes_below(&k.p.repository).into_iter().filter(|(path, _)| is_piece(path)).collect();
    assert!(pieces.len() >= 3, "{}", pieces.len());
    for (path, bytes) in pieces {
        assert!(bytes.starts_with(b"age-encryption.org/v1\n"), "{}", path.display());
    }
    let plan =
        || -> serde_json::Value { serde_json::from_str(k.owner(&["plan", "--to=latest", "--json"]).ok()).unwrap() };
    assert!(plan()["from_pieces"].as_u64() > Some(0), "{}", plan());
    assert_eq!(k.rows_by(&k.identity, "from-pieces"), "1300");

    // The segment itself comes in both ways, and counts from then on.
    let receiver = Receiver::start(&k.p);
    k.write(1301, 1400);
    let whole = k.p.archive();
    receiver.wait_stored(&k.p);
    drop(receiver);
    let file = k.p.scene.path().join("fetched");
    k.owner(&["wal", "fetch", &whole, file.to_str().unwrap()]).expect_code(0);
    assert!(fs::read(file).unwrap() == fs::read(k.p.cluster.pgdata().join("pg_wal").join(&whole)).unwrap());
    k.p.cluster.stop(Stop::Immediate);
    assert_eq!(k.rows_by(&k.identity, "from-the-whole"), "1400");
}

fn is_piece(path: &std::path::Path) -> bool {
    path.to_str().unwrap().contains(".pieces/")
}
