//! Candidates after a history, in one row: for Hits@1 and for next-utterance classification.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::{Encoder, Window};
use crate::{Dialogue, EncodeError, Example, Exchange, Ranking};

/// Candidates as they stand in a row.
struct Candidates {
    ids: Vec<Vec<u32>>,
    /// Positions that the longest takes.
    longest: usize,
    /// How many were cut.
    cut: usize,
}

impl Encoder {
    /// A dialogue as the inner loop learns it: its windows ([`Encoder::windows`]), and where the encoder has choices, one for each
    /// learned exchange with a candidate that is not the reply, with the window in which the reply ends. The distractors are
    /// drawn from the exchange's other candidates (ChaCha8; the seed is the line on which the dialogue begins, the stream the
    /// exchange); fewer where there are fewer.
    ///
    /// # Errors
    /// [`EncodeError::NoRoom`] where no candidate fits behind the persona's sentences; where the tokenizer fails.
    pub fn examples(&self, dialogue: &Dialogue) -> Result<Vec<Example>, EncodeError> {
        let windows = self.divided(dialogue)?.into_iter();
        windows
            .map(|Window { sequence, exchanges }| {
                let mut choices = Vec::new();
                for index in exchanges.into_iter().filter(|_| self.choices > 1) {
                    choices.extend(self.choice(dialogue, index)?);
                }
                Ok(Example { sequence, choices })
            })
            .collect()
    }

    /// The reply of an exchange among some of its candidates, where it has others.
    fn choice(&self, dialogue: &Dialogue, index: usize) -> Result<Option<Ranking>, EncodeError> {
        let Some(exchange) = dialogue.exchanges.get(index) else { return Ok(None) };
        let mut others: Vec<&str> =
            exchange.candidates.iter().map(String::as_str).filter(|other| *other != exchange.reply).collect();
        if others.is_empty() {
            return Ok(None);
        }
        let mut rng = ChaCha8Rng::seed_from_u64(dialogue.line as u64);
        rng.set_stream(index as u64);
        others.shuffle(&mut rng);
        let candidates = std::iter::once(exchange.reply.as_str()).chain(others).take(self.choices);
        self.after_history(dialogue, index, exchange, &candidates.collect::<Vec<_>>()).map(Some)
    }

    /// The candidates of one exchange (from 0) after everything up to and including the partner's words. The history
    /// is cut so that it and the longest candidate fit `n_positions`.
    ///
    /// # Errors
    /// [`EncodeError::NoCandidates`] where there is no such exchange or it has no candidates; [`EncodeError::NoRoom`] as
    /// [`Encoder::examples`]; where the tokenizer fails.
    pub fn ranking(&self, dialogue: &Dialogue, exchange: usize) -> Result<Ranking, EncodeError> {
        let asked = candidates_of(dialogue, exchange)?;
        let candidates: Vec<&str> = asked.candidates.iter().map(String::as_str).collect();
        self.after_history(dialogue, exchange, asked, &candidates)
    }

    /// The candidates of one exchange (from 0) at the beginning of a dialogue (for GPT-2, after a lone `<eot>`): what they are worth
    /// without the dialogue and without persona text. Targets and candidates are those of [`Encoder::ranking`], in the same order.
    ///
    /// # Errors
    /// As [`Encoder::ranking`].
    pub fn unconditional(&self, dialogue: &Dialogue, exchange: usize) -> Result<Ranking, EncodeError> {
        let asked = candidates_of(dialogue, exchange)?;
        let candidates: Vec<&str> = asked.candidates.iter().map(String::as_str).collect();
        let (persona, _) = self.begin(&dialogue.persona)?;
        // What the persona text leaves no room for there is cut here too: the same tokens are compared.
        let candidates = self.candidates(&candidates, persona.len() + self.form.reply.before.len())?;
        let cut = candidates.cut;
        let mut alone = [&self.form.begin[..], &self.form.reply.before].concat();
        if alone.is_empty() {
            alone.push(self.end);
        }
        Ok(self.branches(alone, candidates, cut))
    }

    fn after_history(
        &self,
        dialogue: &Dialogue,
        index: usize,
        exchange: &Exchange,
        candidates: &[&str],
    ) -> Result<Ranking, EncodeError> {
        let (mut row, persona_cut) = self.begin(&dialogue.persona)?;
        let asked = &self.form.reply.before;
        let candidates = self.candidates(candidates, row.len() + asked.len())?;
        let history = dialogue.exchanges.iter().take(index).flat_map(|past| [&past.partner, &past.reply]);
        let utterances = self.utterances(&history.chain([&exchange.partner]).collect::<Vec<_>>())?;
        let (kept, cut) = self.fit(utterances, self.n_positions - row.len() - asked.len() - candidates.longest);
        row.extend(kept.into_iter().flat_map(|utterance| utterance.ids));
        row.extend(asked);
        let cut = cut + persona_cut + candidates.cut;
        Ok(self.branches(row, candidates, cut))
    }

    /// Encodes candidates so that each fits behind `before` tokens and one of the history.
    fn candidates(&self, texts: &[&str], before: usize) -> Result<Candidates, EncodeError> {
        // Without choices the closing token takes no position.
        let unplaced = usize::from(self.choices == 0);
        let room = self.n_positions.saturating_sub(before + 1);
        if room + unplaced == 0 || before >= self.n_positions {
            return Err(EncodeError::NoRoom {
                n_positions: self.n_positions,
                wanted: "a history and a candidate behind the persona's sentences".into(),
            });
        }
        let mut candidates = Candidates { ids: Vec::with_capacity(texts.len()), longest: 0, cut: 0 };
        for text in texts {
            let mut ids = self.text(text)?;
            ids.push(self.end);
            let excess = (ids.len() - unplaced).saturating_sub(room);
            ids.drain(..excess);
            candidates.cut += usize::from(excess > 0);
            candidates.longest = candidates.longest.max(ids.len() - unplaced);
            candidates.ids.push(ids);
        }
        Ok(candidates)
    }

    /// The row of a history, which is not empty, and candidates after it.
    fn branches(&self, history: Vec<u32>, candidates: Candidates, cut: usize) -> Ranking {
        let length = history.len() as u32;
        let mut ranking = Ranking {
            positions: (0..length).collect(),
            branch: vec![0; history.len()],
            ids: history,
            candidates: candidates.ids.len(),
            cut,
            ..Ranking::default()
        };
        for (owner, ids) in (0..).zip(candidates.ids) {
            let mut seen_from = length - 1;
            for (offset, &id) in (0..).zip(&ids) {
                ranking.rows.push(seen_from);
                ranking.targets.push(id);
                ranking.candidate.push(owner);
                let is_end = (offset as usize) + 1 == ids.len();
                if is_end && self.choices == 0 {
                    continue;
                }
                seen_from = ranking.ids.len() as u32;
                if is_end {
                    ranking.ends.push(seen_from);
                }
                ranking.ids.push(id);
                ranking.positions.push(length + offset);
                ranking.branch.push(owner + 1);
            }
        }
        ranking
    }
}

fn candidates_of(dialogue: &Dialogue, exchange: usize) -> Result<&Exchange, EncodeError> {
    let asked = dialogue.exchanges.get(exchange).filter(|asked| !asked.candidates.is_empty());
    asked.ok_or(EncodeError::NoCandidates { exchange, line: dialogue.line })
}
