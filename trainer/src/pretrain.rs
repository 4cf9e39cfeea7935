//! Pre-training of a small GPT-2 from scratch: tokenizer, weights, and the Hugging Face folder that holds them.

mod corpus;

use std::path::{Path, PathBuf};
use std::time::Instant;

use marionette_console::interrupt;
use marionette_dialogues::{Dialogue, Encoder, Tokenizer, read_dialogues, train_bpe};
use marionette_models::checkpoint::{self, Storage};
use marionette_models::{FileError, Gpt2Shape, ModelConfig, PromptForm, files, init, params};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor, no_grad};

use crate::decoder::{Decoder, Parts};
use crate::error::{Result, TrainError};
use crate::optimiser::{Adam, AdamState, clip};
use crate::train::options::{MOST_COUNTED, MOST_ITERATIONS};
use crate::{folder, tensors};
use marionette_console::Progress;
use marionette_console::options::whole;

use self::corpus::Corpus;

/// The file of the tokenizer in a model folder.
const TOKENIZER_JSON: &str = "tokenizer.json";
/// The learning rate ends at this part of its peak.
const LAST_RATE: f64 = 0.05;
/// The global norm to which gradients are clipped.
const CLIP: f64 = 1.0;
/// The most dialogues of the validation files that a validation reads.
const VALIDATION_DIALOGUES: usize = 256;

/// What to pre-train, and how.
#[derive(Debug, Clone, PartialEq, clap::Args)]
pub struct Options {
    /// Dialogue files
    #[arg(long, required = true, num_args = 1.., value_name = "FILE")]
    pub data: Vec<PathBuf>,
    /// The model folder to make: config.json, model.safetensors, tokenizer.json
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Dialogue files to validate on
    #[arg(long, num_args = 1.., value_name = "FILE")]
    pub valid: Vec<PathBuf>,
    /// The most tokens in the vocabulary
    #[arg(long, default_value_t = 2048)]
    pub vocab_size: usize,
    /// The width of the residual stream
    #[arg(long, default_value_t = 192)]
    pub n_embd: usize,
    /// The number of blocks
    #[arg(long, default_value_t = 6)]
    pub n_layer: usize,
    /// The number of attention heads
    #[arg(long, default_value_t = 6)]
    pub n_head: usize,
    /// The longest sequence, in tokens
    #[arg(long, default_value_t = 512)]
    pub n_positions: usize,
    /// Passes over the data
    #[arg(long, default_value_t = 1, conflicts_with = "steps", value_parser = whole::<1, MOST_COUNTED>, allow_negative_numbers = true)]
    pub epochs: usize,
    /// Steps, instead of passes over the data
    #[arg(long, value_parser = whole::<1, MOST_ITERATIONS>, allow_negative_numbers = true)]
    pub steps: Option<usize>,
    /// Tokens in the batch of one step, padding included
    #[arg(long, default_value_t = 4096, value_parser = whole::<1, { 1 << 24 }>, allow_negative_numbers = true)]
    pub batch_tokens: usize,
    /// The learning rate at its peak
    #[arg(long, default_value_t = 2e-3, allow_negative_numbers = true)]
    pub lr: f64,
    /// Steps over which the learning rate rises to its peak; then it falls along a cosine
    #[arg(long, default_value_t = 100, value_parser = whole::<0, MOST_ITERATIONS>, allow_negative_numbers = true)]
    pub warmup: usize,
    /// The weight decay of matrices
    #[arg(long, default_value_t = 0.1, allow_negative_numbers = true)]
    pub weight_decay: f64,
    /// Steps between validations
    #[arg(long, default_value_t = 200, value_parser = whole::<1, MOST_ITERATIONS>, allow_negative_numbers = true)]
    pub validate_every: usize,
    /// The type in which the weights are stored
    #[arg(long, value_enum, default_value_t = StorageType::F16)]
    pub storage: StorageType,
    /// The seed of all random numbers
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// [`Storage`] on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum StorageType {
    /// 32-bit floating point
    F32,
    /// 16-bit floating point
    F16,
}

/// What came out.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// The number of parameters.
    pub parameters: usize,
    /// Steps done.
    pub steps: usize,
    /// Tokens learned from, padding not counted.
    pub tokens: usize,
    /// Seconds of training.
    pub seconds: f64,
    /// The mean loss of the last steps, in nats a token.
    pub train_loss: f64,
    /// The loss on the validation dialogues, in nats a token.
    pub valid_loss: Option<f64>,
    /// Whether Ctrl-C ended it early.
    pub interrupted: bool,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { parameters, steps, tokens, seconds, train_loss, .. } = self;
        let speed = *tokens as f64 / seconds.max(1e-9);
        write!(f, "{parameters} parameters, {steps} steps, {tokens} tokens in {seconds:.0} s ({speed:.0} tok/s), ")?;
        write!(f, "loss {train_loss:.4}")?;
        match self.valid_loss {
            Some(loss) => write!(f, ", validation {loss:.4} (perplexity {:.2})", loss.exp()),
            None => Ok(()),
        }
    }
}

impl Options {
    fn check(&self) -> Result<()> {
        if !(self.lr > 0.0 && self.lr <= 1.0) {
            return Err(TrainError::option("--lr", format!("is {}, expected more than 0 and at most 1", self.lr)));
        }
        if !(0.0..=1.0).contains(&self.weight_decay) {
            return Err(TrainError::option("--weight-decay", format!("is {}, expected 0 to 1", self.weight_decay)));
        }
        // The vocabulary and the end of text are only known with the tokenizer.
        self.config(self.vocab_size, 0).validate().map_err(|(field, problem)| {
            let option = match field {
                "vocab_size" => "--vocab-size",
                "n_positions" => "--n-positions",
                "n_layer" => "--n-layer",
                "n_head" => "--n-head",
                _ => "--n-embd",
            };
            TrainError::option(option, problem)
        })
    }

    fn config(&self, vocab_size: usize, eos_token_id: u32) -> ModelConfig {
        let shape = Gpt2Shape {
            vocab_size,
            n_positions: self.n_positions,
            n_embd: self.n_embd,
            n_layer: self.n_layer,
            n_head: self.n_head,
        };
        ModelConfig { eos_token_id, ..shape.into() }
    }

    /// The learning rate of step `step` (from 0) of `steps`: a linear rise, then half a cosine.
    fn rate(&self, step: usize, steps: usize) -> f64 {
        if step < self.warmup {
            return self.lr * (step + 1) as f64 / self.warmup as f64;
        }
        let part = (step - self.warmup) as f64 / (steps - self.warmup.min(steps)).max(1) as f64;
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * part.min(1.0)).cos());
        self.lr * (LAST_RATE + (1.0 - LAST_RATE) * cosine)
    }
}

/// Pre-trains a model and writes its folder. The loss covers every token of both speakers: the model is to learn the
/// language, not a persona.
///
/// # Errors
/// Impossible options, files that cannot be read or written, a loss that is not finite.
pub fn pretrain(options: &Options, device: Device) -> Result<Report> {
    options.check()?;
    folder::must_be_new(&options.out, "give --out another folder, or remove this one")?;
    let dialogues = read_all(&options.data)?;
    let valid = read_all(&options.valid)?;
    let texts = dialogues.iter().flat_map(|dialogue| &dialogue.exchanges);
    let texts = texts.flat_map(|exchange| [exchange.partner.as_str(), exchange.reply.as_str()]);
    let tokenizer = train_bpe(texts, options.vocab_size)?;
    let tokenizer_json = tokenizer.to_json()?;
    let (config, encoder) = encoder(options, tokenizer)?;
    let corpus = Corpus::new(&encoder, &dialogues, options.batch_tokens)?;
    let shown = valid.len().min(VALIDATION_DIALOGUES);
    let valid = Corpus::new(&encoder, valid.get(..shown).unwrap_or_default(), options.batch_tokens)?;

    let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
    let table = params::base_table(&config);
    let mut weights = tensors::all_to_torch(init::initialise(&table, &mut rng), Kind::Float, device)?;
    let names = table.iter().map(|spec| &spec.name);
    let mut trained: Vec<Tensor> = names.filter_map(|name| weights.remove(name)).collect();
    for tensor in &mut trained {
        *tensor = tensor.f_set_requires_grad(true)?;
    }
    let handles = table.iter().zip(&trained).map(|(spec, tensor)| (spec.name.clone(), tensor.shallow_clone()));
    let handles: tensors::NamedTensors = handles.collect();
    let model = Decoder::new(&config, Parts::default(), &handles)?;
    let report = train(options, &model, &mut trained, &corpus, &valid, &mut rng)?;

    let host = tensors::named_to_host(&table, &trained)?;
    let storage = match options.storage {
        StorageType::F32 => Storage::F32,
        StorageType::F16 => Storage::F16,
    };
    folder::create(&options.out, |dir| {
        checkpoint::write_base(dir, &config, &host, storage)?;
        Ok(files::write_atomic(&dir.join(TOKENIZER_JSON), |writer| writer.write_all(&tokenizer_json))?)
    })?;
    Ok(Report { parameters: host.values().map(|tensor| tensor.values.len()).sum(), ..report })
}

fn read_all(files: &[PathBuf]) -> Result<Vec<Dialogue>> {
    let mut all = Vec::new();
    for file in files {
        all.extend(read_dialogues(file)?);
    }
    Ok(all)
}

/// The configuration that fits the tokenizer, and what encodes for it.
fn encoder(options: &Options, tokenizer: Tokenizer) -> Result<(ModelConfig, Encoder)> {
    let end_of_text = tokenizer
        .end_of_text_id()
        .ok_or_else(|| FileError::new(Path::new(TOKENIZER_JSON), "the trained tokenizer has no <|endoftext|>"))?;
    let config = options.config(tokenizer.largest_id() as usize + 1, end_of_text);
    let encoder = Encoder::new(tokenizer, PromptForm::plain(end_of_text), config.n_positions, config.vocab_size)?;
    Ok((config, encoder))
}

fn train(
    options: &Options,
    model: &Decoder,
    trained: &mut [Tensor],
    corpus: &Corpus,
    valid: &Corpus,
    rng: &mut ChaCha8Rng,
) -> Result<Report> {
    let settings = Adam { beta_1: 0.9, beta_2: 0.95, epsilon: 1e-8 };
    // Matrices alone decay; vectors are biases and the layer normalisations.
    let decay = |tensor: &Tensor| if tensor.dim() > 1 { options.weight_decay } else { 0.0 };
    let mut adam = AdamState::new(settings, trained, decay)?;
    let mut epoch = corpus.epoch(rng).into_iter();
    let steps = options.steps.unwrap_or(epoch.len().saturating_mul(options.epochs));
    let progress = Progress::new(steps as u64, "steps");
    progress.note(&format!("{} dialogues, {} tokens, {} batches an epoch", corpus.len(), corpus.tokens(), epoch.len()));
    let started = Instant::now();
    let mut report = Report {
        parameters: 0,
        steps: 0,
        tokens: 0,
        seconds: 0.0,
        train_loss: 0.0,
        valid_loss: None,
        interrupted: false,
    };
    // The mean over about the last 50 steps; dividing by the weights so far keeps the first steps from counting too much.
    let (mut sum, mut weights) = (0.0, 0.0);
    for step in 0..steps {
        let rows = match epoch.next() {
            Some(rows) => rows,
            None => {
                epoch = corpus.epoch(rng).into_iter();
                epoch.next().unwrap_or_default()
            }
        };
        let batch = corpus.batch(&rows, Some(rng), model.device())?;
        let loss = model.loss(&batch)?;
        let value = loss.f_double_value(&[])?;
        if !value.is_finite() {
            let place = format!("step {}", step + 1);
            return Err(TrainError::NotFinite { what: "the loss", value, place, remedy: "--lr" });
        }
        let mut gradients = Tensor::f_run_backward(&[&loss], trained, false, false)?;
        clip(&mut gradients, CLIP)?;
        adam.step(trained, &gradients, |_| options.rate(step, steps))?;

        (sum, weights) = (0.98 * sum + value, 0.98 * weights + 1.0);
        report.steps = step + 1;
        report.tokens += batch.targets();
        report.seconds = started.elapsed().as_secs_f64();
        report.train_loss = sum / weights;
        let speed = report.tokens as f64 / report.seconds;
        progress.step(|| format!("loss {:.3}, {speed:.0} tok/s", report.train_loss));
        report.interrupted = interrupt::asked();
        let last = step + 1 == steps || report.interrupted;
        if last || (step + 1).is_multiple_of(options.validate_every) {
            report.valid_loss = validate(model, valid)?;
            let valid = report.valid_loss.map_or_else(String::new, |loss| format!(", validation {loss:.4}"));
            progress.note(&format!("loss {:.4}{valid}, {speed:.0} tok/s", report.train_loss));
        }
        if last {
            break;
        }
    }
    Ok(report)
}

/// The mean loss over all tokens, in nats; `None` where there is nothing to validate on.
fn validate(model: &Decoder, valid: &Corpus) -> Result<Option<f64>> {
    let (mut sum, mut count) = (0.0, 0);
    for rows in valid.in_order() {
        let batch = valid.batch(&rows, None, model.device())?;
        let loss = no_grad(|| model.loss(&batch))?;
        sum += loss.f_double_value(&[])? * batch.targets() as f64;
        count += batch.targets();
    }
    Ok((count > 0).then(|| sum / count as f64))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn parse(options: &str) -> Result<Options, clap::Error> {
        let words = "pretrain --data train.txt --out target/never ".to_owned() + options;
        Line::try_parse_from(words.split_whitespace()).map(|line| line.options)
    }

    #[test]
    fn impossible_values_are_refused_by_the_name_of_their_option() {
        for options in [
            "--steps 0",
            "--epochs 0",
            "--batch-tokens 0",
            "--validate-every 0",
            "--lr NaN",
            "--lr -1",
            "--weight-decay 2",
            "--n-embd 0",
            "--n-layer 0",
            "--n-head 5",
            "--n-positions 0",
            "--vocab-size 0",
        ] {
            let option = options.split(' ').next().unwrap();
            match parse(options) {
                Ok(parsed) => {
                    let error = pretrain(&parsed, Device::Cpu).unwrap_err().to_string();
                    assert!(error.starts_with(option), "{options}: {error}");
                }
                Err(error) => assert!(error.to_string().contains(option), "{options}: {error}"),
            }
        }
        assert!(parse("--steps 1 --epochs 2").unwrap_err().to_string().contains("cannot be used with"));
    }

    #[test]
    fn the_rate_rises_and_falls() {
        let options = parse("--lr 0.01 --warmup 10").unwrap();
        let rate = |step| options.rate(step, 110);
        assert!((rate(0) - 0.001).abs() < 1e-12 && (rate(9) - 0.01).abs() < 1e-12 && (rate(10) - 0.01).abs() < 1e-12);
        // Half-way down the cosine: the mean of the peak and the last.
        assert!((rate(60) - 0.01 * (1.0 + LAST_RATE) / 2.0).abs() < 1e-12);
        assert!((rate(110) - 0.01 * LAST_RATE).abs() < 1e-12);
    }
}
