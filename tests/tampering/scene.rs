//! A repository with every kind of object, and copies of it to be tampered with.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use tempfile::TempDir;
use walden::{
    clock::{Random, SystemClock},
    interrupt::Interrupter,
    plan::Watch,
    postgres::SegmentName,
    progress::Unwatched,
    repository::{self, System},
    store::{Store, dir::DirStore},
    verify::{self, DeepRequest, Report},
};
use walden_testkit::{
    postgres::{Cluster, Stop, any},
    protected::{Place, Protected},
    run::run,
};

/// The kinds of objects that are tampered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Repository,
    System,
    Document,
    Manifest,
    Part,
    Catalogue,
    Extra,
    Intent,
    Segment,
    History,
    Label,
    Partial,
    Piece,
    RollUp,
    Note,
}

impl Kind {
    /// Without these nothing more is known.
    pub const DOCUMENTS: [Self; 4] = [Self::Repository, Self::System, Self::Document, Self::Manifest];
    /// These do not hide each other.
    pub const OTHERS: [Self; 11] = [
        Self::Part,
        Self::Catalogue,
        Self::Extra,
        Self::Intent,
        Self::Segment,
        Self::History,
        Self::Label,
        Self::Partial,
        Self::Piece,
        Self::RollUp,
        Self::Note,
    ];

    /// Whether anything tells that such an object must be there.
    pub fn is_missed(self) -> bool {
        !matches!(self, Self::Intent | Self::Label | Self::Partial | Self::Piece | Self::RollUp | Self::Note)
    }

    fn is(self, key: &str) -> bool {
        let name = key.rsplit('/').next().unwrap();
        let in_wal = key.contains("/wal/");
        match self {
            Self::Repository => name == "walden.json",
            Self::System => name == "system.json",
            Self::Document => name.starts_with("backup-"),
            Self::Manifest => name.starts_with("manifest-"),
            Self::Part => name.starts_with("part-"),
            Self::Catalogue => name.starts_with("catalogue-"),
            Self::Extra => name.starts_with("extra-"),
            Self::Intent => name.starts_with("intent-"),
            Self::Segment => in_wal && name.len() == 24 && !key.contains('.'),
            Self::History => name.ends_with(".history"),
            Self::Label => name.ends_with(".backup"),
            Self::Partial => key.contains(".partial/"),
            Self::Piece => key.contains(".pieces/"),
            Self::RollUp => key.contains("/notes/summaries/"),
            Self::Note => key.contains("/notes/") && !key.contains("/notes/summaries/"),
        }
    }
}

/// What was really made.
pub struct Scene {
    pub p: Protected,
}

/// Restores to the end and promotes: a new timeline, which is adopted.
fn branch(p: &Protected, name: &str) -> Cluster {
    let pgdata = p.scene.path().join(name);
    let path = pgdata.to_str().unwrap();
    p.walden(["-q", "restore", "--yes", "--then", "promote", "--pgdata", path, "--to", "latest"]).expect_code(0);
    let mut copy = Cluster::adopt(&pgdata, p.cluster.installation());
    copy.start();
    copy.wait_for("select pg_is_in_recovery()", "f");
    let config = fs::read_to_string(&p.config)
        .unwrap()
        .replace(p.cluster.pgdata().to_str().unwrap(), path)
        .replace(&p.cluster.conninfo(), &copy.conninfo());
    let config = p.scene.write(&format!("{name}.toml"), config);
    run(p.scene.walden().arg("--config").arg(&config).args(["adopt", "--pgdata", path])).expect_code(0);
    copy
}

fn archive(cluster: &Cluster) -> String {
    let name = cluster.switch_wal();
    cluster.wait_archived(&name);
    name
}

/// Archives a segment that PostgreSQL still has as it does with the one in which it leaves a timeline.
fn partial(p: &Protected, name: &str) {
    let wal = p.cluster.pgdata().join("pg_wal");
    let partial = wal.join(format!("{name}.partial"));
    fs::copy(wal.join(name), &partial).unwrap();
    p.cluster.owner().own(&partial);
    run(p.command(["wal", "push", &format!("pg_wal/{name}.partial")]).current_dir(p.cluster.pgdata())).expect_code(0);
    fs::remove_file(partial).unwrap();
}

impl Scene {
    pub fn new() -> Self {
        // Segments of one megabyte, from the last ones of a log on, so that it is complete soon.
        let mut p = Protected::new(any(), Place::Directory, |b| {
            b.wal_segment_size(1).first_segment("000000010000000000000FF4").setting("autovacuum", "off")
        });
        let extra = p.scene.write("extra.conf", "an extra file\n");
        let other = p.scene.write("other.conf", "another file, which is longer\n");
        let text = fs::read_to_string(&p.config).unwrap();
        p.scene.write("walden.toml", format!("{text}\n[backup]\nfiles = [\"{}\"]\n", extra.display()));
        p.cluster.psql("create table t as select n, md5(n::text) as text from generate_series(1, 20000) as n");
        p.cluster.psql("vacuum (freeze) t; checkpoint");
        let first = p.backup();
        p.cluster.psql("update t set text = 'changed' where n % 400 = 7");
        p.scene.write("walden.toml", format!("{text}\n[backup]\nfiles = [\"{}\"]\n", other.display()));
        let _second = p.backup();
        let mut last = String::new();
        for n in 0..8 {
            p.cluster.psql(&format!("insert into t select n, 'more' from generate_series(1, 3000) as n -- {n}"));
            last = archive(&p.cluster);
        }
        p.walden(["wal", "summarize"]).expect_code(0);
        p.walden(["pin", &first]).expect_code(0);
        partial(&p, &last);
        p.cluster.stop(Stop::Fast);
        let mut second = branch(&p, "second");
        second.psql("insert into t select n, 'second' from generate_series(1, 3000) as n");
        let _ = archive(&second);
        second.stop(Stop::Fast);
        let scene = Self { p };
        scene.pieces(&second);
        scene
    }

    /// Puts the beginning of the segment that is not archived into pieces.
    fn pieces(&self, cluster: &Cluster) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let store = open(&self.p.repository);
        runtime.block_on(async {
            let system = System::all(&store, &"main".parse().unwrap()).await.unwrap().pop().unwrap();
            let timeline = system.timelines().await.unwrap().into_iter().max().unwrap();
            let last: SegmentName = system.segments(timeline, None, None).await.unwrap().last().unwrap().0;
            let next = last.next(system.document.segment_size).unwrap();
            let bytes = fs::read(cluster.pgdata().join("pg_wal").join(next.to_string())).unwrap();
            for (from, to) in [(0, 8192), (8192, 16384)] {
                system.put_piece(next, from as u64, bytes[from..to].to_vec().into(), 1).await.unwrap();
            }
        });
    }
}

fn open(folder: &Path) -> Arc<dyn Store> {
    Arc::new(DirStore::open(folder.to_path_buf(), Arc::new(Random::seeded(1))).unwrap())
}

/// A copy of the repository.
pub struct Copy {
    folder: TempDir,
    repository: PathBuf,
    original: PathBuf,
    objects: Vec<PathBuf>,
}

impl Copy {
    pub fn of(scene: &Scene) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let repository = folder.path().join("repository");
        let copied = std::process::Command::new("cp").arg("-a").arg(&scene.p.repository).arg(&repository).status();
        assert!(copied.unwrap().success());
        let (mut objects, mut folders) = (Vec::new(), vec![repository.clone()]);
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).unwrap().map(Result::unwrap) {
                if entry.file_type().unwrap().is_dir() {
                    folders.push(entry.path())
                } else {
                    objects.push(entry.path())
                }
            }
        }
        objects.sort();
        Self { folder, repository, original: scene.p.repository.clone(), objects }
    }

    /// An object of that kind: not the last one, which nothing comes after.
    pub fn object(&self, kind: Kind) -> Option<PathBuf> {
        let all = self.of_kind(kind);
        assert!(!all.is_empty(), "there is no {kind:?}");
        // A segment in the midst of those that the last backup needs, or that come after it.
        all.get(all.len() / 2).cloned()
    }

    fn of_kind(&self, kind: Kind) -> Vec<PathBuf> {
        self.objects.iter().filter(|object| kind.is(&self.key(object))).cloned().collect()
    }

    pub fn key(&self, object: &Path) -> String {
        object.strip_prefix(&self.repository).unwrap().to_str().unwrap().to_owned()
    }

    pub fn read(&self, object: &Path) -> Vec<u8> {
        fs::read(object).unwrap()
    }

    pub fn put(&self, object: &Path, bytes: &[u8]) {
        fs::write(object, bytes).unwrap();
    }

    pub fn remove(&self, object: &Path) {
        fs::remove_file(object).unwrap();
    }

    pub fn original(&self, object: &Path) -> Vec<u8> {
        fs::read(self.original.join(self.key(object))).unwrap()
    }

    /// The bytes of another object of that kind.
    pub fn another(&self, kind: Kind, object: &Path) -> Option<Vec<u8>> {
        self.of_kind(kind).into_iter().find(|other| other != object).map(|other| self.read(&other))
    }

    /// What a fast look finds damaged: keys.
    pub fn fast(&self) -> BTreeSet<String> {
        self.look(false)
    }

    /// What a deep look finds damaged: keys.
    pub fn deep(&self) -> BTreeSet<String> {
        self.look(true)
    }

    fn look(&self, deep: bool) -> BTreeSet<String> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let store = open(&self.repository);
        let state_dir = self.folder.path().join("state");
        let request = DeepRequest {
            sample: None,
            not_checked_for: None,
            anew: true,
            parallel: 2,
            rate_limit: None,
            state_dir: state_dir.clone(),
        };
        let watch = Watch { progress: Arc::new(Unwatched), interrupt: Interrupter::new().listen() };
        let looked: walden::Result<Vec<Report>> = runtime.block_on(async {
            let document = repository::open(&*store).await?;
            let mut reports = Vec::new();
            for system in System::all(&store, &"main".parse().unwrap()).await? {
                reports.push(match deep {
                    true => verify::deep(&system, &document, &request, &SystemClock, &watch).await?,
                    false => verify::fast(&system, &watch).await?,
                });
            }
            Ok(reports)
        });
        _ = fs::remove_dir_all(state_dir);
        match looked {
            Ok(reports) => {
                let remarks =
                    reports.iter().flat_map(|report| &report.remarks).filter_map(|told| told.split(' ').next());
                let remarks: Vec<String> = remarks.map(str::to_owned).collect();
                reports
                    .iter()
                    .flat_map(|report| &report.damage)
                    .map(|found| found.object.clone())
                    .chain(remarks)
                    .collect()
            }
            // Without `system.json` nothing can be looked at: the error names it.
            Err(error) => error.to_string().split([':', ' ']).map(str::to_owned).collect(),
        }
    }
}
