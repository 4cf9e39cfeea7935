//! The one table of tensors: name, shape, initialisation. Trainer, exporter and runtime spell no tensor name themselves.

use std::collections::BTreeMap;
use std::io::{self, Write};

use crate::config::{AdapterConfig, Gpt2Config};

/// How a tensor starts when it is not loaded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// All zero.
    Zeros,
    /// All one.
    Ones,
    /// Normal with mean zero and this standard deviation.
    Normal {
        /// The standard deviation.
        std: f32,
    },
}

/// One row of the table.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorSpec {
    /// The name, GPT-2's own without the prefix `transformer.`.
    pub name: String,
    /// The shape; a linear layer's weight is [inputs, outputs], as GPT-2 stores it.
    pub shape: Vec<usize>,
    /// How it starts.
    pub init: Init,
}

impl TensorSpec {
    fn new(name: String, shape: &[usize], init: Init) -> Self {
        Self { name, shape: shape.to_vec(), init }
    }

    /// The number of values.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A dense f32 tensor in row-major order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct HostTensor {
    /// The shape.
    pub shape: Vec<usize>,
    /// The values, as many as the shape says.
    pub values: Vec<f32>,
}

impl HostTensor {
    /// Writes the values as little-endian f32.
    ///
    /// # Errors
    /// What writing says.
    pub fn write_le(&self, writer: &mut dyn Write) -> io::Result<()> {
        let mut buffer = Vec::with_capacity(1 << 16);
        for chunk in self.values.chunks(1 << 14) {
            buffer.clear();
            buffer.extend(chunk.iter().flat_map(|value| value.to_le_bytes()));
            writer.write_all(&buffer)?;
        }
        Ok(())
    }
}

/// Tensors by name.
pub type Tensors = BTreeMap<String, HostTensor>;

/// The standard deviation of GPT-2's initialisation (Radford et al. 2019; `initializer_range` in Hugging Face).
const GPT2_STD: f32 = 0.02;

/// φ, the tensors of GPT-2 in the order of the forward pass. The language-model head is `wte.weight` transposed.
pub fn base_table(config: &Gpt2Config) -> Vec<TensorSpec> {
    let (d, f) = (config.n_embd, config.n_inner);
    let normal = Init::Normal { std: GPT2_STD };
    // Projections onto the residual stream start smaller by 1/√(2 L), the number of residual additions (GPT-2, section 2.3).
    let residual = Init::Normal { std: GPT2_STD / (2.0 * config.n_layer as f32).sqrt() };
    let mut table = vec![
        TensorSpec::new(names::WTE.into(), &[config.vocab_size, d], normal),
        TensorSpec::new(names::WPE.into(), &[config.n_positions, d], normal),
    ];
    let mut push = |name: &str, shape: &[usize], init| table.push(TensorSpec::new(name.to_owned(), shape, init));
    for layer in 0..config.n_layer {
        let block = names::Block::new(layer);
        push(&block.ln_1.weight, &[d], Init::Ones);
        push(&block.ln_1.bias, &[d], Init::Zeros);
        push(&block.attn_qkv.weight, &[d, 3 * d], normal);
        push(&block.attn_qkv.bias, &[3 * d], Init::Zeros);
        push(&block.attn_proj.weight, &[d, d], residual);
        push(&block.attn_proj.bias, &[d], Init::Zeros);
        push(&block.ln_2.weight, &[d], Init::Ones);
        push(&block.ln_2.bias, &[d], Init::Zeros);
        push(&block.mlp_fc.weight, &[d, f], normal);
        push(&block.mlp_fc.bias, &[f], Init::Zeros);
        push(&block.mlp_proj.weight, &[f, d], residual);
        push(&block.mlp_proj.bias, &[d], Init::Zeros);
    }
    push(names::LN_F_WEIGHT, &[d], Init::Ones);
    push(names::LN_F_BIAS, &[d], Init::Zeros);
    table
}

/// Φ, the adapters' tensors: two adapters a block, each a down-projection [D, R] and an up-projection [R, D] with biases.
/// The up-projection starts at zero, so that the adapted model is the bare one at first (MAMLviaPP, equation 2).
pub fn adapter_table(config: &Gpt2Config, adapter: &AdapterConfig) -> Vec<TensorSpec> {
    let (d, r) = (config.n_embd, adapter.bottleneck);
    // 1/√D keeps a normalised input at unit scale through the bottleneck.
    let down = Init::Normal { std: 1.0 / (d as f32).sqrt() };
    let mut table = Vec::with_capacity(8 * config.n_layer);
    for layer in 0..config.n_layer {
        let block = names::Block::new(layer);
        for adapter in [block.attn_adapter, block.mlp_adapter] {
            table.push(TensorSpec::new(adapter.down.weight, &[d, r], down));
            table.push(TensorSpec::new(adapter.down.bias, &[r], Init::Zeros));
            table.push(TensorSpec::new(adapter.up.weight, &[r, d], Init::Zeros));
            table.push(TensorSpec::new(adapter.up.bias, &[d], Init::Zeros));
        }
    }
    table
}

/// The next-utterance classifier (Wolf et al. 2019): one score from the last token's residual stream, after the last layer
/// normalisation. Only the trainer knows it.
pub fn classifier_table(config: &Gpt2Config) -> Vec<TensorSpec> {
    let names = names::classifier();
    vec![
        TensorSpec::new(names.weight, &[config.n_embd, 1], Init::Normal { std: 0.02 }),
        TensorSpec::new(names.bias, &[1], Init::Zeros),
    ]
}

/// The names of the tensors.
pub mod names {
    /// The token embedding, [V, D].
    pub const WTE: &str = "wte.weight";
    /// The position embedding, [P, D].
    pub const WPE: &str = "wpe.weight";
    /// The last layer normalisation's scale, `[D]`.
    pub const LN_F_WEIGHT: &str = "ln_f.weight";
    /// The last layer normalisation's shift, `[D]`.
    pub const LN_F_BIAS: &str = "ln_f.bias";

    /// A weight and a bias.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Pair {
        /// The weight.
        pub weight: String,
        /// The bias.
        pub bias: String,
    }

    impl Pair {
        fn new(prefix: &str) -> Self {
            Self { weight: format!("{prefix}.weight"), bias: format!("{prefix}.bias") }
        }
    }

    /// The next-utterance classifier, `[D, 1]` and `[1]`.
    pub fn classifier() -> Pair {
        Pair::new("classifier")
    }

    /// One adapter's two projections.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Adapter {
        /// The down-projection, [D, R] and `[R]`.
        pub down: Pair,
        /// The up-projection, [R, D] and `[D]`.
        pub up: Pair,
    }

    impl Adapter {
        fn new(prefix: &str) -> Self {
            Self { down: Pair::new(&format!("{prefix}.down")), up: Pair::new(&format!("{prefix}.up")) }
        }
    }

    /// The names of one block's tensors.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct Block {
        /// The layer normalisation before attention, `[D]`.
        pub ln_1: Pair,
        /// Queries, keys and values in one projection, [D, 3 D] and [3 D].
        pub attn_qkv: Pair,
        /// The attention's output projection, [D, D] and `[D]`.
        pub attn_proj: Pair,
        /// The adapter after the attention's output projection.
        pub attn_adapter: Adapter,
        /// The layer normalisation before the MLP, `[D]`.
        pub ln_2: Pair,
        /// The MLP's first projection, [D, F] and `[F]`.
        pub mlp_fc: Pair,
        /// The MLP's second projection, [F, D] and `[D]`.
        pub mlp_proj: Pair,
        /// The adapter after the MLP's second projection.
        pub mlp_adapter: Adapter,
    }

    impl Block {
        /// The names in block `layer`, counted from 0.
        pub fn new(layer: usize) -> Self {
            let h = format!("h.{layer}");
            Self {
                ln_1: Pair::new(&format!("{h}.ln_1")),
                attn_qkv: Pair::new(&format!("{h}.attn.c_attn")),
                attn_proj: Pair::new(&format!("{h}.attn.c_proj")),
                attn_adapter: Adapter::new(&format!("{h}.attn_adapter")),
                ln_2: Pair::new(&format!("{h}.ln_2")),
                mlp_fc: Pair::new(&format!("{h}.mlp.c_fc")),
                mlp_proj: Pair::new(&format!("{h}.mlp.c_proj")),
                mlp_adapter: Adapter::new(&format!("{h}.mlp_adapter")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Activation;

    #[test]
    fn gpt2_small_has_its_published_number_of_parameters() {
        let config = Gpt2Config {
            vocab_size: 50257,
            n_positions: 1024,
            n_embd: 768,
            n_layer: 12,
            n_head: 12,
            n_inner: 3072,
            activation_function: Activation::GeluNew,
            layer_norm_epsilon: 1e-5,
            eos_token_id: 50256,
        };
        let count = |table: &[TensorSpec]| table.iter().map(TensorSpec::len).sum::<usize>();
        assert_eq!(count(&base_table(&config)), 124_439_808);
        // 24 adapters of 2 · 768 · 64 weights and 64 + 768 biases.
        assert_eq!(count(&adapter_table(&config, &AdapterConfig::default())), 24 * (2 * 768 * 64 + 64 + 768));
        assert_eq!(base_table(&config).len(), 148);
    }
}
