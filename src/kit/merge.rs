//! Puts together what a host has and what a kit has: what only one of them says is taken, what both say differently is a
//! contradiction, and nobody's to decide but a person's.

use super::{envelope, manifest::Purpose};
use crate::{
    config::{Config, Origin, Setting, rewrite},
    error::Result,
    store::s3::keys_file::{self, InFile},
};

/// What came of it.
#[derive(Debug, PartialEq, Eq)]
pub enum Merged {
    /// Everything of the kit is there.
    Same,
    /// The text with what was missing, and what that was.
    More(String, Vec<String>),
    /// What both say differently, in words without secrets.
    Contradiction(Vec<String>),
}

/// Merges the text that is there with the kit's, by what they are for.
pub fn merge(purpose: Purpose, there: &str, kit: &str) -> Result<Merged> {
    match purpose {
        Purpose::Configuration => configuration(there, kit),
        Purpose::Credentials => Ok(credentials(there, kit)),
        Purpose::Identity => identities(there, kit),
        Purpose::Certificates if there == kit => Ok(Merged::Same),
        Purpose::Certificates => Ok(Merged::Contradiction(vec!["it holds other certificates".into()])),
    }
}

fn configuration(there: &str, kit: &str) -> Result<Merged> {
    let read = |text: &str| Config::of(Some(("walden.toml".into(), text.to_owned())), std::iter::empty(), &[]);
    let (host, new) = (read(there)?, read(kit)?);
    let set = |config: &Config| -> Vec<Setting> {
        config.settings().iter().filter(|s| s.origin != Origin::Default).cloned().collect()
    };
    let (host, mut text) = (set(&host), there.to_owned());
    let (mut added, mut contradictions) = (Vec::new(), Vec::new());
    for setting in set(&new) {
        match host.iter().find(|other| other.path == setting.path) {
            None => {
                text = rewrite::set(&text, &setting.path, &setting.value);
                added.push(setting);
            }
            Some(other) if other.value == setting.value => {}
            // The placeholder of an earlier kit, or of this one.
            Some(other) if is_filled_in(other, &setting) => {}
            Some(other) if is_filled_in(&setting, other) => {
                text = rewrite::set(&text, &setting.path, &setting.value);
                added.push(setting);
            }
            Some(other) => contradictions.push(match (other.value.to_string(), setting.value.to_string()) {
                (here, there) if here != there => {
                    format!("{} is \"{here}\" here, and \"{there}\" in the kit", setting.path)
                }
                _ => format!("{} has another secret in the kit", setting.path),
            }),
        }
    }
    if !contradictions.is_empty() {
        return Ok(Merged::Contradiction(contradictions));
    }
    for setting in &added {
        rewrite::prove(&text, &setting.path, &setting.value)?;
    }
    Ok(more(text, added.into_iter().map(|setting| setting.path).collect()))
}

/// Whether `full` is what `blank` becomes when its placeholder is filled in.
fn is_filled_in(full: &Setting, blank: &Setting) -> bool {
    use crate::config::Value::Connection;
    let (Connection(full), Connection(blank)) = (&full.value, &blank.value) else { return false };
    blank.reveal().contains(rewrite::PLACEHOLDER)
        && full.with_secrets_as(rewrite::PLACEHOLDER) == blank.with_secrets_as(rewrite::PLACEHOLDER)
}

fn credentials(there: &str, kit: &str) -> Merged {
    let (mut text, mut added, mut contradictions) = (there.to_owned(), Vec::new(), Vec::new());
    for section in keys_file::sections(kit) {
        let (Ok(host), Ok(new)) = (keys_file::find(&text, section), keys_file::find(kit, section)) else {
            contradictions.push(format!("[{section}] cannot be read"));
            continue;
        };
        match (host, new) {
            (host, new) if host == new => {}
            (InFile::Keys(_) | InFile::Unfilled(_), InFile::Unfilled(_)) | (_, InFile::Nothing) => {}
            (InFile::Keys(_), InFile::Keys(_)) => contradictions.push(format!("[{section}] has other keys")),
            (host, new) => {
                if matches!(host, InFile::Unfilled(_)) {
                    text = keys_file::without(&text, section);
                }
                let keys = match &new {
                    InFile::Keys(keys) => Some(keys),
                    _ => None,
                };
                let gap = if text.is_empty() || text.ends_with("\n\n") { "" } else { "\n" };
                text = format!("{text}{gap}{}", keys_file::written(section, keys));
                added.push(format!("[{section}]"));
            }
        }
    }
    if contradictions.is_empty() { more(text, added) } else { Merged::Contradiction(contradictions) }
}

/// An identity file may hold several.
fn identities(there: &str, kit: &str) -> Result<Merged> {
    let known: Vec<String> = envelope::identities(there)?.iter().map(|i| i.to_public().to_string()).collect();
    let (mut text, mut added) = (there.to_owned(), Vec::new());
    let lines = kit.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    for (identity, line) in envelope::identities(kit)?.iter().zip(lines) {
        let public = identity.to_public().to_string();
        if !known.contains(&public) {
            let gap = if text.ends_with('\n') { "" } else { "\n" };
            text = format!("{text}{gap}# public key: {public}\n{line}\n");
            added.push(public);
        }
    }
    Ok(more(text, added))
}

fn more(text: String, added: Vec<String>) -> Merged {
    if added.is_empty() { Merged::Same } else { Merged::More(text, added) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "# ours\n[repository]\nurl = \"s3://b/p\"\n";

    #[test]
    fn keys_that_are_missing_are_added_and_contradictions_are_told() {
        let merged = |kit: &str| configuration(HOST, kit).unwrap();
        assert_eq!(merged("[repository]\nurl = \"s3://b/p\"\n"), Merged::Same);
        let Merged::More(text, added) =
            merged("[repository]\nurl = \"s3://b/p\"\nregion = \"eu\"\n\n[cluster.main]\npgdata = \"/d\"\n")
        else {
            panic!("two keys are missing")
        };
        assert_eq!(added, ["repository.region", "cluster.main.pgdata"]);
        assert!(text.starts_with("# ours\n[repository]\nregion = \"eu\"\nurl = "), "{text}");
        let Merged::Contradiction(told) = merged("[repository]\nurl = \"s3://c\"\n") else { panic!("another bucket") };
        assert_eq!(told, ["repository.url is \"s3://b/p\" here, and \"s3://c\" in the kit"]);
    }

    #[test]
    fn a_placeholder_gives_way_and_other_secrets_do_not() {
        let of = |password: &str| format!("[cluster.main]\nconnection = \"host=h password={password}\"\n");
        let (blank, full) = (of(rewrite::PLACEHOLDER), of("hush"));
        assert_eq!(configuration(&full, &blank).unwrap(), Merged::Same);
        assert!(matches!(configuration(&blank, &full).unwrap(), Merged::More(text, _) if text.contains("hush")));
        let Merged::Contradiction(told) = configuration(&full, &of("other")).unwrap() else { panic!("two passwords") };
        assert_eq!(told, ["cluster.main.connection has another secret in the kit"]);
        let keys = |id: &str| keys_file::Keys { id: id.into(), secret: "hush".into(), session_token: None };
        let (blank, full) = (keys_file::written("default", None), keys_file::written("default", Some(&keys("A"))));
        assert_eq!(credentials(&full, &blank), Merged::Same);
        assert_eq!(credentials(&blank, &full), Merged::More(full.clone(), vec!["[default]".into()]));
        let other = keys_file::written("other", Some(&keys("B")));
        let Merged::More(both, _) = credentials(&other, &full) else { panic!("two sections") };
        assert_eq!((credentials(&both, &other), credentials(&both, &full)), (Merged::Same, Merged::Same));
        assert!(matches!(
            credentials(&full, &keys_file::written("default", Some(&keys("C")))),
            Merged::Contradiction(told) if told == ["[default] has other keys"]
        ));
    }

    #[test]
    fn identities_are_added_to_those_that_are_there() {
        let generate = || {
            let identity = age::x25519::Identity::generate();
            age::secrecy::ExposeSecret::expose_secret(&identity.to_string()).to_owned()
        };
        let (one, other) = (generate(), generate());
        assert_eq!(identities(&one, &format!("# ours\n{one}\n")).unwrap(), Merged::Same);
        let Merged::More(both, added) = identities(&one, &other).unwrap() else { panic!("another identity") };
        assert_eq!((envelope::identities(&both).unwrap().len(), added.len()), (2, 1));
    }
}
