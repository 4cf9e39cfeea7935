//! Training on libtorch: meta-learning of persona adapters and whole models (MAMLviaPP and what it is compared with),
//! pre-training of a small GPT-2, and evaluation.

mod autograd;
pub mod compare;
pub mod data;
pub mod decoder;
mod derivative;
pub mod device;
mod engine;
pub mod error;
pub mod evaluate;
pub mod folder;
pub mod frozen;
mod host;
pub mod hub;
pub mod inner;
pub mod memory;
pub mod meta;
pub mod method;
pub mod model;
pub mod optimiser;
pub mod pretrain;
pub mod publish;
mod reader;
mod rotary;
pub mod tensorboard;
pub mod tensors;
pub mod train;
pub mod trained;
pub mod workers;

pub use error::{Result, TrainError};
