//! Tensors of `marionette-models` and tensors of libtorch.

use std::collections::BTreeMap;

use marionette_dialogues::{Batch, Example, Ranking};
use marionette_models::params::TensorSpec;
use marionette_models::{FileError, HostTensor, Tensors};
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

/// Tensors of libtorch with the same names, shapes and values. Each of the given is freed as soon as it is there twice.
///
/// # Errors
/// What libtorch says.
pub fn all_to_torch(tensors: Tensors, kind: Kind, device: Device) -> Result<NamedTensors> {
    tensors.into_iter().map(|(name, tensor)| Ok((name, to_torch(&tensor, kind, device)?))).collect()
}

/// A handle to the tensor of that name.
///
/// # Errors
/// It is missing.
pub(crate) fn named(tensors: &NamedTensors, name: &str) -> Result<Tensor> {
    let missing = || FileError::new("the model".as_ref(), "is missing").at(name);
    Ok(tensors.get(name).ok_or_else(missing)?.shallow_clone())
}

/// Handles to the same tensors.
pub(crate) fn handles(tensors: &NamedTensors) -> NamedTensors {
    tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect()
}

/// Copies of tensors of one kind and device, in one block of memory.
///
/// # Errors
/// What libtorch says.
pub(crate) fn together(tensors: &[Tensor]) -> Result<Vec<Tensor>> {
    let Some(first) = tensors.first() else { return Ok(Vec::new()) };
    let count = tensors.iter().map(|tensor| tensor.numel() as i64).sum::<i64>();
    let block = Tensor::f_empty([count], (first.kind(), first.device()))?;
    let mut begin = 0;
    let copy = |tensor: &Tensor| {
        let size = tensor.numel() as i64;
        let mut place = block.f_narrow(0, begin, size)?.f_view_(tensor.size())?;
        place.f_copy_(tensor)?;
        begin += size;
        Ok(place)
    };
    tensors.iter().map(copy).collect()
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
    /// The choices of next-utterance classification, where it is learned.
    pub choices: Option<Choices>,
}

impl TokenBatch {
    /// A batch of dialogues.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn new(batch: &Batch, device: Device) -> Result<Self> {
        let (rows, targets): (Vec<i64>, Vec<i64>) = batch.predictions().map(|(row, id)| (row as i64, id)).unzip();
        Ok(Self {
            ids: Tensor::f_from_slice(&batch.ids)?
                .f_reshape([batch.rows as i64, batch.length as i64])?
                .f_to_device(device)?,
            positions: None,
            rows: Tensor::f_from_slice(&rows)?.f_to_device(device)?,
            targets: Tensor::f_from_slice(&targets)?.f_to_device(device)?,
            choices: None,
        })
    }

    /// A batch of dialogues, and of each that has choices the one at `turn`, counted round.
    ///
    /// # Errors
    /// There is no target; what libtorch says.
    pub fn of(examples: &[&Example], turn: usize, device: Device) -> Result<Self> {
        let mut batch = Self::new(&Batch::new(examples.iter().map(|example| &example.sequence))?, device)?;
        let choice = |example: &&Example| match example.choices.len() {
            0 => None,
            count => example.choices.get(turn % count).cloned(),
        };
        let choices: Vec<Ranking> = examples.iter().filter_map(choice).collect();
        if !choices.is_empty() {
            batch.choices = Some(Choices::new(&choices, device)?);
        }
        Ok(batch)
    }

    /// N, the number of targets.
    pub fn targets(&self) -> usize {
        self.targets.numel()
    }

    /// The number of tokens that are read, padding included.
    pub fn tokens(&self) -> usize {
        self.ids.numel() + self.choices.as_ref().map_or(0, |choices| choices.ids.numel())
    }
}

/// Histories with candidates, among which a next-utterance classifier chooses: B rows of T tokens, C candidates at most.
#[derive(Debug)]
pub struct Choices {
    /// Token ids, i64 [B, T].
    pub ids: Tensor,
    /// Positions, i64 [B, T].
    pub positions: Tensor,
    /// Branches, i64 [B, T].
    pub branch: Tensor,
    /// The flattened token after each candidate, i64 [B · C]; anything where it is missing.
    pub ends: Tensor,
    /// Where a row has fewer candidates, bool [B, C].
    pub missing: Tensor,
}

impl Choices {
    /// Pads rankings, which have the closing tokens of their candidates, to a batch.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn new(rankings: &[Ranking], device: Device) -> Result<Self> {
        let length = rankings.iter().map(|ranking| ranking.ids.len()).max().unwrap_or(0);
        let most = rankings.iter().map(|ranking| ranking.ends.len()).max().unwrap_or(0);
        let padded = |row: fn(&Ranking) -> &[u32], width: usize| -> Result<Tensor> {
            let mut values = Vec::with_capacity(rankings.len() * width);
            for (index, ranking) in rankings.iter().enumerate() {
                values.extend(row(ranking).iter().map(|&value| i64::from(value)));
                values.resize((index + 1) * width, 0);
            }
            Ok(Tensor::f_from_slice(&values)?.f_reshape([rankings.len() as i64, width as i64])?.f_to_device(device)?)
        };
        let first = Tensor::f_arange(rankings.len() as i64, (Kind::Int64, device))?.f_mul_scalar(length as i64)?;
        let ends = padded(|ranking| &ranking.ends, most)?.f_add(&first.f_unsqueeze(1)?)?.f_reshape([-1])?;
        let missing: Vec<bool> =
            rankings.iter().flat_map(|ranking| (0..most).map(|candidate| candidate >= ranking.ends.len())).collect();
        Ok(Self {
            ids: padded(|ranking| &ranking.ids, length)?,
            positions: padded(|ranking| &ranking.positions, length)?,
            branch: padded(|ranking| &ranking.branch, length)?,
            ends,
            missing: Tensor::f_from_slice(&missing)?
                .f_reshape([rankings.len() as i64, most as i64])?
                .f_to_device(device)?,
        })
    }
}
