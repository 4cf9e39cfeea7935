//! From a GGUF file to a Hugging Face model folder, which trainer and exporter read: weights, `config.json`, tokenizer and chat
//! template.

mod fields;
mod gguf;
mod llama;
mod tokenizer;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use marionette_models::checkpoint::{self, Storage};
use marionette_models::files::{self, StagedFolder};
use marionette_models::{FileError, ModelConfig, Tensors};

use crate::error::ExportError;
use fields::Fields;
use gguf::Gguf;

/// What was imported.
#[derive(Debug)]
pub struct Imported {
    /// The model.
    pub config: ModelConfig,
    /// How many parameters it has.
    pub parameters: usize,
}

/// Writes the folder `out`, which must be new: all of it, or nothing. Values become f32, which holds each of them exactly as the file's
/// blocks give it. The model's context is the file's, or a shorter one.
///
/// # Errors
/// The file is no GGUF file, is cut or says what cannot be; its context is shorter than `context`; its architecture or tokenizer is not supported; `out` exists; writing fails
/// or is interrupted.
pub fn import(
    gguf: &Path,
    out: &Path,
    context: Option<usize>,
    interrupted: &AtomicBool,
) -> Result<Imported, ExportError> {
    if out.exists() {
        return Err(FileError::new(out, "is there already")
            .remedy("give --out another folder, or remove this one")
            .into());
    }
    let file = Gguf::open(gguf)?;
    let fields = Fields(&file);
    let architecture = fields.text("general.architecture")?;
    if architecture != llama::ARCHITECTURE {
        let problem = format!("is {architecture}, expected llama: others are not supported");
        return Err(fields.refuse("general.architecture", &problem).into());
    }
    let mut config = llama::config(&fields)?;
    if let Some(context) = context {
        config.shorten(context).map_err(|problem| ExportError::Usage(format!("--context {problem}")))?;
    }
    config.validate().map_err(|(field, problem)| fields.refuse(field, &problem))?;
    let [tokenizer, tokenizer_config] = tokenizer::files(&fields)?;
    let mut found = Tensors::new();
    for name in file.names() {
        if interrupted.load(Ordering::SeqCst) {
            return Err(ExportError::Interrupted);
        }
        let known = llama::name(name).ok_or_else(|| fields.refuse(name, "does not belong to this model"))?;
        found.insert(known, llama::in_order(name, file.read(name)?, &config));
    }
    let tensors = checkpoint::assemble(&config, found).map_err(|(name, problem)| fields.refuse(&name, &problem))?;
    let parameters = tensors.values().map(|tensor| tensor.values.len()).sum();

    let folder = StagedFolder::create(out)?;
    checkpoint::write_base(folder.path(), &config, &tensors, Storage::F32)?;
    for (name, value) in [("tokenizer.json", tokenizer), ("tokenizer_config.json", tokenizer_config)] {
        let text = format!("{value:#}\n");
        files::write_atomic(&folder.path().join(name), |writer| writer.write_all(text.as_bytes()))?;
    }
    if interrupted.load(Ordering::SeqCst) {
        return Err(ExportError::Interrupted);
    }
    folder.finish()?;
    Ok(Imported { config, parameters })
}
