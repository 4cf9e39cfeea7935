//! Matrices of 4-bit integers in blocks, each with a scale and a minimum.

use half::f16;

use super::{GROUP, Instructions, Set};

#[cfg(target_arch = "x86_64")]
pub(super) mod halves;

/// N columns of K integers of 4 bits: a value is q s + m.
#[derive(Debug, Clone, Copy)]
pub struct Affine<'a> {
    /// Pairs \[N, K / 2\], the first one lower.
    pub(super) integers: &'a [u8],
    /// s \[N, blocks\].
    pub(super) scales: &'a [f16],
    /// m \[N, blocks\].
    pub(super) minima: &'a [f16],
    pub(super) columns: usize,
    pub(super) inner: usize,
    /// How many integers have one of each: 16, 32, 64 or 128.
    pub(super) block: usize,
}

impl<'a> Affine<'a> {
    /// Of pairs \[N, K / 2\], scales and minima \[N, blocks\].
    pub fn new(integers: &'a [u8], [scales, minima]: [&'a [f16]; 2], [columns, inner]: [usize; 2]) -> Option<Self> {
        let number = scales.len().checked_div(columns)?;
        let block = inner.checked_div(number)?;
        let fits = number * columns == scales.len()
            && minima.len() == scales.len()
            && block * number == inner
            && matches!(block, 16 | 32 | 64 | 128)
            && integers.len() == columns * inner / 2;
        fits.then_some(Self { integers, scales, minima, columns, inner, block })
    }

    /// How many values one sum of integers adds up, which share a scale of the row's and one of the column's.
    pub(super) fn unit(&self) -> usize {
        self.block.min(GROUP)
    }

    /// How many blocks a column has.
    pub(super) fn blocks(&self) -> usize {
        self.inner / self.block
    }

    /// Lays out the scales or minima of a column's first blocks, or those from some on, once for each unit; zeros after them.
    pub(super) fn lay_units(&self, values: &[f16], units: &mut [f32]) {
        let of_block = self.block / self.unit();
        for (values, units) in values.chunks(8).zip(units.chunks_mut(8 * of_block)) {
            let values = floats(values);
            match of_block {
                1 => units.copy_from_slice(&values[..units.len()]),
                _ => units.chunks_mut(of_block).zip(values).for_each(|(units, value)| units.fill(value)),
            }
        }
    }

    /// The scale of each column where its values are bytes: 1/127 of the largest that its blocks can hold.
    pub fn column_scales(&self, instructions: Instructions) -> Vec<f32> {
        let number = self.blocks().max(1);
        let columns = self.scales.chunks(number).zip(self.minima.chunks(number));
        let largest = |(scales, minima)| match instructions.0 {
            Set::Portable => largest(scales, minima),
            // SAFETY: the processor has the instructions, of which both kinds have these.
            #[cfg(target_arch = "x86_64")]
            Set::Vnni | Set::Avx2 => unsafe { halves::largest(scales, minima) },
        };
        columns.map(|column| largest(column) / 127.0).collect()
    }
}

/// The largest of |m| and |15 s + m|.
fn largest(scales: &[f16], minima: &[f16]) -> f32 {
    let mut most = [0.0_f32; 8];
    for (scales, minima) in scales.chunks(8).zip(minima.chunks(8)) {
        for (most, (scale, minimum)) in most.iter_mut().zip(floats(scales).into_iter().zip(floats(minima))) {
            *most = most.max(minimum.abs()).max((15.0 * scale + minimum).abs());
        }
    }
    most.into_iter().fold(0.0, f32::max)
}

/// Up to 8 numbers of 16 bits, and zeros.
#[inline]
pub(super) fn floats(values: &[f16]) -> [f32; 8] {
    let mut all = [f16::ZERO; 8];
    match values.first_chunk() {
        Some(values) => all = *values,
        None => all[..values.len()].copy_from_slice(values),
    }
    all.map(float)
}

/// A number of 16 bits in 32, without a branch, so that compilers make vectors of it. (`half` asks first what the processor has.)
#[inline]
pub(super) fn float(value: f16) -> f32 {
    /// Between the biases of the exponents, 127 and 15.
    const BIAS: u32 = (127 - 15) << 23;
    const EXPONENT: u32 = 0x7c00 << 13;
    const LEAST: f32 = f32::from_bits(BIAS + (1 << 23));
    let bits = u32::from(value.to_bits());
    let magnitude = (bits & 0x7fff) << 13;
    let exponent = magnitude & EXPONENT;
    let normal = magnitude + BIAS + if exponent == EXPONENT { BIAS } else { 0 };
    // Below the least power of two that there is there is no leading one.
    let small = (f32::from_bits(magnitude + BIAS + (1 << 23)) - LEAST).to_bits();
    f32::from_bits(if exponent == 0 { small } else { normal } | (bits & 0x8000) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_numbers_of_16_bits_are_those_of_the_library() {
        for bits in 0..=u16::MAX {
            let value = f16::from_bits(bits);
            let (found, expected) = (float(value), value.to_f32());
            assert!(found.to_bits() == expected.to_bits() || (found.is_nan() && expected.is_nan()), "{value}");
        }
    }
}
