//! Line plots as SVG: panels with axes, lines with markers and intervals, and each line's name at its end.
//!
//! Light colours are attributes, which every program understands; a style sheet puts dark ones over them where the
//! reader's ground is dark.

use maud::{Markup, PreEscaped, html};

use crate::scale::Scale;
use crate::style::{class, dark_rules, style};

/// One plot.
#[derive(Debug)]
pub struct Panel {
    /// What is on the vertical axis.
    pub title: String,
    /// Below the title, before a word on a logarithmic axis.
    pub note: String,
    /// Below the horizontal axis.
    pub x_label: String,
    /// The horizontal axis.
    pub x: Scale,
    /// The vertical axis.
    pub y: Scale,
    /// One a method.
    pub lines: Vec<Line>,
}

/// One method.
#[derive(Debug)]
pub struct Line {
    /// Printed at its end.
    pub name: String,
    /// See [`style`].
    pub style: usize,
    /// From left to right; `None` interrupts the line.
    pub points: Vec<Option<Mark>>,
    /// Thin lines behind: one a seed, (x, y).
    pub thin: Vec<Vec<(f64, f64)>>,
    /// To the right, in pixels, so that intervals at one x do not cover each other.
    pub shift: f64,
}

/// One point of a line.
#[derive(Debug, Clone)]
pub struct Mark {
    /// On the horizontal axis.
    pub x: f64,
    /// On the vertical axis; finite.
    pub y: f64,
    /// Ends of its bar.
    pub interval: Option<(f64, f64)>,
    /// Whether it has a marker.
    pub marked: bool,
    /// Shown where the pointer rests.
    pub title: Option<String>,
}

const WIDTH: f64 = 424.0;
const HEIGHT: f64 = 336.0;
const LEFT: f64 = 46.0;
const RIGHT: f64 = 262.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 290.0;
/// Between the frame and the first and last place on the horizontal axis.
const INSET: f64 = 16.0;
/// Between the names at the ends of two lines.
const NAME_HEIGHT: f64 = 15.0;
/// Longer names are cut.
const NAME_LENGTH: usize = 20;
const FONT: &str = "system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,'Liberation Sans',sans-serif";

/// Width in pixels of what lies between the first and the last place on the horizontal axis.
pub const SPAN: f64 = RIGHT - LEFT - 2.0 * INSET;

/// A file of its own: the panels side by side.
pub fn document(panels: &[Panel]) -> String {
    let width = WIDTH * panels.len() as f64;
    let picture = html! {
        svg xmlns="http://www.w3.org/2000/svg" viewBox={ "0 0 " (px(width)) " " (px(HEIGHT)) } width=(px(width)) height=(px(HEIGHT))
            role="img" aria-label=(summary(panels)) font-family=(FONT) {
            style { (PreEscaped(dark_rules())) }
            rect class="mr-ground" width="100%" height="100%" fill="#fff" {}
            @for (at, shown) in panels.iter().enumerate() {
                g transform={ "translate(" (px(WIDTH * at as f64)) ",0)" } { (panel(shown)) }
            }
        }
    };
    format!("{}\n", picture.into_string())
}

/// One panel inside a page, which brings the style sheet.
pub fn inline(shown: &Panel) -> Markup {
    html! {
        svg xmlns="http://www.w3.org/2000/svg" viewBox={ "0 0 " (px(WIDTH)) " " (px(HEIGHT)) } role="img"
            aria-label=(summary(std::slice::from_ref(shown))) font-family=(FONT) { (panel(shown)) }
    }
}

fn summary(panels: &[Panel]) -> String {
    let titles: Vec<String> = panels.iter().map(|p| format!("{} against {}", p.title, p.x_label)).collect();
    titles.join("; ")
}

fn panel(panel: &Panel) -> Markup {
    let ends = ends(panel);
    let dot = px(RIGHT + 24.0);
    html! {
        text class="mr-ink" x="10" y="18" font-size="13.5" font-weight="600" fill="#1b1b1b" { (panel.title) }
        text class="mr-muted" x="10" y="34" font-size="11.5" fill="#5f6166" { (panel.note) @if panel.y.log { ", log axis" } }
        @for tick in &panel.y.ticks {
            @let y = px(height(panel, *tick));
            path class="mr-grid" d={ "M" (px(LEFT)) "," (y) "H" (px(RIGHT)) } stroke="#e3e4e8" fill="none" {}
            text class="mr-muted" x=(px(LEFT - 7.0)) y=(y) dy="0.34em" font-size="11" text-anchor="end" fill="#5f6166" {
                (panel.y.label(*tick))
            }
        }
        path class="mr-axis" d={ "M" (px(LEFT)) "," (px(BOTTOM)) "H" (px(RIGHT)) } stroke="#6b6d73" fill="none" {}
        @for tick in &panel.x.ticks {
            @let x = px(across(panel, *tick));
            path class="mr-axis" d={ "M" (x) "," (px(BOTTOM)) "v5" } stroke="#6b6d73" fill="none" {}
            text class="mr-muted" x=(x) y=(px(BOTTOM + 18.0)) font-size="11" text-anchor="middle" fill="#5f6166" {
                (panel.x.label(*tick))
            }
        }
        text class="mr-ink" x=(px((LEFT + RIGHT) / 2.0)) y=(px(BOTTOM + 37.0)) font-size="12" text-anchor="middle" fill="#1b1b1b" {
            (panel.x_label)
        }
        @if ends.is_empty() {
            text class="mr-muted" x=(px((LEFT + RIGHT) / 2.0)) y=(px((TOP + BOTTOM) / 2.0)) font-size="12" text-anchor="middle" fill="#5f6166" {
                "not measured"
            }
        }
        @for line in &panel.lines { (thin_lines(panel, line)) }
        @for line in &panel.lines { (line_itself(panel, line)) }
        @for end in &ends {
            @let look = style(end.line.style);
            g class=(class(end.line.style)) color=(look.colour) {
                path d={ "M" (px(end.x)) "," (px(end.y)) "L" (px(RIGHT + 2.0)) "," (px(end.y)) "L" (px(RIGHT + 13.0)) "," (px(end.label)) "h6" }
                    fill="none" stroke="currentColor" stroke-width="0.8" opacity="0.55" {}
                g transform={ "translate(" (dot) "," (px(end.label)) ")" } { (look.marker()) }
            }
            text class="mr-ink" x=(px(RIGHT + 33.0)) y=(px(end.label)) dy="0.35em" font-size="11.5" fill="#1b1b1b" { (short(&end.line.name)) }
        }
    }
}

fn thin_lines(panel: &Panel, line: &Line) -> Markup {
    html! {
        @if !line.thin.is_empty() {
            g class=(class(line.style)) color=(style(line.style).colour) opacity="0.38" {
                @for seed in &line.thin {
                    path d=(path(seed.iter().map(|(x, y)| Some((across(panel, *x), height(panel, *y))))))
                        fill="none" stroke="currentColor" stroke-width="0.8" stroke-linejoin="round" {}
                }
            }
        }
    }
}

fn line_itself(panel: &Panel, line: &Line) -> Markup {
    let look = style(line.style);
    let place = |mark: &Mark| (across(panel, mark.x) + line.shift, height(panel, mark.y));
    html! {
        g class=(class(line.style)) color=(look.colour) {
            @for mark in line.points.iter().flatten() {
                @if let Some((low, high)) = mark.interval {
                    path d={ "M" (px(place(mark).0)) "," (px(height(panel, low))) "V" (px(height(panel, high))) }
                        stroke="currentColor" stroke-width="1" opacity="0.75" fill="none" {}
                }
            }
            path d=(path(line.points.iter().map(|mark| mark.as_ref().map(place)))) fill="none" stroke="currentColor"
                stroke-width=(look.width) stroke-dasharray=(look.dash) stroke-linejoin="round" {}
            @for mark in line.points.iter().flatten().filter(|mark| mark.marked) {
                @let (x, y) = place(mark);
                g transform={ "translate(" (px(x)) "," (px(y)) ")" } {
                    @if let Some(title) = &mark.title { title { (title) } }
                    (look.marker())
                    @if mark.y > panel.y.high { path d="M0,-6V-12M-2.5,-9.5L0,-12L2.5,-9.5" fill="none" stroke="currentColor" stroke-width="1.4" {} }
                }
            }
        }
    }
}

/// Where a line ends and where its name stands.
struct End<'a> {
    line: &'a Line,
    x: f64,
    y: f64,
    label: f64,
}

/// The names, moved apart as little as keeps their order and lets none cover another.
fn ends(panel: &Panel) -> Vec<End<'_>> {
    let mut ends: Vec<End<'_>> = panel
        .lines
        .iter()
        .filter_map(|line| {
            let last = line.points.iter().flatten().last()?;
            let y = height(panel, last.y);
            Some(End { line, x: across(panel, last.x) + line.shift, y, label: y })
        })
        .collect();
    ends.sort_by(|a, b| a.y.total_cmp(&b.y));
    // Groups of names that touch are spread around the mean of where they would like to be.
    let mut groups: Vec<(f64, usize)> = Vec::new();
    for end in &ends {
        let mut group = (end.y, 1);
        while let Some(&(centre, size)) = groups.last() {
            if group.0 - centre >= NAME_HEIGHT * (size + group.1) as f64 / 2.0 {
                break;
            }
            groups.pop();
            group = ((centre * size as f64 + group.0 * group.1 as f64) / (size + group.1) as f64, size + group.1);
            let half = NAME_HEIGHT * group.1 as f64 / 2.0;
            group.0 = group.0.min(BOTTOM + 6.0 - half).max(TOP - 10.0 + half);
        }
        groups.push(group);
    }
    let places = groups.iter().flat_map(|&(centre, size)| {
        (0..size).map(move |at| centre + NAME_HEIGHT * (at as f64 - (size as f64 - 1.0) / 2.0))
    });
    for (end, label) in ends.iter_mut().zip(places) {
        end.label = label;
    }
    ends
}

fn across(panel: &Panel, x: f64) -> f64 {
    LEFT + INSET + SPAN * panel.x.place(x)
}

fn height(panel: &Panel, y: f64) -> f64 {
    BOTTOM - (BOTTOM - TOP) * panel.y.place(y)
}

fn path(points: impl Iterator<Item = Option<(f64, f64)>>) -> String {
    let mut text = String::new();
    let mut pen = 'M';
    for point in points {
        match point {
            Some((x, y)) => {
                text.push_str(&format!("{pen}{},{}", px(x), px(y)));
                pen = 'L';
            }
            None => pen = 'M',
        }
    }
    text
}

/// A length with one decimal where it needs one.
fn px(length: f64) -> String {
    let text = format!("{length:.1}");
    let text = text.strip_suffix(".0").unwrap_or(&text);
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}

fn short(name: &str) -> String {
    if name.chars().count() <= NAME_LENGTH {
        return name.to_owned();
    }
    name.chars().take(NAME_LENGTH - 1).chain(['…']).collect()
}
