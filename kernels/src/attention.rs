//! Causal self-attention and its gradient, a head at a time: scores exist only for 32 queries at once and are computed again on the
//! way back (Dao 2023, "FlashAttention-2", algorithms 1 and 2, with blocks of 32 queries and all keys that they see).
//!
//! Within a block everything is transposed, keys down and queries across, so that softmax adds up rows of 32 numbers, which are
//! vectors on any processor. All products are made of tiles of 8 rows and 32 columns, whose sums stay in registers.

use std::ops::Range;

use pulp::{Simd, WithSimd};

use crate::exp;
use crate::tiles::{COLUMNS, Column, ROWS, Row, ZERO, left, multiply, right, turned};

mod back;
pub mod batch;
mod one;
mod tangent;

pub use back::{Gradients, backward};
pub use one::of_one_query;
pub use tangent::{Tangents, tangent, tangent_backward};

/// What no score reaches.
const UNSEEN: f32 = -1e30;

/// How many heads there are, and how wide each is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// H, of queries.
    pub queries: usize,
    /// G, of keys and of values; H is a multiple of it, and H / G heads share each.
    pub shared: usize,
    /// dh.
    pub width: usize,
}

impl Heads {
    /// Queries, keys and values of a token side by side: (H + 2 G) dh.
    pub fn all(self) -> usize {
        (self.queries + 2 * self.shared) * self.width
    }

    /// The outputs of a token side by side: H dh.
    pub fn output(self) -> usize {
        self.queries * self.width
    }

    /// R = H / G.
    pub fn sharing(self) -> usize {
        self.queries / self.shared.max(1)
    }
}

/// One row of a batch, T tokens, and one head of it.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    /// Queries, keys and values side by side, \[T, (H + 2 G) dh\].
    pub qkv: &'a [f32],
    /// Of the tokens, where there are branches: token j sees token i iff i <= j and i is of branch 0 or of j's branch.
    pub branch: Option<&'a [i64]>,
    /// Which head of the queries.
    pub index: usize,
    /// The heads.
    pub heads: Heads,
    /// Where there were tokens before: the keys and the values of all, these included, \[P + T, dh\] of the head.
    pub cache: Option<[&'a [f32]; 2]>,
}

impl<'a> Head<'a> {
    fn tokens(&self) -> usize {
        self.qkv.len() / self.heads.all()
    }

    /// The head's queries (0), keys (1) or values (2), a row a token.
    #[inline(always)]
    fn part(&self, part: usize) -> impl ExactSizeIterator<Item = &'a [f32]> + use<'a> {
        let Heads { queries, shared, width } = self.heads;
        if let (Some(cache), 1..) = (self.cache, part) {
            return slices(cache[part - 1], width, 0, width);
        }
        let place = match part {
            0 => self.index,
            part => queries + (part - 1) * shared + self.index / self.heads.sharing(),
        };
        slices(self.qkv, self.heads.all(), place * width, width)
    }

    /// Marks what the queries from `first` on do not see, of transposed scores.
    #[inline(always)]
    fn hide(&self, scores: &mut [Row], first: usize) {
        if let Some(branch) = self.branch {
            for (row, &seen) in scores.iter_mut().zip(branch).filter(|(_, seen)| **seen != 0) {
                for (score, &seeing) in row.iter_mut().zip(&branch[first..]) {
                    *score = if seeing == seen { *score } else { UNSEEN };
                }
            }
        }
        for (index, row) in scores[first..].iter_mut().enumerate() {
            let before = index.min(COLUMNS);
            row[..before].fill(UNSEEN);
        }
    }
}

#[inline(always)]
fn slices(values: &[f32], stride: usize, first: usize, len: usize) -> impl ExactSizeIterator<Item = &[f32]> {
    values.chunks_exact(stride).map(move |row| &row[first..first + len])
}

/// How many keys a block of queries sees at most, in whole tiles; `first` is the place of its first query among all `tokens`.
fn seen(first: usize, tokens: usize) -> usize {
    (first + COLUMNS).min(tokens).next_multiple_of(ROWS)
}

#[inline(always)]
fn forward_on<S: Simd, const N: usize>(simd: S, head: Head<'_>, y: &mut [&mut [f32]], log_sum: &mut [f32]) {
    let (tokens, head_dim) = (head.tokens(), head.heads.width);
    let queries = turned(head.part(0), head_dim, (head_dim as f32).sqrt().recip());
    let all = head.part(1).len();
    let before = all - tokens;
    let (keys, values) = (left(head.part(1), head_dim), right(head.part(2), head_dim));
    let mut scores = vec![[0.0; COLUMNS]; all.next_multiple_of(COLUMNS)];
    for first in (0..tokens).step_by(COLUMNS) {
        let scores = &mut scores[..seen(before + first, all)];
        for (index, scores) in scores.as_chunks_mut::<ROWS>().0.iter_mut().enumerate() {
            let keys = keys.strip(index);
            *scores = ZERO;
            multiply::<S, N>(simd, |i| keys[i], queries.strip(first / COLUMNS), scores);
        }
        head.hide(scores, before + first);
        let mut greatest = [UNSEEN; COLUMNS];
        for row in &*scores {
            for (greatest, &score) in greatest.iter_mut().zip(row) {
                *greatest = greatest.max(score);
            }
        }
        let mut sum = [0.0; COLUMNS];
        for row in &mut *scores {
            for i in 0..COLUMNS {
                row[i] = share(row[i], greatest[i]);
                sum[i] += row[i];
            }
        }
        let block = first..tokens.min(first + COLUMNS);
        for ((log_sum, greatest), sum) in log_sum[block.clone()].iter_mut().zip(greatest).zip(sum) {
            *log_sum = greatest + sum.ln();
        }
        for (quarter, y) in y[block].chunks_mut(ROWS).enumerate() {
            let depth = scores.len().min(before + first + (quarter + 1) * ROWS);
            for strip in 0..head_dim.div_ceil(COLUMNS) {
                let mut tile = ZERO;
                multiply::<S, N>(simd, |j| chunk(&scores[j], quarter), &values.strip(strip)[..depth], &mut tile);
                for ((y, row), sum) in y.iter_mut().zip(&tile).zip(&sum[quarter * ROWS..]) {
                    write(y, strip, row, sum.recip());
                }
            }
        }
    }
}

/// A query's share of a key, from its score and the logarithm of its sum of exponentials.
#[inline(always)]
fn share(score: f32, log_sum: f32) -> f32 {
    if score > UNSEEN { exp(score - log_sum) } else { 0.0 }
}

/// One number a query of a block, and zeros.
#[inline(always)]
fn of_block(values: &[f32], block: &Range<usize>) -> Row {
    let mut all = [0.0; COLUMNS];
    all[..block.len()].copy_from_slice(&values[block.clone()]);
    all
}

#[inline(always)]
fn chunk(row: &Row, quarter: usize) -> Column {
    row.as_chunks::<ROWS>().0[quarter % (COLUMNS / ROWS)]
}

/// Writes the numbers of a strip of columns.
#[inline(always)]
fn write(out: &mut [f32], strip: usize, row: &Row, factor: f32) {
    for (out, value) in out[strip * COLUMNS..].iter_mut().zip(row) {
        *out = value * factor;
    }
}

/// The output of one head, a slice a token, and the logarithm of each query's sum of exponentials, \[T\].
pub fn forward(head: Head<'_>, y: &mut [&mut [f32]], log_sum: &mut [f32]) {
    struct Forward<'a, 'b>(Head<'a>, &'a mut [&'b mut [f32]], &'a mut [f32]);
    impl WithSimd for Forward<'_, '_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            match S::REGISTER_COUNT {
                32.. => forward_on::<S, 2>(simd, self.0, self.1, self.2),
                _ => forward_on::<S, 1>(simd, self.0, self.1, self.2),
            }
        }
    }
    pulp::Arch::new().dispatch(Forward(head, y, log_sum));
}

#[cfg(test)]
mod tests;
