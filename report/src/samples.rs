//! The same contexts answered by every method.

use std::collections::BTreeSet;

use crate::comparison::Sample;
use crate::text::{DASH, markdown as escape};
use crate::view::View;

/// One context, its answer in the data, and what the methods say.
#[derive(Debug)]
pub struct Context<'a> {
    /// Persona, dialogue so far and gold reply are those of this sample.
    pub sample: &'a Sample,
    /// A method's name and its replies at each K of [`Contexts::ks`].
    pub replies: Vec<(&'a str, Vec<Option<&'a str>>)>,
}

/// All contexts, in the order in which the first method that has them gives them.
#[derive(Debug)]
pub struct Contexts<'a> {
    /// The smallest K and the largest of any sample.
    pub ks: Vec<usize>,
    /// Each context once.
    pub contexts: Vec<Context<'a>>,
}

/// Puts the methods' samples side by side. Of several seeds the first of the comparison that replied is shown, and of
/// several numbers of epochs the largest.
pub fn contexts<'a>(view: &'a View<'_>) -> Contexts<'a> {
    let all = || view.results().flat_map(|(_, result)| &result.samples);
    let ks: BTreeSet<usize> = all().map(|sample| sample.k).collect();
    let mut ks: Vec<usize> = [ks.first(), ks.last()].into_iter().flatten().copied().collect();
    ks.dedup();
    let mut seen = BTreeSet::new();
    let first: Vec<&Sample> = all().filter(|sample| seen.insert(key(sample))).collect();
    let order = |seed: u64| view.comparison.seeds.iter().position(|s| *s == seed).unwrap_or(usize::MAX);
    let contexts = first
        .into_iter()
        .map(|sample| {
            let replies = view.results().map(|(row, result)| {
                let same = || result.samples.iter().filter(|other| key(other) == key(sample));
                let at = |k: usize| {
                    let given = same().filter(|other| other.k == k);
                    let best = given.min_by_key(|o| (order(o.seed), std::cmp::Reverse(o.epochs.unwrap_or(usize::MAX))));
                    best.map(|other| other.reply.as_str())
                };
                (row.name.as_str(), ks.iter().map(|k| at(*k)).collect::<Vec<_>>())
            });
            let replies = replies.filter(|(_, replies)| replies.iter().any(Option::is_some)).collect();
            Context { sample, replies }
        })
        .collect();
    Contexts { ks, contexts }
}

fn key(sample: &Sample) -> (&[String], &[String], &str) {
    (&sample.persona, &sample.context, &sample.gold)
}

/// Who says each utterance: they take turns, and the last is the partner's.
pub fn turns(context: &[String]) -> impl Iterator<Item = (bool, &str)> {
    context.iter().enumerate().map(|(at, text)| ((context.len() - at).is_multiple_of(2), text.as_str()))
}

/// `samples.md`.
pub fn markdown(view: &View<'_>) -> String {
    let Contexts { ks, contexts } = contexts(view);
    let mut out = format!("# {}: samples\n", escape(&view.comparison.title));
    if contexts.is_empty() {
        out.push_str("\nNo replies were generated.\n");
    }
    for (at, Context { sample, replies }) in contexts.iter().enumerate() {
        out.push_str(&format!("\n## Context {}\n\n", at + 1));
        if !sample.persona.is_empty() {
            out.push_str("Persona:\n\n");
            for sentence in &sample.persona {
                out.push_str(&format!("- {}\n", escape(sentence)));
            }
            out.push('\n');
        }
        for (persona, text) in turns(&sample.context) {
            out.push_str(&format!("> **{}** {}  \n", if persona { "Persona:" } else { "Partner:" }, escape(text)));
        }
        out.push_str(&format!("> **Reply in the data:** {}\n\n| Method |", escape(&sample.gold)));
        for k in &ks {
            out.push_str(&format!(" K = {k} |"));
        }
        out.push_str(&format!("\n|---|{}\n", "---|".repeat(ks.len())));
        for (name, replies) in replies {
            out.push_str(&format!("| {} |", escape(name)));
            for reply in replies {
                out.push_str(&format!(" {} |", reply.map_or_else(|| DASH.to_owned(), escape)));
            }
            out.push('\n');
        }
    }
    out
}
