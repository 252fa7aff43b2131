//! Timelines drawn as SVG: one file that needs nothing else, without scripts, for light and dark.

use std::fmt::Write as _;

use chrono::{DateTime, Utc};

use super::{
    escape::xml,
    scale::Scale,
    scene::{Lane, Scene, Span, SpanKind},
    words,
};
use crate::{human, plan::window::Timelines};

const WIDTH: f64 = 1280.0;
/// The names of the lanes stand left of this.
const LEFT: f64 = 176.0;
const RIGHT: f64 = 48.0;
/// The head, and the labels of the axis below it.
const HEAD: f64 = 136.0;
const LANE: f64 = 66.0;
const TITLE: f64 = 34.0;
const FOOT: f64 = 56.0;
/// What a small label takes at least.
const LABEL: f64 = 84.0;

/// Colours and type. Selectors name `.walden`, so that a page around the drawing keeps its own. Written out twice
/// rather than with variables: not every viewer of SVG knows those.
const STYLE: &str = r#"
.walden text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "DejaVu Sans", sans-serif; font-size: 13px; fill: #1b2333; font-variant-numeric: tabular-nums; }
.walden .ground { fill: #ffffff; }
.walden .cluster { font-size: 24px; font-weight: 650; letter-spacing: -0.01em; }
.walden .sentence { font-size: 15px; }
.walden .bad { fill: #b3261e; }
.walden .small { font-size: 11px; fill: #667085; }
.walden .missing { font-size: 11px; font-weight: 600; fill: #b3261e; }
.walden .system { font-size: 13px; font-weight: 600; fill: #475467; }
.walden .name { font-weight: 600; }
.walden .pill { fill: #0b7a75; }
.walden .pilled { font-size: 11px; font-weight: 600; fill: #ffffff; }
.walden .grid { stroke: #e4e7ec; stroke-width: 1; }
.walden .short { stroke: #98a2b3; stroke-width: 2; stroke-dasharray: 2 4; }
.walden .axis { stroke: #98a2b3; stroke-width: 1; }
.walden .now { stroke: #1b2333; stroke-width: 1.5; stroke-dasharray: 1 4; stroke-linecap: round; }
.walden .recoverable { fill: #12a594; }
.walden .wal { fill: #dfa83a; }
.walden .gap { fill: #fdecea; stroke: #d92d20; stroke-width: 1.5; }
.walden .hatch { stroke: #d92d20; stroke-width: 1.5; }
.walden .branch { fill: none; stroke: #98a2b3; stroke-width: 2; stroke-dasharray: 1 5; stroke-linecap: round; }
.walden .fork { fill: #ffffff; stroke: #475467; stroke-width: 2; }
.walden .backup { fill: #1b2333; stroke: #ffffff; stroke-width: 2; }
.walden .unusable { fill: #ffffff; stroke: #d92d20; stroke-width: 2; }
.walden .damaged { fill: #dfa83a; stroke: #1b2333; stroke-width: 1.5; }
@media (prefers-color-scheme: dark) {
.walden text { fill: #e6e9f0; }
.walden .ground { fill: #11151d; }
.walden .bad { fill: #ff8a80; }
.walden .small { fill: #8b95a9; }
.walden .missing { fill: #ff8a80; }
.walden .system { fill: #a8b1c4; }
.walden .pill { fill: #2dd4bf; }
.walden .pilled { fill: #06231f; }
.walden .grid { stroke: #222936; }
.walden .short, .walden .axis { stroke: #566079; }
.walden .now { stroke: #e6e9f0; }
.walden .recoverable { fill: #2bb8a5; }
.walden .wal { fill: #c8973a; }
.walden .gap { fill: #3a1a1c; stroke: #ff6b61; }
.walden .hatch { stroke: #ff6b61; }
.walden .branch { stroke: #6b758c; }
.walden .fork { fill: #11151d; stroke: #a8b1c4; }
.walden .backup { fill: #e6e9f0; stroke: #11151d; }
.walden .unusable { fill: #11151d; stroke: #ff6b61; }
.walden .damaged { fill: #c8973a; stroke: #e6e9f0; }
}
@media print {
.walden .ground { fill: #ffffff; }
.walden text { fill: #000000; }
}
"#;

/// Draws the timelines of a cluster's systems, as they were at `now`.
#[must_use]
pub fn draw(systems: &[Timelines], now: DateTime<Utc>, cluster: &str) -> String {
    let scene = Scene::of(systems, now);
    let lanes = scene.as_ref().map_or(&[][..], |s| &s.lanes);
    let drawing = Drawing { systems, lanes, scale: scene.as_ref().map(scale), tops: tops(systems, lanes) };
    let height = drawing.tops.last().map_or(HEAD, |top| top + LANE) + FOOT;
    let title = format!("Timelines of cluster {cluster}");
    let sentence = sentence(systems, now);
    let mut svg = format!(
        "<svg class=\"walden\" xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" role=\"img\" aria-labelledby=\"walden-title walden-desc\">\n<title id=\"walden-title\">{}</title>\n<desc id=\"walden-desc\">{}</desc>\n<style>{STYLE}</style>\n",
        xml(&title),
        xml(&describe(systems, now)),
    );
    svg.push_str("<defs><pattern id=\"walden-hatch\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\" patternTransform=\"rotate(45)\"><line class=\"hatch\" x1=\"0\" y1=\"0\" x2=\"0\" y2=\"6\"/></pattern></defs>\n");
    put(&mut svg, format_args!("<rect class=\"ground\" width=\"{WIDTH}\" height=\"{height}\" rx=\"12\"/>"));
    put(&mut svg, format_args!("<text class=\"cluster\" x=\"28\" y=\"46\">{}</text>", xml(cluster)));
    let class = if sentence.0 { "sentence" } else { "sentence bad" };
    put(&mut svg, format_args!("<text class=\"{class}\" x=\"28\" y=\"74\">{}</text>", xml(&sentence.1)));
    drawing.axis(&mut svg, height);
    drawing.titles(&mut svg);
    for (lane, top) in lanes.iter().zip(&drawing.tops) {
        drawing.branch(lane, *top, &mut svg);
    }
    for (lane, top) in lanes.iter().zip(&drawing.tops) {
        drawing.lane(lane, *top, &mut svg);
    }
    drawing.forks(&mut svg);
    drawing.legend(height - 24.0, now, &mut svg);
    svg.push_str("</svg>\n");
    svg
}

/// The line at the head: whether all is well, and what can be recovered.
fn sentence(systems: &[Timelines], now: DateTime<Utc>) -> (bool, String) {
    let Some(live) = systems.last().and_then(Timelines::live) else {
        return (false, "nothing is archived yet".into());
    };
    let Some(last) = live.windows.last() else { return (false, words::recoverable(live, now)) };
    let earlier = match live.windows.len() {
        1 => String::new(),
        2 => "; one earlier window".into(),
        many => format!("; {} earlier windows", many - 1),
    };
    (true, format!("recoverable {}; {}{earlier}", words::window(last), words::age(last, now)))
}

/// The whole drawing in words, for those who cannot see it.
fn describe(systems: &[Timelines], now: DateTime<Utc>) -> String {
    let one = |t: &crate::plan::window::Timeline| {
        let fork = t.fork.as_ref().map(|f| format!(", {}", words::fork(f))).unwrap_or_default();
        let gaps: String = t.gaps.iter().map(|gap| format!(" {}.", words::missing(gap))).collect();
        format!("Timeline {}{fork}: {}.{gaps}", t.timeline, words::recoverable(t, now))
    };
    let all: Vec<String> = systems.iter().flat_map(|s| &s.timelines).map(one).collect();
    all.join(" ")
}

fn scale(scene: &Scene) -> Scale {
    Scale::new(scene.from, scene.last, scene.now, WIDTH - LEFT - RIGHT)
}

/// Where each lane begins, with room for the titles of systems.
fn tops(systems: &[Timelines], lanes: &[Lane]) -> Vec<f64> {
    let (mut top, mut system) = (HEAD, None);
    let mut tops = Vec::new();
    for lane in lanes {
        if systems.len() > 1 && system != Some(lane.system) {
            top += TITLE;
        }
        system = Some(lane.system);
        tops.push(top);
        top += LANE;
    }
    tops
}

/// A line of the file.
fn put(svg: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    _ = svg.write_fmt(line);
    svg.push('\n');
}

struct Drawing<'a> {
    systems: &'a [Timelines],
    lanes: &'a [Lane],
    scale: Option<Scale>,
    tops: Vec<f64>,
}

impl Drawing<'_> {
    fn x(&self, time: DateTime<Utc>) -> f64 {
        LEFT + self.scale.map_or(0.0, |scale| scale.x(time))
    }

    fn axis(&self, svg: &mut String, height: f64) {
        let Some(scale) = self.scale else { return };
        let (top, bottom, end) = (HEAD - 14.0, height - FOOT, WIDTH - RIGHT);
        for tick in scale.ticks(112.0) {
            let x = LEFT + tick.x;
            put(svg, format_args!("<line class=\"grid\" x1=\"{x:.1}\" y1=\"{top}\" x2=\"{x:.1}\" y2=\"{bottom}\"/>"));
            if x < end - 64.0 {
                put(
                    svg,
                    format_args!(
                        "<text class=\"small\" x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                        top - 8.0,
                        tick.label
                    ),
                );
            }
        }
        put(svg, format_args!("<text class=\"small\" x=\"28\" y=\"{}\">times in UTC</text>", top - 8.0));
        let knee = LEFT + scale.shortened().unwrap_or(WIDTH - LEFT - RIGHT);
        put(svg, format_args!("<line class=\"axis\" x1=\"{LEFT}\" y1=\"{top}\" x2=\"{knee:.1}\" y2=\"{top}\"/>"));
        if knee < end {
            put(
                svg,
                format_args!(
                    "<line class=\"short\" x1=\"{knee:.1}\" y1=\"{top}\" x2=\"{end}\" y2=\"{top}\"><title>the time since then is shortened</title></line>"
                ),
            );
        }
        put(svg, format_args!("<line class=\"now\" x1=\"{end}\" y1=\"{top}\" x2=\"{end}\" y2=\"{bottom}\"/>"));
        put(
            svg,
            format_args!("<text x=\"{end}\" y=\"{}\" text-anchor=\"middle\" class=\"name\">now</text>", top - 8.0),
        );
    }

    fn titles(&self, svg: &mut String) {
        let mut system = None;
        for (lane, top) in self.lanes.iter().zip(&self.tops) {
            if self.systems.len() > 1
                && system != Some(lane.system)
                && let Some(timelines) = self.systems.get(lane.system)
            {
                let (incarnation, version) = (timelines.system.incarnation, timelines.system.postgres);
                put(
                    svg,
                    format_args!(
                        "<text class=\"system\" x=\"28\" y=\"{}\">system {incarnation} · PostgreSQL {version}</text>",
                        top - 6.0
                    ),
                );
            }
            system = Some(lane.system);
        }
    }

    /// The line from the parent's lane, down and over to where the timeline begins.
    fn branch(&self, lane: &Lane, top: f64, svg: &mut String) {
        let Some(birth) = &lane.birth else { return };
        let Some(parent) = self.tops.get(birth.parent) else { return };
        let (x, begins) = (self.x(birth.left), self.x(birth.begins));
        let (from, to) = (parent + LANE / 2.0, top + LANE / 2.0);
        let bend = 10.0_f64.min((begins - x).max(0.0));
        put(
            svg,
            format_args!(
                "<path class=\"branch\" d=\"M{x:.1} {from} V{:.1} Q{x:.1} {to} {:.1} {to} H{begins:.1}\"><title>{}</title></path>",
                to - bend,
                x + bend,
                xml(&birth.title)
            ),
        );
    }

    fn lane(&self, lane: &Lane, top: f64, svg: &mut String) {
        let middle = top + LANE / 2.0;
        put(
            svg,
            format_args!("<text class=\"name\" x=\"28\" y=\"{}\">timeline {}</text>", middle + 4.5, lane.timeline),
        );
        if lane.live {
            put(
                svg,
                format_args!(
                    "<rect class=\"pill\" x=\"122\" y=\"{}\" width=\"34\" height=\"18\" rx=\"9\"/>",
                    middle - 9.0
                ),
            );
            put(
                svg,
                format_args!(
                    "<text class=\"pilled\" x=\"139\" y=\"{}\" text-anchor=\"middle\">live</text>",
                    middle + 4.0
                ),
            );
        }
        for span in &lane.spans {
            self.span(span, middle, svg);
        }
        self.ends(lane, middle, svg);
        for mark in &lane.backups {
            let class = match (mark.usable, mark.damaged) {
                (false, _) => "unusable",
                (true, true) => "damaged",
                (true, false) => "backup",
            };
            let x = self.x(mark.at);
            put(
                svg,
                format_args!(
                    "<path class=\"{class}\" d=\"M{x:.1} {:.1} l9 9 l-9 9 l-9 -9 Z\"><title>{}</title></path>",
                    middle - 9.0,
                    xml(&mark.title)
                ),
            );
        }
    }

    fn span(&self, span: &Span, middle: f64, svg: &mut String) {
        let (x, end) = (self.x(span.from), self.x(span.to));
        let (class, height, least) = match span.kind {
            SpanKind::Wal => ("wal", 4.0, 2.0),
            SpanKind::Recoverable => ("recoverable", 14.0, 4.0),
            SpanKind::Gap => ("gap", 14.0, 8.0),
        };
        let (width, y) = ((end - x).max(least), middle - height / 2.0);
        let (radius, title) = (f64::min(height, width) / 2.0, xml(&span.title));
        let radius = if span.kind == SpanKind::Gap { 2.0 } else { radius };
        put(
            svg,
            format_args!(
                "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y}\" width=\"{width:.1}\" height=\"{height}\" rx=\"{radius:.1}\"><title>{title}</title></rect>"
            ),
        );
        if span.kind == SpanKind::Gap {
            put(
                svg,
                format_args!(
                    "<rect fill=\"url(#walden-hatch)\" x=\"{x:.1}\" y=\"{y}\" width=\"{width:.1}\" height=\"{height}\" rx=\"2\"><title>{title}</title></rect>"
                ),
            );
        }
    }

    /// Small labels: LSNs below the ends of windows, counts above gaps; where there is room.
    fn ends(&self, lane: &Lane, middle: f64, svg: &mut String) {
        let mut free = f64::MIN;
        for span in lane.spans.iter().filter(|s| s.kind == SpanKind::Recoverable) {
            let (x, end, y) = (self.x(span.from), self.x(span.to), middle + 24.0);
            if end - x >= 2.0 * LABEL && x >= free {
                put(svg, format_args!("<text class=\"small\" x=\"{x:.1}\" y=\"{y}\">{}</text>", span.from_lsn));
            }
            if end - x >= LABEL / 2.0 && end - LABEL >= free {
                put(
                    svg,
                    format_args!(
                        "<text class=\"small\" x=\"{end:.1}\" y=\"{y}\" text-anchor=\"end\">{}</text>",
                        span.to_lsn
                    ),
                );
            }
            free = end + 6.0;
        }
        let mut free = f64::MIN;
        for span in lane.spans.iter().filter(|s| s.kind == SpanKind::Gap) {
            let x = f64::midpoint(self.x(span.from), self.x(span.to));
            if x - LABEL / 2.0 >= free {
                let short = span.title.split(',').next().unwrap_or_default();
                let short = if short.starts_with("segment ") { "1 segment is missing" } else { short };
                put(
                    svg,
                    format_args!(
                        "<text class=\"missing\" x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                        middle - 15.0,
                        xml(short)
                    ),
                );
                free = x + LABEL / 2.0;
            }
        }
    }

    fn forks(&self, svg: &mut String) {
        for birth in self.lanes.iter().filter_map(|lane| lane.birth.as_ref()) {
            let Some(parent) = self.tops.get(birth.parent) else { continue };
            put(
                svg,
                format_args!(
                    "<circle class=\"fork\" cx=\"{:.1}\" cy=\"{}\" r=\"4.5\"><title>{}</title></circle>",
                    self.x(birth.left),
                    parent + LANE / 2.0,
                    xml(&birth.title)
                ),
            );
        }
    }

    fn legend(&self, y: f64, now: DateTime<Utc>, svg: &mut String) {
        let mut x = 28.0;
        let bar = |class: &str, height: f64, x: f64| {
            format!(
                "<rect class=\"{class}\" x=\"{x}\" y=\"{}\" width=\"26\" height=\"{height}\" rx=\"2\"/>",
                y - 4.0 - height / 2.0
            )
        };
        let diamond = |class: &str, x: f64| {
            format!("<path class=\"{class}\" d=\"M{} {} l8 8 l-8 8 l-8 -8 Z\"/>", x + 13.0, y - 12.0)
        };
        let marks = || self.lanes.iter().flat_map(|l| &l.backups);
        let shows = |kind| self.lanes.iter().flat_map(|l| &l.spans).any(|s| s.kind == kind);
        let items = [
            (shows(SpanKind::Recoverable), "recoverable", bar("recoverable", 12.0, 0.0)),
            (shows(SpanKind::Wal), "WAL without a backup", bar("wal", 4.0, 0.0)),
            (shows(SpanKind::Gap), "missing", bar("gap", 12.0, 0.0)),
            (marks().any(|m| m.usable), "backup", diamond("backup", 0.0)),
            (marks().any(|m| !m.usable), "backup that cannot be used", diamond("unusable", 0.0)),
        ];
        for (_, label, drawn) in items.into_iter().filter(|(shown, ..)| *shown) {
            put(
                svg,
                format_args!(
                    "<g transform=\"translate({x} 0)\">{drawn}<text class=\"small\" x=\"34\" y=\"{y}\">{label}</text></g>"
                ),
            );
            #[expect(clippy::cast_precision_loss, reason = "a short label")]
            let length = label.len() as f64;
            x += 34.0 + length * 6.2 + 22.0;
        }
        put(
            svg,
            format_args!(
                "<text class=\"small\" x=\"{}\" y=\"{y}\" text-anchor=\"end\">{}</text>",
                WIDTH - 28.0,
                human::time(now)
            ),
        );
    }
}
