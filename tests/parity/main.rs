//! The device computes what the trainer computes: the exported graphs on ONNX Runtime against libtorch, on the bundled
//! model, and on a random one of each other family, with random adapters that are far from zero.

#![allow(clippy::unwrap_used, clippy::panic)] // What fails here fails a test.

mod frozen;
mod precision;
mod rows;
mod smollm2;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;

use marionette_dialogues::{Batch, Encoder, Example, Sequence, read_dialogues};
use marionette_exporter::{FreshAdapters, Source, export};
use marionette_models::bundle::{Bundle, Operators, Precision};
use marionette_models::checkpoint::{self, Storage};
use marionette_models::params::{self, Init, TensorSpec};
use marionette_models::{
    Family, HostTensor, InnerLoop, LearningRate, LlamaShape, ModelConfig, Positions, Tensors, init,
};
use marionette_runtime::adapt::Recipe;
use marionette_runtime::engine::{Activations, Scored};
use marionette_runtime::generate::{Go, LanguageModel as _};
use marionette_runtime::plan::Plan;
use marionette_runtime::{Engine, Options, adapt};
use marionette_tests::{Scratch, dialogues, tiny};
use marionette_trainer::decoder::{Cache, Decoder, Layout};
use marionette_trainer::inner::{self, Support};
use marionette_trainer::method::Method;
use marionette_trainer::model::Model;
use marionette_trainer::tensors::{self, TokenBatch};
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor};

const STEPS: usize = 5;
const ALPHA: f32 = 0.2;

/// The same model and the same adapters on both sides.
struct Pair {
    scratch: Scratch,
    table: Vec<TensorSpec>,
    start: Tensors,
    torch: Model,
    device: Engine,
    encoder: Encoder,
}

impl Pair {
    /// Of each family and in both operator sets, to which no tolerance makes a difference: in f32 they are the same arithmetic in another
    /// order.
    fn all() -> impl Iterator<Item = Self> {
        let inner = InnerLoop { steps: STEPS, dialogues_per_step: 2, learning_rate: LearningRate::Shared(ALPHA) };
        let each = Family::ALL.into_iter().flat_map(|family| Operators::ALL.map(|operators| (family, operators)));
        let each = each.flat_map(|of| [0, 1].map(|first_block| (of, first_block)));
        each.map(move |((family, operators), first_block)| {
            Self::of_family(family, first_block, inner.clone(), Precision::Fp32, operators)
        })
    }

    fn new() -> Self {
        Self::of(InnerLoop { steps: STEPS, dialogues_per_step: 2, learning_rate: LearningRate::Shared(ALPHA) })
    }

    /// With an inner loop in the bundle.
    fn of(inner_loop: InnerLoop) -> Self {
        Self::with(inner_loop, Precision::Fp32, Operators::Ort)
    }

    /// With another precision or other operators on the device.
    fn with(inner_loop: InnerLoop, precision: Precision, operators: Operators) -> Self {
        Self::of_family(Family::Gpt2, 0, inner_loop, precision, operators)
    }

    /// With a model of a family, and adapters from a block on.
    fn of_family(
        family: Family,
        first_block: usize,
        inner_loop: InnerLoop,
        precision: Precision,
        operators: Operators,
    ) -> Self {
        let scratch = Scratch::new();
        let folder = match family {
            Family::Gpt2 => tiny(),
            Family::Llama => llama(&scratch),
        };
        let mut source = Source::read(&folder, FreshAdapters { bottleneck: Some(16), seed: Some(3) }, None).unwrap();
        source.adapter.first_block = first_block;
        let table = params::adapter_table(&source.base.config, &source.adapter);
        let spread: Vec<TensorSpec> =
            table.iter().map(|spec| TensorSpec { init: Init::Normal { std: 0.05 }, ..spec.clone() }).collect();
        let start = init::initialise(&spread, &mut ChaCha8Rng::seed_from_u64(11));
        source.adapters = start.clone();
        source.inner_loop = inner_loop;
        export(&source, precision, operators, &scratch.path("bundle"), &AtomicBool::new(false)).unwrap();
        let bundle = Bundle::open(&scratch.path("bundle")).unwrap();
        let encoder = marionette_runtime::engine::encoder(&bundle).unwrap();
        let device = Engine::open(&bundle, Options::default()).unwrap();
        let frozen = tensors::all_to_torch(source.base.tensors.clone(), Kind::Float, Device::Cpu).unwrap();
        let parts = Method::ExtraPlace.parts();
        let torch = Model::new(&source.base.config, parts, frozen, table.clone(), Kind::Float, Device::Cpu).unwrap();
        Self { scratch, table, start, torch, device, encoder }
    }

    /// θ_0 of the trainer.
    fn parameters(&self) -> Vec<Tensor> {
        let tensor = |spec: &TensorSpec| tensors::to_torch(&self.start[&spec.name], Kind::Float, Device::Cpu).unwrap();
        self.table.iter().map(tensor).collect()
    }

    /// The trainer's model at θ_0.
    fn at(&self) -> Decoder {
        self.torch.at(&self.parameters()).unwrap()
    }

    /// Three dialogues of different lengths.
    fn sequences(&self) -> Vec<Sequence> {
        read_dialogues_of(&self.encoder)
    }
}

/// The same, encoded for a model.
fn read_dialogues_of(encoder: &Encoder) -> Vec<Sequence> {
    let read = read_dialogues(dialogues("test")).unwrap();
    read.iter().take(3).flat_map(|dialogue| encoder.windows(dialogue).unwrap()).collect()
}

/// The folder of a random Llama with the bundled tokenizer and a chat template: heads that share keys and values, whose widths do not add
/// up to the model's, and a head of its own.
fn llama(scratch: &Scratch) -> PathBuf {
    let folder = scratch.path("llama");
    std::fs::create_dir(&folder).unwrap();
    std::fs::copy(tiny().join("tokenizer.json"), folder.join("tokenizer.json")).unwrap();
    let template = "{% for m in messages %}{{ m.role + '\n' + m.content + '<|endoftext|>\n' }}{% endfor %}\
                    {% if add_generation_prompt %}{{ 'assistant\n' }}{% endif %}";
    std::fs::write(folder.join("chat_template.jinja"), template).unwrap();
    let tiny = checkpoint::read_base(&tiny()).unwrap().config;
    let shape = LlamaShape {
        vocab_size: tiny.vocab_size,
        n_positions: tiny.n_positions,
        n_embd: 64,
        n_layer: 3,
        n_head: 6,
        n_kv_head: 2,
        head_dim: 16,
        n_inner: 96,
    };
    let config = ModelConfig { positions: Positions::Rotary { base: 1000.0 }, ..shape.into() };
    let spread = |spec: TensorSpec| match spec.shape.len() {
        2 => TensorSpec { init: Init::Normal { std: 0.12 }, ..spec },
        _ => spec,
    };
    let table: Vec<TensorSpec> = params::base_table(&config).into_iter().map(spread).collect();
    let tensors = init::initialise(&table, &mut ChaCha8Rng::seed_from_u64(7));
    checkpoint::write_base(&folder, &config, &tensors, Storage::F32).unwrap();
    folder
}

/// The largest difference over the largest value: the error relative to the tensor.
fn relative(found: &HostTensor, expected: &HostTensor) -> f64 {
    assert_eq!(found.shape, expected.shape);
    let largest = expected.values.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
    f64::from(difference(&found.values, &expected.values) / largest)
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0.0, |most: f32, (a, b)| most.max((a - b).abs()))
}

/// Checks every tensor and prints the worst.
fn all_within(what: &str, found: &Tensors, expected: &BTreeMap<String, HostTensor>, most: f64) {
    assert_eq!(found.len(), expected.len());
    let errors = found.iter().map(|(name, tensor)| (relative(tensor, &expected[name]), name));
    let (worst, name) = errors.max_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
    eprintln!("{what}: worst relative error {worst:.1e} ({name}), at most {most:.0e}");
    assert!(worst <= most, "{what}: {name} {worst}");
}

#[test]
fn loss_and_every_gradient_are_libtorchs() {
    for mut pair in Pair::all() {
        let batch = Batch::new(&pair.sequences()).unwrap();
        let on_torch = TokenBatch::new(&batch, Device::Cpu).unwrap();
        let (loss, gradient) = inner::loss_and_gradient(&pair.torch, &pair.parameters(), &on_torch).unwrap();
        let expected = tensors::named_to_host(&pair.table, &gradient).unwrap();

        // The step is the gradient where α is so large that the adapters vanish beside it.
        let alpha = 1e6_f32;
        let step = pair.device.adapt_step(std::slice::from_ref(&batch), &vec![alpha; pair.table.len()]).unwrap();
        let updated = pair.device.adapters();
        let found = pair.start.iter().map(|(name, start)| {
            let values = start.values.iter().zip(&updated[name].values).map(|(a, b)| (a - b) / alpha).collect();
            (name.clone(), HostTensor { shape: start.shape.clone(), values })
        });
        let error = (f64::from(step.loss) / loss - 1.0).abs();
        eprintln!("adapt.onnx, loss: relative error {error:.1e}, at most 1e-4");
        assert!(error <= 1e-4, "{} and {loss}", step.loss);
        all_within("adapt.onnx, gradients", &found.collect(), &expected, 1e-4);
        let norm: f64 = expected.values().flat_map(|t| &t.values).map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        assert!((f64::from(step.gradient_norm) / norm - 1.0).abs() <= 1e-4, "{} and {norm}", step.gradient_norm);
    }
}

#[test]
fn five_inner_steps_end_where_the_trainers_do() {
    for mut pair in Pair::all() {
        let sequences = pair.sequences();
        let recipe = pair.device.manifest().inner_loop.clone();
        let examples: Vec<Example> =
            sequences.iter().map(|sequence| Example { sequence: sequence.clone(), choices: Vec::new() }).collect();
        let support = Support::new(&recipe, &examples.iter().collect::<Vec<_>>(), 0, Device::Cpu).unwrap();
        let rates = vec![ALPHA; pair.table.len()];
        let adapted = inner::adapt(&pair.torch, &pair.parameters(), &support, &rates).unwrap();
        let plan = Plan::new(&mut pair.device, &sequences, &[], recipe.clone(), None).unwrap();
        let losses = adapt::follow(&mut pair.device, &plan, |_, _| Ok(Go::On)).unwrap();
        assert_eq!((losses.len(), adapted.losses.len()), (STEPS, STEPS));
        let worst =
            losses.iter().zip(&adapted.losses).fold(0.0_f64, |w, (a, b)| w.max((f64::from(*a) / b - 1.0).abs()));
        eprintln!("{STEPS} inner steps, losses: worst relative error {worst:.1e}, at most 1e-4");
        assert!(worst <= 1e-4);
        // The adapters went somewhere.
        let up = &pair.table.iter().find(|spec| spec.name.ends_with("attn_adapter.up.weight")).unwrap().name;
        let moved = difference(&pair.device.adapters()[up].values, &pair.start[up].values);
        assert!(moved > 1e-3, "{moved}");
        let expected = tensors::named_to_host(&pair.table, &adapted.parameters).unwrap();
        all_within("5 inner steps, adapters", &pair.device.adapters(), &expected, 1e-4);

        // As where memory is scarce: one dialogue at a time, activations computed twice, and what lies below the adapters in each step.
        pair.device.set_adapters(&pair.start).unwrap();
        pair.device.forget_dialogues(Some(0));
        pair.device.prepare_adaptation(Activations::Recomputed).unwrap();
        for (indices, expected) in recipe.batches(sequences.len()).iter().zip(&adapted.losses) {
            let parts: Vec<Batch> = indices.iter().map(|&index| Batch::new([&sequences[index]]).unwrap()).collect();
            let found = pair.device.adapt_step(&parts, &rates).unwrap().loss;
            assert!((f64::from(found) / expected - 1.0).abs() <= 1e-4, "{found} and {expected}");
        }
        all_within("5 steps in parts, activations computed twice", &pair.device.adapters(), &expected, 1e-4);
    }
}

#[test]
fn learned_learning_rates_move_each_tensor_by_its_own_unless_told_otherwise() {
    let rates: Vec<f32> = (0..).map(|tensor| 0.03 * tensor as f32).take(Pair::new().table.len()).collect();
    let recipe = InnerLoop { steps: 1, dialogues_per_step: 3, learning_rate: LearningRate::PerTensor(rates.clone()) };
    let mut pair = Pair::of(recipe.clone());
    assert_eq!(pair.device.manifest().inner_loop, recipe);
    let sequences = pair.sequences();
    let batch = TokenBatch::new(&Batch::new(&sequences).unwrap(), Device::Cpu).unwrap();
    let (_, gradient) = inner::loss_and_gradient(&pair.torch, &pair.parameters(), &batch).unwrap();
    let gradient = tensors::named_to_host(&pair.table, &gradient).unwrap();
    let stepped = |rate: &dyn Fn(usize) -> f32| -> Tensors {
        let step = |(tensor, spec): (usize, &TensorSpec)| {
            let (start, gradient) = (&pair.start[&spec.name], &gradient[&spec.name]);
            let values = start.values.iter().zip(&gradient.values).map(|(value, slope)| value - rate(tensor) * slope);
            (spec.name.clone(), HostTensor { shape: spec.shape.clone(), values: values.collect() })
        };
        pair.table.iter().enumerate().map(step).collect()
    };
    let (learned, told) = (stepped(&|tensor| rates[tensor]), stepped(&|_| ALPHA));

    let own = Recipe::default().inner_loop(&recipe, 3);
    let plan = Plan::new(&mut pair.device, &sequences, &[], own, None).unwrap();
    adapt::follow(&mut pair.device, &plan, |_, _| Ok(Go::On)).unwrap();
    let found = pair.device.adapters();
    all_within("learned learning rates", &found, &learned, 1e-5);
    // The first rate is zero.
    let still = &pair.table[0].name;
    assert_eq!(found[still], pair.start[still]);

    let dialogues = &read_dialogues(dialogues("test")).unwrap()[..3];
    let own = Recipe { learning_rate: Some(ALPHA), ..Recipe::default() }.inner_loop(&recipe, 3);
    let mut pair = Pair::of(recipe);
    let support = adapt::Support::new(&pair.encoder, dialogues, 0).unwrap();
    let plan = Plan::new(&mut pair.device, support.windows(), &[], own, None).unwrap();
    let persona = adapt::adapt(&mut pair.device, &support, &plan, false, |_| Go::On).unwrap().persona;
    assert_eq!(persona.record.learning_rate, LearningRate::Shared(ALPHA));
    all_within("--inner-lr instead of them", &persona.adapters, &told, 1e-5);
}

/// log p of the whole vocabulary from logits.
fn log_softmax(logits: &[f32]) -> Vec<f32> {
    let logits = Tensor::from_slice(logits).log_softmax(-1, Kind::Float);
    tensors::to_host(&logits).unwrap().values
}

fn argmax(values: &[f32]) -> u32 {
    values.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0 as u32
}

#[test]
fn cached_decoding_is_the_full_forward_for_64_tokens() {
    for mut pair in Pair::all() {
        let mut ids: Vec<u32> = pair.sequences()[0].ids[..20].to_vec();
        let torch = pair.at();
        let mut logits = pair.device.advance(&ids).unwrap().to_vec();
        let (mut worst, mut worst_score) = (0.0_f32, 0.0_f32);
        for _ in 0..64 {
            // The full forward, without any cache, by libtorch ...
            let wide: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
            let tokens = Tensor::from_slice(&wide).reshape([1, -1]);
            let full = tch::no_grad(|| torch.forward(&tokens, Layout::default(), None)).unwrap();
            let last = tensors::to_host(&full.get(ids.len() as i64 - 1)).unwrap().values;
            worst = worst.max(difference(&logits, &last));
            let next = argmax(&logits);
            assert_eq!(next, argmax(&last), "the greedy token after {} tokens", ids.len());
            // ... and by score.onnx.
            let scored =
                Scored { rows: vec![wide.len() as i64 - 1], targets: vec![i64::from(next)], ..Scored::all(&wide) };
            let log_prob = pair.device.score(&scored).unwrap()[0];
            worst_score = worst_score.max((log_prob - log_softmax(&logits)[next as usize]).abs());
            ids.push(next);
            logits = pair.device.advance(&[next]).unwrap().to_vec();
        }
        eprintln!(
            "cached decoding: worst error {worst:.1e} to libtorch's full forward, {worst_score:.1e} to score.onnx, at most 1e-4"
        );
        assert!(worst <= 1e-4 && worst_score <= 1e-4);
    }
}

#[test]
fn the_trainers_cached_decoding_is_its_full_forward() {
    let pair = Pair::new();
    let torch = pair.at();
    let ids: Vec<i64> = pair.sequences()[1].ids.iter().take(70).map(|&id| i64::from(id)).collect();
    let tokens = Tensor::from_slice(&ids).reshape([1, -1]);
    let full = tch::no_grad(|| torch.forward(&tokens, Layout::default(), None)).unwrap();
    let mut cache = Cache::default();
    let mut worst = 0.0_f64;
    for (index, &id) in ids.iter().enumerate() {
        let one = Tensor::from_slice(&[id]).reshape([1, 1]);
        let step = tch::no_grad(|| torch.step(&one, Layout::default(), &mut cache)).unwrap();
        worst = worst.max((step.get(0) - full.get(index as i64)).abs().max().double_value(&[]));
    }
    eprintln!("libtorch, cached decoding: worst error {worst:.1e}, at most 1e-4");
    assert!(worst <= 1e-4);
}

#[test]
fn candidates_ranked_in_one_row_score_as_each_by_itself() {
    for mut pair in Pair::all() {
        let dialogue = read_dialogues(dialogues("test")).unwrap().swap_remove(0);
        let ranking = pair.encoder.ranking(&dialogue, 1).unwrap();
        assert!(ranking.candidates == 20 && !ranking.targets.is_empty());
        let together = pair.device.score(&Scored::candidates_of(&ranking)).unwrap();
        let history: Vec<i64> =
            ranking.ids.iter().zip(&ranking.branch).filter(|(_, b)| **b == 0).map(|(id, _)| i64::from(*id)).collect();
        let mut worst = 0.0_f32;
        for candidate in 0..ranking.candidates as u32 {
            let own = |of: &[u32]| -> Vec<u32> {
                of.iter().zip(&ranking.candidate).filter(|(_, c)| **c == candidate).map(|(value, _)| *value).collect()
            };
            let targets: Vec<i64> = own(&ranking.targets).into_iter().map(i64::from).collect();
            let ids = [history.as_slice(), &targets[..targets.len() - 1]].concat();
            let first = history.len() as i64 - 1;
            let rows = (first..first + targets.len() as i64).collect();
            let alone = pair.device.score(&Scored { rows, targets, ..Scored::all(&ids) }).unwrap();
            let shared: Vec<f32> =
                together.iter().zip(&ranking.candidate).filter(|(_, c)| **c == candidate).map(|(v, _)| *v).collect();
            worst = worst.max(difference(&alone, &shared));
        }
        eprintln!("ranking in one row: worst error {worst:.1e}, at most 1e-4");
        assert!(worst <= 1e-4);
    }
}

#[test]
fn the_onnx_package_accepts_the_graphs() {
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".into());
    let has_onnx = Command::new(&python).args(["-c", "import onnx"]).output().is_ok_and(|run| run.status.success());
    if !has_onnx {
        eprintln!("skipped: {python} has no package onnx");
        return;
    }
    for pair in Pair::all() {
        for interface in pair.device.manifest().graphs.values() {
            let file = &interface.file;
            let path = pair.scratch.path("bundle").join(file);
            let run = Command::new(&python).args(["-c", CHECK]).arg(Path::new(&path)).output().unwrap();
            assert!(run.status.success(), "{file}: {}", String::from_utf8_lossy(&run.stderr));
        }
    }
}

/// By its path, so that the checker finds weights.bin.
const CHECK: &str = "import onnx, sys; onnx.checker.check_model(sys.argv[1], full_check=True)";
