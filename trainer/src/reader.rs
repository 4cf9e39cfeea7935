//! A decoder that need not read twice: the replies to a dialogue, their candidates and the dialogue itself begin with the same
//! tokens.

use marionette_dialogues::Ranking;
use tch::{Kind, Tensor, no_grad};

use crate::decoder::{Cache, Decoder, Layout};
use crate::error::Result;

/// A decoder and what it has read.
pub struct Reader {
    decoder: Decoder,
    /// All of branch 0, at positions from 0.
    read: Vec<u32>,
    /// Keys and values of it.
    cache: Cache,
}

impl Reader {
    /// A reader that has read nothing.
    pub fn new(decoder: Decoder) -> Self {
        Self { decoder, read: Vec::new(), cache: Cache::default() }
    }

    /// The decoder.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    fn tensor(&self, values: impl IntoIterator<Item = u32>) -> Result<Tensor> {
        let values: Vec<i64> = values.into_iter().map(i64::from).collect();
        Ok(Tensor::f_from_slice(&values)?.f_to_device(self.decoder.device())?)
    }

    /// Logits [N, V] at the tokens `rows` of a text, and the keys and values of the text. Positions are counted from 0 and all
    /// is of branch 0, where a ranking does not say otherwise.
    fn logits(&mut self, ids: &[u32], rows: &[u32], ranking: Option<&Ranking>) -> Result<(Tensor, Cache)> {
        let in_history = |ranking: &Ranking| ranking.branch.iter().take_while(|branch| **branch == 0).count();
        let history = ids.iter().take(ranking.map_or(ids.len(), in_history));
        let same = self.read.iter().zip(history.clone()).take_while(|(one, other)| one == other).count();
        // What something is asked of is read in any case.
        let known = same.min(rows.iter().min().map_or(same, |&row| row as usize));
        let rest =
            |values: &[u32]| -> Result<Tensor> { Ok(self.tensor(values.iter().skip(known).copied())?.f_unsqueeze(0)?) };
        let positions = ranking.map(|ranking| rest(&ranking.positions)).transpose()?;
        let branch = ranking.map(|ranking| rest(&ranking.branch)).transpose()?;
        let layout = Layout { positions: positions.as_ref(), branch: branch.as_ref(), ..Layout::default() };
        let rows = self.tensor(rows.iter().map(|row| row - known as u32))?;
        let mut cache = self.cache.first(known as i64)?;
        let logits = no_grad(|| self.decoder.forward_after(&mut cache, &rest(ids)?, layout, &rows))?;
        // What was read before stays where it goes on beyond this text.
        if same < history.len() {
            self.cache = cache.first(history.len() as i64)?;
            self.read = history.copied().collect();
        }
        Ok((logits, cache))
    }

    /// The log-probability of each of N targets, one after each of the tokens `rows` of a text, N > 0; [N, 1], in nats. Positions
    /// are counted from 0 and all is of branch 0, where a ranking does not say otherwise.
    ///
    /// # Errors
    /// What libtorch says, for a token or position beyond the embedding too.
    pub fn log_probs(&mut self, ids: &[u32], rows: &[u32], targets: &[u32], of: Option<&Ranking>) -> Result<Tensor> {
        let (logits, _) = self.logits(ids, rows, of)?;
        let targets = self.tensor(targets.iter().copied())?.f_unsqueeze(1)?;
        Ok(logits.f_log_softmax(-1, Kind::Float)?.f_gather(1, &targets, false)?)
    }

    /// At most `max_new` tokens after each prompt, as far as the context reaches: the most likely one each time, up to but without
    /// the token `end`. Prompts that others begin with are gone on from together.
    ///
    /// # Errors
    /// As [`Reader::log_probs`].
    pub fn replies<P: AsRef<[u32]>>(&mut self, prompts: &[P], end: u32, max_new: usize) -> Result<Vec<Vec<u32>>> {
        let n_positions = self.decoder.config().n_positions;
        let has_room = |prompt: &[u32]| max_new > 0 && !prompt.is_empty() && prompt.len() < n_positions;
        let mut waiting: Vec<(usize, &[u32])> = prompts.iter().map(AsRef::as_ref).enumerate().collect();
        waiting.retain(|(_, prompt)| has_room(prompt));
        let mut replies = vec![Vec::new(); prompts.len()];
        while let Some(&(_, longest)) = waiting.iter().max_by_key(|(_, prompt)| prompt.len()) {
            let (together, others): (Vec<_>, Vec<_>) =
                waiting.into_iter().partition(|(_, prompt)| longest.starts_with(prompt));
            let lengths: Vec<usize> = together.iter().map(|(_, prompt)| prompt.len()).collect();
            let found = self.replies_to_parts(longest, &lengths, end, max_new)?;
            together.into_iter().zip(found).for_each(|((index, _), reply)| replies[index] = reply);
            waiting = others;
        }
        Ok(replies)
    }

    /// The same after the first so many tokens of a text, for each of B numbers.
    fn replies_to_parts(&mut self, text: &[u32], lengths: &[usize], end: u32, max_new: usize) -> Result<Vec<Vec<u32>>> {
        let n_positions = self.decoder.config().n_positions;
        let room = |length: usize| max_new.min(n_positions.saturating_sub(length));
        let mut replies: Vec<Vec<u32>> = vec![Vec::new(); lengths.len()];
        let mut room: Vec<usize> = lengths.iter().map(|&length| room(length)).collect();
        let last: Vec<u32> = lengths.iter().map(|&length| length as u32 - 1).collect();
        let (mut logits, cache) = self.logits(text, &last, None)?;
        let mut cache = cache.for_rows(lengths.len() as i64)?;
        let mut positions = self.tensor(last)?.f_unsqueeze(1)?;
        let sees = self.tensor(0..text.len() as u32)?.f_le_tensor(&positions)?;
        loop {
            let next = Vec::<i64>::try_from(logits.f_argmax(-1, false)?)?;
            for ((reply, room), &next) in replies.iter_mut().zip(&mut room).zip(&next) {
                let goes_on = *room > reply.len() && next != i64::from(end);
                match goes_on {
                    true => reply.push(next as u32),
                    false => *room = reply.len(),
                }
            }
            if replies.iter().zip(&room).all(|(reply, &room)| reply.len() >= room) {
                return Ok(replies);
            }
            let ids = Tensor::f_from_slice(&next)?.f_unsqueeze(1)?.f_to_device(self.decoder.device())?;
            // A reply that has ended is computed with the others, at a position that there is.
            positions = positions.f_add_scalar(1)?.f_clamp_max(n_positions as i64 - 1)?;
            let layout = Layout { positions: Some(&positions), branch: None, sees: Some(&sees) };
            logits = no_grad(|| self.decoder.step(&ids, layout, &mut cache))?;
        }
    }
}

#[cfg(test)]
mod tests {
    use marionette_models::params::{self, Init, TensorSpec};
    use marionette_models::{Gpt2Shape, ModelConfig, init};
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;
    use tch::Device;

    use super::*;
    use crate::decoder::Parts;
    use crate::tensors::{self, NamedTensors};

    fn decoder() -> Decoder {
        let config: ModelConfig =
            Gpt2Shape { vocab_size: 30, n_positions: 20, n_embd: 8, n_layer: 2, n_head: 2 }.into();
        let table = params::base_table(&config);
        let spread: Vec<TensorSpec> =
            table.into_iter().map(|spec| TensorSpec { init: Init::Normal { std: 0.3 }, ..spec }).collect();
        let host = init::initialise(&spread, &mut ChaCha8Rng::seed_from_u64(4));
        let named = |(name, tensor)| (name, tensors::to_torch(&tensor, Kind::Double, Device::Cpu).unwrap());
        let named: NamedTensors = host.into_iter().map(named).collect();
        Decoder::new(&config, Parts::default(), &named).unwrap()
    }

    /// What each text alone makes of its targets.
    fn alone(decoder: &Decoder, ids: &[u32], rows: &[u32], targets: &[u32], of: Option<&Ranking>) -> Tensor {
        let tensor = |values: &[u32]| Tensor::from_slice(&values.iter().map(|&id| i64::from(id)).collect::<Vec<_>>());
        let row = |values: &[u32]| tensor(values).unsqueeze(0);
        let (positions, branch) = (of.map(|ranking| row(&ranking.positions)), of.map(|ranking| row(&ranking.branch)));
        let layout = Layout { positions: positions.as_ref(), branch: branch.as_ref(), ..Layout::default() };
        let logits = decoder.forward(&row(ids), layout, Some(&tensor(rows))).unwrap();
        logits.log_softmax(-1, Kind::Float).gather(1, &tensor(targets).unsqueeze(1), false)
    }

    #[test]
    fn what_was_read_before_changes_nothing() {
        let (mut reader, decoder) = (Reader::new(decoder()), decoder());
        let dialogue = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5];
        let ranking = |history: &[u32]| {
            let length = history.len() as u32;
            let branches = [(length, 1, 11), (length + 1, 1, 12), (length, 2, 13)];
            Ranking {
                ids: history.iter().copied().chain(branches.map(|(_, _, id)| id)).collect(),
                positions: (0..length).chain(branches.map(|(position, _, _)| position)).collect(),
                branch: vec![0; history.len()].into_iter().chain(branches.map(|(_, branch, _)| branch)).collect(),
                rows: vec![length - 1, length, length + 1, length - 1, length + 2],
                targets: vec![11, 12, 0, 13, 0],
                candidate: vec![0, 0, 0, 1, 1],
                ends: Vec::new(),
                candidates: 2,
                cut: 0,
            }
        };
        let mut ask = |ids: &[u32], rows: &[u32], targets: &[u32], of: Option<&Ranking>| {
            let found = reader.log_probs(ids, rows, targets, of).unwrap();
            let error = (found - alone(&decoder, ids, rows, targets, of)).abs().max().double_value(&[]);
            assert!(error < 1e-6, "{ids:?}: {error}");
            reader.read.len()
        };
        assert_eq!(ask(&dialogue, &[2, 6, 10], &[1, 2, 8], None), 11);
        // Candidates after parts of the dialogue leave it be, and others after a text that begins otherwise do not.
        let histories: [(&[u32], usize); 6] = [
            (&dialogue[..4], 11),
            (&dialogue[..8], 11),
            (&dialogue, 11),
            (&[3, 1, 7], 3),
            (&[3, 1, 7, 2], 4),
            (&[8], 1),
        ];
        for (history, read) in histories {
            let ranking = ranking(history);
            assert_eq!(ask(&ranking.ids, &ranking.rows, &ranking.targets, Some(&ranking)), read, "{history:?}");
        }
        assert_eq!(ask(&[8], &[0], &[2], None), 1);
    }

    #[test]
    fn replies_are_the_most_likely_tokens_and_end_at_their_end() {
        let (mut reader, decoder) = (Reader::new(decoder()), decoder());
        let alone = |prompt: &[u32], end: u32, max_new: usize| {
            let mut ids: Vec<i64> = prompt.iter().map(|&id| i64::from(id)).collect();
            while ids.len() < 20.min(prompt.len() + max_new) {
                let rows = Tensor::from_slice(&[ids.len() as i64 - 1]);
                let row = Tensor::from_slice(&ids).unsqueeze(0);
                let next = decoder.forward(&row, Layout::default(), Some(&rows)).unwrap().argmax(-1, false);
                match next.int64_value(&[0]) {
                    next if next == i64::from(end) => break,
                    next => ids.push(next),
                }
            }
            ids[prompt.len()..].iter().map(|&id| id as u32).collect::<Vec<_>>()
        };
        let long: Vec<u32> = (0..17).map(|place| place * 7 % 30).collect();
        // Some of them begin with others, one with nothing that was read, one has room for three tokens, one for none.
        let prompts: Vec<&[u32]> = vec![&[7, 2, 9], &long[..4], &long[..9], &long, &long[..1], &[7, 2], &[], &[5; 20]];
        let never = u32::MAX;
        let end = alone(&long[..9], never, 6)[3];
        for (end, max_new) in [(never, 6), (end, 6), (never, 1), (end, 0)] {
            let found = reader.replies(&prompts, end, max_new).unwrap();
            for (prompt, found) in prompts.iter().zip(found) {
                assert_eq!(
                    found,
                    if prompt.is_empty() { Vec::new() } else { alone(prompt, end, max_new) },
                    "{prompt:?}"
                );
            }
        }
    }
}
