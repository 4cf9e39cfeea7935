//! Every target on its seeds, on what fuzzing found once, and on some thousand changed seeds, the same each time.

#![allow(clippy::unwrap_used)] // What fails here fails a test.

use std::path::Path;

use marionette_fuzz::TARGETS;
use rand::{Rng as _, RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// How often each seed is changed.
const CHANGES: usize = 300;

/// Flips bits, cuts, doubles and exchanges parts, and puts in numbers that are often wrong.
fn changed(seed: &[u8], rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..rng.random_range(1..4) {
        if bytes.is_empty() {
            return bytes;
        }
        let at = rng.random_range(0..bytes.len());
        let end = rng.random_range(at..=bytes.len()).min(at + 64);
        match rng.random_range(0..6) {
            0 => bytes[at] ^= 1 << rng.random_range(0..8),
            1 => bytes[at] = [0, 0xff, b'"', b'{', b'\n', b'9', 0x7f, 0x80][rng.random_range(0..8)],
            2 => bytes.truncate(at),
            3 => drop(bytes.drain(at..end)),
            4 => {
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
            _ => {
                let number = [0_u64, 1 << 31, 1 << 32, 1 << 63, u64::MAX, rng.next_u64()][rng.random_range(0..6)];
                let place = at..bytes.len().min(at + 8);
                let bytes_of = number.to_le_bytes();
                bytes[place.clone()].copy_from_slice(&bytes_of[..place.len()]);
            }
        }
    }
    bytes
}

#[test]
fn no_input_does_more_than_to_be_refused() {
    for target in TARGETS {
        let mut rng = ChaCha8Rng::seed_from_u64(17);
        let seeds = (target.seeds)();
        assert!(!seeds.is_empty());
        for seed in &seeds {
            (target.run)(seed);
            for _ in 0..CHANGES {
                (target.run)(&changed(seed, &mut rng));
            }
        }
        let found = Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions").join(target.name);
        let Ok(entries) = std::fs::read_dir(found) else { continue };
        for entry in entries {
            (target.run)(&std::fs::read(entry.unwrap().path()).unwrap());
        }
    }
}
