//! Rounding to 16 bits in plain Rust, of which compilers make vectors.

use super::{BASE, MOST};
use crate::product::portable::ROUND;

/// The longest group.
const LONGEST: usize = 64;

/// Fills in a group's words, both digits of them where its largest value is above `most`, and gives its scale.
pub(super) fn round(x: &[f32], factors: Option<&[f32]>, most: f32, words: &mut [i16]) -> f32 {
    let mut values = [0.0_f32; LONGEST];
    match factors {
        Some(factors) => {
            values.iter_mut().zip(x.iter().zip(factors)).for_each(|(value, (x, factor))| *value = x * factor)
        }
        None => values[..x.len()].copy_from_slice(x),
    }
    // As integers, the greatest is also what is not finite.
    let largest = f32::from_bits(values.iter().fold(0, |most, value| value.abs().to_bits().max(most)));
    let steps = if largest > most { MOST * BASE } else { MOST };
    let inverse = if largest > 0.0 { steps / largest } else { 0.0 };
    for (words, values) in words.as_chunks_mut::<32>().0.iter_mut().zip(values.as_chunks::<32>().0) {
        for (word, value) in words.iter_mut().zip(values) {
            *word = (value * inverse + ROUND).to_bits() as i16;
        }
    }
    largest / steps
}
