//! The stage: the server, its folder, and the programs that act on it.

use std::{
    fs,
    os::unix::fs::{DirBuilderExt, chown},
    path::{Path, PathBuf},
    process::Command,
};

use super::DemoRequest;
use crate::{
    clock::Random,
    error::{Error, Result},
    postgres::{Account, Version, installation},
};

/// Transactions of one stretch of work, for each of two clients.
const TRANSACTIONS: u32 = 1500;
/// Rows of the table that will be missed.
const ORDERS: u32 = 20_000;

/// Everything of the show. When it is dropped the server is stopped and the folder goes.
#[derive(Debug)]
pub(super) struct Stage {
    folder: PathBuf,
    account: Account,
    bin: PathBuf,
    version: Version,
    repository: String,
    repository_settings: String,
    scale: u32,
    /// The data directory of the server that runs, if one does.
    serving: Option<PathBuf>,
    keep: bool,
}

impl Stage {
    pub fn new(request: &DemoRequest) -> Result<Self> {
        let (version, bin) = installed(request.version)?;
        let own = Account::own();
        let account = if own.is_root() {
            Account::named("postgres").map_err(|e| {
                e.hint("PostgreSQL does not run as root: install its server package, or run the demo as another user")
            })?
        } else {
            own
        };
        let folder = std::env::temp_dir().join(format!("walden-demo-{}", &Random::from_system().name()[..8]));
        fs::DirBuilder::new().mode(0o755).create(&folder).map_err(|e| Error::io("create", &folder, e))?;
        let repository =
            request.repository.clone().unwrap_or_else(|| format!("file://{}", folder.join("repository").display()));
        let stage = Self {
            folder,
            account,
            bin,
            version,
            repository,
            repository_settings: request.repository_settings.clone(),
            scale: request.scale,
            serving: None,
            keep: false,
        };
        stage.own(&stage.folder)?;
        stage.bring_programs(&request.programs)?;
        Ok(stage)
    }

    pub fn version(&self) -> Version {
        self.version
    }

    /// The server's user may not be able to reach the programs where they are.
    fn bring_programs(&self, from: &Path) -> Result<()> {
        let bin = self.folder.join("bin");
        fs::create_dir(&bin).map_err(|e| Error::io("create", &bin, e))?;
        for name in ["walden", "walden-archive", "walden-restore"] {
            let (from, to) = (from.join(name), bin.join(name));
            fs::copy(&from, &to).map_err(|e| {
                Error::io("copy", &from, e).hint("build all programs: cargo build --release --workspace")
            })?;
        }
        Ok(())
    }

    fn own(&self, path: &Path) -> Result<()> {
        chown(path, Some(self.account.uid), Some(self.account.gid)).map_err(|e| Error::io("chown", path, e))
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    fn restored(&self) -> PathBuf {
        self.folder.join("restored")
    }

    /// Runs a program of PostgreSQL's, or of ours, as the server's user; gives what it says.
    fn run(&self, program: PathBuf, arguments: &[&str]) -> Result<String> {
        let mut command: Command = self.account.command(&program);
        command.args(arguments).current_dir(&self.folder).env("PGHOST", &self.folder).env("PGPORT", "5432");
        command.env("PGUSER", "postgres").env("PGDATABASE", "postgres").env("LC_ALL", "C");
        let output = command.output().map_err(|e| Error::io("run", &program, e))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned());
        }
        Err(Error::failed(format!(
            "{} {}: {}\n{}",
            program.file_name().unwrap_or_default().to_string_lossy(),
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim_end()
        )))
    }

    fn postgres(&self, program: &str, arguments: &[&str]) -> Result<String> {
        self.run(self.bin.join(program), arguments)
    }

    fn walden(&self, arguments: &[&str]) -> Result<String> {
        let config = self.folder.join("walden.toml");
        let mut all = vec!["--config", config.to_str().unwrap_or_default()];
        all.extend(arguments);
        self.run(self.folder.join("bin/walden"), &all)
    }

    fn sql(&self, sql: &str) -> Result<String> {
        self.postgres("psql", &["-XAtq", "-v", "ON_ERROR_STOP=1", "-c", sql])
    }

    /// A new server whose archive_command is the one that `walden init` prints.
    pub fn build(&mut self) -> Result<String> {
        let data = self.data();
        let data_text = data.to_string_lossy().into_owned();
        self.postgres(
            "initdb",
            &["-D", &data_text, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync", "-k"],
        )?;
        let config = self.folder.join("walden.toml");
        let text = format!(
            "[repository]\nurl = \"{}\"\n{}\n[cluster.main]\npgdata = \"{data_text}\"\nconnection = \"host={} dbname=postgres user=postgres\"\n",
            self.repository,
            self.repository_settings,
            self.folder.display()
        );
        fs::write(&config, text).map_err(|e| Error::io("write", &config, e))?;
        let said: serde_json::Value = serde_json::from_str(&self.walden(&["init", "--json"])?)
            .map_err(|e| Error::internal("read what walden init said").source(e))?;
        let command = said["archive_command"].as_str().unwrap_or_default().replace('\'', "''");
        let settings = format!(
            "\nport = 5432\nlisten_addresses = ''\nunix_socket_directories = '{}'\narchive_mode = on\narchive_command = '{command}'\nmax_wal_size = '256MB'\n",
            self.folder.display()
        );
        let path = data.join("postgresql.conf");
        let before = fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
        fs::write(&path, before + &settings).map_err(|e| Error::io("write", &path, e))?;
        let log = self.folder.join("server.log");
        self.postgres("pg_ctl", &["-D", &data_text, "-l", &log.to_string_lossy(), "-w", "-s", "start"])?;
        self.serving = Some(data);
        let place = self.repository.trim_start_matches("file://");
        Ok(format!("into {place}"))
    }

    pub fn fill(&self) -> Result<String> {
        self.postgres("pgbench", &["-i", "-q", "-s", &self.scale.to_string()])?;
        self.sql(&format!(
            "create table orders as select n as id, 'customer ' || n % 977 as customer, round((random() * 900 + 1)::numeric, 2) as amount, now() as placed \
             from generate_series(1, {ORDERS}) as n; alter table orders add primary key (id)"
        ))?;
        self.sql("select pg_size_pretty(sum(pg_database_size(oid))) from pg_database")
    }

    pub fn backup(&self) -> Result<String> {
        self.walden(&["-q", "backup"])?;
        let listed: serde_json::Value = serde_json::from_str(&self.walden(&["list", "--json"])?)
            .map_err(|e| Error::internal("read what walden list said").source(e))?;
        let backup = &listed["systems"][0]["backups"][0];
        let size = |field: &str| crate::human::size(backup[field].as_u64().unwrap_or_default());
        Ok(format!("{}: {} in {}", backup["id"].as_str().unwrap_or_default(), size("size"), size("stored")))
    }

    pub fn work(&self) -> Result<String> {
        let transactions = TRANSACTIONS.to_string();
        self.postgres("pgbench", &["-n", "-c", "2", "-t", &transactions])?;
        Ok(format!("{} transactions", 2 * TRANSACTIONS))
    }

    pub fn count_orders(&self) -> Result<String> {
        self.sql("select count(*) from orders")
    }

    /// Drops the table; gives the transaction that did it.
    pub fn drop_orders(&self) -> Result<String> {
        let xid = self.sql("begin; select pg_current_xact_id(); drop table orders; commit")?;
        // As time goes by PostgreSQL closes the segment by itself; the show does not wait for that.
        self.sql("select pg_switch_wal()")?;
        Ok(xid)
    }

    pub fn plan(&self, target: &str) -> Result<String> {
        self.wait_archived()?;
        self.walden(&["plan", "--to", target])
    }

    /// Everything that is written must be in the archive before anybody plans with it.
    fn wait_archived(&self) -> Result<()> {
        let wanted = self.sql("select pg_walfile_name(pg_switch_wal())")?;
        for _ in 0..600 {
            let last = self.sql("select coalesce(max(last_archived_wal), '') from pg_stat_archiver")?;
            if last.get(8..24) >= wanted.get(8..24) {
                return Ok(());
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        Err(Error::failed(format!("segment {wanted} was not archived")))
    }

    /// The broken server goes, the recovered one comes.
    pub fn restore(&mut self, target: &str) -> Result<String> {
        self.stop();
        let restored = self.restored();
        let pgdata = restored.to_string_lossy().into_owned();
        let said = self
            .walden(&["-q", "restore", "--to", target, "--pgdata", &pgdata, "--yes", "--start", "--then", "promote"])?;
        self.serving = Some(restored);
        let reached = said.lines().rev().find(|line| line.contains("reached")).unwrap_or_default();
        Ok(reached.trim().split(", last").next().unwrap_or_default().to_owned())
    }

    fn stop(&mut self) {
        if let Some(data) = self.serving.take() {
            // Nothing of it is needed any more, whether it stops well or not.
            let _ = self.postgres("pg_ctl", &["-D", &data.to_string_lossy(), "-m", "immediate", "-w", "-s", "stop"]);
        }
    }

    /// Leaves everything as it is.
    pub fn keep(&mut self) -> &Path {
        self.keep = true;
        &self.folder
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if !self.keep {
            self.stop();
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

/// The newest version there is, or the one that is wanted.
fn installed(wanted: Option<Version>) -> Result<(Version, PathBuf)> {
    if let Some(version) = wanted {
        return Ok((version, installation::bin_directory(version)?));
    }
    let versions = (Version::OLDEST.0..=Version::NEWEST.0).rev().map(Version);
    versions.filter_map(|version| Some((version, installation::bin_directory(version).ok()?))).next().ok_or_else(|| {
        Error::failed("no PostgreSQL server is installed")
            .hint("on Debian and Ubuntu: apt-get install postgresql; scripts/demo does it")
    })
}
