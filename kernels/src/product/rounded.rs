//! The other side of a product, rounded.

use std::arch::x86_64::*;
use std::borrow::Cow;
use std::collections::TryReserveError;
use std::sync::Mutex;

use marionette_models::bundle::{BASE, RowRounding};

use super::vectors::load_f32s;
use super::{Direction, GROUP, Instructions, Set};
use crate::{Calls, each_share};

/// The largest digit.
const MOST: f32 = 127.0;

/// Rows rounded to 8 bits, here and there to 15, as some instructions want them.
#[derive(Debug)]
pub struct Rounded {
    pub(super) instructions: Instructions,
    rows: usize,
    pub(super) width: usize,
    /// How many of a row's integers share a scale.
    pub(super) group: usize,
    /// For VNNI: the first digit, and the second, which only groups of rows forward have.
    pub(super) digits: [Digits; 2],
    /// For AVX2, in 16 bits: both.
    pub(super) words: Vec<i16>,
    /// What those are multiplied with, \[M, width / group\].
    pub(super) scales: Vec<f32>,
}

/// A digit of each value.
#[derive(Debug, Default)]
pub(super) struct Digits {
    /// \[M, width\], zeros after a row's values.
    pub bytes: Vec<i8>,
    /// What they are multiplied with, \[M, width / group\]: 0 where there are none.
    pub scales: Vec<f32>,
    /// −128 times the sum of each group, \[M, width / group\].
    pub corrections: Vec<i32>,
}

/// A digit of each value of a row, \[width\], and its groups' scales, \[width / group\]. Where a scale is 0 the digits are anything.
#[derive(Debug)]
pub(super) struct Line<'a> {
    pub bytes: Cow<'a, [i8]>,
    pub scales: Cow<'a, [f32]>,
}

impl Line<'_> {
    /// Whether one of so many values from a place on has such a digit.
    pub fn has(&self, at: usize, length: usize) -> bool {
        let groups = at / GROUP..self.scales.len().min((at + length).div_ceil(GROUP));
        self.scales[groups].iter().any(|&scale| scale != 0.0)
    }
}

/// Which rows have second digits in each group.
#[derive(Debug)]
pub(super) struct Finer {
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
    /// No rows yet.
    pub fn new(instructions: Instructions) -> Self {
        let (digits, words, scales) = Default::default();
        Self { instructions, rows: 0, width: 0, group: GROUP, digits, words, scales }
    }

    /// Those that are kept in a room, or new ones where they are for other instructions.
    pub fn kept(room: &mut Option<Self>, instructions: Instructions) -> &mut Self {
        if room.as_ref().is_some_and(|kept| kept.instructions != instructions) {
            *room = None;
        }
        room.get_or_insert_with(|| Self::new(instructions))
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
        match self.instructions.0 {
            Set::Vnni => self.digits.iter_mut().try_for_each(|digits| {
                to(&mut digits.scales, groups)?;
                to(&mut digits.corrections, groups)?;
                to(&mut digits.bytes, all)
            }),
            Set::Avx2 => {
                to(&mut self.scales, groups)?;
                to(&mut self.words, all)
            }
        }
    }

    /// How many rows there are.
    pub(super) fn number(&self) -> usize {
        self.rows
    }

    /// Room for `rows` rows of `length` values for a product in a direction, to be filled by [`RowToRound::round`], each row by itself.
    pub fn rows(&mut self, rows: usize, length: usize, direction: Direction) -> Vec<RowToRound<'_>> {
        (self.rows, self.width, self.group) = (rows, length.next_multiple_of(64).max(64), direction.rounding().group);
        let rounding = direction.rounding();
        let (width, groups) = (self.width, self.width / self.group);
        match self.instructions.0 {
            Set::Vnni => {
                let [first, second] = self.digits.each_mut().map(|digits| {
                    digits.scales.resize(rows * groups, 0.0);
                    digits.corrections.resize(rows * groups, 0);
                    digits.bytes.resize(rows * width, 0);
                    let scales = digits.scales.chunks_mut(groups).zip(digits.corrections.chunks_mut(groups));
                    digits.bytes.chunks_mut(width).zip(scales)
                });
                let row = |(bytes, (scales, corrections))| DigitsOfRow { bytes, scales, corrections };
                let places = first.zip(second).map(|(first, second)| Place::Vnni([row(first), row(second)]));
                places.map(|place| RowToRound { place, rounding }).collect()
            }
            Set::Avx2 => {
                self.scales.resize(rows * groups, 0.0);
                self.words.resize(rows * width, 0);
                let places = self.words.chunks_mut(width).zip(self.scales.chunks_mut(groups));
                let places = places.map(|(words, scales)| Place::Avx2 { words, scales });
                places.map(|place| RowToRound { place, rounding }).collect()
            }
        }
    }

    /// Rounds rows of `length` values, for which there is memory, each by itself: those of x, times `factors` where there are some
    /// ([`RowToRound::round`]). `threads` gets a number and calls a function with each index below it.
    ///
    /// # Errors
    /// Those of `threads`.
    pub fn round<E>(
        &mut self,
        x: &[f32],
        length: usize,
        direction: Direction,
        factors: Option<&[f32]>,
        threads: impl FnOnce(usize, Calls<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        /// Enough elements for a thread to be worth waking.
        const LEAST_SHARE: usize = 16 * 1024;
        let share = LEAST_SHARE.div_ceil(length);
        let mut places = self.rows(x.len() / length, length, direction);
        let shares: Vec<_> = places.chunks_mut(share).map(Mutex::new).collect();
        each_share(&shares, threads, |index, places| {
            for (place, x) in places.iter_mut().zip(x[index * share * length..].chunks(length)) {
                place.round(x, factors);
            }
        })
    }

    /// Which of the second digits there are. (In 16 bits, none is one of its own.)
    pub(super) fn finer(&self) -> Finer {
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

    /// The sum of every so many values of a row, \[width / length\].
    pub(super) fn sums(&self, row: usize, length: usize) -> Vec<f32> {
        let share = self.group / length;
        let groups = self.width / self.group;
        if self.instructions.0 == Set::Avx2 {
            let sum = |words: &[i16]| words.iter().map(|&word| i32::from(word)).sum::<i32>() as f32;
            let (words, scales) = self.words(row);
            return words.chunks(length).enumerate().map(|(at, words)| sum(words) * scales[at / share]).collect();
        }
        let here = row * groups..(row + 1) * groups;
        let [first, second] = &self.digits;
        if share == 1 {
            let value = |digits: &Digits, at: usize| digits.corrections[at] as f32 * (digits.scales[at] / -128.0);
            return here.map(|at| value(first, at) + value(second, at)).collect();
        }
        let value = |digits: &Digits, at: usize| {
            let bytes = &digits.bytes[at * length..][..length];
            bytes.iter().map(|&byte| i32::from(byte)).sum::<i32>() as f32 * digits.scales[at / share]
        };
        (here.start * share..here.end * share).map(|at| value(first, at) + value(second, at)).collect()
    }

    /// For AVX2: a row's integers and its groups' scales.
    pub(super) fn words(&self, row: usize) -> (&[i16], &[f32]) {
        let groups = self.width / self.group;
        (&self.words[row * self.width..][..self.width], &self.scales[row * groups..][..groups])
    }

    /// Both digits of a row.
    pub(super) fn lines(&self, row: usize) -> [Line<'_>; 2] {
        let groups = self.width / self.group;
        if self.instructions.0 == Set::Vnni {
            return self.digits.each_ref().map(|digits| Line {
                bytes: Cow::Borrowed(&digits.bytes[row * self.width..][..self.width]),
                scales: Cow::Borrowed(&digits.scales[row * groups..][..groups]),
            });
        }
        let (words, scales) = self.words(row);
        let mut bytes = [(); 2].map(|()| Vec::with_capacity(self.width));
        let mut of_groups = [(); 2].map(|()| Vec::with_capacity(groups));
        for (words, &scale) in words.chunks(self.group).zip(scales) {
            let has_second = words.iter().any(|word| word.unsigned_abs() > MOST as u16);
            let first = |word: i16| if has_second { (f32::from(word) / BASE).round_ties_even() as i16 } else { word };
            bytes[0].extend(words.iter().map(|&word| first(word) as i8));
            bytes[1].extend(words.iter().map(|&word| (word - BASE as i16 * first(word)) as i8));
            of_groups[0].push(if has_second { scale * BASE } else { scale });
            of_groups[1].push(if has_second { scale } else { 0.0 });
        }
        let [first, second] = bytes.map(Cow::Owned);
        let [scales, finer] = of_groups.map(Cow::Owned);
        [Line { bytes: first, scales }, Line { bytes: second, scales: finer }]
    }
}

/// Where one row's integers belong. There is one only where the processor has the instructions.
#[derive(Debug)]
pub struct RowToRound<'a> {
    place: Place<'a>,
    rounding: RowRounding,
}

#[derive(Debug)]
struct DigitsOfRow<'a> {
    bytes: &'a mut [i8],
    scales: &'a mut [f32],
    corrections: &'a mut [i32],
}

impl DigitsOfRow<'_> {
    fn groups(&mut self, group: usize) -> impl Iterator<Item = DigitOfGroup<'_>> {
        let places = self.bytes.chunks_mut(group).zip(self.scales.iter_mut().zip(self.corrections.iter_mut()));
        places.map(|(bytes, (scale, correction))| DigitOfGroup { bytes, scale, correction })
    }
}

#[derive(Debug)]
enum Place<'a> {
    Vnni([DigitsOfRow<'a>; 2]),
    Avx2 { words: &'a mut [i16], scales: &'a mut [f32] },
}

impl RowToRound<'_> {
    /// Rounds a row: x ⊙ `factors` where there are some, each group to the nearest multiples of 1/127 of its largest value, one with an
    /// outlier to those of 1/254 of that ([`RowRounding`]; there are no factors where there are outliers). A group with a value that is
    /// not finite gives a scale that is none.
    pub fn round(&mut self, x: &[f32], factors: Option<&[f32]>) {
        let RowRounding { group, outlier } = self.rounding;
        let parts = (0..).step_by(group).map(|at| (part(x, at, group), factors.map(|all| part(all, at, group))));
        let most = if outlier.is_finite() { outlier * mean_square(x).sqrt() } else { outlier };
        // SAFETY: the processor has the instructions.
        unsafe {
            match &mut self.place {
                Place::Vnni([first, second]) => {
                    for ((x, factors), digits) in parts.zip(first.groups(group).zip(second.groups(group))) {
                        round_vnni(x, factors, most, digits.into());
                    }
                }
                Place::Avx2 { words, scales } => {
                    for ((x, factors), (words, scale)) in parts.zip(words.chunks_mut(group).zip(scales.iter_mut())) {
                        *scale = round_avx2(x, factors, most, words);
                    }
                }
            }
        }
    }
}

/// Of a row, added up in 16 parts, as compilers make vectors of.
fn mean_square(x: &[f32]) -> f32 {
    let mut sums = [0.0_f32; 16];
    let (chunks, rest) = x.as_chunks::<16>();
    for chunk in chunks {
        sums.iter_mut().zip(chunk).for_each(|(sum, x)| *sum += x * x);
    }
    let rest: f32 = rest.iter().map(|x| x * x).sum();
    (sums.iter().sum::<f32>() + rest) / x.len() as f32
}

/// Up to `length` values from a place on: none beyond the last.
#[inline]
fn part(values: &[f32], start: usize, length: usize) -> &[f32] {
    let values = values.get(start..).unwrap_or_default();
    values.get(..length).unwrap_or(values)
}

struct DigitOfGroup<'a> {
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
fn round_vnni(x: &[f32], factors: Option<&[f32]>, most: f32, [first, second]: [DigitOfGroup<'_>; 2]) {
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

/// Fills in a group's words, both digits of them where its largest value is above `most`, and gives its scale.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn round_avx2(x: &[f32], factors: Option<&[f32]>, most: f32, words: &mut [i16]) -> f32 {
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
    let steps = if largest > most { MOST * BASE } else { MOST };
    let inverse = _mm256_set1_ps(if largest > 0.0 { steps / largest } else { 0.0 });
    for (at, words) in (0..).step_by(16).zip(words.as_chunks_mut::<16>().0) {
        let [low, high] = [at, at + 8].map(|at| _mm256_cvtps_epi32(_mm256_mul_ps(value(at), inverse)));
        // Lanes of 4 and 4, in their order again.
        let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(low, high));
        // SAFETY: 16 numbers of 2 bytes.
        unsafe { _mm256_storeu_si256(words.as_mut_ptr().cast(), packed) };
    }
    largest / steps
}
