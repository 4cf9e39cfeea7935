//! What a comparison of methods says.

mod comparison;

use std::path::Path;

pub use comparison::{Cell, Comparison, Curve, Figure, MethodResult, PaperRow, Point, Sample, Split};

/// Why a report could not be written.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ReportError(String);

/// The paper's row of a method.
pub fn paper_row(_method: &str) -> Option<PaperRow> {
    None
}

/// Writes the report.
///
/// # Errors
/// Writing fails.
pub fn write(dir: &Path, comparison: &Comparison) -> Result<(), ReportError> {
    std::fs::create_dir_all(dir).map_err(|error| ReportError(error.to_string()))?;
    let text = serde_json::to_string_pretty(comparison).map_err(|error| ReportError(error.to_string()))?;
    std::fs::write(dir.join("comparison.json"), text).map_err(|error| ReportError(error.to_string()))
}
