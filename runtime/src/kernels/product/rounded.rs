//! The other side of a product, rounded.

use std::arch::x86_64::*;
use std::collections::TryReserveError;

use super::vectors::load_f32s;
use super::{Direction, GROUP, Instructions};

/// Rows rounded to 8 bits, as some instructions want them.
#[derive(Debug)]
pub struct Rounded {
    pub(super) instructions: Instructions,
    /// \[M, width\], zeros after a row's values: for VNNI.
    pub(super) bytes: Vec<i8>,
    /// The same for AVX2.
    pub(super) words: Vec<i16>,
    pub(super) width: usize,
    /// How many of a row's integers share a scale.
    pub(super) group: usize,
    /// What they are multiplied with, \[M, width / group\].
    pub(super) scales: Vec<f32>,
    /// −128 times the sum of each group, \[M, width / group\]: for VNNI.
    pub(super) corrections: Vec<i32>,
}

impl Rounded {
    /// No rows yet.
    ///
    /// # Panics
    /// The processor lacks the instructions.
    pub fn new(instructions: Instructions) -> Self {
        assert!(instructions.are_supported());
        let (bytes, words, scales, corrections) = Default::default();
        Self { instructions, bytes, words, width: 0, group: GROUP, scales, corrections }
    }

    /// Has memory for what [`Rounded::rows`] gives room for.
    ///
    /// # Errors
    /// There is none.
    pub fn try_reserve(&mut self, rows: usize, length: usize) -> Result<(), TryReserveError> {
        fn to<T>(room: &mut Vec<T>, length: usize) -> Result<(), TryReserveError> {
            room.try_reserve(length.saturating_sub(room.len()))
        }
        let width = length.checked_next_multiple_of(64).unwrap_or(usize::MAX).max(64);
        // At most: groups of gradients are longer.
        let (all, groups) = (rows.saturating_mul(width), rows.saturating_mul(width / GROUP));
        to(&mut self.scales, groups)?;
        match self.instructions {
            Instructions::Vnni => {
                to(&mut self.corrections, groups)?;
                to(&mut self.bytes, all)
            }
            Instructions::Avx2 => to(&mut self.words, all),
        }
    }

    /// How many rows there are.
    pub(super) fn number(&self) -> usize {
        (self.scales.len() * self.group).checked_div(self.width).unwrap_or(0)
    }

    /// Room for `rows` rows of `length` values for a product in a direction, to be filled by [`RowToRound::round`], each row by itself.
    pub fn rows(&mut self, rows: usize, length: usize, direction: Direction) -> Vec<RowToRound<'_>> {
        (self.width, self.group) = (length.next_multiple_of(64).max(64), direction.group());
        let (group, groups) = (self.group, self.width / self.group);
        self.scales.resize(rows * groups, 0.0);
        let scales = self.scales.chunks_mut(groups);
        match self.instructions {
            Instructions::Vnni => {
                self.bytes.resize(rows * self.width, 0);
                self.corrections.resize(rows * groups, 0);
                let places = self.bytes.chunks_mut(self.width).zip(self.corrections.chunks_mut(groups));
                let places = places.map(|(bytes, corrections)| Place::Vnni { bytes, corrections });
                places.zip(scales).map(|(place, scales)| RowToRound { place, scales, group }).collect()
            }
            Instructions::Avx2 => {
                self.words.resize(rows * self.width, 0);
                let places = self.words.chunks_mut(self.width).map(|words| Place::Avx2 { words });
                places.zip(scales).map(|(place, scales)| RowToRound { place, scales, group }).collect()
            }
        }
    }

    /// A row's integers, of `all` as the instructions want them, and its groups' scales.
    pub(super) fn row<'a, T>(&'a self, row: usize, all: &'a [T]) -> (&'a [T], &'a [f32]) {
        let groups = self.width / self.group;
        (&all[row * self.width..][..self.width], &self.scales[row * groups..][..groups])
    }

    /// A value, as an integer.
    #[cfg(test)]
    pub(super) fn value(&self, row: usize, at: usize) -> i16 {
        match self.instructions {
            Instructions::Vnni => self.bytes[row * self.width + at].into(),
            Instructions::Avx2 => self.words[row * self.width + at],
        }
    }
}

/// Where one row's integers belong. There is one only where the processor has the instructions.
#[derive(Debug)]
pub struct RowToRound<'a> {
    place: Place<'a>,
    scales: &'a mut [f32],
    group: usize,
}

#[derive(Debug)]
enum Place<'a> {
    Vnni { bytes: &'a mut [i8], corrections: &'a mut [i32] },
    Avx2 { words: &'a mut [i16] },
}

impl RowToRound<'_> {
    /// Rounds a row: x ⊙ `factors` where there are some, each group to the nearest multiples of 1/127 of its largest value. A group
    /// with a value that is not finite gives a scale that is none.
    pub fn round(&mut self, x: &[f32], factors: Option<&[f32]>) {
        let (group, scales) = (self.group, self.scales.iter_mut());
        let parts = (0..).step_by(group).map(|at| (part(x, at, group), factors.map(|all| part(all, at, group))));
        // SAFETY: the processor has the instructions.
        unsafe {
            match &mut self.place {
                Place::Vnni { bytes, corrections } => {
                    let groups = bytes.chunks_mut(group).zip(corrections.iter_mut()).zip(scales);
                    for ((x, factors), ((bytes, correction), scale)) in parts.zip(groups) {
                        (*scale, *correction) = round_vnni(x, factors, bytes);
                    }
                }
                Place::Avx2 { words } => {
                    for ((x, factors), (words, scale)) in parts.zip(words.chunks_mut(group).zip(scales)) {
                        *scale = round_avx2(x, factors, words);
                    }
                }
            }
        }
    }
}

/// Up to `length` values from a place on: none beyond the last.
#[inline]
fn part(values: &[f32], start: usize, length: usize) -> &[f32] {
    let values = values.get(start..).unwrap_or_default();
    values.get(..length).unwrap_or(values)
}

/// Fills in a group's bytes, and gives its scale and correction.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn round_vnni(x: &[f32], factors: Option<&[f32]>, bytes: &mut [i8]) -> (f32, i32) {
    let value = |at: usize| {
        let value = load_f32s(x.get(at..).unwrap_or_default());
        match factors {
            Some(factors) => _mm512_mul_ps(value, load_f32s(factors.get(at..).unwrap_or_default())),
            None => value,
        }
    };
    // As integers, the greatest is also what is not finite.
    let mut largest = _mm512_setzero_si512();
    for at in (0..x.len()).step_by(16) {
        largest = _mm512_max_epu32(largest, _mm512_castps_si512(_mm512_abs_ps(value(at))));
    }
    let largest = f32::from_bits(_mm512_reduce_max_epu32(largest));
    let inverse = _mm512_set1_ps(if largest > 0.0 { 127.0 / largest } else { 0.0 });
    let mut sum = _mm512_setzero_si512();
    for (at, bytes) in (0..).step_by(16).zip(bytes.as_chunks_mut::<16>().0) {
        let integers = _mm512_cvtps_epi32(_mm512_mul_ps(value(at), inverse));
        sum = _mm512_add_epi32(sum, integers);
        // SAFETY: 16 bytes.
        unsafe { _mm_storeu_si128(bytes.as_mut_ptr().cast(), _mm512_cvtsepi32_epi8(integers)) };
    }
    (largest / 127.0, _mm512_reduce_add_epi32(sum).wrapping_mul(-128))
}

/// Fills in a group's words, and gives its scale.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn round_avx2(x: &[f32], factors: Option<&[f32]>, words: &mut [i16]) -> f32 {
    let load = |values: &[f32], at: usize| {
        let values = values.get(at..).unwrap_or_default();
        match values.first_chunk::<8>() {
            // SAFETY: 8 numbers.
            Some(values) => unsafe { _mm256_loadu_ps(values.as_ptr()) },
            None => {
                let mut all = [0.0; 8];
                all[..values.len()].copy_from_slice(values);
                // SAFETY: 8 numbers.
                unsafe { _mm256_loadu_ps(all.as_ptr()) }
            }
        }
    };
    let value = |at: usize| match factors {
        Some(factors) => _mm256_mul_ps(load(x, at), load(factors, at)),
        None => load(x, at),
    };
    let magnitude = _mm256_set1_epi32(i32::MAX);
    // As integers, the greatest is also what is not finite.
    let mut largest = _mm256_setzero_si256();
    for at in (0..x.len()).step_by(8) {
        largest = _mm256_max_epu32(largest, _mm256_and_si256(_mm256_castps_si256(value(at)), magnitude));
    }
    let mut all = [0_u32; 8];
    // SAFETY: 8 numbers.
    unsafe { _mm256_storeu_si256(all.as_mut_ptr().cast(), largest) };
    let largest = f32::from_bits(all.into_iter().fold(0, u32::max));
    let inverse = _mm256_set1_ps(if largest > 0.0 { 127.0 / largest } else { 0.0 });
    for (at, words) in (0..).step_by(16).zip(words.as_chunks_mut::<16>().0) {
        let [low, high] = [at, at + 8].map(|at| _mm256_cvtps_epi32(_mm256_mul_ps(value(at), inverse)));
        // Lanes of 4 and 4, in their order again.
        let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(low, high));
        // SAFETY: 16 numbers of 2 bytes.
        unsafe { _mm256_storeu_si256(words.as_mut_ptr().cast(), packed) };
    }
    largest / 127.0
}
