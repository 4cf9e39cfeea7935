//! What a model is made of: the sizes and parts of a decoder, in which trainer, exporter and device describe every family, and
//! the adapters' shape.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{FileError, Result};
use crate::families::{Family, Fields};
use crate::{files, json};

/// A decoder (Radford et al. 2019): an embedding, blocks of attention and an MLP with a normalisation before each, a last
/// normalisation, and a head that gives the logits of the next token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Whose files it comes in.
    pub family: Family,
    /// V, the number of tokens in the embedding.
    pub vocab_size: usize,
    /// P, the context: the largest number of tokens of a sequence.
    pub n_positions: usize,
    /// D, the width of the residual stream.
    pub n_embd: usize,
    /// L, the number of blocks.
    pub n_layer: usize,
    /// H, the number of attention heads.
    pub n_head: usize,
    /// G, the number of heads of keys and values; H is a multiple of it, and H / G heads share each (Ainslie et al. 2023).
    pub n_kv_head: usize,
    /// dh, the width of one head.
    pub head_dim: usize,
    /// F, the width of the MLP.
    pub n_inner: usize,
    /// How activations are normalised.
    pub norm: Norm,
    /// ε of every normalisation.
    pub norm_epsilon: f32,
    /// What the MLP computes.
    pub mlp: Mlp,
    /// How tokens know where they stand.
    pub positions: Positions,
    /// Whether the linear layers have biases.
    pub bias: bool,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// The id of the token that ends a text.
    pub eos_token_id: u32,
}

/// A normalisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Norm {
    /// (x − mean x) / √(var x + ε) ⊙ γ + β (Ba et al. 2016).
    Layer,
    /// x / √(mean x² + ε) ⊙ γ (Zhang & Sennrich 2019).
    Rms,
}

/// An MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mlp {
    /// gelu(x W) V, with the tanh approximation of GELU, 0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³))) (Hendrycks & Gimpel 2016, section 2).
    GeluNew,
    /// (silu(x G) ⊙ x U) V, with silu(x) = x / (1 + exp(−x)) (Shazeer 2020); G and U are the halves of one matrix.
    SwiGlu,
}

impl Mlp {
    /// How many vectors of width F the first projection gives.
    pub fn parts(self) -> usize {
        match self {
            Self::GeluNew => 1,
            Self::SwiGlu => 2,
        }
    }
}

/// How tokens know where they stand.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Positions {
    /// A learned embedding of each position, added to the token's.
    Learned,
    /// Queries and keys turned by their position (Su et al. 2021): values i and i + dh / 2 of a head, at position p, by the angle
    /// p · base^(−2 i / dh).
    Rotary {
        /// The base.
        base: f32,
    },
}

impl ModelConfig {
    /// H dh, the width of all queries side by side.
    pub fn query_width(&self) -> usize {
        self.n_head * self.head_dim
    }

    /// (H + 2 G) dh, the width of queries, keys and values side by side.
    pub fn qkv_width(&self) -> usize {
        (self.n_head + 2 * self.n_kv_head) * self.head_dim
    }

    /// Shortens the context to so many tokens.
    ///
    /// # Errors
    /// It is shorter already.
    pub fn shorten(&mut self, context: usize) -> Result<(), String> {
        let whole = self.n_positions;
        if !(1..=whole).contains(&context) {
            return Err(format!("is {context}, expected 1 to {whole}, the model's own context"));
        }
        self.n_positions = context;
        Ok(())
    }

    /// Reads the `config.json` of a Hugging Face model folder.
    ///
    /// # Errors
    /// A field is missing, has an impossible value, or asks for a family or a variant that is not supported.
    pub fn from_file(path: &Path) -> Result<Self> {
        let bytes = files::read_limited(path, 1 << 20)?;
        if files::is_lfs_pointer(&bytes) {
            return Err(files::lfs_pointer(path));
        }
        let value: Value =
            json::from_slice(&bytes).map_err(|error| FileError::new(path, format!("is not a JSON object: {error}")))?;
        Self::from_hugging_face(&value).map_err(|(field, problem)| FileError::new(path, problem).at(field))
    }

    fn from_hugging_face(value: &Value) -> Result<Self, (&'static str, String)> {
        let plug = Family::of(value)?.plug();
        Fields(value).expect_plain()?;
        let config = plug.read(&Fields(value))?;
        config.validate().map_err(|(field, problem)| (plug.field(field), problem))?;
        Ok(config)
    }

    /// The `config.json` that Hugging Face transformers reads.
    pub fn to_hugging_face(&self) -> Value {
        self.family.plug().write(self)
    }

    /// Checks that the values are possible together.
    ///
    /// # Errors
    /// The field, and what is wrong with it.
    pub fn validate(&self) -> Result<(), (&'static str, String)> {
        // Far above every model of today; below, no product of two of them overflows and no table is absurd.
        for (name, value, most) in [
            ("vocab_size", self.vocab_size, 1 << 20),
            ("n_positions", self.n_positions, 1 << 20),
            ("n_embd", self.n_embd, 1 << 15),
            ("n_layer", self.n_layer, 1 << 10),
            ("n_head", self.n_head, 1 << 10),
            ("n_kv_head", self.n_kv_head, 1 << 10),
            ("head_dim", self.head_dim, 1 << 12),
            ("n_inner", self.n_inner, 1 << 17),
        ] {
            if value == 0 || value > most {
                // Some families have no field for it: the width of a head follows from others.
                let is = if name == "head_dim" { "gives heads of width" } else { "is" };
                return Err((name, format!("{is} {value}, expected 1 to {most}")));
            }
        }
        if !self.n_head.is_multiple_of(self.n_kv_head) {
            let problem = format!("is {}, which does not divide {} heads", self.n_kv_head, self.n_head);
            return Err(("n_kv_head", problem));
        }
        self.family.plug().check(self)?;
        if self.eos_token_id as usize >= self.vocab_size {
            return Err(("eos_token_id", format!("is {}, beyond vocab_size = {}", self.eos_token_id, self.vocab_size)));
        }
        if !(self.norm_epsilon > 0.0 && self.norm_epsilon < 1.0) {
            let problem = format!("is {}, expected a small positive number", self.norm_epsilon);
            return Err(("norm_epsilon", problem));
        }
        if let Positions::Rotary { base } = self.positions {
            if !(base > 1.0 && base.is_finite()) {
                return Err(("positions", format!("is {base}, expected a number above 1")));
            }
            if !self.head_dim.is_multiple_of(2) {
                let problem = format!("is {}, expected an even number: values are turned in pairs", self.head_dim);
                return Err(("head_dim", problem));
            }
        }
        Ok(())
    }
}

/// The shape of the adapters: Houlsby et al. 2019, figure 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterConfig {
    /// R, the width of the bottleneck.
    pub bottleneck: usize,
    /// The first block that has adapters, as have all above it. What lies below is the same in every step of an adaptation.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub first_block: usize,
}

fn is_zero(number: &usize) -> bool {
    *number == 0
}

impl AdapterConfig {
    /// The widest bottleneck: that of the widest model. Below, no table of tensors is absurd.
    pub const MOST_BOTTLENECK: usize = 1 << 15;

    /// Adapters in all blocks.
    pub const fn in_all_blocks(bottleneck: usize) -> Self {
        Self { bottleneck, first_block: 0 }
    }

    /// Checks that a model has the first block.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check_blocks(&self, config: &ModelConfig) -> Result<(), String> {
        match self.first_block < config.n_layer {
            true => Ok(()),
            false => {
                Err(format!("is {}, expected 0 to {}, the model's last block", self.first_block, config.n_layer - 1))
            }
        }
    }

    /// Checks that the bottleneck is possible.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self) -> Result<(), String> {
        match self.bottleneck {
            1..=Self::MOST_BOTTLENECK => Ok(()),
            bottleneck => Err(format!("is {bottleneck}, expected 1 to {}", Self::MOST_BOTTLENECK)),
        }
    }
}

impl Default for AdapterConfig {
    fn default() -> Self {
        Self::in_all_blocks(64)
    }
}
