//! The activation of the MLP, g(f), with its first two derivatives: GELU ([`super::gelu`]), or SwiGLU (Shazeer 2020), silu(u) ⊙ v with
//! u and v the halves of f.

use marionette_kernels::mlp as kernels;
use marionette_models::Mlp;
use tch::Tensor;

use super::gelu;
use crate::error::Result;
use crate::host::{self, values};

#[derive(Clone, Copy)]
pub(super) struct Activation {
    mlp: Mlp,
}

/// u and v, [N, F] each.
fn halves(f: &Tensor) -> Result<[Tensor; 2]> {
    let width = f.size2()?.1 / 2;
    Ok([f.f_narrow(1, 0, width)?, f.f_narrow(1, width, width)?])
}

fn together(u: &Tensor, v: &Tensor) -> Result<Tensor> {
    Ok(Tensor::f_cat(&[u, v], 1)?)
}

/// silu′(u) ⊙ y, with silu′ = σ (1 + u (1 − σ)).
fn slope_times(u: &Tensor, y: &Tensor) -> Result<Tensor> {
    Ok(u.f_silu_backward(y)?)
}

/// silu″(u) = σ (1 − σ) (2 + u (1 − 2 σ)).
fn curvature(u: &Tensor) -> Result<Tensor> {
    let sigma = u.f_sigmoid()?;
    let mut out = sigma.f_mul_scalar(-2.0)?.f_add_scalar_(1.0)?.f_mul_(u)?.f_add_scalar_(2.0)?;
    let spread = sigma.f_square()?.f_neg_()?.f_add_(&sigma)?;
    Ok(out.f_mul_(&spread)?)
}

impl Activation {
    pub(super) fn new(mlp: Mlp) -> Self {
        Self { mlp }
    }

    /// Rows of `parts` · F values, by the device's kernels, from the same rows of f, and of other matrices; none where libtorch's operators
    /// are to compute them. `compute` gets the MLP, F, the inputs and the output.
    fn by_kernels<const M: usize>(
        self,
        inputs: [&Tensor; M],
        parts: usize,
        compute: impl Fn(Mlp, usize, [&[f32]; M], &mut [f32]) + Send + Sync,
    ) -> Result<Option<Tensor>> {
        let Some(f) = inputs.first().filter(|f| host::computes(f.kind(), f.device())) else { return Ok(None) };
        let (rows, all) = f.size2()?;
        let width = all as usize / self.mlp.parts();
        let mut given = [[].as_slice(); M];
        for (given, input) in given.iter_mut().zip(inputs) {
            *given = values(input)?;
        }
        let [out] = host::new([&[rows, (parts * width) as i64]], |all| {
            host::rows(rows as usize, all, |range, [out]| {
                let part = given.map(|values| {
                    let each = values.len() / rows as usize;
                    &values[range.start * each..range.end * each]
                });
                compute(self.mlp, width, part, out);
            });
            Ok(())
        })?;
        Ok(Some(out))
    }

    /// g(f), [N, F].
    pub(super) fn value(self, f: &Tensor) -> Result<Tensor> {
        let fused = self.by_kernels([f], 1, |mlp, width, [f], g| match mlp {
            Mlp::GeluNew => {
                g.copy_from_slice(f);
                kernels::gelu(g);
            }
            Mlp::SwiGlu => kernels::swi_glu(f, width, g),
        })?;
        if let Some(g) = fused {
            return Ok(g);
        }
        match self.mlp {
            Mlp::GeluNew => gelu::value(f),
            Mlp::SwiGlu => {
                let [u, v] = halves(f)?;
                Ok(u.f_silu()?.f_mul_(&v)?)
            }
        }
    }

    /// f̄ from ḡ: for SwiGLU ū = silu′(u) ⊙ v ⊙ ḡ, v̄ = silu(u) ⊙ ḡ.
    pub(super) fn backward(self, f: &Tensor, g_bar: &Tensor) -> Result<Tensor> {
        let fused = self.by_kernels([f, g_bar], self.mlp.parts(), |mlp, width, [f, g_bar], f_bar| match mlp {
            Mlp::GeluNew => kernels::gelu_gradient(g_bar, f, f_bar),
            Mlp::SwiGlu => kernels::swi_glu_gradient(g_bar, f, width, f_bar),
        })?;
        if let Some(f_bar) = fused {
            return Ok(f_bar);
        }
        match self.mlp {
            Mlp::GeluNew => gelu::slope_times(f, g_bar),
            Mlp::SwiGlu => {
                let [u, v] = halves(f)?;
                together(&slope_times(&u, &g_bar.f_mul(&v)?)?, &u.f_silu()?.f_mul_(g_bar)?)
            }
        }
    }

    /// ġ from ḟ: for SwiGLU silu′(u) ⊙ u̇ ⊙ v + silu(u) ⊙ v̇.
    pub(super) fn tangent(self, f: &Tensor, f_dot: &Tensor) -> Result<Tensor> {
        let fused = self.by_kernels([f, f_dot], 1, |mlp, width, [f, f_dot], g_dot| match mlp {
            Mlp::GeluNew => kernels::gelu_gradient(f_dot, f, g_dot),
            Mlp::SwiGlu => kernels::swi_glu_tangent(f, f_dot, width, g_dot),
        })?;
        if let Some(g_dot) = fused {
            return Ok(g_dot);
        }
        match self.mlp {
            Mlp::GeluNew => gelu::slope_times(f, f_dot),
            Mlp::SwiGlu => {
                let ([u, v], [u_dot, v_dot]) = (halves(f)?, halves(f_dot)?);
                Ok(slope_times(&u, &u_dot.f_mul(&v)?)?.f_addcmul_(&u.f_silu()?, &v_dot)?)
            }
        }
    }

    /// The tangent of f̄, from ḟ and the tangent of ḡ: for GELU ḡ̇ ⊙ gelu′(f) + ḡ ⊙ gelu″(f) ⊙ ḟ, for SwiGLU
    /// silu′(u) ⊙ (ḡ̇ ⊙ v + ḡ ⊙ v̇) + silu″(u) ⊙ u̇ ⊙ v ⊙ ḡ and silu(u) ⊙ ḡ̇ + silu′(u) ⊙ u̇ ⊙ ḡ.
    pub(super) fn tangent_backward(
        self,
        f: &Tensor,
        f_dot: &Tensor,
        g_bar: &Tensor,
        g_bar_dot: &Tensor,
    ) -> Result<Tensor> {
        let given = [f, f_dot, g_bar, g_bar_dot];
        let fused = self.by_kernels(given, self.mlp.parts(), |mlp, width, [f, f_dot, g_bar, g_bar_dot], out| {
            let (by_output, at) = ([g_bar, g_bar_dot], [f, f_dot]);
            match mlp {
                Mlp::GeluNew => kernels::gelu_gradient_tangent(by_output, at, out),
                Mlp::SwiGlu => kernels::swi_glu_gradient_tangent(by_output, at, width, out),
            }
        })?;
        if let Some(out) = fused {
            return Ok(out);
        }
        match self.mlp {
            Mlp::GeluNew => {
                let mut out = gelu::slope_times(f, g_bar_dot)?;
                Ok(out.f_addcmul_(&gelu::curvature(f)?.f_mul_(f_dot)?, g_bar)?)
            }
            Mlp::SwiGlu => {
                let ([u, v], [u_dot, v_dot]) = (halves(f)?, halves(f_dot)?);
                let moved = g_bar_dot.f_mul(&v)?.f_addcmul_(g_bar, &v_dot)?;
                let bent = curvature(&u)?.f_mul_(&u_dot)?.f_mul_(&v)?;
                let by_u = slope_times(&u, &moved)?.f_addcmul_(&bent, g_bar)?;
                let by_v = slope_times(&u, &u_dot.f_mul(g_bar)?)?.f_addcmul_(&u.f_silu()?, g_bar_dot)?;
                together(&by_u, &by_v)
            }
        }
    }
}
