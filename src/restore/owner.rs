//! Who owns the restored files.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    process::{Command, Stdio},
};

use rustix::process::{Gid, Uid};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A user with its group, and whether files have to be handed over to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// What people call it.
    pub name: String,
    /// The user's number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
    /// Whether this process is another user, root, and hands its files over.
    pub hand_over: bool,
}

impl Owner {
    /// Of `wanted`, else of the target directory, else of the folder it lies in unless that is root, else `postgres`.
    pub fn choose(wanted: Option<&str>, pgdata: &Path) -> Result<Self> {
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        if uid != 0 {
            let own = Self { name: name_of(uid), uid, gid, hand_over: false };
            return match wanted.map(lookup).transpose()? {
                Some(other) if other.uid != uid => Err(Error::invalid(format!(
                    "only root can restore files that belong to {}; this is {}",
                    other.name, own.name
                ))),
                _ => Ok(own),
            };
        }
        let chosen = match wanted {
            Some(wanted) => Some(lookup(wanted)?),
            None => {
                let ancestors = pgdata.ancestors().find_map(|path| Some((path, fs::metadata(path).ok()?)));
                let of_parent = pgdata.parent().and_then(|path| fs::metadata(path).ok());
                let found = [ancestors.map(|(_, m)| m), of_parent].into_iter().flatten().find(|m| m.uid() != 0);
                found.map(|m| Self { name: name_of(m.uid()), uid: m.uid(), gid: m.gid(), hand_over: true })
            }
        };
        match chosen.map_or_else(|| lookup("postgres").ok(), Some) {
            Some(owner) if owner.uid != 0 => Ok(Self { hand_over: true, ..owner }),
            Some(_) => Err(Error::invalid("PostgreSQL does not run as root: its files cannot belong to it")
                .hint("name another user with --owner")),
            None => Err(Error::invalid(format!("who is to own {}? Nothing tells", pgdata.display()))
                .hint("name the user with --owner")),
        }
    }

    /// The owner of what is there.
    pub fn of(path: &Path) -> Result<Self> {
        let metadata = fs::metadata(path).map_err(|e| Error::io("stat", path, e))?;
        let hand_over = rustix::process::geteuid().is_root() && metadata.uid() != 0;
        Ok(Self { name: name_of(metadata.uid()), uid: metadata.uid(), gid: metadata.gid(), hand_over })
    }

    /// What to hand over to, as the system's calls want it.
    #[must_use]
    pub fn ids(&self) -> Option<(Uid, Gid)> {
        self.hand_over.then(|| (Uid::from_raw(self.uid), Gid::from_raw(self.gid)))
    }
}

/// A user by name or number, from the system's own list and, where that does not know it, from its directory services.
fn lookup(wanted: &str) -> Result<Owner> {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let unknown = || Error::invalid(format!("there is no user \"{wanted}\" on this host"));
    if let Some(owner) = find(&passwd, |name, uid| name == wanted || wanted.parse() == Ok(uid)) {
        return Ok(owner);
    }
    let mut command = Command::new("getent");
    command.args(["passwd", "--", wanted]).stderr(Stdio::null());
    let answer = command.output().map_err(|_| unknown())?;
    find(&String::from_utf8_lossy(&answer.stdout), |_, _| true).ok_or_else(unknown)
}

fn find(passwd: &str, fits: impl Fn(&str, u32) -> bool) -> Option<Owner> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        fits(name, uid).then(|| Owner { name: name.to_owned(), uid, gid, hand_over: true })
    })
}

fn name_of(uid: u32) -> String {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    find(&passwd, |_, other| other == uid).map_or_else(|| uid.to_string(), |owner| owner.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_name_and_number() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\npostgres:x:101:104::/var/lib/postgresql:/bin/bash\n";
        assert_eq!(find(passwd, |name, _| name == "postgres").map(|o| (o.uid, o.gid)), Some((101, 104)));
        assert_eq!(find(passwd, |_, uid| uid == 101).map(|o| o.name), Some("postgres".to_owned()));
        assert!(lookup("no such user at all").is_err());
    }
}
