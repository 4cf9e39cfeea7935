//! One query by itself.

use pulp::{Simd, WithSimd};

use super::UNSEEN;

/// The output \[dh\] of one query \[dh\] over keys and values \[n, dh\] before its own, and its own.
pub fn of_one_query(query: &[f32], keys: [&[f32]; 2], values: [&[f32]; 2], scores: &mut Vec<f32>, y: &mut [f32]) {
    struct OfOne<'a>(&'a [f32], [&'a [f32]; 2], [&'a [f32]; 2], &'a mut Vec<f32>, &'a mut [f32]);
    impl WithSimd for OfOne<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let Self(query, keys, values, scores, y) = self;
            let width = query.len().max(1);
            let factor = (width as f32).sqrt().recip();
            let (whole, rest) = S::as_simd_f32s(query);
            // Plain loops: what takes a closure is compiled without the processor's instructions.
            scores.clear();
            scores.resize((keys[0].len() + keys[1].len()) / width, 0.0);
            let mut at = 0;
            for keys in keys {
                for key in keys.chunks_exact(width) {
                    let (key, key_rest) = S::as_simd_f32s(key);
                    let mut sum = simd.splat_f32s(0.0);
                    for (&query, &key) in whole.iter().zip(key) {
                        sum = simd.mul_add_e_f32s(query, key, sum);
                    }
                    if !rest.is_empty() {
                        let (query, key) = (simd.partial_load_f32s(rest), simd.partial_load_f32s(key_rest));
                        sum = simd.mul_add_e_f32s(query, key, sum);
                    }
                    scores[at] = simd.reduce_sum_f32s(sum) * factor;
                    at += 1;
                }
            }
            let mut greatest = UNSEEN;
            for &score in &*scores {
                greatest = greatest.max(score);
            }
            let sum = crate::logits::exponentials(scores, greatest, 1.0);
            let (y, y_rest) = S::as_mut_simd_f32s(y);
            let factor = simd.splat_f32s((sum as f32).recip());
            // Up to four vectors of all rows at a time: sums that do not wait for each other.
            for (number, y) in y.chunks_mut(4).enumerate() {
                let mut sums = [simd.splat_f32s(0.0); 4];
                let mut at = 0;
                for values in values {
                    for value in values.chunks_exact(width) {
                        let value = &S::as_simd_f32s(value).0[4 * number..];
                        let share = simd.splat_f32s(scores[at]);
                        at += 1;
                        for (sum, &value) in sums.iter_mut().zip(value) {
                            *sum = simd.mul_add_e_f32s(share, value, *sum);
                        }
                    }
                }
                for (y, sum) in y.iter_mut().zip(sums) {
                    *y = simd.mul_f32s(sum, factor);
                }
            }
            if !y_rest.is_empty() {
                let mut sum = simd.splat_f32s(0.0);
                let mut at = 0;
                for values in values {
                    for value in values.chunks_exact(width) {
                        let value = simd.partial_load_f32s(S::as_simd_f32s(value).1);
                        sum = simd.mul_add_e_f32s(simd.splat_f32s(scores[at]), value, sum);
                        at += 1;
                    }
                }
                simd.partial_store_f32s(y_rest, simd.mul_f32s(sum, factor));
            }
        }
    }
    pulp::Arch::new().dispatch(OfOne(query, keys, values, scores, y));
}
