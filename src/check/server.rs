//! What the server says: who it is, how it is set up, what our role may.

use std::time::{Duration, Instant};

use chrono::TimeDelta;

use super::{Line, Request, Surroundings, Teller, host::Host};
use crate::{
    error::Result,
    human,
    postgres::{
        Version,
        control::WalLevel,
        pg_wal,
        prerequisites::Prerequisites,
        sql::{ArchiveMode, ServerFacts, Session},
    },
    report::archive_command,
};

/// Clocks that differ by more than this make "the moment before" mean two things.
const CLOCKS: TimeDelta = TimeDelta::seconds(5);
/// `pg_wal` should have room for at least so many segments.
const ROOM: u64 = 64;

/// A server that answered.
#[derive(Debug)]
pub(super) struct Server {
    pub session: Session,
    pub facts: ServerFacts,
    pub asked: Prerequisites,
    /// How far its clock is ahead of ours.
    ahead: TimeDelta,
}

/// Looks at one thing; `None` where it is not there to be judged.
type Check = fn(&Server, &Host, &Request<'_>) -> Option<Line>;

/// The checks, in the order of their lines.
pub(super) const CHECKS: &[Check] = &[
    identity,
    version,
    role,
    recovery,
    wal_level,
    archive_mode,
    archive_command,
    archive_timeout,
    full_page_writes,
    fsync,
    data_checksums,
    pg_wal_space,
    clock,
];

/// Connects and asks; says how that went.
pub(super) async fn look(request: &Request<'_>, around: &Surroundings, told: &mut Teller<'_>) -> Option<Server> {
    match connect(request, around).await {
        Ok(server) => {
            let shown = request.cluster.connection().map(ToString::to_string).unwrap_or_default();
            told.add(Line::ok("connection", format!("{shown}, as role {}", server.asked.role)));
            Some(server)
        }
        Err(error) => {
            told.add(Line::error("connection", &error));
            None
        }
    }
}

async fn connect(request: &Request<'_>, around: &Surroundings) -> Result<Server> {
    let session = Session::open(&request.cluster.connection()?.reveal().parse()?).await?;
    let facts = session.server_facts().await?;
    let (before, asking) = (around.clock.now(), Instant::now());
    let asked = session.prerequisites().await?;
    let half = TimeDelta::from_std(asking.elapsed() / 2).unwrap_or_default();
    let ahead = asked.now - (before + half);
    Ok(Server { session, facts, asked, ahead })
}

fn identity(server: &Server, host: &Host, _: &Request<'_>) -> Option<Line> {
    let name = "identity";
    let (Ok(control), Some(pgdata)) = (&host.control, &host.pgdata) else { return None };
    if server.facts.system != control.system {
        return Some(Line::fail(
            name,
            format!(
                "the server belongs to system {}, but {} to system {}",
                server.facts.system,
                pgdata.display(),
                control.system
            ),
            "correct connection or pgdata of the cluster in walden.toml: they name two different clusters",
        ));
    }
    let canonical = |path: &std::path::Path| std::fs::canonicalize(path).ok();
    match &server.facts.data_directory {
        Some(theirs) if canonical(theirs).is_some_and(|theirs| Some(theirs) != canonical(pgdata)) => Some(Line::warn(
            name,
            format!("the server works in {}, and pgdata is {}: a copy of it?", theirs.display(), pgdata.display()),
            "set pgdata of the cluster in walden.toml to the server's data directory",
        )),
        _ => Some(Line::ok(name, format!("the server and {} are system {}", pgdata.display(), control.system))),
    }
}

fn version(server: &Server, _: &Host, _: &Request<'_>) -> Option<Line> {
    let (name, version) = ("version", server.facts.version);
    let shown = format!("PostgreSQL {version}.{}", server.facts.version_number % 10_000);
    Some(if version > Version::NEWEST {
        Line::warn(
            name,
            format!("{shown} is newer than this Walden, which was tested up to {}", Version::NEWEST),
            "install a newer Walden before you rely on this archive",
        )
    } else {
        Line::ok(name, shown)
    })
}

fn role(server: &Server, _: &Host, _: &Request<'_>) -> Option<Line> {
    let (name, asked) = ("role", &server.asked);
    let role = &asked.role;
    if !asked.forbidden.is_empty() {
        let functions = asked.forbidden.join(", ");
        return Some(Line::fail(
            name,
            format!("role {role} may not call {functions}"),
            format!("GRANT EXECUTE ON FUNCTION {functions} TO {role};"),
        ));
    }
    if !asked.reads_all_settings {
        return Some(Line::warn(
            name,
            format!("role {role} does not see every setting: whether pgdata is the server's own cannot be compared"),
            format!("GRANT pg_read_all_settings TO {role};"),
        ));
    }
    Some(Line::ok(name, format!("role {role} may take backups and switch WAL")))
}

fn recovery(server: &Server, _: &Host, _: &Request<'_>) -> Option<Line> {
    server.facts.in_recovery.then(|| {
        Line::fail(
            "recovery",
            "the server is a standby, or still in recovery: it writes no WAL of its own",
            "run walden check on the primary",
        )
    })
}

fn wal_level(server: &Server, _: &Host, _: &Request<'_>) -> Option<Line> {
    let (name, level) = ("wal-level", server.facts.wal_level);
    Some(if level == WalLevel::Minimal {
        let restart = restart(server, "set wal_level = replica in postgresql.conf and restart the server");
        Line::fail(name, "wal_level is minimal: what is written cannot be recovered from an archive", restart)
    } else {
        Line::ok(name, level.to_string())
    })
}

/// What to do, unless it was done and only the restart is missing.
fn restart(server: &Server, mend: impl Into<String>) -> String {
    match server.asked.pending_restart {
        true => "it was changed in the configuration already: restart the server".to_owned(),
        false => mend.into(),
    }
}

fn archive_mode(server: &Server, _: &Host, request: &Request<'_>) -> Option<Line> {
    let name = "archive-mode";
    Some(match server.facts.archive_mode {
        ArchiveMode::On => Line::ok(name, "on"),
        ArchiveMode::Off => {
            let mend = format!(
                "in postgresql.conf set archive_mode = on and {}, and restart the server",
                request.archive_command_line()
            );
            Line::fail(name, "archive_mode is off: nothing is archived", restart(server, mend))
        }
        ArchiveMode::Always => Line::warn(
            name,
            "always: a standby would archive as well, what it received and in its own time",
            "set archive_mode = on, unless the standbys are meant to archive",
        ),
    })
}

fn archive_command(server: &Server, _: &Host, request: &Request<'_>) -> Option<Line> {
    let (name, facts) = ("archive-command", &server.facts);
    let set = format!("in postgresql.conf set {}, and reload the server", request.archive_command_line());
    if !facts.archive_library.is_empty() {
        return Some(Line::fail(
            name,
            format!("archive_library = '{}' archives in place of archive_command", facts.archive_library),
            format!("set archive_library = ''; {set}"),
        ));
    }
    let command = facts.archive_command.as_str();
    if command.is_empty() {
        let off = facts.archive_mode == ArchiveMode::Off;
        return Some(if off {
            return None;
        } else {
            Line::fail(name, "archive_command is empty: segments wait in pg_wal until the disk is full", set)
        });
    }
    let said = archive_command::shown(command);
    if !archive_command::is_ours(command) {
        return Some(Line::warn(
            name,
            format!("{said} does not name walden-archive"),
            format!("{set}; if it is a script around walden-archive, the proof below decides"),
        ));
    }
    if !command.contains("%p") {
        return Some(Line::fail(name, format!("{said} lacks %p, the path of the segment"), set));
    }
    let file = request.config.file.as_deref().map(|f| f.to_string_lossy());
    let named = |file: &str| command.contains(file) || file == crate::config::SYSTEM;
    match file.filter(|file| !named(file)) {
        Some(file) => Some(Line::warn(
            name,
            format!("{said} does not name this configuration file, {file}"),
            format!("{set}; or run walden check --config with the file that it reads"),
        )),
        None => Some(Line::ok(name, said)),
    }
}

fn archive_timeout(server: &Server, _: &Host, _: &Request<'_>) -> Option<Line> {
    let (name, timeout) = ("archive-timeout", server.asked.archive_timeout);
    Some(if timeout.is_zero() {
        Line::warn(
            name,
            format!(
                "0: a segment is archived when its {} are full, and on a quiet server that may take days; what it holds is lost with the disk",
                human::size(server.facts.segment_size.bytes())
            ),
            "set archive_timeout = 60s in postgresql.conf and reload: then at most a minute can be lost",
        )
    } else {
        Line::ok(name, format!("at most {} of WAL wait for their segment to be full", human::duration(timeout)))
    })
}

fn full_page_writes(server: &Server, _: &Host, _: &Request<'_>) -> Option<Line> {
    let name = "full-page-writes";
    Some(if server.asked.full_page_writes {
        Line::ok(name, "on")
    } else {
        Line::warn(
            name,
            "off: after a crash, pages that were half written stay so, and backups then hold them",
            "set full_page_writes = on in postgresql.conf and reload the server",
        )
    })
}

fn fsync(server: &Server, _: &Host, _: &Request<'_>) -> Option<Line> {
    Some(if server.asked.fsync {
        Line::ok("fsync", "on")
    } else {
        Line::warn(
            "fsync",
            "off: a crash of the machine can ruin the cluster, and what the archive holds need not fit it any more",
            "set fsync = on in postgresql.conf and reload the server",
        )
    })
}

fn data_checksums(server: &Server, _: &Host, _: &Request<'_>) -> Option<Line> {
    let name = "data-checksums";
    Some(if server.facts.data_checksums {
        Line::ok(name, "on")
    } else {
        Line::warn(
            name,
            "off: a backup cannot tell damaged pages from good ones",
            "stop the server once, and run pg_checksums --enable",
        )
    })
}

fn pg_wal_space(server: &Server, host: &Host, _: &Request<'_>) -> Option<Line> {
    let name = "pg-wal-space";
    let free = pg_wal::free(host.pgdata.as_deref()?)?;
    let segment = server.facts.segment_size.bytes();
    let (wanted, text) = (server.asked.max_wal_size.max(ROOM * segment), format!("{} are free", human::size(free)));
    let mend = "make room on the file system of pg_wal: when it is full, PostgreSQL stops";
    Some(match free {
        _ if free < 4 * segment => Line::fail(name, text, mend),
        _ if free < wanted => {
            let wanted = human::size(wanted);
            Line::warn(name, format!("{text}; pg_wal may need {wanted} even when archiving works"), mend)
        }
        _ => Line::ok(name, text),
    })
}

fn clock(server: &Server, _: &Host, _: &Request<'_>) -> Option<Line> {
    let (name, ahead) = ("clock", server.ahead);
    let apart = ahead.abs().to_std().unwrap_or(Duration::ZERO);
    Some(if ahead.abs() > CLOCKS {
        let side = if ahead > TimeDelta::zero() { "ahead of" } else { "behind" };
        Line::warn(
            name,
            format!("the server's clock is {} {side} this host's", human::duration(apart)),
            "set both by NTP: times of backups and times of commits are compared in a recovery",
        )
    } else {
        Line::ok(name, "the server and this host agree")
    })
}
