//! What is exported: a run directory, or a Hugging Face model folder with fresh adapters.

use std::collections::BTreeMap;
use std::path::Path;

use marionette_dialogues::{Tokenizer, load_tokenizer};
use marionette_models::checkpoint::{self, Base};
use marionette_models::params;
use marionette_models::probe::Probe;
use marionette_models::run::{self, RunModel, Which};
use marionette_models::{AdapterConfig, FileError, InnerLoop, LearningRate, Tensors, digest, files, init};
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;

use crate::error::ExportError;

/// How adapters start where the source brings none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FreshAdapters {
    /// R; 64 unless told otherwise.
    pub bottleneck: Option<usize>,
    /// The seed of the random values; 0 unless told otherwise.
    pub seed: Option<u64>,
}

/// All that a bundle is made of.
#[derive(Debug)]
pub struct Source {
    /// φ.
    pub base: Base,
    /// The digest of φ.
    pub base_sha256: String,
    /// The adapters' shape.
    pub adapter: AdapterConfig,
    /// Φ.
    pub adapters: Tensors,
    /// Where Φ comes from.
    pub adapters_metadata: BTreeMap<String, String>,
    /// The inner loop that Φ was learned for.
    pub inner_loop: InnerLoop,
    /// Whether persona sentences are put in front of each dialogue.
    pub persona_text: bool,
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// What the trainer computed on a small batch: the file, checked to fit the model.
    pub probe: Option<Vec<u8>>,
}

impl Source {
    /// Reads a run directory (it has a `config.toml`) with its best checkpoint, or else a Hugging Face model folder.
    ///
    /// # Errors
    /// A file is missing or wrong; the run's base has changed since; `fresh` is given for a run, which has adapters.
    pub fn read(path: &Path, fresh: FreshAdapters) -> Result<Self, ExportError> {
        if run::is_run(path) { Self::of_run(path, fresh) } else { Self::of_model(path, fresh) }
    }

    fn of_run(path: &Path, fresh: FreshAdapters) -> Result<Self, ExportError> {
        if fresh != FreshAdapters::default() {
            return Err(ExportError::Usage(
                "--bottleneck and --seed are for fresh adapters, but a run directory brings its own".into(),
            ));
        }
        let model = RunModel::read(path)?;
        let base = checkpoint::read_base(&model.base)?;
        let base_sha256 = digest::base_sha256(&base.config, &base.tensors);
        if base_sha256 != model.base_sha256 {
            let problem = format!("is not the model that {} was trained on (digest {base_sha256})", path.display());
            return Err(FileError::new(&model.base, problem)
                .at("base_sha256")
                .remedy(format!("restore the model with digest {}, or train again", model.base_sha256))
                .into());
        }
        let checkpoint = run::checkpoint(path, Which::Best)?;
        let (adapters, adapters_metadata) =
            checkpoint::read_adapters(&checkpoint.join(run::ADAPTERS), &base.config, &model.adapter)?;
        let tensors = params::adapter_table(&base.config, &model.adapter).len();
        model
            .inner_loop
            .learning_rate
            .per_tensor(tensors)
            .map_err(|problem| FileError::new(&path.join(run::CONFIG_TOML), problem).at("inner_loop.learning_rate"))?;
        let recorded = path.join(run::PROBE);
        let probe = match recorded.exists() {
            true => {
                Probe::read(&recorded, &base.config, &model.adapter)?;
                Some(files::read_limited(&recorded, MOST_PROBE)?)
            }
            false => None,
        };
        Ok(Self {
            tokenizer: tokenizer(&model.base, &base)?,
            base,
            base_sha256,
            adapter: model.adapter,
            adapters,
            adapters_metadata,
            inner_loop: model.inner_loop,
            persona_text: model.persona_text,
            probe,
        })
    }

    fn of_model(path: &Path, fresh: FreshAdapters) -> Result<Self, ExportError> {
        if !path.is_dir() {
            return Err(FileError::new(path, "is not a folder")
                .remedy("give a run directory of marionette-train, or a Hugging Face model folder")
                .into());
        }
        let base = checkpoint::read_base(path)?;
        let bottleneck = fresh.bottleneck.unwrap_or(AdapterConfig::default().bottleneck);
        if bottleneck == 0 || bottleneck > MOST_BOTTLENECK {
            return Err(ExportError::Usage(format!("--bottleneck is {bottleneck}, expected 1 to {MOST_BOTTLENECK}")));
        }
        let adapter = AdapterConfig { bottleneck };
        let seed = fresh.seed.unwrap_or(0);
        let table = params::adapter_table(&base.config, &adapter);
        Ok(Self {
            tokenizer: tokenizer(path, &base)?,
            base_sha256: digest::base_sha256(&base.config, &base.tensors),
            base,
            adapter,
            adapters: init::initialise(&table, &mut ChaCha8Rng::seed_from_u64(seed)),
            adapters_metadata: BTreeMap::from([("seed".to_owned(), seed.to_string())]),
            inner_loop: InnerLoop { steps: 5, dialogues_per_step: 5, learning_rate: LearningRate::Shared(0.01) },
            persona_text: false,
            probe: None,
        })
    }
}

/// A probe of more bytes is refused; it holds little more than Φ.
const MOST_PROBE: u64 = 4 << 30;

/// The largest bottleneck that opening a bundle accepts.
const MOST_BOTTLENECK: usize = 1 << 16;

/// The tokenizer of a model's folder, whose ids must have a row in the embedding.
fn tokenizer(folder: &Path, base: &Base) -> Result<Tokenizer, ExportError> {
    let tokenizer = load_tokenizer(folder)?;
    let (largest, rows) = (tokenizer.largest_id(), base.config.vocab_size);
    if largest as usize >= rows {
        let problem = format!("its tokenizer has the id {largest}, but the embedding has only {rows} rows");
        return Err(FileError::new(folder, problem)
            .at("vocab_size")
            .remedy("use the tokenizer that the model was trained with")
            .into());
    }
    match tokenizer.end_of_text_id() {
        Some(id) if id == base.config.eos_token_id => Ok(tokenizer),
        found => {
            let found = found.map_or("no such token".to_owned(), |id| format!("id {id}"));
            let expected = base.config.eos_token_id;
            Err(FileError::new(folder, format!("its tokenizer has {found}, config.json has eos_token_id {expected}"))
                .at(marionette_dialogues::END_OF_TEXT)
                .remedy("use the tokenizer that the model was trained with")
                .into())
        }
    }
}
