//! What all three programs have in common as programs: numbers of options and their limits, signals, a line said, progress shown.

use std::fmt::Display;
use std::io::Write as _;

use marionette_models::terminal::printable;

pub mod interrupt;
pub mod options;
mod progress;

pub use progress::Progress;

/// A line on standard error. Nobody may be there to read it: that is no reason to stop.
pub fn say(line: impl Display) {
    let _ = writeln!(std::io::stderr(), "{}", printable(&line.to_string()));
}
