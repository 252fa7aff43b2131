//! Accounts of the operating system, by `/etc/passwd`: PostgreSQL never runs as root, and its files have an owner.

use std::{
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
};

use crate::error::{Error, Result};

/// A user with the group that its files get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// The user's name; its number where it has none.
    pub name: String,
    /// The user's number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
    /// The home directory.
    pub home: PathBuf,
}

impl Account {
    /// The user of that name.
    pub fn named(name: &str) -> Result<Self> {
        accounts().into_iter().find(|a| a.name == name).ok_or_else(|| {
            Error::invalid(format!("there is no user \"{name}\" on this machine")).hint("/etc/passwd lists the users")
        })
    }

    /// The user of that number. One without an entry in `/etc/passwd` is called by its number.
    #[must_use]
    pub fn of(uid: u32, gid: u32) -> Self {
        let known = accounts().into_iter().find(|a| a.uid == uid);
        let nameless = || Self { name: uid.to_string(), uid, gid, home: PathBuf::from("/") };
        Self { gid, ..known.unwrap_or_else(nameless) }
    }

    /// The user that this process runs as.
    #[must_use]
    pub fn own() -> Self {
        Self::of(rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
    }

    /// Whether this is root.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.uid == 0
    }

    /// A command that runs as this user. Only root can run one as somebody else.
    #[must_use]
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        if Self::own().is_root() && !self.is_root() {
            command.uid(self.uid).gid(self.gid).env("HOME", &self.home).env("USER", &self.name);
        }
        command
    }
}

fn accounts() -> Vec<Account> {
    let text = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let account = |line: &str| {
        let fields: Vec<&str> = line.split(':').collect();
        Some(Account {
            name: (*fields.first()?).to_owned(),
            uid: fields.get(2)?.parse().ok()?,
            gid: fields.get(3)?.parse().ok()?,
            home: PathBuf::from(fields.get(5)?),
        })
    };
    text.lines().filter_map(account).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_everywhere_and_strangers_have_numbers() {
        assert!(Account::named("root").unwrap().is_root());
        assert!(Account::named("no such user").is_err());
        assert_eq!(Account::of(4_000_000_000, 7).name, "4000000000");
        assert_eq!(Account::own().uid, rustix::process::geteuid().as_raw());
    }
}
