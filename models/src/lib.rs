//! What a model is, for trainer, exporter and runtime alike: the configuration, the one table of tensors, the files that
//! hold them and the bundle's manifest. Neither libtorch nor ONNX Runtime is named here.

pub mod bundle;
pub mod checkpoint;
pub mod config;
pub mod digest;
pub mod error;
pub mod files;
pub mod init;
pub mod json;
pub mod onnx;
pub mod params;
pub mod probe;
pub mod run;
pub mod safetensors_file;

pub use config::{Activation, AdapterConfig, Gpt2Config, InnerLoop, LearningRate};
pub use error::FileError;
pub use params::{HostTensor, Init, TensorSpec, Tensors};
