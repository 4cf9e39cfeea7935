//! The gradient of a group of heads.

use pulp::{Simd, WithSimd};

use super::{Head, chunk, of_block, seen, share, slices, write};
use crate::tiles::{COLUMNS, Packed, ROWS, Row, ZERO, left, multiply, right, turned};

/// What a group's gradients by keys and values, which its heads share, add up to.
pub(super) struct Sums {
    pub(super) keys: Packed<Row>,
    pub(super) values: Packed<Row>,
}

impl Sums {
    /// Zeros, as `rows` lie.
    pub(super) fn as_wide_as(rows: &Packed<Row>) -> Self {
        let empty = || Packed { values: vec![[0.0; COLUMNS]; rows.values.len()], strip: rows.strip };
        Self { keys: empty(), values: empty() }
    }

    /// Adds leftᵀ rows for the queries from `first` on, with the left side transposed already, to one of the sums.
    #[inline(always)]
    pub(super) fn add<S: Simd, const N: usize>(
        simd: S,
        sum: &mut Packed<Row>,
        left: &[Row],
        rows: &Packed<Row>,
        first: usize,
    ) {
        for strip in 0..sum.values.len() / sum.strip.max(1) {
            let rows = &rows.strip(strip)[first..first + COLUMNS];
            let out = sum.strip_mut(strip).as_chunks_mut::<ROWS>().0;
            for (left, out) in left.as_chunks::<ROWS>().0.iter().zip(out) {
                multiply::<S, N>(simd, |i| std::array::from_fn(|m| left[m][i % COLUMNS]), rows, out);
            }
        }
    }

    /// Writes them where they belong.
    pub(super) fn write(self, gradients: &mut Gradients<'_>, head_dim: usize) {
        let scale = (head_dim as f32).sqrt().recip();
        let parts = [(&self.keys, &mut gradients.keys, scale), (&self.values, &mut gradients.values, 1.0)];
        for (from, to, factor) in parts {
            for strip in 0..head_dim.div_ceil(COLUMNS) {
                for (row, out) in from.strip(strip).iter().zip(&mut *to) {
                    write(out, strip, row, factor);
                }
            }
        }
    }
}

/// a · b, a row a token.
#[inline(always)]
pub(super) fn dots<'a>(
    a: impl Iterator<Item = &'a [f32]>,
    b: impl Iterator<Item = &'a [f32]>,
) -> impl Iterator<Item = f32> {
    a.zip(b).map(|(a, b)| a.iter().zip(b).map(|(a, b)| a * b).sum())
}

#[inline(always)]
fn backward_on<S: Simd, const N: usize>(
    simd: S,
    head: Head<'_>,
    [dy, y]: [&[f32]; 2],
    log_sum: &[f32],
    d_queries: &mut [&mut [f32]],
    sums: &mut Option<Sums>,
) {
    let (tokens, head_dim) = (head.tokens(), head.heads.width);
    let output = |values| slices(values, head.heads.output(), head.index * head_dim, head_dim);
    let scale = (head_dim as f32).sqrt().recip();
    let strips = head_dim.div_ceil(COLUMNS);
    let (queries, queries_turned) = (right(head.part(0), head_dim), turned(head.part(0), head_dim, scale));
    let (keys, keys_left) = (right(head.part(1), head_dim), left(head.part(1), head_dim));
    let values_left = left(head.part(2), head_dim);
    let (dy_rows, dy_turned) = (right(output(dy), head_dim), turned(output(dy), head_dim, 1.0));
    // Σ dP P of a query, which is dy · y.
    let along: Vec<f32> = dots(output(dy), output(y)).collect();
    let sums = sums.get_or_insert_with(|| Sums::as_wide_as(&queries));
    let mut shares = vec![[0.0; COLUMNS]; queries.strip];
    let mut d_scores = vec![[0.0; COLUMNS]; queries.strip];
    for first in (0..tokens).step_by(COLUMNS) {
        let block = first..tokens.min(first + COLUMNS);
        let seen = seen(first, tokens);
        let (shares, d_scores) = (&mut shares[..seen], &mut d_scores[..seen]);
        let [log_sum, along] = [log_sum, &along].map(|values| of_block(values, &block));
        let tiles = shares.as_chunks_mut::<ROWS>().0.iter_mut().zip(d_scores.as_chunks_mut::<ROWS>().0);
        for (index, (shares, d_scores)) in tiles.enumerate() {
            let (keys, values) = (keys_left.strip(index), values_left.strip(index));
            (*shares, *d_scores) = (ZERO, ZERO);
            multiply::<S, N>(simd, |i| keys[i], queries_turned.strip(first / COLUMNS), shares);
            multiply::<S, N>(simd, |i| values[i], dy_turned.strip(first / COLUMNS), d_scores);
        }
        head.hide(shares, first);
        for (shares, d_scores) in shares.iter_mut().zip(&mut *d_scores) {
            for i in 0..COLUMNS {
                shares[i] = share(shares[i], log_sum[i]);
                d_scores[i] = shares[i] * (d_scores[i] - along[i]);
            }
        }
        for (quarter, out) in d_queries[block].chunks_mut(ROWS).enumerate() {
            let depth = seen.min(first + (quarter + 1) * ROWS);
            for strip in 0..strips {
                let mut tile = ZERO;
                multiply::<S, N>(simd, |j| chunk(&d_scores[j], quarter), &keys.strip(strip)[..depth], &mut tile);
                for (out, row) in out.iter_mut().zip(&tile) {
                    write(out, strip, row, scale);
                }
            }
        }
        Sums::add::<S, N>(simd, &mut sums.values, shares, &dy_rows, first);
        Sums::add::<S, N>(simd, &mut sums.keys, d_scores, &queries, first);
    }
}

/// Where the gradients of a group of heads belong, which share keys and values: a slice a token each.
#[derive(Debug)]
pub struct Gradients<'a> {
    /// Of each head's queries.
    pub queries: Vec<Vec<&'a mut [f32]>>,
    /// Of the keys.
    pub keys: Vec<&'a mut [f32]>,
    /// Of the values.
    pub values: Vec<&'a mut [f32]>,
}

/// The gradient of a group of heads with respect to its queries, keys and values, from that of their output: `first` is the first of
/// them, `dy` and the output `y` \[T, H dh\] hold all heads, `log_sum` \[R, T\] is what [`forward`](super::forward) gave for each.
pub fn backward(first: Head<'_>, outputs: [&[f32]; 2], log_sum: &[f32], gradients: &mut Gradients<'_>) {
    struct Backward<'a, 'b>(Head<'a>, [&'a [f32]; 2], &'a [f32], &'a mut Gradients<'b>);
    impl WithSimd for Backward<'_, '_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let Self(first, outputs, log_sum, gradients) = self;
            let (tokens, head_dim) = (first.tokens(), first.heads.width);
            let mut sums = None;
            let each = gradients.queries.iter_mut().zip(log_sum.chunks(tokens.max(1)));
            for (index, (d_queries, log_sum)) in each.enumerate() {
                let head = Head { index: first.index + index, ..first };
                match S::REGISTER_COUNT {
                    32.. => backward_on::<S, 2>(simd, head, outputs, log_sum, d_queries, &mut sums),
                    _ => backward_on::<S, 1>(simd, head, outputs, log_sum, d_queries, &mut sums),
                }
            }
            if let Some(sums) = sums {
                sums.write(gradients, head_dim);
            }
        }
    }
    pulp::Arch::new().dispatch(Backward(first, outputs, log_sum, gradients));
}
