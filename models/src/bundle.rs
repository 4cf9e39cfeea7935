//! The bundle: what the exporter ships and the runtime opens. A folder of exactly the files its manifest lists.

mod audit;
mod format_1;
mod manifest;
mod open;
pub mod operators;
mod weights;
mod writer;

use crate::config::AdapterConfig;

pub use audit::audit;
pub use manifest::{DataType, Dim, FileEntry, GraphInterface, Manifest, Operators, Precision, RunMemory, ValueInfo};
pub use open::{Bundle, Opening};
pub use writer::{BundleWriter, seal};

/// The format version that this code writes; it reads format 1 too.
pub const FORMAT_VERSION: u32 = 2;
/// The manifest.
pub const MANIFEST: &str = "manifest.json";
/// The digest of the manifest, as `sha256sum` prints and checks it: the manifest has those of all other files. Bundles of format 1 were
/// written without.
pub const SUMS: &str = "SHA256SUMS";
/// Generation: logits of the last position, KV cache.
pub const GENERATE: &str = "generate.onnx";
/// Scoring: log-probabilities of given tokens.
pub const SCORE: &str = "score.onnx";
/// Adaptation: one SGD step of the adapters.
pub const ADAPT: &str = "adapt.onnx";
/// The same step in less memory and more time: activations are computed a second time instead of kept.
pub const ADAPT_RECOMPUTED: &str = "adapt-recomputed.onnx";
/// What lies below the first block with adapters; there is none where all blocks have some.
pub const BELOW: &str = "below.onnx";
/// The frozen weights, external data of all graphs.
pub const WEIGHTS: &str = "weights.bin";
/// Φ, the meta-learned adapters.
pub const ADAPTERS: &str = "adapters.safetensors";
/// The tokenizer.
pub const TOKENIZER: &str = "tokenizer.json";
/// What the trainer computed on a small batch; absent where no run made the bundle.
pub const PROBE: &str = "probe.safetensors";

/// How rows are rounded to 8 bits for a product of integers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RowRounding {
    /// How many values after one another share a scale, 1/127 of the largest; the last ones may be fewer.
    pub group: usize,
    /// A group with a value more than so many times the root of the row's mean square is rounded to two digits to base [`BASE`].
    pub outlier: f32,
}

/// Forward. Of what a real model computes a few values are tens of times larger than the rest, and with one scale a row their step would
/// leave little of the others (Dettmers et al. 2022, "LLM.int8()", section 4). It leaves little of the others of their group, too: a
/// tenth of all groups, which would make nine tenths of a row's error.
pub const ROWS: RowRounding = RowRounding { group: 32, outlier: 6.0 };
/// On the way back, where rows are of gradients: they bear long steps, and are rounded to one digit in longer groups, which is faster.
pub const ROWS_OF_GRADIENTS: RowRounding = RowRounding { group: 64, outlier: f32::INFINITY };
/// Of digits from −127 to 127.
pub const BASE: f32 = 254.0;

/// The graphs of every bundle, by the names that the manifest gives them.
pub const GRAPHS: [(&str, &str); 4] =
    [("generate", GENERATE), ("score", SCORE), ("adapt", ADAPT), ("adapt-recomputed", ADAPT_RECOMPUTED)];

/// The graphs of a bundle with these adapters.
pub fn graphs(adapter: &AdapterConfig) -> impl Iterator<Item = (&'static str, &'static str)> + use<> {
    GRAPHS.into_iter().chain((adapter.first_block > 0).then_some(("below", BELOW)))
}
