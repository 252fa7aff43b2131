//! What befalls the cluster between two backups.

use std::{collections::BTreeSet, fs};

use walden_testkit::{
    postgres::{Cluster, Stop},
    run::run,
};

use crate::{History, Point, Taken, removed, truth::Truth, writer};

/// The tables of a database.
pub fn prepare(cluster: &Cluster, database: &str) {
    cluster.psql_db(
        database,
        "create table t as select n, md5(n::text) || repeat('x', 90) as text from generate_series(1, 20000) as n;
         create index on t (n);
         create table away as select n, md5(n::text) as text from generate_series(1, 8000) as n;
         create table small as select generate_series(1, 100) as n;
         create unlogged table forgotten as select generate_series(1, 5000) as n",
    );
}

impl History<'_> {
    /// Something happens.
    pub fn act(&mut self) {
        match self.rng.u32(0..20) {
            0..=8 => self.change(),
            9 | 10 => {
                let template = self.template();
                self.create_database(&template);
            }
            11 => self.drop_database(),
            12 => self.crash(),
            13 | 14 => self.kill_a_backup(),
            15 => self.mark(),
            16 | 17 => self.go_back(),
            18 => self.fail_over(),
            _ => {
                let first = Truth::of(&self.p.cluster).next_transaction();
                writer::some(&self.p.cluster, first, 200, &mut self.rng);
            }
        }
    }

    fn any_database(&mut self) -> String {
        let made = self.rng.usize(..=self.databases.len());
        self.databases.iter().nth(made).cloned().unwrap_or_else(|| "postgres".to_owned())
    }

    /// A database is written.
    fn change(&mut self) {
        let database = self.any_database();
        let rows = self.rng.u32(1..20_000);
        let name = self.next();
        let sql = match self.rng.u32(0..11) {
            0 | 1 => format!("update t set text = md5(text) where n % {} = 7", rows / 20 + 10),
            2 => format!("insert into t select n, 'loaded' || n from generate_series(1, {}) as n", rows * 2),
            3 => "vacuum full t".to_owned(),
            4 => format!("delete from t where n > {rows}; vacuum t"),
            5 => format!("truncate small; insert into small select generate_series(1, {rows})"),
            6 => format!(
                "drop table small; create table small as select generate_series(1, {rows}) as n; \
                 create table more_{name} as select n, random() from generate_series(1, {rows}) as n"
            ),
            7 => "alter table away set tablespace apart; alter index t_n_idx set tablespace apart".to_owned(),
            8 => "alter table away set tablespace pg_default; alter index t_n_idx set tablespace pg_default".to_owned(),
            9 => {
                format!("update away set text = 'there' where n % {} = 0; reindex table t; vacuum away", rows / 50 + 2)
            }
            _ => "truncate t; insert into t select n, 'anew' from generate_series(1, 3000) as n; vacuum (freeze) t"
                .to_owned(),
        };
        self.say(&format!("{database}: {sql}"));
        self.p.cluster.psql_db(&database, &sql);
        if self.rng.bool() {
            self.p.cluster.psql("checkpoint");
        }
    }

    fn template(&mut self) -> String {
        let made = self.rng.usize(..self.databases.len() + 1);
        self.databases.iter().nth(made).cloned().unwrap_or_else(|| "template0".to_owned())
    }

    /// A database is made, now and then with the number of one that was dropped.
    pub fn create_database(&mut self, template: &str) {
        if self.databases.len() >= 3 {
            return self.drop_database();
        }
        let name = format!("made{}", self.next());
        let mut sql = format!("create database {name} template {template}");
        if self.installation.major >= 15 {
            sql.push_str(if self.rng.bool() { " strategy file_copy" } else { " strategy wal_log" });
            let oid = 90_000 + self.rng.u32(0..3);
            let free = self.p.cluster.psql(&format!("select count(*) from pg_database where oid = {oid}")) == "0";
            if free {
                sql.push_str(&format!(" oid {oid}"));
            }
        }
        self.say(&sql);
        self.p.cluster.psql(&sql);
        if template == "template0" {
            prepare(&self.p.cluster, &name);
        }
        self.databases.insert(name);
    }

    fn drop_database(&mut self) {
        let Some(name) = self.rng.choice(&self.databases).cloned() else { return };
        self.say(&format!("drop database {name}"));
        self.p.cluster.psql(&format!("drop database {name}"));
        self.databases.remove(&name);
    }

    /// The server is killed or stopped, and started again.
    fn crash(&mut self) {
        if self.rng.bool() {
            self.say("kill -9 the server");
            self.p.cluster.kill9();
        } else {
            self.say("restart the server");
            self.p.cluster.stop(Stop::Fast);
        }
        self.p.cluster.start();
    }

    /// A backup is killed. What it has stored stays.
    fn kill_a_backup(&mut self) {
        let mut command = self.p.command(["-q", "backup"]);
        let mut child =
            command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(self.rng.u64(5..900)));
        let _ = child.kill();
        child.wait().unwrap();
        self.say("kill -9 a backup");
        // One that was done in time is one like others.
        self.take_in("that was killed too late");
    }

    /// Backups that somebody else has taken, while nothing was written.
    fn take_in(&mut self, whose: &str) {
        let known: BTreeSet<String> = self.taken.iter().map(|taken| taken.id.clone()).collect();
        for id in self.listed().difference(&known) {
            let how = format!("backup {id} {whose}");
            self.say(&how);
            self.taken.push(Taken { how, id: id.clone(), truth: Truth::of(&self.p.cluster) });
        }
    }

    /// A restore point, to go back to.
    fn mark(&mut self) {
        let Some(base) = self.taken.last().map(|taken| taken.id.clone()) else { return };
        let name = format!("point{}", self.next());
        self.say(&format!("mark {name}"));
        let truth = Truth::of(&self.p.cluster);
        // A restore point is not flushed by itself, and the server may be killed next.
        self.p.cluster.psql(&format!("select pg_create_restore_point('{name}'); select pg_switch_wal()"));
        self.points.push(Point { name, truth, base });
    }

    /// In-place recovery onto a new timeline. What was written and backed up since is of an abandoned branch.
    fn go_back(&mut self) {
        self.points.retain(|point| self.taken.iter().any(|taken| taken.id == point.base));
        if self.points.is_empty() {
            return self.mark();
        }
        let at = self.rng.usize(..self.points.len());
        let Point { name, truth, .. } = &self.points[at];
        self.say(&format!("go back to {name}"));
        self.p.archive();
        self.p.cluster.stop(Stop::Fast);
        let (target, pgdata) = (format!("name:{name}"), self.p.cluster.pgdata().to_owned());
        let how = if self.rng.bool() { "--delta" } else { "--force" };
        let arguments = ["-q", "restore", "--yes", "--then=promote", how, "--to", &target, "--pgdata"];
        let mut restore = self.p.command(arguments);
        let ran = run(restore.arg(&pgdata));
        assert!(ran.code == Some(0), "{}: {ran}", self.told);
        self.p.cluster.start();
        self.p.cluster.wait_for("select pg_is_in_recovery()", "f");
        truth.check(&self.p.cluster, &format!("{}: back at {name}", self.told));
        let ran = self.p.walden(["adopt", "--pgdata", pgdata.to_str().unwrap()]);
        assert!(ran.code == Some(0), "{}: {ran}", self.told);
        self.points.truncate(at + 1);
        self.take_in("after the adoption");
        self.know_databases();
    }

    /// Which databases there are, after a way back.
    fn know_databases(&mut self) {
        let names = self.p.cluster.psql("select datname from pg_database where datname ~ '^made'");
        self.databases = names.lines().map(str::to_owned).collect();
    }

    /// A standby is promoted; the old primary goes on for a while, is rewound, follows, and is promoted again.
    fn fail_over(&mut self) {
        let number = self.next();
        self.say("fail over, rewind and fail back");
        let mut new = self.standby(number);
        self.change();
        self.p.cluster.wait_replayed_by(&new);
        new.psql("select pg_promote()");
        new.wait_for("select pg_is_in_recovery()", "f");
        // Of an abandoned branch from here on.
        self.change();
        if self.rng.bool() {
            self.backup();
        }
        self.p.cluster.stop(Stop::Fast);
        let first = Truth::of(&new).next_transaction();
        writer::some(&new, first, 50, &mut self.rng);
        new.psql("update t set text = 'on the new primary' where n % 100 = 3; checkpoint");
        let mut rewind = new.pg("pg_rewind");
        rewind.arg("--target-pgdata").arg(self.p.cluster.pgdata()).arg("--no-sync");
        run(rewind.arg(format!("--source-server={}", new.conninfo()))).expect_code(0);
        self.follow(new.conninfo());
        self.p.cluster.start();
        let truth = Truth::of(&new);
        new.wait_replayed_by(&self.p.cluster);
        new.stop(Stop::Fast);
        self.p.cluster.psql("select pg_promote()");
        self.p.cluster.wait_for("select pg_is_in_recovery()", "f");
        truth.check(&self.p.cluster, &format!("{}: after failing back", self.told));
        self.know_databases();
        removed(new.pgdata());
        removed(&self.p.scene.path().join(format!("space-{number}")));
    }

    /// A standby in a directory of its own.
    fn standby(&self, number: u64) -> Cluster {
        let scene = &self.p.scene;
        let pgdata = scene.path().join(format!("standby-{number}"));
        let space = scene.path().join(format!("space-{number}"));
        let mut program = self.p.cluster.pg("pg_basebackup");
        program.args(["-c", "fast", "--no-sync", "-T", &format!("{}={}", self.space.display(), space.display()), "-D"]);
        run(program.arg(&pgdata)).expect_code(0);
        let mut standby = Cluster::adopt(&pgdata, self.installation);
        standby.append_configuration(&format!("primary_conninfo = '{}'\n", self.p.cluster.conninfo()));
        let signal = pgdata.join("standby.signal");
        fs::write(&signal, "").unwrap();
        scene.owner().own(&signal);
        standby.start();
        standby
    }

    /// Makes the stopped cluster a standby.
    fn follow(&self, conninfo: String) {
        let signal = self.p.cluster.pgdata().join("standby.signal");
        fs::write(&signal, "").unwrap();
        self.p.scene.owner().own(&signal);
        self.p.cluster.append_configuration(&format!("primary_conninfo = '{conninfo}'\n"));
    }
}
