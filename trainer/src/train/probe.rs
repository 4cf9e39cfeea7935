//! The probe: what libtorch computes on a small batch, for the device to compare with.

use marionette_dialogues::{Batch, Sequence};
use marionette_models::InnerLoop;
use marionette_models::params::TensorSpec;
use marionette_models::probe::Probe;
use tch::{Kind, Tensor, no_grad};

use crate::error::Result;
use crate::gpt2::{Adapters, Gpt2, Layout};
use crate::inner::{self, Support};
use crate::tensors::{self, TokenBatch};

/// Computes the probe of `adapters` on a batch of `sequences`. `table` is the adapters' table, `rates` has one α a tensor.
///
/// # Errors
/// There is no target; a loss is not finite; what libtorch says.
pub fn record(
    model: &Gpt2,
    adapters: &[Tensor],
    table: &[TensorSpec],
    sequences: &[&Sequence],
    recipe: &InnerLoop,
    rates: &[f32],
) -> Result<Probe> {
    let batch = Batch::new(sequences.iter().copied())?;
    let tokens = TokenBatch::new(&batch, model.device())?;
    let ids = tokens.ids.f_narrow(0, 0, 1)?;
    let length = batch.length as i64;
    let start = Adapters { tensors: adapters.iter().map(Tensor::shallow_clone).collect() };
    let (logits, log_probs) = no_grad(|| {
        let logits = model.forward(Some(&start), &ids, Layout::default(), None)?;
        let next = ids.f_narrow(1, 1, length - 1)?.f_reshape([length - 1, 1])?;
        let log_probs = logits.f_log_softmax(-1, Kind::Float)?.f_narrow(0, 0, length - 1)?;
        Ok::<_, crate::TrainError>((logits.f_select(0, length - 1)?, log_probs.f_gather(1, &next, false)?))
    })?;
    let trajectory = inner::adapt(model, adapters, &Support::repeat(tokens, recipe.steps), rates)?;
    Ok(Probe {
        losses: trajectory.losses.iter().map(|&loss| loss as f32).collect(),
        adapters_after: tensors::named_to_host(table, trajectory.last())?,
        log_probs: tensors::to_host(&log_probs)?.values,
        logits: tensors::to_host(&logits)?.values,
        input_ids: batch.ids,
        loss_mask: batch.mask,
        batch: batch.rows,
        length: batch.length,
    })
}
