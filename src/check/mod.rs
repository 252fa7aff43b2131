//! The proof that archiving works: the host, the repository, the server and its settings, and then a real segment on
//! its real way, from a WAL switch to the object that is read back.
//!
//! Each check is a small function that looks at one thing and gives a [`Line`]. To add one: write it in the file of
//! what it looks at, and name it in the list there. Nothing is changed but one WAL switch and the objects that probe
//! the store, which are deleted again.

mod advice;
mod archiver;
mod host;
mod proof;
mod repository;
mod server;

use std::{path::PathBuf, sync::Arc};

use serde::Serialize;

use crate::{
    clock::{Clock, Random},
    config::{ClusterConfig, Config},
    error::{Error, Kind, Result},
    progress::Progress,
};

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It works, but somebody should look at it.
    Warn,
    /// It does not work, or what is archived could not be recovered.
    Fail,
}

/// What one check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    /// What was looked at; the same name in every version.
    pub name: &'static str,
    /// How it ended.
    pub verdict: Verdict,
    /// What was found, in words.
    pub text: String,
    /// What to do about it; unless all is well.
    pub mend: Option<String>,
    /// Lines of the server's log that tell more.
    pub log: Vec<String>,
}

impl Line {
    fn new(name: &'static str, verdict: Verdict, text: impl Into<String>, mend: Option<String>) -> Self {
        Self { name, verdict, text: text.into(), mend, log: Vec::new() }
    }

    fn ok(name: &'static str, text: impl Into<String>) -> Self {
        Self::new(name, Verdict::Ok, text, None)
    }

    fn warn(name: &'static str, text: impl Into<String>, mend: impl Into<String>) -> Self {
        Self::new(name, Verdict::Warn, text, Some(mend.into()))
    }

    fn fail(name: &'static str, text: impl Into<String>, mend: impl Into<String>) -> Self {
        Self::new(name, Verdict::Fail, text, Some(mend.into()))
    }

    fn error(name: &'static str, error: &Error) -> Self {
        Self::new(name, Verdict::Fail, error.to_string(), error.hint_text().map(str::to_owned))
    }
}

/// What is to be checked.
#[derive(Debug)]
pub struct Request<'a> {
    /// The configuration.
    pub config: &'a Config,
    /// The cluster.
    pub cluster: &'a ClusterConfig,
    /// The programs that PostgreSQL runs, and where they are.
    pub programs: Vec<(&'static str, Result<PathBuf>)>,
    /// `archive_command` as `walden init` prints it.
    pub archive_command: Option<String>,
}

impl Request<'_> {
    /// The line of `postgresql.conf` that `walden init` prints.
    fn archive_command_line(&self) -> String {
        let command = self.archive_command.as_deref().unwrap_or("walden-archive %p");
        format!("archive_command = '{}'", command.replace('\'', "''"))
    }
}

/// What goes with the work.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// The time of day.
    pub clock: Arc<dyn Clock>,
    /// Random names.
    pub random: Arc<Random>,
    /// Who watches.
    pub progress: Arc<dyn Progress>,
}

/// What all checks found.
#[derive(Debug, Default)]
pub struct Report {
    /// Their lines, in the order in which they were made.
    pub lines: Vec<Line>,
    /// The repository did not answer, or refused the credentials.
    pub unreachable: bool,
}

impl Report {
    /// The worst of all verdicts.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        self.lines.iter().map(|line| line.verdict).max().unwrap_or(Verdict::Ok)
    }

    /// How many lines have that verdict.
    #[must_use]
    pub fn count(&self, verdict: Verdict) -> usize {
        self.lines.iter().filter(|line| line.verdict == verdict).count()
    }

    fn has_failed(&self, name: &str) -> bool {
        self.lines.iter().any(|line| line.name == name && line.verdict == Verdict::Fail)
    }

    fn repository_failed(&mut self, error: &Error) {
        self.unreachable |= matches!(error.kind(), Kind::Unavailable | Kind::Denied);
    }
}

/// Takes lines as they are found, so that somebody can watch.
struct Teller<'a> {
    report: Report,
    tell: &'a mut dyn FnMut(&Line),
}

impl Teller<'_> {
    fn add(&mut self, line: Line) {
        (self.tell)(&line);
        self.report.lines.push(line);
    }
}

/// Checks everything. `tell` sees each line as soon as it is known.
pub async fn check(request: &Request<'_>, around: &Surroundings, tell: &mut dyn FnMut(&Line)) -> Report {
    let mut told = Teller { report: Report::default(), tell };
    let host = host::Host::look(request);
    host::CHECKS.iter().filter_map(|check| check(&host, request)).for_each(|line| told.add(line));
    let server = server::look(request, around, &mut told).await;
    if let Some(server) = &server {
        server::CHECKS.iter().filter_map(|check| check(server, &host, request)).for_each(|line| told.add(line));
    }
    let identity = host.control.as_ref().ok().map(|c| c.system).or(server.as_ref().map(|s| s.facts.system));
    let system = repository::look(request, around, identity, &mut told).await;
    let proven = match (&system, &server) {
        (Some(system), Some(server)) => proof::prove(system, server, &host, request, around, &mut told).await,
        _ => {
            told.add(proof::not_tried("what stands above must be mended first"));
            false
        }
    };
    if let Some(server) = &server {
        let line = archiver::archiver(server, proven).await;
        // Once is enough: the proof shows it as well.
        let shown = line.verdict == Verdict::Ok || told.report.lines.iter().any(|line| !line.log.is_empty());
        let log = if shown { Vec::new() } else { archiver::log_lines(server, &host) };
        told.add(Line { log, ..line });
    }
    advice::look(request, around, system.as_ref(), server.as_ref(), &mut told).await;
    told.report
}
