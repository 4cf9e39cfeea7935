//! The probe: what libtorch computes on a small batch, for the device to compare with.

use marionette_dialogues::Batch;
use marionette_models::InnerLoop;
use marionette_models::bundle::Precision;
use marionette_models::params::TensorSpec;
use marionette_models::probe::{Probe, sample};
use tch::{Kind, Tensor, no_grad};

use crate::decoder::Layout;
use crate::error::{Result, TrainError};
use crate::inner::{self, Support};
use crate::model::Model;
use crate::tensors::{self, TokenBatch};

/// Computes the probe of a model at θ, whose frozen matrices are held as `frozen` says, on a batch of dialogues. On the device only adapters move, so only those of
/// `adapters`, a part of the model's table, do here.
///
/// # Errors
/// There is no target; a loss is not finite; what libtorch says.
pub fn record(
    model: &Model,
    parameters: &[Tensor],
    adapters: &[TensorSpec],
    batch: Batch,
    recipe: &InnerLoop,
    frozen: Precision,
) -> Result<Probe> {
    let tokens = TokenBatch::new(&batch, model.device())?;
    let ids = tokens.ids.f_narrow(0, 0, 1)?;
    let length = batch.length as i64;
    let at = model.at(parameters)?;
    let (logits, log_probs) = no_grad(|| {
        let logits = at.forward(&ids, Layout::default(), None)?;
        let next = ids.f_narrow(1, 1, length - 1)?.f_reshape([length - 1, 1])?;
        let log_probs = logits.f_log_softmax(-1, Kind::Float)?.f_narrow(0, 0, length - 1)?;
        Ok::<_, TrainError>((logits.f_select(0, length - 1)?, log_probs.f_gather(1, &next, false)?))
    })?;
    let given = recipe.learning_rate.per_tensor(model.table().len());
    let given = given.map_err(|problem| TrainError::option("--inner-lr", problem))?;
    let moves = |spec: &TensorSpec| adapters.iter().any(|adapter| adapter.name == spec.name);
    let rates: Vec<f32> =
        model.table().iter().zip(given).map(|(spec, rate)| if moves(spec) { rate } else { 0.0 }).collect();
    let adapted = inner::adapt(model, parameters, &Support::repeat(tokens, recipe.steps), &rates)?;
    let mut after = tensors::named_to_host(model.table(), &adapted.parameters)?;
    after.retain(|name, _| adapters.iter().any(|spec| &spec.name == name));
    Ok(Probe {
        frozen,
        losses: adapted.losses.iter().map(|&loss| loss as f32).collect(),
        adapters_after: after.into_iter().map(|(name, tensor)| (name, sample(&tensor.values))).collect(),
        log_probs: tensors::to_host(&log_probs)?.values,
        logits: tensors::to_host(&logits)?.values,
        input_ids: batch.ids,
        loss_mask: batch.mask,
        batch: batch.rows,
        length: batch.length,
    })
}
