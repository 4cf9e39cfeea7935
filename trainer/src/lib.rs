//! Meta-training of persona adapters on libtorch (MAMLviaPP, extra-place), pre-training of a small GPT-2, and evaluation.

pub mod data;
pub mod device;
pub mod error;
pub mod evaluate;
pub mod folder;
pub mod gpt2;
pub mod hub;
pub mod inner;
pub mod interrupt;
pub mod meta;
pub mod optimiser;
pub mod pretrain;
pub mod progress;
pub mod tensorboard;
pub mod tensors;
pub mod train;
pub mod workers;

pub use error::{Result, TrainError};
