//! What can be seen on this host without asking anybody: files, programs, free space.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::{Line, Request};
use crate::{
    config::Origin,
    error::Result,
    postgres::{ControlFile, account::Account, archive_status::Waiting},
};

/// What was seen.
#[derive(Debug)]
pub(super) struct Host {
    /// The data directory, where one is configured.
    pub pgdata: Option<PathBuf>,
    /// What its `pg_control` says.
    pub control: Result<ControlFile>,
    /// The user that the server and its `archive_command` run as: the owner of the data directory.
    pub owner: Option<Account>,
    /// The files of `pg_wal` that wait to be archived.
    ready: Option<Waiting>,
}

/// Looks at one thing; `None` where it is not there to be judged.
type Check = fn(&Host, &Request<'_>) -> Option<Line>;

/// The checks, in the order of their lines.
pub(super) const CHECKS: &[Check] = &[configuration, environment, programs, data_directory, ready_files];

impl Host {
    pub(super) fn look(request: &Request<'_>) -> Self {
        let control = request.cluster.pgdata().and_then(ControlFile::read);
        let pgdata = request.cluster.pgdata().ok().map(Path::to_path_buf);
        let owner = pgdata.as_ref().and_then(|p| fs::metadata(p).ok()).map(|m| Account::of(m.uid(), m.gid()));
        let ready = pgdata.as_ref().and_then(|p| Waiting::of(p).ok());
        Self { pgdata, control, owner, ready }
    }
}

fn configuration(host: &Host, request: &Request<'_>) -> Option<Line> {
    let name = "configuration";
    let Some(file) = &request.config.file else {
        return Some(Line::warn(
            name,
            "there is no configuration file: everything comes from the environment",
            "put the settings into /etc/walden/walden.toml, or into the environment of the server as well",
        ));
    };
    let shown = file.display();
    Some(match &host.owner {
        Some(owner) if !owner.may_read(file) => Line::warn(
            name,
            format!(
                "{shown}: by its owner and modes, user {} cannot read it, and archive_command runs as that user",
                owner.name
            ),
            format!("chgrp it to a group of {} and chmod 640; look at the folders above it, too", owner.name),
        ),
        Some(owner) => Line::ok(name, format!("{shown}, readable for user {}", owner.name)),
        None => Line::ok(name, shown.to_string()),
    })
}

/// What this shell sets, the server does not.
fn environment(_: &Host, request: &Request<'_>) -> Option<Line> {
    let mut variables = request.config.settings().iter().filter_map(|setting| match &setting.origin {
        Origin::Environment(variable) if !setting.path.ends_with(".connection") => Some(variable.as_str()),
        _ => None,
    });
    let first = variables.next()?;
    let all = variables.fold(first.to_owned(), |all, variable| format!("{all}, {variable}"));
    Some(Line::warn(
        "environment",
        format!("{all} set here may not be set where the server runs archive_command"),
        "put these settings into the configuration file",
    ))
}

fn programs(host: &Host, request: &Request<'_>) -> Option<Line> {
    let name = "programs";
    for (program, found) in &request.programs {
        match found {
            Err(error) => return Some(Line::error(name, error)),
            Ok(path) => {
                if let Some(owner) = host.owner.as_ref().filter(|owner| !owner.may_read(path)) {
                    return Some(Line::warn(
                        name,
                        format!(
                            "{}: by its owner and modes, user {} cannot reach {program}",
                            path.display(),
                            owner.name
                        ),
                        "install Walden where every user can run it, for instance in /usr/bin",
                    ));
                }
            }
        }
    }
    let all: Vec<&str> = request.programs.iter().map(|(program, _)| *program).collect();
    Some(Line::ok(name, format!("{} are there", all.join(" and "))))
}

fn data_directory(host: &Host, _: &Request<'_>) -> Option<Line> {
    let name = "data-directory";
    Some(match (&host.control, &host.pgdata) {
        (Ok(control), Some(pgdata)) => {
            Line::ok(name, format!("{}: PostgreSQL {}, system {}", pgdata.display(), control.version, control.system))
        }
        (Err(error), _) if error.hint_text().is_none() => Line::fail(
            name,
            error.to_string(),
            "run walden as the owner of the data directory, for instance: sudo -u postgres walden check",
        ),
        (Err(error), _) => Line::error(name, error),
        (Ok(_), None) => return None,
    })
}

fn ready_files(host: &Host, _: &Request<'_>) -> Option<Line> {
    let name = "ready-files";
    let ready = host.ready?;
    let text = ready.to_string();
    Some(if ready.is_stuck() {
        Line::warn(name, text, "pg_wal grows until archiving has caught up: see what the lines below say about it")
    } else {
        Line::ok(name, text)
    })
}
