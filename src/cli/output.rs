//! Everything that is written to a person or a script: the one place that touches standard output and error.
//!
//! Standard output carries the answer: words and tables, or with `--json` one document. Everything else (logs,
//! progress, remarks, questions, errors) goes to standard error. A reader that stops reading (`| head`) is no
//! error, and must not stop the work either: what would have been written is dropped.

use std::{
    fmt::Display,
    io::{self, BufWriter, IsTerminal, Write},
    sync::{Mutex, PoisonError},
};

use serde::Serialize;

use super::{Color, Global, LogFormat};
use crate::{
    error::{Error, Result},
    report::text::Terminal,
};

/// No drawing is wider than this many columns.
const WIDEST: usize = 240;

/// Where the answer goes, and how it may look.
pub struct Output {
    /// Whether one JSON document is wanted instead of words.
    pub json: bool,
    /// Whether only the answer and errors are wanted.
    pub quiet: bool,
    /// Whether colours may be used on standard output.
    color: bool,
    stdout: Mutex<Sink>,
}

struct Sink {
    to: BufWriter<io::Stdout>,
    broken: Option<io::Error>,
}

/// Colours with a meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paint {
    /// All is well.
    Good,
    /// Look at this.
    Warning,
    /// This is broken.
    Bad,
    /// The thing that matters in a line.
    Strong,
    /// What may be overlooked.
    Faint,
}

impl Output {
    /// What the flags ask for, and what the terminal can.
    #[must_use]
    pub fn new(global: &Global) -> Self {
        let terminal = io::stdout().is_terminal();
        let color = match global.color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => terminal && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()),
        };
        let to = BufWriter::new(io::stdout());
        Self { json: global.json, quiet: global.quiet, color, stdout: Mutex::new(Sink { to, broken: None }) }
    }

    /// A line of the answer. Use [`Output::json`](Output::document) for the other form of it.
    pub fn line(&self, text: impl Display) {
        self.write(|to| writeln!(to, "{text}"));
    }

    /// Bytes of the answer as they are: a generated file.
    pub fn raw(&self, bytes: &[u8]) {
        self.write(|to| to.write_all(bytes));
    }

    /// The answer as the one JSON document that `--json` promises.
    pub fn document(&self, document: &impl Serialize) {
        self.write(|to| {
            serde_json::to_writer_pretty(&mut *to, document).map_err(io::Error::from)?;
            to.write_all(b"\n")
        });
    }

    /// A remark for a person that is no part of the answer. Dropped with `-q`.
    pub fn remark(&self, text: impl Display) {
        if !self.quiet {
            self.flush();
            super::progress::above_the_bar(|to| writeln!(to, "{text}"));
        }
    }

    /// `text` in that colour, where colours are wanted.
    #[must_use]
    pub fn paint(&self, paint: Paint, text: impl Display) -> String {
        let code = match paint {
            _ if !self.color => return text.to_string(),
            Paint::Good => "32",
            Paint::Warning => "33",
            Paint::Bad => "31",
            Paint::Strong => "1",
            Paint::Faint => "2",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    /// Asks a question that wants yes or no; anything but `y` or `yes` is no. Without a terminal nobody could
    /// answer: that is an error which names `flag` as the way out.
    pub async fn confirm(&self, question: &str, flag: &str) -> Result<bool> {
        let mut stderr = io::stderr();
        if !io::stdin().is_terminal() || !stderr.is_terminal() {
            return Err(Error::invalid("there is no terminal to ask for a confirmation")
                .hint(format!("add {flag} to go on without being asked")));
        }
        self.flush();
        let failed = |e: io::Error| Error::failed("ask for a confirmation").source(e);
        write!(stderr, "{question} [y/N] ").and_then(|()| stderr.flush()).map_err(failed)?;
        // On a thread of its own, so that Ctrl-C is heard.
        let line = tokio::task::spawn_blocking(|| io::stdin().lines().next().transpose());
        let answer = line.await.map_err(io::Error::other).flatten().map_err(failed)?.unwrap_or_default();
        Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
    }

    /// Asks for a line that is not shown while it is typed; `None` where there is no terminal to ask at.
    pub async fn ask_hidden(&self, question: &str) -> Result<Option<String>> {
        let mut stderr = io::stderr();
        if !io::stdin().is_terminal() || !stderr.is_terminal() {
            return Ok(None);
        }
        self.flush();
        let failed = |e: io::Error| Error::failed("ask for a passphrase").source(e);
        // Here and not on the other thread: Ctrl-C drops this, and the terminal is as it was.
        let hidden = Hidden::begin().map_err(failed)?;
        write!(stderr, "{question}: ").and_then(|()| stderr.flush()).map_err(failed)?;
        let line = tokio::task::spawn_blocking(|| io::stdin().lines().next().transpose());
        let answer = line.await.map_err(io::Error::other).flatten().map_err(failed)?;
        drop(hidden);
        _ = writeln!(stderr);
        Ok(Some(answer.unwrap_or_default()))
    }

    /// Whether a person looks at standard output.
    #[must_use]
    pub fn is_terminal(&self) -> bool {
        io::stdout().is_terminal()
    }

    /// What can be drawn on standard output: plain ASCII unless it is a terminal that shows more. `COLUMNS` says how
    /// wide a drawing may be where nobody else does.
    #[must_use]
    pub fn terminal(&self) -> Terminal {
        let stdout = io::stdout();
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let size = rustix::termios::tcgetwinsize(&stdout).ok().map(|size| usize::from(size.ws_col));
        let columns = set("COLUMNS").and_then(|columns| columns.parse().ok());
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set).unwrap_or_default().to_ascii_lowercase();
        Terminal {
            width: size.filter(|width| *width > 0).or(columns).unwrap_or(80).min(WIDEST),
            unicode: stdout.is_terminal() && (locale.contains("utf-8") || locale.contains("utf8")),
        }
    }

    /// Makes what was written appear now.
    pub fn flush(&self) {
        self.write(Write::flush);
    }

    /// Writes the rest and tells whether the answer arrived. A reader that went away is no error.
    pub fn finish(&self) -> Result<()> {
        self.flush();
        match self.stdout.lock().unwrap_or_else(PoisonError::into_inner).broken.take() {
            Some(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(Error::failed("write to standard output").source(error))
            }
            _ => Ok(()),
        }
    }

    fn write(&self, write: impl FnOnce(&mut BufWriter<io::Stdout>) -> io::Result<()>) {
        let mut sink = self.stdout.lock().unwrap_or_else(PoisonError::into_inner);
        if sink.broken.is_none() {
            sink.broken = write(&mut sink.to).err();
        }
    }
}

/// While it lasts, the terminal does not show what is typed.
struct Hidden(rustix::termios::Termios);

impl Hidden {
    fn begin() -> io::Result<Self> {
        use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
        let before = tcgetattr(io::stdin())?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        tcsetattr(io::stdin(), OptionalActions::Flush, &silent)?;
        Ok(Self(before))
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        // Whoever sits there can do it himself: stty echo.
        _ = rustix::termios::tcsetattr(io::stdin(), rustix::termios::OptionalActions::Now, &self.0);
    }
}

impl std::fmt::Debug for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Output").field("json", &self.json).field("quiet", &self.quiet).finish_non_exhaustive()
    }
}

/// Tells an error on standard error: as words, or as one line of JSON where a script listens.
pub fn tell_error(error: &Error, as_json: bool) {
    let text = if as_json {
        let kind = format!("{:?}", error.kind()).to_lowercase();
        serde_json::json!({ "error": { "kind": kind, "message": error.to_string(), "hint": error.hint_text() } })
            .to_string()
    } else {
        match error.hint_text() {
            Some(hint) => format!("walden: {error}\nhint: {hint}"),
            None => format!("walden: {error}"),
        }
    };
    // Nothing can be done when standard error is gone; the exit code still tells.
    _ = writeln!(io::stderr(), "{text}");
}

/// Logs go to standard error: `-v` and `-q` set how much, `WALDEN_LOG` (`walden=debug,hyper=info`) overrides both.
pub fn start_logging(global: &Global) {
    let level = match (global.quiet, global.verbose) {
        (true, _) => "error",
        (_, 0) => "warn",
        (_, 1) => "info",
        (_, 2) => "debug",
        (_, _) => "trace",
    };
    // Other crates may write what they send, secrets included: they stay at warnings until asked for by name.
    // The SDK warns of each place where it found no credentials; the error that follows says it once.
    let usual = || tracing_subscriber::EnvFilter::new(format!("warn,aws_config=error,walden={level}"));
    let wish = std::env::var("WALDEN_LOG").ok().filter(|wish| !wish.is_empty());
    let wished = wish.as_ref().map(tracing_subscriber::EnvFilter::try_new).transpose();
    let misread = wished.is_err();
    let filter = wished.ok().flatten().unwrap_or_else(usual);
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| super::progress::AboveTheBar);
    // A second start (in tests) leaves the first in place.
    _ = match global.log_format {
        LogFormat::Json => tracing::subscriber::set_global_default(logs.json().finish()),
        LogFormat::Text => {
            let ansi = match global.color {
                Color::Always => true,
                Color::Never => false,
                Color::Auto => io::stderr().is_terminal(),
            };
            tracing::subscriber::set_global_default(logs.with_ansi(ansi).with_target(false).finish())
        }
    };
    if misread {
        tracing::warn!("WALDEN_LOG is not understood; write it like walden=debug");
    }
}
