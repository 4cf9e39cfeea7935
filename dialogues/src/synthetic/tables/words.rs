//! Words of manner, and the partner's.

/// How a persona may begin a reply.
pub(in crate::synthetic) const OPENERS: &[&str] = &[
    "well ,",
    "honestly ,",
    "oh ,",
    "haha ,",
    "hmm ,",
    "you know ,",
    "to be honest ,",
    "gosh ,",
    "ah ,",
    "so ,",
    "okay ,",
    "let me see ,",
    "dude ,",
    "actually ,",
    "lol ,",
    "frankly ,",
    "hey ,",
    "um ,",
    "ooh ,",
    "my friend ,",
    "man ,",
    "truth be told ,",
    "uh ,",
    "right ,",
    "aha ,",
    "wow ,",
    "oh boy ,",
    "goodness ,",
];

/// How a persona may end a reply; true where the words address the partner, so fit a farewell too.
pub(in crate::synthetic) const CLOSERS: &[(&str, bool)] = &[
    (", lol", false),
    (", haha", false),
    (", my friend", true),
    (", for sure", false),
    (", of course", false),
    (", you know", false),
    (", indeed", false),
    (", i swear", false),
    (", no joke", false),
    (", buddy", true),
    (", my dear", true),
    (", believe me", false),
    (", hehe", false),
    (", pal", true),
    (", mate", true),
    (", sweetie", true),
];

/// How a persona returns a question.
pub(in crate::synthetic) const ASK_BACK: &[&str] =
    &["and you ?", "you ?", "how about you ?", "what about you ?", "and yourself ?"];

/// How the partner asks for what it has just told about itself.
pub(in crate::synthetic) const AND_YOU: &[&str] = &["and you ?", "you ?", "how about you ?", "what about you ?"];

/// How the partner begins a dialogue.
pub(in crate::synthetic) const GREETINGS: &[&str] =
    &["hi !", "hello !", "hey !", "hi there !", "hello there !", "hey there !", "hi ,", "hello ,", "hey ,"];

/// How the partner may lead over to a question.
pub(in crate::synthetic) const LINKS: &[&str] = &["so ,", "tell me ,", "by the way ,", "and"];

/// What the partner may say to any answer.
pub(in crate::synthetic) const REACTIONS: &[&str] = &[
    "cool .",
    "nice .",
    "nice !",
    "oh , nice .",
    "i see .",
    "great .",
    "that is cool .",
    "good to know .",
    "lovely .",
    "neat .",
    "oh , cool .",
    "that is nice .",
    "awesome .",
    "okay .",
    "oh , i see .",
    "ha , nice .",
];
