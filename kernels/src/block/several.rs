//! Several tokens, for all of which matrices are laid out.

use std::sync::Mutex;

use super::{Block, Linear, Mlp, Places, ROOM};
use crate::adapter::Adapters;
use crate::attention::batch::by_place;
use crate::attention::{self, Head, Heads};
use crate::mlp::{gelu, swi_glu};
use crate::product::{self, FEW, Rounded};
use crate::rotary::rotate_in_place;
use crate::{Calls, Failure, each_share, zeros};

/// Any number of tokens: x \[B T, D\] to y, of all of them or of `rows` alone, \[N, D\]; their keys and values \[B, G, C, dh\] put into the
/// cache.
///
/// # Errors
/// As [`of_a_token_each`](super::of_a_token_each).
pub fn of_tokens<E>(
    block: &Block<'_>,
    places: Places<'_>,
    x: &[f32],
    rows: Option<&[usize]>,
    cache: [&mut [f32]; 2],
    y: &mut [f32],
    threads: impl Fn(usize, Calls<'_>) -> Result<(), E>,
) -> Result<(), Failure<E>> {
    if !block.has_adapters_for(places.batch) {
        return Err(Failure::Misfit);
    }
    let tokens = Tokens { block, threads };
    let width = block.width();
    let mut normal = zeros(x.len())?;
    tokens.shares([(x, width)], &mut normal, width, |[x], y| block.norm(block.norm_1, x, y))?;
    let mut qkv = tokens.product(block.qkv, &normal)?;
    tokens.turn(places, &mut qkv)?;
    let mut attended = zeros(places.batch * places.tokens * block.heads.output())?;
    tokens.attend(places, &qkv, cache, &mut attended)?;
    let (mut some, mut of_rows) = (Vec::new(), Vec::new());
    // Of each token that is left the row of the batch.
    let batch: Vec<usize> = match rows {
        Some(rows) => rows.iter().map(|row| row / places.tokens).collect(),
        None => (0..places.batch).flat_map(|row| std::iter::repeat_n(row, places.tokens)).collect(),
    };
    let (x, attended) = match rows {
        Some(rows) => {
            some.try_reserve(rows.len() * width)?;
            of_rows.try_reserve(rows.len() * block.heads.output())?;
            for &row in rows {
                some.extend_from_slice(&x[row * width..][..width]);
                of_rows.extend_from_slice(&attended[row * block.heads.output()..][..block.heads.output()]);
            }
            (&some[..], &of_rows[..])
        }
        None => (x, &attended[..]),
    };
    let projected = tokens.product(block.projection, attended)?;
    let mut middle = zeros(x.len())?;
    tokens.adapters(block.adapter_1, &batch, &projected, x, &mut middle)?;
    let mut normal = zeros(x.len())?;
    tokens.shares([(&middle, width)], &mut normal, width, |[x], y| block.norm(block.norm_2, x, y))?;
    let fc = tokens.product(block.fc, &normal)?;
    let hidden = block.hidden();
    let mut activated = zeros(x.len() / width.max(1) * hidden)?;
    let of_fc = block.fc.weights.shape()[0];
    tokens.shares([(&fc, of_fc)], &mut activated, hidden, |[x], y| match block.mlp {
        Mlp::Gelu => {
            y.copy_from_slice(x);
            gelu(y);
        }
        Mlp::SwiGlu => swi_glu(x, hidden, y),
    })?;
    let projected = tokens.product(block.mlp_projection, &activated)?;
    tokens.adapters(block.adapter_2, &batch, &projected, &middle, y)
}

/// What the parts of a block need where there are many tokens.
struct Tokens<'a, F> {
    block: &'a Block<'a>,
    threads: F,
}

impl<E, F: Fn(usize, Calls<'_>) -> Result<(), E>> Tokens<'_, F> {
    /// Computes rows of y, of so many values, from the same rows of the inputs.
    fn shares<const N: usize>(
        &self,
        inputs: [(&[f32], usize); N],
        y: &mut [f32],
        of_y: usize,
        compute: impl Fn([&[f32]; N], &mut [f32]) + Send + Sync,
    ) -> Result<(), Failure<E>> {
        const ROWS: usize = 32;
        let of_y = of_y.max(1);
        self.each(y.chunks_mut(ROWS * of_y).collect(), |index, y| {
            let rows = index * ROWS..index * ROWS + y.len() / of_y;
            compute(inputs.map(|(x, of_x)| &x[rows.start * of_x..rows.end * of_x]), y);
        })
    }

    fn each<T: Send>(&self, parts: Vec<T>, compute: impl Fn(usize, &mut T) + Send + Sync) -> Result<(), Failure<E>> {
        let parts: Vec<Mutex<T>> = parts.into_iter().map(Mutex::new).collect();
        each_share(&parts, &self.threads, compute).map_err(Failure::Threads)
    }

    fn product(&self, linear: Linear<'_>, x: &[f32]) -> Result<Vec<f32>, Failure<E>> {
        let [columns, inner] = linear.weights.shape();
        let rows = x.len() / inner.max(1);
        let mut y = zeros(rows * columns)?;
        let mut kept = ROOM.with_borrow_mut(|room| room.rounded.take());
        let rounded = Rounded::kept(&mut kept, self.block.instructions);
        product::multiply_rows(linear.weights, x, rounded, linear.bias, &mut y, &self.threads)?;
        ROOM.with_borrow_mut(|room| room.rounded = kept);
        Ok(y)
    }

    /// Turns queries and keys, in place.
    fn turn(&self, places: Places<'_>, qkv: &mut [f32]) -> Result<(), Failure<E>> {
        if places.angles.is_none() {
            return Ok(());
        }
        let heads = self.block.heads;
        let (turned, half) = ((heads.queries + heads.shared) * heads.width, heads.width / 2);
        self.each(qkv.chunks_mut(heads.all()).collect(), |token, row| {
            if let Some([cosines, sines]) = places.angles_of(token, half) {
                rotate_in_place(&mut row[..turned], cosines, sines);
            }
        })
    }

    /// Puts keys and values into the cache, and attends to it.
    fn attend(
        &self,
        places: Places<'_>,
        qkv: &[f32],
        [keys, values]: [&mut [f32]; 2],
        y: &mut [f32],
    ) -> Result<(), Failure<E>> {
        let heads @ Heads { queries, shared, width } = self.block.heads;
        let Places { tokens, capacity, .. } = places;
        let of_head = capacity * width;
        for (token, qkv) in qkv.chunks_exact(heads.all()).enumerate() {
            let (row, at) = (token / tokens, places.first(token / tokens) + token % tokens);
            for group in 0..shared {
                let place = (row * shared + group) * of_head + at * width;
                let part = |place: usize| &qkv[place * width..][..width];
                keys[place..place + width].copy_from_slice(part(queries + group));
                values[place..place + width].copy_from_slice(part(queries + shared + group));
            }
        }
        let (keys, values) = (&*keys, &*values);
        // A head of a row is a part, its outputs a slice a token.
        let parts = by_place(y, [places.batch, tokens, queries], width)?;
        self.each(parts, |index, y| {
            let (row, head) = (index / queries, index % queries);
            let start = (row * shared + head / heads.sharing()) * of_head;
            let before = places.first(row);
            let seen = |tokens: usize| [keys, values].map(|cache| &cache[start..][..tokens * width]);
            let qkv = &qkv[row * tokens * heads.all()..][..tokens * heads.all()];
            if tokens > FEW {
                let head = Head { qkv, branch: None, index: head, heads, cache: Some(seen(before + tokens)) };
                attention::forward(head, y, &mut vec![0.0; tokens]);
                return;
            }
            let mut scores = Vec::new();
            for ((token, qkv), y) in qkv.chunks_exact(heads.all()).enumerate().zip(y) {
                let [keys, values] = seen(before + token + 1);
                let query = &qkv[head * width..][..width];
                attention::of_one_query(query, [keys, &[]], [values, &[]], &mut scores, y);
            }
        })
    }

    /// y = residual + x + gelu(x D + d) U + u with the adapter of each token's row of the batch, or without adapters the sum of both.
    fn adapters(
        &self,
        adapters: Option<Adapters<'_>>,
        batch: &[usize],
        x: &[f32],
        residual: &[f32],
        y: &mut [f32],
    ) -> Result<(), Failure<E>> {
        let Some(adapters) = adapters else {
            y.iter_mut().zip(x.iter().zip(residual)).for_each(|(y, (x, residual))| *y = x + residual);
            return Ok(());
        };
        adapters.add(batch, [x, residual], y, &self.threads)
    }
}
