//! Several conversations at once, each with adapters of its own, as a server answers several personas: a token of each in one run of the
//! generate graph, which reads the frozen weights once for all. Rows join and leave between tokens.

use std::num::NonZeroUsize;

use marionette_models::{FileError, TensorSpec, Tensors, bundle};

use super::generate::{self, Cache};
use super::{Engine, values_of};
use crate::error::{Error, Result};
use crate::session::{Buffer, Graph, Provider};

/// A conversation among others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RowId(u64);

/// Conversations side by side, at most so many.
///
/// Each row takes the memory of its adapters, and of what its cache holds.
pub struct Rows {
    graph: Graph,
    provider: Provider,
    table: Vec<TensorSpec>,
    context: usize,
    most: usize,
    /// Of all rows, \[rows, ..\] each.
    adapters: Vec<Buffer>,
    cache: Cache,
    /// After the last token of each, \[rows, V\].
    logits: Buffer,
    vocabulary: usize,
    /// In the order of their places.
    rows: Vec<Row>,
    /// The rows that are bound: the first, and how many.
    bound: Option<(usize, usize)>,
    next: u64,
}

struct Row {
    id: RowId,
    /// The tokens whose keys and values the cache holds.
    tokens: Vec<u32>,
}

impl Rows {
    /// Opens a bundle's graph for at most so many conversations; the engine has one more of its own.
    ///
    /// # Errors
    /// The bundle's graph has one set of adapters for all rows; it cannot be opened; there is no memory.
    pub fn open(engine: &Engine, most: NonZeroUsize) -> Result<Self> {
        if !engine.has_rows() {
            let problem = "has one set of adapters for all rows, as bundles of before 0.2.0 had; export it again";
            return Err(FileError::new(&engine.dir.join(bundle::GENERATE), problem).into());
        }
        let (model, most) = (&engine.manifest.model, most.get());
        let adapters = engine.table.iter().map(|spec| Buffer::zeros(&generate::of_rows(most, spec)));
        Ok(Self {
            graph: engine.open_graph(bundle::GENERATE)?,
            provider: engine.options.provider,
            table: engine.table.clone(),
            context: model.n_positions,
            most,
            adapters: adapters.collect::<std::result::Result<_, _>>()?,
            cache: Cache::new(model, most)?,
            logits: Buffer::zeros(&[most, model.vocab_size])?,
            vocabulary: model.vocab_size,
            rows: Vec::new(),
            bound: None,
            next: 0,
        })
    }

    /// How many there may be.
    pub fn most(&self) -> usize {
        self.most
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The most tokens that a row's cache holds.
    pub fn context(&self) -> usize {
        self.context
    }

    /// One more, with these adapters.
    ///
    /// # Errors
    /// There are as many as there may be; a tensor is missing or misshapen.
    pub fn join(&mut self, adapters: &Tensors) -> Result<RowId> {
        let place = self.rows.len();
        if place == self.most {
            return Err(Error::Impossible(format!("there are {place} rows, as many as were asked for")));
        }
        for (spec, buffer) in self.table.iter().zip(&mut self.adapters) {
            let wrong = |problem: String| Error::Impossible(format!("{}: {problem}", spec.name));
            let values = values_of(spec, adapters).map_err(wrong)?;
            buffer.values_mut()[place * spec.len()..][..spec.len()].copy_from_slice(values);
        }
        let id = RowId(self.next);
        self.next += 1;
        self.rows.push(Row { id, tokens: Vec::new() });
        Ok(id)
    }

    /// Ends a row. The last one takes its place.
    pub fn leave(&mut self, row: RowId) {
        let Some(place) = self.at(row) else { return };
        let last = self.rows.len() - 1;
        self.rows.swap_remove(place);
        if let Some(Row { tokens, .. }) = self.rows.get(place) {
            self.cache.copy(last, place, tokens.len());
            for (spec, buffer) in self.table.iter().zip(&mut self.adapters) {
                buffer.values_mut().copy_within(last * spec.len()..(last + 1) * spec.len(), place * spec.len());
            }
            let width = self.vocabulary;
            self.logits.values_mut().copy_within(last * width..(last + 1) * width, place * width);
        }
    }

    /// The tokens that a row's cache holds, oldest first.
    pub fn cached(&self, row: RowId) -> &[u32] {
        self.at(row).map_or(&[], |place| &self.rows[place].tokens)
    }

    /// Forgets all but the first `length` tokens of a row.
    pub fn truncate(&mut self, row: RowId, length: usize) {
        if let Some(place) = self.at(row) {
            self.rows[place].tokens.truncate(length);
        }
    }

    /// Reads tokens of one row, such as a prompt's, and gives the logits \[V\] after them.
    ///
    /// # Errors
    /// There is no such row; there are no tokens, or more than fit its context; the graph fails, and the row's cache is empty then.
    pub fn read(&mut self, row: RowId, tokens: &[u32]) -> Result<&[f32]> {
        let place = self.place(row, tokens.len())?;
        self.run(place, 1, tokens)?;
        Ok(self.logits_at(place))
    }

    /// Reads a token of each of some rows, one pass for all that lie side by side; [`Rows::logits`] has what follows.
    ///
    /// # Errors
    /// A row is not there, twice there, or full; the graph fails, and the caches of those that it read are empty then.
    pub fn step(&mut self, tokens: &[(RowId, u32)]) -> Result<()> {
        let mut places = Vec::with_capacity(tokens.len());
        for &(row, token) in tokens {
            places.push((self.place(row, 1)?, token));
        }
        places.sort_unstable();
        if let Some(pair) = places.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(Error::Impossible(format!("two tokens of row {} in one step", self.rows[pair[0].0].id.0)));
        }
        for together in places.chunk_by(|a, b| a.0 + 1 == b.0) {
            let tokens: Vec<u32> = together.iter().map(|&(_, token)| token).collect();
            self.run(together[0].0, together.len(), &tokens)?;
        }
        Ok(())
    }

    /// The logits \[V\] after the last token that a row has read; none where it has read none.
    pub fn logits(&self, row: RowId) -> Option<&[f32]> {
        let place = self.at(row).filter(|&place| !self.rows[place].tokens.is_empty())?;
        Some(self.logits_at(place))
    }

    fn logits_at(&self, place: usize) -> &[f32] {
        &self.logits.values()[place * self.vocabulary..][..self.vocabulary]
    }

    /// Where a row is.
    fn at(&self, row: RowId) -> Option<usize> {
        self.rows.iter().position(|known| known.id == row)
    }

    /// The same, where it has room for so many tokens.
    fn place(&self, row: RowId, tokens: usize) -> Result<usize> {
        let place = self.at(row).ok_or_else(|| Error::Impossible(format!("row {} is not there", row.0)))?;
        let before = self.rows[place].tokens.len();
        if tokens == 0 || before + tokens > self.context {
            let context = self.context;
            let problem =
                format!("{tokens} tokens after {before}: expected at least 1, and {context} together at most");
            return Err(Error::Impossible(problem));
        }
        Ok(place)
    }

    /// Reads tokens of `rows` rows from `first` on, as many of each.
    fn run(&mut self, first: usize, rows: usize, tokens: &[u32]) -> Result<()> {
        // Elsewhere binding copies to the device's memory, and what the last run wrote must be in the copy.
        if self.bound != Some((first, rows)) || self.provider != Provider::Cpu {
            self.bound = None;
            self.cache.bind(&mut self.graph, first, rows)?;
            for (spec, buffer) in self.table.iter().zip(&self.adapters) {
                self.graph.input_part(&spec.name, buffer, first * spec.len(), &generate::of_rows(rows, spec))?;
            }
            let (at, shape) = (first * self.vocabulary, [rows, self.vocabulary]);
            self.graph.output_part("logits", &mut self.logits, at, &shape)?;
            self.bound = Some((first, rows));
        }
        let some = &mut self.rows[first..first + rows];
        let before: Vec<usize> = some.iter().map(|row| row.tokens.len()).collect();
        let each = tokens.len() / rows;
        let run = generate::run(&mut self.graph, [rows, each], tokens, &before);
        for (row, tokens) in some.iter_mut().zip(tokens.chunks(each)) {
            match run {
                Ok(()) => row.tokens.extend_from_slice(tokens),
                // Part of the cache may have been written.
                Err(_) => row.tokens.clear(),
            }
        }
        run
    }
}
