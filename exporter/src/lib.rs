//! From a frozen decoder and its adapters to the ONNX graphs of a bundle: generation, scoring and adaptation. The
//! backward pass of adaptation is made of ordinary ONNX operators, so any inference runtime can fine-tune with it.
//!
//! - [`graph`], [`ops`], [`autodiff`], [`fusion`]: a typed graph builder, its operators, reverse-mode differentiation over it, and
//!   rewrites of what that gives;
//! - [`decoder`], [`graphs`]: the forward pass, and the graphs made of it;
//! - [`mod@standard`]: a graph in ONNX's own operators alone;
//! - [`weights`], [`onnx`]: how the frozen weights are stored, and how a graph becomes a file;
//! - [`memory`]: what a run of a graph takes;
//! - [`mod@import`]: a Hugging Face folder from a GGUF file;
//! - [`source`], [`mod@export`]: what is exported, and the bundle;
//! - [`calibration`]: what integers are rounded for;
//! - [`report`], [`interpreter`]: what the bundle's precision costs, by computing its graphs here.

pub mod array;
pub mod autodiff;
pub mod calibration;
pub mod decoder;
pub mod error;
pub mod export;
pub mod fusion;
pub mod graph;
pub mod graphs;
pub mod import;
pub mod interpreter;
pub mod memory;
pub mod onnx;
pub mod ops;
pub mod report;
mod rows;
pub mod shape;
pub mod source;
pub mod standard;
pub mod weights;

#[cfg(test)]
mod testing;

pub use error::{ExportError, GraphError};
pub use export::{Exported, export};
pub use import::{Imported, import};
pub use report::Report;
pub use source::{FreshAdapters, Source};
