//! A connection string that shows itself without its secrets.

use std::fmt;

/// A libpq connection string or URI. Shown (and debugged) with every secret hidden.
#[derive(Clone, PartialEq, Eq)]
pub struct Connection(String);

/// What stands in place of a secret.
const HIDDEN: &str = "********";

impl Connection {
    /// That text.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The whole text, secrets included: for whoever connects, never for a message.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// The text with `instead` in place of each secret; `None` when it cannot be understood, and may hold one anywhere.
    #[must_use]
    pub fn with_secrets_as(&self, instead: &str) -> Option<String> {
        match self.0.split_once("://") {
            Some((scheme @ ("postgres" | "postgresql"), rest)) => in_uri(scheme, rest, instead),
            _ => in_pairs(&self.0, instead),
        }
    }

    /// Whether there is a secret in it, as far as can be told.
    #[must_use]
    pub fn holds_secret(&self) -> bool {
        self.with_secrets_as("\u{1}").is_none_or(|text| text.contains('\u{1}'))
    }
}

impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.with_secrets_as(HIDDEN).as_deref().unwrap_or(HIDDEN))
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Connection({self})")
    }
}

fn is_secret(parameter: &str) -> bool {
    let parameter = parameter.to_ascii_lowercase();
    ["password", "secret", "token"].iter().any(|word| parameter.contains(word))
}

/// `user:password@host/db?sslpassword=x`: the password begins at the first colon before the last `@`, so that an
/// unescaped `@` in it is hidden too. With an `@` behind a `?` nobody can tell where a password ends.
fn in_uri(scheme: &str, rest: &str, instead: &str) -> Option<String> {
    let (place, query) = rest.split_once('?').map_or((rest, None), |(place, query)| (place, Some(query)));
    if query.is_some_and(|query| query.contains('@')) {
        return None;
    }
    let place = match place.rsplit_once('@') {
        Some((who, host)) => match who.split_once(':') {
            Some((user, _)) => format!("{user}:{instead}@{host}"),
            None => place.into(),
        },
        None => place.into(),
    };
    let query = query.map(|query| {
        let pairs = query.split('&').map(|pair| match pair.split_once('=') {
            Some((name, _)) if is_secret(name) || name.contains('%') => format!("{name}={instead}"),
            _ => pair.into(),
        });
        format!("?{}", pairs.collect::<Vec<_>>().join("&"))
    });
    Some(format!("{scheme}://{place}{}", query.unwrap_or_default()))
}

/// `name = value` pairs as in libpq's conninfo_parse (fe-connect.c): a value ends at a blank, or stands in single
/// quotes; a backslash takes the next character as it is. `None` when the text is not of that form.
fn in_pairs(text: &str, instead: &str) -> Option<String> {
    let mut shown: Vec<String> = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=')?;
        let name = name.trim_end();
        if name.is_empty() || name.contains(char::is_whitespace) {
            return None;
        }
        let after = after.trim_start();
        let length = value_length(after)?;
        let value = if is_secret(name) { instead } else { &after[..length] };
        shown.push(format!("{name}={value}"));
        rest = after[length..].trim_start();
    }
    Some(shown.join(" "))
}

fn value_length(text: &str) -> Option<usize> {
    let quoted = text.starts_with('\'');
    let mut characters = text.char_indices().skip(usize::from(quoted));
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => _ = characters.next(),
            '\'' if quoted => return Some(at + 1),
            c if !quoted && c.is_whitespace() => return Some(at),
            _ => {}
        }
    }
    (!quoted).then_some(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_hidden_wherever_it_stands() {
        for (text, shown) in [
            ("host=/tmp dbname=postgres", "host=/tmp dbname=postgres"),
            ("host=h password=hush user=u", "host=h password=******** user=u"),
            ("password = 'hu sh\\' x' user=u", "password=******** user=u"),
            ("PASSWORD=hu\\ sh sslpassword=hush", "PASSWORD=******** sslpassword=********"),
            ("postgresql://u:hush@h:5432/db?sslmode=require", "postgresql://u:********@h:5432/db?sslmode=require"),
            ("postgres://u:hu@sh@h/db", "postgres://u:********@h/db"),
            ("postgres://u:hush/x@h/db", "postgres://u:********@h/db"),
            ("postgres://u:hush?x@h/db", "********"),
            ("postgres://u:x@hush?x@h/db", "********"),
            ("postgres://h/db?password=hush&options=a@b", "********"),
            ("postgres://h/db?user=u&password=hush", "postgres://h/db?user=u&password=********"),
            ("host=h password='hush", "********"),
            ("hush", "********"),
        ] {
            let connection = Connection::new(text);
            assert_eq!(connection.to_string(), shown);
            assert!(!format!("{connection:?}").contains("hush"), "{text}");
            assert_eq!(connection.reveal(), text);
            assert_eq!(connection.holds_secret(), text != shown, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_password_is_hidden_in_any_form(password in "[A-Z@:/?&#=% '\\\\]{4,12}") {
            let quoted = password.replace('\\', r"\\").replace('\'', r"\'");
            let escaped: String = password.bytes().map(|b| format!("%{b:02X}")).collect();
            for text in [
                format!("host=h password='{quoted}' user=u"),
                format!("password = '{quoted}'"),
                format!("postgres://u:{escaped}@h/db"),
                format!("postgres://h/db?sslpassword={escaped}&user=u"),
                format!("postgres://u:{password}@h/db"),
            ] {
                let shown = Connection::new(&text).to_string();
                proptest::prop_assert!(!shown.contains(&password) && !shown.contains(&escaped), "{text} {shown}");
            }
        }
    }
}
