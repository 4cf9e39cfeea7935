//! Several personas in one pass of the generate graph are what each is alone.

use std::num::NonZeroUsize;

use marionette_dialogues::read_dialogues;
use marionette_models::bundle::{Bundle, Operators, Precision};
use marionette_models::{Family, InnerLoop, LearningRate, Tensors};
use marionette_runtime::engine::{RowId, Rows};
use marionette_runtime::generate::LanguageModel as _;
use marionette_runtime::{Engine, Options};
use marionette_tests::dialogues;

use super::{Pair, difference};

/// A persona, what it is told and says, and the logits after the first `PROMPTS` tokens of it, and after each one more.
struct Conversation {
    adapters: Tensors,
    tokens: Vec<u32>,
    prompt: usize,
    logits: Vec<Vec<f32>>,
}

impl Conversation {
    fn alone(engine: &mut Engine, adapters: Tensors, tokens: &[u32], prompt: usize) -> Self {
        engine.set_adapters(&adapters).unwrap();
        let mut logits = vec![engine.advance(&tokens[..prompt]).unwrap().to_vec()];
        logits.extend(tokens[prompt..].iter().map(|&token| engine.advance(&[token]).unwrap().to_vec()));
        Self { adapters, tokens: tokens.to_vec(), prompt, logits }
    }
}

/// Conversations in rows: which, the row, and how many tokens it has read after the prompt.
struct Running<'a> {
    rows: Rows,
    all: &'a [Conversation],
    now: Vec<(usize, RowId, usize)>,
    worst: f32,
}

impl Running<'_> {
    fn join(&mut self, which: usize) {
        let conversation = &self.all[which];
        let row = self.rows.join(&conversation.adapters).unwrap();
        assert!(self.rows.logits(row).is_none() && self.rows.cached(row).is_empty());
        let logits = self.rows.read(row, &conversation.tokens[..conversation.prompt]).unwrap();
        self.worst = self.worst.max(difference(logits, &conversation.logits[0]));
        self.now.push((which, row, 0));
    }

    fn leave(&mut self, which: usize) {
        let at = self.now.iter().position(|(known, ..)| *known == which).unwrap();
        self.rows.leave(self.now.remove(at).1);
    }

    /// A token of each of these.
    fn step(&mut self, which: &[usize]) {
        let mut tokens = Vec::new();
        for (known, row, read) in self.now.iter_mut().filter(|(known, ..)| which.contains(known)) {
            let conversation = &self.all[*known];
            tokens.push((*row, conversation.tokens[conversation.prompt + *read]));
            *read += 1;
        }
        assert_eq!(tokens.len(), which.len());
        // In whatever order they are given.
        tokens.reverse();
        self.rows.step(&tokens).unwrap();
        // Of those too that stood still.
        for &(known, row, read) in &self.now {
            let Conversation { tokens, prompt, logits, .. } = &self.all[known];
            self.worst = self.worst.max(difference(self.rows.logits(row).unwrap(), &logits[read]));
            assert_eq!(self.rows.cached(row), &tokens[..prompt + read]);
        }
    }
}

#[test]
fn rows_of_several_personas_are_what_each_is_alone() {
    let inner = InnerLoop { steps: 1, dialogues_per_step: 1, learning_rate: LearningRate::Shared(0.1) };
    // More rows are multiplied in another order, and what differs in the last bit may be rounded to the next integer.
    let kinds = [
        (Precision::Fp32, Operators::Ort, true, 1e-4),
        (Precision::Fp32, Operators::Standard, true, 1e-4),
        (Precision::Fp32, Operators::Ort, false, 1e-4),
        (Precision::Int8, Operators::Ort, true, 5e-2),
        (Precision::Int8, Operators::Ort, false, 5e-2),
        (Precision::Int4, Operators::Ort, true, 5e-2),
    ];
    for (family, (precision, operators, kernels, most)) in
        Family::ALL.into_iter().flat_map(|family| kinds.map(|kind| (family, kind)))
    {
        let pair = Pair::of_family(family, 1, inner.clone(), precision, operators);
        let bundle = Bundle::open(&pair.scratch.path("bundle")).unwrap();
        let mut engine = Engine::open(&bundle, Options { kernels, ..Options::default() }).unwrap();
        let words = read_dialogues(dialogues("test")).unwrap();
        let all: Vec<Conversation> = [(30, 20), (17, 5), (24, 11)]
            .into_iter()
            .enumerate()
            .map(|(which, (length, prompt))| {
                let ids = &pair.encoder.windows(&words[which]).unwrap()[0].ids;
                let mut adapters = pair.start.clone();
                let turned = |value: &mut f32| *value *= [1.0, -1.0, 0.5][which];
                adapters.values_mut().flat_map(|tensor| &mut tensor.values).for_each(turned);
                Conversation::alone(&mut engine, adapters, &ids[..length], prompt)
            })
            .collect();
        // They are three.
        assert!(difference(&all[0].logits[0], &all[1].logits[0]) > 0.1);
        let rows = Rows::open(&engine, NonZeroUsize::new(3).unwrap()).unwrap();
        let mut running = Running { rows, all: &all, now: Vec::new(), worst: 0.0 };
        running.join(0);
        running.step(&[0]);
        running.join(1);
        running.step(&[0, 1]);
        running.step(&[0, 1]);
        running.join(2);
        running.step(&[0, 1, 2]);
        assert!(running.rows.join(&all[0].adapters).unwrap_err().to_string().contains("3 rows"));
        // The last one takes the first's place; and one stands still between two others.
        running.leave(0);
        running.step(&[1, 2]);
        running.join(0);
        running.step(&[2, 0]);
        running.step(&[0, 1, 2]);
        running.leave(2);
        running.leave(1);
        running.step(&[0]);
        let Running { mut rows, now, worst, .. } = running;
        eprintln!(
            "{family} {precision} {operators}, kernels {kernels}: rows to each alone {worst:.1e}, at most {most:.0e}"
        );
        assert!(worst <= most, "{family} {precision} {operators}, kernels {kernels}: {worst:e}");
        let row = now[0].1;
        assert!(rows.step(&[(row, 1), (row, 2)]).unwrap_err().to_string().contains("two tokens"));
        rows.truncate(row, 3);
        assert_eq!(rows.cached(row), &all[0].tokens[..3]);
        let long = vec![1; rows.context()];
        assert!(rows.read(row, &long).unwrap_err().to_string().contains("after 3"));
        rows.leave(row);
        assert!(rows.is_empty() && rows.read(row, &[1]).unwrap_err().to_string().contains("is not there"));
    }
}
