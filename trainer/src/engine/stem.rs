//! What of a batch does not depend on the adapters: everything below the first of them.

use marionette_models::ModelConfig;
use tch::{Kind, Tensor};

use super::attention::Frame;
use super::block::Block;
use crate::error::Result;
use crate::frozen::Weight;
use crate::tensors::TokenBatch;

pub(super) struct Stem {
    /// What the first block with adapters takes, [N, D].
    pub(super) x: Tensor,
    /// What its attention makes of it, the input of the first adapter, [N, D].
    pub(super) attended: Option<Tensor>,
    /// How the batch lies in attention.
    pub(super) frame: Frame,
}

impl Stem {
    /// The stem of a batch: of the blocks below all adapters, and the first that has some.
    ///
    /// # Errors
    /// What libtorch says, for a token or position beyond the embedding too.
    pub(super) fn new(
        batch: &TokenBatch,
        config: &ModelConfig,
        wte: &Weight,
        wpe: Option<&Tensor>,
        (below, first): (&[Block], Option<&Block>),
    ) -> Result<Self> {
        let (rows, length) = batch.ids.size2()?;
        let positions = match &batch.positions {
            Some(positions) => positions.shallow_clone(),
            None => Tensor::f_arange(length, (Kind::Int64, wte.device()))?,
        };
        let mut x = wte.rows(&batch.ids)?;
        if let Some(wpe) = wpe {
            x = x.f_add(&Tensor::f_embedding(wpe, &positions, -1, false, false)?)?;
        }
        x = x.f_reshape([rows * length, -1])?;
        let frame = Frame::new([rows, length], &positions, config, x.kind(), x.device())?;
        for block in below {
            x = block.bare(&x, &frame)?;
        }
        let attended = first.map(|block| Ok::<_, crate::TrainError>(block.attend(&x, &frame)?.0)).transpose()?;
        Ok(Self { x, attended, frame })
    }
}
