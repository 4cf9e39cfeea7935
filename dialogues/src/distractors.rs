//! Candidates for Hits@1 where the data has none: replies of other personas, drawn by chance, as Persona-Chat's own were.

use std::collections::{HashMap, HashSet};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::metrics::normalise;
use crate::tasks::Task;

/// How many are drawn beside the reply (Zhang et al. 2018).
pub const DISTRACTORS: usize = 19;

/// The seed of the draws: the same for every evaluation, so that evaluations can be compared.
const SEED: u64 = 1;

/// Who says a reply.
enum Owner {
    One(usize),
    Several,
}

/// The first `count` personas with candidates for each reply that is learned: 19 different replies of other personas, none of
/// which says the same in normalised words, and the reply itself last. `None` where a reply has candidates already, or the other personas
/// do not have so many replies.
pub(crate) fn with_distractors(tasks: &[Task], count: usize) -> Option<Vec<Task>> {
    let mut pool: Vec<(String, Owner)> = Vec::new();
    // By what they say, with their place in the pool.
    let mut places: HashMap<String, usize> = HashMap::new();
    for (index, task) in tasks.iter().enumerate() {
        let exchanges = task.dialogues.iter().flat_map(|dialogue| &dialogue.exchanges);
        for exchange in exchanges.filter(|exchange| exchange.learned) {
            if !exchange.candidates.is_empty() {
                return None;
            }
            let place = *places.entry(normalise(&exchange.reply)).or_insert(pool.len());
            match pool.get_mut(place) {
                None => pool.push((exchange.reply.clone(), Owner::One(index))),
                Some((_, owner)) => {
                    if !matches!(owner, Owner::One(one) if *one == index) {
                        *owner = Owner::Several;
                    }
                }
            }
        }
    }
    let mut drawn: Vec<Task> = tasks.iter().take(count).cloned().collect();
    for (index, task) in drawn.iter_mut().enumerate() {
        let is_other = |(_, owner): &&(String, Owner)| !matches!(owner, Owner::One(one) if *one == index);
        // One of them may say the same as the reply.
        if pool.iter().filter(is_other).count() <= DISTRACTORS {
            return None;
        }
        for (dialogue, number) in task.dialogues.iter_mut().zip(0_u64..) {
            let exchanges = dialogue.exchanges.iter_mut().zip(0_u64..);
            for (exchange, place) in exchanges.filter(|(exchange, _)| exchange.learned) {
                let mut rng = ChaCha8Rng::seed_from_u64(SEED);
                rng.set_stream((index as u64) << 40 | number << 20 | place);
                let mut taken: HashSet<usize> = places.get(&normalise(&exchange.reply)).copied().into_iter().collect();
                while exchange.candidates.len() < DISTRACTORS {
                    let choice = rng.random_range(0..pool.len());
                    let Some((reply, _)) = pool.get(choice).filter(is_other) else { continue };
                    if taken.insert(choice) {
                        exchange.candidates.push(reply.clone());
                    }
                }
                exchange.candidates.push(exchange.reply.clone());
            }
        }
    }
    Some(drawn)
}
