//! What a precision costs a real model on the device: perplexity before any adaptation, the adapters' gradient, and what a person's
//! dialogues teach it.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use marionette_dialogues::{Batch, Encoder, Sequence, group_by_persona, read_dialogues};
use marionette_exporter::calibration::Calibration;
use marionette_exporter::report::cosine;
use marionette_exporter::weights::Weights;
use marionette_exporter::{FreshAdapters, Source, export};
use marionette_models::bundle::{Bundle, Operators, Precision};
use marionette_models::{InnerLoop, LearningRate, Tensors};
use marionette_runtime::engine;
use marionette_runtime::{Engine, Options};

/// What goes wrong is for a reader to see.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Steps of adaptation, one dialogue each.
pub const STEPS: usize = 10;
/// What SmolLM2 learns well with.
const ALPHA: f32 = 0.03;
/// Dialogues that a person is learned from, in turns.
const SUPPORT: usize = 5;
/// Dialogues of the same person that are held out.
const HELD_OUT: usize = 2;

/// People whose dialogues a run would have been validated on.
const VALIDATION: usize = 20;

/// A model, and people.
pub struct Subject {
    source: Source,
    people: Vec<Person>,
    /// Dialogues of other people.
    others: Vec<Sequence>,
    /// Adapters that have learned something: fresh ones have gradients in half of their tensors alone.
    start: Tensors,
    folder: tempfile::TempDir,
}

struct Person {
    support: Vec<Sequence>,
    held_out: Vec<Sequence>,
}

/// What a precision costs.
#[derive(Debug, Clone)]
pub struct Cost {
    /// Bits that a value of a matrix takes, with its share of the scales.
    pub bits: f64,
    /// On dialogues of others, before any step.
    pub perplexity: f64,
    /// The same by f32 with the same rounded weights.
    pub perplexity_same_weights: f64,
    /// The same with fresh adapters, which change nothing: of the model alone, as other programs compute it.
    pub bare: f64,
    /// Of the adapters' gradient on a dialogue of each person, to that of f32 with the same rounded weights.
    pub cosines: Vec<f64>,
    /// On held-out dialogues of all people, each after [`STEPS`] steps.
    pub adapted: f64,
    /// The same by f32 with the same rounded weights.
    pub adapted_same_weights: f64,
}

impl Subject {
    /// A model folder, and the first `people` of a file of dialogues who have enough of them. Perplexity is measured on as many
    /// `dialogues` of others.
    ///
    /// # Errors
    /// One of them cannot be read.
    pub fn new(model: &Path, data: &Path, people: usize, dialogues: usize) -> Result<Self> {
        let mut source = Source::read(model, FreshAdapters::default(), None)?;
        source.inner_loop =
            InnerLoop { steps: STEPS, dialogues_per_step: 1, learning_rate: LearningRate::Shared(ALPHA) };
        let folder = tempfile::tempdir()?;
        let start = source.adapters.clone();
        let mut subject = Self { source, people: Vec::new(), others: Vec::new(), start, folder };
        let (mut device, encoder) = subject.open(Precision::Fp32, false)?;
        let encode = |dialogues: &[marionette_dialogues::Dialogue]| -> Result<Vec<Sequence>> {
            let mut sequences = Vec::new();
            for dialogue in dialogues {
                sequences.extend(encoder.windows(dialogue)?.into_iter().next());
            }
            Ok(sequences)
        };
        let mut tasks = group_by_persona(read_dialogues(data)?)?.tasks;
        // Integers are rounded for the dialogues of yet others, and adapters begin with what they learn of them.
        let validation = tasks.split_off(tasks.len() - VALIDATION.min(tasks.len() / 3));
        let (known, others): (Vec<_>, Vec<_>) =
            tasks.into_iter().partition(|task| task.dialogues.len() >= SUPPORT + HELD_OUT);
        for task in validation.iter().take(STEPS) {
            for sequence in encode(&task.dialogues[..1])? {
                step(&mut device, &sequence, ALPHA)?;
            }
        }
        for task in known.iter().take(people) {
            let mut support = encode(&task.dialogues[..SUPPORT + HELD_OUT])?;
            let held_out = support.split_off(support.len() - HELD_OUT);
            subject.people.push(Person { support, held_out });
        }
        for task in others.iter().chain(known.iter().skip(people)).take(dialogues) {
            subject.others.extend(encode(&task.dialogues[..1])?);
        }
        subject.source.validation = Ok(validation);
        subject.start = device.adapters();
        Ok(subject)
    }

    /// An engine of this precision, or of f32 with the weights that this precision has rounded.
    fn open(&mut self, precision: Precision, exact: bool) -> Result<(Engine, Encoder)> {
        let path = self.folder.path().join(format!("{precision}{}", if exact { " in fp32" } else { "" }));
        let (stop, ops) = (AtomicBool::new(false), Operators::Ort);
        if exact {
            let own = self.source.base.tensors.clone();
            let weights = Weights::new(&self.source.base.config, precision, ops)?;
            let rounded = weights.rounded(own, &Calibration::new(&self.source, &weights, &stop)?);
            let own = std::mem::replace(&mut self.source.base.tensors, rounded);
            let exported = export(&self.source, Precision::Fp32, ops, &path, &stop);
            self.source.base.tensors = own;
            exported?;
        } else {
            export(&self.source, precision, ops, &path, &stop)?;
        }
        let bundle = Bundle::open(&path)?;
        Ok((Engine::open(&bundle, Options::default())?, engine::encoder(&bundle)?))
    }

    /// The dialogues of others.
    pub fn others(&self) -> &[Sequence] {
        &self.others
    }

    /// Measures a precision; each that is measured is compared to f32 with its own weights.
    ///
    /// # Errors
    /// A bundle cannot be made, opened or run.
    pub fn cost(&mut self, precision: Precision) -> Result<Cost> {
        let config = &self.source.base.config;
        let bits = Weights::new(config, precision, Operators::Ort)?.bits();
        let (mut device, _) = self.open(precision, false)?;
        device.set_adapters(&self.source.adapters)?;
        let bare = device.loss(&self.others)?.exp();
        device.set_adapters(&self.start)?;
        let perplexity = device.loss(&self.others)?.exp();
        let (mut exact, _) = self.open(precision, true)?;
        exact.set_adapters(&self.start)?;
        let perplexity_same_weights = exact.loss(&self.others)?.exp();
        let mut cosines = Vec::new();
        for person in &self.people {
            let first = &person.support[0];
            let found = gradient(&mut device, &self.start, first)?;
            cosines.push(cosine(&found, &gradient(&mut exact, &self.start, first)?));
        }
        let adapted = self.adapted(&mut device)?;
        let adapted_same_weights = self.adapted(&mut exact)?;
        Ok(Cost { bits, bare, perplexity, perplexity_same_weights, cosines, adapted, adapted_same_weights })
    }

    /// On held-out dialogues, each person's after the person's steps.
    fn adapted(&self, device: &mut Engine) -> Result<f64> {
        let mut losses = Vec::new();
        for person in &self.people {
            device.set_adapters(&self.start)?;
            for sequence in person.support.iter().cycle().take(STEPS) {
                step(device, sequence, ALPHA)?;
            }
            losses.push(device.loss(&person.held_out)?);
        }
        Ok((losses.iter().sum::<f64>() / losses.len() as f64).exp())
    }
}

fn step(device: &mut Engine, sequence: &Sequence, rate: f32) -> Result<()> {
    let rates = vec![rate; device.adapters().len()];
    device.adapt_step(&[Batch::new([sequence])?], &rates)?;
    Ok(())
}

/// Of all adapters: what a step of rate 1 changes.
fn gradient(device: &mut Engine, start: &Tensors, sequence: &Sequence) -> Result<Vec<f64>> {
    device.set_adapters(start)?;
    step(device, sequence, 1.0)?;
    let after = device.adapters();
    let values = |tensors: &Tensors| tensors.values().flat_map(|tensor| tensor.values.clone()).collect::<Vec<f32>>();
    Ok(values(start).iter().zip(values(&after)).map(|(before, after)| f64::from(before - after)).collect())
}
