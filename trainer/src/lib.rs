//! Meta-training of persona adapters on libtorch (MAMLviaPP, extra-place), pre-training of a small GPT-2, and evaluation.

pub mod error;
pub mod folder;
pub mod gpt2;
pub mod init;
pub mod interrupt;
pub mod optimiser;
pub mod pretrain;
pub mod progress;
pub mod tensors;

pub use error::{Result, TrainError};
