//! What was understood of dialogue files: counts, distributions, and what was left out.

use std::fmt;
use std::path::{Path, PathBuf};

use indicatif::HumanCount;
use serde::Serialize;

use crate::conversation::{Found, Speakers};
use crate::error::excerpt;
use crate::readers::{Format, LeftOut, Reading};
use crate::redact::Replaced;
use crate::tasks::{TaskError, group_by_persona};
use crate::{Dialogue, EncodeError, Encoder, Sequence};

/// What dialogue files hold, taken together as training and evaluation take them. `Display` prints it as text of at most
/// 100 columns.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// The files in the order given.
    pub files: Vec<FileSummary>,
    /// Dialogues of all files.
    pub dialogues: usize,
    /// The personas of the dialogues; nothing, where all are taken as one's.
    #[serde(flatten)]
    pub personas: Option<Personas>,
    /// Replies of the personas that are learned.
    pub replies: usize,
    /// Of these, in a dialogue.
    pub replies_per_dialogue: Option<Distribution>,
    /// White-space words of the replies.
    pub words: usize,
    /// Exchanges with candidates to rank.
    pub with_candidates: usize,
    /// The least and the most candidates of these.
    pub candidates: Option<[usize; 2]>,
    /// The dialogues as one model sees them, where an encoder was given.
    pub tokens: Option<Tokens>,
}

/// Whose dialogues they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
pub struct Personas {
    /// Dialogues without a persona sentence: they are of no persona.
    pub without_persona: usize,
    /// Personas with two dialogues or more, which are the tasks.
    pub personas: usize,
    /// Personas, and so dialogues, that are left out because they have one dialogue only.
    pub dropped_single: usize,
    /// The sentence that stands in every dialogue, which says nothing about who speaks.
    pub common: Option<String>,
    /// Dialogues a persona.
    pub dialogues_per_persona: Option<Distribution>,
    /// The persona with the most dialogues.
    pub largest: Option<Largest>,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileSummary {
    /// The file as it was named.
    pub path: PathBuf,
    /// What it is.
    pub format: Format,
    /// Its dialogues.
    pub dialogues: usize,
    /// Who speaks in it, where it is a chat of people with names.
    pub speakers: Option<Speakers>,
    /// What of it is in no dialogue.
    pub left_out: Vec<LeftOut>,
    /// What has a placeholder in its place.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub replaced: Vec<Replaced>,
}

/// The persona with the most dialogues: far more than the others have, it is likely several, joined by stock sentences.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Largest {
    /// Its dialogues.
    pub dialogues: usize,
    /// The sentences that most of them have, at most two, with how many have each.
    pub joined_by: Vec<(String, usize)>,
}

/// Dialogues as token ids.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Tokens {
    /// Tokens of all dialogues, each counted once.
    pub total: usize,
    /// Those that are targets: of the replies, and the `<eot>` after each.
    pub targets: usize,
    /// The context, in tokens.
    pub n_positions: usize,
    /// Dialogues that exceed it.
    pub exceeding: usize,
    /// The windows in which these are read.
    pub windows: usize,
    /// Tokens a dialogue.
    pub per_dialogue: Distribution,
}

/// How a whole number is distributed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Distribution {
    /// The least.
    pub least: usize,
    /// The median, the lower of the middle two.
    pub median: usize,
    /// The most.
    pub most: usize,
    /// A histogram, without gaps.
    pub bins: Vec<Bin>,
}

/// One bar of a histogram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Bin {
    /// The first value that it counts.
    pub from: usize,
    /// The last one.
    pub to: usize,
    /// How often one of them occurs.
    pub count: usize,
}

impl FileSummary {
    /// Who speaks, what was left out, and what was replaced, a line each.
    pub fn notes(&self) -> impl Iterator<Item = String> {
        let speakers = self.speakers.iter().flat_map(|speakers| {
            let lines = speakers.to_string();
            lines.lines().map(|line| line.trim().to_owned()).collect::<Vec<_>>()
        });
        let left_out =
            self.left_out.iter().map(|LeftOut { what, count }| format!("{} left out: {what}", grouped(*count)));
        let replaced = self.replaced.iter().flat_map(|Replaced { what, count, texts }| {
            let first = format!("{} replaced by {}: {what}", grouped(*count), what.placeholder());
            let texts = texts.iter().map(|(text, times)| format!("  {text:?} ({})", grouped(*times)));
            std::iter::once(first).chain(texts)
        });
        speakers.chain(left_out).chain(replaced)
    }
}

/// Counts dialogues, one after the other.
#[derive(Default)]
pub struct Counts<'a> {
    encoder: Option<&'a Encoder>,
    /// The replies of each dialogue.
    replies: Vec<usize>,
    words: usize,
    with_candidates: usize,
    candidates: Option<[usize; 2]>,
    lengths: Vec<usize>,
    targets: usize,
    exceeding: usize,
    windows: usize,
}

impl<'a> Counts<'a> {
    /// Nothing yet. `encoder` is what the tokens are counted with.
    pub fn new(encoder: Option<&'a Encoder>) -> Self {
        Self { encoder, ..Self::default() }
    }

    /// Counts one more.
    ///
    /// # Errors
    /// The tokenizer fails.
    pub fn see(&mut self, dialogue: &Dialogue) -> Result<(), EncodeError> {
        self.replies.push(dialogue.exchanges.iter().filter(|exchange| exchange.learned).count());
        for exchange in dialogue.exchanges.iter().filter(|exchange| exchange.learned) {
            self.words += exchange.reply.split_whitespace().count();
            let count = exchange.candidates.len();
            if count > 0 {
                self.with_candidates += 1;
                let [least, most] = self.candidates.unwrap_or([count, count]);
                self.candidates = Some([least.min(count), most.max(count)]);
            }
        }
        let Some(encoder) = self.encoder else { return Ok(()) };
        let of_dialogue = encoder.windows(dialogue)?;
        self.lengths.push(of_dialogue.iter().map(|window| window.ids.len() - window.again).sum());
        self.targets += of_dialogue.iter().map(Sequence::targets).sum::<usize>();
        if of_dialogue.len() > 1 {
            self.exceeding += 1;
            self.windows += of_dialogue.len();
        }
        Ok(())
    }

    /// What there was, in these files; all of one persona, or of these.
    pub fn summary(self, files: Vec<FileSummary>, personas: Option<Personas>) -> Summary {
        let Self { encoder, replies, words, with_candidates, candidates, lengths, targets, exceeding, windows } = self;
        let total = lengths.iter().sum();
        let tokens = encoder.zip(Distribution::of(lengths)).map(|(encoder, per_dialogue)| Tokens {
            total,
            targets,
            n_positions: encoder.n_positions(),
            exceeding,
            windows,
            per_dialogue,
        });
        Summary {
            files,
            dialogues: replies.len(),
            personas,
            replies: replies.iter().sum(),
            replies_per_dialogue: Distribution::of(replies),
            words,
            with_candidates,
            candidates,
            tokens,
        }
    }
}

impl Summary {
    /// Counts what was read of each file. `encoder` is what the tokens are counted with.
    ///
    /// # Errors
    /// The tokenizer fails.
    pub fn of<P: AsRef<Path>>(
        readings: impl IntoIterator<Item = (P, Reading)>,
        encoder: Option<&Encoder>,
    ) -> Result<Self, EncodeError> {
        let (mut files, mut dialogues) = (Vec::new(), Vec::<Dialogue>::new());
        for (path, reading) in readings {
            let (file, more) = reading.into_parts(path.as_ref());
            files.push(file);
            dialogues.extend(more);
        }
        let mut counts = Counts::new(encoder);
        dialogues.iter().try_for_each(|dialogue| counts.see(dialogue))?;
        Ok(counts.summary(files, Some(Personas::of(dialogues))))
    }
}

impl Personas {
    fn of(mut dialogues: Vec<Dialogue>) -> Self {
        let all = dialogues.len();
        dialogues.retain(|dialogue| !dialogue.persona.is_empty());
        let mut personas = Self { without_persona: all - dialogues.len(), ..Self::default() };
        match group_by_persona(dialogues) {
            Ok(grouping) => {
                personas.personas = grouping.tasks.len();
                personas.dropped_single = grouping.dropped_single;
                personas.largest = grouping.largest().map(|(task, joined_by)| Largest {
                    dialogues: task.dialogues.len(),
                    joined_by: joined_by.into_iter().map(|(sentence, count)| (sentence.to_owned(), count)).collect(),
                });
                personas.common = grouping.common.clone();
                let sizes = grouping.tasks.iter().map(|task| task.dialogues.len()).collect();
                personas.dialogues_per_persona = Distribution::of(sizes);
            }
            Err(TaskError::NoTasks { dropped }) => personas.dropped_single = dropped,
            Err(_) => {}
        }
        personas
    }
}

impl Distribution {
    /// The most bars that a histogram has.
    const MOST_BINS: usize = 12;

    /// The distribution of values, whose histogram has bars of 1, 2, 5, 10, 20, … values, as many as keep it short;
    /// `None` without values.
    pub fn of(mut values: Vec<usize>) -> Option<Self> {
        values.sort_unstable();
        let (&least, &most) = values.first().zip(values.last())?;
        let median = *values.get((values.len() - 1) / 2)?;
        let widths =
            (0..).flat_map(|exponent| [1, 2, 5].map(|digit| 10_usize.saturating_pow(exponent).saturating_mul(digit)));
        let width = widths.into_iter().find(|width| most / width - least / width < Self::MOST_BINS)?;
        let first = least / width;
        let mut bins: Vec<Bin> = (first..=most / width)
            .map(|place| Bin { from: place * width, to: (place * width).saturating_add(width - 1), count: 0 })
            .collect();
        for value in &values {
            if let Some(bin) = bins.get_mut(value / width - first) {
                bin.count += 1;
            }
        }
        Some(Self { least, median, most, bins })
    }
}

impl fmt::Display for Distribution {
    /// The histogram, a line a bar.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LONGEST_BAR: usize = 60;
        let label = |bin: &Bin| {
            if bin.from == bin.to { grouped(bin.from) } else { format!("{}-{}", grouped(bin.from), grouped(bin.to)) }
        };
        let width = self.bins.iter().map(|bin| label(bin).len()).max().unwrap_or(0);
        let highest = self.bins.iter().map(|bin| bin.count).max().unwrap_or(0).max(1);
        for bin in &self.bins {
            // No bar is shorter than what is there: one value is seen beside a thousand.
            let bar = "█".repeat((bin.count * LONGEST_BAR).div_ceil(highest));
            let space = if bar.is_empty() { "" } else { " " };
            writeln!(out, "  {:>width$} │{bar}{space}{}", label(bin), grouped(bin.count))?;
        }
        Ok(())
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for file in &self.files {
            let plural = if file.dialogues == 1 { "" } else { "s" };
            let count = grouped(file.dialogues);
            writeln!(out, "{}: {}, {count} dialogue{plural}", file.path.display(), file.format)?;
            for note in file.notes() {
                writeln!(out, "  {note}")?;
            }
        }
        writeln!(out)?;
        let mut row = |name: &str, count: usize, text: &str| {
            writeln!(out, "{}", format!("{name:<12}{:>12}  {text}", grouped(count)).trim_end())
        };
        row("dialogues", self.dialogues, "")?;
        if let Some(Personas { personas, dropped_single, without_persona, .. }) = self.personas {
            let alone = grouped(dropped_single);
            let text = format!("with two dialogues or more; left out: {alone} with one dialogue only");
            row("personas", personas, &text)?;
            if without_persona > 0 {
                row("no persona", without_persona, "dialogues have no persona sentences, so they make no task")?;
            }
        }
        row("replies", self.replies, "")?;
        row("words", self.words, "of the replies")?;
        if let Some(tokens) = &self.tokens {
            let targets = grouped(tokens.targets);
            row("tokens", tokens.total, &format!("of the dialogues, {targets} of them of replies"))?;
        }
        let candidates = match self.candidates {
            Some([least, most]) if least == most => format!("exchanges with {least} candidates each"),
            Some([least, most]) => format!("exchanges with {least} to {most} candidates"),
            None => "exchanges with candidates: for Hits@1 they are drawn from other personas' replies".to_owned(),
        };
        if self.personas.is_some() || self.with_candidates > 0 {
            row("candidates", self.with_candidates, &candidates)?;
        }
        if let Some(common) = self.personas.as_ref().and_then(|personas| personas.common.as_ref()) {
            writeln!(out, "\n{} stands in every dialogue, so it says nothing about who speaks", excerpt(common))?;
        }
        if let Some(sizes) = self.personas.as_ref().and_then(|personas| personas.dialogues_per_persona.as_ref()) {
            let Distribution { least, median, most, .. } = sizes;
            writeln!(out, "\ndialogues a persona: {least} to {}, median {median}\n{sizes}", grouped(*most))?;
            if let Some(Largest { dialogues, joined_by }) =
                self.personas.as_ref().and_then(|personas| personas.largest.as_ref())
            {
                let by =
                    |(sentence, count): &(String, usize)| format!("{} (in {})", excerpt(sentence), grouped(*count));
                let by: Vec<String> = joined_by.iter().map(by).collect();
                writeln!(out, "the largest has {} dialogues, joined by {}", grouped(*dialogues), by.join(" and "))?;
            }
        }
        if let Some(replies) = self.replies_per_dialogue.as_ref().filter(|_| self.personas.is_none()) {
            let Distribution { least, median, most, .. } = replies;
            writeln!(
                out,
                "\nreplies a dialogue: {} to {}, median {}",
                grouped(*least),
                grouped(*most),
                grouped(*median)
            )?;
            write!(out, "{replies}")?;
        }
        if let Some(Tokens { n_positions, exceeding, windows, per_dialogue, .. }) = &self.tokens {
            let Distribution { least, median, most, .. } = per_dialogue;
            let (most, context, exceeding) = (grouped(*most), grouped(*n_positions), grouped(*exceeding));
            writeln!(out, "tokens a dialogue: {} to {most}, median {}", grouped(*least), grouped(*median))?;
            write!(out, "{per_dialogue}")?;
            write!(out, "longer than the context of {context} tokens: {exceeding}")?;
            match windows {
                0 => writeln!(out)?,
                windows => writeln!(out, ", read in {} windows", grouped(*windows))?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for Speakers {
    /// Who speaks, when, and who of them is learned.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 8;
        let Self { me, found, messages, span } = self;
        let name = |(name, count): &(String, usize)| format!("{} ({})", excerpt(name), grouped(*count));
        let mut names: Vec<String> = messages.iter().take(SHOWN).map(name).collect();
        if messages.len() > SHOWN {
            names.push(format!("{} others", messages.len() - SHOWN));
        }
        write!(out, "speak, with so many messages: {}", names.join(", "))?;
        let day = |seconds| jiff::Timestamp::from_second(seconds).map(|time| time.strftime("%F").to_string());
        if let Some((Ok(first), Ok(last))) = span.map(|[first, last]| (day(first), day(last))) {
            write!(out, "; from {first} to {last}")?;
        }
        let me: Vec<String> = me.iter().map(|name| excerpt(name)).collect();
        let why = match found {
            Found::Named => "",
            Found::Owner => ", whose export it is",
            Found::Answers => ", who answers first",
        };
        write!(out, "\n  learned is {}{why}", me.join(" and "))
    }
}

/// With a comma between groups of three digits.
fn grouped(number: usize) -> String {
    HumanCount(number as u64).to_string()
}
