//! What two versions differ in: their facts, their dialogues, and how far their adapters lie apart.

use std::fmt;

use marionette_dialogues::Dialogue;
use marionette_models::terminal::printable_line;
use marionette_runtime::persona_name::PersonaName;
use marionette_runtime::personas::{PersonaError, Store, Version};
use serde::Serialize;

use super::told::Told;

/// Two versions beside each other.
#[derive(Debug, Serialize)]
pub(super) struct Differences {
    one: Told,
    other: Told,
    /// How many dialogues both have, and each alone; where both keep them.
    dialogues: Option<Shared>,
    /// Where both belong to one base.
    adapters: Option<Apart>,
}

#[derive(Debug, Serialize)]
struct Shared {
    both: usize,
    one_alone: usize,
    other_alone: usize,
}

/// How far two sets of adapters lie apart, all their values taken as one vector.
#[derive(Debug, Serialize)]
struct Apart {
    /// ‖a − b‖ / ‖a‖.
    relative: f64,
    /// The tensors of which it is largest, with theirs.
    most: Vec<(String, f64)>,
}

impl Differences {
    pub(super) fn between(
        store: &Store,
        (one, first): (PersonaName, Version),
        (other, second): (PersonaName, Version),
    ) -> Result<Self, PersonaError> {
        let said = |name: &PersonaName, version: &Version| store.dialogues(name, Some(version.number));
        let dialogues = match first.keeps_dialogues && second.keeps_dialogues {
            true => Some(Shared::of(&said(&one, &first)?, &said(&other, &second)?)),
            false => None,
        };
        let adapters = match first.base_sha256 == second.base_sha256 {
            true => Some(Apart::of(store, (&one, first.number), (&other, second.number))?),
            false => None,
        };
        Ok(Self { one: Told::new(&one, first), other: Told::new(&other, second), dialogues, adapters })
    }
}

impl Shared {
    fn of(one: &[Dialogue], other: &[Dialogue]) -> Self {
        let both = one.iter().filter(|dialogue| dialogue.is_among(other)).count();
        let other_alone = other.iter().filter(|dialogue| !dialogue.is_among(one)).count();
        Self { both, one_alone: one.len() - both, other_alone }
    }
}

impl Apart {
    /// How many tensors are named.
    const NAMED: usize = 3;

    fn of(store: &Store, one: (&PersonaName, usize), other: (&PersonaName, usize)) -> Result<Self, PersonaError> {
        let (one, other) = (store.tensors(one.0, Some(one.1))?, store.tensors(other.0, Some(other.1))?);
        let (mut apart, mut length, mut each) = (0.0, 0.0, Vec::new());
        for (name, tensor) in &one {
            let values = other.get(name).map(|tensor| tensor.values.as_slice()).unwrap_or_default();
            let pairs = tensor.values.iter().zip(values);
            let difference: f64 = pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum();
            let own: f64 = tensor.values.iter().map(|a| f64::from(*a).powi(2)).sum();
            apart += difference;
            length += own;
            each.push((name.clone(), ratio(difference, own)));
        }
        each.sort_by(|a, b| b.1.total_cmp(&a.1));
        each.truncate(Self::NAMED);
        Ok(Self { relative: ratio(apart, length), most: each })
    }
}

/// The root of a quotient of squares; of nothing by nothing none.
fn ratio(difference: f64, length: f64) -> f64 {
    if difference == 0.0 { 0.0 } else { (difference / length).sqrt() }
}

impl fmt::Display for Differences {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let title = |told: &Told| format!("{}@{}", told.persona, told.version);
        let mut rows = vec![(String::new(), title(&self.one), title(&self.other))];
        for ((name, one), (_, other)) in self.one.facts().into_iter().zip(self.other.facts()) {
            if one != other && name != "version" {
                rows.push((name.to_owned(), one, other));
            }
        }
        let width = rows.iter().map(|(_, one, _)| one.chars().count()).max().unwrap_or(0);
        for (name, one, other) in &rows {
            writeln!(f, "{}", printable_line(format!("{name:<14}{one:<width$}  {other}").trim_end()))?;
        }
        if let Some(Shared { both, one_alone, other_alone }) = &self.dialogues {
            writeln!(
                f,
                "{both} dialogues are in both, {one_alone} in the first alone, {other_alone} in the second alone"
            )?;
        }
        match &self.adapters {
            Some(Apart { relative, most }) => {
                writeln!(f, "the adapters lie apart by {:.2} % of the first one's length; most in", 100.0 * relative)?;
                for (name, relative) in most {
                    writeln!(f, "  {name}  {:.2} %", 100.0 * relative)?;
                }
            }
            None => writeln!(f, "they belong to different base models")?,
        }
        Ok(())
    }
}
