//! Every parser of files that others may have made, given anything: it may refuse, in one line, and nothing else. [`TARGETS`] are run by
//! libFuzzer (`make fuzz`), and in the tests on their seeds, on what was found once, and on changed ones.

#![allow(clippy::expect_used, reason = "a machine on which no temporary file can be written fuzzes nothing")]

mod graphs;
mod parsers;
mod shapes;

/// A parser.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name.
    pub name: &'static str,
    /// Gives it an input. A panic is a find.
    pub run: fn(&[u8]),
    /// Inputs to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// The longest input that is worth trying, in bytes.
    pub longest: usize,
}

/// All of them.
pub const TARGETS: [Target; 12] = [
    Target { name: "dialogues", run: parsers::dialogues, seeds: parsers::dialogue_seeds, longest: 4096 },
    Target { name: "config", run: parsers::config, seeds: parsers::config_seeds, longest: 2048 },
    Target { name: "safetensors", run: parsers::safetensors, seeds: parsers::safetensors_seeds, longest: 4096 },
    Target { name: "tokenizer", run: parsers::tokenizer, seeds: parsers::tokenizer_seeds, longest: 4096 },
    Target { name: "template", run: parsers::template, seeds: parsers::template_seeds, longest: 2048 },
    Target { name: "manifest", run: parsers::manifest, seeds: parsers::manifest_seeds, longest: 8192 },
    Target { name: "persona", run: parsers::persona, seeds: parsers::persona_seeds, longest: 4096 },
    Target { name: "checkpoint", run: parsers::checkpoint, seeds: parsers::checkpoint_seeds, longest: 4096 },
    Target { name: "gguf", run: parsers::gguf, seeds: parsers::gguf_seeds, longest: 4096 },
    Target { name: "model", run: parsers::model, seeds: parsers::model_seeds, longest: 4096 },
    Target { name: "graph", run: graphs::audit, seeds: graphs::seeds, longest: 1 << 16 },
    Target { name: "shapes", run: shapes::shapes, seeds: shapes::seeds, longest: 128 },
];
