//! What is exported: a run directory, or a Hugging Face model folder with fresh adapters.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use marionette_dialogues::{
    EncodeError, Encoder, PersonaSplit, Sequence, Task, Tokenizer, group_by_persona, read_dialogues, split_part,
};
use marionette_models::bundle::Precision;
use marionette_models::checkpoint::{self, Base};
use marionette_models::params;
use marionette_models::probe::Probe;
use marionette_models::run::{self, Learned, RunData, RunModel, Which};
use marionette_models::{
    AdapterConfig, FileError, InnerLoop, LearningRate, ModelConfig, PromptForm, Tensors, digest, files, init,
};
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;

use crate::error::ExportError;
use crate::rows;

/// How adapters start where the source brings none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FreshAdapters {
    /// R; that of [`AdapterConfig::default`] unless told otherwise.
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
    /// How the frozen matrices were held when Φ was learned.
    pub frozen: Precision,
    /// The inner loop that Φ was learned for.
    pub inner_loop: InnerLoop,
    /// Whether persona sentences are put in front of each dialogue.
    pub persona_text: bool,
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// How a dialogue becomes tokens.
    pub prompt: PromptForm,
    /// What the trainer computed on a small batch: the file, checked to fit the model.
    pub probe: Option<Vec<u8>>,
    /// The tokens of its rows.
    probe_length: Option<usize>,
    /// The dialogues that it was computed on: of a validation persona.
    pub probed: Vec<Sequence>,
    /// The personas that the run was validated on, or why there are none.
    pub validation: Result<Vec<Task>, String>,
    /// What whoever exports it should know.
    pub hint: Option<String>,
}

impl Source {
    /// Reads a run directory (it has a `config.toml`) with its best checkpoint, or else a Hugging Face model folder. What a
    /// run's method did not learn is what it began with: the base model that it names, which lies at `base` where that is
    /// given, and fresh adapters.
    ///
    /// # Errors
    /// A file is missing or wrong; the run's base has changed since; `fresh` is given for a run that learned adapters, or
    /// `base` for a model folder.
    pub fn read(path: &Path, fresh: FreshAdapters, base: Option<&Path>) -> Result<Self, ExportError> {
        match (run::is_run(path), base) {
            (true, base) => Self::of_run(path, fresh, base),
            (false, None) => Self::of_model(path, fresh),
            (false, Some(_)) => {
                let problem = format!("--base is for a run directory, but {} has no config.toml", path.display());
                Err(ExportError::Usage(problem))
            }
        }
    }

    fn of_run(path: &Path, fresh: FreshAdapters, moved: Option<&Path>) -> Result<Self, ExportError> {
        let checkpoint = run::checkpoint(path, Which::Best)?;
        let mut model = RunModel::read(path, &checkpoint)?;
        let learned = Learned::of(&checkpoint)?;
        if learned.adapters && fresh != FreshAdapters::default() {
            return Err(ExportError::Usage(
                "--bottleneck and --seed are for fresh adapters, but this run directory brings its own".into(),
            ));
        }
        let mut base = model.read_base(&path.join(run::CONFIG_TOML), moved)?;
        let mut base_sha256 = model.base_sha256.clone();
        let encoder = encoder(&model.base, &base.config)?;
        if learned.base {
            let config = base.config;
            base = checkpoint::read_base(&checkpoint)?;
            if base.config != config {
                let problem = format!("is not that of {}, from which the run began", model.base.display());
                let remedy = "restore the checkpoint, or train again";
                return Err(FileError::new(&checkpoint.join(checkpoint::CONFIG_JSON), problem).remedy(remedy).into());
            }
            base_sha256 = digest::base_sha256(&base.config, &base.tensors);
        }
        let source = Self::fresh(base, base_sha256, &encoder, fresh)?;
        let source = Self { persona_text: model.persona_text, validation: validation(path, &checkpoint), ..source };
        match learned.adapters {
            true => source.with_adapters_of(path, &checkpoint, model),
            false => Ok(Self {
                hint: Some(format!(
                    "{}: its method ({}) learned no adapters, so the device starts from fresh ones",
                    path.display(),
                    model.method
                )),
                ..source
            }),
        }
    }

    /// The same with the adapters, the inner loop and the probe of a run.
    fn with_adapters_of(self, path: &Path, checkpoint: &Path, model: RunModel) -> Result<Self, ExportError> {
        let config = &self.base.config;
        let (adapters, adapters_metadata) =
            checkpoint::read_adapters(&checkpoint.join(run::ADAPTERS), config, &model.adapter)?;
        let tensors = params::adapter_table(config, &model.adapter).len();
        let mut inner_loop = run::inner_loop(checkpoint)?;
        if let LearningRate::PerTensor(rates) = &mut inner_loop.learning_rate {
            // The adapters' are the last; those before them belong to a base that stays as it is on the device.
            rates.drain(..rates.len().saturating_sub(tensors));
        }
        inner_loop
            .learning_rate
            .per_tensor(tensors)
            .map_err(|problem| FileError::new(&checkpoint.join(run::INNER_LOOP), problem).at("learning_rate"))?;
        let recorded = path.join(run::PROBE);
        let frozen = model.frozen;
        let source = Self { adapter: model.adapter, adapters, adapters_metadata, frozen, inner_loop, ..self };
        if !recorded.exists() {
            return Ok(source);
        }
        let probe = Probe::read(&recorded, &source.base.config, &source.adapter)?;
        Ok(Self {
            probe: Some(files::read_limited(&recorded, MOST_PROBE)?),
            probe_length: Some(probe.length),
            probed: sequences(&probe),
            ..source
        })
    }

    /// The same with a context of so many tokens, for a device with little room for the cache of keys and values. Its base keeps its
    /// digest, and personas fit it as before.
    ///
    /// # Errors
    /// The model's own context is shorter; what the run recorded, or what stands around two utterances, is longer.
    pub fn with_context(mut self, context: usize) -> Result<Self, ExportError> {
        self.base =
            self.base.with_context(context).map_err(|problem| ExportError::Usage(format!("--context {problem}")))?;
        let (config, refuse) =
            (&self.base.config, |problem: String| ExportError::Usage(format!("--context is {context}, {problem}")));
        if let Some(length) = self.probe_length.filter(|&length| length > context) {
            return Err(refuse(format!(
                "but the run recorded what it computed of {length} tokens: give as many at least"
            )));
        }
        Encoder::new(self.tokenizer.clone(), self.prompt.clone(), config.n_positions, config.vocab_size)
            .map_err(|error| refuse(format!("which is too little: {error}")))?;
        Ok(self)
    }

    fn of_model(path: &Path, fresh: FreshAdapters) -> Result<Self, ExportError> {
        if !path.is_dir() {
            return Err(FileError::new(path, "is not a folder")
                .remedy("give a run directory of marionette-train, or a Hugging Face model folder")
                .into());
        }
        let base = checkpoint::read_base(path)?;
        let encoder = encoder(path, &base.config)?;
        let base_sha256 = digest::base_sha256(&base.config, &base.tensors);
        Self::fresh(base, base_sha256, &encoder, fresh)
    }

    /// A model with fresh adapters.
    fn fresh(base: Base, base_sha256: String, encoder: &Encoder, fresh: FreshAdapters) -> Result<Self, ExportError> {
        let adapter = fresh.bottleneck.map_or_else(AdapterConfig::default, AdapterConfig::in_all_blocks);
        adapter.check().map_err(|problem| ExportError::Usage(format!("--bottleneck {problem}")))?;
        let seed = fresh.seed.unwrap_or(0);
        let table = params::adapter_table(&base.config, &adapter);
        Ok(Self {
            base,
            base_sha256,
            adapter,
            adapters: init::initialise(&table, &mut ChaCha8Rng::seed_from_u64(seed)),
            adapters_metadata: BTreeMap::from([("seed".to_owned(), seed.to_string())]),
            frozen: Precision::Fp32,
            inner_loop: InnerLoop::default(),
            persona_text: false,
            tokenizer: encoder.tokenizer().clone(),
            prompt: encoder.form().clone(),
            probe: None,
            probe_length: None,
            probed: Vec::new(),
            validation: Err("a model folder names no validation dialogues".into()),
            hint: None,
        })
    }
}

/// The personas that a run was validated on, or why they cannot be had: it does not stop an export.
fn validation(path: &Path, checkpoint: &Path) -> Result<Vec<Task>, String> {
    let data = RunData::read(path, checkpoint).map_err(|error| error.to_string())?;
    for (file, expected) in data.train.iter().chain(&data.valid).zip(&data.sha256) {
        let (whole, _) = split_part(file);
        if digest::sha256_file(&whole).map_err(|error| error.to_string())? != *expected {
            return Err(format!("{} has changed since the run", file.display()));
        }
    }
    let tasks = |files: &[PathBuf]| -> Result<Vec<Task>, String> {
        let mut dialogues = Vec::new();
        for file in files {
            dialogues.extend(read_dialogues(file).map_err(|error| error.to_string())?);
        }
        Ok(group_by_persona(dialogues).map_err(|error| error.to_string())?.tasks)
    };
    if !data.valid.is_empty() {
        return tasks(&data.valid);
    }
    let split = PersonaSplit::new(tasks(&data.train)?, None, data.test_part, data.hold_out);
    Ok(split.map_err(|error| error.to_string())?.valid)
}

/// The rows of a probe up to their last target, as far as is read of them: padding is after it.
fn sequences(probe: &Probe) -> Vec<Sequence> {
    let all = probe.input_ids.chunks(probe.length).zip(probe.loss_mask.chunks(probe.length));
    let row = |(ids, targets): (&[i64], &[bool])| {
        let targets = targets.get(..rows::MOST_PROBED).unwrap_or(targets);
        let length = targets.iter().rposition(|target| *target).map_or(0, |last| last + 1);
        Sequence {
            ids: ids.iter().take(length).map(|&id| id as u32).collect(),
            target: targets.iter().take(length).copied().collect(),
            ..Sequence::default()
        }
    };
    all.map(row).filter(|sequence| !sequence.ids.is_empty()).collect()
}

/// A probe of more bytes is refused; it holds little more than logits of one position.
const MOST_PROBE: u64 = 1 << 28;

/// The tokenizer and prompt form of a model's folder, which must fit the model as they must on the device.
fn encoder(folder: &Path, config: &ModelConfig) -> Result<Encoder, ExportError> {
    match Encoder::from_folder(folder, config) {
        Ok(encoder) => Ok(encoder),
        Err(EncodeError::Data(error)) => Err(error.into()),
        Err(error) => {
            let place = match error {
                EncodeError::VocabularyTooLarge { .. } => "vocab_size".to_owned(),
                EncodeError::NoRoom { .. } => "n_positions".to_owned(),
                _ => format!("eos_token_id {}", config.eos_token_id),
            };
            Err(FileError::new(folder, error).at(place).into())
        }
    }
}
