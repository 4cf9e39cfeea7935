//! Tensors of `marionette-models` and tensors of libtorch.

use std::collections::BTreeMap;

use marionette_dialogues::Batch;
use marionette_models::params::TensorSpec;
use marionette_models::{HostTensor, Tensors};
use tch::{Device, Kind, Tensor};

use crate::error::Result;

/// Tensors of libtorch by name.
pub type NamedTensors = BTreeMap<String, Tensor>;

/// The shape as libtorch counts it.
fn dims(shape: &[usize]) -> Vec<i64> {
    shape.iter().map(|&size| size as i64).collect()
}

/// A tensor of libtorch with the same shape and values.
///
/// # Errors
/// What libtorch says.
pub fn to_torch(tensor: &HostTensor, kind: Kind, device: Device) -> Result<Tensor> {
    Ok(Tensor::f_from_slice(&tensor.values)?.f_reshape(dims(&tensor.shape))?.f_to_kind(kind)?.f_to_device(device)?)
}

/// Tensors of libtorch with the same names, shapes and values.
///
/// # Errors
/// What libtorch says.
pub fn all_to_torch(tensors: &Tensors, kind: Kind, device: Device) -> Result<NamedTensors> {
    tensors.iter().map(|(name, tensor)| Ok((name.clone(), to_torch(tensor, kind, device)?))).collect()
}

/// The values of a tensor of any kind and device, as f32.
///
/// # Errors
/// What libtorch says.
pub fn to_host(tensor: &Tensor) -> Result<HostTensor> {
    let tensor = tensor.f_detach()?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_contiguous()?;
    let shape = tensor.size().iter().map(|&size| size as usize).collect();
    let mut values = vec![0.0_f32; tensor.numel()];
    let count = values.len();
    tensor.f_copy_data(&mut values, count)?;
    Ok(HostTensor { shape, values })
}

/// The tensors of a table, given in its order, by name.
///
/// # Errors
/// What libtorch says.
pub fn named_to_host(table: &[TensorSpec], tensors: &[Tensor]) -> Result<Tensors> {
    table.iter().zip(tensors).map(|(spec, tensor)| Ok((spec.name.clone(), to_host(tensor)?))).collect()
}

/// Tokens, and where in them there is a loss.
#[derive(Debug)]
pub struct TokenBatch {
    /// Token ids, i64 [B, T].
    pub ids: Tensor,
    /// Positions, i64 [B, T]; 0 .. T where there are none.
    pub positions: Option<Tensor>,
    /// The rows of the flattened [B · T] tokens from which a target is predicted, i64 `[N]`.
    pub rows: Tensor,
    /// The targets, i64 `[N]`.
    pub targets: Tensor,
}

impl TokenBatch {
    /// A batch of dialogues: a target of the mask at token t is predicted from token t − 1.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn new(batch: &Batch, device: Device) -> Result<Self> {
        let (mut rows, mut targets) = (Vec::new(), Vec::new());
        for (index, (&target, &id)) in batch.mask.iter().zip(&batch.ids).enumerate() {
            // Never at the first token of a row: nothing predicts it.
            if target && index % batch.length > 0 {
                rows.push(index as i64 - 1);
                targets.push(id);
            }
        }
        Ok(Self {
            ids: Tensor::f_from_slice(&batch.ids)?
                .f_reshape([batch.rows as i64, batch.length as i64])?
                .f_to_device(device)?,
            positions: None,
            rows: Tensor::f_from_slice(&rows)?.f_to_device(device)?,
            targets: Tensor::f_from_slice(&targets)?.f_to_device(device)?,
        })
    }

    /// N, the number of targets.
    pub fn targets(&self) -> usize {
        self.targets.numel()
    }

    /// B · T, the number of tokens, padding included.
    pub fn tokens(&self) -> usize {
        self.ids.numel()
    }
}
