//! Benches of the inner parts; `marionette bench` measures a bundle of your own. Here is what the bench and the program for one
//! meta-gradient share: the task of the PyTorch program that they are measured beside.

pub mod precisions;

use std::path::Path;

use marionette_models::bundle::Precision;
use marionette_models::checkpoint::{Base, BaseFiles};
use marionette_models::{AdapterConfig, Gpt2Shape, init, params};
use marionette_trainer::Result;
use marionette_trainer::frozen::Frozen;
use marionette_trainer::inner::Support;
use marionette_trainer::meta::{MetaGradient, meta_gradient};
use marionette_trainer::method::Method;
use marionette_trainer::model::Model;
use marionette_trainer::tensors::{self, TokenBatch};
use marionette_trainer::workers::Compute;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor};

/// A base with GPT-2 small's shapes (Radford et al. 2019) and random weights, on which the time does not depend.
fn random_base() -> Base {
    let config = Gpt2Shape { vocab_size: 50257, n_positions: 1024, n_embd: 768, n_layer: 12, n_head: 12 }.into();
    let tensors = init::initialise(&params::base_table(&config), &mut ChaCha8Rng::seed_from_u64(1));
    Base { config, tensors, notes: Vec::new() }
}

/// A frozen GPT-2 with adapters, to be adapted to random tokens.
pub struct Task {
    model: Model,
    start: Vec<Tensor>,
    rates: Vec<f32>,
}

impl Task {
    /// The base in `folder`, or random weights of GPT-2 small's shapes, on the CPU; in f32, or frozen matrices as `precision` says.
    ///
    /// # Errors
    /// The base cannot be read; what libtorch says.
    pub fn new(folder: Option<&Path>, precision: Precision) -> Result<Self> {
        let (config, frozen) = match folder {
            Some(folder) => {
                let base = BaseFiles::open(folder)?;
                let frozen = Frozen::read(&base, precision, Device::Cpu)?;
                (base.config, frozen)
            }
            None => {
                let Base { config, tensors, .. } = random_base();
                (config, Frozen::new(tensors, precision, Device::Cpu)?)
            }
        };
        let table = params::adapter_table(&config, &AdapterConfig::default());
        let fresh = init::initialise(&table, &mut ChaCha8Rng::seed_from_u64(0));
        let start = table
            .iter()
            .map(|spec| tensors::to_torch(&fresh[&spec.name], Kind::Float, Device::Cpu))
            .collect::<Result<Vec<_>>>()?;
        let rates = vec![0.01; start.len()];
        let model = Model::new(&config, Method::ExtraPlace.parts(), frozen, table, Kind::Float, Device::Cpu)?;
        Ok(Self { model, start, rates })
    }

    /// B rows of T random tokens, with a loss on all but the first of a row.
    fn batch(&self, rows: i64, length: i64) -> Result<TokenBatch> {
        let whole = (Kind::Int64, Device::Cpu);
        let ids = Tensor::f_randint(self.model.config().vocab_size as i64 - 1, [rows, length], whole)?;
        let targets = ids.f_narrow(1, 1, length - 1)?.f_reshape([-1])?;
        let first = Tensor::f_arange(rows, whole)?.f_unsqueeze(1)?.f_mul_scalar(length)?;
        let places = first.f_add(&Tensor::f_arange(length - 1, whole)?)?.f_reshape([-1])?;
        Ok(TokenBatch { ids, positions: None, rows: places, targets, choices: None })
    }

    /// One meta-gradient: S inner steps on a support batch, the outer loss on a query batch, both B rows of T tokens.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn meta_gradient(&self, [rows, length]: [i64; 2], steps: usize, exact: bool) -> Result<MetaGradient> {
        let support = Support::repeat(self.batch(rows, length)?, steps);
        let query = self.batch(rows, length)?;
        meta_gradient(&self.model, &self.start, &support, &query, &self.rates, exact, false)
    }

    /// As many of them as there are workers, side by side, as a meta-batch is computed.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn meta_gradients(&self, compute: Compute, shape: [i64; 2], steps: usize, exact: bool) -> Result<()> {
        let seeds: Vec<i64> = (0..compute.workers as i64).collect();
        let rates = &self.rates;
        let one = |model: &Model, start: &[Tensor], seed: &i64| {
            tch::manual_seed(*seed);
            let task = Self {
                model: model.handle(),
                start: start.iter().map(Tensor::shallow_clone).collect(),
                rates: rates.clone(),
            };
            task.meta_gradient(shape, steps, exact).map(drop)
        };
        compute.map(&self.model, &self.start, &seeds, one, |()| Ok(()))
    }
}
