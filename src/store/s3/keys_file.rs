//! A file of access keys in the form of `~/.aws/credentials`: sections, and in each the key and its secret.

use std::{fs, path::Path};

pub use super::Keys;
use crate::error::{Error, Result};

/// Stands in place of a secret that a recovery kit left out.
pub const PLACEHOLDER: &str = "FILL-ME-IN";

/// The section where no profile is named.
pub const DEFAULT: &str = "default";

/// What a file has in a section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InFile {
    /// Keys.
    Keys(Keys),
    /// Placeholders: where the first of them stands.
    Unfilled(String),
    /// No such section.
    Nothing,
}

/// Reads a section of a file.
pub fn read(path: &Path, section: &str) -> Result<InFile> {
    let text = fs::read_to_string(path).map_err(|e| {
        Error::invalid(format!("read the access keys in {}", path.display()))
            .source(e)
            .hint("it must belong to the user that this runs as; see credentials_file under [repository]")
    })?;
    find(&text, section).map_err(|what| {
        Error::invalid(format!("{}: {what}", path.display()))
            .hint("it has the form of ~/.aws/credentials: [default], aws_access_key_id = ..., aws_secret_access_key = ...")
    }).map(|found| match found {
        InFile::Unfilled(place) => InFile::Unfilled(format!("{}: {place}", path.display())),
        other => other,
    })
}

/// The sections that there are, in their order.
#[must_use]
pub fn sections(text: &str) -> Vec<&str> {
    text.lines().filter_map(header).collect()
}

/// Finds a section's keys, or says what is wrong with it. Never repeats what may be a secret.
pub fn find(text: &str, section: &str) -> Result<InFile, String> {
    let (mut inside, mut there) = (false, false);
    let mut values: [Option<String>; 3] = [None, None, None];
    for (number, line) in text.lines().enumerate().map(|(number, line)| (number + 1, line.trim())) {
        if let Some(name) = header(line) {
            inside = name == section;
            there |= inside;
        } else if inside && !line.is_empty() && !line.starts_with(['#', ';']) {
            let Some((name, value)) = line.split_once('=') else {
                return Err(format!("line {number} has no ="));
            };
            let (name, value) = (name.trim().to_ascii_lowercase(), value.trim());
            let Some(which) = NAMES.iter().position(|known| *known == name) else { continue };
            if value == PLACEHOLDER {
                return Ok(InFile::Unfilled(format!("{name} in [{section}], line {number}")));
            }
            values[which] = Some(value.to_owned()).filter(|value| !value.is_empty());
        }
    }
    match values {
        _ if !there => Ok(InFile::Nothing),
        [Some(id), Some(secret), session_token] => Ok(InFile::Keys(Keys { id, secret, session_token })),
        [None, ..] => Err(format!("{} is missing in [{section}]", NAMES[0])),
        _ => Err(format!("{} is missing in [{section}]", NAMES[1])),
    }
}

/// A section as it is written; without keys with placeholders.
#[must_use]
pub fn written(section: &str, keys: Option<&Keys>) -> String {
    let (id, secret) = keys.map_or((PLACEHOLDER, PLACEHOLDER), |keys| (&keys.id, &keys.secret));
    format!("[{section}]\n{} = {id}\n{} = {secret}\n", NAMES[0], NAMES[1])
}

/// The text without a section.
#[must_use]
pub fn without(text: &str, section: &str) -> String {
    let mut inside = false;
    let kept = text.split_inclusive('\n').filter(|line| {
        inside = header(line).map_or(inside, |name| name == section);
        !inside
    });
    kept.collect()
}

const NAMES: [&str; 3] = ["aws_access_key_id", "aws_secret_access_key", "aws_session_token"];

fn header(line: &str) -> Option<&str> {
    Some(line.trim().strip_prefix('[')?.split_once(']')?.0.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_read_as_the_aws_tools_read_it() {
        let text = "# ours\n[other]\naws_access_key_id=B\naws_secret_access_key=b=/+\n\n[default]\n; old\nregion = eu\nAWS_ACCESS_KEY_ID = A\naws_secret_access_key = a\naws_session_token = t\n";
        let keys = |id: &str, secret: &str, token: Option<&str>| {
            InFile::Keys(Keys { id: id.into(), secret: secret.into(), session_token: token.map(str::to_owned) })
        };
        assert_eq!(find(text, DEFAULT).unwrap(), keys("A", "a", Some("t")));
        assert_eq!(find(text, "other").unwrap(), keys("B", "b=/+", None));
        assert_eq!(find(text, "third").unwrap(), InFile::Nothing);
        assert_eq!(sections(text), ["other", "default"]);
        for half in [
            "[default]\n",
            "[default]\naws_access_key_id = hush",
            "[default]\naws_secret_access_key = hush",
            "[default]\nhush",
        ] {
            assert!(!find(half, DEFAULT).unwrap_err().contains("hush"), "{half}");
        }
    }

    #[test]
    fn what_is_written_is_read_and_a_placeholder_is_told() {
        let keys = Keys { id: "A".into(), secret: "s".into(), session_token: None };
        assert_eq!(find(&written("x", Some(&keys)), "x").unwrap(), InFile::Keys(keys));
        let unfilled = find(&written(DEFAULT, None), DEFAULT).unwrap();
        assert_eq!(unfilled, InFile::Unfilled("aws_access_key_id in [default], line 2".into()));
    }
}
