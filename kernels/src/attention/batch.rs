//! All heads of a batch, on threads: a head, or a group of heads that share keys and values, is a share.

use std::collections::TryReserveError;
use std::sync::Mutex;

use super::{Gradients, Head, Tangents};
use crate::shapes::Attended;
use crate::{Calls, Failure, each_share};

/// Cuts \[B, T, places · dh\] into slices: for each row and place, one a token.
///
/// # Errors
/// There is no memory for them.
pub(crate) fn by_place(
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

/// Values of a batch, as many for each row.
#[derive(Clone, Copy)]
struct Rows<'a> {
    values: &'a [f32],
    each: usize,
}

impl<'a> Rows<'a> {
    fn of(self, row: usize) -> &'a [f32] {
        &self.values[row * self.each..][..self.each]
    }
}

impl Attended {
    fn all_of_row(&self) -> usize {
        self.tokens * self.heads.all()
    }

    fn outputs_of_row(&self) -> usize {
        self.tokens * self.heads.output()
    }

    fn queries(&self) -> usize {
        self.batch * self.heads.queries
    }

    /// Whether there are as many values as the shape says: of queries, keys and values, of outputs, of one number a query.
    fn fits(&self, all: &[&[f32]], outputs: &[&[f32]], statistics: &[&[f32]]) -> bool {
        let lengths = |all: &[&[f32]], length: usize| all.iter().all(|values| values.len() == length);
        self.heads.queries == self.heads.shared * self.heads.sharing()
            && lengths(all, self.batch * self.all_of_row())
            && lengths(outputs, self.batch * self.outputs_of_row())
            && lengths(statistics, self.queries() * self.tokens)
    }

    fn all_of<'a>(&self, values: &'a [f32]) -> Rows<'a> {
        Rows { values, each: self.all_of_row() }
    }

    fn outputs_of<'a>(&self, values: &'a [f32]) -> Rows<'a> {
        Rows { values, each: self.outputs_of_row() }
    }

    /// The head of that number among all heads of all rows.
    fn head<'a>(&self, number: usize, qkv: Rows<'a>, branch: Option<&'a [i64]>) -> Head<'a> {
        let row = number / self.heads.queries;
        Head {
            qkv: qkv.of(row),
            branch: branch.map(|branch| &branch[row * self.tokens..][..self.tokens]),
            index: number % self.heads.queries,
            heads: self.heads,
            cache: None,
        }
    }

    /// The parts of each group's gradients in those of all.
    fn groups<'a>(&self, dqkv: &'a mut [f32]) -> Result<Vec<Gradients<'a>>, TryReserveError> {
        let heads = self.heads;
        let all = heads.queries + 2 * heads.shared;
        // Of each row the queries' heads, then the keys', then the values'.
        let mut places = by_place(dqkv, [self.batch, self.tokens, all], heads.width)?.into_iter();
        let mut groups = Vec::new();
        groups.try_reserve_exact(self.batch * heads.shared)?;
        for _ in 0..self.batch {
            let mut queries = places.by_ref().take(heads.queries).collect::<Vec<_>>().into_iter();
            let keys: Vec<_> = places.by_ref().take(heads.shared).collect();
            for (keys, values) in keys.into_iter().zip(places.by_ref().take(heads.shared)) {
                groups.push(Gradients { queries: queries.by_ref().take(heads.sharing()).collect(), keys, values });
            }
        }
        Ok(groups)
    }
}

fn shares<T>(shares: impl ExactSizeIterator<Item = T>) -> Result<Vec<Mutex<T>>, TryReserveError> {
    let mut all = Vec::new();
    all.try_reserve_exact(shares.len())?;
    all.extend(shares.map(Mutex::new));
    Ok(all)
}

/// The outputs \[B, T, H dh\] of attention from queries, keys and values side by side \[B, T, (H + 2 G) dh\], and the logarithm of
/// each query's sum of exponentials, \[B, H, T\]. `branch` \[B, T\], where there are branches: see [`Head::branch`].
///
/// # Errors
/// A length does not fit; there is no memory; those of `threads`.
pub fn forward<E>(
    shape: Attended,
    qkv: &[f32],
    branch: Option<&[i64]>,
    [y, sums]: [&mut [f32]; 2],
    threads: impl FnOnce(usize, Calls<'_>) -> Result<(), E>,
) -> Result<(), Failure<E>> {
    let tokens = shape.batch * shape.tokens;
    if !shape.fits(&[qkv], &[y], &[sums]) || branch.is_some_and(|branch| branch.len() != tokens) {
        return Err(Failure::Misfit);
    }
    if shape.is_empty() {
        return Ok(());
    }
    let y = by_place(y, [shape.batch, shape.tokens, shape.heads.queries], shape.heads.width)?;
    let parts = shares(y.into_iter().zip(sums.chunks_mut(shape.tokens)))?;
    let qkv = shape.all_of(qkv);
    each_share(&parts, threads, |number, (y, sums)| super::forward(shape.head(number, qkv, branch), y, sums))
        .map_err(Failure::Threads)
}

/// The gradient by queries, keys and values, from that by the outputs, the outputs and the logarithms.
///
/// # Errors
/// As [`forward`].
pub fn backward<E>(
    shape: Attended,
    qkv: &[f32],
    [dy, y]: [&[f32]; 2],
    sums: &[f32],
    dqkv: &mut [f32],
    threads: impl FnOnce(usize, Calls<'_>) -> Result<(), E>,
) -> Result<(), Failure<E>> {
    if !shape.fits(&[qkv, dqkv], &[dy, y], &[sums]) {
        return Err(Failure::Misfit);
    }
    if shape.is_empty() {
        return Ok(());
    }
    let parts = shares(shape.groups(dqkv)?.into_iter())?;
    let (qkv, sharing) = (shape.all_of(qkv), shape.heads.sharing());
    let outputs = [dy, y].map(|values| shape.outputs_of(values));
    each_share(&parts, threads, |group, gradients| {
        let head = shape.head(group * sharing, qkv, None);
        let outputs = outputs.map(|values| values.of(group / shape.heads.shared));
        let sums = &sums[group * sharing * shape.tokens..][..sharing * shape.tokens];
        super::backward(head, outputs, sums, gradients);
    })
    .map_err(Failure::Threads)
}

/// The tangent of the outputs along that of queries, keys and values, and Σ P ṡ of each query, \[B, H, T\].
///
/// # Errors
/// As [`forward`].
pub fn tangent<E>(
    shape: Attended,
    [qkv, qkv_dot]: [&[f32]; 2],
    sums: &[f32],
    [y_dot, means]: [&mut [f32]; 2],
    threads: impl FnOnce(usize, Calls<'_>) -> Result<(), E>,
) -> Result<(), Failure<E>> {
    if !shape.fits(&[qkv, qkv_dot], &[y_dot], &[sums, means]) {
        return Err(Failure::Misfit);
    }
    if shape.is_empty() {
        return Ok(());
    }
    let y_dot = by_place(y_dot, [shape.batch, shape.tokens, shape.heads.queries], shape.heads.width)?;
    let parts = shares(y_dot.into_iter().zip(means.chunks_mut(shape.tokens)))?;
    let [qkv, qkv_dot] = [qkv, qkv_dot].map(|values| shape.all_of(values));
    each_share(&parts, threads, |number, (y_dot, means)| {
        let sums = &sums[number * shape.tokens..][..shape.tokens];
        let dot = qkv_dot.of(number / shape.heads.queries);
        super::tangent(shape.head(number, qkv, None), dot, sums, y_dot, means);
    })
    .map_err(Failure::Threads)
}

/// The tangent of the gradient by queries, keys and values; each pair is a value and its tangent, `statistics` the logarithms and Σ P ṡ.
///
/// # Errors
/// As [`forward`].
pub fn tangent_backward<E>(
    shape: Attended,
    [qkv, qkv_dot]: [&[f32]; 2],
    dy: [&[f32]; 2],
    y: [&[f32]; 2],
    statistics: [&[f32]; 2],
    dqkv_dot: &mut [f32],
    threads: impl FnOnce(usize, Calls<'_>) -> Result<(), E>,
) -> Result<(), Failure<E>> {
    if !shape.fits(&[qkv, qkv_dot, dqkv_dot], &[dy, y].concat(), &statistics) {
        return Err(Failure::Misfit);
    }
    if shape.is_empty() {
        return Ok(());
    }
    let parts = shares(shape.groups(dqkv_dot)?.into_iter())?;
    let [qkv, qkv_dot] = [qkv, qkv_dot].map(|values| shape.all_of(values));
    let [dy, y] = [dy, y].map(|pair| pair.map(|values| shape.outputs_of(values)));
    let (shared, sharing) = (shape.heads.shared, shape.heads.sharing());
    each_share(&parts, threads, |group, gradients| {
        let row = group / shared;
        let of_group = group * sharing * shape.tokens..(group + 1) * sharing * shape.tokens;
        let given = Tangents {
            qkv: qkv_dot.of(row),
            dy: dy.map(|values| values.of(row)),
            y: y.map(|values| values.of(row)),
            statistics: statistics.map(|values| &values[of_group.clone()]),
        };
        super::tangent_backward(shape.head(group * sharing, qkv, None), given, gradients);
    })
    .map_err(Failure::Threads)
}
