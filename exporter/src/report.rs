//! What a precision costs: the graphs as they were exported beside those in f32, computed here ([`crate::interpreter`]). Products of
//! integers round both sides as the device does.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use marionette_dialogues::Sequence;
use marionette_models::bundle::{Operators, Precision, WEIGHTS};
use marionette_models::{FileError, files};

use crate::array::{Array, decode};
use crate::error::ExportError;
use crate::graph::Graph;
use crate::graphs;
use crate::interpreter::Interpreter;
use crate::onnx::bytes;
use crate::rows::{self, list, row, shaped};
use crate::shape::TensorType;
use crate::source::Source;
use crate::standard::standard;
use crate::weights::Weights;

/// Steps of adaptation.
const STEPS: usize = 10;
/// At this cosine a step's part across the way is half of that along it.
const LEAST_COSINE: f64 = 0.9;

/// What a precision costs.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// The precision.
    pub precision: Precision,
    /// Over all tokens before a target of the validation dialogues read, or over a fixed row of tokens.
    pub logits: Logits,
    /// The adapters' gradient after a first step, on the shortest of the same dialogues or on the row.
    pub gradient: Cosines,
    /// What takes dialogues, or why it was not measured.
    pub dialogues: Result<OnDialogues, String>,
}

/// Logits beside those in f32.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Logits {
    /// The largest absolute difference.
    pub worst: f64,
    /// The largest absolute logit in f32.
    pub largest: f64,
    /// After how many tokens.
    pub rows: usize,
}

/// Dialogues beside those in f32.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OnDialogues {
    /// How many of the validation dialogues were read.
    pub dialogues: usize,
    /// How many target tokens they have.
    pub targets: usize,
    /// exp of the mean negative log-likelihood over these: in f32, and in this precision, before any adaptation.
    pub perplexity: [f64; 2],
    /// The loss before the first step in f32, on one dialogue.
    pub loss_before: f64,
    /// The loss after ten steps on it: in f32, and in this precision.
    pub loss_after: [f64; 2],
}

/// Cosines of the angles between gradients of all adapters at the same place: in this precision, and in f32.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cosines {
    /// f32 with the model's own weights.
    pub own: f64,
    /// f32 with the same rounded weights: what rounding the other side of each product costs.
    pub same_weights: f64,
}

impl Cosines {
    /// Whether adaptation cannot be relied on: steps lose more of their way than they keep of it.
    pub fn is_low(self) -> bool {
        !(self.own >= LEAST_COSINE && self.same_weights >= LEAST_COSINE)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Logits { worst, largest, rows } = self.logits;
        writeln!(f, "what {} costs, beside fp32:", self.precision)?;
        writeln!(f, "  worst logit difference {worst:.3} of logits up to {largest:.1}, after {rows} tokens")?;
        let Cosines { own, same_weights } = self.gradient;
        writeln!(
            f,
            "  gradient of the adapters: cosine {own:.4} to fp32's, {same_weights:.4} to fp32's of the same rounded weights"
        )?;
        match &self.dialogues {
            Err(reason) => writeln!(f, "  perplexity and adaptation are not measured: {reason}"),
            Ok(on) => {
                let ([before, after], [loss, own]) = (on.perplexity, on.loss_after);
                let (targets, dialogues) = (on.targets, on.dialogues);
                writeln!(
                    f,
                    "  perplexity {before:.3} -> {after:.3} on {targets} tokens of {dialogues} validation dialogues"
                )?;
                writeln!(f, "  {STEPS} steps of adaptation: loss {:.4} -> {own:.4} (fp32: {loss:.4})", on.loss_before)
            }
        }
    }
}

/// Measures an exported bundle. The dialogues are as many of the run's validation dialogues as can be read in some seconds, one of each
/// persona before the second of any; the steps are taken on the shortest of these.
///
/// # Errors
/// The bundle cannot be read; the graphs cannot be built; the user has interrupted.
pub fn measure(
    source: &Source,
    precision: Precision,
    operators: Operators,
    bundle: &Path,
    interrupted: &AtomicBool,
) -> Result<Report, ExportError> {
    let encoded = rows::of_dialogues(source).map(|rows| rows.measured);
    let rows = encoded.clone().unwrap_or_else(|_| vec![rows::fixed(source)]);
    let (config, adapter) = (&source.base.config, &source.adapter);
    let exact = Weights::new(config, Precision::Fp32, operators)?;
    let mut exact_values = |part: &str, _: &TensorType| rows::exact_values(source, part);
    let stored = Weights::new(config, precision, operators)?;
    let path = bundle.join(WEIGHTS);
    let mut file = files::open_regular(&path)?;
    let mut stored_values = |part: &str, tensor: &TensorType| {
        let entry = stored.entry(part)?;
        let mut read = vec![0; bytes(tensor).unwrap_or(0) as usize];
        let result = file.seek(SeekFrom::Start(entry.offset)).and_then(|_| file.read_exact(&mut read));
        result.map_err(|error| FileError::new(&path, format!("cannot be read: {error}")))?;
        Ok(decode(tensor, &read))
    };
    // In standard operators the rounding of activations is a node of its own.
    let graph = |weights| standard(&graphs::logits(config, adapter, weights)?);
    let expected = Forward::of(source, &graph(&exact)?, &rows, interrupted, &mut exact_values)?;
    let found = Forward::of(source, &graph(&stored)?, &rows, interrupted, &mut stored_values)?;
    let difference = |(a, b): (&f64, &f64)| (a - b).abs();
    let logits = Logits {
        worst: expected.logits.iter().zip(&found.logits).map(difference).fold(0.0, f64::max),
        largest: expected.logits.iter().fold(0.0, |largest, logit| largest.max(logit.abs())),
        rows: rows.iter().map(Sequence::targets).sum(),
    };
    let start = rows::adapters(source);
    let shortest = rows.iter().min_by_key(|sequence| sequence.ids.len()).unwrap_or(&rows[0]);
    let steps = if encoded.is_ok() { STEPS } else { 1 };
    let of_step = |weights: &Weights| {
        let below = (adapter.first_block > 0).then(|| graphs::below(config, adapter, weights)).transpose()?;
        Ok::<_, ExportError>((below, graphs::adapt(config, adapter, weights)?))
    };
    let in_standard = |(below, adapt): (Option<Graph>, Graph)| {
        let below = below.as_ref().map(standard).transpose()?;
        Ok::<_, ExportError>((below, standard(&adapt)?))
    };
    let graphs = in_standard(of_step(&exact)?)?;
    let step = Step::new(source, &graphs, shortest, interrupted, &mut exact_values)?;
    let (losses_of_fp32, [first, second]) = step.walk(&start, steps)?;
    let own = step.gradient(&first, &second);
    drop(step);
    // Here products are exact.
    let graphs = of_step(&stored)?;
    let step = Step::new(source, &graphs, shortest, interrupted, &mut stored_values)?;
    let same_weights = step.gradient(&first, &step.take(&first)?.1);
    drop(step);
    let graphs = in_standard(graphs)?;
    let step = Step::new(source, &graphs, shortest, interrupted, &mut stored_values)?;
    let gradient = step.gradient(&first, &step.take(&first)?.1);
    let gradient = Cosines { own: cosine(&gradient, &own), same_weights: cosine(&gradient, &same_weights) };
    let dialogues = match encoded {
        Err(reason) => Err(reason),
        Ok(sequences) => Ok(OnDialogues {
            dialogues: sequences.len(),
            targets: logits.rows,
            perplexity: [&expected, &found].map(|forward| (forward.loss / logits.rows as f64).exp()),
            loss_before: losses_of_fp32[0],
            loss_after: [losses_of_fp32[STEPS], step.walk(&start, STEPS)?.0[STEPS]],
        }),
    };
    Ok(Report { precision, logits, gradient, dialogues })
}

/// The cosine of the angle between two vectors of one length; of nothing and nothing it is 1.
pub fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let sizes = (dot(a, a) * dot(b, b)).sqrt();
    if sizes > 0.0 || a.iter().chain(b).any(|value| *value != 0.0) { dot(a, b) / sizes } else { 1.0 }
}

/// Logits and loss of some rows.
struct Forward {
    /// Of all rows, one after the other.
    logits: Vec<f64>,
    /// The summed negative log-likelihood of all targets.
    loss: f64,
}

impl Forward {
    fn of(
        source: &Source,
        graph: &Graph,
        rows: &[Sequence],
        interrupted: &AtomicBool,
        values: impl FnMut(&str, &TensorType) -> Result<Array, ExportError>,
    ) -> Result<Self, ExportError> {
        let mut inputs = rows::adapters(source);
        let mut result = Self { logits: Vec::new(), loss: 0.0 };
        let interpreter = Interpreter::new(graph, values)?;
        for sequence in rows {
            go_on(interrupted)?;
            inputs.insert("input_ids".into(), row(&sequence.ids));
            inputs.insert("rows".into(), list(sequence.predictions().map(|(row, _)| row as f64)));
            let logits = interpreter.run(&inputs).remove("logits").unwrap_or_default();
            for (row, (_, target)) in logits.rows().into_iter().zip(sequence.predictions()) {
                let largest = row.fold(f64::NEG_INFINITY, |a, &b| a.max(b));
                let total: f64 = row.iter().map(|logit| (logit - largest).exp()).sum();
                result.loss += largest + total.ln() - row[target as usize];
                result.logits.extend(row);
            }
        }
        Ok(result)
    }
}

/// Arrays by name.
type Values = BTreeMap<String, Array>;

/// Steps of adaptation on one dialogue.
struct Step<'a> {
    interpreter: Interpreter<'a>,
    /// All but the adapters.
    inputs: Values,
    /// One a tensor of the adapters, in their order.
    rates: Vec<f32>,
    interrupted: &'a AtomicBool,
}

impl<'a> Step<'a> {
    /// With the graph of a step, and what lies below the adapters where that is one of its own.
    fn new(
        source: &Source,
        (below, graph): &'a (Option<Graph>, Graph),
        sequence: &Sequence,
        interrupted: &'a AtomicBool,
        mut values: impl FnMut(&str, &TensorType) -> Result<Array, ExportError>,
    ) -> Result<Self, ExportError> {
        let rates = source.inner_loop.learning_rate.per_tensor(source.adapters.len()).map_err(ExportError::Usage)?;
        let mask = sequence.target.iter().map(|&target| f64::from(u8::from(target))).collect();
        let mut inputs = BTreeMap::from([
            ("input_ids".to_owned(), row(&sequence.ids)),
            ("loss_mask".to_owned(), shaped(&[1, sequence.ids.len()], mask)),
            ("learning_rate".to_owned(), list(rates.iter().map(|&rate| f64::from(rate)))),
        ]);
        if let Some(below) = below {
            let hidden = Interpreter::new(below, &mut values)?.run(&inputs);
            inputs.extend(hidden);
        }
        Ok(Self { interpreter: Interpreter::new(graph, values)?, inputs, rates, interrupted })
    }

    /// The loss with these adapters, and the adapters after a step.
    fn take(&self, adapters: &Values) -> Result<(f64, Values), ExportError> {
        go_on(self.interrupted)?;
        let mut inputs = self.inputs.clone();
        for (name, value) in adapters {
            inputs.insert(name.clone(), value.clone());
            inputs.insert(format!("start.{name}"), value.clone());
        }
        let (mut loss, mut after) = (f64::NAN, Values::new());
        for (name, value) in self.interpreter.run(&inputs) {
            match name.strip_prefix("updated.") {
                Some(adapter) => drop(after.insert(adapter.to_owned(), value)),
                None if name == "loss" => loss = value.sum(),
                None => {}
            }
        }
        Ok((loss, after))
    }

    /// The loss before each of some steps and after the last, and the adapters after the first and after the second.
    fn walk(&self, start: &Values, steps: usize) -> Result<(Vec<f64>, [Values; 2]), ExportError> {
        let (loss, first) = self.take(start)?;
        let (next, second) = self.take(&first)?;
        let mut losses = vec![loss, next];
        let mut adapters = second.clone();
        for _ in 1..steps {
            let (loss, after) = self.take(&adapters)?;
            losses.push(loss);
            adapters = after;
        }
        Ok((losses, [first, second]))
    }

    /// The gradient with which a step led from one place to another.
    fn gradient(&self, before: &Values, after: &Values) -> Vec<f64> {
        let steps = before.values().zip(after.values()).zip(&self.rates).filter(|(_, rate)| **rate != 0.0);
        steps.flat_map(|((before, after), rate)| ((before - after) / f64::from(*rate)).into_iter()).collect()
    }
}

fn go_on(interrupted: &AtomicBool) -> Result<(), ExportError> {
    if interrupted.load(Ordering::SeqCst) { Err(ExportError::Unmeasured) } else { Ok(()) }
}
