//! A start to pass on: what a run learned, without what only training needs.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use marionette_dialogues::Batch;
use marionette_models::checkpoint::read_adapters;
use marionette_models::probe::Probe;
use marionette_models::run::{ADAPTERS, CHECKPOINTS, INNER_LOOP, PROBE, Which, checkpoint, seal, set_checkpoint};
use marionette_models::safetensors_file::{self, FileMetadata, RawTensor};
use marionette_models::{FileError, params};

use crate::error::Result;
use crate::folder;
use crate::train::{self, Start};
use crate::trained::Trained;

/// What to pass on.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct Options {
    /// The run directory, of a method that learns adapters alone
    #[arg(value_name = "RUN")]
    pub run: PathBuf,
    /// The folder to make: a run directory that can be exported, evaluated and begun with, but not gone on with
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Where the run's base model lies by now; the same one as ever
    #[arg(long, value_name = "DIR")]
    pub base: Option<PathBuf>,
}

/// Writes the adapters of a run's best checkpoint in 16 bits, their inner loop, and what libtorch computes with them, into a run
/// directory that names its base model and data without their places. Gives what to say of it.
///
/// # Errors
/// The run's method learns other things than adapters, a file is missing or wrong, the folder is there already; an adapter has
/// a value beyond 65,504, the largest of 16 bits.
pub fn publish(options: &Options, device: tch::Device) -> Result<String> {
    folder::must_be_new(&options.out, "name a new folder with --out")?;
    let Trained { mut config, method, model, recipe, .. } =
        Trained::open(&options.run, options.base.as_deref(), device)?;
    if method.learns_base() {
        let problem = format!("is of method {}, which moves the base model", method.name());
        return Err(FileError::new(&options.run, problem).remedy("only adapters can be passed on").into());
    }
    let best = checkpoint(&options.run, Which::Best)?;
    let (learned, metadata) = read_adapters(&best.join(ADAPTERS), model.config(), &config.model.adapter)?;
    let halves: BTreeMap<String, RawTensor> =
        learned.iter().map(|(name, tensor)| (name.clone(), RawTensor::f16(&tensor.shape, &tensor.values))).collect();
    let rounded = halves.iter().map(|(name, half)| {
        let whole = half.to_f32();
        whole
            .map(|whole| (name.clone(), whole))
            .map_err(|problem| FileError::new(&best.join(ADAPTERS), format!("in 16 bits {problem}")).at(name))
    });
    let rounded = rounded.collect::<Result<_, _>>()?;
    let Probe { input_ids, loss_mask, batch, length, .. } =
        Probe::read(&options.run.join(PROBE), model.config(), &config.model.adapter)?;
    let batch = Batch { ids: input_ids, mask: loss_mask, rows: batch, length };
    let table = params::adapter_table(model.config(), &config.model.adapter);
    let parameters = train::to_torch(&rounded, &model)?;
    let probe = train::probe::record(&model.unrounded(), &parameters, &table, batch, &recipe, config.model.frozen)?;
    config.model.base = name(&config.model.base);
    config.data.train.iter_mut().chain(&mut config.data.valid).for_each(|file| *file = name(file));
    config.start = config.start.map(|start| Start { adapters: name(&start.adapters), ..start });
    folder::create(&options.out, |out| {
        let step = name(&best);
        let to = out.join(CHECKPOINTS).join(&step);
        fs::create_dir_all(&to).map_err(|error| FileError::new(&to, format!("cannot be made: {error}")))?;
        safetensors_file::write(&to.join(ADAPTERS), &halves, FileMetadata::Ours(&metadata))?;
        let copy = |file: &str| fs::copy(best.join(file), to.join(file));
        copy(INNER_LOOP)
            .map_err(|error| FileError::new(&to.join(INNER_LOOP), format!("cannot be written: {error}")))?;
        seal(&to)?;
        set_checkpoint(out, Which::Best, &step.display().to_string())?;
        probe.write(&out.join(PROBE))?;
        config.write(out)
    })?;
    Ok(format!("{} of {}, in 16 bits", name(&best).display(), options.run.display()))
}

/// A path without its place, which is nobody else's.
fn name(path: &Path) -> PathBuf {
    path.file_name().map_or_else(|| path.to_owned(), PathBuf::from)
}
