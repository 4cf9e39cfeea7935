//! Progress on standard error: a bar on a terminal, a line now and then elsewhere.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

use crate::{is_quiet, note};

/// The progress of one loop.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    terminal: bool,
}

impl Progress {
    /// A loop of `length` steps; `unit` is what one is called.
    pub fn new(length: u64, unit: &str) -> Self {
        let bar = if is_quiet() { ProgressBar::hidden() } else { ProgressBar::new(length) };
        bar.set_length(length);
        let template = format!("{{bar:24}} {{pos}}/{{len}} {unit}  {{msg}}  {{elapsed}} (ETA {{eta}})");
        if let Ok(style) = ProgressStyle::with_template(&template) {
            bar.set_style(style);
        }
        Self { bar, terminal: std::io::stderr().is_terminal() }
    }

    /// The loop goes on after `steps` steps that were done before.
    pub fn begin_at(&self, steps: u64) {
        self.bar.set_position(steps);
        self.bar.reset_eta();
    }

    /// One step more; `message` says how it went.
    pub fn step(&self, message: impl FnOnce() -> String) {
        if self.terminal {
            self.bar.set_message(message());
        }
        self.bar.inc(1);
    }

    /// So many of so many steps are done.
    pub fn at(&self, done: u64, total: u64, message: impl FnOnce() -> String) {
        if self.terminal {
            self.bar.set_message(message());
        }
        self.bar.set_length(total);
        self.bar.set_position(done);
    }

    /// A line that stays and has nothing to do with how far it is.
    pub fn say(&self, line: &str) {
        match self.terminal {
            true => self.bar.println(line),
            false => note(line),
        }
    }

    /// A line that stays, with how far it is.
    pub fn note(&self, line: &str) {
        if self.terminal {
            self.bar.println(line);
        } else {
            note(format_args!("{}/{}  {line}", self.bar.position(), self.bar.length().unwrap_or(0)));
        }
    }
}

impl Drop for Progress {
    /// Removes the bar, so that the next line on standard error stands alone.
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
