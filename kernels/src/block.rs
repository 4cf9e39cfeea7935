//! A whole block of a decoder over a cache of keys and values, with frozen matrices of integers: normalisation, queries, keys and
//! values, attention, projection, adapter, and the same with the MLP in attention's place.
//!
//! A token by itself takes as long as its weights take to be read, if nothing else does: all threads go through the block as one
//! team (`kernels/team.rs`), are woken once, and what is not shared out each computes for itself, which takes less than telling others.

use std::cell::RefCell;
use std::num::NonZeroUsize;

use super::adapter::Adapters;
use super::attention::Heads;
use super::product::{Few, Instructions, Rounded};

/// Of so many rows of a batch a token each goes through a block at once ([`of_a_token_each`]); of more, matrices are laid out.
pub const FEW_ROWS: usize = 16;

mod each;
mod several;

pub use each::of_a_token_each;
pub use several::of_tokens;

/// A normalisation.
#[derive(Debug, Clone, Copy)]
pub enum Norm<'a> {
    /// With scale and shift \[D\].
    Layer([&'a [f32]; 2]),
    /// By the root mean square, with scale \[D\].
    Rms(&'a [f32]),
}

/// What is between an MLP's matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mlp {
    /// GELU, in its tanh approximation.
    Gelu,
    /// silu(u) ⊙ v, u and v side by side.
    SwiGlu,
}

/// A frozen matrix.
#[derive(Debug, Clone, Copy)]
pub struct Linear<'a> {
    /// N columns of K integers.
    pub weights: Few<'a>,
    /// \[N\].
    pub bias: Option<&'a [f32]>,
}

/// A block's tensors.
#[derive(Debug, Clone, Copy)]
pub struct Block<'a> {
    /// What products of integers are computed with.
    pub instructions: Instructions,
    /// About how many threads there are: matrices are cut into as many parts.
    pub threads: NonZeroUsize,
    /// Heads of attention.
    pub heads: Heads,
    /// Of both normalisations.
    pub epsilon: f32,
    /// Before attention.
    pub norm_1: Norm<'a>,
    /// To queries, keys and values side by side.
    pub qkv: Linear<'a>,
    /// Of what attention gives.
    pub projection: Linear<'a>,
    /// After it, where there is one.
    pub adapter_1: Option<Adapters<'a>>,
    /// Before the MLP.
    pub norm_2: Norm<'a>,
    /// The MLP's first matrix.
    pub fc: Linear<'a>,
    /// What follows it.
    pub mlp: Mlp,
    /// The MLP's second matrix.
    pub mlp_projection: Linear<'a>,
    /// After it, where there is one.
    pub adapter_2: Option<Adapters<'a>>,
}

/// Where tokens stand.
#[derive(Debug, Clone, Copy)]
pub struct Places<'a> {
    batch: usize,
    tokens: usize,
    capacity: usize,
    last: &'a [i32],
    angles: Option<[&'a [f32]; 2]>,
}

/// A row that does not end where it can.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{tokens} tokens end at position {last}, expected {} to {}", *tokens as i64 - 1, *capacity as i64 - 1)]
pub struct Misplaced {
    tokens: usize,
    capacity: usize,
    last: i32,
}

impl<'a> Places<'a> {
    /// Rows of `tokens` tokens, T, one for each of `last`: its last position. The cache has room for `capacity` positions, C. Where queries and
    /// keys are turned, `angles` are cosines and sines, \[A, dh / 2\], with A = T or all tokens.
    ///
    /// # Errors
    /// A last position is not T − 1 or more and below C.
    pub fn new(
        tokens: usize,
        capacity: usize,
        last: &'a [i32],
        angles: Option<[&'a [f32]; 2]>,
    ) -> Result<Self, Misplaced> {
        let fits = |last: i32| usize::try_from(last).is_ok_and(|last| last + 1 >= tokens && last < capacity);
        match last.iter().find(|last| !fits(**last)) {
            Some(&last) => Err(Misplaced { tokens, capacity, last }),
            None => Ok(Self { batch: last.len(), tokens, capacity, last, angles }),
        }
    }

    /// Where a row begins.
    fn first(&self, row: usize) -> usize {
        self.last[row] as usize + 1 - self.tokens
    }

    /// A token's angles, \[dh / 2\] each.
    fn angles_of(&self, token: usize, half: usize) -> Option<[&'a [f32]; 2]> {
        let angles = self.angles?;
        let at = token % (angles[0].len() / half.max(1)).max(1) * half;
        Some(angles.map(|all| &all[at..at + half]))
    }
}

impl Block<'_> {
    /// D.
    fn width(&self) -> usize {
        self.projection.weights.shape()[0]
    }

    /// The values of a token's hidden layer.
    fn hidden(&self) -> usize {
        self.mlp_projection.weights.shape()[1]
    }

    /// Whether adapters are those of so many rows.
    fn has_adapters_for(&self, rows: usize) -> bool {
        self.adapter_1.iter().chain(&self.adapter_2).all(|adapters| adapters.are_for(rows))
    }

    /// How many of so many outputs make a part of a phase, a multiple of `unit`, and how many parts there are: one a thread.
    fn parts(&self, outputs: usize, unit: usize) -> (usize, usize) {
        let of_part = outputs.div_ceil(self.threads.get()).next_multiple_of(unit);
        (of_part, outputs.div_ceil(of_part))
    }

    fn norm(&self, norm: Norm<'_>, x: &[f32], y: &mut [f32]) {
        match norm {
            Norm::Layer(parts) => super::norm::layer_normalization(x, parts, self.epsilon, y),
            Norm::Rms(scale) => {
                let mut unwanted = [0.0; 64];
                let width = scale.len().max(1);
                for (x, y) in x.chunks(width * unwanted.len()).zip(y.chunks_mut(width * unwanted.len())) {
                    super::norm::rms_normalization(x, scale, self.epsilon, y, &mut unwanted);
                }
            }
        }
    }
}

thread_local! {
    /// Kept, since fresh memory costs more than what is done in it.
    static ROOM: RefCell<Room> = RefCell::default();
}

#[derive(Default)]
struct Room {
    rounded: Option<Rounded>,
    normal: Vec<f32>,
    scores: Vec<f32>,
    shared: Vec<f32>,
}

#[cfg(test)]
mod tests;
