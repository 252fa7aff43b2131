//! What a passphrase must be, and one that is made by chance.

use std::{collections::BTreeSet, fmt};

use crate::error::{Error, Result};

/// A passphrase, which never appears in any text.
#[derive(Clone, PartialEq, Eq)]
pub struct Passphrase(String);

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase")
    }
}

/// Letters and digits that nobody takes for one another.
const ALPHABET: &[u8; 32] = b"abcdefghjkmnpqrstuvwxyz23456789w";
/// A generated one has that many groups of [`GROUP`] characters.
const GROUPS: usize = 6;
/// Characters in a group.
const GROUP: usize = 4;
/// How many characters that cannot be told from those before it a passphrase needs.
const ENOUGH: usize = 12;
/// How many different characters it needs.
const DIFFERENT: usize = 6;
/// Words that everybody tries first. Each counts as one character.
const COMMON: [&str; 22] = [
    "password",
    "passwort",
    "passphrase",
    "postgres",
    "postgresql",
    "walden",
    "backup",
    "secret",
    "qwertyuiop",
    "qwertz",
    "qwerty",
    "asdfgh",
    "letmein",
    "welcome",
    "admin",
    "database",
    "recovery",
    "iloveyou",
    "dragon",
    "monkey",
    "changeme",
    "correcthorsebatterystaple",
];

impl Passphrase {
    /// That text, to open a kit with.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// That text, to lock a kit with: an error that tells why when it is weak. `known` are words that whoever finds the
    /// kit knows: the host's and the clusters' names.
    pub fn to_lock(text: impl Into<String>, known: &[String]) -> Result<Self> {
        let text = text.into();
        match weakness(&text, known) {
            None => Ok(Self(text)),
            Some(why) => Err(Error::invalid(format!("the passphrase is too weak: {why}"))
                .hint("use five words that do not belong together, or --generate-passphrase")),
        }
    }

    /// One made by chance: 24 characters in groups of four, as hard to guess as a key of 118 bits.
    pub fn generate() -> Result<Self> {
        let mut text = String::new();
        let mut characters = 0;
        while characters < GROUPS * GROUP {
            let mut bytes = [0_u8; 32];
            rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
                .map_err(|e| Error::failed("ask the system for random bytes").source(std::io::Error::from(e)))?;
            // The last letter stands twice in the alphabet, to make 32 of 31: drawn again.
            for byte in bytes.iter().map(|byte| usize::from(byte & 31)).filter(|byte| *byte < 31) {
                if characters == GROUPS * GROUP {
                    break;
                }
                if characters > 0 && characters % GROUP == 0 {
                    text.push('-');
                }
                text.push(char::from(ALPHABET[byte]));
                characters += 1;
            }
        }
        Ok(Self(text))
    }

    /// The text: for whoever locks, opens or shows it to its owner, never for a message.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

/// Why a passphrase is weak, if it is.
fn weakness(text: &str, known: &[String]) -> Option<String> {
    let mut plain = text.to_lowercase();
    let known = known.iter().map(|word| word.to_lowercase()).filter(|word| word.len() >= 3);
    for word in COMMON.into_iter().map(str::to_owned).chain(known) {
        plain = plain.replace(&word, "\u{1}");
    }
    let characters: Vec<char> = plain.chars().collect();
    let next_to = |a: char, b: char| u32::from(a).abs_diff(u32::from(b)) <= 1;
    let telling = 1 + characters.windows(2).filter(|pair| !next_to(pair[0], pair[1])).count();
    let different = characters.iter().collect::<BTreeSet<_>>().len();
    let digits = characters.iter().all(char::is_ascii_digit);
    if text.chars().count() < ENOUGH {
        return Some(format!("it has fewer than {ENOUGH} characters"));
    }
    if different < DIFFERENT {
        return Some(format!("it has fewer than {DIFFERENT} different characters"));
    }
    if telling < ENOUGH {
        return Some(
            "runs like abcd or aaaa, common words, and the host's and the clusters' names do not count".into(),
        );
    }
    if digits && characters.len() < 2 * ENOUGH {
        return Some(format!("digits alone must be at least {}", 2 * ENOUGH));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weak_ones_are_refused_with_the_reason() {
        let known = ["db-prod-7.example.com".to_owned(), "orders".to_owned()];
        for (text, why) in [
            ("", "fewer than 12 characters"),
            ("Tr0ub4dor&3", "fewer than 12 characters"),
            ("aaaaaaaaaaaaaaaaaaaaaaaa", "different"),
            ("abababababababababab", "different"),
            ("abcdefghijklmnopqrstuvwxyz", "runs"),
            ("PasswordPassword1234", "different"),
            ("walden-backup-2026", "different"),
            ("db-prod-7.example.com/orders", "different"),
            ("orders-x7-on-the", "names"),
            ("19283746501928", "digits alone"),
        ] {
            let error = Passphrase::to_lock(text, &known).expect_err(text);
            assert!(error.to_string().contains(why), "{text}: {error}");
            assert!(text.is_empty() || !error.to_string().contains(text));
        }
        for text in ["lamp ocean velvet tractor mint", "k7mq-x2rt-9fhz-pb4w", "wpa8!Fq2-kd.Lx"] {
            Passphrase::to_lock(text, &known).unwrap();
        }
    }

    #[test]
    fn a_generated_one_is_strong_and_never_the_same() {
        let all: BTreeSet<String> = (0..200).map(|_| Passphrase::generate().unwrap().reveal().to_owned()).collect();
        assert_eq!(all.len(), 200);
        for text in &all {
            assert_eq!((text.len(), text.split('-').count()), (29, 6), "{text}");
            Passphrase::to_lock(text.as_str(), &[]).unwrap();
        }
    }
}
