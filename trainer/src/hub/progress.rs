//! The progress of a download on standard error: a bar on a terminal, a line now and then elsewhere.

use std::io::IsTerminal;

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

use marionette_console::say;

/// A file of fewer bytes is not worth a line.
const SMALL: u64 = 8 << 20;

/// The progress of one file.
pub struct Shown {
    model: String,
    file: String,
    bar: Option<ProgressBar>,
    bytes: u64,
    done: u64,
}

impl Shown {
    /// A file of this model.
    pub fn new(model: &str) -> Self {
        Self { model: model.to_owned(), file: String::new(), bar: None, bytes: 0, done: 0 }
    }
}

impl Shown {
    /// A file of so many bytes, of which `done` are there.
    pub fn begin(&mut self, filename: &str, bytes: u64, done: u64) {
        (self.bytes, self.done) = (bytes, done);
        self.file = filename.to_owned();
        if std::io::stderr().is_terminal() {
            let template = "{msg}  {bar:24} {bytes}/{total_bytes}  {bytes_per_sec} (ETA {eta})";
            let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            self.bar = Some(ProgressBar::new(self.bytes).with_style(style).with_message(filename.to_owned()));
        } else if self.bytes >= SMALL {
            say(format_args!("{}: fetching {filename}, {}", self.model, HumanBytes(self.bytes)));
        }
    }

    /// So many bytes more have come.
    pub fn update(&mut self, size: usize) {
        let tenth = |done: u64| done.saturating_mul(10) / self.bytes.max(1);
        let before = tenth(self.done);
        let done = self.done.saturating_add(size as u64);
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        } else if self.bytes >= SMALL && tenth(done) > before {
            say(format_args!("{}: {} {} %", self.model, self.file, 10 * tenth(done)));
        }
        self.done = done;
    }

    /// All have come.
    pub fn finish(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
