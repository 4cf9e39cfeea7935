//! What columns of 4 bits are multiplied with, side by side as vectors of outputs meet it.

use std::ops::Range;

use super::Strip;
use crate::product::STRIP;
use crate::product::affine::halves::floats;

/// A part of the inner dimension.
pub(super) struct Part {
    pub index: usize,
    pub range: Range<usize>,
}

/// Of 4 bits forward: what each of a strip's columns has in a unit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Factors {
    pub scales: [f32; STRIP],
    pub minima: [f32; STRIP],
}

impl Strip<'_> {
    /// Lays out the factors of 4 bits forward, for a range of the inner dimension.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn lay_factors(&self, range: Range<usize>, factors: &mut Vec<Factors>) {
        factors.clear();
        let (Some(affine), Some(_)) = (self.matrix.affine, self.sums) else { return };
        // As many as a panel has, which may go on beyond the last column's end.
        let units = range.len().next_multiple_of(64) / self.unit;
        factors.resize(units, Factors { scales: [0.0; STRIP], minima: [0.0; STRIP] });
        let blocks = range.start / affine.block..range.end.div_ceil(affine.block);
        for column in 0..self.columns.width {
            let start = (self.first + column) * affine.blocks();
            let here = start + blocks.start..start + blocks.end;
            let blocks = affine.scales[here.clone()].chunks(8).zip(affine.minima[here].chunks(8));
            for (units, (scales, minima)) in factors.chunks_mut(8 * affine.block / self.unit).zip(blocks) {
                let [scales, minima] = [floats(scales), floats(minima)];
                for ((units, scale), minimum) in units.chunks_mut(affine.block / self.unit).zip(scales).zip(minima) {
                    for unit in units {
                        (unit.scales[column], unit.minima[column]) = (scale, minimum);
                    }
                }
            }
        }
    }
}
