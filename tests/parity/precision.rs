//! What rounded weights change, and that it is little.

use std::sync::atomic::AtomicBool;

use marionette_dialogues::{Batch, Sequence, Task, group_by_persona, read_dialogues};
use marionette_exporter::{FreshAdapters, Source, report};
use marionette_models::bundle::{Bundle, Operators, Precision};
use marionette_models::{Family, InnerLoop, LearningRate};
use marionette_runtime::engine::Scored;
use marionette_runtime::generate::{Go, LanguageModel as _};
use marionette_runtime::plan::Plan;
use marionette_runtime::{Engine, Options, adapt};
use marionette_tests::{dialogues, tiny};
use marionette_trainer::inner::{self, Support};
use marionette_trainer::tensors::TokenBatch;
use tch::Device;

use crate::{ALPHA, Pair, STEPS, log_softmax};

/// Rounded weights, and for integers rounded activations too, move losses by little; and adapting with them goes as far down.
#[test]
fn every_precision_adapts_as_f32_does() {
    // The worst relative error of a loss: f16 has 11 bits, integers of 8 about 7, of 4 about 3.
    let most = [(Precision::Fp16, 1e-3), (Precision::Int8, 1e-2), (Precision::Int4, 5e-2)];
    let each = most.into_iter().flat_map(|row| Operators::ALL.map(|operators| (row, operators)));
    for (family, ((precision, most), operators)) in
        Family::ALL.into_iter().flat_map(|family| each.clone().map(move |row| (family, row)))
    {
        let inner = InnerLoop { steps: STEPS, dialogues_per_step: 2, learning_rate: LearningRate::Shared(ALPHA) };
        let mut pair = Pair::of_family(family, 0, inner.clone(), precision, operators);
        let batch = Batch::new(&pair.sequences()).unwrap();
        let support = Support::repeat(TokenBatch::new(&batch, Device::Cpu).unwrap(), STEPS);
        let rates = vec![ALPHA; pair.table.len()];
        let expected = inner::adapt(&pair.torch, &pair.parameters(), &support, &rates).unwrap();
        let losses: Vec<f64> = (0..STEPS)
            .map(|_| f64::from(pair.device.adapt_step(std::slice::from_ref(&batch), &rates).unwrap().loss))
            .collect();
        let errors = losses.iter().zip(&expected.losses).map(|(found, expected)| (found / expected - 1.0).abs());
        let worst = errors.fold(0.0, f64::max);
        eprintln!(
            "{family} {precision} {operators}, losses of {STEPS} steps: worst relative error {worst:.1e}, at most {most:.0e}"
        );
        assert!(worst <= most, "{precision} {operators}: {losses:?}, expected {:?}", expected.losses);

        // One token at a time and all at once are two kinds of product.
        let ids: Vec<i64> = pair.sequences()[0].ids.iter().take(24).map(|&id| i64::from(id)).collect();
        let scored = pair.device.score(&Scored::all(&ids)).unwrap();
        let mut worst = 0.0_f64;
        for (index, &id) in ids.iter().enumerate().take(ids.len() - 1) {
            let logits = pair.device.advance(&[id as u32]).unwrap();
            let log_prob = log_softmax(logits)[ids[index + 1] as usize];
            worst = worst.max(f64::from((log_prob - scored[index]).abs()));
        }
        // A prompt at once.
        pair.device.truncate(0);
        let (&last, prompt) = ids.split_last().unwrap();
        let prompt: Vec<u32> = prompt.iter().map(|&id| id as u32).collect();
        let log_prob = log_softmax(pair.device.advance(&prompt).unwrap())[last as usize];
        worst = worst.max(f64::from((log_prob - scored[ids.len() - 2]).abs()));
        eprintln!("{family} {precision} {operators}, decoding beside scoring: worst error {worst:.1e}");
        assert!(worst <= 20.0 * most, "{precision} {operators}: {worst}");
    }
}

/// What `marionette-export` says that a precision costs, by its own arithmetic, is what it costs on ONNX Runtime.
#[test]
fn the_cost_of_a_precision_is_what_the_device_loses() {
    for precision in [Precision::Fp32, Precision::Int8, Precision::Int4] {
        let inner = InnerLoop { steps: STEPS, dialogues_per_step: 1, learning_rate: LearningRate::Shared(ALPHA) };
        let mut pair = Pair::with(inner, precision, Operators::Ort);
        let mut source = Source::read(&tiny(), FreshAdapters { bottleneck: Some(16), seed: Some(3) }, None).unwrap();
        source.adapters = pair.start.clone();
        source.inner_loop = pair.device.manifest().inner_loop.clone();
        let read: Vec<_> = read_dialogues(dialogues("test")).unwrap().into_iter().take(3).collect();
        let task = Task {
            dialogues: read,
            ..group_by_persona(read_dialogues(dialogues("test")).unwrap()).unwrap().tasks.remove(0)
        };
        source.validation = Ok(vec![task]);
        let bundle = pair.scratch.path("bundle");
        let stop = AtomicBool::new(false);
        let report = report::measure(&source, precision, Operators::Ort, &bundle, &stop).unwrap();
        let on = report.dialogues.unwrap();
        assert_eq!(on.dialogues, 3);

        let sequences = pair.sequences();
        let mut loss = 0.0;
        for sequence in &sequences {
            loss -=
                pair.device.score(&Scored::targets_of(sequence)).unwrap().iter().map(|v| f64::from(*v)).sum::<f64>();
        }
        let perplexity = (loss / on.targets as f64).exp();
        let shortest = sequences.iter().min_by_key(|sequence| sequence.ids.len()).unwrap();
        let batch = Batch::new([shortest]).unwrap();
        let rates = vec![ALPHA; pair.table.len()];
        let losses: Vec<f64> = (0..=10)
            .map(|_| f64::from(pair.device.adapt_step(std::slice::from_ref(&batch), &rates).unwrap().loss))
            .collect();
        // Where sums are rounded to other bytes here and there, the two part a little.
        let most = if precision == Precision::Fp32 { 1e-5 } else { 5e-3 };
        let errors = [(on.perplexity[1], perplexity), (on.loss_after[1], losses[10])].map(|(a, b)| (a / b - 1.0).abs());
        eprintln!(
            "{precision}, perplexity and loss after ten steps: errors {:.0e} and {:.0e}, at most {most:.0e}",
            errors[0], errors[1]
        );
        assert!(errors.iter().all(|error| *error <= most), "{precision}: {on:?}, {perplexity}, {losses:?}");
        // And it does cost something.
        assert_eq!(report.logits.worst > 0.0, precision != Precision::Fp32);
        assert!((on.loss_before / losses[0] - 1.0).abs() <= 0.05 && losses[10] < 0.9 * losses[0]);
    }
}

/// Without our kernels, ONNX Runtime executes the bodies of our operators, as other runtimes and providers do: the results are the same
/// but for the order of sums, and for integers how rows are rounded: with few of them ONNX Runtime does it block by block.
#[test]
fn operators_without_kernels_are_their_bodies() {
    let most = [(Precision::Fp32, 1e-5), (Precision::Fp16, 1e-5), (Precision::Int8, 5e-2), (Precision::Int4, 2e-1)];
    for ((precision, most), first_block) in most.into_iter().flat_map(|row| [0, 2].map(|first| (row, first))) {
        let inner = InnerLoop { steps: 1, dialogues_per_step: 3, learning_rate: LearningRate::Shared(ALPHA) };
        let mut pair = Pair::of_family(Family::Gpt2, first_block, inner, precision, Operators::Ort);
        let bundle = Bundle::open(&pair.scratch.path("bundle")).unwrap();
        let mut bodies = Engine::open(&bundle, Options { kernels: false, ..Options::default() }).unwrap();
        let sequences = pair.sequences();
        let (ids, batch) = (&sequences[0].ids[..24], Batch::new(&sequences).unwrap());
        let rates = vec![ALPHA; pair.table.len()];
        let [expected, found] = [&mut pair.device, &mut bodies].map(|engine| {
            let mut figures = engine.score(&Scored::targets_of(&sequences[1])).unwrap();
            // A prompt, and one token.
            figures.extend(log_softmax(engine.advance(ids).unwrap()));
            figures.extend(log_softmax(engine.advance(&ids[..1]).unwrap()));
            let step = engine.adapt_step(std::slice::from_ref(&batch), &rates).unwrap();
            figures.extend([step.loss, step.gradient_norm]);
            figures
        });
        assert_eq!(found.len(), expected.len());
        let error = |(a, b): (&f32, &f32)| f64::from((a - b).abs()) / f64::from(b.abs()).max(1.0);
        let worst = found.iter().zip(&expected).map(error).fold(0.0, f64::max);
        eprintln!("{precision}, bodies instead of kernels: worst error {worst:.1e}, at most {most:.0e}");
        assert!(worst <= most, "{precision}: {worst:e}");
    }
}

/// The bundled personas: adapted to the first three dialogues of each, the model with rounded weights is as good on the others as
/// the one in f32, within 2 %.
#[test]
fn rounded_models_learn_a_persona_as_well() {
    let personas = group_by_persona(read_dialogues(dialogues("test")).unwrap()).unwrap().tasks;
    let held_out = |precision: Precision, operators: Operators, steps: usize| -> f64 {
        let inner = InnerLoop { steps, dialogues_per_step: 3, learning_rate: LearningRate::Shared(0.3) };
        let mut pair = Pair::with(inner.clone(), precision, operators);
        let (mut loss, mut targets) = (0.0, 0);
        for persona in personas.iter().take(3) {
            let encode = |dialogue| pair.encoder.windows(dialogue).unwrap();
            let sequences: Vec<Sequence> = persona.dialogues.iter().flat_map(encode).collect();
            let (support, others) = sequences.split_at(3);
            pair.device.set_adapters(&pair.start).unwrap();
            let plan = Plan::new(&mut pair.device, support, &[], inner.clone(), None).unwrap();
            adapt::follow(&mut pair.device, &plan, |_, _| Ok(Go::On)).unwrap();
            for sequence in others {
                let log_probs = pair.device.score(&Scored::targets_of(sequence)).unwrap();
                loss -= log_probs.iter().map(|&value| f64::from(value)).sum::<f64>();
                targets += log_probs.len();
            }
        }
        (loss / targets as f64).exp()
    };
    let untouched = held_out(Precision::Fp32, Operators::Ort, 0);
    let expected = held_out(Precision::Fp32, Operators::Ort, 24);
    assert!(expected < 0.97 * untouched, "{expected} after {untouched}");
    for precision in [Precision::Fp16, Precision::Int8, Precision::Int4] {
        for operators in Operators::ALL {
            let found = held_out(precision, operators, 24);
            eprintln!("{precision} {operators}: held-out perplexity {found:.3}, in f32 {expected:.3}");
            assert!((found / expected - 1.0).abs() <= 0.02, "{precision} {operators}: {found}, {expected}");
        }
    }
}
