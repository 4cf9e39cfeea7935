//! Who the persona is and lives with.

use super::{FollowUp, Kind, Table};

pub(super) const NAME: Table = Table {
    values: "anna, ben, carla, david, emma, frank, henry, jack, kate, leo, maria, nick, olivia, paul, rosa, sam, tina, \
             victor, wendy, adam, clara, daniel, eric, fiona, george, hannah, ian, julia, kevin, laura, nora, oscar, \
             peter, rachel, simon, tom, alice, brian, cindy, diana, edward, gloria, harry, irene, james, karen, linda, \
             martin, nancy, patrick, robert, sarah, thomas, vera, walter, amy, jenny, lucy, mike, steve",
    short: &["my name is {x}", "people call me {x}"],
    questions: &[
        "what is your name ?",
        "who am i talking to ?",
        "may i ask your name ?",
        "can you tell me your name ?",
        "what should i call you ?",
        "what do people call you ?",
        "do you have a name ?",
        "what name do you go by ?",
        "who are you ?",
    ],
    replies: &[
        "my name is {x}",
        "you can call me {x}",
        "everybody calls me {x}",
        "i go by {x}",
        "{x} is my name",
        "people call me {x}",
    ],
    reactions: &["nice to meet you , {x} .", "hi {x} .", "{x} is a good name .", "pleased to meet you , {x} ."],
    related: &[Kind::Home, Kind::Work, Kind::Family],
    follow_ups: &[
        FollowUp {
            question: "do you like your name ?",
            replies: &["i do , {x} is a good name", "yes , {x} is just right for me", "yes , {x} suits me well"],
        },
        FollowUp {
            question: "who picked that name for you ?",
            replies: &["my mother picked the name {x}", "my father liked the name {x}"],
        },
    ],
};

pub(super) const WORK: Table = Table {
    values: "baker, nurse, teacher, farmer, pilot, painter, plumber, lawyer, waiter, chef, barber, banker, writer, \
             mechanic, carpenter, librarian, florist, gardener, engineer, dentist, doctor, cashier, electrician, \
             firefighter, journalist, janitor, judge, model, musician, pharmacist, photographer, programmer, \
             scientist, secretary, singer, soldier, tailor, translator, vet, welder, actor, accountant, architect, \
             artist, butcher, coach, dancer, designer, detective, editor, guard, jeweler, lifeguard, miner, nanny, \
             realtor, sailor, surgeon, therapist",
    short: &["i work as {a}", "i am {a}"],
    questions: &[
        "what do you do for a living ?",
        "what do you do for work ?",
        "what is your job ?",
        "where do you work ?",
        "what kind of work do you do ?",
        "do you have a job ?",
        "do you work ?",
        "how do you earn your money ?",
        "how do you pay the bills ?",
        "what is your profession ?",
    ],
    replies: &[
        "i work as {a}",
        "i am {a} by trade",
        "i have a job as {a}",
        "i make my living as {a}",
        "i have been {a} for years",
        "my job is being {a}",
    ],
    reactions: &[
        "that sounds like hard work .",
        "i could never be {a} .",
        "we need more people like you .",
        "my uncle is {a} too .",
    ],
    related: &[Kind::Home, Kind::Ride, Kind::Hobby, Kind::Name],
    follow_ups: &[
        FollowUp {
            question: "do you like your job ?",
            replies: &["i do , i love being {a}", "yes , i enjoy being {a}", "yes , {a} is what i want to be"],
        },
        FollowUp {
            question: "is it hard to be {a} ?",
            replies: &["being {a} is hard but fun", "no , being {a} comes easy to me"],
        },
        FollowUp {
            question: "did you always want to be {a} ?",
            replies: &["yes , i always dreamed of being {a}", "no , i became {a} by chance"],
        },
    ],
};

pub(super) const HOME: Table = Table {
    values: "ohio, texas, florida, maine, alaska, hawaii, boston, chicago, seattle, denver, oregon, utah, nevada, \
             kansas, georgia, iowa, montana, idaho, vermont, michigan, wisconsin, virginia, alabama, arizona, \
             california, colorado, delaware, illinois, indiana, kentucky, louisiana, maryland, minnesota, \
             mississippi, missouri, nebraska, oklahoma, tennessee, wyoming, portland, dallas, houston, miami, \
             phoenix, atlanta, detroit, memphis, nashville, austin, brooklyn",
    short: &["i live in {x}", "i am from {x}"],
    questions: &[
        "where are you from ?",
        "where do you live ?",
        "where is your home ?",
        "what place do you call home ?",
        "where do you come from ?",
        "which part of the country are you in ?",
        "where did you grow up ?",
        "do you live around here ?",
        "where are you located ?",
    ],
    replies: &[
        "i live in {x}",
        "i am from {x}",
        "my home is in {x}",
        "i was born and raised in {x}",
        "{x} is my home",
        "i have always lived in {x}",
    ],
    reactions: &[
        "i have never been to {x} .",
        "i hear {x} is nice .",
        "i was in {x} once .",
        "my cousin moved to {x} .",
    ],
    related: &[Kind::Family, Kind::Work, Kind::Pet, Kind::Ride],
    follow_ups: &[
        FollowUp {
            question: "do you like it there ?",
            replies: &["i do , {x} is a great place", "yes , i never want to leave {x}"],
        },
        FollowUp {
            question: "what is it like in {x} ?",
            replies: &["{x} is a nice place to live", "people in {x} are very friendly"],
        },
    ],
};

pub(super) const FAMILY: Table = Table {
    values: "one brother, two brothers, three brothers, four brothers, five brothers, six brothers, seven brothers, \
             eight brothers, one sister, two sisters, three sisters, four sisters, five sisters, six sisters, seven \
             sisters, eight sisters, a twin brother, a twin sister, a baby brother, a baby sister, a big brother, a big \
             sister, a stepbrother, a stepsister",
    short: &["i have {x}", "i grew up with {x}"],
    questions: &[
        "do you have any brothers or sisters ?",
        "do you have any siblings ?",
        "are you an only child ?",
        "how big is your family ?",
        "how many siblings do you have ?",
        "do you have a big family ?",
        "what is your family like ?",
        "did you grow up with siblings ?",
    ],
    replies: &[
        "i have {x}",
        "there is me and {x}",
        "i grew up with {x}",
        "in my family i have {x}",
        "i am lucky to have {x}",
    ],
    reactions: &["family is important .", "that must be fun .", "it is good to have family ."],
    related: &[Kind::Home, Kind::Pet],
    follow_ups: &[
        FollowUp {
            question: "do you all get along ?",
            replies: &["yes , having {x} is a joy", "we argue , but having {x} is great"],
        },
        FollowUp {
            question: "do you see your family often ?",
            replies: &["yes , having {x} keeps me busy", "not enough , but i love having {x}"],
        },
    ],
};

pub(super) const PET: Table = Table {
    values: "dog, cat, rabbit, hamster, parrot, turtle, goldfish, horse, pony, goat, lizard, snake, duck, pig, canary, \
             ferret, frog, hen, donkey, sheep, gecko, iguana, llama, puppy, kitten, parakeet, chinchilla, hedgehog, \
             tortoise, poodle, beagle, bulldog, husky, owl",
    short: &["i have {a}", "i own {a}"],
    questions: &[
        "do you have any pets ?",
        "do you have a pet ?",
        "any pets at your place ?",
        "what pets do you have ?",
        "do you own an animal ?",
        "do you like animals ?",
        "do you have any animals at home ?",
        "are you a pet owner ?",
        "what kind of pet do you have ?",
    ],
    replies: &[
        "i have {a} at home",
        "i own {a}",
        "i share my home with {a}",
        "my best friend is {a}",
        "i take care of {a}",
        "i have {a} and love it",
    ],
    reactions: &["aww , how cute .", "i would love to have {a} .", "that must be fun .", "aww , i love animals ."],
    related: &[Kind::PetName, Kind::Family, Kind::Home],
    follow_ups: &[
        FollowUp {
            question: "is your {x} a good pet ?",
            replies: &["yes , my {x} is the sweetest", "yes , i love my {x} very much"],
        },
        FollowUp {
            question: "how long have you had your {x} ?",
            replies: &["i have had my {x} for years", "i got my {x} last year"],
        },
    ],
};

pub(super) const PET_NAME: Table = Table {
    values: "max, bella, luna, charlie, rocky, daisy, buster, coco, milo, ginger, shadow, lucky, pepper, biscuit, \
             smokey, tiger, princess, bandit, peanut, muffin, ziggy, spot, rusty, duke, gizmo, honey, snowball, \
             bubbles, patches, socks, toby, chester, felix, misty, dusty, marble, pumpkin, noodle, button, thor",
    short: &["my {pet} is called {x}", "my {pet} 's name is {x}"],
    questions: &[
        "what is your {pet} 's name ?",
        "what is your {pet} called ?",
        "what do you call your {pet} ?",
        "does your {pet} have a name ?",
        "what did you name your {pet} ?",
        "what is the name of your {pet} ?",
        "what name did you give your {pet} ?",
        "what name does your {pet} have ?",
    ],
    replies: &[
        "my {pet} is called {x}",
        "i named my {pet} {x}",
        "my {pet} 's name is {x}",
        "i call my {pet} {x}",
        "{x} is my {pet} 's name",
    ],
    reactions: &["{x} is a cute name .", "aww , {x} is a sweet name .", "that is a funny name ."],
    related: &[],
    follow_ups: &[
        FollowUp {
            question: "how did you come up with that name ?",
            replies: &["my {pet} just looked like {x}", "i always wanted a pet called {x}"],
        },
        FollowUp {
            question: "does {x} listen to you ?",
            replies: &["no , {x} never listens to me", "yes , {x} always comes when i call"],
        },
    ],
};
