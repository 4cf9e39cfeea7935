//! The last normalisation, the language-model head and the cross-entropy: L = Σ (log Σ exp z − z_y) / N over the N
//! rows that have a target y, with z = ln_f(x) Wᵀ [N, V], W the head [V, D], mostly the embedding.
//!
//! With p = softmax(z) the adjoint of ln_f's output n is n̄ = (p W − W_y) / N, and its tangent (ṗ W) / N with
//! ṗ = p ⊙ (ż − Σ p ⊙ ż), ż = ṅ Wᵀ. [`ROWS`] rows are done at a time, so that no more than three matrices [`ROWS`, V] are ever
//! held, beside the p that is kept for a Hessian product.

use marionette_kernels::logits;
use tch::{Kind, Tensor};

use super::norm::{self, Norm};
use super::product;
use crate::error::{Result, TrainError};
use crate::frozen::Weight;
use crate::host::{self, values};
use crate::tensors::TokenBatch;

/// Rows at a time: enough for fast products, and so few that a piece of z or p is small beside the model.
pub(crate) const ROWS: i64 = 128;

pub(super) struct Head {
    /// W, [V, D].
    weight: Weight,
    ln_f: Norm,
}

/// The head at some x.
pub(super) struct Tape {
    norm: norm::Tape,
    /// The adjoint of ln_f's x̂, [N, D].
    hat: Tensor,
    /// p, [`ROWS`] rows each, where it was kept.
    kept: Option<Vec<Tensor>>,
}

impl Tape {
    pub(super) fn into_adjoint(self) -> Tensor {
        self.hat
    }
}

/// Where each piece of `count` rows begins, and how many rows it has.
fn pieces(count: i64) -> impl Iterator<Item = (i64, i64)> {
    (0..count).step_by(ROWS as usize).map(move |start| (start, ROWS.min(count - start)))
}

impl Head {
    pub(super) fn new(weight: Weight, ln_f: Norm) -> Self {
        Self { weight, ln_f }
    }

    /// n Wᵀ, or ṅ Wᵀ.
    fn logits(&self, n: &Tensor) -> Result<Tensor> {
        match &self.weight {
            Weight::Floats(weight) => product::transposed(n, weight),
            Weight::Integers(weight) => weight.forward(n),
        }
    }

    /// z̄ W, or its tangent.
    fn back(&self, z_bar: &Tensor) -> Result<Tensor> {
        match &self.weight {
            Weight::Floats(weight) => product::plain(z_bar, weight),
            Weight::Integers(weight) => weight.back(z_bar),
        }
    }

    /// (p − e_y) W, with e_y 1 at the target y of a row. p, which nobody else holds, is as it was afterwards.
    fn back_from_probabilities(&self, p: &mut Tensor, targets: &Tensor) -> Result<Tensor> {
        match &self.weight {
            Weight::Floats(weight) => Ok(product::plain(p, weight)?.f_sub_(&weight.f_index_select(0, targets)?)?),
            // What the device rounds is the difference.
            Weight::Integers(weight) => {
                let at = targets.f_unsqueeze(1)?;
                let of_targets = p.f_gather(1, &at, false)?;
                let _ = p.f_scatter_(1, &at, &of_targets.f_sub_scalar(1.0)?)?;
                let n_bar = weight.back(p)?;
                let _ = p.f_scatter_(1, &at, &of_targets)?;
                Ok(n_bar)
            }
        }
    }

    /// p, in the place of z, which nobody else holds; and the sum of −log p at the targets.
    fn probabilities(mut z: Tensor, targets: &Tensor) -> Result<(Tensor, f64)> {
        let of_targets = z.f_gather(1, &targets.f_unsqueeze(1)?, false)?;
        if !host::computes(z.kind(), z.device()) {
            let p = z.f_internal_softmax(1, false)?;
            // log Σ exp z = max z − log max p.
            let nll = z.f_amax(1, true)?.f_sub(&p.f_amax(1, true)?.f_log()?)?.f_sub(&of_targets)?;
            return Ok((p, nll.f_sum(Kind::Double)?.f_double_value(&[])?));
        }
        let (rows, classes) = z.size2()?;
        let [sums] = host::new([&[rows, 1]], |[sums]| {
            host::rows(rows as usize, [host::changed(&mut z)?, sums], |_, [z, sums]| {
                for (z, sum) in z.chunks_exact_mut(classes as usize).zip(sums) {
                    *sum = logits::softmax(z);
                }
            });
            Ok(())
        })?;
        Ok((z, sums.f_sub(&of_targets)?.f_sum(Kind::Double)?.f_double_value(&[])?))
    }

    /// ṗ = p ⊙ (ż − Σ p ⊙ ż), in the place of ż, which nobody else holds.
    fn tangent_of_probabilities(p: &Tensor, mut z_dot: Tensor) -> Result<Tensor> {
        if !host::computes(p.kind(), p.device()) {
            return Ok(Tensor::f_internal_softmax_backward_data(&z_dot, p, 1, p.kind())?);
        }
        let (rows, classes) = p.size2()?;
        let (p, classes) = (values(p)?, classes as usize);
        host::rows(rows as usize, [host::changed(&mut z_dot)?], |range, [z_dot]| {
            let p = &p[range.start * classes..range.end * classes];
            for (p, z_dot) in p.chunks_exact(classes).zip(z_dot.chunks_exact_mut(classes)) {
                logits::softmax_tangent(p, z_dot);
            }
        });
        Ok(z_dot)
    }

    /// The loss alone.
    pub(super) fn loss(&self, x: &Tensor, batch: &TokenBatch) -> Result<f64> {
        let (_, n) = self.ln_f.forward(&x.f_index_select(0, &batch.rows)?)?;
        let count = n.size2()?.0;
        let mut loss = 0.0;
        for (start, rows) in pieces(count) {
            let targets = batch.targets.f_narrow(0, start, rows)?;
            loss += Self::probabilities(self.logits(&n.f_narrow(0, start, rows)?)?, &targets)?.1;
        }
        Ok(loss / count as f64)
    }

    /// The loss, and the adjoint of ln_f's x̂. p is kept where `keep`.
    pub(super) fn gradient(&self, x: &Tensor, batch: &TokenBatch, keep: bool) -> Result<(f64, Tape)> {
        let (norm, n) = self.ln_f.forward(&x.f_index_select(0, &batch.rows)?)?;
        let count = n.size2()?.0;
        let (mut loss, mut kept, mut n_bar) = (0.0, Vec::new(), Vec::new());
        for (start, rows) in pieces(count) {
            let targets = batch.targets.f_narrow(0, start, rows)?;
            let z = self.logits(&n.f_narrow(0, start, rows)?)?;
            let (mut p, nll) = Self::probabilities(z, &targets)?;
            loss += nll;
            n_bar.push(self.back_from_probabilities(&mut p, &targets)?);
            if keep {
                kept.push(p);
            }
        }
        let n_bar = Tensor::f_cat(&n_bar, 0)?.f_div_scalar_(count as f64)?;
        let hat = self.ln_f.scaled(n_bar)?;
        Ok((loss / count as f64, Tape { norm, hat, kept: keep.then_some(kept) }))
    }

    /// The tape from an adjoint that is known.
    pub(super) fn again(&self, x: &Tensor, batch: &TokenBatch, hat: Tensor) -> Result<Tape> {
        let (norm, _) = self.ln_f.forward(&x.f_index_select(0, &batch.rows)?)?;
        Ok(Tape { norm, hat, kept: None })
    }

    /// Of rows that have a target to all rows, `size`.
    fn scatter(rows: &Tensor, batch: &TokenBatch, size: Vec<i64>) -> Result<Tensor> {
        let mut all = Tensor::f_zeros(size, (rows.kind(), rows.device()))?;
        Ok(all.f_index_add_(0, &batch.rows, rows)?)
    }

    /// The adjoint of x, which has `size`.
    pub(super) fn backward(&self, tape: &Tape, batch: &TokenBatch, size: Vec<i64>) -> Result<Tensor> {
        Self::scatter(&self.ln_f.backward(&tape.norm, &tape.hat, None)?, batch, size)
    }

    /// The tangent of the adjoint of x, from that of x.
    pub(super) fn tangent_backward(&self, tape: Tape, batch: &TokenBatch, x_dot: &Tensor) -> Result<Tensor> {
        let Tape { norm, hat, kept } = tape;
        let tangent = self.ln_f.tangent(&norm, &x_dot.f_index_select(0, &batch.rows)?)?;
        let n_dot = self.ln_f.tangent_output(&tangent)?;
        let n = if kept.is_none() { Some(self.ln_f.output(&norm)?) } else { None };
        let mut kept = kept.map(Vec::into_iter);
        let count = n_dot.size2()?.0;
        let mut n_bar_dot = Vec::new();
        for (start, rows) in pieces(count) {
            let p = match (kept.as_mut().and_then(Iterator::next), &n) {
                (Some(p), _) => p,
                (None, Some(n)) => {
                    let targets = batch.targets.f_narrow(0, start, rows)?;
                    Self::probabilities(self.logits(&n.f_narrow(0, start, rows)?)?, &targets)?.0
                }
                (None, None) => return Err(TrainError::Torch("the probabilities of a step are missing".to_owned())),
            };
            let z_dot = self.logits(&n_dot.f_narrow(0, start, rows)?)?;
            let p_dot = Self::tangent_of_probabilities(&p, z_dot)?;
            drop(p);
            n_bar_dot.push(self.back(&p_dot)?);
        }
        let hat_dot = self.ln_f.scaled(Tensor::f_cat(&n_bar_dot, 0)?.f_div_scalar_(count as f64)?)?;
        let rows = self.ln_f.tangent_backward(&norm, &tangent, &hat, hat_dot, None)?;
        Self::scatter(&rows, batch, x_dot.size())
    }
}
