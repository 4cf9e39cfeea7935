//! Rotary position embedding (Su et al. 2021).

use pulp::Arch;

/// Turns a token's heads side by side, each by the angles whose cosines and sines are given, one a pair of values i and i + dh / 2.
pub fn rotate(x: &[f32], cosines: &[f32], sines: &[f32], y: &mut [f32]) {
    let half = cosines.len().max(1);
    Arch::new().dispatch(
        #[inline(always)]
        || {
            for (x, y) in x.chunks_exact(2 * half).zip(y.chunks_exact_mut(2 * half)) {
                let ((a, b), (first, second)) = (x.split_at(half), y.split_at_mut(half));
                let angles = cosines.iter().zip(sines);
                for ((((first, second), &a), &b), (&cosine, &sine)) in
                    first.iter_mut().zip(second).zip(a).zip(b).zip(angles)
                {
                    *first = a * cosine - b * sine;
                    *second = b * cosine + a * sine;
                }
            }
        },
    );
}

/// [`rotate`] in place.
pub fn rotate_in_place(x: &mut [f32], cosines: &[f32], sines: &[f32]) {
    let half = cosines.len().max(1);
    Arch::new().dispatch(
        #[inline(always)]
        || {
            for x in x.chunks_exact_mut(2 * half) {
                let (a, b) = x.split_at_mut(half);
                for ((a, b), (&cosine, &sine)) in a.iter_mut().zip(b).zip(cosines.iter().zip(sines)) {
                    (*a, *b) = (*a * cosine - *b * sine, *b * cosine + *a * sine);
                }
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::numbers;

    #[test]
    fn rotation_turns_pairs_and_turns_back() {
        let x = numbers(24, 1);
        let (cosines, sines): (Vec<f32>, Vec<f32>) = (0..4).map(|i| ((i as f32).cos(), (i as f32).sin())).unzip();
        let (mut y, mut back) = (vec![0.0; 24], vec![0.0; 24]);
        rotate(&x, &cosines, &sines, &mut y);
        let mut here = x.clone();
        rotate_in_place(&mut here, &cosines, &sines);
        assert_eq!(here, y);
        // As complex numbers, of the second head: pair 1 is values 9 and 13.
        let expected = [x[9] * cosines[1] - x[13] * sines[1], x[13] * cosines[1] + x[9] * sines[1]];
        assert!((y[9] - expected[0]).abs() < 1e-6 && (y[13] - expected[1]).abs() < 1e-6);
        rotate(&y, &cosines, &sines.iter().map(|sine| -sine).collect::<Vec<_>>(), &mut back);
        assert!(back.iter().zip(&x).all(|(back, x)| (back - x).abs() < 1e-6));
    }
}
