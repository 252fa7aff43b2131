//! Timelines drawn for a terminal: a pure function of what was gathered, the time, and the terminal.

use chrono::{DateTime, Utc};

use super::{
    escape::plain,
    scale::Scale,
    scene::{Lane, Scene, SpanKind},
    words,
};
use crate::plan::window::{Timeline, Timelines};

/// What a piece of a line means; whoever prints it chooses the colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ink {
    /// Nothing in particular.
    #[default]
    Plain,
    /// All is well.
    Good,
    /// Look at this.
    Warning,
    /// This is broken.
    Bad,
    /// What matters most.
    Strong,
    /// What may be overlooked.
    Faint,
}

/// A line: pieces of text, each with its meaning.
pub type Line = Vec<(Ink, String)>;

/// What the terminal can show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terminal {
    /// Its width in columns.
    pub width: usize,
    /// Whether it shows more than ASCII.
    pub unicode: bool,
}

struct Glyphs {
    recoverable: char,
    wal: char,
    gap: char,
    backup: char,
    unusable: char,
    fork: char,
    fork_faint: char,
    down: char,
    corner: char,
    dots: char,
    axis: char,
    tick: char,
    short: char,
}

const UNICODE: Glyphs = Glyphs {
    recoverable: '━',
    wal: '─',
    gap: '╳',
    backup: '◆',
    unusable: '◇',
    fork: '┯',
    fork_faint: '┬',
    down: '│',
    corner: '╰',
    dots: '┄',
    axis: '─',
    tick: '┴',
    short: '╌',
};

const ASCII: Glyphs = Glyphs {
    recoverable: '=',
    wal: '-',
    gap: 'x',
    backup: '#',
    unusable: 'o',
    fork: '+',
    fork_faint: '+',
    down: '|',
    corner: '`',
    dots: '.',
    axis: '-',
    tick: '+',
    short: '~',
};

/// The least columns that a drawing is given.
const NARROWEST: usize = 48;

/// Draws the timelines of a cluster's systems, and tells below the drawing what is on it.
#[must_use]
pub fn draw(systems: &[Timelines], now: DateTime<Utc>, terminal: Terminal) -> Vec<Line> {
    let mut lines = Vec::new();
    if let Some(scene) = Scene::of(systems, now) {
        Drawing::new(&scene, terminal).draw(systems, &mut lines);
        lines.push(Line::new());
    }
    for (number, timelines) in systems.iter().enumerate() {
        if systems.len() > 1 {
            lines.push(title(timelines));
        }
        if timelines.timelines.is_empty() {
            lines.push(vec![(Ink::Warning, "nothing is archived yet".into())]);
        }
        let several = systems.len() > 1 || timelines.timelines.len() > 1;
        let mut order: Vec<&Timeline> = timelines.timelines.iter().rev().collect();
        order.sort_by_key(|t| !t.live);
        for timeline in order {
            let live = several && timeline.live && number + 1 == systems.len();
            tell(timelines, timeline, live, terminal.width.max(NARROWEST), &mut lines);
        }
    }
    lines
}

fn title(timelines: &Timelines) -> Line {
    let system = &timelines.system;
    vec![(Ink::Strong, format!("system {} (PostgreSQL {})", system.incarnation, system.postgres))]
}

/// A timeline in words, wrapped to the width.
fn tell(timelines: &Timelines, timeline: &Timeline, live: bool, width: usize, lines: &mut Vec<Line>) {
    let ink = if live { Ink::Strong } else { Ink::Plain };
    let live = if live { ", live" } else { "" };
    let fork = timeline.fork.as_ref().map(|fork| format!(", {}", words::fork(fork))).unwrap_or_default();
    let head = format!("timeline {}{live}{fork}", timeline.timeline);
    wrap("", "  ", &head, ink, width, lines);
    if let Some(lost) = &timeline.lost_history {
        wrap("  ", "    ", &format!("{lost}: nothing on it can be recovered"), Ink::Bad, width, lines);
    }
    for window in &timeline.windows {
        let from = window.from.time.map_or_else(String::new, crate::human::time);
        let to = window.to.time.map_or_else(|| "nothing was committed since".to_owned(), crate::human::time);
        lines.push(vec![(Ink::Good, "  from ".into()), (Ink::Plain, format!("{from:<23}  {}", window.from.lsn))]);
        lines.push(vec![(Ink::Good, "    to ".into()), (Ink::Plain, format!("{to:<23}  {}", window.to.lsn))]);
        if let Some(end) = words::end(&window.end).filter(|_| !is_gap(timelines, timeline, &window.end)) {
            wrap("  ends ", "       ", &plain(&end), Ink::Bad, width, lines);
        }
    }
    if timeline.windows.is_empty() && timeline.lost_history.is_none() {
        wrap("  ", "    ", &words::recoverable(timeline, DateTime::UNIX_EPOCH), Ink::Warning, width, lines);
    }
    for gap in &timeline.gaps {
        wrap("   gap ", "       ", &words::missing(gap), Ink::Bad, width, lines);
    }
    for backup in &timeline.backups {
        if let Some(broken) = &backup.broken {
            let text = format!("backup {} cannot be used: {}", backup.id, plain(&broken.why));
            wrap("  ", "    ", &text, Ink::Bad, width, lines);
        }
        if backup.bad_pages > 0 {
            let text = format!("backup {} has {} damaged pages", backup.id, backup.bad_pages);
            wrap("  ", "    ", &text, Ink::Warning, width, lines);
        }
    }
}

/// Whether the end of a window is told as a gap anyway.
fn is_gap(timelines: &Timelines, timeline: &Timeline, end: &crate::plan::window::WindowEnd) -> bool {
    let crate::plan::window::WindowEnd::Missing { segment, .. } = end else { return false };
    let on = timelines.get(segment.timeline).unwrap_or(timeline);
    on.gaps.iter().any(|gap| (gap.first..=gap.last).contains(segment))
}

/// Breaks a text at blanks; `first` stands before its first line, `rest` before the others.
fn wrap(first: &str, rest: &str, text: &str, ink: Ink, width: usize, lines: &mut Vec<Line>) {
    let (mut lead, mut line) = (first, String::new());
    for word in text.split(' ') {
        let long = lead.chars().count() + line.chars().count() + 1 + word.chars().count() > width;
        if long && !line.is_empty() {
            lines.push(vec![(Ink::Plain, lead.to_owned()), (ink, std::mem::take(&mut line))]);
            lead = rest;
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines.push(vec![(Ink::Plain, lead.to_owned()), (ink, line)]);
}

struct Drawing<'a> {
    scene: &'a Scene,
    glyphs: &'static Glyphs,
    gutter: usize,
    columns: usize,
    scale: Scale,
}

type Row = Vec<(Ink, char)>;

impl<'a> Drawing<'a> {
    fn new(scene: &'a Scene, terminal: Terminal) -> Self {
        let gutter = scene.lanes.iter().map(|l| name(l).len()).max().unwrap_or(0).max(3) + 2;
        let columns = terminal.width.max(NARROWEST) - gutter;
        #[expect(clippy::cast_precision_loss, reason = "a terminal has few columns")]
        let scale = Scale::new(scene.from, scene.last, scene.now, (columns - 1) as f64);
        Self { scene, glyphs: if terminal.unicode { &UNICODE } else { &ASCII }, gutter, columns, scale }
    }

    fn column(&self, time: DateTime<Utc>) -> usize {
        rounded(self.scale.x(time)).min(self.columns - 1)
    }

    fn draw(&self, systems: &[Timelines], lines: &mut Vec<Line>) {
        self.axis(lines);
        let mut system = None;
        let rows = self.rows();
        for (lane, row) in self.scene.lanes.iter().zip(rows) {
            if systems.len() > 1 && system != Some(lane.system) {
                lines.extend(systems.get(lane.system).map(title));
            }
            system = Some(lane.system);
            let ink = if lane.live { Ink::Strong } else { Ink::Plain };
            let mut line = vec![(ink, format!("{:<1$}", name(lane), self.gutter))];
            line.extend(pieces(&row));
            lines.push(line);
        }
        self.legend(lines);
    }

    /// The labels, and below them the axis.
    fn axis(&self, lines: &mut Vec<Line>) {
        let mut labels: Row = vec![(Ink::Plain, ' '); self.columns];
        let mut axis: Row = vec![(Ink::Faint, self.glyphs.axis); self.columns];
        if let Some(knee) = self.scale.shortened() {
            axis.iter_mut().skip(rounded(knee) + 1).for_each(|cell| cell.1 = self.glyphs.short);
        }
        let now = "now";
        let last = self.columns - now.len();
        let mut free = 0;
        for tick in self.scale.ticks(13.0) {
            let at = rounded(tick.x);
            if let Some(cell) = axis.get_mut(at) {
                cell.1 = self.glyphs.tick;
            }
            if at >= free && at + tick.label.len() < last {
                write(&mut labels, at, &tick.label, Ink::Plain);
                free = at + tick.label.len() + 1;
            }
        }
        write(&mut labels, last, now, Ink::Strong);
        if let Some(cell) = axis.last_mut() {
            *cell = (Ink::Strong, self.glyphs.tick);
        }
        for (head, row) in [("UTC", labels), ("", axis)] {
            let mut line = vec![(Ink::Plain, format!("{head:<0$}", self.gutter))];
            line.extend(pieces(&row));
            lines.push(line);
        }
    }

    fn rows(&self) -> Vec<Row> {
        let g = self.glyphs;
        let mut rows = vec![vec![(Ink::Plain, ' '); self.columns]; self.scene.lanes.len()];
        for (lane, row) in self.scene.lanes.iter().zip(&mut rows) {
            for span in &lane.spans {
                let (ink, glyph) = match span.kind {
                    SpanKind::Wal => (Ink::Warning, g.wal),
                    SpanKind::Recoverable => (Ink::Good, g.recoverable),
                    SpanKind::Gap => (Ink::Bad, g.gap),
                };
                let (from, to) = (self.column(span.from), self.column(span.to));
                // The ends of a gap are there; between neighbours at least one column shows it.
                let (from, to) =
                    if span.kind == SpanKind::Gap && to - from > 2 { (from + 1, to - 1) } else { (from, to) };
                row[from..=to].fill((ink, glyph));
            }
            for mark in &lane.backups {
                let at = self.column(mark.at);
                let hides = row[at].1 == g.backup && !mark.usable;
                // Of a gap something must stay.
                let beside =
                    [at.wrapping_sub(1), at + 1].iter().any(|n| row.get(*n).is_some_and(|cell| cell.1 == g.gap));
                if (row[at].1 != g.gap || beside) && !hides {
                    row[at] = match (mark.usable, mark.damaged) {
                        (true, false) => (Ink::Strong, g.backup),
                        (true, true) => (Ink::Warning, g.backup),
                        (false, _) => (Ink::Bad, g.unusable),
                    };
                }
            }
        }
        for (index, lane) in self.scene.lanes.iter().enumerate() {
            let Some(birth) = &lane.birth else { continue };
            let (at, begins) = (self.column(birth.left).min(self.columns - 2), self.column(birth.begins));
            for (number, row) in rows.iter_mut().enumerate().take(index).skip(birth.parent) {
                let cell = &mut row[at];
                cell.1 = match cell.1 {
                    c if number > birth.parent => {
                        if c == ' ' {
                            g.down
                        } else {
                            c
                        }
                    }
                    c if c == g.recoverable => g.fork,
                    c if c == g.wal || c == ' ' || c == g.dots => g.fork_faint,
                    c => c,
                };
            }
            let row = &mut rows[index];
            let own = row.get(at + 1..).and_then(|rest| rest.iter().position(|cell| cell.1 != ' '));
            let until = own.map_or(begins.max(at + 1), |own| at + 1 + own);
            row[at] = (Ink::Plain, g.corner);
            row[at + 1..until.max(at + 1).min(self.columns)].fill((Ink::Faint, g.dots));
            // A branch that is as young as its fork keeps a column of its own.
            if own.is_none() && row[at + 1].1 == ' ' {
                row[at + 1] = (Ink::Faint, g.dots);
            }
        }
        rows
    }

    fn legend(&self, lines: &mut Vec<Line>) {
        let g = self.glyphs;
        let marks = || self.scene.lanes.iter().flat_map(|l| &l.backups);
        let mut legend = vec![(Ink::Strong, format!("{} backup", g.backup))];
        if marks().any(|m| !m.usable) {
            legend.push((Ink::Bad, format!("{} unusable", g.unusable)));
        }
        if self.scene.shows(SpanKind::Recoverable) {
            legend.push((Ink::Good, format!("{0}{0} recoverable", g.recoverable)));
        }
        if self.scene.lanes.iter().any(|l| {
            let covered = |s: &super::scene::Span| {
                l.spans.iter().any(|o| o.kind == SpanKind::Recoverable && o.from <= s.from && o.to >= s.to)
            };
            l.spans.iter().any(|s| s.kind == SpanKind::Wal && !covered(s))
        }) {
            legend.push((Ink::Warning, format!("{0}{0} WAL without a backup", g.wal)));
        }
        if self.scene.shows(SpanKind::Gap) {
            legend.push((Ink::Bad, format!("{} missing", g.gap)));
        }
        if self.scene.lanes.iter().any(|l| l.birth.is_some()) {
            legend.push((Ink::Faint, format!("{}{} fork", g.corner, g.dots)));
        }
        let mut line = Line::new();
        let mut free = 0;
        for (ink, item) in legend {
            let length = item.chars().count();
            if free < length {
                lines.extend((!line.is_empty()).then(|| std::mem::take(&mut line)));
                line.push((Ink::Plain, " ".repeat(self.gutter)));
                free = self.columns;
            } else {
                line.push((Ink::Plain, "  ".into()));
            }
            free = free.saturating_sub(length + 2);
            line.push((ink, item));
        }
        lines.push(line);
    }
}

fn name(lane: &Lane) -> String {
    format!("{:>3}{}", lane.timeline.get(), if lane.live { " live" } else { "" })
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to the width of a terminal")]
fn rounded(x: f64) -> usize {
    x.round().max(0.0) as usize
}

fn write(row: &mut Row, at: usize, text: &str, ink: Ink) {
    for (cell, c) in row.iter_mut().skip(at).zip(text.chars()) {
        *cell = (ink, c);
    }
}

/// Neighbours of the same ink together, blanks at the end left out.
fn pieces(row: &Row) -> Line {
    let length = row.iter().rposition(|(_, c)| *c != ' ').map_or(0, |last| last + 1);
    let mut line = Line::new();
    for (ink, c) in &row[..length] {
        match line.last_mut().filter(|(last, _)| last == ink) {
            Some((_, text)) => text.push(*c),
            None => line.push((*ink, c.to_string())),
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::trees::{self, at};

    fn drawn(systems: &[Timelines], now: &str, width: usize, unicode: bool) -> String {
        let line = |line: &Line| line.iter().map(|(_, text)| text.as_str()).collect::<String>().trim_end().to_owned();
        draw(systems, at(now), Terminal { width, unicode }).iter().map(|l| line(l) + "\n").collect()
    }

    #[test]
    fn drawings_look_as_they_did() {
        for (tree, now, width, unicode, expected) in [
            (trees::single(), "21 09:58:14", 60, true, include_str!("drawings/single.txt")),
            (trees::branch(), "21 10:05", 100, true, include_str!("drawings/branch.txt")),
            (trees::branches(), "21 12:00", 80, true, include_str!("drawings/branches.txt")),
            (trees::gap(), "21 10:05", 60, true, include_str!("drawings/gap.txt")),
            (trees::unusable(), "21 03:00", 80, false, include_str!("drawings/unusable.txt")),
            (trees::empty(), "21 03:00", 80, true, include_str!("drawings/empty.txt")),
            (trees::upgraded(), "23 16:00", 80, true, include_str!("drawings/upgraded.txt")),
        ] {
            let drawn = drawn(&tree, now, width, unicode);
            assert_eq!(drawn, expected, "{drawn}\ninstead of\n{expected}");
        }
    }

    #[test]
    fn a_drawing_fits_and_shows_nothing_that_moves_the_cursor() {
        for tree in [trees::branches(), trees::gap(), trees::unusable(), trees::upgraded()] {
            for width in [48, 60, 80, 120, 200] {
                for unicode in [true, false] {
                    let drawn = drawn(&tree, "23 16:00", width, unicode);
                    let widest = drawn.lines().map(|line| line.chars().count()).max();
                    assert!(widest <= Some(width), "{width}:\n{drawn}");
                    assert!(drawn.chars().all(|c| c == '\n' || !c.is_control()));
                    assert!(unicode || drawn.is_ascii(), "{drawn}");
                }
            }
        }
    }
}
