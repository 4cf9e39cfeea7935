//! The device: a bundle adapts to a persona and replies, on stock ONNX Runtime and without libtorch.
//!
//! [`session`] is the only module that knows how ONNX Runtime is found, loaded and bound; [`engine`] runs a bundle's
//! graphs; the rest is what the commands of `marionette` do with them.

pub mod adapt;
pub mod bench;
pub mod chat;
pub mod engine;
pub mod entailment;
pub mod error;
pub mod evaluate;
pub mod generate;
pub mod inspect;
pub mod kernels;
pub mod memory;
pub mod persona_name;
pub mod personas;
pub mod plan;
pub mod sampling;
pub mod session;

pub use engine::{Engine, Options};
pub use error::{Error, Result};
pub use session::Provider;
