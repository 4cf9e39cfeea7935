//! What a comparison of methods says: the numbers of `marionette-train compare` as a table, figures, samples and one
//! page that shows all of it. Only files come out; neither libtorch nor ONNX Runtime is named here.

pub mod comparison;
pub mod paper;

pub use comparison::{Cell, Comparison, Curve, Figure, MethodResult, Point, Sample, Split};
pub use paper::{PaperRow, paper_row};
