//! How progress looks: a bar on a terminal, a line every ten seconds elsewhere (cron mails it, systemd keeps it),
//! a line of JSON every second with `--json`, nothing with `-q`. Always on standard error.

use std::{
    fmt,
    io::{self, IsTerminal, Write},
    sync::{
        Arc, LazyLock, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use indicatif::{MultiProgress, ProgressBar, ProgressState, ProgressStyle};

use super::{events::Events, output::Output};
use crate::{
    human,
    progress::{Progress, Unwatched},
};

/// How often a line is printed where no bar can be drawn.
const EVERY: Duration = Duration::from_secs(10);

/// The terminal's last line belongs to the bar; whoever writes to standard error in the meantime goes through
/// [`above_the_bar`]. Logs are written from anywhere, hence one for the process.
static SCREEN: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Writes to standard error without tearing the bar. A failure is of no consequence: nobody reads there.
pub fn above_the_bar(write: impl FnOnce(&mut io::StderrLock<'_>) -> io::Result<()>) {
    SCREEN.suspend(|| _ = write(&mut io::stderr().lock()));
}

/// [`above_the_bar`] for the logs.
#[derive(Clone, Copy, Debug)]
pub struct AboveTheBar;

impl Write for AboveTheBar {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        above_the_bar(|to| to.write_all(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The progress that suits the flags and the terminal.
#[must_use]
pub fn for_output(output: &Output) -> Arc<dyn Progress> {
    if output.quiet {
        Arc::new(Unwatched)
    } else if output.json {
        Arc::new(Events::default())
    } else if io::stderr().is_terminal() {
        Arc::new(Bar(SCREEN.add(ProgressBar::hidden())))
    } else {
        Arc::new(Lines::default())
    }
}

struct Bar(ProgressBar);

impl fmt::Debug for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bar")
    }
}

impl Progress for Bar {
    fn start(&self, label: &str, total: Option<u64>) {
        let template = match total {
            Some(_) => "{prefix} {bar:28} {percent:>3}%  {size} of {whole}  {speed}  {eta} left  {wide_msg}",
            None => "{prefix} {spinner} {size}  {elapsed}  {wide_msg}",
        };
        // The templates are constants; were one wrong, the bar would look plain.
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bytes a second, rounded")]
        let style = style
            .with_key("size", |state: &ProgressState, to: &mut dyn fmt::Write| {
                _ = to.write_str(&human::size(state.pos()))
            })
            .with_key("whole", |state: &ProgressState, to: &mut dyn fmt::Write| {
                _ = to.write_str(&human::size(state.len().unwrap_or(0)));
            })
            .with_key("speed", |state: &ProgressState, to: &mut dyn fmt::Write| {
                _ = write!(to, "{}/s", human::size(state.per_sec() as u64));
            });
        self.0.reset();
        self.0.set_length(total.unwrap_or(0));
        self.0.set_style(style.progress_chars("=> "));
        self.0.set_prefix(label.to_owned());
        self.0.set_message("");
        self.0.enable_steady_tick(Duration::from_millis(120));
    }

    fn advance(&self, bytes: u64) {
        self.0.inc(bytes);
    }

    fn message(&self, text: &str) {
        self.0.set_message(text.to_owned());
    }

    fn finish(&self) {
        self.0.finish_and_clear();
    }
}

/// How long the rest will take when it goes on as it went so far; not told of the first second.
pub fn time_left(done: u64, total: u64, took: Duration) -> Option<Duration> {
    let known = done > 0 && took >= Duration::from_secs(1);
    known.then(|| took.mul_f64(total.saturating_sub(done) as f64 / done as f64))
}

/// Plain lines: one at the start of a stretch, one every [`EVERY`], one at its end.
#[derive(Debug, Default)]
struct Lines {
    done: AtomicU64,
    stretch: Mutex<Option<Stretch>>,
}

#[derive(Debug)]
struct Stretch {
    label: String,
    total: Option<u64>,
    began: Instant,
    told: Instant,
}

impl Stretch {
    fn text(&self, done: u64) -> String {
        let Self { label, total, began, .. } = self;
        let took = began.elapsed();
        if done == 0 && total.is_none() {
            return format!("{label}: {}", human::duration(took));
        }
        let speed = match took.as_secs() {
            0 => String::new(),
            seconds => format!(", {}/s", human::size(done / seconds)),
        };
        let left = total.and_then(|total| time_left(done, total, took)).filter(|left| !left.is_zero());
        let left = left.map(|left| format!(", {} left", human::duration(left))).unwrap_or_default();
        let of = total.map(|total| format!(" of {}", human::size(total))).unwrap_or_default();
        format!("{label}: {}{of} in {}{speed}{left}", human::size(done), human::duration(took))
    }
}

impl Progress for Lines {
    fn start(&self, label: &str, total: Option<u64>) {
        self.finish();
        self.done.store(0, Ordering::Relaxed);
        let size = total.map(|total| format!(", {}", human::size(total))).unwrap_or_default();
        above_the_bar(|to| writeln!(to, "{label}{size}"));
        let now = Instant::now();
        *self.stretch.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Stretch { label: label.to_owned(), total, began: now, told: now });
    }

    fn advance(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        // Whoever finds it locked need not wait: somebody else is just looking at the time.
        let Ok(mut stretch) = self.stretch.try_lock() else { return };
        if let Some(stretch) = stretch.as_mut().filter(|s| s.told.elapsed() >= EVERY) {
            stretch.told = Instant::now();
            above_the_bar(|to| writeln!(to, "{}", stretch.text(done)));
        }
    }

    fn message(&self, text: &str) {
        tracing::debug!("{text}");
    }

    fn finish(&self) {
        let stretch = self.stretch.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(stretch) = stretch {
            above_the_bar(|to| writeln!(to, "{}", stretch.text(self.done.load(Ordering::Relaxed))));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_how_far_it_is() {
        let now = Instant::now();
        let stretch = Stretch { label: "backup".into(), total: Some(1 << 30), began: now, told: now };
        assert!(stretch.text(16 << 20).starts_with("backup: 16 MB of 1 GB in "), "{}", stretch.text(16 << 20));
    }

    #[test]
    fn the_rest_goes_on_as_the_beginning() {
        let seconds = Duration::from_secs;
        assert_eq!(time_left(25, 100, seconds(10)), Some(seconds(30)));
        assert_eq!(time_left(100, 100, seconds(10)), Some(seconds(0)));
        // More than was thought.
        assert_eq!(time_left(120, 100, seconds(10)), Some(seconds(0)));
        assert_eq!(time_left(0, 100, seconds(10)), None);
        assert_eq!(time_left(25, 100, Duration::from_millis(10)), None);
    }

    #[test]
    fn every_template_is_well_formed() {
        let bar = Bar(ProgressBar::hidden());
        bar.start("backup", Some(10));
        bar.advance(4);
        assert_eq!(bar.0.position(), 4);
        bar.start("wait", None);
        assert_eq!(bar.0.position(), 0);
        bar.finish();
    }
}
