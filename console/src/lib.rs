//! What all three programs have in common as programs: numbers of options and their limits, signals, a line said, progress shown.

use std::fmt::Display;
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};

use marionette_models::terminal::printable;

pub mod interrupt;
pub mod options;
mod progress;

pub use progress::Progress;

static QUIET: AtomicBool = AtomicBool::new(false);

/// From now on nothing is said but what is no note: no notes, no progress.
pub fn be_quiet() {
    QUIET.store(true, Ordering::Relaxed);
}

fn is_quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

/// A line on standard error. Nobody may be there to read it: that is no reason to stop.
pub fn say(line: impl Display) {
    let _ = writeln!(std::io::stderr(), "{}", printable(&line.to_string()));
}

/// A line on standard error that one can do without.
pub fn note(line: impl Display) {
    if !is_quiet() {
        say(line);
    }
}
