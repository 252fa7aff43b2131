//! Timelines as a page: the drawing, and tables of what is on it. Self-contained: no scripts, no network.

use std::fmt::{Display, Write as _};

use chrono::{DateTime, Utc};

use super::{escape::xml, svg, words};
use crate::{
    human,
    plan::window::{BackupMark, Timeline, Timelines},
};

/// What a page is made of.
#[derive(Clone, Copy, Debug)]
pub struct Page<'a> {
    /// The cluster.
    pub cluster: &'a str,
    /// Where it is archived.
    pub repository: &'a str,
    /// Its systems, the newest last.
    pub systems: &'a [Timelines],
    /// When the page is made.
    pub now: DateTime<Utc>,
}

const STYLE: &str = r#"
:root { color-scheme: light dark; }
* { box-sizing: border-box; }
body { margin: 0; background: #f4f6f9; color: #1b2333; font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "DejaVu Sans", sans-serif; }
main { max-width: 1400px; margin: 0 auto; padding: 28px 24px 48px; }
.sheet { background: #ffffff; border: 1px solid #e4e7ec; border-radius: 14px; overflow-x: auto; }
.sheet svg { display: block; width: 100%; min-width: 760px; height: auto; }
h1 { font-size: 20px; font-weight: 650; margin: 40px 4px 4px; }
h2 { font-size: 15px; font-weight: 650; margin: 28px 4px 10px; }
p { margin: 4px; color: #667085; }
p + .sheet, .sheet + .sheet { margin-top: 12px; }
table { width: 100%; border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th { text-align: left; font-size: 12px; font-weight: 600; color: #667085; padding: 10px 16px; border-bottom: 1px solid #e4e7ec; white-space: nowrap; }
td { padding: 9px 16px; border-bottom: 1px solid #f0f2f5; vertical-align: top; }
tr:last-child td { border-bottom: 0; }
td.number, th.number { text-align: right; }
code { font: 13px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; white-space: nowrap; }
.bad { color: #b3261e; }
.live { display: inline-block; margin-left: 8px; padding: 0 9px; border-radius: 9px; background: #0b7a75; color: #ffffff; font-size: 12px; font-weight: 600; }
footer { margin: 32px 4px 0; font-size: 13px; color: #667085; }
@media (prefers-color-scheme: dark) {
body { background: #0b0e14; color: #e6e9f0; }
.sheet { background: #11151d; border-color: #222936; }
p, th, footer { color: #8b95a9; }
th { border-color: #222936; }
td { border-color: #1a202b; }
.bad { color: #ff8a80; }
.live { background: #2dd4bf; color: #06231f; }
}
@media print {
@page { size: landscape; margin: 12mm; }
body, .sheet { background: #ffffff; color: #000000; }
main { max-width: none; padding: 0; }
.sheet { border-color: #cccccc; break-inside: avoid; }
h2 { break-after: avoid; }
}
"#;

/// The page.
#[must_use]
pub fn page(page: &Page<'_>) -> String {
    let Page { cluster, repository, systems, now } = page;
    let mut html = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n<title>{} · Walden</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n<div class=\"sheet\">\n{}</div>\n",
        xml(cluster),
        svg::draw(systems, *now, cluster),
    );
    for timelines in systems.iter().rev() {
        system(timelines, systems.len() > 1, *now, &mut html);
    }
    put(
        &mut html,
        format_args!(
            "<footer>cluster {} in {} at {}, by walden timeline {}</footer>\n</main>\n</body>\n</html>",
            xml(cluster),
            xml(repository),
            human::time(*now),
            env!("CARGO_PKG_VERSION")
        ),
    );
    html
}

fn put(html: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    _ = html.write_fmt(line);
    html.push('\n');
}

fn system(timelines: &Timelines, several: bool, now: DateTime<Utc>, html: &mut String) {
    let system = &timelines.system;
    if several {
        put(html, format_args!("<h1>System {} · PostgreSQL {}</h1>", system.incarnation, system.postgres));
    }
    let mut order: Vec<&Timeline> = timelines.timelines.iter().rev().collect();
    order.sort_by_key(|t| !t.live);
    for timeline in order {
        let live = if timeline.live { "<span class=\"live\">live</span>" } else { "" };
        put(html, format_args!("<h2>Timeline {}{live}</h2>", timeline.timeline));
        if let Some(fork) = &timeline.fork {
            put(html, format_args!("<p>{}</p>", xml(&words::fork(fork))));
        }
        put(html, format_args!("<p>{}</p>", xml(&words::recoverable(timeline, now))));
        windows(timeline, html);
        gaps(timeline, html);
    }
    backups(&timelines.backups(), html);
}

fn windows(timeline: &Timeline, html: &mut String) {
    let rows: Vec<Vec<Cell>> = timeline
        .windows
        .iter()
        .map(|w| {
            let to = w.to.time.map_or_else(|| "nothing was committed since".into(), human::time);
            vec![
                text(w.from.time.map_or_else(String::new, human::time)),
                text(to),
                code(w.from.lsn),
                code(w.to.lsn),
                number(w.segments),
                text(words::end(&w.end).unwrap_or_else(|| "the archive goes no further".into())),
            ]
        })
        .collect();
    table("Windows", &["from", "to", "from LSN", "to LSN", "#segments", "ends because"], &rows, html);
}

fn gaps(timeline: &Timeline, html: &mut String) {
    let time = |time: Option<DateTime<Utc>>| text(time.map_or_else(|| "unknown".into(), human::time));
    let rows: Vec<Vec<Cell>> = timeline
        .gaps
        .iter()
        .map(|g| vec![code(g.first), code(g.last), number(g.segments), time(g.from.time), time(g.to.time)])
        .collect();
    table("Missing segments", &["first missing", "last missing", "#segments", "after", "before"], &rows, html);
}

fn backups(backups: &[&BackupMark], html: &mut String) {
    if !backups.is_empty() {
        put(html, format_args!("<h2>Backups</h2>"));
    }
    let rows: Vec<Vec<Cell>> = backups
        .iter()
        .map(|b| {
            let state = match (&b.broken, b.bad_pages) {
                (Some(broken), _) => bad(format!("cannot be used: {}", broken.why)),
                (None, 0) => text("whole".into()),
                (None, pages) => bad(format!("{pages} damaged pages")),
            };
            vec![
                code(b.id),
                text(b.label.clone().unwrap_or_default()),
                number(b.timeline),
                text(human::time(b.stopped)),
                number(human::size(b.size)),
                number(human::size(b.stored)),
                code(b.stop_lsn),
                state,
            ]
        })
        .collect();
    let columns = ["backup", "label", "#timeline", "taken", "#size", "#stored", "consistent at", "state"];
    table("Backups", &columns, &rows, html);
}

/// A cell: its attributes, and its content, already escaped.
type Cell = (&'static str, String);

fn text(text: String) -> Cell {
    ("", xml(&text))
}

fn bad(text: String) -> Cell {
    (" class=\"bad\"", xml(&text))
}

fn number(number: impl Display) -> Cell {
    (" class=\"number\"", xml(&number.to_string()))
}

fn code(name: impl Display) -> Cell {
    ("", format!("<code>{}</code>", xml(&name.to_string())))
}

/// A table, unless it has no rows. The columns that begin with `#` hold numbers.
fn table(title: &str, columns: &[&str], rows: &[Vec<Cell>], html: &mut String) {
    if rows.is_empty() {
        return;
    }
    put(html, format_args!("<div class=\"sheet\"><table aria-label=\"{title}\">\n<thead><tr>"));
    for column in columns {
        match column.strip_prefix('#') {
            Some(column) => put(html, format_args!("<th class=\"number\" scope=\"col\">{column}</th>")),
            None => put(html, format_args!("<th scope=\"col\">{column}</th>")),
        }
    }
    put(html, format_args!("</tr></thead>\n<tbody>"));
    for row in rows {
        let cells: String = row.iter().map(|(attributes, content)| format!("<td{attributes}>{content}</td>")).collect();
        put(html, format_args!("<tr>{cells}</tr>"));
    }
    put(html, format_args!("</tbody>\n</table></div>"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::trees::{self, at};

    /// Every element that is opened is closed, in its turn.
    fn well_formed(xml: &str) {
        const VOID: [&str; 2] = ["meta", "!DOCTYPE"];
        let mut open = Vec::new();
        for tag in xml.split('<').skip(1) {
            let (tag, _) = tag.split_once('>').unwrap();
            let name = tag.split([' ', '/', '\n']).next().unwrap();
            match tag.strip_prefix('/') {
                Some(closed) => assert_eq!(open.pop(), Some(closed), "{tag}"),
                None if tag.ends_with('/') || VOID.contains(&name) => {}
                None => open.push(name),
            }
        }
        assert!(open.is_empty(), "{open:?}");
    }

    #[test]
    fn a_page_is_whole_needs_nothing_else_and_lets_no_name_be_markup() {
        for (tree, now) in [
            (trees::single(), "21 09:58:14"),
            (trees::branches(), "21 12:00"),
            (trees::gap(), "21 10:05"),
            (trees::unusable(), "21 03:00"),
            (trees::empty(), "21 03:00"),
            (trees::upgraded(), "23 16:00"),
            (Vec::new(), "21 03:00"),
        ] {
            let made = Page { cluster: "a<b>&\"", repository: "s3://b/<i>", systems: &tree, now: at(now) };
            let (page, drawing) = (page(&made), svg::draw(&tree, at(now), "a<b>&\""));
            assert_eq!(page, super::page(&made));
            well_formed(&page);
            well_formed(&drawing);
            for text in [&page, &drawing] {
                assert!(!text.contains("<b>") && !text.contains("<i>") && !text.contains('\u{1b}'), "{text}");
                assert!(!text.contains("<script") && !text.contains("href") && !text.contains("src="));
                assert_eq!(
                    text.matches("http").count(),
                    text.matches("http-equiv").count() + 1,
                    "the name of SVG alone"
                );
            }
        }
    }

    #[test]
    fn everything_on_it_is_told_in_words_too() {
        let tree = trees::gap();
        let drawing = svg::draw(&tree, at("21 10:05"), "main");
        assert!(drawing.contains("recoverable from 2026-11-21 05:00:00 UTC to 2026-11-21 09:58:00 UTC"));
        assert!(drawing.contains("3 segments are missing, 00000001000000000000000F to 000000010000000000000011"));
        assert!(drawing.contains("role=\"img\"") && drawing.contains("<desc"));
        assert_eq!(drawing.matches("class=\"backup\"").count(), 3, "two, and one in the legend");
        let made = Page { cluster: "main", repository: "s3://b", systems: &tree, now: at("21 10:05") };
        let page = page(&made);
        for text in
            ["0/16000100", "0/29000000", "20261121T050000Z", "the archive goes no further", "prefers-color-scheme"]
        {
            assert!(page.contains(text), "{text}");
        }
    }
}
