//! What can be said: for each kind of fact or small talk its values, the questions about it and the answers.
//!
//! Templates hold `{x}` (the value), `{a}` (the value with its indefinite article), `{v}` (the value's verb phrase) and
//! `{pet}` (the kind of pet that the speaker has). Sentences carry no final mark: the speaker's manner adds it.

mod home;
mod leisure;
mod outdoors;
mod small_talk;
mod taste;
mod words;

pub(super) use words::{AND_YOU, ASK_BACK, CLOSERS, GREETINGS, LINKS, OPENERS, REACTIONS};

/// A kind of fact, or of small talk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Kind {
    Name,
    Work,
    Home,
    Family,
    Pet,
    PetName,
    Food,
    Drink,
    Color,
    Music,
    Movies,
    Hobby,
    Sport,
    Ride,
    Season,
    Travel,
    Fear,
    Mood,
    Weather,
    Weekend,
    Thanks,
    Goodbye,
}

impl Kind {
    /// The kinds of fact, which persona sentences may name.
    pub const FACTS: [Kind; 17] = [
        Kind::Name,
        Kind::Work,
        Kind::Home,
        Kind::Family,
        Kind::Pet,
        Kind::PetName,
        Kind::Food,
        Kind::Drink,
        Kind::Color,
        Kind::Music,
        Kind::Movies,
        Kind::Hobby,
        Kind::Sport,
        Kind::Ride,
        Kind::Season,
        Kind::Travel,
        Kind::Fear,
    ];

    /// The kinds of small talk: also a persona's own, but a matter of manner.
    pub const SMALL_TALK: [Kind; 5] = [Kind::Mood, Kind::Weather, Kind::Weekend, Kind::Thanks, Kind::Goodbye];

    /// How many kinds there are.
    pub(super) const COUNT: usize = Self::FACTS.len() + Self::SMALL_TALK.len();

    /// Every kind, in the order of its number.
    pub fn all() -> impl Iterator<Item = Kind> {
        Self::FACTS.into_iter().chain(Self::SMALL_TALK)
    }

    /// Whether persona sentences may name it.
    pub fn is_fact(self) -> bool {
        self <= Kind::Fear
    }

    /// Whether "and you ?" makes sense after an answer about it.
    pub(super) fn can_ask_back(self) -> bool {
        !matches!(self, Kind::PetName | Kind::Thanks | Kind::Goodbye)
    }

    pub(super) fn table(self) -> &'static Table {
        match self {
            Kind::Name => &home::NAME,
            Kind::Work => &home::WORK,
            Kind::Home => &home::HOME,
            Kind::Family => &home::FAMILY,
            Kind::Pet => &home::PET,
            Kind::PetName => &home::PET_NAME,
            Kind::Food => &taste::FOOD,
            Kind::Drink => &taste::DRINK,
            Kind::Color => &taste::COLOR,
            Kind::Music => &leisure::MUSIC,
            Kind::Movies => &leisure::MOVIES,
            Kind::Hobby => &leisure::HOBBY,
            Kind::Sport => &leisure::SPORT,
            Kind::Ride => &outdoors::RIDE,
            Kind::Season => &outdoors::SEASON,
            Kind::Travel => &outdoors::TRAVEL,
            Kind::Fear => &outdoors::FEAR,
            Kind::Mood => &small_talk::MOOD,
            Kind::Weather => &small_talk::WEATHER,
            Kind::Weekend => &small_talk::WEEKEND,
            Kind::Thanks => &small_talk::THANKS,
            Kind::Goodbye => &small_talk::GOODBYE,
        }
    }
}

/// Everything that can be said about one kind.
pub(super) struct Table {
    /// The values, separated by `, `; `noun=verb phrase` where a kind has both forms.
    pub values: &'static str,
    /// Short statements: persona sentences, second facts, and what the partner tells about itself.
    pub short: &'static [&'static str],
    /// How the partner asks.
    pub questions: &'static [&'static str],
    /// How the persona answers, whatever the phrasing of the question.
    pub replies: &'static [&'static str],
    /// What the partner may say to the answer, beside the words that fit everything.
    pub reactions: &'static [&'static str],
    /// The kinds that may be mentioned in the same breath.
    pub related: &'static [Kind],
    /// Questions about a value that has been told.
    pub follow_ups: &'static [FollowUp],
}

impl Table {
    /// The values, both forms still together.
    pub fn values(&self) -> Vec<&'static str> {
        self.values.split(", ").collect()
    }
}

/// A question about a value that has been told, and its answers.
pub(super) struct FollowUp {
    pub question: &'static str,
    pub replies: &'static [&'static str],
}

/// The noun of a value: `tennis` of `tennis=play tennis`.
pub(super) fn noun(value: &'static str) -> &'static str {
    value.split_once('=').map_or(value, |(noun, _)| noun)
}

/// The verb phrase of a value: `play tennis` of `tennis=play tennis`.
pub(super) fn verb_phrase(value: &'static str) -> &'static str {
    value.split_once('=').map_or(value, |(_, verb)| verb)
}

/// `a` or `an`, by the sound that the tables' words begin with.
pub(super) fn article(word: &str) -> &'static str {
    if word.starts_with("uni") {
        "a"
    } else if word.starts_with(['a', 'e', 'i', 'o', 'u']) {
        "an"
    } else {
        "a"
    }
}
