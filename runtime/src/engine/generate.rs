//! The generate graph: the next token's logits, with a KV cache that is updated in place.

use marionette_models::bundle;

use super::{Bound, Engine};
use crate::error::Result;
use crate::generate::LanguageModel;
use crate::session::{Buffer, Graph, Provider};

/// After so many tokens of prompts, the graph that reads them faster is worth the time of opening it: GPT-2 small in int8 saves 0.2 ms a
/// token, and opens in 0.1 s.
const TOKENS_BEFORE_PREFILL: usize = 512;

pub(super) struct Generation {
    bound: Bound,
    /// The graph for prompts, where the bundle has one and it is worth it.
    prefill: Option<Bound>,
    /// How many tokens of prompts were read without it.
    read: usize,
    /// Keys and values of all layers, \[1, heads, positions, head width\] each, bound as past and as present.
    cache: Vec<(CacheNames, Buffer)>,
    /// Logits of the last position, \[1, V\].
    logits: Buffer,
    /// The tokens whose keys and values the cache holds.
    tokens: Vec<u32>,
}

struct CacheNames {
    past: String,
    present: String,
}

impl Generation {
    /// Empties the cache.
    pub(super) fn forget(&mut self) {
        self.tokens.clear();
    }

    fn bind_cache(&mut self) -> Result<()> {
        for bound in [&mut self.bound].into_iter().chain(&mut self.prefill) {
            for (names, buffer) in &mut self.cache {
                bound.graph.input_buffer(&names.past, buffer)?;
                bound.graph.output_buffer(&names.present, buffer)?;
            }
        }
        Ok(())
    }
}

impl Engine {
    fn open_generation(&self, graph: Graph) -> Result<Generation> {
        let model = &self.manifest.model;
        let shape = [1, model.n_head, model.n_positions, model.head_dim()];
        let mut cache = Vec::with_capacity(2 * model.n_layer);
        for layer in 0..model.n_layer {
            for what in ["key", "value"] {
                let names =
                    CacheNames { past: format!("past.{layer}.{what}"), present: format!("present.{layer}.{what}") };
                cache.push((names, Buffer::zeros(&shape)?));
            }
        }
        let logits = Buffer::zeros(&[1, model.vocab_size])?;
        let mut generation =
            Generation { bound: Bound::new(graph), prefill: None, read: 0, cache, logits, tokens: Vec::new() };
        generation.bound.graph.output_buffer("logits", &mut generation.logits)?;
        generation.bind_cache()?;
        Ok(generation)
    }

    /// Reads tokens: with the graph for prompts all but the last one, if there is such a graph and it is worth it.
    fn run_generation(&self, generation: &mut Generation, tokens: &[u32]) -> Result<()> {
        let Some((last, prompt)) = tokens.split_last() else { return Ok(()) };
        if prompt.is_empty() || !self.has_prefill() {
            return self.run_graph(generation, tokens, false);
        }
        if generation.prefill.is_none() && generation.read >= TOKENS_BEFORE_PREFILL {
            self.open_prefill(generation)?;
        }
        if generation.prefill.is_none() {
            generation.read += tokens.len();
            return self.run_graph(generation, tokens, false);
        }
        self.run_graph(generation, prompt, true)?;
        self.run_graph(generation, &[*last], false)
    }

    fn has_prefill(&self) -> bool {
        self.manifest.files.contains_key(bundle::PREFILL)
    }

    fn open_prefill(&self, generation: &mut Generation) -> Result<()> {
        generation.prefill = Some(Bound::new(self.open_graph(bundle::PREFILL)?));
        generation.bind_cache()
    }

    /// Opens all graphs that generation uses, for a process that will read many prompts: else each is opened when it is worth it.
    ///
    /// # Errors
    /// A graph cannot be opened.
    pub fn prepare_generation(&mut self) -> Result<()> {
        let mut generation = match self.generate.take() {
            Some(generation) => generation,
            None => self.open_generation(self.open_graph(bundle::GENERATE)?)?,
        };
        let opened = match self.has_prefill() && generation.prefill.is_none() {
            true => self.open_prefill(&mut generation),
            false => Ok(()),
        };
        self.generate = Some(generation);
        opened
    }

    fn run_graph(&self, generation: &mut Generation, tokens: &[u32], prompt: bool) -> Result<()> {
        if self.options.provider != Provider::Cpu {
            // Binding copies to the device's memory there, and what the last run wrote must be in the copy.
            generation.bind_cache()?;
        }
        let Generation { bound, prefill, tokens: cached, .. } = generation;
        let bound = prefill.as_mut().filter(|_| prompt).unwrap_or(bound);
        bound.bind_adapters(&self.table, &self.adapters, self.version)?;
        let first = cached.len() as i64;
        let ids: Vec<i64> = tokens.iter().map(|&id| i64::from(id)).collect();
        let positions: Vec<i64> = (first..first + ids.len() as i64).collect();
        let shape = [1, ids.len()];
        bound.graph.input("input_ids", &shape, &ids)?;
        bound.graph.input("positions", &shape, &positions)?;
        bound.graph.run()?;
        cached.extend_from_slice(tokens);
        Ok(())
    }
}

impl LanguageModel for Engine {
    fn context(&self) -> usize {
        self.manifest.model.n_positions
    }

    fn cached(&self) -> &[u32] {
        self.generate.as_ref().map_or(&[], |generation| &generation.tokens)
    }

    fn truncate(&mut self, length: usize) {
        if let Some(generation) = &mut self.generate {
            generation.tokens.truncate(length);
        }
    }

    fn advance(&mut self, tokens: &[u32]) -> Result<&[f32]> {
        let mut generation = match self.generate.take() {
            Some(generation) => generation,
            None => self.open_generation(self.open_graph(bundle::GENERATE)?)?,
        };
        let run = self.run_generation(&mut generation, tokens);
        if run.is_err() {
            // Part of the cache may have been written.
            generation.forget();
        }
        let generation = self.generate.insert(generation);
        run.map(|()| generation.logits.values())
    }
}
