//! One meta-gradient of one persona on a frozen GPT-2 with adapters, in the words of the PyTorch program that it is measured
//! beside: S inner steps on a support batch, the outer loss on a query batch, both B rows of T tokens, a loss on each token.
//!
//!     cargo run --release -p marionette-benches --example meta -- [MODEL_DIR] [B T S REPEATS] [--first-order] [--frozen int8] [--workers N]
//!
//! Two threads. With two workers, what a run on two threads has, two personas are computed side by side, one thread each, and the time of
//! a task is half of that. Without a model it takes random weights of GPT-2 small's shapes: the time does not depend on them.

#![allow(clippy::unwrap_used)] // What fails here is for its reader.

use std::time::Instant;

use marionette_benches::Task;
use marionette_models::bundle::Precision;
use marionette_trainer::memory;
use marionette_trainer::workers::Compute;
use tch::Device;

const THREADS: usize = 2;

/// The most memory that this process has held, in MiB.
fn peak() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap_or(f64::NAN) / 1024.0
}

fn main() {
    // SAFETY: the first statement of the program; no thread runs yet.
    unsafe { memory::prepare() };
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |option: &str| arguments.iter().any(|argument| argument == option);
    let first_order = has("--first-order");
    let option = |name: &str| arguments.iter().position(|argument| argument == name).map(|at| at + 1);
    let values = [option("--frozen"), option("--workers")];
    let precision: Precision = values[0].map_or(Ok(Precision::Fp32), |at| arguments[at].parse()).unwrap();
    let workers: usize = values[1].map_or(1, |at| arguments[at].parse().unwrap());
    let is_word = |(at, word): &(usize, &String)| !word.starts_with("--") && !values.contains(&Some(*at));
    let words: Vec<&String> = arguments.iter().enumerate().filter(is_word).map(|(_, word)| word).collect();
    let numbers: Vec<i64> = words.iter().filter_map(|word| word.parse().ok()).collect();
    let folder = words.first().filter(|word| word.parse::<i64>().is_err());
    let [rows, length, steps, repeats] = <[i64; 4]>::try_from(numbers).unwrap_or([2, 128, 2, 3]);

    let task = Task::new(folder.map(|folder| folder.as_ref()), precision).unwrap();
    let compute = Compute { device: Device::Cpu, threads: THREADS, workers };
    let once = || task.meta_gradients(compute, [rows, length], steps as usize, !first_order).unwrap();
    once();
    let mut seconds: Vec<f64> = (0..repeats)
        .map(|_| {
            let started = Instant::now();
            once();
            started.elapsed().as_secs_f64() / workers as f64
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    let median = seconds[seconds.len() / 2];
    let tokens = ((steps + 1) * rows * length) as f64;
    println!(
        "marionette MAML {}-order {precision} B={rows} T={length} S={steps}{}: {:.0} ms a task, {:.0} tok/s, peak {:.0} MiB",
        if first_order { "first" } else { "second" },
        if workers == 1 { String::new() } else { format!(", {workers} workers") },
        median * 1e3,
        tokens / median,
        peak()
    );
}
