//! Accounts of the operating system, by `/etc/passwd`: PostgreSQL never runs as root, and its files have an owner.

use std::{
    fs,
    os::unix::{fs::MetadataExt, process::CommandExt},
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

    /// Whether this user may read a file, as far as owners and modes tell: access control lists are not looked at.
    /// A file that cannot be looked at from here counts as readable.
    #[must_use]
    pub fn may_read(&self, file: &Path) -> bool {
        let Ok(file) = fs::canonicalize(file) else { return true };
        let groups = self.groups();
        let may = |path: &Path, bit: u32| {
            fs::metadata(path).map_or(true, |m| {
                let shift = match () {
                    () if m.uid() == self.uid => 6,
                    () if groups.contains(&m.gid()) => 3,
                    () => 0,
                };
                m.mode() >> shift & bit == bit
            })
        };
        self.is_root() || (may(&file, 4) && file.ancestors().skip(1).all(|folder| may(folder, 1)))
    }

    /// The groups it is in, its own first.
    fn groups(&self) -> Vec<u32> {
        let text = fs::read_to_string("/etc/group").unwrap_or_default();
        let member = |line: &str| {
            let fields: Vec<&str> = line.split(':').collect();
            fields.get(3)?.split(',').any(|name| name == self.name).then(|| fields.get(2)?.parse().ok())?
        };
        std::iter::once(self.gid).chain(text.lines().filter_map(member)).collect()
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

/// The name of a user, where it has one.
#[must_use]
pub fn user_name(uid: u32) -> Option<String> {
    name_of("/etc/passwd", uid)
}

/// The name of a group, where it has one.
#[must_use]
pub fn group_name(gid: u32) -> Option<String> {
    name_of("/etc/group", gid)
}

/// The number of the user of that name.
#[must_use]
pub fn user_number(name: &str) -> Option<u32> {
    number_of("/etc/passwd", name)
}

/// The number of the group of that name.
#[must_use]
pub fn group_number(name: &str) -> Option<u32> {
    number_of("/etc/group", name)
}

fn name_of(list: &str, number: u32) -> Option<String> {
    entries(list).into_iter().find(|(_, other)| *other == number).map(|(name, _)| name)
}

fn number_of(list: &str, name: &str) -> Option<u32> {
    entries(list).into_iter().find(|(other, _)| other == name).map(|(_, number)| number)
}

/// The names and numbers in one of the two lists: both have them in their first and third fields.
fn entries(list: &str) -> Vec<(String, u32)> {
    let text = fs::read_to_string(list).unwrap_or_default();
    let entry = |line: &str| {
        let mut fields = line.split(':');
        Some((fields.next()?.to_owned(), fields.nth(1)?.parse().ok()?))
    };
    text.lines().filter_map(entry).collect()
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

    #[test]
    fn who_may_read_is_told_by_modes() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::TempDir::new().unwrap();
        let file = folder.path().join("walden.toml");
        fs::write(&file, "").unwrap();
        let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        let (stranger, own) = (Account::of(4_000_000_000, 4_000_000_000), Account::own());
        mode(folder.path(), 0o755);
        mode(&file, 0o644);
        assert!(stranger.may_read(&file) && own.may_read(&file));
        mode(&file, 0o640);
        assert!(!stranger.may_read(&file) && own.may_read(&file));
        let group = fs::metadata(&file).unwrap().gid();
        assert!(Account::of(4_000_000_000, group).may_read(&file));
        mode(&file, 0o644);
        mode(folder.path(), 0o700);
        assert!(!stranger.may_read(&file) && own.may_read(&file));
    }
}
