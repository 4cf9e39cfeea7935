//! The table of MAMLviaPP: perplexity, Hits@1 and F1 of each method on ConvAI2.

use serde::{Deserialize, Serialize};

/// One row of the paper's table. `None` where the paper prints a dash.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct PaperRow {
    /// As the paper prints it.
    pub name: String,
    /// Of a token.
    #[serde(default)]
    pub perplexity: Option<f64>,
    /// Per cent.
    #[serde(default)]
    pub hits_at_1: Option<f64>,
    /// Per cent.
    #[serde(default)]
    pub f1: Option<f64>,
}

/// Method (empty where it is only in the paper), the paper's name, perplexity, Hits@1, F1.
type Row = (&'static str, &'static str, Option<f64>, Option<f64>, Option<f64>);

/// In the paper's order.
const ROWS: [Row; 9] = [
    ("reinit", "REINIT", Some(72.36), Some(7.8), Some(8.21)),
    ("transfer", "Transfer", Some(27.35), Some(10.9), Some(11.32)),
    ("reinit-maml", "REINIT+MAML", Some(57.79), Some(10.1), Some(10.41)),
    ("in-place", "In-place", Some(14.10), Some(13.2), Some(15.93)),
    ("extra-place-unfixed", "Extra-place unfixed", Some(23.79), Some(11.7), Some(12.55)),
    ("extra-place", "Extra-place", Some(13.21), Some(16.4), Some(19.38)),
    ("transfertransfo", "Transfertransfo", Some(17.51), Some(82.2), Some(19.09)),
    ("", "P² Bot", Some(15.12), Some(81.9), Some(19.77)),
    ("", "P² Bot without next-utterance prediction", None, Some(17.6), Some(18.11)),
];

/// The methods of the paper that can be run, in the order of its table.
pub fn paper_methods() -> impl Iterator<Item = &'static str> {
    ROWS.iter().map(|row| row.0).filter(|method| !method.is_empty())
}

/// The paper's row of a method, by the name it has on the command line.
pub fn paper_row(method: &str) -> Option<PaperRow> {
    ROWS.iter().find(|row| !method.is_empty() && row.0 == method).map(row)
}

/// The paper's rows that no method here repeats.
pub fn paper_only_rows() -> Vec<PaperRow> {
    ROWS.iter().filter(|row| row.0.is_empty()).map(row).collect()
}

fn row(&(_, name, perplexity, hits_at_1, f1): &Row) -> PaperRow {
    PaperRow { name: name.to_owned(), perplexity, hits_at_1, f1 }
}
