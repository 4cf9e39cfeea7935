//! What a model is, for trainer, exporter and runtime alike: the configuration, the one table of tensors, the files that
//! hold them and the bundle's manifest. Neither libtorch nor ONNX Runtime is named here.

pub mod bundle;
pub mod checkpoint;
pub mod config;
pub mod digest;
pub mod error;
pub mod families;
pub mod files;
pub mod init;
pub mod inner_loop;
pub mod json;
mod layout;
pub mod onnx;
pub mod params;
pub mod probe;
pub mod prompt_form;
pub mod run;
pub mod safetensors_file;
pub mod terminal;

pub use config::{AdapterConfig, Mlp, ModelConfig, Norm, Positions};
pub use error::FileError;
pub use families::{Family, Gpt2Shape, LLAMA_BASE, LlamaShape};
pub use inner_loop::{InnerLoop, LearningRate};
pub use params::{HostTensor, Init, TensorSpec, Tensors};
pub use prompt_form::{PromptForm, Turn};
