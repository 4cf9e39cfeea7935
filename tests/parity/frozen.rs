//! Training beside frozen integers: what the trainer computes is what the device will, and its derivatives point where those of the model in
//! f32 do.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use marionette_dialogues::{Batch, Encoder, Sequence};
use marionette_exporter::{FreshAdapters, Source, export};
use marionette_kernels::quantise;
use marionette_models::bundle::{Bundle, Operators, Precision};
use marionette_models::checkpoint::read_adapters;
use marionette_models::params::{self, Init, Order, TensorSpec};
use marionette_models::run::{ADAPTERS, Which, checkpoint};
use marionette_models::{Family, InnerLoop, LearningRate, ModelConfig, Tensors, init};
use marionette_runtime::engine::Scored;
use marionette_runtime::{Engine, Options};
use marionette_tests::{Scratch, root, tiny};
use marionette_trainer::decoder::Layout;
use marionette_trainer::frozen::Frozen;
use marionette_trainer::inner::{self, Support};
use marionette_trainer::meta::meta_gradient;
use marionette_trainer::method::Method;
use marionette_trainer::model::Model;
use marionette_trainer::tensors::{self, TokenBatch};
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor};

use crate::smollm2::Imported;
use crate::{ALPHA, llama, read_dialogues_of};

/// A source whose adapters are far from zero, learned beside integers.
fn source(folder: &Path, frozen: Precision) -> (Source, Vec<TensorSpec>) {
    let mut source = Source::read(folder, FreshAdapters { bottleneck: Some(16), seed: Some(3) }, None).unwrap();
    let table = params::adapter_table(&source.base.config, &source.adapter);
    let spread: Vec<TensorSpec> =
        table.iter().map(|spec| TensorSpec { init: Init::Normal { std: 0.05 }, ..spec.clone() }).collect();
    source.adapters = init::initialise(&spread, &mut ChaCha8Rng::seed_from_u64(11));
    source.inner_loop = InnerLoop { steps: 2, dialogues_per_step: 1, learning_rate: LearningRate::Shared(ALPHA) };
    source.frozen = frozen;
    (source, table)
}

fn model(config: &ModelConfig, base: &Tensors, table: &[TensorSpec], precision: Precision) -> Model {
    let frozen = Frozen::new(base.clone(), precision, Device::Cpu).unwrap();
    let parts = Method::ExtraPlace.parts();
    Model::new(config, parts, frozen, table.to_vec(), Kind::Float, Device::Cpu).unwrap()
}

fn on_torch(adapters: &Tensors, table: &[TensorSpec]) -> Vec<Tensor> {
    let tensor = |spec: &TensorSpec| tensors::to_torch(&adapters[&spec.name], Kind::Float, Device::Cpu).unwrap();
    table.iter().map(tensor).collect()
}

fn cosine(one: &[Tensor], other: &[Tensor]) -> f64 {
    let dot = |one: &[Tensor], other: &[Tensor]| -> f64 {
        one.iter().zip(other).map(|(a, b)| (a * b).sum(Kind::Double).double_value(&[])).sum()
    };
    dot(one, other) / (dot(one, one) * dot(other, other)).sqrt()
}

/// Of a value on the border between two integers either may be taken, after sums in another order; until then nothing differs.
#[test]
fn what_is_trained_beside_integers_is_what_the_device_computes() {
    let scratch = Scratch::new();
    let families = [(Family::Gpt2, tiny()), (Family::Llama, llama(&scratch))];
    let all = families.iter().flat_map(|of| [Precision::Int8, Precision::Int4].map(|precision| (of, precision)));
    for ((family, folder), precision) in all {
        let (source, table) = source(folder, precision);
        let out = scratch.path(&format!("{family:?}-{precision}"));
        export(&source, precision, Operators::Ort, &out, &AtomicBool::new(false)).unwrap();
        let bundle = Bundle::open(&out).unwrap();
        let encoder = marionette_runtime::engine::encoder(&bundle).unwrap();
        let mut device = Engine::open(&bundle, Options::default()).unwrap();
        let torch = model(&source.base.config, &source.base.tensors, &table, precision);
        let start = on_torch(&source.adapters, &table);
        let mut sequences = read_dialogues_of(&encoder);
        sequences.iter_mut().for_each(|sequence| cut(sequence, 24));

        let (mut same, mut all) = (0, 0);
        for sequence in &sequences {
            let ids: Vec<i64> = sequence.ids.iter().map(|&id| i64::from(id)).collect();
            let row = Tensor::from_slice(&ids).unsqueeze(0);
            let logits = torch.at(&start).unwrap().forward(&row, Layout::default(), None).unwrap();
            let next = row.narrow(1, 1, ids.len() as i64 - 1).reshape([-1, 1]);
            let expected =
                logits.log_softmax(-1, Kind::Float).narrow(0, 0, ids.len() as i64 - 1).gather(1, &next, false);
            let expected = tensors::to_host(&expected).unwrap().values;
            let found = device.score(&Scored::all(&ids)).unwrap();
            assert_eq!(found.len(), expected.len());
            let worst = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 0.3, "{family:?}, {precision}: {worst}");
            same += found.iter().zip(&expected).filter(|(a, b)| (*a - *b).abs() < 1e-4).count();
            all += found.len();
        }
        eprintln!("{family:?}, {precision}: {same} of {all} log-probabilities within 1e-4");
        assert!(2 * same > all, "{family:?}, {precision}: {same} of {all}");

        let batch = Batch::new(&sequences).unwrap();
        let on_torch = TokenBatch::new(&batch, Device::Cpu).unwrap();
        let (loss, gradient) = inner::loss_and_gradient(&torch, &start, &on_torch).unwrap();
        // The step is the gradient where α is so large that the adapters vanish beside it.
        let alpha = 1e6_f32;
        let step = device.adapt_step(std::slice::from_ref(&batch), &vec![alpha; table.len()]).unwrap();
        let updated = device.adapters();
        let found = table.iter().zip(&start).map(|(spec, start)| {
            (start - tensors::to_torch(&updated[&spec.name], Kind::Float, Device::Cpu).unwrap()) / f64::from(alpha)
        });
        let (error, cosine) =
            ((f64::from(step.loss) / loss - 1.0).abs(), cosine(&found.collect::<Vec<_>>(), &gradient));
        eprintln!(
            "{family:?}, {precision}: relative error of the loss {error:.1e}, cosine of the gradients {cosine:.6}"
        );
        assert!(error < 1e-3 && cosine > 0.9999, "{family:?}, {precision}: {error} {cosine}");
    }
}

/// The first so many tokens.
fn cut(sequence: &mut Sequence, length: usize) {
    sequence.ids.truncate(length);
    sequence.target.truncate(length);
}

/// The outer gradients of two steps beside integers: the exact one against that of the same rounded matrices, of which nothing but the rounding of
/// rows is left, and both against the model in f32, `least` of which the cosine is.
fn outer_gradients_point_where_those_in_floats_do(source: &Source, tokens: usize, least: f64) {
    let precision = source.frozen;
    // libtorch's threads wait busily, which the kernels' would feel.
    tch::set_num_threads(1);
    let table = params::adapter_table(&source.base.config, &source.adapter);
    let config = &source.base.config;
    let (tokenizer, prompt) = (source.tokenizer.clone(), source.prompt.clone());
    let encoder = Encoder::new(tokenizer, prompt, config.n_positions, config.vocab_size).unwrap();
    let mut sequences = read_dialogues_of(&encoder);
    sequences.iter_mut().for_each(|sequence| cut(sequence, tokens));
    let batch = |sequence: &Sequence| TokenBatch::new(&Batch::new([sequence]).unwrap(), Device::Cpu).unwrap();
    let (support, query) = (Support::repeat(batch(&sequences[0]), 2), batch(&sequences[1]));
    let (start, rates) = (on_torch(&source.adapters, &table), vec![0.03; table.len()]);
    let gradient = |model: &Model, exact: bool| {
        meta_gradient(model, &start, &support, &query, &rates, exact, false).unwrap().gradient
    };
    let mut stored = source.base.tensors.clone();
    for (name, tensor) in &mut stored {
        if let Some((order, [columns, _])) = Order::of(name, &tensor.shape) {
            tensor.values = match precision {
                Precision::Int4 => quantise::to_int4(&tensor.values, order, columns, 32, None).values(order, columns),
                _ => quantise::to_int8(&tensor.values, order, columns, None).values(order),
            };
        }
    }
    let of = |tensors: &Tensors, precision| model(config, tensors, &table, precision);
    let [floats, stored, integers] =
        [of(&source.base.tensors, Precision::Fp32), of(&stored, Precision::Fp32), of(&source.base.tensors, precision)];
    let found = gradient(&integers, true);
    let (rows, exact) = (cosine(&found, &gradient(&stored, true)), cosine(&found, &gradient(&floats, true)));
    let first = cosine(&gradient(&integers, false), &gradient(&floats, false));
    eprintln!(
        "{precision}: cosine of the outer gradients: exact, to the rounded matrices' {rows:.4}; to f32's {first:.4}, exact {exact:.4}"
    );
    assert!(rows >= 0.99 && first >= least && exact >= least, "{rows} {first} {exact}");
}

#[test]
fn outer_gradients_of_the_bundled_model_point_where_those_in_floats_do() {
    for (precision, least) in [(Precision::Int8, 0.99), (Precision::Int4, 0.95)] {
        outer_gradients_point_where_those_in_floats_do(&source(&tiny(), precision).0, 100, least);
    }
}

#[test]
fn outer_gradients_of_smollm2_point_where_those_in_floats_do() {
    let Some(imported) = Imported::get() else { return };
    // The start that is shipped: random adapters make it a model of nothing.
    let start = checkpoint(&root().join("models/smollm2-persona"), Which::Best).unwrap().join(ADAPTERS);
    let mut source = Source::read(&imported.folder(), FreshAdapters::default(), None).unwrap();
    (source.adapters, _) = read_adapters(&start, &source.base.config, &source.adapter).unwrap();
    // Of 4 bits the embedding, which is the head too, is another.
    for (precision, least) in [(Precision::Int8, 0.99), (Precision::Int4, 0.9)] {
        source.frozen = precision;
        outer_gradients_point_where_those_in_floats_do(&source, 64, least);
    }
}
