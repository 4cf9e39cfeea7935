//! Small talk: not facts, but each persona has its own way.

use super::Table;

pub(super) const MOOD: Table = Table {
    values: "great, tired, happy, sleepy, relaxed, cheerful, excited, wonderful, hungry, bored, calm, fantastic, lazy, \
             good, fine, rested, grumpy, content, full of energy, a bit sick, very well, worn out",
    short: &["i am {x}", "i feel {x} today"],
    questions: &[
        "how are you ?",
        "how are you today ?",
        "how are you doing ?",
        "how do you feel today ?",
        "how have you been ?",
        "how are things ?",
        "how are you feeling ?",
        "are you well today ?",
    ],
    replies: &["i am {x} today", "i feel {x} right now", "i am {x} , thanks for asking", "i am feeling {x} today"],
    reactions: &["i know that feeling .", "i hear you .", "oh , i see ."],
    related: &[],
    follow_ups: &[],
};

pub(super) const WEATHER: Table = Table {
    values: "sunny, rainy, windy, cloudy, cool, foggy, gray, lovely, stormy, awful, mild, bright, pleasant, dry, wet, \
             perfect, damp, misty",
    short: &["it is {x} here", "it is {x} today"],
    questions: &[
        "how is the weather today ?",
        "what is the weather like there ?",
        "how is the weather where you live ?",
        "is it nice outside ?",
        "is it raining over there ?",
        "what does it look like outside ?",
        "how is the weather right now ?",
        "do you have good weather today ?",
    ],
    replies: &[
        "it is {x} here today",
        "the weather is {x} right now",
        "it has been {x} all week",
        "it looks {x} outside",
    ],
    reactions: &["same here .", "it is different here ."],
    related: &[],
    follow_ups: &[],
};

pub(super) const WEEKEND: Table = Table {
    values: "sleep in, clean the house, visit my parents, rest at home, see some friends, go shopping, do the laundry, \
             go to the park, cook a big dinner, stay in bed, call my mother, go to a party, go to the beach, take long \
             walks, paint the fence, bake a cake, fix the roof, wash the windows, go to church, help my neighbor, \
             visit a museum, throw a party, go to the market, do nothing",
    short: &["i will {x}", "i want to {x}"],
    questions: &[
        "what are you doing this weekend ?",
        "any plans for the weekend ?",
        "what are your plans for saturday ?",
        "what will you do on sunday ?",
        "do you have plans this weekend ?",
        "are you doing anything this weekend ?",
        "how will you spend the weekend ?",
        "what is your plan for tomorrow ?",
    ],
    replies: &["i will {x}", "i plan to {x}", "i am going to {x}", "i just want to {x}"],
    reactions: &["that sounds good .", "have fun with that ."],
    related: &[],
    follow_ups: &[],
};

pub(super) const THANKS: Table = Table {
    values: "you are so kind, that made my day, that is so sweet, i needed that, you are sweet, you made me smile, you \
             are fun too, i like you too, that means a lot, you made me blush, you are too nice, right back at you, \
             i feel the same, same to you, that is good to hear, you are the best",
    short: &[],
    questions: &[
        "you are fun to talk to .",
        "you seem like a nice person .",
        "i really like talking to you .",
        "you are very interesting .",
        "you sound like a lot of fun .",
        "i think we could be friends .",
        "you have a great sense of humor .",
        "i am glad that i met you .",
    ],
    replies: &["thank you , {x}", "thanks a lot , {x}", "thanks , {x}", "aww , thank you , {x}"],
    reactions: &[],
    related: &[],
    follow_ups: &[],
};

pub(super) const GOODBYE: Table = Table {
    values: "take care, see you soon, have a nice day, talk to you later, stay safe, be well, enjoy your day, until next \
             time, have a good one, see you around, all the best, good luck, keep smiling, come back soon, be good, do not \
             be a stranger, let us talk again, thanks for the chat",
    short: &[],
    questions: &[
        "it was nice talking to you , bye !",
        "i have to go now , bye .",
        "well , i have to run . take care !",
        "my break is over , talk to you later .",
        "it is late , i have to go .",
        "i enjoyed this chat , goodbye !",
        "thanks for the chat , see you .",
        "i need to leave now , goodbye .",
    ],
    replies: &["bye for now , {x}", "okay , goodbye , {x}", "bye bye , {x}", "it was fun , {x}"],
    reactions: &[],
    related: &[],
    follow_ups: &[],
};
