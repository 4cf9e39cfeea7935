//! The one table of tensors: name, shape, initialisation. Trainer, exporter and runtime spell no tensor name themselves.

use std::collections::BTreeMap;
use std::io::{self, Write};

use crate::config::{AdapterConfig, ModelConfig, Norm, Positions};

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
    /// The name: GPT-2's own, without the prefix `transformer.`, in every family.
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

/// How the values of a matrix that products are made with lie: N columns of K values, the K that a product sums over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// \[N, K\]: the embedding as the head reads it.
    ColumnsTogether,
    /// \[K, N\]: a linear layer as GPT-2 stores it.
    ColumnsApart,
}

impl Order {
    /// That of a base's tensor, with N and K; none where no products are made with it.
    pub fn of(name: &str, shape: &[usize]) -> Option<(Self, [usize; 2])> {
        match *shape {
            [columns, inner] if name == names::WTE || name == names::HEAD => {
                Some((Self::ColumnsTogether, [columns, inner]))
            }
            [inner, columns] if name != names::WPE => Some((Self::ColumnsApart, [columns, inner])),
            _ => None,
        }
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

/// The standard deviation of the initialisation (Radford et al. 2019; `initializer_range` in Hugging Face).
const STD: f32 = 0.02;

/// φ, the tensors of a decoder in the order of the forward pass. Where there is no head of its own, it is `wte.weight`
/// transposed.
pub fn base_table(config: &ModelConfig) -> Vec<TensorSpec> {
    let (d, f) = (config.n_embd, config.n_inner);
    let normal = Init::Normal { std: STD };
    // Projections onto the residual stream start smaller by 1/√(2 L), the number of residual additions (GPT-2, section 2.3).
    let residual = Init::Normal { std: STD / (2.0 * config.n_layer as f32).sqrt() };
    let mut table = Vec::new();
    let mut push = |name: &str, shape: &[usize], init| table.push(TensorSpec::new(name.to_owned(), shape, init));
    push(names::WTE, &[config.vocab_size, d], normal);
    if config.positions == Positions::Learned {
        push(names::WPE, &[config.n_positions, d], normal);
    }
    let norm = |push: &mut dyn FnMut(&str, &[usize], Init), pair: &names::Pair| {
        push(&pair.weight, &[d], Init::Ones);
        if config.norm == Norm::Layer {
            push(&pair.bias, &[d], Init::Zeros);
        }
    };
    let linear = |push: &mut dyn FnMut(&str, &[usize], Init), pair: &names::Pair, shape: [usize; 2], init| {
        push(&pair.weight, &shape, init);
        if config.bias {
            push(&pair.bias, &shape[1..], Init::Zeros);
        }
    };
    for layer in 0..config.n_layer {
        let block = names::Block::new(layer);
        norm(&mut push, &block.ln_1);
        linear(&mut push, &block.attn_qkv, [d, config.qkv_width()], normal);
        linear(&mut push, &block.attn_proj, [config.query_width(), d], residual);
        norm(&mut push, &block.ln_2);
        linear(&mut push, &block.mlp_fc, [d, config.mlp.parts() * f], normal);
        linear(&mut push, &block.mlp_proj, [f, d], residual);
    }
    norm(&mut push, &names::last_norm());
    if !config.tied {
        push(names::HEAD, &[config.vocab_size, d], normal);
    }
    table
}

/// Φ, the adapters' tensors: two adapters a block, from the first that has some, each a down-projection [D, R] and an up-projection [R, D] with biases.
/// The up-projection starts at zero, so that the adapted model is the bare one at first (MAMLviaPP, equation 2).
pub fn adapter_table(config: &ModelConfig, adapter: &AdapterConfig) -> Vec<TensorSpec> {
    let (d, r) = (config.n_embd, adapter.bottleneck);
    // 1/√D keeps a normalised input at unit scale through the bottleneck.
    let down = Init::Normal { std: 1.0 / (d as f32).sqrt() };
    let mut table = Vec::with_capacity(8 * config.n_layer.saturating_sub(adapter.first_block));
    for layer in adapter.first_block..config.n_layer {
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

/// The next-utterance classifier (Wolf et al. 2019): one score from the last token's residual stream, after the last
/// normalisation. Only the trainer knows it.
pub fn classifier_table(config: &ModelConfig) -> Vec<TensorSpec> {
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
    /// The language-model head where it is not the embedding, [V, D].
    pub const HEAD: &str = "lm_head.weight";

    /// A weight and, where the model has it, a bias; or a normalisation's scale and shift.
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

    /// The last normalisation, `[D]`.
    pub fn last_norm() -> Pair {
        Pair::new("ln_f")
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
        /// The normalisation before attention, `[D]`.
        pub ln_1: Pair,
        /// Queries, keys and values in one projection, [D, (H + 2 G) dh] and `[(H + 2 G) dh]`.
        pub attn_qkv: Pair,
        /// The attention's output projection, [H dh, D] and `[D]`.
        pub attn_proj: Pair,
        /// The adapter after the attention's output projection.
        pub attn_adapter: Adapter,
        /// The normalisation before the MLP, `[D]`.
        pub ln_2: Pair,
        /// The MLP's first projection, [D, F] and `[F]`; of SwiGLU the gate and the up-projection side by side, [D, 2 F].
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
