//! The tensors that no method moves, as they are held: floats, or matrices of 8-bit integers as a bundle of that precision has them, which are
//! multiplied as the device multiplies them.

use std::collections::BTreeMap;
use std::sync::Arc;

use marionette_models::Tensors;
use marionette_models::bundle::Precision;
use marionette_models::params::Order;
use tch::{Device, Kind, Tensor};

#[cfg(not(target_arch = "x86_64"))]
pub use self::elsewhere::Integers;
#[cfg(target_arch = "x86_64")]
pub use self::integers::Integers;
use crate::error::{Result, TrainError};
use crate::memory;
use crate::tensors::{self, NamedTensors, to_torch};

#[cfg(target_arch = "x86_64")]
mod integers;

/// Frozen tensors by name.
#[derive(Debug, Default)]
pub struct Frozen {
    tensors: NamedTensors,
    integers: BTreeMap<String, Arc<Integers>>,
}

impl From<NamedTensors> for Frozen {
    fn from(tensors: NamedTensors) -> Self {
        Self { tensors, ..Self::default() }
    }
}

impl Frozen {
    /// Those of a base in f32, its matrices as `precision` says, fp32 or int8 (what else there is stays fp32). Each of the given is freed as soon as it is there twice.
    ///
    /// # Errors
    /// Integers on another device than a processor, or on one that multiplies none; what libtorch says.
    pub fn new(base: Tensors, precision: Precision, device: Device) -> Result<Self> {
        if precision == Precision::Int8 && device != Device::Cpu {
            let problem = "is int8, which is computed on a processor: leave it out, or take --device cpu";
            return Err(TrainError::option("--frozen", problem));
        }
        let mut frozen = Self::default();
        for (name, tensor) in base {
            match Order::of(&name, &tensor.shape) {
                Some((order, [columns, _])) if precision == Precision::Int8 => {
                    let integers = Integers::new(&tensor.values, order, columns)?;
                    frozen.integers.insert(name, Arc::new(integers));
                }
                _ => {
                    frozen.tensors.insert(name, to_torch(&tensor, Kind::Float, device)?);
                }
            }
        }
        memory::give_back();
        Ok(frozen)
    }

    /// Those that are floats.
    pub(crate) fn tensors(&self) -> &NamedTensors {
        &self.tensors
    }

    /// The integers of that name, where it is a matrix of these.
    pub(crate) fn integers(&self, name: &str) -> Option<&Arc<Integers>> {
        self.integers.get(name)
    }

    /// The tensor of that name, which is of floats.
    ///
    /// # Errors
    /// It is missing.
    pub(crate) fn tensor(&self, name: &str) -> Result<Tensor> {
        tensors::named(&self.tensors, name)
    }

    /// Handles to the same.
    #[must_use]
    pub(crate) fn handle(&self) -> Self {
        Self { tensors: tensors::handles(&self.tensors), integers: self.integers.clone() }
    }
}

/// A matrix that products are made with.
#[derive(Debug)]
pub(crate) enum Weight {
    Floats(Tensor),
    Integers(Arc<Integers>),
}

impl Weight {
    /// The kind in which products are computed.
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Floats(tensor) => tensor.kind(),
            Self::Integers(_) => Kind::Float,
        }
    }

    pub(crate) fn device(&self) -> Device {
        match self {
            Self::Floats(tensor) => tensor.device(),
            Self::Integers(_) => Device::Cpu,
        }
    }

    /// Another handle to the same.
    pub(crate) fn handle(&self) -> Self {
        match self {
            Self::Floats(tensor) => Self::Floats(tensor.shallow_clone()),
            Self::Integers(integers) => Self::Integers(integers.clone()),
        }
    }

    /// Of an embedding [V, D] the rows that `ids`, i64 of any shape, name: […, D].
    ///
    /// # Errors
    /// A row is not there; what libtorch says.
    pub(crate) fn rows(&self, ids: &Tensor) -> Result<Tensor> {
        match self {
            Self::Floats(table) => Ok(Tensor::f_embedding(table, ids, -1, false, false)?),
            Self::Integers(integers) => integers.rows(ids),
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod elsewhere {
    use marionette_models::params::Order;
    use tch::Tensor;

    use crate::error::{Result, TrainError};

    /// There are no products of integers on this processor yet.
    #[derive(Debug)]
    pub enum Integers {}

    impl Integers {
        /// # Errors
        /// Always.
        pub fn new(_: &[f32], _: Order, _: usize) -> Result<Self> {
            Err(TrainError::no_integers())
        }

        pub(crate) fn forward(&self, _: &Tensor) -> Result<Tensor> {
            match *self {}
        }

        pub(crate) fn back(&self, _: &Tensor) -> Result<Tensor> {
            match *self {}
        }

        pub(crate) fn rows(&self, _: &Tensor) -> Result<Tensor> {
            match *self {}
        }
    }
}
