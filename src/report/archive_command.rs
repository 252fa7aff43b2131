//! What an `archive_command` tells by its text alone: whether it is ours, whether it stores anything, and how much of it
//! may be shown.

/// How Walden's own commands are called.
const OURS: [&str; 2] = ["walden-archive", "walden wal push"];
/// Programs that answer "archived" and do nothing.
const IDLE: [&str; 3] = ["true", ":", "echo"];

/// Whether it names Walden. A script around it need not.
#[must_use]
pub fn is_ours(command: &str) -> bool {
    OURS.iter().any(|program| command.contains(program))
}

/// Whether it certainly stores nothing, though PostgreSQL takes its answer for "archived".
#[must_use]
pub fn is_idle(command: &str) -> bool {
    let command = command.trim().trim_end_matches(';').trim_end();
    let program = command.split_whitespace().next().unwrap_or_default();
    let name = program.rsplit('/').next().unwrap_or_default();
    let is_alone = !command.contains(['|', '&', ';', '>', '`', '$', '\n']);
    ["exit", "exit 0"].contains(&command) || (IDLE.contains(&name) && is_alone)
}

/// A command as it may be shown: variables that are set before it may be secrets.
#[must_use]
pub fn shown(command: &str) -> String {
    let program = OURS.iter().find_map(|program| command.find(program));
    match program {
        Some(at) => {
            let word = command[..at].rfind(char::is_whitespace).map_or(0, |blank| blank + 1);
            format!("'{}'", &command[word..])
        }
        None if command.contains('=') => "the command (not shown, for it sets variables)".to_owned(),
        None => format!("'{command}'"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_without_what_may_be_secret() {
        for (command, text) in [
            ("/bin/walden-archive --config /w.toml %p", "'/bin/walden-archive --config /w.toml %p'"),
            ("AWS_SECRET_ACCESS_KEY='hush hush' /bin/walden-archive %p", "'/bin/walden-archive %p'"),
            ("KEY=hush walden wal push %p", "'walden wal push %p'"),
            ("KEY=\"hush x\" cp %p /a", "the command (not shown, for it sets variables)"),
            ("cp %p /a/%f", "'cp %p /a/%f'"),
        ] {
            assert_eq!(shown(command), text);
        }
    }

    #[test]
    fn what_stores_nothing_is_known() {
        for command in ["/bin/true", "true", " : ", "exit 0", "true;", "/usr/bin/true %p", "echo %p"] {
            assert!(is_idle(command), "{command}");
        }
        for command in ["", "walden-archive %p", "cp %p /a/%f", "true && cp %p /a", "echo %p >> /log; cp %p /a/%f"] {
            assert!(!is_idle(command), "{command}");
        }
    }
}
