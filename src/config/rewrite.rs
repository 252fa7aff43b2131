//! Changes single values in the text of a `walden.toml`, and leaves everything else as its owner wrote it: comments,
//! order, spacing. What a change comes to is proven by reading the file again.

use std::{fmt::Write as _, ops::Range};

use toml::de::{DeTable, DeValue};

use super::{Config, Setting, Value};
use crate::error::{Error, Result};
pub use crate::store::s3::keys_file::PLACEHOLDER;

/// The text with `value` in place of what stands at that path, such as `cluster.main.connection`; `None` when nothing
/// stands there.
#[must_use]
pub fn replace(text: &str, path: &str, value: &str) -> Option<String> {
    let span = place(text, path)?;
    Some(format!("{}{}{}", &text[..span.start], quoted(value), &text[span.end..]))
}

/// The text with that key set: its value replaced where it stands, else added to its table.
#[must_use]
pub fn set(text: &str, path: &str, value: &Value) -> String {
    let literal = literal(value);
    if let Some(span) = place(text, path) {
        return format!("{}{literal}{}", &text[..span.start], &text[span.end..]);
    }
    let (table, key) = path.rsplit_once('.').unwrap_or(("", path));
    let header = format!("[{table}]");
    let line = format!("{key} = {literal}\n");
    match text
        .split_inclusive('\n')
        .scan(0, |at, line| Some((std::mem::replace(at, *at + line.len()), line)))
        .find(|(_, line)| line.split('#').next().unwrap_or_default().trim() == header)
    {
        Some((at, header)) => {
            let behind = at + header.len();
            let feed = if header.ends_with('\n') { "" } else { "\n" };
            format!("{}{feed}{line}{}", &text[..behind], &text[behind..])
        }
        None => {
            let gap = if text.is_empty() {
                ""
            } else if text.ends_with('\n') {
                "\n"
            } else {
                "\n\n"
            };
            format!("{text}{gap}{header}\n{line}")
        }
    }
}

/// A file with these values alone, table by table.
pub fn written(settings: &[&Setting]) -> String {
    let mut text = String::new();
    let mut last = "";
    for setting in settings {
        let (table, key) = setting.path.rsplit_once('.').unwrap_or(("", &setting.path));
        if table != last {
            let gap = if text.is_empty() { "" } else { "\n" };
            _ = writeln!(text, "{gap}[{table}]");
            last = table;
        }
        _ = writeln!(text, "{key} = {}", literal(&setting.value));
    }
    text
}

/// Proves that an edited text says what it is meant to: an error that names the key otherwise.
pub fn prove(text: &str, path: &str, value: &Value) -> Result<()> {
    let config = Config::of(Some(("/walden.toml".into(), text.to_owned())), std::iter::empty(), &[])?;
    let said = config.settings().iter().find(|setting| setting.path == path).map(|setting| &setting.value);
    if said == Some(value) {
        return Ok(());
    }
    Err(Error::invalid(format!("{path} could not be written into walden.toml"))
        .hint(format!("write [{}] as a table of its own", path.rsplit_once('.').unwrap_or_default().0)))
}

fn place(text: &str, path: &str) -> Option<Range<usize>> {
    let document = DeTable::parse(text).ok()?;
    let mut table = document.get_ref();
    let mut names = path.split('.').peekable();
    loop {
        let name = names.next()?;
        let (_, value) = table.iter().find(|(key, _)| key.get_ref() == name)?;
        match (value.get_ref(), names.peek()) {
            (DeValue::Table(below), Some(_)) => table = below,
            (DeValue::Table(_), None) | (_, Some(_)) => return None,
            (_, None) => return Some(value.span()),
        }
    }
}

fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

/// As the value is written in TOML, secrets included.
fn literal(value: &Value) -> String {
    match value {
        Value::Switch(switch) => switch.to_string(),
        Value::Whole(number) => number.to_string(),
        // Exactly, where the text for people may be rounded.
        Value::Size(bytes) => quoted(&format!("{bytes}B")),
        Value::Time(length) => quoted(&format!("{}ms", length.as_millis())),
        Value::Connection(connection) => quoted(connection.reveal()),
        Value::List(items) => format!("[{}]", items.iter().map(|item| quoted(item)).collect::<Vec<_>>().join(", ")),
        other => quoted(&other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# ours\n[repository] # where\nurl = \"s3://b/p\"   # do not touch\n\n[cluster.main]\n\
        connection = 'host=h password=hush' # the server\n";

    fn read(text: &str) -> Config {
        Config::of(Some(("/w.toml".into(), text.into())), std::iter::empty(), &[]).unwrap()
    }

    #[test]
    fn a_value_is_replaced_and_nothing_else() {
        let text = replace(TEXT, "cluster.main.connection", "host=\"h\"").unwrap();
        assert!(text.starts_with("# ours\n[repository] # where\nurl = \"s3://b/p\"   # do not touch\n"));
        assert!(text.ends_with(" # the server\n") && !text.contains("hush"), "{text}");
        assert_eq!(read(&text).cluster(None).unwrap().connection().unwrap().reveal(), "host=\"h\"");
        let dotted = "repository.url = \"s3://b\"\nrepository = { url = 1 }\n";
        assert_eq!(
            replace("repository = { url = \"s3://b\" }", "repository.url", "s3://c").unwrap(),
            "repository = { url = \"s3://c\" }"
        );
        for (text, path) in
            [(TEXT, "cluster.main"), (TEXT, "cluster.other.connection"), (TEXT, "url"), (dotted, "repository.url")]
        {
            assert_eq!(replace(text, path, "x"), None, "{path}");
        }
    }

    #[test]
    fn a_key_is_added_to_its_table_or_with_it() {
        let ca = Value::Text("/etc/ca.pem".into());
        let text = set(TEXT, "repository.ca_file", &ca);
        assert!(text.contains("[repository] # where\nca_file = \"/etc/ca.pem\"\nurl"), "{text}");
        prove(&text, "repository.ca_file", &ca).unwrap();
        let size = Value::Size(1025);
        let text = set(&text, "restore.prefetch_size", &size);
        prove(&text, "restore.prefetch_size", &size).unwrap();
        // A table that is written otherwise than by a header of its own.
        let inline = "repository = { url = \"s3://b\" }";
        assert!(prove(&set(inline, "repository.ca_file", &ca), "repository.ca_file", &ca).is_err());
    }

    #[test]
    fn what_the_environment_sets_can_be_written_down() {
        let variables = [
            ("WALDEN_REPOSITORY_URL", "s3://b/p"),
            ("WALDEN_REPOSITORY_DEADLINE", "90s"),
            ("WALDEN_CLUSTER_MAIN_CONNECTION", "host='a \"b\"' password=hush"),
            ("WALDEN_ARCHIVE_COMPRESSION", "zstd:1..6"),
            ("WALDEN_BACKUP_EXCLUDE", "a,b"),
            ("WALDEN_RECEIVE_SPOOL_LIMIT", "1000001B"),
        ];
        let variables = variables.map(|(name, value)| (name.into(), value.into()));
        let config = Config::of(None, variables.into_iter(), &[]).unwrap();
        let set: Vec<&Setting> =
            config.settings().iter().filter(|s| s.origin != super::super::Origin::Default).collect();
        let again = read(&written(&set));
        let values = |c: &Config| c.settings().iter().map(|s| (s.path.clone(), s.value.clone())).collect::<Vec<_>>();
        assert_eq!(values(&again), values(&config));
    }
}
