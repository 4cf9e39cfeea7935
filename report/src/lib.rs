//! What a comparison of methods says: the numbers of `marionette-train compare` as a table, figures, samples and one
//! page that shows all of it. Only files come out; neither libtorch nor ONNX Runtime is named here.

pub mod comparison;
mod curves;
mod differences;
mod figures;
mod page;
pub mod paper;
mod samples;
mod scale;
mod style;
mod svg;
mod table;
mod text;
mod tried;
mod view;

use std::fs;
use std::io;
use std::path::Path;

use marionette_models::FileError;
use marionette_models::files::{create_folders, read_limited, write_atomic};

pub use comparison::{Cell, Comparison, Curve, Difference, Figure, MethodResult, Point, Sample, Split, Tried};
pub use paper::{PaperRow, paper_methods, paper_only_rows, paper_row};

use view::View;

/// Why there is no report, in one line.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// Nothing to show.
    #[error(
        "the comparison holds no method (`methods` is empty); a report needs at least one: run one and report again"
    )]
    NoMethods,
    /// A file that cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
}

/// A `comparison.json` larger than this is not read.
const LARGEST: u64 = 1 << 28;

/// Reads a `comparison.json`, so that it can be shown again.
///
/// # Errors
/// The file cannot be read, or is not a comparison: line, column and field are named.
pub fn read(path: &Path) -> Result<Comparison, ReportError> {
    let bytes = read_limited(path, LARGEST)?;
    let comparison = serde_json::from_slice(&bytes).map_err(|error| {
        FileError::new(path, &error)
            .at(format!("line {}, column {}", error.line(), error.column()))
            .remedy("give the comparison.json that `marionette-train compare` wrote")
    })?;
    Ok(comparison)
}

/// Writes the report into `dir`, which is made where it is missing. Each file appears whole or not at all, and equal
/// comparisons give equal bytes:
/// `comparison.json` (what was given), `table.md`, `table.csv` (one line a method, K and number of epochs), `figure.svg`
/// (against K), `epochs.svg` and `curves.svg` where there is something to draw, `samples.md`, and `index.html`, which
/// shows all of it and refers to nothing outside itself.
///
/// Text is shown without control characters and without characters that reorder others, and a number that is not
/// finite is shown as a dash.
///
/// # Errors
/// There is no method, or a file cannot be written.
pub fn write(dir: &Path, comparison: &Comparison) -> Result<(), ReportError> {
    if comparison.methods.is_empty() {
        return Err(ReportError::NoMethods);
    }
    let json = dir.join("comparison.json");
    let mut bytes = serde_json::to_vec_pretty(comparison).map_err(|error| FileError::new(&json, error))?;
    bytes.push(b'\n');
    let csv = dir.join("table.csv");
    let shown = comparison.cleaned();
    let view = View::new(&shown);
    let table = table::csv(&view).map_err(|error| FileError::new(&csv, error))?;

    create_folders(dir)?;
    save(&json, &bytes)?;
    save(&csv, &table)?;
    save(&dir.join("table.md"), table::markdown(&view).as_bytes())?;
    save(&dir.join("samples.md"), samples::markdown(&view).as_bytes())?;
    let [shots, epochs, curves] = [figures::against_k(&view), figures::against_epochs(&view), curves::panels(&view)];
    for (name, panels) in [("figure.svg", &shots), ("epochs.svg", &epochs), ("curves.svg", &curves)] {
        let path = dir.join(name);
        if panels.is_empty() {
            remove(&path)?;
        } else {
            save(&path, svg::document(panels).as_bytes())?;
        }
    }
    save(&dir.join("index.html"), page::page(&view, &shots, &epochs, &curves).as_bytes())
}

fn save(path: &Path, bytes: &[u8]) -> Result<(), ReportError> {
    Ok(write_atomic(path, |writer| writer.write_all(bytes))?)
}

/// A figure of an earlier report would be taken for one of this.
fn remove(path: &Path) -> Result<(), ReportError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(FileError::new(path, format!("the figure of an earlier report cannot be removed: {error}")).into())
        }
        _ => Ok(()),
    }
}
