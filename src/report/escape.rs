//! Names that came from outside, made harmless for where they are shown.

use std::fmt::Write as _;

/// For a terminal: control characters, which could move its cursor or change its colours, become `?`.
#[must_use]
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// For XML and HTML, text and attributes alike. Characters that XML forbids become `?`.
#[must_use]
pub fn xml(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\n' | '\t' => escaped.push(' '),
            c if c.is_control() || matches!(c, '\u{FFFE}' | '\u{FFFF}') => escaped.push('?'),
            // Marks that turn the direction of the text around them would let a name disguise what follows it.
            '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}' => _ = write!(escaped, "&#{};", '\u{FFFD}' as u32),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_stay_names() {
        assert_eq!(plain("a\x1b[31mb\r\n"), "a?[31mb??");
        assert_eq!(xml("</title><script>alert('1&2\")"), "&lt;/title&gt;&lt;script&gt;alert(&#39;1&amp;2&quot;)");
        assert_eq!(xml("a\u{0}b\u{202E}c"), "a?b&#65533;c");
    }
}
