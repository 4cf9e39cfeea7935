//! Rounding with AVX-512, to digits that are apart.

use std::arch::x86_64::*;

use super::{BASE, MOST, Rounded};
use crate::product::vectors::load_f32s;

/// Which rows have second digits in each group.
#[derive(Debug)]
pub(in crate::product) struct Finer {
    rows: Vec<u32>,
    /// Where each group's end, \[groups\].
    ends: Vec<usize>,
}

impl Finer {
    /// The rows of a group.
    pub fn rows(&self, group: usize) -> &[u32] {
        let start = group.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.rows[start..self.ends[group]]
    }
}

impl Rounded {
    /// Which of the second digits there are. (In 16 bits, none is one of its own.)
    pub(in crate::product) fn finer(&self) -> Finer {
        let groups = self.width / self.group;
        let scales = &self.digits[1].scales;
        let mut ends = vec![0; groups];
        for scales in scales.chunks(groups) {
            ends.iter_mut().zip(scales).for_each(|(number, &scale)| *number += usize::from(scale != 0.0));
        }
        let mut next = Vec::with_capacity(groups);
        let mut all = 0;
        for end in &mut ends {
            next.push(all);
            all += *end;
            *end = all;
        }
        let mut rows = vec![0; all];
        for (row, scales) in (0..).zip(scales.chunks(groups)) {
            for (next, _) in next.iter_mut().zip(scales).filter(|(_, scale)| **scale != 0.0) {
                rows[*next] = row;
                *next += 1;
            }
        }
        Finer { rows, ends }
    }
}

/// Where a row's digits belong.
#[derive(Debug)]
pub(super) struct DigitsOfRow<'a> {
    pub bytes: &'a mut [i8],
    pub scales: &'a mut [f32],
    pub corrections: &'a mut [i32],
}

impl DigitsOfRow<'_> {
    pub fn groups(&mut self, group: usize) -> impl Iterator<Item = DigitOfGroup<'_>> {
        let places = self.bytes.chunks_mut(group).zip(self.scales.iter_mut().zip(self.corrections.iter_mut()));
        places.map(|(bytes, (scale, correction))| DigitOfGroup { bytes, scale, correction })
    }
}

pub(super) struct DigitOfGroup<'a> {
    bytes: &'a mut [i8],
    scale: &'a mut f32,
    correction: &'a mut i32,
}

impl DigitOfGroup<'_> {
    /// From integers, 16 after a place.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    fn write(self, scale: f32, integers: impl Fn(usize) -> __m512i) {
        let mut sum = _mm512_setzero_si512();
        for (at, bytes) in (0..).step_by(16).zip(self.bytes.as_chunks_mut::<16>().0) {
            let integers = integers(at);
            sum = _mm512_add_epi32(sum, integers);
            // SAFETY: 16 bytes.
            unsafe { _mm_storeu_si128(bytes.as_mut_ptr().cast(), _mm512_cvtsepi32_epi8(integers)) };
        }
        (*self.scale, *self.correction) = (scale, _mm512_reduce_add_epi32(sum).wrapping_mul(-128));
    }
}

/// Fills in a group's first digits, and its second ones where its largest value is above `most`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) fn round(x: &[f32], factors: Option<&[f32]>, most: f32, [first, second]: [DigitOfGroup<'_>; 2]) {
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
    let inverse = _mm512_set1_ps(if largest > 0.0 { MOST / largest } else { 0.0 });
    let nearest = |at: usize| _mm512_cvtps_epi32(_mm512_mul_ps(value(at), inverse));
    first.write(largest / MOST, nearest);
    if largest > most {
        let rest = |at: usize| {
            let rest = _mm512_fmsub_ps(value(at), inverse, _mm512_cvtepi32_ps(nearest(at)));
            _mm512_cvtps_epi32(_mm512_mul_ps(rest, _mm512_set1_ps(BASE)))
        };
        second.write(largest / MOST / BASE, rest);
    } else {
        *second.scale = 0.0;
    }
}
