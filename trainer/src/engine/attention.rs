//! Attention (Vaswani et al. 2017, section 3.2.1): o = P v with P = softmax(s) over each row and s = q kᵀ / √dh + mask, where q
//! and k are turned by their positions beforehand where these are rotary.
//!
//! On the processor and in f32 the device's kernels compute it and all that is derived of it, without holding anything of \[T, T\];
//! elsewhere libtorch's operators.

mod fused;
mod operators;

use marionette_models::{ModelConfig, Positions};
use tch::{Device, Kind, Tensor};

use crate::error::{Result, TrainError};
use crate::host;
use crate::rotary::Rotary;

/// The shape of a batch in attention, and who sees whom.
pub(super) enum Frame {
    Fused(fused::Frame),
    Operators(operators::Frame),
}

/// What the walk back needs.
pub(super) enum Tape {
    Fused(fused::Tape),
    Operators(operators::Tape),
}

/// The tangents of the tape.
pub(super) enum Tangent {
    Fused(fused::Tangent),
    Operators(operators::Tangent),
}

fn mixed() -> TrainError {
    TrainError::Torch("a walk through attention was recorded for another batch".to_owned())
}

impl Frame {
    /// The frame of B rows of T tokens at these positions (i64 \[T\] or [B, T]), with causal attention.
    pub(super) fn new(
        shape: [i64; 2],
        positions: &Tensor,
        config: &ModelConfig,
        kind: Kind,
        device: Device,
    ) -> Result<Self> {
        let rotary = match config.positions {
            Positions::Learned => None,
            Positions::Rotary { base } => {
                let rows = positions.f_reshape([-1, shape[1]])?;
                Some(Rotary::new(&rows, config.head_dim, base, kind)?)
            }
        };
        Ok(match host::computes(kind, device) {
            true => Self::Fused(fused::Frame::new(shape, config, rotary.as_ref())?),
            false => Self::Operators(operators::Frame::new(shape, config, rotary, kind, device)?),
        })
    }

    /// The tape, from queries, keys and values [N, (H + 2 G) dh], which nobody else holds.
    pub(super) fn tape(&self, qkv: Tensor) -> Result<Tape> {
        Ok(match self {
            Self::Fused(frame) => Tape::Fused(frame.tape(qkv)?),
            Self::Operators(frame) => Tape::Operators(frame.tape(&qkv)?),
        })
    }

    /// o, [N, H dh].
    pub(super) fn output(&self, tape: &Tape) -> Result<Tensor> {
        match (self, tape) {
            (Self::Fused(_), Tape::Fused(tape)) => Ok(tape.output()),
            (Self::Operators(frame), Tape::Operators(tape)) => frame.output(tape),
            _ => Err(mixed()),
        }
    }

    /// ō [N, H dh], as the walks back take it.
    pub(super) fn heads(&self, o_bar: Tensor) -> Result<Tensor> {
        match self {
            Self::Fused(_) => Ok(o_bar),
            Self::Operators(frame) => frame.heads(&o_bar),
        }
    }

    /// The adjoint of queries, keys and values, [N, (H + 2 G) dh], from what [`Frame::heads`] gives.
    pub(super) fn backward(&self, tape: &Tape, o_bar: &Tensor) -> Result<Tensor> {
        match (self, tape) {
            (Self::Fused(frame), Tape::Fused(tape)) => frame.backward(tape, o_bar),
            (Self::Operators(frame), Tape::Operators(tape)) => frame.backward(tape, o_bar),
            _ => Err(mixed()),
        }
    }

    /// ȯ [N, H dh] from the tangent of queries, keys and values [N, (H + 2 G) dh], which nobody else holds.
    pub(super) fn tangent(&self, tape: &Tape, qkv_dot: Tensor) -> Result<(Tensor, Tangent)> {
        match (self, tape) {
            (Self::Fused(frame), Tape::Fused(tape)) => {
                let tangent = frame.tangent(tape, qkv_dot)?;
                Ok((tangent.output(), Tangent::Fused(tangent)))
            }
            (Self::Operators(frame), Tape::Operators(tape)) => {
                let (o_dot, tangent) = frame.tangent(tape, &qkv_dot)?;
                Ok((o_dot, Tangent::Operators(tangent)))
            }
            _ => Err(mixed()),
        }
    }

    /// The tangent of [`Frame::backward`], from ō and its tangent.
    pub(super) fn tangent_backward(
        &self,
        tape: &Tape,
        tangent: &Tangent,
        o_bar: &Tensor,
        o_bar_dot: &Tensor,
    ) -> Result<Tensor> {
        match (self, tape, tangent) {
            (Self::Fused(frame), Tape::Fused(tape), Tangent::Fused(tangent)) => {
                frame.tangent_backward(tape, tangent, o_bar, o_bar_dot)
            }
            (Self::Operators(frame), Tape::Operators(tape), Tangent::Operators(tangent)) => {
                frame.tangent_backward(tape, tangent, o_bar, o_bar_dot)
            }
            _ => Err(mixed()),
        }
    }
}

#[cfg(test)]
mod tests {
    use marionette_models::Gpt2Shape;

    use super::*;

    fn spread(size: [i64; 2], step: f64) -> Tensor {
        (Tensor::arange(size[0] * size[1], (Kind::Double, Device::Cpu)) * step).sin().reshape(size)
    }

    /// o, the adjoint of queries, keys and values, and the tangents of both.
    fn walks(config: &ModelConfig, shape: [i64; 2], positions: &Tensor, kind: Kind) -> [Tensor; 4] {
        let frame = Frame::new(shape, positions, config, kind, Device::Cpu).unwrap();
        assert_eq!(matches!(frame, Frame::Fused(_)), kind == Kind::Float);
        let rows = shape[0] * shape[1];
        let (all, outputs) = ((config.n_head + 2 * config.n_kv_head) as i64, config.n_head as i64);
        let of = |places: i64, step: f64| spread([rows, places * config.head_dim as i64], step).to_kind(kind);
        let heads = |step: f64| frame.heads(of(outputs, step)).unwrap();
        let tape = frame.tape(of(all, 0.37)).unwrap();
        let (o_dot, tangent) = frame.tangent(&tape, of(all, 0.71)).unwrap();
        let back_dot = frame.tangent_backward(&tape, &tangent, &heads(0.53), &heads(0.91)).unwrap();
        [frame.output(&tape).unwrap(), frame.backward(&tape, &heads(0.53)).unwrap(), o_dot, back_dot]
    }

    #[test]
    fn kernels_and_operators_compute_the_same() {
        let shape = Gpt2Shape { vocab_size: 30, n_positions: 64, n_embd: 24, n_layer: 1, n_head: 3 };
        let gpt2: ModelConfig = shape.into();
        let turned = Positions::Rotary { base: 100.0 };
        let llama = ModelConfig { n_head: 4, n_kv_head: 2, head_dim: 10, positions: turned, ..shape.into() };
        for (config, [batch, tokens]) in [(&llama, [2, 37]), (&gpt2, [1, 5]), (&llama, [3, 1])] {
            let one = Tensor::arange(tokens, (Kind::Int64, Device::Cpu));
            let each = (Tensor::arange(batch, (Kind::Int64, Device::Cpu)) * 3).unsqueeze(1) + &one;
            for positions in [&one, &each] {
                let exact = walks(config, [batch, tokens], positions, Kind::Double);
                let found = walks(config, [batch, tokens], positions, Kind::Float);
                for (index, (found, exact)) in found.into_iter().zip(exact).enumerate() {
                    assert_eq!(found.size(), exact.size());
                    let error = (found.to_kind(Kind::Double) - &exact).abs().max().double_value(&[]);
                    assert!(error < 2e-6 * exact.abs().max().double_value(&[]).max(1.0), "walk {index}: {error:e}");
                }
            }
        }
    }
}
