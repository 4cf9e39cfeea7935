//! Both digits of rows, as products of bytes meet them.

use std::borrow::Cow;

use super::{BASE, MOST, Rounded};
use crate::product::GROUP;

/// A digit of each value of a row, \[width\], and its groups' scales, \[width / group\]. Where a scale is 0 the digits are anything.
#[derive(Debug)]
pub(in crate::product) struct Line<'a> {
    pub bytes: Cow<'a, [i8]>,
    pub scales: Cow<'a, [f32]>,
}

impl Line<'_> {
    /// Whether one of so many values from a place on has such a digit.
    #[cfg(target_arch = "x86_64")]
    pub fn has(&self, at: usize, length: usize) -> bool {
        let groups = at / GROUP..self.scales.len().min((at + length).div_ceil(GROUP));
        self.scales[groups].iter().any(|&scale| scale != 0.0)
    }
}

impl Rounded {
    /// Both digits of a row.
    pub(in crate::product) fn lines(&self, row: usize) -> [Line<'_>; 2] {
        let groups = self.width / self.group;
        if !self.instructions.0.has_words() {
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
