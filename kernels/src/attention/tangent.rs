//! Tangents of attention and of its gradient along a direction of queries, keys and values: what an exact meta-gradient needs of them
//! (Pearlmutter 1994, equation 5). With s = q kᵀ / √dh, P = exp(s − l) and δ = dy · y, one a query:
//!
//! ṡ = (q̇ kᵀ + q k̇ᵀ) / √dh, μ = Σ P ṡ, Ṗ = P (ṡ − μ), ẏ = Ṗ v + P v̇;
//! dP = dy vᵀ, ds = P (dP − δ), dṖ = dẏ vᵀ + dy v̇ᵀ, δ̇ = dẏ · y + dy · ẏ, dṡ = Ṗ (dP − δ) + P (dṖ − δ̇);
//! dq̇ = (dṡ k + ds k̇) / √dh, dk̇ = (dṡᵀ q + dsᵀ q̇) / √dh, dv̇ = Ṗᵀ dy + Pᵀ dẏ.
//!
//! As in walks without tangents, scores exist for 32 queries at a time, and nothing of \[T, T\] is kept.

use pulp::{Simd, WithSimd};

use super::back::{Sums, dots};
use super::{Gradients, Head, chunk, of_block, seen, share, slices, write};
use crate::tiles::{COLUMNS, ROWS, ZERO, left, multiply, right, turned};

#[inline(always)]
fn tangent_on<S: Simd, const N: usize>(
    simd: S,
    head: Head<'_>,
    dot: Head<'_>,
    log_sum: &[f32],
    y_dot: &mut [&mut [f32]],
    means: &mut [f32],
) {
    let (tokens, head_dim) = (head.tokens(), head.heads.width);
    let scale = (head_dim as f32).sqrt().recip();
    let [queries, queries_dot] = [head, dot].map(|head| turned(head.part(0), head_dim, scale));
    let [keys, keys_dot] = [head, dot].map(|head| left(head.part(1), head_dim));
    let [values, values_dot] = [head, dot].map(|head| right(head.part(2), head_dim));
    let mut shares = vec![[0.0; COLUMNS]; values.strip];
    let mut shares_dot = vec![[0.0; COLUMNS]; values.strip];
    for first in (0..tokens).step_by(COLUMNS) {
        let block = first..tokens.min(first + COLUMNS);
        let seen = seen(first, tokens);
        let (shares, shares_dot) = (&mut shares[..seen], &mut shares_dot[..seen]);
        let [queries, queries_dot] = [&queries, &queries_dot].map(|queries| queries.strip(first / COLUMNS));
        let tiles = shares.as_chunks_mut::<ROWS>().0.iter_mut().zip(shares_dot.as_chunks_mut::<ROWS>().0);
        for (index, (shares, shares_dot)) in tiles.enumerate() {
            let (keys, keys_dot) = (keys.strip(index), keys_dot.strip(index));
            (*shares, *shares_dot) = (ZERO, ZERO);
            multiply::<S, N>(simd, |i| keys[i], queries, shares);
            multiply::<S, N>(simd, |i| keys[i], queries_dot, shares_dot);
            multiply::<S, N>(simd, |i| keys_dot[i], queries, shares_dot);
        }
        head.hide(shares, first);
        let log_sum = of_block(log_sum, &block);
        let mut sums = [0.0; COLUMNS];
        for (shares, shares_dot) in shares.iter_mut().zip(&*shares_dot) {
            for i in 0..COLUMNS {
                shares[i] = share(shares[i], log_sum[i]);
                sums[i] += shares[i] * shares_dot[i];
            }
        }
        for (shares, shares_dot) in shares.iter().zip(&mut *shares_dot) {
            for i in 0..COLUMNS {
                shares_dot[i] = shares[i] * (shares_dot[i] - sums[i]);
            }
        }
        means[block.clone()].copy_from_slice(&sums[..block.len()]);
        for (quarter, y_dot) in y_dot[block].chunks_mut(ROWS).enumerate() {
            let depth = seen.min(first + (quarter + 1) * ROWS);
            for strip in 0..head_dim.div_ceil(COLUMNS) {
                let mut tile = ZERO;
                let [values, values_dot] = [&values, &values_dot].map(|values| &values.strip(strip)[..depth]);
                multiply::<S, N>(simd, |j| chunk(&shares_dot[j], quarter), values, &mut tile);
                multiply::<S, N>(simd, |j| chunk(&shares[j], quarter), values_dot, &mut tile);
                for (y_dot, row) in y_dot.iter_mut().zip(&tile) {
                    write(y_dot, strip, row, 1.0);
                }
            }
        }
    }
}

/// The tangent of [`forward`](super::forward)'s output, a slice a token, along that of queries, keys and values, `dot`, laid out as
/// they are, and of each query Σ P ṡ, \[T\], which the walk back needs; `log_sum` \[T\] is what forward gave. Without branches or a cache.
pub fn tangent(head: Head<'_>, dot: &[f32], log_sum: &[f32], y_dot: &mut [&mut [f32]], means: &mut [f32]) {
    struct Along<'a, 'b>(Head<'a>, &'a [f32], &'a [f32], &'a mut [&'b mut [f32]], &'a mut [f32]);
    impl WithSimd for Along<'_, '_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let Self(head, dot, log_sum, y_dot, means) = self;
            let dot = Head { qkv: dot, ..head };
            match S::REGISTER_COUNT {
                32.. => tangent_on::<S, 2>(simd, head, dot, log_sum, y_dot, means),
                _ => tangent_on::<S, 1>(simd, head, dot, log_sum, y_dot, means),
            }
        }
    }
    pulp::Arch::new().dispatch(Along(head, dot, log_sum, y_dot, means));
}

/// What the tangent of the gradient is computed from, beside the head: of all heads of a row.
#[derive(Debug, Clone, Copy)]
pub struct Tangents<'a> {
    /// Of queries, keys and values, \[T, (H + 2 G) dh\].
    pub qkv: &'a [f32],
    /// The gradient by the output and its tangent, \[T, H dh\].
    pub dy: [&'a [f32]; 2],
    /// The output and its tangent, \[T, H dh\].
    pub y: [&'a [f32]; 2],
    /// What [`forward`](super::forward) and [`tangent`] gave of each query of the group, \[R, T\].
    pub statistics: [&'a [f32]; 2],
}

#[inline(always)]
fn tangent_backward_on<S: Simd, const N: usize>(
    simd: S,
    head: Head<'_>,
    given: Tangents<'_>,
    [log_sum, means]: [&[f32]; 2],
    d_queries: &mut [&mut [f32]],
    sums: &mut Option<Sums>,
) {
    let (tokens, head_dim) = (head.tokens(), head.heads.width);
    let dot = Head { qkv: given.qkv, ..head };
    let output = |values| slices(values, head.heads.output(), head.index * head_dim, head_dim);
    let scale = (head_dim as f32).sqrt().recip();
    let strips = head_dim.div_ceil(COLUMNS);
    let [queries, queries_dot] = [head, dot].map(|head| right(head.part(0), head_dim));
    let [queries_turned, queries_dot_turned] = [head, dot].map(|head| turned(head.part(0), head_dim, scale));
    let [keys, keys_dot] = [head, dot].map(|head| right(head.part(1), head_dim));
    let [keys_left, keys_dot_left] = [head, dot].map(|head| left(head.part(1), head_dim));
    let [values_left, values_dot_left] = [head, dot].map(|head| left(head.part(2), head_dim));
    let [dy, dy_dot] = given.dy;
    let [y, y_dot] = given.y;
    let [dy_rows, dy_dot_rows] = [dy, dy_dot].map(|dy| right(output(dy), head_dim));
    let [dy_turned, dy_dot_turned] = [dy, dy_dot].map(|dy| turned(output(dy), head_dim, 1.0));
    let along: Vec<f32> = dots(output(dy), output(y)).collect();
    let along_dot: Vec<f32> =
        dots(output(dy_dot), output(y)).zip(dots(output(dy), output(y_dot))).map(|(a, b)| a + b).collect();
    let sums = sums.get_or_insert_with(|| Sums::as_wide_as(&queries));
    let mut rows: [_; 4] = std::array::from_fn(|_| vec![[0.0; COLUMNS]; queries.strip]);
    for first in (0..tokens).step_by(COLUMNS) {
        let block = first..tokens.min(first + COLUMNS);
        let seen = seen(first, tokens);
        let [shares, shares_dot, d_scores, d_scores_dot] = rows.each_mut().map(|rows| &mut rows[..seen]);
        let [log_sum, means, along, along_dot] =
            [log_sum, means, &along, &along_dot].map(|values| of_block(values, &block));
        let strip = first / COLUMNS;
        let shares_tiles = shares.as_chunks_mut::<ROWS>().0.iter_mut().zip(shares_dot.as_chunks_mut::<ROWS>().0);
        for (index, (shares, shares_dot)) in shares_tiles.enumerate() {
            let (keys, keys_dot) = (keys_left.strip(index), keys_dot_left.strip(index));
            (*shares, *shares_dot) = (ZERO, ZERO);
            multiply::<S, N>(simd, |i| keys[i], queries_turned.strip(strip), shares);
            multiply::<S, N>(simd, |i| keys[i], queries_dot_turned.strip(strip), shares_dot);
            multiply::<S, N>(simd, |i| keys_dot[i], queries_turned.strip(strip), shares_dot);
        }
        let d_tiles = d_scores.as_chunks_mut::<ROWS>().0.iter_mut().zip(d_scores_dot.as_chunks_mut::<ROWS>().0);
        for (index, (d_scores, d_scores_dot)) in d_tiles.enumerate() {
            let (values, values_dot) = (values_left.strip(index), values_dot_left.strip(index));
            (*d_scores, *d_scores_dot) = (ZERO, ZERO);
            multiply::<S, N>(simd, |i| values[i], dy_turned.strip(strip), d_scores);
            multiply::<S, N>(simd, |i| values[i], dy_dot_turned.strip(strip), d_scores_dot);
            multiply::<S, N>(simd, |i| values_dot[i], dy_turned.strip(strip), d_scores_dot);
        }
        head.hide(shares, first);
        for j in 0..seen {
            let (shares, shares_dot) = (&mut shares[j], &mut shares_dot[j]);
            let (d_scores, d_scores_dot) = (&mut d_scores[j], &mut d_scores_dot[j]);
            for i in 0..COLUMNS {
                let share = share(shares[i], log_sum[i]);
                let share_dot = share * (shares_dot[i] - means[i]);
                let centred = d_scores[i] - along[i];
                shares[i] = share;
                shares_dot[i] = share_dot;
                d_scores[i] = share * centred;
                d_scores_dot[i] = share_dot * centred + share * (d_scores_dot[i] - along_dot[i]);
            }
        }
        for (quarter, out) in d_queries[block].chunks_mut(ROWS).enumerate() {
            let depth = seen.min(first + (quarter + 1) * ROWS);
            for strip in 0..strips {
                let mut tile = ZERO;
                let [keys, keys_dot] = [&keys, &keys_dot].map(|keys| &keys.strip(strip)[..depth]);
                multiply::<S, N>(simd, |j| chunk(&d_scores_dot[j], quarter), keys, &mut tile);
                multiply::<S, N>(simd, |j| chunk(&d_scores[j], quarter), keys_dot, &mut tile);
                for (out, row) in out.iter_mut().zip(&tile) {
                    write(out, strip, row, scale);
                }
            }
        }
        Sums::add::<S, N>(simd, &mut sums.values, shares_dot, &dy_rows, first);
        Sums::add::<S, N>(simd, &mut sums.values, shares, &dy_dot_rows, first);
        Sums::add::<S, N>(simd, &mut sums.keys, d_scores_dot, &queries, first);
        Sums::add::<S, N>(simd, &mut sums.keys, d_scores, &queries_dot, first);
    }
}

/// The tangent of what [`backward`](super::backward) gives: of the gradient of a group of heads, of which `first` is the first, without
/// branches or a cache.
pub fn tangent_backward(first: Head<'_>, given: Tangents<'_>, gradients: &mut Gradients<'_>) {
    struct Backward<'a, 'b>(Head<'a>, Tangents<'a>, &'a mut Gradients<'b>);
    impl WithSimd for Backward<'_, '_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let Self(first, given, gradients) = self;
            let (tokens, head_dim) = (first.tokens().max(1), first.heads.width);
            let mut sums = None;
            let [log_sums, means] = given.statistics.map(|values| values.chunks(tokens));
            for (index, (d_queries, statistics)) in gradients.queries.iter_mut().zip(log_sums.zip(means)).enumerate() {
                let (head, statistics) = (Head { index: first.index + index, ..first }, [statistics.0, statistics.1]);
                match S::REGISTER_COUNT {
                    32.. => tangent_backward_on::<S, 2>(simd, head, given, statistics, d_queries, &mut sums),
                    _ => tangent_backward_on::<S, 1>(simd, head, given, statistics, d_queries, &mut sums),
                }
            }
            if let Some(sums) = sums {
                sums.write(gradients, head_dim);
            }
        }
    }
    pulp::Arch::new().dispatch(Backward(first, given, gradients));
}
