//! How a method looks in every figure: a marker and a dash pattern of its own, so that it can be told without colour, and
//! a colour after Okabe and Ito, *Color Universal Design*, which people with any colour vision can tell apart.

use maud::{Markup, html};

/// The look of one method.
#[derive(Debug, Clone, Copy)]
pub struct Style {
    /// On white.
    pub colour: &'static str,
    /// `stroke-dasharray`.
    pub dash: &'static str,
    /// Outline, centred on the origin.
    marker: &'static str,
    fill: Fill,
    /// Width of the line.
    pub width: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Fill {
    Full,
    Hollow,
    Stroke,
}

/// On white, on a dark ground. The seven methods of the paper's table come first, in its order.
pub const COLOURS: [(&str, &str); 10] = [
    ("#6f6f6f", "#b0b0b0"),
    ("#008563", "#2fc79c"),
    ("#b04a86", "#e394c2"),
    ("#0067a8", "#5aaef0"),
    ("#cf9200", "#f0b429"),
    ("#c43c00", "#ff8552"),
    ("#2d95d0", "#7cc8f2"),
    ("#7a5c2e", "#c9a66b"),
    ("#5146c0", "#a79fff"),
    ("#4d7a00", "#a2d149"),
];

const DASHES: [&str; 8] = ["1.5 3", "7 3", "3 2.5", "11 3.5", "9 3 2 3", "none", "6 2.5 1.5 2.5 1.5 2.5", "14 3 4 3"];

const MARKERS: [(&str, Fill); 10] = [
    ("M-3.4,-3.4L3.4,3.4M-3.4,3.4L3.4,-3.4", Fill::Stroke),
    ("M-3.4,-3.4H3.4V3.4H-3.4Z", Fill::Hollow),
    ("M-4.4,0H4.4M0,-4.4V4.4", Fill::Stroke),
    ("M-3.6,-3.6H3.6V3.6H-3.6Z", Fill::Full),
    ("M-4.4,-3.2H4.4L0,4.4Z", Fill::Hollow),
    ("M-4.1,0A4.1,4.1 0 1 1 4.1,0A4.1,4.1 0 1 1 -4.1,0Z", Fill::Full),
    ("M0,-5.2L4.4,0L0,5.2L-4.4,0Z", Fill::Full),
    ("M-4.6,3.6H4.6L0,-4.6Z", Fill::Full),
    ("M-3.7,0A3.7,3.7 0 1 1 3.7,0A3.7,3.7 0 1 1 -3.7,0Z", Fill::Hollow),
    ("M0,-4.8L4.2,-2.4V2.4L0,4.8L-4.2,2.4V-2.4Z", Fill::Hollow),
];

/// The style of the method at `index`. No two of the first eighty share both marker and dash pattern.
pub fn style(index: usize) -> Style {
    let (colour, _) = pick(&COLOURS, index);
    let (marker, fill) = pick(&MARKERS, index);
    let dash = pick(&DASHES, index + index / MARKERS.len());
    Style { colour, dash, marker, fill, width: if dash == "none" { "2.2" } else { "1.7" } }
}

fn pick<T: Copy, const N: usize>(table: &[T; N], index: usize) -> T {
    table[index % N]
}

/// The class that gives `style(index)` its colour on a dark ground.
pub fn class(index: usize) -> String {
    format!("mr-c{}", index % COLOURS.len())
}

impl Style {
    /// The marker, centred on the origin, in the colour of its surroundings.
    pub fn marker(&self) -> Markup {
        let (class, fill, width) = match self.fill {
            Fill::Full => ("mr-halo", "currentColor", "0.8"),
            Fill::Hollow => ("mr-hollow", "#fff", "1.6"),
            Fill::Stroke => ("", "none", "1.8"),
        };
        let stroke = if self.fill == Fill::Full { "#fff" } else { "currentColor" };
        html! {
            path class=[(!class.is_empty()).then_some(class)] d=(self.marker) fill=(fill) stroke=(stroke) stroke-width=(width) {}
        }
    }
}

/// Style rules for a dark ground. On paper, and where rules are not understood, the attributes' light colours stand.
pub fn dark_rules() -> String {
    let mut rules = String::from(
        "@media screen and (prefers-color-scheme:dark){.mr-ground{fill:#15171b}.mr-ink{fill:#e8e6e3}.mr-muted{fill:#a6a8ad}\
         .mr-grid{stroke:#2f333a}.mr-axis{stroke:#8b9098}.mr-halo{stroke:#15171b}.mr-hollow{fill:#15171b}",
    );
    for (index, (_, dark)) in COLOURS.iter().enumerate() {
        rules.push_str(&format!(".{}{{color:{dark}}}", class(index)));
    }
    rules.push('}');
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_methods_look_alike_without_colour() {
        for a in 0..80 {
            for b in 0..a {
                let (x, y) = (style(a), style(b));
                assert!((x.marker, x.dash) != (y.marker, y.dash), "{a} and {b}");
                assert!(a >= 7 || (x.marker != y.marker && x.dash != y.dash), "{a} and {b}");
            }
        }
    }
}
