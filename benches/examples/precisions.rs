//! What each precision costs a real model on the device ([`marionette_benches::precisions`]).
//!
//!     cargo run --release -p marionette-benches --example precisions -- MODEL_DIR DIALOGUES [PEOPLE DIALOGUES_OF_OTHERS] [PRECISION…] [tokens=FILE]
//!
//! FILE gets the token ids that perplexity is measured on, for `benches/peers/perplexity.py`.

#![allow(clippy::unwrap_used)] // What fails here is for its reader.

use std::path::Path;

use marionette_benches::precisions::{STEPS, Subject};
use marionette_dialogues::Sequence;
use marionette_models::bundle::Precision;

fn main() {
    // SAFETY: the first statement of the program; no thread runs yet.
    unsafe { marionette_runtime::session::disable_telemetry() };
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, data] = [0, 1].map(|index| Path::new(arguments.get(index).map_or("", String::as_str)));
    let numbers: Vec<usize> = arguments.iter().filter_map(|argument| argument.parse().ok()).collect();
    let [people, others] = <[usize; 2]>::try_from(numbers).unwrap_or([4, 32]);
    let all = [Precision::Fp32, Precision::Fp16, Precision::Int8, Precision::Int4];
    let wanted = |precision: &Precision| arguments.contains(&precision.to_string());
    let named: Vec<Precision> = all.into_iter().filter(wanted).collect();
    let mut subject = Subject::new(model, data, people, others).unwrap();
    if let Some(file) = arguments.iter().find_map(|argument| argument.strip_prefix("tokens=")) {
        // Lists of numbers and of truth values are JSON as they are shown.
        let line =
            |sequence: &Sequence| format!("{{\"ids\": {:?}, \"target\": {:?}}}\n", sequence.ids, sequence.target);
        std::fs::write(file, subject.others().iter().map(line).collect::<String>()).unwrap();
    }
    println!("{people} people, {STEPS} steps each; perplexity before on a dialogue of each of {others} others");
    println!(
        "| precision | bits a weight | perplexity of the model alone | perplexity before | the same weights in fp32 | cosine of the gradient | after {STEPS} steps | the same weights in fp32 |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for precision in if named.is_empty() { all.to_vec() } else { named } {
        let cost = subject.cost(precision).unwrap();
        let least = cost.cosines.iter().copied().fold(f64::INFINITY, f64::min);
        let most = cost.cosines.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        println!(
            "| {precision} | {:.2} | {:.3} | {:.3} | {:.3} | {least:.4} – {most:.4} | {:.3} | {:.3} |",
            cost.bits,
            cost.bare,
            cost.perplexity,
            cost.perplexity_same_weights,
            cost.adapted,
            cost.adapted_same_weights
        );
    }
}
