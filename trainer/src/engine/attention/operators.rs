//! Attention made of libtorch's operators, in any kind and on any device.
//!
//! R = H / G heads share keys and values (Ainslie et al. 2023): the queries of a group lie one below the other as
//! [G · B, R · T, dh], keys and values as [G · B, T, dh], so that products over a group's queries are sums over its heads.

use marionette_models::ModelConfig;
use tch::{Device, Kind, Tensor};

use crate::error::Result;
use crate::rotary::Rotary;

/// The shape of a batch in attention, and who sees whom.
pub(in super::super) struct Frame {
    batch: i64,
    length: i64,
    /// G.
    groups: i64,
    /// R.
    sharing: i64,
    /// dh.
    width: i64,
    /// [R · T, T]: 0 where the token of the row sees the one of the column, −∞ elsewhere.
    mask: Tensor,
    /// The angles of each row's positions, [B or 1, 1, T, dh / 2].
    rotary: Option<Rotary>,
}

/// Queries, scaled and turned, keys, turned, and values; or tangents or adjoints of them.
struct Heads {
    q: Tensor,
    k: Tensor,
    v: Tensor,
}

/// What the walk back needs.
pub(in super::super) struct Tape {
    heads: Heads,
    /// P, [G · B, R · T, T].
    p: Tensor,
}

/// The tangents of the tape.
pub(in super::super) struct Tangent {
    heads: Heads,
    p: Tensor,
}

fn transpose(x: &Tensor) -> Result<Tensor> {
    Ok(x.f_transpose(1, 2)?)
}

/// P ⊙ (v − Σ P ⊙ v), the Jacobian of softmax times v; it is symmetric.
fn softmax_jacobian(v: &Tensor, p: &Tensor) -> Result<Tensor> {
    Ok(Tensor::f_internal_softmax_backward_data(v, p, -1, p.kind())?)
}

/// a b + c d.
fn two_products(a: &Tensor, b: &Tensor, c: &Tensor, d: &Tensor) -> Result<Tensor> {
    Ok(a.f_bmm(b)?.f_baddbmm_(c, d)?)
}

impl Frame {
    pub(super) fn new(
        [batch, length]: [i64; 2],
        config: &ModelConfig,
        rotary: Option<Rotary>,
        kind: Kind,
        device: Device,
    ) -> Result<Self> {
        let sharing = (config.n_head / config.n_kv_head) as i64;
        let unseen = Tensor::f_ones([length, length], (Kind::Bool, device))?.f_triu(1)?;
        let mask = Tensor::f_zeros([length, length], (kind, device))?.f_masked_fill(&unseen, f64::NEG_INFINITY)?;
        let rotary = rotary.map(|rotary| rotary.unsqueeze(1)).transpose()?;
        let (groups, width) = (config.n_kv_head as i64, config.head_dim as i64);
        Ok(Self { batch, length, groups, sharing, width, mask: mask.f_repeat([sharing, 1])?, rotary })
    }

    fn scale(&self) -> f64 {
        1.0 / (self.width as f64).sqrt()
    }

    /// The columns of queries, keys and values in [N, (H + 2 G) dh], as first head and number of heads.
    fn places(&self) -> [(i64, i64); 3] {
        let heads = self.groups * self.sharing;
        [(0, heads), (heads, self.groups), (heads + self.groups, self.groups)]
    }

    /// `count` heads [B, T, count, dh], seen as [G, B, count / G, T, dh].
    fn turned(&self, x: &Tensor, count: i64) -> Result<Tensor> {
        let shape = [self.batch, self.length, self.groups, count / self.groups, self.width];
        Ok(x.f_view(shape)?.f_permute([2, 0, 3, 1, 4])?)
    }

    /// [G, B, r, T, dh] as it lies in products, [G · B, r · T, dh].
    fn flat(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.f_reshape([self.groups * self.batch, -1, self.width])?)
    }

    /// Queries, keys and values [N, (H + 2 G) dh], or their tangents, in heads.
    fn split(&self, qkv: &Tensor) -> Result<Heads> {
        let qkv = qkv.f_reshape([self.batch, self.length, -1, self.width])?;
        let [q, k, v] = self.places().map(|(first, count)| -> Result<Tensor> {
            let part = qkv.f_narrow(2, first, count)?;
            Ok(part.f_reshape([self.batch, self.length, self.groups, -1, self.width])?.f_permute([2, 0, 3, 1, 4])?)
        });
        let turn = |x: Tensor| match &self.rotary {
            Some(rotary) => rotary.forward(&x),
            None => Ok(x),
        };
        let mut q = self.flat(&turn(q?)?)?;
        let _ = q.f_mul_scalar_(self.scale())?;
        Ok(Heads { q, k: self.flat(&turn(k?)?)?, v: self.flat(&v?)? })
    }

    /// Back: adjoints in heads to [N, (H + 2 G) dh].
    fn join(&self, heads: &Heads) -> Result<Tensor> {
        let all = (self.sharing + 2) * self.groups;
        let out = Tensor::f_empty([self.batch, self.length, all, self.width], (heads.q.kind(), heads.q.device()))?;
        let _ = heads.q.shallow_clone().f_mul_scalar_(self.scale())?;
        let turned = [true, true, false];
        for ((x, (first, count)), turned) in [&heads.q, &heads.k, &heads.v].into_iter().zip(self.places()).zip(turned) {
            let x = x.f_view([self.groups, self.batch, count / self.groups, self.length, self.width])?;
            let x = match &self.rotary {
                Some(rotary) if turned => rotary.back(&x)?,
                _ => x,
            };
            self.turned(&out.f_narrow(2, first, count)?, count)?.f_copy_(&x)?;
        }
        Ok(out.f_view([self.batch * self.length, -1])?)
    }

    /// The tape, from queries, keys and values [N, (H + 2 G) dh].
    pub(super) fn tape(&self, qkv: &Tensor) -> Result<Tape> {
        let heads = self.split(qkv)?;
        let p = self.mask.f_baddbmm(&heads.q, &transpose(&heads.k)?, 1.0, 1.0)?.f_internal_softmax(-1, false)?;
        Ok(Tape { heads, p })
    }

    /// o, [N, H dh].
    pub(super) fn output(&self, tape: &Tape) -> Result<Tensor> {
        self.side_by_side(&tape.p.f_bmm(&tape.heads.v)?)
    }

    /// [G · B, R · T, dh] to [N, H dh].
    fn side_by_side(&self, o: &Tensor) -> Result<Tensor> {
        Ok(o.f_view([self.groups, self.batch, self.sharing, self.length, self.width])?
            .f_permute([1, 3, 0, 2, 4])?
            .f_reshape([self.batch * self.length, -1])?)
    }

    /// ō [N, H dh], in heads.
    pub(super) fn heads(&self, o_bar: &Tensor) -> Result<Tensor> {
        self.flat(&self.turned(o_bar, self.groups * self.sharing)?)
    }

    /// The adjoint of queries, keys and values, [N, (H + 2 G) dh], from ō in heads:
    /// v̄ = Pᵀ ō, P̄ = ō vᵀ, s̄ = P ⊙ (P̄ − Σ P ⊙ P̄), q̄ = s̄ k, k̄ = s̄ᵀ q.
    pub(super) fn backward(&self, tape: &Tape, o_bar: &Tensor) -> Result<Tensor> {
        let Heads { q, k, v } = &tape.heads;
        let s_bar = softmax_jacobian(&o_bar.f_bmm(&transpose(v)?)?, &tape.p)?;
        self.join(&Heads { q: s_bar.f_bmm(k)?, k: transpose(&s_bar)?.f_bmm(q)?, v: transpose(&tape.p)?.f_bmm(o_bar)? })
    }

    /// ȯ [N, H dh] from the tangent of queries, keys and values [N, (H + 2 G) dh]: ṡ = q̇ kᵀ + q k̇ᵀ,
    /// Ṗ = P ⊙ (ṡ − Σ P ⊙ ṡ), ȯ = Ṗ v + P v̇.
    pub(super) fn tangent(&self, tape: &Tape, qkv_dot: &Tensor) -> Result<(Tensor, Tangent)> {
        let heads = self.split(qkv_dot)?;
        let (Heads { q, k, v }, Heads { q: q_dot, k: k_dot, v: v_dot }) = (&tape.heads, &heads);
        let s_dot = two_products(q_dot, &transpose(k)?, q, &transpose(k_dot)?)?;
        let p = softmax_jacobian(&s_dot, &tape.p)?;
        let o_dot = self.side_by_side(&two_products(&p, v, &tape.p, v_dot)?)?;
        Ok((o_dot, Tangent { heads, p }))
    }

    /// The tangent of [`Frame::backward`], from the tangent of ō in heads: v̄̇ = Ṗᵀ ō + Pᵀ ō̇, P̄̇ = ō̇ vᵀ + ō v̇ᵀ,
    /// s̄̇ = P ⊙ (P̄̇ − Σ P ⊙ P̄̇) + Ṗ ⊙ (P̄ − Σ P ⊙ P̄) − P Σ (Ṗ ⊙ P̄), q̄̇ = s̄̇ k + s̄ k̇, k̄̇ = s̄̇ᵀ q + s̄ᵀ q̇.
    pub(super) fn tangent_backward(
        &self,
        tape: &Tape,
        tangent: &Tangent,
        o_bar: &Tensor,
        o_bar_dot: &Tensor,
    ) -> Result<Tensor> {
        let (Heads { q, k, v }, Heads { q: q_dot, k: k_dot, v: v_dot }) = (&tape.heads, &tangent.heads);
        let (p, p_dot) = (&tape.p, &tangent.p);
        let mut p_bar = o_bar.f_bmm(&transpose(v)?)?;
        let p_bar_dot = two_products(o_bar_dot, &transpose(v)?, o_bar, &transpose(v_dot)?)?;
        let s_bar = softmax_jacobian(&p_bar, p)?;
        let mut s_bar_dot = softmax_jacobian(&p_bar_dot, p)?;
        let row_sum = |x: &Tensor| x.f_sum_dim_intlist(-1, true, None);
        let turned = row_sum(&p_dot.f_mul(&p_bar)?)?;
        let _ = s_bar_dot.f_addcmul_(p, &turned.f_neg()?)?;
        let _ = p_bar.f_sub_(&row_sum(&p.f_mul(&p_bar)?)?)?;
        let _ = s_bar_dot.f_addcmul_(p_dot, &p_bar)?;
        self.join(&Heads {
            q: two_products(&s_bar_dot, k, &s_bar, k_dot)?,
            k: two_products(&transpose(&s_bar_dot)?, q, &transpose(&s_bar)?, q_dot)?,
            v: two_products(&transpose(p)?, o_bar_dot, &transpose(p_dot)?, o_bar)?,
        })
    }
}
