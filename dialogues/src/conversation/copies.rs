//! Dialogues that were there before, or nearly: of exports that overlap, or of generated data.

use std::collections::HashMap;

use super::hashed;
use crate::Dialogue;

/// How many words a shingle has.
const SHINGLE: usize = 3;
/// Shorter dialogues, in words, are not compared: two that say good night are no copies.
const LEAST_WORDS: usize = 8;
/// The hashes of a sketch, and how many of them are looked up together.
const HASHES: usize = 32;
const BAND: usize = 4;
/// As many must agree. The share that agrees estimates the likeness, so copies are alike by nine tenths.
const AGREE: usize = 28;

/// The least hash of all shingles, for each of [`HASHES`] hash functions.
type Sketch = [u32; HASHES];

/// The dialogues so far, by MinHash (Broder 1997) of who says which three words in a row: two dialogues have a hash in common as
/// often as their sets of shingles are alike by Jaccard's index. Those with a band of hashes in common are compared.
#[derive(Debug, Default)]
pub(crate) struct Copies {
    sketches: Vec<Sketch>,
    /// Of each band, the last dialogue that had it.
    bands: HashMap<u64, u32>,
}

impl Copies {
    /// Whether a dialogue was there before, or nearly.
    pub fn has(&mut self, dialogue: &Dialogue) -> bool {
        let Some(sketch) = sketch(dialogue) else { return false };
        let Ok(place) = u32::try_from(self.sketches.len()) else { return false };
        let mut is_copy = false;
        for (number, band) in sketch.chunks(BAND).enumerate() {
            let before = self.bands.insert(hashed(&(number, band)), place);
            let alike = before.and_then(|before| self.sketches.get(before as usize)).is_some_and(|other| {
                other.iter().zip(&sketch).filter(|(one, another)| one == another).count() >= AGREE
            });
            is_copy |= alike;
        }
        self.sketches.push(sketch);
        is_copy
    }
}

/// Nothing of a dialogue that is too short.
fn sketch(dialogue: &Dialogue) -> Option<Sketch> {
    let mut least = [u32::MAX; HASHES];
    let mut total = 0;
    let utterances = dialogue.exchanges.iter().flat_map(|one| [(false, &one.partner), (true, &one.reply)]);
    for (mine, text) in utterances {
        let words: Vec<String> = text.split_whitespace().map(str::to_lowercase).collect();
        total += words.len();
        for shingle in words.windows(SHINGLE.min(words.len().max(1))) {
            let mut state = hashed(&(mine, shingle));
            for least in &mut least {
                // Each step of splitmix64 (Steele et al. 2014) is another hash function.
                state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
                let mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
                let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
                *least = (*least).min((mixed >> 32) as u32);
            }
        }
    }
    (total >= LEAST_WORDS).then_some(least)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Exchange;

    /// A dialogue of numbered words, which differ from the `changed`th on.
    fn dialogue(words: usize, changed: usize) -> Dialogue {
        let word = |place: usize| if place < changed { format!("w{place}") } else { format!("other{place}") };
        let exchanges = (0..words / 10)
            .map(|turn| {
                let text = |from: usize| (from..from + 5).map(word).collect::<Vec<_>>().join(" ");
                Exchange::new(text(turn * 10), text(turn * 10 + 5))
            })
            .collect();
        Dialogue { persona: Vec::new(), partner_persona: Vec::new(), exchanges, line: 1 }
    }

    #[test]
    fn what_is_nearly_the_same_is_a_copy_and_what_is_half_the_same_is_none() {
        let mut copies = Copies::default();
        assert!(!copies.has(&dialogue(400, 400)));
        assert!(copies.has(&dialogue(400, 400)));
        // One utterance of 80 is another: 234 of 246 shingles are the same, which is 0.95.
        assert!(copies.has(&dialogue(400, 395)));
        // Half of them: a third is the same.
        assert!(!copies.has(&dialogue(400, 200)));
        // The same words from the other side.
        let mut turned = dialogue(400, 400);
        turned.exchanges.iter_mut().for_each(|one| std::mem::swap(&mut one.partner, &mut one.reply));
        assert!(!copies.has(&turned));
        // Two that say good night.
        let night = || Exchange::new("good night".to_owned(), "sleep well".to_owned());
        let short = || Dialogue { exchanges: vec![night()], ..dialogue(0, 0) };
        assert!(!copies.has(&short()) && !copies.has(&short()));
    }
}
