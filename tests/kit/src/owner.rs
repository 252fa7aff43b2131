//! The operating-system user that servers and Walden's programs run as in tests.
//!
//! PostgreSQL refuses to run as root, so a test that runs as root hands its servers to another user.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{
        fs::{PermissionsExt, chown},
        process::CommandExt,
    },
    path::Path,
    process::{Command, Stdio},
};

/// A user, and whether becoming it takes a switch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The login name, as `restore --owner` takes it.
    pub name: String,
    /// The user id.
    pub uid: u32,
    /// The id of its first group.
    pub gid: u32,
    switch: bool,
}

impl Owner {
    /// Whoever runs the test; for root, `postgres`, and `nobody` where no `postgres` exists.
    ///
    /// # Panics
    /// When `/etc/passwd` names none of them.
    #[must_use]
    pub fn of_servers() -> Self {
        let uid = rustix::process::geteuid().as_raw();
        let users = fs::read_to_string("/etc/passwd").expect("/etc/passwd can be read");
        if uid != 0 {
            let gid = rustix::process::getegid().as_raw();
            return find(&users, |user| user.uid == uid).map_or_else(
                || Self { name: uid.to_string(), uid, gid, switch: false },
                |user| Self { gid, switch: false, ..user },
            );
        }
        find(&users, |user| user.name == "postgres")
            .or_else(|| {
                let nobody = find(&users, |user| user.name == "nobody");
                if nobody.is_some() {
                    eprintln!("this machine has no user postgres: the servers of the tests run as nobody");
                }
                nobody
            })
            .expect("PostgreSQL does not run as root, and this machine has neither a user postgres nor nobody")
    }

    /// A command that runs as this user, from the root folder, with nothing on its standard input and without the
    /// settings of PostgreSQL, AWS and Walden that the environment of the test may hold.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if ["PG", "AWS_", "WALDEN_"].iter().any(|prefix| text.starts_with(prefix)) {
                command.env_remove(&name);
            }
        }
        command.env("HOME", "/nonexistent").env("LC_ALL", "C.UTF-8").current_dir("/").stdin(Stdio::null());
        if self.switch {
            command.uid(self.uid).gid(self.gid);
        }
        command
    }

    /// Makes a folder that belongs to this user and that others can look into.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn make_folder(&self, path: &Path) {
        fs::create_dir_all(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("the mode of a folder just made");
        self.own(path);
    }

    /// Hands one file or folder over to this user.
    ///
    /// # Panics
    /// When it cannot be handed over.
    pub fn own(&self, path: &Path) {
        if self.switch {
            chown(path, Some(self.uid), Some(self.gid)).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
    }
}

/// The first user of a `passwd` file that fits.
fn find(passwd: &str, fits: impl Fn(&Owner) -> bool) -> Option<Owner> {
    passwd
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?.to_owned();
            let uid = fields.nth(1)?.parse().ok()?;
            let gid = fields.next()?.parse().ok()?;
            Some(Owner { name, uid, gid, switch: true })
        })
        .find(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_fields_of_a_passwd_line() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\npostgres:x:101:104::/var/lib/postgresql:/bin/bash\n";
        let user = find(passwd, |user| user.name == "postgres").unwrap();
        assert_eq!((user.uid, user.gid), (101, 104));
    }

    #[test]
    fn servers_never_run_as_root() {
        assert_ne!(Owner::of_servers().uid, 0);
    }
}
