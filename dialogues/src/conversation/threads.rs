//! The one rule that makes dialogues of messages.

use std::collections::{BTreeMap, HashSet, VecDeque};

use super::census::Me;
use super::repeats;
use super::turns::{Said, Unanswered, exchanges};
use super::{About, Mark, Message, Rules, Sink, Speaker};
use crate::readers::LeftOut;
use crate::{Dialogue, clean};

/// Makes dialogues of messages, and hands each on as soon as it is whole.
///
/// A speaker's messages in a row are one utterance; the persona's, as long as no more than a few minutes lie between two. All that
/// others say before the persona does is what the persona answers; where it does with a picture alone, or with no words at all, that
/// has no answer. What it says next to somebody's picture alone answers what is not seen. Where it replies to an older message of
/// somebody's, that one is said again before it. After some hours of silence another
/// dialogue begins. What the persona says without anybody's words before it, at the beginning of a stretch of a chat or after a pause,
/// is history for what follows, and is not learned.
pub(crate) struct Threads<'a> {
    rules: &'a Rules,
    me: &'a Me,
    /// Keys of messages that are not their speakers' own words.
    repeated: &'a HashSet<u64>,
    emit: &'a mut dyn FnMut(Dialogue),
    about: About,
    /// The dialogue that is under way.
    said: Vec<Said>,
    /// An answer without words, after which there may still be some.
    wordless: Option<Said>,
    /// Whether somebody else's message without words came after the last words.
    unseen: bool,
    line: usize,
    last: Option<Last>,
    /// Others' last messages, which a reply may be to.
    heard: VecDeque<Heard>,
    /// How often the persona began to speak, or another dialogue began.
    turn: usize,
    counts: Counts,
}

/// How many of others' messages are remembered for replies.
const HEARD: usize = 1000;

/// A message of somebody else's.
struct Heard {
    id: i64,
    text: String,
    /// In which turn it was said: in the one that is under way, it is before the persona's words as it is.
    turn: usize,
}

/// Who spoke last, and when.
struct Last {
    speaker: Speaker,
    mine: bool,
    time: Option<i64>,
}

/// What is in no dialogue.
#[derive(Default)]
struct Counts {
    marked: BTreeMap<Mark, usize>,
    wordless: usize,
    /// Replies without words.
    empty: usize,
    /// Words at the end that have no reply.
    open: usize,
    unanswered: usize,
    unlearned: usize,
    /// The persona's utterances that follow nobody's words.
    unprompted: usize,
}

impl<'a> Threads<'a> {
    /// What hands each dialogue to `emit`.
    pub fn new(rules: &'a Rules, me: &'a Me, repeated: &'a HashSet<u64>, emit: &'a mut dyn FnMut(Dialogue)) -> Self {
        let (about, said, counts) = (About::default(), Vec::new(), Counts::default());
        Self {
            rules,
            me,
            repeated,
            emit,
            about,
            said,
            wordless: None,
            unseen: false,
            line: 0,
            last: None,
            heard: VecDeque::new(),
            turn: 0,
            counts,
        }
    }

    /// Ends the last dialogue, and says what of the messages is in none.
    pub fn end(mut self) -> Vec<LeftOut> {
        self.close();
        let Counts { marked, wordless, empty, open, unanswered, unlearned, unprompted } = self.counts;
        let left_out = |what: &str, count| LeftOut { what: what.into(), count };
        let of = |mark| marked.get(&mark).copied().unwrap_or(0);
        vec![
            left_out("notices of the program", of(Mark::Notice)),
            left_out("forwarded messages, which are somebody else's words", of(Mark::Forwarded)),
            left_out("words of bots", of(Mark::Bot)),
            left_out("deleted messages", of(Mark::Deleted)),
            left_out("pictures, voice messages and other media without words", of(Mark::Media)),
            left_out("messages that are word for word in many dialogues", of(Mark::Repeated)),
            left_out("messages without words", wordless),
            left_out("replies without words, with the words before them", empty),
            left_out("closing words without a reply", open),
            left_out("utterances of the persona that answer nobody: history, not learned", unprompted),
            left_out("dialogues without a reply", unanswered),
            left_out("dialogues of which no reply is to be learned", unlearned),
        ]
    }

    /// Ends the dialogue that is under way.
    fn close(&mut self) {
        (self.last, self.unseen) = (None, false);
        self.turn += 1;
        let mut said = std::mem::take(&mut self.said);
        said.extend(self.wordless.take());
        if said.is_empty() {
            return;
        }
        let (mut exchanges, Unanswered { empty, open }) = exchanges(said);
        self.counts.empty += empty;
        if exchanges.is_empty() {
            self.counts.unanswered += 1;
            return;
        }
        self.counts.open += usize::from(open);
        let Some(last) = exchanges.iter().rposition(|exchange| exchange.learned) else {
            self.counts.unlearned += 1;
            return;
        };
        // It is history for nothing.
        exchanges.truncate(last + 1);
        let About { persona, partner_persona, .. } = self.about.clone();
        (self.emit)(Dialogue { persona, partner_persona, exchanges, line: self.line });
    }

    /// Whether the persona's next words answer somebody's.
    fn answers(&self, pause: Option<u64>) -> bool {
        match &self.last {
            _ if self.about.whole => true,
            None => false,
            Some(last) if !last.mine => true,
            Some(_) => {
                let goes_on = !self.unseen && matches!(self.said.last(), Some(Said::Persona { learned: true, .. }));
                goes_on && pause.is_none_or(|pause| pause <= self.rules.join)
            }
        }
    }
}

impl Sink for Threads<'_> {
    fn begin(&mut self, about: About) {
        self.close();
        self.heard.clear();
        self.about = about;
    }

    fn dialogue(&mut self, dialogue: Dialogue) {
        (self.emit)(dialogue);
    }

    fn message(&mut self, message: Message) {
        let Message { speaker, time, id, replies_to, text, mark, learned, line } = message;
        let mine = self.me.is(&speaker);
        let text = clean(&text);
        let is_repeated = || repeats::key(&text).is_some_and(|key| self.repeated.contains(&key));
        let mark = mark.or_else(|| (!self.repeated.is_empty() && is_repeated()).then_some(Mark::Repeated));
        match mark {
            Some(mark) => *self.counts.marked.entry(mark).or_default() += 1,
            None if text.is_empty() && !mine => self.counts.wordless += 1,
            None => {}
        }
        let wordless = mark.is_some() || text.is_empty();
        let answers_without_words = mine && matches!(mark, None | Some(Mark::Media | Mark::Deleted | Mark::Repeated));
        if wordless && !answers_without_words {
            self.unseen |= !mine && mark.is_some_and(|mark| mark != Mark::Notice);
            return;
        }
        let pause = self.last.as_ref().and_then(|last| Some(time?.abs_diff(last.time?)));
        if pause.is_some_and(|pause| pause > self.rules.silence) {
            self.close();
        }
        if self.said.is_empty() {
            self.line = line;
        }
        if mine && wordless {
            self.wordless = Some(Said::Nothing { counted: mark.is_none() });
            return;
        }
        let silent = self.wordless.take().filter(|_| !mine);
        self.said.extend(silent);
        let said = match mine {
            true => {
                // What it has just answered is not said again for its next message.
                let goes_on = matches!(self.said.last(), Some(Said::Persona { .. }));
                let is_older = |heard: &Heard| heard.turn + usize::from(goes_on) < self.turn;
                let older = self.heard.iter().find(|heard| Some(heard.id) == replies_to && is_older(heard));
                let repeated = older.map(|heard| Said::Partner(heard.text.clone()));
                let answers = repeated.is_some() || self.answers(pause);
                self.said.extend(repeated);
                self.turn += usize::from(!goes_on);
                self.counts.unprompted += usize::from(!answers);
                Said::Persona { text, learned: learned && answers }
            }
            false => {
                let another = self.last.as_ref().is_none_or(|last| last.speaker != speaker);
                let named = || format!("{}: {text}", clean(&speaker.name));
                let text = if self.rules.group && another { named() } else { text.clone() };
                if let Some(id) = id {
                    if self.heard.len() == HEARD {
                        self.heard.pop_front();
                    }
                    // Said again it stands alone, so with who said it.
                    let text = if self.rules.group && !another { named() } else { text.clone() };
                    self.heard.push_back(Heard { id, text, turn: self.turn });
                }
                Said::Partner(text)
            }
        };
        self.said.push(said);
        self.unseen = false;
        self.last = Some(Last { speaker, mine, time });
    }
}
