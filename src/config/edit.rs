//! Changes to walden.toml that a command makes: one list, in its place, with everything that people wrote around it.
//!
//! The new text takes the old one's place only when it means what the old one meant, but for that list; by a rename, so
//! that whoever reads meanwhile reads the one or the other.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, chown},
    path::Path,
};

use toml_edit::{Array, DocumentMut, Item, RawString, Table, Value, value};

use crate::error::{Error, Result};

/// Has the list `name` of the table `[table]` in the file hold these texts. What stays in it stays where it stands;
/// a table that is missing is added at the end.
pub fn set_list(path: &Path, table: &str, name: &str, texts: &[String]) -> Result<()> {
    // What a link leads to is edited, and the link stays.
    let path = &fs::canonicalize(path).map_err(|e| Error::io("find", path, e))?;
    let old = fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
    let new = edited(&old, table, name, texts).map_err(|why| {
        Error::invalid(format!("{} cannot be changed: {why}", path.display()))
            .hint(format!("write it by hand: {name} = {} under [{table}]", written(texts)))
    })?;
    if new != old {
        replace(path, &new).map_err(|e| Error::io("write", path, e))?;
    }
    Ok(())
}

/// The list as it is written.
fn written(texts: &[String]) -> Array {
    texts.iter().collect()
}

/// The text with that list; or why that is not possible.
fn edited(old: &str, table: &str, name: &str, texts: &[String]) -> Result<String, String> {
    let parsed = |text: &str| text.parse::<DocumentMut>().map_err(|e| e.message().to_owned());
    let mut document = parsed(old)?;
    let item = document.entry(table).or_insert(Item::Table(Table::new()));
    let within = item.as_table_like_mut().ok_or_else(|| format!("{table} is no table"))?;
    match within.get_mut(name).map(Item::as_array_mut) {
        Some(Some(array)) => change(array, texts),
        Some(None) => return Err(format!("{name} is no list")),
        None => _ = within.insert(name, value(written(texts))),
    }
    let new = document.to_string();
    let meant = |text: &str| {
        let mut meant: toml::Table = toml::from_str(text).map_err(|e: toml::de::Error| e.message().to_owned())?;
        let emptied = meant.entry(table).or_insert_with(|| toml::Table::new().into()).as_table_mut();
        let list = emptied.ok_or_else(|| format!("{table} is no table"))?.remove(name);
        Ok::<_, String>((meant, list))
    };
    let ((before, _), (after, list)) = (meant(old)?, meant(&new)?);
    let wanted = toml::Value::Array(texts.iter().cloned().map(toml::Value::String).collect());
    if before == after && list == Some(wanted) { Ok(new) } else { Err("it would come to mean something else".into()) }
}

/// Takes out what is not wanted, and adds what is missing at the end. A comment behind an item goes and stays with it.
fn change(array: &mut Array, texts: &[String]) {
    let is_wanted = |item: &Value| item.as_str().is_some_and(|text| texts.iter().any(|wanted| wanted == text));
    loop {
        let unwanted = array.iter().position(|item| !is_wanted(item));
        let Some(at) = unwanted else { break };
        let before = first_line(&prefix(&array.remove(at)));
        // Up to the end of its line what follows was the removed one's; what stood before that is its neighbour's.
        match array.get_mut(at) {
            Some(next) => {
                let rest = rest_of_lines(prefix(next));
                next.decor_mut().set_prefix(before + &rest);
            }
            None => {
                let rest = rest_of_lines(trailing(array));
                array.set_trailing(before + &rest);
            }
        }
    }
    for text in texts {
        if !array.iter().any(|item| item.as_str() == Some(text)) {
            add(array, text);
        }
    }
}

/// Adds an item, on a line of its own where the last one has one.
fn add(array: &mut Array, text: &str) {
    let last = array.iter().last().map(prefix).unwrap_or_default();
    let Some((_, indentation)) = last.rsplit_once('\n') else { return array.push(text) };
    // What stands behind the last item, up to the end of its line.
    let mut behind = trailing(array);
    let last = array.iter_mut().last();
    if let Some(last) = last {
        behind.insert_str(0, last.decor().suffix().and_then(RawString::as_str).unwrap_or_default());
        last.decor_mut().set_suffix("");
    }
    let (comment, rest) = behind.split_at(behind.find('\n').unwrap_or(behind.len()));
    let mut item = Value::from(text);
    item.decor_mut().set_prefix(format!("{comment}\n{indentation}"));
    array.push_formatted(item);
    array.set_trailing(if rest.is_empty() { "\n" } else { rest });
    array.set_trailing_comma(true);
}

fn trailing(array: &Array) -> String {
    array.trailing().as_str().unwrap_or_default().to_owned()
}

fn prefix(item: &Value) -> String {
    item.decor().prefix().and_then(RawString::as_str).unwrap_or_default().to_owned()
}

/// What stands before the first line end, where there is one.
fn first_line(text: &str) -> String {
    text.split_once('\n').map(|(line, _)| line.to_owned()).unwrap_or_default()
}

/// Without what stands before the first line end.
fn rest_of_lines(text: String) -> String {
    text.find('\n').map_or(text.clone(), |at| text[at..].to_owned())
}

/// A file beside it that takes its place, with its owner and mode.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let old = fs::metadata(path)?;
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = Path::new(&name);
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(temporary)?;
        file.write_all(text.as_bytes())?;
        let ours = file.metadata()?;
        if (ours.uid(), ours.gid()) != (old.uid(), old.gid()) {
            chown(temporary, Some(old.uid()), Some(old.gid()))?;
        }
        file.set_permissions(old.permissions())?;
        file.sync_all()?;
        fs::rename(temporary, path)
    };
    let written = write();
    if written.is_err() {
        // It may not have been made at all.
        let _ = fs::remove_file(temporary);
    }
    written?;
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const FILE: &str = r#"# ours
[repository]
url = "s3://b/p"   # the bucket

[encryption]
# who may read
recipients = [
    "age1a", # ops
    "age1b", # the safe
]
[cluster.main] # the shop
pgdata = "/data"
"#;

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn one_list_changes_and_all_else_stays() {
        let set = |list: &[&str]| edited(FILE, "encryption", "recipients", &texts(list)).unwrap();
        assert_eq!(set(&["age1a", "age1b"]), FILE);
        assert_eq!(set(&["age1b"]), FILE.replace("    \"age1a\", # ops\n", ""));
        assert_eq!(set(&["age1a"]), FILE.replace("    \"age1b\", # the safe\n", ""));
        assert_eq!(set(&["age1a", "age1b", "age1c"]), FILE.replace("# the safe\n", "# the safe\n    \"age1c\",\n"));
        let without_comma = FILE.replace("age1b\",", "age1b\"");
        let added = edited(&without_comma, "encryption", "recipients", &texts(&["age1b", "age1c"])).unwrap();
        assert!(added.contains("    \"age1b\", # the safe\n    \"age1c\",\n]\n"), "{added}");
    }

    #[test]
    fn a_table_that_is_missing_is_added_at_the_end() {
        let old = "[repository]\nurl = \"file:///r\" # here\n";
        let new = edited(old, "encryption", "recipients", &texts(&["age1a"])).unwrap();
        assert_eq!(new, format!("{old}\n[encryption]\nrecipients = [\"age1a\"]\n"));
        assert_eq!(edited("", "encryption", "recipients", &[]).unwrap(), "[encryption]\nrecipients = []\n");
    }

    #[test]
    fn what_would_mean_something_else_is_refused() {
        for old in ["encryption = 1", "[encryption]\nrecipients = \"age1a\"", "[encryption", "[a]\n[a]"] {
            assert!(edited(old, "encryption", "recipients", &texts(&["age1b"])).is_err(), "{old}");
        }
    }

    #[test]
    fn the_file_keeps_its_mode_and_a_link_stays_one() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("walden.toml"), folder.path().join("link"));
        fs::write(&file, FILE).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        set_list(&link, "encryption", "recipients", &texts(&["age1b"])).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
        assert!(!fs::read_to_string(&file).unwrap().contains("age1a"));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
