//! The tensors that no method moves, as they are held: floats, or matrices of 8- or 4-bit integers as a bundle of that precision has them, which
//! are multiplied as the device multiplies them.

use std::collections::BTreeMap;
use std::sync::Arc;

use marionette_kernels::quantise;
use marionette_models::bundle::Precision;
use marionette_models::checkpoint::BaseFiles;
use marionette_models::params::{self, Order};
use marionette_models::{HostTensor, Tensors};
use tch::{Device, Kind, Tensor};

pub use self::integers::Integers;
use crate::error::{Result, TrainError};
use crate::memory;
use crate::tensors::{self, NamedTensors, to_torch};

mod integers;

/// Frozen tensors by name.
#[derive(Debug, Default)]
pub struct Frozen {
    tensors: NamedTensors,
    integers: BTreeMap<String, Arc<Integers>>,
}

/// How tensors are held.
#[derive(Debug, Clone, Copy)]
struct Held {
    precision: Precision,
    /// How many 4-bit integers have one scale.
    block: usize,
    device: Device,
}

impl Held {
    /// Of matrices of some shapes.
    fn new<'a>(
        shapes: impl Iterator<Item = (&'a str, &'a [usize])>,
        precision: Precision,
        device: Device,
    ) -> Result<Self> {
        if precision.is_integer() && device != Device::Cpu {
            let problem =
                format!("is {precision}, which is computed on a processor: leave it out, or take --device cpu");
            return Err(TrainError::option("--frozen", problem));
        }
        let inner = shapes.filter_map(|(name, shape)| Some(Order::of(name, shape)?.1[1]));
        Ok(Self { precision, block: quantise::block_of_int4(inner), device })
    }
}

impl From<NamedTensors> for Frozen {
    fn from(tensors: NamedTensors) -> Self {
        Self { tensors, ..Self::default() }
    }
}

impl Frozen {
    /// Those of a base in f32, its matrices as `precision` says, fp32, int8 or int4 (what else there is stays fp32). Each of the given is freed as
    /// soon as it is there twice.
    ///
    /// # Errors
    /// Integers on another device than a processor; a matrix that integers cannot hold; what libtorch says.
    pub fn new(base: Tensors, precision: Precision, device: Device) -> Result<Self> {
        let shapes = base.iter().map(|(name, tensor)| (name.as_str(), &tensor.shape[..]));
        let held = Held::new(shapes, precision, device)?;
        let mut frozen = Self::default();
        base.into_iter().try_for_each(|(name, tensor)| frozen.take(name, &tensor, held))?;
        memory::give_back();
        Ok(frozen)
    }

    /// The same of a base in its files, which is never held whole in f32 beside integers.
    ///
    /// # Errors
    /// As [`Frozen::new`]; a tensor cannot be read.
    pub fn read(base: &BaseFiles, precision: Precision, device: Device) -> Result<Self> {
        let table = params::base_table(&base.config);
        let held = Held::new(table.iter().map(|spec| (spec.name.as_str(), &spec.shape[..])), precision, device)?;
        let mut frozen = Self::default();
        base.each(|name, tensor| frozen.take(name, &tensor, held))?;
        memory::give_back();
        Ok(frozen)
    }

    fn take(&mut self, name: String, tensor: &HostTensor, held: Held) -> Result<()> {
        let Held { precision, block, device } = held;
        match Order::of(&name, &tensor.shape).filter(|_| precision.is_integer()) {
            Some((order, [columns, inner])) => {
                if let Some(problem) = misfit(precision, tensor, inner) {
                    return Err(TrainError::option("--frozen", format!("is {precision}, but {name} {problem}")));
                }
                let integers = match precision {
                    Precision::Int4 => Integers::of_4_bits(&tensor.values, order, columns, block)?,
                    _ => Integers::of_8_bits(&tensor.values, order, columns),
                };
                self.integers.insert(name, Arc::new(integers));
            }
            None => {
                self.tensors.insert(name, to_torch(tensor, Kind::Float, device)?);
            }
        }
        Ok(())
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

/// Why a matrix with columns of so many values could not be exported with this precision: to be said before it is trained beside.
fn misfit(precision: Precision, tensor: &HostTensor, inner: usize) -> Option<String> {
    if !quantise::has_blocks(inner) {
        return Some(format!("has columns of {inner} values, no multiple of 16: leave it out"));
    }
    let beyond = quantise::beyond_half(&tensor.values).filter(|_| precision == Precision::Int4)?;
    Some(format!("has the value {beyond}, beyond 16 bits: take int8"))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_exported_is_not_trained_beside() {
        let base = |inner: usize, value: f32| {
            let matrix = HostTensor { shape: vec![inner, 2], values: vec![value; 2 * inner] };
            Tensors::from([("h.0.attn.c_attn.weight".to_owned(), matrix)])
        };
        let refused = |base, precision, device| Frozen::new(base, precision, device).unwrap_err().to_string();
        for (precision, inner, value, part) in [
            (Precision::Int8, 24, 1.0, "has columns of 24 values"),
            (Precision::Int4, 24, 1.0, "has columns of 24 values"),
            (Precision::Int4, 32, 7e4, "has the value 70000, beyond 16 bits: take int8"),
        ] {
            let problem = refused(base(inner, value), precision, Device::Cpu);
            assert!(problem.contains("--frozen") && problem.contains(part), "{problem}");
        }
        assert!(refused(base(32, 1.0), Precision::Int4, Device::Cuda(0)).contains("--device cpu"));
        assert!(Frozen::new(base(32, 7e4), Precision::Int8, Device::Cpu).is_ok());
    }
}
