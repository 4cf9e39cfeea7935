//! Attention by the device's kernels.

use marionette_kernels::attention::{Heads, batch};
use marionette_kernels::rotary::rotate_in_place;
use marionette_kernels::shapes::Attended;
use marionette_models::ModelConfig;
use tch::Tensor;

use crate::error::Result;
use crate::host::{self, failed, on_threads, values};
use crate::rotary::Rotary;

pub(in super::super) struct Frame {
    shape: Attended,
    /// Cosines and sines, and the sines of turning back, [T or N, dh / 2].
    angles: Option<[Tensor; 3]>,
}

pub(in super::super) struct Tape {
    /// Queries and keys, turned, and values, [N, (H + 2 G) dh].
    qkv: Tensor,
    /// o, [N, H dh].
    o: Tensor,
    /// log Σ exp s of each query, [B, H, T].
    sums: Tensor,
}

pub(in super::super) struct Tangent {
    qkv: Tensor,
    o: Tensor,
    /// Σ P ṡ of each query, [B, H, T].
    means: Tensor,
}

impl Tape {
    pub(super) fn output(&self) -> Tensor {
        self.o.shallow_clone()
    }
}

impl Tangent {
    pub(super) fn output(&self) -> Tensor {
        self.o.shallow_clone()
    }
}

/// Which way queries and keys are turned.
#[derive(Clone, Copy)]
enum Turn {
    Forward,
    Back,
}

impl Frame {
    pub(super) fn new([batch, tokens]: [i64; 2], config: &ModelConfig, rotary: Option<&Rotary>) -> Result<Self> {
        let heads = Heads { queries: config.n_head, shared: config.n_kv_head, width: config.head_dim };
        let shape = Attended { batch: batch as usize, tokens: tokens as usize, heads };
        Ok(Self { shape, angles: rotary.map(Rotary::angles).transpose()? })
    }

    fn rows(&self) -> i64 {
        (self.shape.batch * self.shape.tokens) as i64
    }

    /// [N, (H + 2 G) dh].
    fn all(&self) -> [i64; 2] {
        [self.rows(), self.shape.heads.all() as i64]
    }

    /// [N, H dh].
    fn outputs(&self) -> [i64; 2] {
        [self.rows(), self.shape.heads.output() as i64]
    }

    /// Turns queries and keys where they lie.
    fn turn(&self, mut qkv: Tensor, way: Turn) -> Result<Tensor> {
        let Some([cosines, sines, back]) = &self.angles else { return Ok(qkv) };
        let sines = match way {
            Turn::Forward => sines,
            Turn::Back => back,
        };
        let (cosines, sines) = (values(cosines)?, values(sines)?);
        let heads = self.shape.heads;
        let (turned, half) = ((heads.queries + heads.shared) * heads.width, heads.width / 2);
        let angles = |token: usize| {
            let start = token * half % cosines.len().max(1);
            (&cosines[start..start + half], &sines[start..start + half])
        };
        host::rows(self.shape.batch * self.shape.tokens, [host::changed(&mut qkv)?], |range, [rows]| {
            for (token, row) in range.zip(rows.chunks_exact_mut(heads.all())) {
                let (cosines, sines) = angles(token);
                rotate_in_place(&mut row[..turned], cosines, sines);
            }
        });
        Ok(qkv)
    }

    pub(super) fn tape(&self, qkv: Tensor) -> Result<Tape> {
        let qkv = self.turn(qkv, Turn::Forward)?;
        let [o, sums] = host::new([&self.outputs(), &self.shape.sums()], |outputs| {
            batch::forward(self.shape, values(&qkv)?, None, outputs, on_threads).map_err(failed)
        })?;
        Ok(Tape { qkv, o, sums })
    }

    pub(super) fn backward(&self, tape: &Tape, o_bar: &Tensor) -> Result<Tensor> {
        let o_bar = o_bar.f_contiguous()?;
        let outputs = [values(&o_bar)?, values(&tape.o)?];
        let [qkv_bar] = host::new([&self.all()], |[qkv_bar]| {
            batch::backward(self.shape, values(&tape.qkv)?, outputs, values(&tape.sums)?, qkv_bar, on_threads)
                .map_err(failed)
        })?;
        self.turn(qkv_bar, Turn::Back)
    }

    pub(super) fn tangent(&self, tape: &Tape, qkv_dot: Tensor) -> Result<Tangent> {
        let qkv = self.turn(qkv_dot, Turn::Forward)?;
        let pair = [values(&tape.qkv)?, values(&qkv)?];
        let [o, means] = host::new([&self.outputs(), &self.shape.sums()], |outputs| {
            batch::tangent(self.shape, pair, values(&tape.sums)?, outputs, on_threads).map_err(failed)
        })?;
        Ok(Tangent { qkv, o, means })
    }

    pub(super) fn tangent_backward(
        &self,
        tape: &Tape,
        tangent: &Tangent,
        o_bar: &Tensor,
        o_bar_dot: &Tensor,
    ) -> Result<Tensor> {
        let (o_bar, o_bar_dot) = (o_bar.f_contiguous()?, o_bar_dot.f_contiguous()?);
        let pair = |value, tangent| -> Result<[&[f32]; 2]> { Ok([values(value)?, values(tangent)?]) };
        let qkv = pair(&tape.qkv, &tangent.qkv)?;
        let (by_output, output) = (pair(&o_bar, &o_bar_dot)?, pair(&tape.o, &tangent.o)?);
        let statistics = pair(&tape.sums, &tangent.means)?;
        let [out] = host::new([&self.all()], |[out]| {
            batch::tangent_backward(self.shape, qkv, by_output, output, statistics, out, on_threads).map_err(failed)
        })?;
        self.turn(out, Turn::Back)
    }
}
