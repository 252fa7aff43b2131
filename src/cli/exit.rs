//! What the exit status means: the one place that maps an end to a number.
//!
//! PostgreSQL acts on the status of `archive_command` and `restore_command`, so `wal push` and `wal fetch`
//! answer in the codes of the programs that call them, whatever goes wrong: a wrong flag and a panic too.
//! Which family holds is therefore read from the bare arguments, before they are parsed.

use std::ffi::OsString;

use crate::error::Kind;

/// How a subcommand that did its work ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// All is well.
    Done,
    /// The work was done and what it found needs a person.
    NeedsPerson,
    /// The work was done and found damaged data.
    DamageFound,
    /// The work was done as far as it goes without the repository, which did not answer or refused the credentials.
    Unreachable,
}

/// A family of exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codes {
    /// `walden`, whatever is not below.
    Walden,
    /// `walden plan` and `walden restore`: what is not found is the target.
    Target,
    /// `walden wal push`: the codes of `walden-archive`.
    Push,
    /// `walden wal fetch`: the codes of `walden-restore`.
    Fetch,
}

/// Anything but "delivered" and "proven absent": above 125, so that PostgreSQL stops instead of ending recovery early.
const DOUBT: u8 = 200;

impl Codes {
    /// The family of the subcommand that these arguments (the program's name first) ask for.
    #[must_use]
    pub fn of_arguments(arguments: &[OsString]) -> Self {
        let mut words = Vec::new();
        let mut rest = arguments.iter().skip(1);
        while let Some(argument) = rest.next() {
            match argument.to_str() {
                Some(flag) if super::VALUE_FLAGS.contains(&flag) => _ = rest.next(),
                Some(flag) if flag.starts_with('-') => {}
                word => words.push(word.unwrap_or_default()),
            }
        }
        match words.as_slice() {
            ["wal", "push", ..] => Self::Push,
            ["wal", "fetch", ..] => Self::Fetch,
            ["plan" | "restore", ..] => Self::Target,
            _ => Self::Walden,
        }
    }

    /// The code of work that was done.
    #[must_use]
    pub fn of_end(self, end: End) -> u8 {
        match (end, self) {
            (End::Done, _) => 0,
            (_, Self::Fetch) => DOUBT,
            (End::NeedsPerson, _) | (End::Unreachable, Self::Push) => 1,
            (End::Unreachable, _) => 5,
            (End::DamageFound, Self::Push) => 4,
            (End::DamageFound, _) => 6,
        }
    }

    /// The code of work that failed.
    #[must_use]
    pub fn of_error(self, kind: Kind) -> u8 {
        match self {
            Self::Push => match kind {
                Kind::Unavailable | Kind::Failed | Kind::Internal | Kind::Interrupted => 1,
                Kind::Invalid | Kind::Denied | Kind::NotFound | Kind::Ambiguous => 2,
                Kind::Refused | Kind::Damaged => 4,
            },
            Self::Fetch => match kind {
                Kind::NotFound => 1,
                _ => DOUBT,
            },
            Self::Walden | Self::Target => match kind {
                Kind::NotFound | Kind::Ambiguous if self == Self::Target => 3,
                Kind::NotFound | Kind::Failed | Kind::Internal => 1,
                Kind::Invalid | Kind::Ambiguous => 2,
                Kind::Refused => 4,
                Kind::Unavailable | Kind::Denied => 5,
                Kind::Damaged => 6,
                Kind::Interrupted => 130,
            },
        }
    }

    /// The code of a wrong flag or argument.
    #[must_use]
    pub fn of_usage(self) -> u8 {
        self.of_error(Kind::Invalid)
    }

    /// The code of a panic.
    #[must_use]
    pub fn of_panic(self) -> u8 {
        self.of_error(Kind::Internal)
    }

    /// What `--help` says about the codes.
    #[must_use]
    pub fn help(self) -> &'static str {
        match self {
            Self::Walden => concat!(
                "EXIT STATUS\n",
                "  0    done\n",
                "  1    failed, or something needs a person\n",
                "  2    wrong usage or configuration\n",
                "  4    refused, to protect data\n",
                "  5    repository unreachable, or credentials refused\n",
                "  6    damaged data found\n",
                "  130  interrupted"
            ),
            Self::Target => concat!(
                "EXIT STATUS\n",
                "  0    done\n",
                "  1    failed, or something needs a person\n",
                "  2    wrong usage or configuration\n",
                "  3    the target can't be reached\n",
                "  4    refused, to protect data\n",
                "  5    repository unreachable, or credentials refused\n",
                "  6    damaged data found\n",
                "  130  interrupted"
            ),
            Self::Push => concat!(
                "EXIT STATUS\n",
                "  0    the file is durable in the repository\n",
                "  1    try again: unreachable, out of time, interrupted\n",
                "  2    wrong usage or configuration, credentials refused\n",
                "  4    refused: other content under this name, a foreign system, not a valid segment"
            ),
            Self::Fetch => concat!(
                "EXIT STATUS\n",
                "  0    delivered, verified, whole\n",
                "  1    proven absent from the repository\n",
                "  200  anything else: PostgreSQL stops rather than end recovery early"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [Kind; 10] = [
        Kind::Unavailable,
        Kind::Denied,
        Kind::Refused,
        Kind::Damaged,
        Kind::NotFound,
        Kind::Ambiguous,
        Kind::Invalid,
        Kind::Failed,
        Kind::Interrupted,
        Kind::Internal,
    ];

    fn family(line: &str) -> Codes {
        Codes::of_arguments(&line.split(' ').map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn the_family_is_known_before_anything_is_parsed() {
        assert_eq!(family("walden"), Codes::Walden);
        assert_eq!(family("walden wal"), Codes::Walden);
        assert_eq!(family("walden wal list --json"), Codes::Walden);
        assert_eq!(family("walden wal push pg_wal/x"), Codes::Push);
        assert_eq!(family("walden -v --config wal wal --cluster push fetch --bogus"), Codes::Fetch);
        assert_eq!(family("walden --config=x wal fetch"), Codes::Fetch);
        assert_eq!(family("walden --json restore --to wal"), Codes::Target);
        assert_eq!(family("walden help wal push"), Codes::Walden);
    }

    #[test]
    fn fetch_answers_1_for_proven_absence_alone() {
        for kind in KINDS {
            assert_eq!(Codes::Fetch.of_error(kind), if kind == Kind::NotFound { 1 } else { 200 }, "{kind:?}");
        }
        assert_eq!((Codes::Fetch.of_usage(), Codes::Fetch.of_panic()), (200, 200));
    }

    #[test]
    fn push_answers_0_for_no_error_and_never_above_125() {
        for kind in KINDS {
            assert!(matches!(Codes::Push.of_error(kind), 1 | 2 | 4), "{kind:?}");
        }
        assert_eq!((Codes::Push.of_usage(), Codes::Push.of_panic()), (2, 1));
    }

    #[test]
    fn walden_tells_the_kinds_apart() {
        assert_eq!(KINDS.map(|k| Codes::Walden.of_error(k)), [5, 5, 4, 6, 1, 2, 2, 1, 130, 1]);
        assert_eq!([Kind::NotFound, Kind::Ambiguous].map(|k| Codes::Target.of_error(k)), [3, 3]);
        assert_eq!(Codes::Walden.of_end(End::DamageFound), 6);
    }
}
