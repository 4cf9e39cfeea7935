//! What is seen of an adaptation while it goes on: the forecast, the bar, the losses and the speed.

use std::time::{Duration, Instant};

use bytesize::ByteSize;
use indicatif::HumanDuration;
use marionette_console::Progress;
use marionette_runtime::adapt::Heard;
use marionette_runtime::memory;
use marionette_runtime::plan::Plan;

/// An adaptation as it is seen on standard error.
pub struct Shown {
    progress: Progress,
    steps: usize,
    /// The tokens of all of it, and those that are done.
    all: usize,
    done: usize,
    begun: Instant,
    /// The bytes that a step's values take.
    values: Option<u64>,
    /// The most bytes that are held, where they were limited and so are known.
    most: Option<u64>,
    loss: String,
    held_out: String,
    is_forecast: bool,
}

impl Shown {
    pub fn new(plan: &Plan, values: Option<u64>) -> Self {
        let all = plan.tokens();
        Self {
            progress: Progress::new(all as u64, "tokens"),
            steps: plan.inner().steps,
            all,
            done: 0,
            begun: Instant::now(),
            values,
            most: plan.fit().map(|fit| fit.most),
            loss: String::new(),
            held_out: String::new(),
            is_forecast: false,
        }
    }

    pub fn hear(&mut self, heard: Heard) {
        let (step, tokens) = match heard {
            Heard::Begins => {
                // Opening the graph has nothing to do with how fast it computes.
                self.begun = Instant::now();
                return;
            }
            Heard::Step { step, loss, tokens } => {
                self.loss = format!(", loss {loss:.4}");
                (step, tokens)
            }
            Heard::Judged { step, loss, tokens } => {
                self.held_out = format!(", held-out perplexity {:.2}", loss.exp());
                (step, tokens)
            }
        };
        self.done += tokens;
        let elapsed = self.begun.elapsed();
        if !self.is_forecast {
            self.is_forecast = true;
            self.forecast(elapsed);
        }
        let speed = self.done as f64 / elapsed.as_secs_f64().max(1e-9);
        let Self { steps, loss, held_out, .. } = self;
        self.progress.at(self.done as u64, self.all as u64, || {
            format!("step {step}/{steps}{loss}{held_out}, {speed:.0} tokens/s")
        });
    }

    /// What it will take, by the first that was computed.
    fn forecast(&self, elapsed: Duration) {
        let left = self.all.saturating_sub(self.done) as f64 / self.done.max(1) as f64;
        let time = HumanDuration(Duration::from_secs_f64((elapsed.as_secs_f64() * left).ceil()));
        let most = self.most.or_else(|| {
            let (values, held) = self.values.zip(memory::resident())?;
            // The weights that lie mapped are read in every step.
            Some(held.with_weights().now.saturating_add(values).max(held.peak))
        });
        let memory = most.map(|bytes| format!(", at most {} of memory", ByteSize(bytes)));
        let steps = self.steps;
        self.progress.say(&format!("forecast: about {time} for {steps} steps{}", memory.unwrap_or_default()));
    }
}
