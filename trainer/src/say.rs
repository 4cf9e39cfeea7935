//! What is told on standard error while a program works. Nobody may be there to hear it: that is no reason to stop.

use std::fmt::Display;
use std::io::Write as _;

/// A line.
pub fn say(line: impl Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
