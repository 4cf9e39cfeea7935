//! Progress on standard error: a bar on a terminal, nothing where it is redirected.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// A bar of `length` steps with a message after it.
pub fn bar(title: &str, length: usize) -> ProgressBar {
    let bar = ProgressBar::new(length as u64);
    // The template is a constant: should it be wrong, the plain style does.
    let style = ProgressStyle::with_template("{prefix} [{bar:30}] {pos}/{len} {elapsed} {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ");
    bar.set_style(style);
    bar.set_prefix(title.to_owned());
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
