//! Patterns of paths as a shell knows them: `*`, `?` and `[a-z]`, in each part of a path by itself. A leading dot is
//! matched by a dot alone.

use std::{
    fs, io,
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
};

/// The paths that a pattern stands for, in their order. Without wildcards it is the path itself, there or not.
pub fn expand(pattern: &str) -> io::Result<Vec<PathBuf>> {
    let mut found = vec![PathBuf::from("/")];
    for part in Path::new(pattern).components() {
        let Component::Normal(part) = part else { continue };
        let mut next = Vec::new();
        for folder in found {
            if !part.as_bytes().iter().any(|b| b"*?[".contains(b)) || folder.join(part).symlink_metadata().is_ok() {
                next.push(folder.join(part));
                continue;
            }
            let entries = match fs::read_dir(&folder) {
                Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => continue,
                entries => entries?,
            };
            for entry in entries {
                let name = entry?.file_name();
                if matches(part.as_bytes(), name.as_bytes()) {
                    next.push(folder.join(name));
                }
            }
        }
        found = next;
    }
    found.sort();
    Ok(found)
}

/// Whether a name fits a pattern.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    if name.first() == Some(&b'.') && pattern.first() != Some(&b'.') {
        return false;
    }
    fits(pattern, name)
}

fn fits(mut pattern: &[u8], mut name: &[u8]) -> bool {
    // Where to go on when the last `*` takes one byte more.
    let mut again: Option<(&[u8], &[u8])> = None;
    loop {
        let step = match (pattern, name) {
            ([], []) => return true,
            ([b'*', rest @ ..], _) => {
                again = Some((rest, name));
                pattern = rest;
                continue;
            }
            (_, []) => None,
            ([b'?', rest @ ..], [_, more @ ..]) => Some((rest, more)),
            ([b'[', rest @ ..], [byte, more @ ..]) => match class(rest, *byte) {
                Some((true, rest)) => Some((rest, more)),
                Some((false, _)) => None,
                None => (*byte == b'[').then_some((rest, more)),
            },
            ([wanted, rest @ ..], [byte, more @ ..]) => (wanted == byte).then_some((rest, more)),
            ([], _) => None,
        };
        (pattern, name) = match (step, again) {
            (Some(step), _) => step,
            (None, Some((rest, [_, more @ ..]))) => {
                again = Some((rest, more));
                (rest, more)
            }
            (None, _) => return false,
        };
    }
}

/// Whether a byte is in the class that `pattern` begins with, behind its bracket, and what follows the class. `None`
/// when it has no end, and so is none.
fn class(pattern: &[u8], byte: u8) -> Option<(bool, &[u8])> {
    let negated = matches!(pattern.first(), Some(b'!' | b'^'));
    let begin = usize::from(negated);
    // A bracket that comes first stands for itself.
    let end = begin + 1 + pattern.get(begin + 1..)?.iter().position(|b| *b == b']')?;
    let mut members = &pattern[begin..end];
    let mut within = false;
    while let Some((first, rest)) = members.split_first() {
        if let [b'-', last, rest @ ..] = rest {
            within |= (*first..=*last).contains(&byte);
            members = rest;
        } else {
            within |= *first == byte;
            members = rest;
        }
    }
    Some((within != negated, &pattern[end + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_as_in_a_shell() {
        for (pattern, name, expected) in [
            ("*.conf", "a.conf", true),
            ("*.conf", ".conf", false),
            (".*", ".conf", true),
            ("*", "", true),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
            ("?", "a", true),
            ("?", "", false),
            ("[a-c]x", "bx", true),
            ("[!a-c]x", "bx", false),
            ("[]]", "]", true),
            ("[a", "[a", true),
            ("1[4-8]", "17", true),
            ("1[4-8]", "13", false),
        ] {
            assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn a_pattern_is_expanded_folder_by_folder() {
        let folder = tempfile::tempdir().unwrap();
        for path in ["16/main/a.conf", "17/main/a.conf", "17/main/b.key", "17/other/c.conf"] {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let found = |pattern: &str| {
            let all = expand(&format!("{}/{pattern}", folder.path().display())).unwrap();
            all.iter().map(|p| p.strip_prefix(folder.path()).unwrap().to_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(found("1?/main/*.conf"), ["16/main/a.conf", "17/main/a.conf"]);
        assert_eq!(found("17/*"), ["17/main", "17/other"]);
        assert_eq!(found("18/*"), [""; 0]);
        assert_eq!(found("18/main"), ["18/main"]);
    }
}
