//! A model and which of its tensors learn: the paper's θ = [φ, Φ], as far as it moves.

use std::collections::BTreeMap;
use std::sync::Arc;

use marionette_models::params::{self, TensorSpec, names};
use marionette_models::{AdapterConfig, ModelConfig};
use tch::{Device, Kind, Tensor};

use crate::decoder::{Decoder, Parts, Tensors};
use crate::error::Result;
use crate::frozen::{Frozen, Integers, Weight};
use crate::tensors::{self, NamedTensors};

/// A decoder with some tensors frozen and the others given at each use: a function of θ.
#[derive(Debug)]
pub struct Model {
    config: ModelConfig,
    parts: Parts,
    /// The kind in which products are computed; sums have the kind of the tensors.
    products: Kind,
    frozen: Frozen,
    /// The frozen tensors in the kind of products, where that is another.
    frozen_products: NamedTensors,
    table: Vec<TensorSpec>,
    /// Where in the table a name is.
    places: BTreeMap<String, usize>,
    device: Device,
}

impl Model {
    /// A model whose tensors of `table` learn, in that order, and whose others are `frozen`. Products (linear layers,
    /// attention, the head) are computed in the kind `products`, all else in the kind of the tensors: what PyTorch calls
    /// autocast, where `products` is [`Kind::BFloat16`].
    ///
    /// # Errors
    /// What libtorch says.
    pub fn new(
        config: &ModelConfig,
        parts: Parts,
        frozen: impl Into<Frozen>,
        table: Vec<TensorSpec>,
        products: Kind,
        device: Device,
    ) -> Result<Self> {
        let frozen = frozen.into();
        let mut frozen_products = NamedTensors::new();
        for (name, tensor) in frozen.tensors().iter().filter(|(_, tensor)| tensor.kind() != products) {
            frozen_products.insert(name.clone(), tensor.f_to_kind(products)?);
        }
        let places = table.iter().enumerate().map(|(place, spec)| (spec.name.clone(), place)).collect();
        Ok(Self { config: config.clone(), parts, products, frozen, frozen_products, table, places, device })
    }

    /// The tensors that learn.
    pub fn table(&self) -> &[TensorSpec] {
        &self.table
    }

    /// Its hyper-parameters.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The device of the tensors.
    pub fn device(&self) -> Device {
        self.device
    }

    /// The model at θ, one tensor a row of the table. Gradients reach these tensors.
    ///
    /// # Errors
    /// A tensor is missing; what libtorch says.
    pub fn at(&self, parameters: &[Tensor]) -> Result<Decoder> {
        Decoder::new(&self.config, self.parts, &At { model: self, parameters })
    }

    /// What the model has beside the decoder.
    pub(crate) fn parts(&self) -> Parts {
        self.parts
    }

    /// Whether the tensors that learn are exactly the adapters', and products are computed in the kind of the tensors.
    pub(crate) fn learns_exactly_adapters(&self) -> bool {
        let Some(&bottleneck) = self.table.first().and_then(|spec| spec.shape.get(1)) else { return false };
        let Some(first_block) = self.first_adapted() else { return false };
        let adapters = params::adapter_table(&self.config, &AdapterConfig { bottleneck, first_block });
        let same = |(one, other): (&TensorSpec, &TensorSpec)| one.name == other.name && one.shape == other.shape;
        !self.parts.classifier
            && self.frozen_products.is_empty()
            && self.table.len() == adapters.len()
            && self.table.iter().zip(&adapters).all(same)
    }

    /// The first block with adapters that learn, where there is one.
    pub(crate) fn first_adapted(&self) -> Option<usize> {
        let has_adapter = |&layer: &usize| self.places.contains_key(&names::Block::new(layer).attn_adapter.down.weight);
        (0..self.config.n_layer).find(has_adapter)
    }

    /// The frozen tensor of that name, which is of floats.
    ///
    /// # Errors
    /// It is missing.
    pub(crate) fn frozen(&self, name: &str) -> Result<Tensor> {
        self.frozen.tensor(name)
    }

    /// The frozen matrix of that name.
    ///
    /// # Errors
    /// It is missing.
    pub(crate) fn frozen_weight(&self, name: &str) -> Result<Weight> {
        match self.frozen.integers(name) {
            Some(integers) => Ok(Weight::Integers(integers.clone())),
            None => Ok(Weight::Floats(self.frozen.tensor(name)?)),
        }
    }

    /// The same model, computed in the kind of its tensors throughout.
    #[must_use]
    pub fn unrounded(&self) -> Self {
        Self { products: Kind::Float, frozen_products: NamedTensors::new(), ..self.handle() }
    }

    /// Another handle to the same tensors, for another thread.
    #[must_use]
    pub fn handle(&self) -> Self {
        Self {
            config: self.config.clone(),
            parts: self.parts,
            products: self.products,
            frozen: self.frozen.handle(),
            frozen_products: tensors::handles(&self.frozen_products),
            table: self.table.clone(),
            places: self.places.clone(),
            device: self.device,
        }
    }
}

/// The tensors of a model at some θ.
struct At<'a> {
    model: &'a Model,
    parameters: &'a [Tensor],
}

impl At<'_> {
    fn learned(&self, name: &str) -> Option<&Tensor> {
        self.model.places.get(name).and_then(|&place| self.parameters.get(place))
    }
}

impl Tensors for At<'_> {
    fn holds(&self, name: &str) -> bool {
        self.learned(name).is_some() || self.model.frozen.tensors().contains_key(name)
    }

    fn matrix(&self, name: &str) -> Result<Tensor> {
        if let Some(tensor) = self.learned(name) {
            return Ok(tensor.f_to_kind(self.model.products)?);
        }
        match self.model.frozen_products.get(name) {
            Some(tensor) => Ok(tensor.shallow_clone()),
            None => self.model.frozen.tensor(name),
        }
    }

    fn integers(&self, name: &str) -> Option<Arc<Integers>> {
        self.model.frozen.integers(name).cloned()
    }

    fn vector(&self, name: &str) -> Result<Tensor> {
        match self.learned(name) {
            Some(tensor) => Ok(tensor.shallow_clone()),
            None => self.model.frozen.tensor(name),
        }
    }
}
