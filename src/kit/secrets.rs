//! Secrets in a `walden.toml`: finding them, and leaving them out.

use super::manifest::{CONFIGURATION, Missing};
use crate::config::{Config, Value, rewrite};

/// The text of a configuration as it goes into a kit.
#[derive(Debug)]
pub struct Told {
    /// The text.
    pub text: String,
    /// What was left out of it.
    pub missing: Vec<Missing>,
    /// Lines of it (from 1) that seem to hold a secret.
    pub secrets: Vec<usize>,
}

/// Leaves out the passwords of connections, each with a placeholder in its place.
pub fn left_out(text: &str, config: &Config) -> Told {
    let mut told = Told { text: text.to_owned(), missing: Vec::new(), secrets: Vec::new() };
    for setting in config.settings() {
        let Value::Connection(connection) = &setting.value else { continue };
        let without = connection.with_secrets_as(rewrite::PLACEHOLDER).filter(|_| connection.holds_secret());
        if let Some(text) = without.and_then(|without| rewrite::replace(&told.text, &setting.path, &without)) {
            told.text = text;
            told.missing.push(Missing {
                file: CONFIGURATION.into(),
                key: setting.path.clone(),
                what: "the password of the connection to the server".into(),
            });
        }
    }
    told.secrets = lines_with_secrets(&told.text, config);
    told
}

/// The lines (from 1) that seem to hold a secret: a password of a connection, or anything that looks like one, in a
/// remark too.
pub fn lines_with_secrets(text: &str, config: &Config) -> Vec<usize> {
    let connections: Vec<String> = config
        .settings()
        .iter()
        .filter_map(|setting| match &setting.value {
            Value::Connection(connection) if connection.holds_secret() => Some(connection.reveal().to_owned()),
            _ => None,
        })
        .collect();
    let lines = text.lines().zip(1..);
    let secret = |line: &str| connections.iter().any(|connection| line.contains(connection)) || looks_secret(line);
    lines.filter(|(line, _)| secret(line)).map(|(_, number)| number).collect()
}

/// Whether a line looks as if it held a secret: a private key, or a word like `password` that is given a value.
fn looks_secret(line: &str) -> bool {
    let line = line.to_ascii_lowercase();
    if line.contains("age-secret-key-") || line.contains("private key-----") {
        return true;
    }
    let placeholder = rewrite::PLACEHOLDER.to_ascii_lowercase();
    let given = |word: &str| {
        line.match_indices(word).any(|(at, _)| {
            let rest = line[at + word.len()..].trim_start_matches(|c: char| c.is_alphanumeric() || c == '_');
            let value = rest
                .trim_start_matches([' ', '"', '\''])
                .strip_prefix(['=', ':'])
                .map(|value| value.trim_start_matches([' ', '"', '\'']));
            value.is_some_and(|value| !value.is_empty() && !value.starts_with(&placeholder))
        })
    };
    ["password", "passwd", "secret", "token"].into_iter().any(given)
        // A URI with a password in front of its host.
        || line.split("://").skip(1).any(|rest| {
            let place = rest.split(['/', '?', ' ', '"', '\'']).next().unwrap_or_default();
            place.split_once('@').and_then(|(who, _)| who.split_once(':')).is_some_and(|(_, p)| p != placeholder)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> (Config, Told) {
        let config = Config::of(Some(("/w.toml".into(), text.into())), std::iter::empty(), &[]).unwrap();
        let told = left_out(text, &config);
        (config, told)
    }

    #[test]
    fn passwords_are_left_out_and_the_rest_stays() {
        let text = "# ours: the password file is elsewhere\n[repository]\nurl = \"s3://b\" # here\n\n[cluster.main]\nconnection = 'host=h password=hush user=u'\nprimary = \"postgres://u:hush@h/db\"\n";
        let (_, told) = of(text);
        assert!(!told.text.contains("hush") && told.text.starts_with("# ours: the password file is elsewhere\n"));
        let keys: Vec<&str> = told.missing.iter().map(|missing| missing.key.as_str()).collect();
        assert_eq!(keys, ["cluster.main.connection", "cluster.main.primary"]);
        assert_eq!(told.secrets, [0_usize; 0], "{}", told.text);
        let (config, again) = of(&told.text);
        assert!(config.cluster(None).unwrap().connection().unwrap_err().to_string().contains("left out"));
        assert_eq!(again.text, told.text);
    }

    #[test]
    fn what_cannot_be_left_out_is_told_by_its_line() {
        for line in [
            "connection = \"host=h password='hush\"",
            "# old: password = hush",
            "# token: hush",
            "# AGE-SECRET-KEY-1HUSH",
            "# -----BEGIN OPENSSH PRIVATE KEY-----",
            "# aws_secret_access_key=hush",
            "# postgres://u:hush@h/db",
        ] {
            assert_eq!(of(&format!("[cluster.main]\n{line}\n")).1.secrets, [2], "{line}");
        }
        for line in ["connection = \"host=h passfile=/p user=u\"", "# the password: see the safe"] {
            let expected: &[usize] = if line.starts_with('#') { &[2] } else { &[] };
            assert_eq!(of(&format!("[cluster.main]\n{line}\n")).1.secrets, expected, "{line}");
        }
    }
}
