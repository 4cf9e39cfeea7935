//! A version of a persona as it is shown.

use std::fmt;

use bytesize::ByteSize;
use marionette_models::LearningRate;
use marionette_models::terminal::printable_line;
use marionette_runtime::persona_name::PersonaName;
use marionette_runtime::personas::{Record, Version};
use serde::Serialize;

/// A version, for standard output: a JSON object, or lines.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Told {
    pub(super) persona: String,
    pub(super) version: usize,
    pub(super) is_current: bool,
    pub(super) created: Option<String>,
    pub(super) base_sha256: String,
    pub(super) keeps_dialogues: bool,
    pub(super) bytes: u64,
    pub(super) record: Record,
}

impl Told {
    pub(super) fn new(name: &PersonaName, version: Version) -> Self {
        let Version { number, is_current, created, base_sha256, record, keeps_dialogues, bytes } = version;
        let persona = name.to_string();
        Self { persona, version: number, is_current, created, base_sha256, keeps_dialogues, bytes, record }
    }

    /// The perplexities before and after: on held-out dialogues, else on the first that were learned from.
    fn perplexities(&self) -> (String, &'static str) {
        let Record { held_out, losses, loss_after, .. } = &self.record;
        let (before, after, on) = match held_out {
            Some(held_out) => (held_out.before, held_out.after, "held out"),
            None => (losses.first().copied().unwrap_or(f32::NAN), *loss_after, "learned"),
        };
        (format!("{:.2} -> {:.2}", before.exp(), after.exp()), on)
    }

    /// The facts of it, each with its name.
    pub(super) fn facts(&self) -> Vec<(&'static str, String)> {
        let Record { dialogues, dialogues_sha256, persona, learning_rate, losses, held_out, from, seconds, .. } =
            &self.record;
        let rate = match learning_rate {
            LearningRate::Shared(rate) => rate.to_string(),
            LearningRate::PerTensor(rates) => {
                let low = rates.iter().copied().fold(f32::INFINITY, f32::min);
                let high = rates.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                format!("{low} to {high}, one a tensor")
            }
        };
        let (perplexity, on) = self.perplexities();
        let short = |digest: &str| digest.chars().take(12).collect::<String>();
        let held_out = held_out.map_or(0, |held_out| held_out.dialogues);
        let kept = if self.keeps_dialogues { "kept with it" } else { "not kept" };
        let unknown = || "unknown".to_owned();
        vec![
            ("version", format!("{}{}", self.version, if self.is_current { ", the current one" } else { "" })),
            ("saved", self.created.clone().unwrap_or_else(unknown)),
            ("went on from", from.clone().unwrap_or_else(|| "the bundle's start".to_owned())),
            ("base", short(&self.base_sha256)),
            ("dialogues", format!("{dialogues} learned, {held_out} held out, {kept}")),
            ("their digest", short(dialogues_sha256)),
            ("persona", persona.join(" ")),
            ("steps", losses.len().to_string()),
            ("learning rate", rate),
            ("perplexity", format!("{perplexity} ({on})")),
            ("took", seconds.map_or_else(unknown, |seconds| format!("{seconds:.1} s"))),
            ("size", ByteSize(self.bytes).to_string()),
        ]
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.persona)?;
        for (name, fact) in self.facts().iter().filter(|(_, fact)| !fact.is_empty()) {
            writeln!(f, "  {name:<14}{}", printable_line(fact))?;
        }
        Ok(())
    }
}

/// A table of versions, a line each; `first` is what stands in front.
pub(super) fn versions(all: &[Told], first: impl Fn(&Told) -> String) -> String {
    let mut rows = vec![["", "saved", "dialogues", "steps", "perplexity", "", "from", "size"].map(str::to_owned)];
    for told in all {
        let (perplexity, on) = told.perplexities();
        let saved = told.created.as_deref().unwrap_or("unknown").replace('T', " ").replace('Z', "");
        rows.push([
            first(told),
            saved,
            told.record.dialogues.to_string(),
            told.record.losses.len().to_string(),
            perplexity,
            on.to_owned(),
            told.record.from.clone().unwrap_or_default(),
            ByteSize(told.bytes).to_string(),
        ]);
    }
    let widths: Vec<usize> = (0..8)
        .map(|column| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0))
        .collect();
    let mut lines = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width - cell.chars().count() + 2));
        }
        lines.push_str(&printable_line(line.trim_end()));
        lines.push('\n');
    }
    lines
}
