//! Expiry where several repositories hold the same: what goes from the first goes from the others, before or when they
//! are there again, and nothing comes back. And where objects are locked.
#![allow(clippy::unwrap_used, reason = "helpers of a test may panic like the test")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use walden::{
    clock::{Clock, Random, SystemClock},
    config::{Config, Lookup},
    interrupt::Interrupter,
    keep::{self, Policy},
    mirror,
    repository::System,
    store::{
        Store,
        dir::DirStore,
        faulty::{Faulty, Trouble},
        list_all,
    },
};
use walden_testkit::{
    postgres::any,
    protected::{Place, Protected},
    run::run,
    s3::S3Server,
};

/// A cluster with two repositories in directories, and rules.
struct Two {
    p: Protected,
    offsite: PathBuf,
}

impl Two {
    fn new(keep: &str) -> Self {
        let p = Protected::new(any(), Place::Directory, |b| b.setting("autovacuum", "off"));
        let (config, offsite) = (fs::read_to_string(&p.config).unwrap(), p.scene.path().join("offsite"));
        let state = p.scene.path().join("state");
        p.scene.write(
            "walden.toml",
            format!(
                "{config}\n[repository.offsite]\nurl = \"file://{}\"\ndeadline = \"2s\"\n[archive]\nstate_dir = \"{}\"\n\
                 wait_for = \"first\"\n[keep]\n{keep}\n",
                offsite.display(),
                state.display()
            ),
        );
        p.walden(["init"]).expect_code(0);
        p.cluster.psql("create table t as select n, repeat('x', 100) as text from generate_series(1, 20000) as n");
        Self { p, offsite }
    }

    fn backup(&self, number: u32) -> String {
        self.p.cluster.psql(&format!("update t set text = md5(text) where n % 97 = {number}"));
        let _ = self.p.archive();
        let id = self.p.backup();
        let _ = self.p.archive();
        id
    }

    fn away(&self) {
        fs::rename(&self.offsite, self.p.scene.path().join("elsewhere")).unwrap();
    }

    fn back(&self) {
        fs::rename(self.p.scene.path().join("elsewhere"), &self.offsite).unwrap();
    }

    fn restore(&self, repository: &str, wish: &[&str]) {
        let pgdata = self.p.scene.path().join("copy");
        let mut command = self.p.command(["-q", "restore", "--yes", "--repository", repository, "--pgdata"]);
        run(command.arg(&pgdata).args(wish)).expect_code(0);
        let verify = self.p.cluster.installation().program("pg_verifybackup");
        run(self.p.cluster.owner().command(verify).arg("-n").arg(&pgdata)).expect_code(0);
        fs::remove_dir_all(&pgdata).unwrap();
    }
}

fn store_of(folder: &Path) -> Arc<dyn Store> {
    Arc::new(DirStore::open(folder.to_owned(), Arc::new(Random::seeded(7))).unwrap())
}

/// The keys of what the one is to have as the other.
fn keys(folder: &Path) -> BTreeSet<String> {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let all = runtime.block_on(list_all(&*store_of(folder), "")).unwrap();
    let own = ["/lease/", "/notes/restores/", "/notes/condemned/"];
    let all = all.into_iter().map(|listed| listed.key.to_string());
    all.filter(|key| !own.iter().any(|part| key.contains(part))).collect()
}

/// The ids of the backups that exist there.
fn backups(folder: &Path) -> Vec<String> {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let [system] = System::all(&store_of(folder), &"main".parse().unwrap()).await.unwrap().try_into().unwrap();
        let system: System = system;
        system.backups().await.unwrap().iter().map(|backup| backup.id.to_string()).collect()
    })
}

#[test]
fn what_goes_here_goes_there_and_never_comes_back() {
    let two = Two::new("last = 1");
    let (p, offsite) = (&two.p, &two.offsite);
    let ids = [two.backup(0), two.backup(1)];
    p.walden(["sync"]).expect_code(0);
    assert_eq!(keys(&p.repository), keys(offsite));

    let dry = p.walden(["expire", "--dry-run"]);
    assert!(dry.ok().contains("the same goes from offsite"), "{dry}");
    let done = p.walden(["expire"]);
    assert_eq!(dry.stdout, done.stdout);
    assert!(done.ok().contains("goes") && done.stderr.contains("removed from offsite"), "{done}");
    assert_eq!((backups(&p.repository), backups(offsite)), (vec![ids[1].clone()], vec![ids[1].clone()]));
    assert_eq!(keys(&p.repository), keys(offsite));

    // Away while a backup is taken and another goes: it is told, and keeps what it has.
    two.away();
    let third = two.backup(2);
    let done = p.walden(["expire"]);
    // A folder that is not mounted is for a person.
    done.expect_code(1);
    assert!(done.stderr.contains("offsite has still to remove"), "{done}");
    assert_eq!(backups(&p.repository), std::slice::from_ref(&third));
    two.back();

    // It is there again, but lacks what stays: what it has is all that it could be restored from.
    let done = p.walden(["expire"]);
    done.expect_code(0);
    assert!(done.stderr.contains(&format!("not yet got backup {third}")), "{done}");
    assert_eq!(backups(offsite), ids[1..]);
    p.walden(["sync"]).expect_code(0);
    assert_eq!(backups(offsite), [ids[1].clone(), third.clone()]);
    let done = p.walden(["expire"]);
    assert!(done.ok().contains("what went before goes from offsite"), "{done}");
    assert_eq!(keys(&p.repository), keys(offsite));

    p.walden(["sync"]).expect_code(0);
    assert_eq!(backups(&p.repository), std::slice::from_ref(&third));
    assert_eq!(keys(&p.repository), keys(offsite));
    let again = p.walden(["expire"]);
    assert!(again.ok().contains("nothing goes") && !again.stdout.contains("offsite"), "{again}");
    for repository in ["first", "offsite"] {
        two.restore(repository, &["--to=immediate", "--backup", &third]);
        two.restore(repository, &["--to=latest"]);
    }
}

#[test]
fn a_kill_at_any_request_leaves_both_whole_and_the_next_run_ends_it() {
    let two = Two::new("last = 2");
    (0..4).for_each(|number| _ = two.backup(number));
    two.p.walden(["sync"]).expect_code(0);
    let scene = two.p.scene.path();
    let copy = |from: &Path, name: &str| -> PathBuf {
        let to = scene.join(name);
        let _ = fs::remove_dir_all(&to);
        run(Command::new("cp").arg("-al").arg(from).arg(&to)).expect_code(0);
        to
    };
    let text = fs::read_to_string(&two.p.config).unwrap();
    let (first, second) = (scene.join("killed-first"), scene.join("killed-second"));
    let text = text.replace(&two.offsite.display().to_string(), &second.display().to_string());
    let config = scene.join("killed.toml");
    fs::write(&config, text).unwrap();
    let config = Config::load(&Lookup { named: Some(config), skip_local: true }, &[]).unwrap();
    let expire = |at: usize, trouble: Trouble| {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let faulty = Arc::new(Faulty::new(store_of(&first), at, trouble));
            let store: Arc<dyn Store> = faulty.clone();
            let mirrors = mirror::configured(&config, &Arc::new(Random::from_system()));
            let (policy, interrupter) = (Policy { last: 2, ..Policy::default() }, Interrupter::new());
            let expired = async {
                let plan = keep::plan_expiry(&store, &"main".parse().unwrap(), &policy, SystemClock.now()).await?;
                let random = Random::from_system();
                keep::carry_out(&plan, &mirrors, Arc::new(SystemClock), &random, &interrupter.listen()).await
            };
            let expired = expired.await;
            let owes = expired.iter().flatten().any(|done| done.mirrors.iter().any(|mirror| mirror.owes.is_some()));
            (expired.is_ok(), owes, faulty.met())
        })
    };
    for at in 0.. {
        let what = format!("killed at {at}");
        copy(&two.p.repository, "killed-first");
        copy(&two.offsite, "killed-second");
        let (.., met) = expire(at, Trouble::Die);
        // The first has never less than a mirror: what is there exists there, too.
        let (here, there) = (backups(&first), backups(&second));
        assert!(there.iter().all(|id| here.contains(id)), "{what}: {here:?}, {there:?}");
        for lease in fs::read_dir(first.join("main")).unwrap().flatten() {
            let _ = fs::remove_dir_all(lease.path().join("lease"));
        }
        assert_eq!(expire(usize::MAX, Trouble::Die), (true, false, false), "{what}");
        assert_eq!(keys(&first), keys(&second), "{what}");
        assert_eq!(backups(&second).len(), 2, "{what}");
        if !met {
            break;
        }
    }
}

#[test]
fn what_is_locked_is_told_and_goes_when_it_is_let_go() {
    let server = S3Server::start();
    let p = Protected::new(any(), Place::Bucket(&server), |b| b.setting("autovacuum", "off"));
    p.cluster.psql("create table t as select n from generate_series(1, 20000) as n");
    let ids = [p.backup(), p.backup(), p.backup()];
    let text = fs::read_to_string(&p.config).unwrap();
    p.scene.write("walden.toml", format!("{text}\n[keep]\nlast = 1\n"));
    let listed = || {
        let listed = p.walden(["list"]).ok().to_owned();
        ids.iter().filter(|id| listed.contains(*id)).count()
    };

    // Parts cannot go: their backups do, and they are told and tried again.
    let parts = |id: &String| server.keys().iter().filter(|key| key.contains(&format!("{id}/part-"))).count();
    server.set_locked(&["/part-"]);
    let locked = p.walden(["expire"]);
    locked.expect_code(1);
    assert!(locked.stderr.contains("object protected by object lock"), "{locked}");
    assert_eq!(listed(), 1, "{locked}");
    assert!(parts(&ids[0]) > 0, "{locked}");
    p.walden(["expire"]).expect_code(1);
    server.set_locked(&[]);
    p.walden(["expire"]).expect_code(0);
    // What the last one needs of them stays.
    let needed = parts(&ids[0]) + parts(&ids[1]);
    assert!(p.walden(["expire"]).ok().contains("nothing goes"));

    // A document cannot: then nothing goes that it names.
    let next = p.backup();
    server.set_locked(&[&format!("{}/backup-1.json", ids[2])]);
    p.walden(["expire"]).expect_code(1);
    assert_eq!(listed(), 1);
    assert_eq!(parts(&ids[0]) + parts(&ids[1]), needed);
    for id in [&ids[2], &next] {
        let copy = p.scene.path().join(id);
        run(p.command(["-q", "restore", "--yes", "--to=immediate", "--backup", id, "--pgdata"]).arg(&copy))
            .expect_code(0);
    }
}
