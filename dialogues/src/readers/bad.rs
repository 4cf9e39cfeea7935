//! Pieces of a file that cannot be read: a few are left out and counted, many mean that the file is something else. Where that is
//! wanted, none is left out.

use std::path::Path;

use super::LeftOut;
use crate::DataError;

/// How many are shown.
const SHOWN: usize = 5;
/// One in so many may be bad.
const ONE_IN: usize = 10;

/// Lines, or dialogues where these are the pieces, that cannot be read.
#[derive(Debug)]
pub(super) struct Bad {
    /// Whether one is too many.
    strict: bool,
    /// Where the first few are, what is wrong with each, and the remedy.
    first: Vec<(usize, String, &'static str)>,
    count: usize,
}

impl Bad {
    pub(super) fn new(strict: bool) -> Self {
        Self { strict, first: Vec::new(), count: 0 }
    }

    pub(super) fn add(&mut self, line: usize, problem: String, remedy: &'static str) {
        self.count += 1;
        if self.first.len() < SHOWN {
            self.first.push((line, problem, remedy));
        }
    }

    /// What is left out because of them, `what` in the plural, of `total` such pieces.
    ///
    /// # Errors
    /// More than a tenth cannot be read, or any where that is too many.
    pub(super) fn judge(self, path: &Path, what: &str, total: usize) -> Result<LeftOut, DataError> {
        let Self { strict, first, count } = self;
        let shown = |places: &[(usize, String, &str)]| {
            let shown: Vec<String> =
                places.iter().map(|(line, problem, _)| format!("line {line}: {problem}")).collect();
            shown.join("; ")
        };
        let Some(((line, problem, remedy), others)) = first.split_first() else {
            return Ok(LeftOut { what: what.to_owned(), count: 0 });
        };
        if count * ONE_IN <= total && !strict {
            let more = if count > first.len() { "; …" } else { "" };
            return Ok(LeftOut { what: format!("{what} that cannot be read ({}{more})", shown(&first)), count });
        }
        let problem = match others {
            [] => problem.clone(),
            others => {
                let more = if count > first.len() { "; …" } else { "" };
                format!("{problem}; {count} of {total} {what} cannot be read, also {}{more}", shown(others))
            }
        };
        Err(DataError::line(path, *line, problem, *remedy))
    }
}
