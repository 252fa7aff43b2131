//! A `walden wal receive` that runs beside a real server, and what it has brought into the repository.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, ExitStatus},
    thread::{JoinHandle, sleep, spawn},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use walden::{
    postgres::Lsn,
    wal::{Fact, Reader},
};
use walden_testkit::{
    postgres::{Builder, Cluster, Installation},
    protected::{Place, Protected},
    s3::S3Server,
};

/// A receiver that runs; killed when it is dropped.
pub struct Receiver {
    child: Child,
    log: PathBuf,
}

impl Receiver {
    /// Starts one and waits until WAL comes in.
    #[track_caller]
    pub fn start(p: &Protected) -> Self {
        let receiver = Self::launch(p, &[]);
        receiver.wait_for("receiving timeline");
        receiver
    }

    /// Starts one.
    pub fn launch(p: &Protected, arguments: &[&str]) -> Self {
        let log = p.scene.path().join(format!("receive-{}.log", fs::read_dir(p.scene.path()).unwrap().count()));
        let mut command = p.command(["-vv", "wal", "receive"].iter().chain(arguments));
        let child = command.stderr(File::create(&log).unwrap()).spawn().unwrap();
        Self { child, log }
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    #[track_caller]
    pub fn wait_for(&self, what: &str) {
        self.wait_until(what, || self.log().contains(what));
    }

    #[track_caller]
    pub fn wait_until(&self, what: &str, so: impl Fn() -> bool) {
        let begun = Instant::now();
        while !so() {
            assert!(begun.elapsed() < Duration::from_secs(60), "not {what:?} in\n{}", self.log());
            sleep(Duration::from_millis(20));
        }
    }

    /// Ends it, and waits until it has ended.
    pub fn end(mut self, signal: Signal) -> ExitStatus {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
        self.child.wait().unwrap()
    }

    /// Waits until it ends by itself.
    pub fn ended(mut self) -> (ExitStatus, String) {
        let status = self.child.wait().unwrap();
        (status, self.log())
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// A cluster with segments of 1 MB that archives nothing by itself, so that all of its WAL stays in `pg_wal`; `more` is the
/// `[receive]` table.
pub fn protected(
    installation: &Installation,
    place: Place<'_>,
    more: &str,
    settings: impl FnOnce(Builder) -> Builder,
) -> Protected {
    let p = Protected::new(installation, place, |b| {
        settings(b.wal_segment_size(1).setting("archive_command", "false").setting("wal_keep_size", "1GB"))
    });
    configure(&p, more);
    p
}

/// Adds the `[receive]` table, with a state folder in the scene.
pub fn configure(p: &Protected, receive: &str) {
    let text = fs::read_to_string(&p.config).unwrap();
    let text = text.split("\n[archive]").next().unwrap();
    let state = p.scene.path().join("state");
    p.scene.write(
        "walden.toml",
        format!("{text}\n[archive]\nstate_dir = \"{}\"\n[receive]\n{receive}\n", state.display()),
    );
}

/// Writes about so many MB of WAL.
pub fn write(cluster: &Cluster, megabytes: u32) {
    cluster.psql(&format!(
        "create table if not exists filler (x text);
         insert into filler select repeat(md5(i::text), 8) from generate_series(1, {}) i",
        megabytes * 3300
    ));
}

/// Waits until the server was told that everything is flushed that it has written by now.
#[track_caller]
pub fn wait_flushed(cluster: &Cluster) {
    wait_told(cluster, "flush_lsn");
}

/// The same of `write_lsn`: everything was received.
#[track_caller]
pub fn wait_received(cluster: &Cluster) {
    wait_told(cluster, "write_lsn");
}

#[track_caller]
fn wait_told(cluster: &Cluster, what: &str) {
    let at = flushed(cluster);
    let sql = format!("select {what} >= '{at}' from pg_stat_replication where application_name = 'walden'");
    cluster.wait_for(&sql, "t");
}

/// Up to where the server has flushed its WAL.
pub fn flushed(cluster: &Cluster) -> Lsn {
    cluster.psql("select pg_current_wal_flush_lsn()").parse().unwrap()
}

/// What the repository has of each segment, from its first byte on, whole or in pieces; proven to agree where it has both.
pub struct Archived(BTreeMap<String, Vec<u8>>);

impl Archived {
    /// Of a repository in a directory.
    pub fn of(p: &Protected) -> Self {
        let objects = files(&p.repository).into_iter().filter(|path| path.to_string_lossy().contains("/wal/"));
        Self::joined(objects.map(|path| (path.display().to_string(), fs::read(&path).unwrap())))
    }

    /// Of a repository in a bucket.
    pub fn in_bucket(s3: &S3Server) -> Self {
        let keys = s3.keys().into_iter().filter(|key| key.contains("/wal/"));
        Self::joined(keys.map(|key| (key.clone(), s3.object(&key).unwrap().bytes.to_vec())))
    }

    fn joined(objects: impl Iterator<Item = (String, Vec<u8>)>) -> Self {
        let mut segments: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        let mut pieces: BTreeMap<String, BTreeMap<(usize, String), Vec<u8>>> = BTreeMap::new();
        for (key, object) in objects {
            let (folder, name) = key.rsplit_once('/').unwrap();
            let bytes = zstd::stream::decode_all(&object[..]).unwrap_or_else(|e| panic!("{key}: {e}"));
            if let Some((_, segment)) = folder.strip_suffix(".pieces").and_then(|folder| folder.rsplit_once('/')) {
                let from = usize::from_str_radix(&name[..8], 16).unwrap();
                pieces.entry(segment.to_owned()).or_default().insert((from, name.to_owned()), bytes);
            } else if name.len() == 24 {
                segments.insert(name.to_owned(), bytes);
            }
        }
        for (name, pieces) in pieces {
            let whole = segments.get(&name);
            let mut joined: Vec<u8> = Vec::new();
            for ((from, piece), bytes) in pieces {
                let differs = "is not what the segment has";
                assert!(
                    whole.is_none_or(|whole| whole[from..from + bytes.len()] == bytes[..]),
                    "{name} {piece} {differs}"
                );
                if from <= joined.len() {
                    let known = (joined.len() - from).min(bytes.len());
                    assert!(joined[from..from + known] == bytes[..known], "{name} {piece} contradicts another");
                    joined.extend_from_slice(&bytes[known..]);
                }
            }
            segments.entry(name).or_insert(joined);
        }
        Self(segments)
    }

    /// Proves that each whole segment is what `pg_wal` has; gives their number.
    #[track_caller]
    pub fn same_as_pg_wal(&self, cluster: &Cluster) -> usize {
        let mut checked = 0;
        for (name, bytes) in &self.0 {
            if bytes.len() == 1 << 20
                && let Ok(there) = fs::read(cluster.pgdata().join("pg_wal").join(name))
            {
                assert!(there == *bytes, "{name} is not what pg_wal has");
                checked += 1;
            }
        }
        checked
    }

    /// Whether there is anything of that segment.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// The end of the unbroken log of a timeline, and the transactions that committed in it, as recovery would read them.
    #[track_caller]
    pub fn commits(&self, timeline: &str) -> (Lsn, BTreeSet<u32>) {
        let mut reader: Option<Reader> = None;
        let (mut committed, mut next) = (BTreeSet::new(), None);
        for (name, bytes) in self.0.range(timeline.to_owned()..).filter(|(name, _)| name.starts_with(timeline)) {
            let hex = |digits: &str| u64::from_str_radix(digits, 16).unwrap();
            let number = hex(&name[8..16]) << 12 | hex(&name[16..]);
            assert!(next.is_none_or(|next| next == number), "there is a gap before {name}");
            let reader = reader.get_or_insert_with(|| Reader::new(Lsn(number << 20)));
            // A page is read when it is whole.
            let mut padded = bytes.clone();
            padded.resize(bytes.len().next_multiple_of(8192), 0);
            for record in reader.read(&padded) {
                if let Fact::Commit(end) = record.fact {
                    committed.insert(end.xid);
                }
            }
            if bytes.len() < 1 << 20 {
                break;
            }
            next = Some(number + 1);
        }
        (reader.map_or(Lsn(0), |reader| reader.proven()), committed)
    }
}

/// All files below a folder.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.file_type().unwrap().is_dir() {
            true => found.extend(files(&entry.path())),
            false => found.push(entry.path()),
        }
    }
    found.sort();
    found
}

/// Clients that commit one small transaction after the other, until the server is gone.
pub struct Load(Vec<JoinHandle<Vec<(Instant, u32)>>>);

impl Load {
    pub fn start(cluster: &Cluster, clients: usize) -> Self {
        cluster.psql("create table if not exists load (x text)");
        let client = |_| {
            let conninfo = cluster.conninfo();
            spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(commit_on(&conninfo))
            })
        };
        Self((0..clients).map(client).collect())
    }

    /// The transactions that were acknowledged, and when.
    pub fn acknowledged(self) -> Vec<(Instant, u32)> {
        self.0.into_iter().flat_map(|client| client.join().unwrap()).collect()
    }
}

async fn commit_on(conninfo: &str) -> Vec<(Instant, u32)> {
    let (client, connection) = tokio_postgres::connect(conninfo, tokio_postgres::NoTls).await.unwrap();
    let driver = tokio::spawn(connection);
    let mut acknowledged = Vec::new();
    let sql = "insert into load values (repeat('x', 100)) returning pg_current_xact_id()::text";
    while let Ok(row) = client.query_one(sql, &[]).await {
        let xid: u64 = row.get::<_, String>(0).parse().unwrap();
        acknowledged.push((Instant::now(), xid as u32));
    }
    driver.abort();
    acknowledged
}
