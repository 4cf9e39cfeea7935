//! Attention (Vaswani et al. 2017, section 3.2.1): o = P v with P = softmax(s) over each row and s = q kᵀ + mask, where q
//! is scaled by 1 / √dh beforehand. Queries, keys and values lie together as [3, B · H, T, dh].

use tch::{Device, Kind, Tensor};

use crate::error::Result;

/// The shape of a batch in attention, and who sees whom.
pub(super) struct Frame {
    batch: i64,
    length: i64,
    heads: i64,
    /// dh.
    width: i64,
    /// [T, T]: 0 where the token of the row sees the one of the column, −∞ elsewhere.
    mask: Tensor,
}

/// What the walk back needs.
pub(super) struct Tape {
    /// [3, B · H, T, dh], queries scaled.
    qkv: Tensor,
    /// P, [B · H, T, T].
    p: Tensor,
}

/// The tangents of the tape.
pub(super) struct Tangent {
    qkv: Tensor,
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

fn parts(qkv: &Tensor) -> Result<[Tensor; 3]> {
    Ok([qkv.f_select(0, 0)?, qkv.f_select(0, 1)?, qkv.f_select(0, 2)?])
}

impl Frame {
    /// The frame of B rows of T tokens, with causal attention.
    pub(super) fn new(batch: i64, length: i64, heads: i64, d: i64, kind: Kind, device: Device) -> Result<Self> {
        let unseen = Tensor::f_ones([length, length], (Kind::Bool, device))?.f_triu(1)?;
        let mask = Tensor::f_zeros([length, length], (kind, device))?.f_masked_fill(&unseen, f64::NEG_INFINITY)?;
        Ok(Self { batch, length, heads, width: d / heads, mask })
    }

    fn scale(&self) -> f64 {
        1.0 / (self.width as f64).sqrt()
    }

    /// [N, C · D] to [C, B · H, T, dh].
    fn split(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.f_reshape([self.batch, self.length, -1, self.heads, self.width])?
            .f_permute([2, 0, 3, 1, 4])?
            .f_contiguous()?
            .f_reshape([-1, self.batch * self.heads, self.length, self.width])?)
    }

    /// [C, B · H, T, dh] to [N, C · D].
    fn join(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.f_reshape([-1, self.batch, self.heads, self.length, self.width])?
            .f_permute([1, 3, 0, 2, 4])?
            .f_reshape([self.batch * self.length, -1])?)
    }

    /// Queries, keys and values, their tangents, or back their adjoints: only the queries are scaled.
    fn split_scaled(&self, qkv: &Tensor) -> Result<Tensor> {
        let qkv = self.split(qkv)?;
        let _ = qkv.f_select(0, 0)?.f_mul_scalar_(self.scale())?;
        Ok(qkv)
    }

    fn join_scaled(&self, qkv: &Tensor) -> Result<Tensor> {
        let _ = qkv.f_select(0, 0)?.f_mul_scalar_(self.scale())?;
        self.join(qkv)
    }

    /// The tape, from queries, keys and values [N, 3 D].
    pub(super) fn tape(&self, qkv: &Tensor) -> Result<Tape> {
        let qkv = self.split_scaled(qkv)?;
        let [q, k, _] = parts(&qkv)?;
        let p = self.mask.f_baddbmm(&q, &transpose(&k)?, 1.0, 1.0)?.f_internal_softmax(-1, false)?;
        Ok(Tape { qkv, p })
    }

    /// o, [N, D].
    pub(super) fn output(&self, tape: &Tape) -> Result<Tensor> {
        let [_, _, v] = parts(&tape.qkv)?;
        self.join(&tape.p.f_bmm(&v)?)
    }

    /// ō [N, D], in heads.
    pub(super) fn heads(&self, o_bar: &Tensor) -> Result<Tensor> {
        Ok(self.split(o_bar)?.f_squeeze_dim(0)?)
    }

    /// The adjoint of queries, keys and values, [N, 3 D], from ō in heads:
    /// v̄ = Pᵀ ō, P̄ = ō vᵀ, s̄ = P ⊙ (P̄ − Σ P ⊙ P̄), q̄ = s̄ k, k̄ = s̄ᵀ q.
    pub(super) fn backward(&self, tape: &Tape, o_bar: &Tensor) -> Result<Tensor> {
        let [q, k, v] = parts(&tape.qkv)?;
        let s_bar = softmax_jacobian(&o_bar.f_bmm(&transpose(&v)?)?, &tape.p)?;
        let out = tape.qkv.f_empty_like()?;
        let [q_bar, k_bar, v_bar] = parts(&out)?;
        let _ = s_bar.f_bmm_out(&q_bar, &k)?;
        let _ = transpose(&s_bar)?.f_bmm_out(&k_bar, &q)?;
        let _ = transpose(&tape.p)?.f_bmm_out(&v_bar, o_bar)?;
        self.join_scaled(&out)
    }

    /// ȯ [N, D] from the tangent of queries, keys and values [N, 3 D]: ṡ = q̇ kᵀ + q k̇ᵀ, Ṗ = P ⊙ (ṡ − Σ P ⊙ ṡ),
    /// ȯ = Ṗ v + P v̇.
    pub(super) fn tangent(&self, tape: &Tape, qkv_dot: &Tensor) -> Result<(Tensor, Tangent)> {
        let qkv_dot = self.split_scaled(qkv_dot)?;
        let ([q, k, v], [q_dot, k_dot, v_dot]) = (parts(&tape.qkv)?, parts(&qkv_dot)?);
        let s_dot = two_products(&q_dot, &transpose(&k)?, &q, &transpose(&k_dot)?)?;
        let p_dot = softmax_jacobian(&s_dot, &tape.p)?;
        let o_dot = self.join(&two_products(&p_dot, &v, &tape.p, &v_dot)?)?;
        Ok((o_dot, Tangent { qkv: qkv_dot, p: p_dot }))
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
        let ([q, k, v], [q_dot, k_dot, v_dot]) = (parts(&tape.qkv)?, parts(&tangent.qkv)?);
        let (p, p_dot) = (&tape.p, &tangent.p);
        let mut p_bar = o_bar.f_bmm(&transpose(&v)?)?;
        let p_bar_dot = two_products(o_bar_dot, &transpose(&v)?, o_bar, &transpose(&v_dot)?)?;
        let s_bar = softmax_jacobian(&p_bar, p)?;
        let mut s_bar_dot = softmax_jacobian(&p_bar_dot, p)?;
        let row_sum = |x: &Tensor| x.f_sum_dim_intlist(-1, true, None);
        let turned = row_sum(&p_dot.f_mul(&p_bar)?)?;
        let _ = s_bar_dot.f_addcmul_(p, &turned.f_neg()?)?;
        let _ = p_bar.f_sub_(&row_sum(&p.f_mul(&p_bar)?)?)?;
        let _ = s_bar_dot.f_addcmul_(p_dot, &p_bar)?;
        let out = tape.qkv.f_empty_like()?;
        let [mut q_bar, mut k_bar, mut v_bar] = parts(&out)?;
        let _ = s_bar_dot.f_bmm_out(&q_bar, &k)?;
        let _ = q_bar.f_baddbmm_(&s_bar, &k_dot)?;
        let _ = transpose(&s_bar_dot)?.f_bmm_out(&k_bar, &q)?;
        let _ = k_bar.f_baddbmm_(&transpose(&s_bar)?, &q_dot)?;
        let _ = transpose(p)?.f_bmm_out(&v_bar, o_bar_dot)?;
        let _ = v_bar.f_baddbmm_(&transpose(p_dot)?, o_bar)?;
        self.join_scaled(&out)
    }
}
