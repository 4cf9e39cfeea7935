//! One block with its two adapters, walked forward and back, and the tangents of both walks:
//!
//! a = attention(ln_1(x) W_qkv + b) W_o + b, m = x + adapter_1(a),
//! c = g(f) W_p + b with f = ln_2(m) W_fc + b, x′ = m + adapter_2(c), g the MLP's activation.

use marionette_models::params::names;
use tch::Tensor;

use super::adapter::{self, Weights};
use super::attention::{self, Frame};
use super::mlp::Activation;
use super::norm::{self, Norm};
use super::product::Linear;
use super::stem::Stem;
use crate::error::Result;
use crate::model::Model;

pub(super) struct Block {
    ln_1: Norm,
    attn_qkv: Linear,
    attn_proj: Linear,
    ln_2: Norm,
    mlp_fc: Linear,
    activation: Activation,
    mlp_proj: Linear,
}

/// What the walk back needs of attention, which the first block with adapters does not walk back through.
pub(super) struct Attended {
    norm: norm::Tape,
    attention: attention::Tape,
}

/// What the walk back needs.
pub(super) struct Tape {
    attended: Option<Attended>,
    attn_adapter: adapter::Tape,
    norm: norm::Tape,
    /// f, [N, F] or [N, 2 F].
    f: Tensor,
    mlp_adapter: adapter::Tape,
}

/// The walk back: the adjoints that its own derivative needs, and those that the gradient is made of.
pub(super) struct Adjoint {
    /// Of x′, and so of adapter 2's output, [N, D].
    out: Tensor,
    mlp_adapter: adapter::Adjoint,
    /// Of g(f), [N, F].
    g: Tensor,
    /// Of ln_2's x̂, [N, D].
    hat: Tensor,
    /// Of m, and so of adapter 1's output, [N, D].
    mid: Tensor,
    attn_adapter: adapter::Adjoint,
    /// Of what attention gives, in heads, and of ln_1's x̂.
    attended: Option<(Tensor, Tensor)>,
}

/// The tangents of the tape.
pub(super) struct Tangent {
    attended: Option<(norm::Tangent, attention::Tangent)>,
    attn_adapter: adapter::Tangent,
    norm: norm::Tangent,
    f: Tensor,
    mlp_adapter: adapter::Tangent,
}

/// Results of matrix products that need not be computed again where they were kept, [N, D] each: a and c, and the adjoints
/// of the x̂ of both layer normalisations.
pub(super) struct Trace {
    a: Tensor,
    c: Tensor,
    hat: Tensor,
    attended_hat: Option<Tensor>,
}

impl Trace {
    pub(super) fn new(tape: &Tape, adjoint: &Adjoint) -> Self {
        Self {
            a: tape.attn_adapter.input(),
            c: tape.mlp_adapter.input(),
            hat: adjoint.hat.shallow_clone(),
            attended_hat: adjoint.attended.as_ref().map(|(_, hat)| hat.shallow_clone()),
        }
    }

    pub(super) fn tensors(&mut self) -> impl Iterator<Item = &mut Tensor> {
        [&mut self.a, &mut self.c, &mut self.hat].into_iter().chain(&mut self.attended_hat)
    }
}

impl Adjoint {
    /// The gradient by the eight tensors of the adapters.
    pub(super) fn gradient(&self, tape: &Tape) -> Result<Vec<Tensor>> {
        let attn = tape.attn_adapter.gradient(&self.attn_adapter, &self.mid)?;
        let mlp = tape.mlp_adapter.gradient(&self.mlp_adapter, &self.out)?;
        Ok(attn.into_iter().chain(mlp).collect())
    }
}

impl Block {
    pub(super) fn new(model: &Model, layer: usize) -> Result<Self> {
        let (names, config) = (names::Block::new(layer), model.config());
        Ok(Self {
            ln_1: Norm::new(model, &names.ln_1, config)?,
            attn_qkv: Linear::new(model, &names.attn_qkv)?,
            attn_proj: Linear::new(model, &names.attn_proj)?,
            ln_2: Norm::new(model, &names.ln_2, config)?,
            mlp_fc: Linear::new(model, &names.mlp_fc)?,
            activation: Activation::new(config.mlp),
            mlp_proj: Linear::new(model, &names.mlp_proj)?,
        })
    }

    fn attention(&self, x: &Tensor, frame: &Frame) -> Result<Attended> {
        let (norm, y) = self.ln_1.forward(x)?;
        let attention = frame.tape(self.attn_qkv.forward(&y)?)?;
        Ok(Attended { norm, attention })
    }

    /// a from x.
    pub(super) fn attend(&self, x: &Tensor, frame: &Frame) -> Result<(Tensor, Attended)> {
        let attended = self.attention(x, frame)?;
        Ok((self.attn_proj.forward(&frame.output(&attended.attention)?)?, attended))
    }

    /// x′ of a block without adapters.
    pub(super) fn bare(&self, x: &Tensor, frame: &Frame) -> Result<Tensor> {
        let mut m = self.attend(x, frame)?.0;
        let _ = m.f_add_(x)?;
        let f = self.mlp_fc.forward(&self.ln_2.forward(&m)?.1)?;
        let mut out = self.mlp_proj.forward(&self.activation.value(&f)?)?;
        let _ = out.f_add_(&m)?;
        Ok(out)
    }

    /// x′ and the tape; of the first block with adapters the stem knows a. What a trace of the same step holds is not computed again.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        stem: &Stem,
        at: &[Tensor],
        first: bool,
        trace: Option<&Trace>,
    ) -> Result<(Tensor, Tape)> {
        let [attn, mlp] = Weights::pair(at)?;
        let (a, attended) = match (&stem.attended, trace) {
            (Some(a), _) if first => (a.shallow_clone(), None),
            (_, Some(trace)) => (trace.a.shallow_clone(), Some(self.attention(x, &stem.frame)?)),
            (_, None) => {
                let (a, attended) = self.attend(x, &stem.frame)?;
                (a, Some(attended))
            }
        };
        let (mut m, attn_adapter) = adapter::forward(a, attn)?;
        let _ = m.f_add_(x)?;
        let (norm, y) = self.ln_2.forward(&m)?;
        let f = self.mlp_fc.forward(&y)?;
        drop(y);
        let c = match trace {
            Some(trace) => trace.c.shallow_clone(),
            None => self.mlp_proj.forward(&self.activation.value(&f)?)?,
        };
        let (mut out, mlp_adapter) = adapter::forward(c, mlp)?;
        let _ = out.f_add_(&m)?;
        Ok((out, Tape { attended, attn_adapter, norm, f, mlp_adapter }))
    }

    /// The adjoint of x, from that of x′; none where the block is the first. What a trace of the same step holds is not
    /// computed again.
    pub(super) fn backward(
        &self,
        tape: &Tape,
        stem: &Stem,
        at: &[Tensor],
        out: Tensor,
        trace: Option<Trace>,
    ) -> Result<(Option<Tensor>, Adjoint)> {
        let [attn, mlp] = Weights::pair(at)?;
        let (known_hat, known_attended_hat) = match trace {
            Some(trace) => (Some(trace.hat), trace.attended_hat),
            None => (None, None),
        };
        let mlp_adapter = tape.mlp_adapter.backward(mlp, &out)?;
        let g = self.mlp_proj.backward(&mlp_adapter.x_bar(mlp, &out)?)?;
        let hat = match known_hat {
            Some(hat) => hat,
            None => self.ln_2.scaled(self.mlp_fc.backward(&self.activation.backward(&tape.f, &g)?)?)?,
        };
        let mid = self.ln_2.backward(&tape.norm, &hat, Some(&out))?;
        let attn_adapter = tape.attn_adapter.backward(attn, &mid)?;
        let (x_bar, attended) = match &tape.attended {
            None => (None, None),
            Some(attended) => {
                let o = stem.frame.heads(self.attn_proj.backward(&attn_adapter.x_bar(attn, &mid)?)?)?;
                let hat = match known_attended_hat {
                    Some(hat) => hat,
                    None => {
                        let qkv = stem.frame.backward(&attended.attention, &o)?;
                        self.ln_1.scaled(self.attn_qkv.backward(&qkv)?)?
                    }
                };
                let x_bar = self.ln_1.backward(&attended.norm, &hat, Some(&mid))?;
                (Some(x_bar), Some((o, hat)))
            }
        };
        Ok((x_bar, Adjoint { out, mlp_adapter, g, hat, mid, attn_adapter, attended }))
    }

    /// The tangent of x′, from that of x (none in the first block) and the adapters' direction `u`.
    pub(super) fn tangent(
        &self,
        tape: &Tape,
        stem: &Stem,
        x_dot: Option<Tensor>,
        at: &[Tensor],
        u: &[Tensor],
    ) -> Result<(Tensor, Tangent)> {
        let ([attn, mlp], [u_attn, u_mlp]) = (Weights::pair(at)?, Weights::pair(u)?);
        let (a_dot, attended) = match (&tape.attended, &x_dot) {
            (Some(attended), Some(x_dot)) => {
                let norm = self.ln_1.tangent(&attended.norm, x_dot)?;
                let qkv = self.attn_qkv.tangent(&self.ln_1.tangent_output(&norm)?)?;
                let (o, attention) = stem.frame.tangent(&attended.attention, qkv)?;
                (Some(self.attn_proj.tangent(&o)?), Some((norm, attention)))
            }
            _ => (None, None),
        };
        let (mut m, attn_adapter) = tape.attn_adapter.tangent(a_dot, attn, u_attn)?;
        if let Some(x_dot) = x_dot {
            let _ = m.f_add_(&x_dot)?;
        }
        let norm = self.ln_2.tangent(&tape.norm, &m)?;
        let f = self.mlp_fc.tangent(&self.ln_2.tangent_output(&norm)?)?;
        let c = self.mlp_proj.tangent(&self.activation.tangent(&tape.f, &f)?)?;
        let (mut out, mlp_adapter) = tape.mlp_adapter.tangent(Some(c), mlp, u_mlp)?;
        let _ = out.f_add_(&m)?;
        Ok((out, Tangent { attended, attn_adapter, norm, f, mlp_adapter }))
    }

    /// The tangent of the adjoint of x (none in the first block) and of the gradient, from the tangent `out` of the adjoint
    /// of x′.
    pub(super) fn tangent_backward(
        &self,
        (tape, adjoint, tangent): (&Tape, &Adjoint, &Tangent),
        stem: &Stem,
        at: &[Tensor],
        u: &[Tensor],
        out: &Tensor,
    ) -> Result<(Option<Tensor>, Vec<Tensor>)> {
        let ([attn, mlp], [u_attn, u_mlp]) = (Weights::pair(at)?, Weights::pair(u)?);
        let (h, by_mlp) = tape.mlp_adapter.tangent_backward(
            &adjoint.mlp_adapter,
            &tangent.mlp_adapter,
            (&adjoint.out, out),
            mlp,
            u_mlp,
        )?;
        let g = self.mlp_proj.backward(&adjoint.mlp_adapter.x_bar_dot(mlp, u_mlp, out, &h)?)?;
        let f = self.activation.tangent_backward(&tape.f, &tangent.f, &adjoint.g, &g)?;
        drop(g);
        let hat = self.ln_2.scaled(self.mlp_fc.backward(&f)?)?;
        drop(f);
        let mid = self.ln_2.tangent_backward(&tape.norm, &tangent.norm, &adjoint.hat, hat, Some(out))?;
        let (h, by_attn) = tape.attn_adapter.tangent_backward(
            &adjoint.attn_adapter,
            &tangent.attn_adapter,
            (&adjoint.mid, &mid),
            attn,
            u_attn,
        )?;
        let gradient = by_attn.into_iter().chain(by_mlp).collect();
        let (Some(attended), Some((o_bar, hat_bar)), Some((norm, attention))) =
            (&tape.attended, &adjoint.attended, &tangent.attended)
        else {
            return Ok((None, gradient));
        };
        let o = stem.frame.heads(self.attn_proj.backward(&adjoint.attn_adapter.x_bar_dot(attn, u_attn, &mid, &h)?)?)?;
        let qkv = stem.frame.tangent_backward(&attended.attention, attention, o_bar, &o)?;
        let hat = self.ln_1.scaled(self.attn_qkv.backward(&qkv)?)?;
        let x_bar = self.ln_1.tangent_backward(&attended.norm, norm, hat_bar, hat, Some(&mid))?;
        Ok((Some(x_bar), gradient))
    }
}
