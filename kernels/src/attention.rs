//! Causal self-attention and its gradient, a head at a time: scores exist only for 32 queries at once and are computed again on the
//! way back (Dao 2023, "FlashAttention-2", algorithms 1 and 2, with blocks of 32 queries and all keys that they see).
//!
//! Within a block everything is transposed, keys down and queries across, so that softmax adds up rows of 32 numbers, which are
//! vectors on any processor. All products are made of tiles of 8 rows and 32 columns, whose sums stay in registers.

use std::collections::TryReserveError;

use pulp::{Simd, WithSimd};

use super::exp;
use super::tiles::{COLUMNS, Column, Packed, ROWS, Row, ZERO, left, multiply, right, turned};

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

/// \[B, T, places · dh\] as slices: for each row and place, one a token.
///
/// # Errors
/// There is no memory for them.
pub fn places(
    values: &mut [f32],
    [batch, tokens, places]: [usize; 3],
    width: usize,
) -> Result<Vec<Vec<&mut [f32]>>, TryReserveError> {
    let mut result: Vec<Vec<&mut [f32]>> = Vec::new();
    result.try_reserve_exact(batch * places)?;
    for _ in 0..batch * places {
        let mut slices = Vec::new();
        slices.try_reserve_exact(tokens)?;
        result.push(slices);
    }
    for (index, slice) in values.chunks_mut(width).enumerate() {
        let (token, place) = (index / places, index % places);
        result[token / tokens * places + place].push(slice);
    }
    Ok(result)
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
                row[i] = if row[i] > UNSEEN { exp(row[i] - greatest[i]) } else { 0.0 };
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

/// The output \[dh\] of one query \[dh\] over keys and values \[n, dh\] before its own, and its own.
pub fn of_one_query(query: &[f32], keys: [&[f32]; 2], values: [&[f32]; 2], scores: &mut Vec<f32>, y: &mut [f32]) {
    struct OfOne<'a>(&'a [f32], [&'a [f32]; 2], [&'a [f32]; 2], &'a mut Vec<f32>, &'a mut [f32]);
    impl WithSimd for OfOne<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let Self(query, keys, values, scores, y) = self;
            let width = query.len().max(1);
            let factor = (width as f32).sqrt().recip();
            let (whole, rest) = S::as_simd_f32s(query);
            // Plain loops: what takes a closure is compiled without the processor's instructions.
            scores.clear();
            scores.resize((keys[0].len() + keys[1].len()) / width, 0.0);
            let mut at = 0;
            for keys in keys {
                for key in keys.chunks_exact(width) {
                    let (key, key_rest) = S::as_simd_f32s(key);
                    let mut sum = simd.splat_f32s(0.0);
                    for (&query, &key) in whole.iter().zip(key) {
                        sum = simd.mul_add_e_f32s(query, key, sum);
                    }
                    if !rest.is_empty() {
                        let (query, key) = (simd.partial_load_f32s(rest), simd.partial_load_f32s(key_rest));
                        sum = simd.mul_add_e_f32s(query, key, sum);
                    }
                    scores[at] = simd.reduce_sum_f32s(sum) * factor;
                    at += 1;
                }
            }
            let mut greatest = UNSEEN;
            for &score in &*scores {
                greatest = greatest.max(score);
            }
            let sum = super::exponentials(scores, greatest, 1.0);
            let (y, y_rest) = S::as_mut_simd_f32s(y);
            let factor = simd.splat_f32s((sum as f32).recip());
            // Up to four vectors of all rows at a time: sums that do not wait for each other.
            for (number, y) in y.chunks_mut(4).enumerate() {
                let mut sums = [simd.splat_f32s(0.0); 4];
                let mut at = 0;
                for values in values {
                    for value in values.chunks_exact(width) {
                        let value = &S::as_simd_f32s(value).0[4 * number..];
                        let share = simd.splat_f32s(scores[at]);
                        at += 1;
                        for (sum, &value) in sums.iter_mut().zip(value) {
                            *sum = simd.mul_add_e_f32s(share, value, *sum);
                        }
                    }
                }
                for (y, sum) in y.iter_mut().zip(sums) {
                    *y = simd.mul_f32s(sum, factor);
                }
            }
            if !y_rest.is_empty() {
                let mut sum = simd.splat_f32s(0.0);
                let mut at = 0;
                for values in values {
                    for value in values.chunks_exact(width) {
                        let value = simd.partial_load_f32s(S::as_simd_f32s(value).1);
                        sum = simd.mul_add_e_f32s(simd.splat_f32s(scores[at]), value, sum);
                        at += 1;
                    }
                }
                simd.partial_store_f32s(y_rest, simd.mul_f32s(sum, factor));
            }
        }
    }
    pulp::Arch::new().dispatch(OfOne(query, keys, values, scores, y));
}

/// What a group's gradients by keys and values, which its heads share, add up to.
struct Sums {
    keys: Packed<Row>,
    values: Packed<Row>,
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
    let along: Vec<f32> =
        output(dy).zip(output(y)).map(|(dy, y)| dy.iter().zip(y).map(|(dy, y)| dy * y).sum()).collect();
    let empty = || Packed { values: vec![[0.0; COLUMNS]; queries.values.len()], strip: queries.strip };
    let sums = sums.get_or_insert_with(|| Sums { keys: empty(), values: empty() });
    let mut shares = vec![[0.0; COLUMNS]; queries.strip];
    let mut d_scores = vec![[0.0; COLUMNS]; queries.strip];
    for first in (0..tokens).step_by(COLUMNS) {
        let block = first..tokens.min(first + COLUMNS);
        let seen = seen(first, tokens);
        let (shares, d_scores) = (&mut shares[..seen], &mut d_scores[..seen]);
        let mut statistics = [[0.0; COLUMNS]; 2];
        statistics[0][..block.len()].copy_from_slice(&log_sum[block.clone()]);
        statistics[1][..block.len()].copy_from_slice(&along[block.clone()]);
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
                shares[i] = if shares[i] > UNSEEN { exp(shares[i] - statistics[0][i]) } else { 0.0 };
                d_scores[i] = shares[i] * (d_scores[i] - statistics[1][i]);
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
        let queries_seeing = first..first + COLUMNS;
        for (left, rows, out) in [(&*shares, &dy_rows, &mut sums.values), (&*d_scores, &queries, &mut sums.keys)] {
            for strip in 0..strips {
                let rows = &rows.strip(strip)[queries_seeing.clone()];
                let out = out.strip_mut(strip).as_chunks_mut::<ROWS>().0;
                for (left, out) in left.as_chunks::<ROWS>().0.iter().zip(out) {
                    multiply::<S, N>(simd, |i| std::array::from_fn(|m| left[m][i % COLUMNS]), rows, out);
                }
            }
        }
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
/// them, `dy` and the output `y` \[T, H dh\] hold all heads, `log_sum` \[R, T\] is what [`forward`] gave for each.
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
            let Some(sums) = sums else { return };
            let scale = (head_dim as f32).sqrt().recip();
            let parts = [(&sums.keys, &mut gradients.keys, scale), (&sums.values, &mut gradients.values, 1.0)];
            for (from, to, factor) in parts {
                for strip in 0..head_dim.div_ceil(COLUMNS) {
                    for (row, out) in from.strip(strip).iter().zip(&mut *to) {
                        write(out, strip, row, factor);
                    }
                }
            }
        }
    }
    pulp::Arch::new().dispatch(Backward(first, outputs, log_sum, gradients));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a test computes in f64, from the definition: softmax(q Kᵀ / √dh) V over what a token sees.
    struct Reference {
        y: Vec<f64>,
        log_sum: Vec<f64>,
    }

    fn attention(qkv: &[f64], branch: Option<&[i64]>, tokens: usize, all: Heads) -> Reference {
        let Heads { queries: heads, shared, width: head_dim } = all;
        let width = all.output();
        let (mut y, mut log_sum) = (vec![0.0; tokens * width], vec![0.0; heads * tokens]);
        let at = |part: usize, token: usize, head: usize| {
            let place = [head, heads + head * shared / heads, heads + shared + head * shared / heads][part];
            &qkv[token * all.all() + place * head_dim..][..head_dim]
        };
        for head in 0..heads {
            for j in 0..tokens {
                let sees = |i: &usize| branch.is_none_or(|branch| branch[*i] == 0 || branch[*i] == branch[j]);
                let seen: Vec<usize> = (0..=j).filter(sees).collect();
                let score = |i: usize| {
                    let dot: f64 = at(0, j, head).iter().zip(at(1, i, head)).map(|(q, k)| q * k).sum();
                    (dot / (head_dim as f64).sqrt()).exp()
                };
                let sum: f64 = seen.iter().map(|&i| score(i)).sum();
                log_sum[head * tokens + j] = sum.ln();
                for &i in &seen {
                    for (y, v) in y[j * width + head * head_dim..].iter_mut().zip(at(2, i, head)) {
                        *y += score(i) / sum * v;
                    }
                }
            }
        }
        Reference { y, log_sum }
    }

    fn values(len: usize, seed: usize) -> Vec<f64> {
        (0..len).map(|i| ((i * 7919 + seed * 104_729) % 2027) as f64 / 1013.0 - 1.0).collect()
    }

    fn narrow(values: &[f64]) -> Vec<f32> {
        values.iter().map(|&value| value as f32).collect()
    }

    /// Slices of one head, a token each.
    fn slices_of(values: &mut [f32], stride: usize, first: usize, len: usize) -> Vec<&mut [f32]> {
        values.chunks_mut(stride).map(|row| &mut row[first..first + len]).collect()
    }

    /// Lengths on both sides of the blocks' and tiles' edges, heads narrower and wider than a strip, apart and shared.
    const SHAPES: [(usize, Heads); 8] = [
        (1, heads(1, 1, 8)),
        (7, heads(2, 2, 16)),
        (32, heads(1, 1, 32)),
        (33, heads(2, 2, 40)),
        (71, heads(1, 1, 64)),
        (9, heads(3, 3, 5)),
        (33, heads(4, 2, 16)),
        (10, heads(6, 2, 40)),
    ];

    /// All of them, or those for which Miri takes seconds.
    fn shapes() -> impl Iterator<Item = (usize, Heads)> {
        SHAPES.into_iter().filter(|(tokens, _)| !cfg!(miri) || *tokens < 10)
    }

    const fn heads(queries: usize, shared: usize, width: usize) -> Heads {
        Heads { queries, shared, width }
    }

    /// Each token's branch: a trunk of a third, then three branches.
    fn branches(tokens: usize) -> Vec<i64> {
        (0..tokens).map(|i| if 3 * i < tokens { 0 } else { (i % 3) as i64 + 1 }).collect()
    }

    #[test]
    fn forward_is_the_definition() {
        for shape @ (tokens, heads) in shapes() {
            let (width, head_dim) = (heads.output(), heads.width);
            let qkv = values(tokens * heads.all(), 1);
            for branch in [None, Some(branches(tokens))] {
                let expected = attention(&qkv, branch.as_deref(), tokens, heads);
                let (mut y, mut log_sum) = (vec![f32::NAN; tokens * width], vec![f32::NAN; heads.queries * tokens]);
                let qkv = narrow(&qkv);
                for (index, log_sum) in log_sum.chunks_mut(tokens).enumerate() {
                    let head = Head { qkv: &qkv, branch: branch.as_deref(), index, heads, cache: None };
                    forward(head, &mut slices_of(&mut y, width, index * head_dim, head_dim), log_sum);
                }
                for (got, expected) in y.iter().zip(&expected.y).chain(log_sum.iter().zip(&expected.log_sum)) {
                    assert!((f64::from(*got) - expected).abs() < 2e-6, "{shape:?}: {got}, expected {expected}");
                }
            }
        }
    }

    #[test]
    fn what_a_cache_holds_is_attended_to_as_what_is_read_again() {
        for shape @ (tokens, heads) in shapes() {
            let (width, head_dim) = (heads.output(), heads.width);
            let qkv = values(tokens * heads.all(), 1);
            let expected = attention(&qkv, None, tokens, heads).y;
            let qkv = narrow(&qkv);
            let part = |place: usize| -> Vec<f32> {
                slices(&qkv, heads.all(), place * head_dim, head_dim).flatten().copied().collect()
            };
            for before in [0, tokens / 3, tokens - 1] {
                let new = tokens - before;
                let mut y = vec![f32::NAN; new * width];
                for index in 0..heads.queries {
                    let shared = heads.queries + index / heads.sharing();
                    let cache = [part(shared), part(shared + heads.shared)];
                    let [keys, values] = cache.each_ref().map(|cache| &cache[..]);
                    let rest = &qkv[before * heads.all()..];
                    let head = Head { qkv: rest, branch: None, index, heads, cache: Some([keys, values]) };
                    let mut log_sum = vec![0.0; new];
                    forward(head, &mut slices_of(&mut y, width, index * head_dim, head_dim), &mut log_sum);
                    // The last one by itself.
                    let (queries, at) = (part(index), (tokens - 1) * head_dim);
                    let mut one = vec![f32::NAN; head_dim];
                    let parts = |all: &'_ [f32]| [all[..at].to_vec(), all[at..].to_vec()];
                    let (keys, values) = (parts(keys), parts(values));
                    of_one_query(
                        &queries[at..],
                        [&keys[0], &keys[1]],
                        [&values[0], &values[1]],
                        &mut Vec::new(),
                        &mut one,
                    );
                    let same = &expected[(tokens - 1) * width + index * head_dim..][..head_dim];
                    for (found, expected) in one.iter().zip(same) {
                        assert!((f64::from(*found) - expected).abs() < 2e-6, "{shape:?}: {found}, {expected}");
                    }
                }
                for (found, expected) in y.iter().zip(&expected[before * width..]) {
                    assert!((f64::from(*found) - expected).abs() < 2e-6, "{shape:?} {before}: {found}, {expected}");
                }
            }
        }
    }

    #[test]
    fn backward_is_that_of_central_differences() {
        for shape @ (tokens, heads) in shapes() {
            let (qkv, dy) = (values(tokens * heads.all(), 2), values(tokens * heads.output(), 3));
            for branch in [None, Some(branches(tokens))] {
                let there = attention(&qkv, branch.as_deref(), tokens, heads);
                let [given_qkv, given_dy, y, log_sum] = [&qkv, &dy, &there.y, &there.log_sum].map(|v| narrow(v));
                let mut dqkv = vec![f32::NAN; qkv.len()];
                let sharing = heads.sharing();
                for (group, log_sum) in log_sum.chunks(sharing * tokens).enumerate() {
                    let index = group * sharing;
                    let head = Head { qkv: &given_qkv, branch: branch.as_deref(), index, heads, cache: None };
                    let mut by_place: Vec<Vec<&mut [f32]>> =
                        (0..heads.all() / heads.width).map(|_| Vec::new()).collect();
                    for row in dqkv.chunks_mut(heads.all()) {
                        for (place, slice) in by_place.iter_mut().zip(row.chunks_mut(heads.width)) {
                            place.push(slice);
                        }
                    }
                    let values = by_place.remove(heads.queries + heads.shared + group);
                    let keys = by_place.remove(heads.queries + group);
                    let queries = by_place.into_iter().skip(index).take(sharing).collect();
                    backward(head, [&given_dy, &y], log_sum, &mut Gradients { queries, keys, values });
                }
                let loss = |qkv: &[f64]| -> f64 {
                    attention(qkv, branch.as_deref(), tokens, heads).y.iter().zip(&dy).map(|(y, dy)| y * dy).sum()
                };
                // An odd step meets every part, head and place in turn.
                for index in (0..qkv.len()).step_by(1 + qkv.len() / 122 * 2) {
                    let mut moved = qkv.clone();
                    moved[index] += 1e-5;
                    let above = loss(&moved);
                    moved[index] -= 2e-5;
                    let slope = (above - loss(&moved)) / 2e-5;
                    let got = f64::from(dqkv[index]);
                    assert!((got - slope).abs() < 1e-5, "{shape:?} {index}: {got}, expected {slope}");
                }
                assert!(dqkv.iter().all(|value| value.is_finite()));
            }
        }
    }
}
