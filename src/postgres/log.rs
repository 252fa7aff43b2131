//! Where a running server writes its log, found without asking it: what went wrong in `archive_command` stands only
//! there.

use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use super::server::{Running, running};

/// What the logging collector writes to at present (`LOG_METAINFO_DATAFILE` in `syslogger.h`).
const CURRENT_LOGFILES: &str = "current_logfiles";
/// How much of the end is looked at, in bytes.
const TAIL: u64 = 64 << 10;

/// The log of the server that runs in `pgdata`: the collector's file, else the file that standard error of the
/// postmaster is, as `pg_ctl -l` and Debian's `pg_ctlcluster` make it. `None` where neither can be seen from here.
#[must_use]
pub fn log_file(pgdata: &Path) -> Option<PathBuf> {
    let collected = fs::read_to_string(pgdata.join(CURRENT_LOGFILES)).ok().and_then(|text| {
        let files: Vec<(&str, &str)> = text.lines().filter_map(|line| line.split_once(' ')).collect();
        let (_, file) = files.iter().find(|(format, _)| *format == "stderr").or(files.first())?;
        Some(pgdata.join(file))
    });
    collected.or_else(|| {
        let Running::Yes(postmaster) = running(pgdata).ok()? else { return None };
        fs::read_link(format!("/proc/{}/fd/2", postmaster.pid)).ok()
    })
}

/// The last `count` lines near the end of a log that are wanted. Nothing where it cannot be read.
#[must_use]
pub fn last_lines(log: &Path, wanted: impl Fn(&str) -> bool, count: usize) -> Vec<String> {
    let text = tail(log).unwrap_or_default();
    let found: Vec<&str> = text.lines().filter(|line| wanted(line)).collect();
    found[found.len().saturating_sub(count)..].iter().map(|line| (*line).to_owned()).collect()
}

fn tail(log: &Path) -> Option<String> {
    // A pipe or a terminal would be waited on.
    let length = fs::metadata(log).ok().filter(fs::Metadata::is_file)?.len();
    let mut file = File::open(log).ok()?;
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL))).ok()?;
    let mut bytes = Vec::new();
    file.take(TAIL).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_collectors_file_is_found_and_its_last_lines() {
        let pgdata = tempfile::TempDir::new().unwrap();
        assert_eq!(log_file(pgdata.path()), None);
        fs::write(pgdata.path().join(CURRENT_LOGFILES), "csvlog log/a.csv\nstderr log/a.log\n").unwrap();
        let log = log_file(pgdata.path()).unwrap();
        assert!(log.ends_with("log/a.log"));
        assert!(last_lines(&log, |line| line.contains("archive"), 2).is_empty());
        fs::create_dir(pgdata.path().join("log")).unwrap();
        fs::write(&log, "archive 1\nother\narchive 2\nLOG:  archive 3\n").unwrap();
        assert_eq!(last_lines(&log, |line| line.contains("archive"), 2), ["archive 2", "LOG:  archive 3"]);
    }
}
