//! The methods of the paper, and what they are to be measured against. A method is which tensors learn, where they start, and which
//! gradient is taken; all share one training loop.

use marionette_dialogues::Context;
use marionette_models::params::{self, TensorSpec};
use marionette_models::{AdapterConfig, InnerLoop, ModelConfig};

use crate::decoder::Parts;

/// What is trained: the paper's rows, and their rivals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Method {
    /// Random start, ordinary training (the paper's REINIT GPT-2)
    Reinit,
    /// Ordinary training of the pre-trained model (Transfer Pre-trained GPT-2)
    Transfer,
    /// Random start, meta-learned (REINIT GPT-2 + MAML)
    ReinitMaml,
    /// All pre-trained parameters are meta-learned (In-place MAMLviaPP, algorithm 1)
    InPlace,
    /// Adapters and pre-trained parameters are meta-learned (Extra-place MAMLviaPP without fixing φ)
    ExtraPlaceUnfixed,
    /// Adapters are meta-learned, the pre-trained parameters are frozen (Extra-place MAMLviaPP, algorithm 2)
    ExtraPlace,
    /// Ordinary training with next-utterance classification and persona sentences in the input (Wolf et al. 2019)
    Transfertransfo,
    /// Ordinary training of adapters on all personas, the pre-trained parameters are frozen
    TransferAdapters,
    /// Fresh adapters, not trained at all
    None,
    /// Nothing learns: the dialogues to adapt on stand in the prompt
    InContext,
    /// The same, and the persona's sentences
    InContextPersona,
}

/// Every method, in the order of the paper's table, and then those that are not in it.
pub const METHODS: [Method; 11] = [
    Method::Reinit,
    Method::Transfer,
    Method::ReinitMaml,
    Method::InPlace,
    Method::ExtraPlaceUnfixed,
    Method::ExtraPlace,
    Method::Transfertransfo,
    Method::TransferAdapters,
    Method::None,
    Method::InContext,
    Method::InContextPersona,
];

/// Candidates of one next-utterance choice, the gold one among them.
pub const CHOICES: usize = 4;

impl Method {
    /// Its name on the command line and in `config.toml`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Reinit => "reinit",
            Self::Transfer => "transfer",
            Self::ReinitMaml => "reinit-maml",
            Self::InPlace => "in-place",
            Self::ExtraPlaceUnfixed => "extra-place-unfixed",
            Self::ExtraPlace => "extra-place",
            Self::Transfertransfo => "transfertransfo",
            Self::TransferAdapters => "transfer-adapters",
            Self::None => "none",
            Self::InContext => "in-context",
            Self::InContextPersona => "in-context-persona",
        }
    }

    /// The method of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        METHODS.into_iter().find(|method| method.name() == name)
    }

    /// Whether the pre-trained parameters are replaced by random ones.
    pub fn starts_random(self) -> bool {
        matches!(self, Self::Reinit | Self::ReinitMaml)
    }

    /// Whether the pre-trained parameters (or the random ones in their place) learn.
    pub fn learns_base(self) -> bool {
        matches!(
            self,
            Self::Reinit
                | Self::Transfer
                | Self::ReinitMaml
                | Self::InPlace
                | Self::ExtraPlaceUnfixed
                | Self::Transfertransfo
        )
    }

    /// Whether it has adapters; they learn.
    pub fn learns_adapters(self) -> bool {
        !self.learns_base() || self == Self::ExtraPlaceUnfixed
    }

    /// Whether it can begin with the adapters of another run.
    pub fn bears_start(self) -> bool {
        self.learns_adapters() && self != Self::None
    }

    /// Whether it is meta-learned; otherwise it follows the ordinary gradient over the same dialogues.
    pub fn is_meta(self) -> bool {
        matches!(self, Self::ReinitMaml | Self::InPlace | Self::ExtraPlaceUnfixed | Self::ExtraPlace)
    }

    /// What stands in the prompt, where it adapts by reading alone.
    pub fn in_context(self) -> Option<Context> {
        match self {
            Self::InContext => Some(Context::Dialogues),
            Self::InContextPersona => Some(Context::Persona),
            _ => None,
        }
    }

    /// The method that trains for it: fresh adapters change nothing, so what only reads its dialogues needs no other model.
    pub fn trained_as(self) -> Self {
        if self.in_context().is_some() { Self::None } else { self }
    }

    /// Whether it learns to choose the next utterance, and sees the persona's sentences.
    pub fn classifies(self) -> bool {
        self == Self::Transfertransfo
    }

    /// What its model has beside the decoder.
    pub fn parts(self) -> Parts {
        Parts { adapters: self.learns_adapters(), classifier: self.classifies() }
    }

    /// The tensors that learn: those of the base, of the adapters and of the classifier, as far as they do.
    pub fn table(self, config: &ModelConfig, adapter: &AdapterConfig) -> Vec<TensorSpec> {
        let mut table = if self.learns_base() { params::base_table(config) } else { Vec::new() };
        if self.learns_adapters() {
            table.extend(params::adapter_table(config, adapter));
        }
        if self.classifies() {
            table.extend(params::classifier_table(config));
        }
        table
    }

    /// α where the command line says none. Adapters that begin at zero bear long steps, a whole model does not.
    pub fn inner_rate(self) -> f32 {
        if self.learns_base() { 0.1 } else { InnerLoop::RATE }
    }

    /// β where the command line says none. What begins at zero or at random has further to go than what is pre-trained.
    pub fn outer_rate(self) -> f64 {
        match self {
            Self::ExtraPlace => 3e-3,
            Self::Reinit => 2e-3,
            // With the ordinary one's rate the inner loop comes to diverge.
            Self::ReinitMaml => 7e-4,
            Self::TransferAdapters => 1e-3,
            _ => 1e-4,
        }
    }
}
