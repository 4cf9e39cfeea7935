//! Where the persona goes, how and when, and what it would rather not meet.

use super::{FollowUp, Kind, Table};

pub(super) const RIDE: Table = Table {
    values: "truck=drive a truck, van=drive a van, jeep=drive a jeep, minivan=drive a minivan, pickup=drive a pickup, \
             convertible=drive a convertible, sedan=drive a sedan, station wagon=drive a station wagon, sports \
             car=drive a sports car, camper=drive a camper, electric car=drive an electric car, tractor=drive a \
             tractor, golf cart=drive a golf cart, hatchback=drive a hatchback, limousine=drive a limousine, bus=take \
             the bus, train=take the train, subway=take the subway, tram=take the tram, ferry=take the ferry, cab=take \
             a cab, bicycle=ride a bicycle, scooter=ride a scooter, motorcycle=ride a motorcycle, moped=ride a moped, \
             skateboard=ride a skateboard, unicycle=ride a unicycle, mountain bike=ride a mountain bike",
    short: &["i {v}", "i {v} every day", "i usually {v}"],
    questions: &[
        "how do you get around ?",
        "do you drive ?",
        "how do you get to work ?",
        "do you have a car ?",
        "what kind of car do you have ?",
        "how do you travel around town ?",
        "how do you go shopping ?",
        "do you walk to work ?",
        "how do you get home at night ?",
    ],
    replies: &[
        "i {v} every day",
        "i {v} to get around",
        "i always {v}",
        "i usually {v} around town",
        "most days i {v}",
        "i {v} wherever i go",
    ],
    reactions: &["i walk a lot .", "that is a good way to travel .", "my neighbor likes to {v} too ."],
    related: &[Kind::Work, Kind::Home, Kind::Color],
    follow_ups: &[
        FollowUp { question: "do you like to {v} ?", replies: &["yes , i love to {v}", "i do , i always {v}"] },
        FollowUp { question: "why do you {v} ?", replies: &["i {v} because it is easy", "i {v} because it is fun"] },
    ],
};

pub(super) const SEASON: Table = Table {
    values: "spring, summer, fall, winter, january, february, april, june, july, august, september, october, november, \
             december, christmas, halloween, thanksgiving, easter, new year, mardi gras, hanukkah, carnival, harvest \
             time, independence day, labor day, memorial day, my birthday",
    short: &["i love {x}", "i look forward to {x}", "my favorite time is {x}"],
    questions: &[
        "what is your favorite time of the year ?",
        "what time of the year do you like best ?",
        "what season or holiday do you like best ?",
        "what is the best part of the year ?",
        "what part of the year do you enjoy most ?",
        "what time of the year makes you happy ?",
        "do you have a favorite time of year ?",
        "what are you looking forward to this year ?",
        "is there a time of the year that you love ?",
    ],
    replies: &[
        "i love {x} the most",
        "my favorite time is {x}",
        "i can not wait for {x}",
        "{x} is the best time",
        "i look forward to {x}",
        "{x} makes me very happy",
    ],
    reactions: &["{x} is great .", "i like {x} too .", "{x} is so pretty here ."],
    related: &[Kind::Travel, Kind::Color, Kind::Food],
    follow_ups: &[
        FollowUp {
            question: "what do you do then ?",
            replies: &["i see my family every {x}", "i have a big party every {x}"],
        },
        FollowUp {
            question: "why do you like {x} ?",
            replies: &["{x} brings back good memories", "{x} always makes me smile"],
        },
    ],
};

pub(super) const TRAVEL: Table = Table {
    values: "japan, italy, france, spain, greece, egypt, india, brazil, mexico, canada, china, peru, kenya, norway, \
             iceland, ireland, scotland, australia, portugal, thailand, vietnam, cuba, chile, argentina, morocco, \
             sweden, finland, denmark, germany, austria, poland, hungary, croatia, korea, nepal, jamaica, new zealand, \
             paris, rome, venice, tokyo, london, berlin, madrid, vienna, prague, lisbon, sydney",
    short: &["i want to visit {x}", "i dream of {x}", "i am saving for a trip to {x}"],
    questions: &[
        "where would you like to travel ?",
        "what is your dream vacation ?",
        "do you like to travel ?",
        "where do you want to go one day ?",
        "do you have travel plans ?",
        "what part of the world would you like to see ?",
        "if you could go anywhere , where would you go ?",
        "are you planning a vacation ?",
        "what place do you want to see most ?",
    ],
    replies: &[
        "i want to visit {x}",
        "i dream of going to {x}",
        "i would love to see {x}",
        "i am saving for a trip to {x}",
        "i hope to see {x} one day",
        "my dream is to visit {x}",
    ],
    reactions: &[
        "i hear {x} is beautiful .",
        "i have never been to {x} .",
        "that sounds amazing .",
        "take me with you .",
    ],
    related: &[Kind::Season, Kind::Food],
    follow_ups: &[
        FollowUp {
            question: "why {x} ?",
            replies: &["i love the food in {x}", "i have seen {x} in movies", "i have friends in {x}"],
        },
        FollowUp {
            question: "when will you go to {x} ?",
            replies: &["i may go to {x} next year", "i need more money to see {x}"],
        },
    ],
};

pub(super) const FEAR: Table = Table {
    values: "spiders, clowns, thunder, the dark, ghosts, bees, wasps, mice, rats, bats, bears, wolves, sharks, crowds, \
             elevators, tunnels, bridges, germs, storms, tornadoes, lightning, scorpions, dolls, mirrors, balloons, \
             sirens, aliens, earthquakes, hurricanes, crabs, moths, roaches, crocodiles, jellyfish, public speaking, \
             roller coasters, loud noises, small spaces, puppets, escalators",
    short: &["i am afraid of {x}", "i am scared of {x}", "i can not stand {x}"],
    questions: &[
        "what are you afraid of ?",
        "are you afraid of anything ?",
        "what scares you ?",
        "do you have any fears ?",
        "what is your biggest fear ?",
        "does anything scare you ?",
        "what can you not stand ?",
        "is there anything that scares you ?",
        "what keeps you up at night ?",
    ],
    replies: &[
        "i am afraid of {x}",
        "i am really scared of {x}",
        "i can not stand {x}",
        "my biggest fear is {x}",
        "i have always been afraid of {x}",
        "i have a fear of {x}",
    ],
    reactions: &["oh no .", "i understand that .", "poor you .", "i do not like {x} either ."],
    related: &[Kind::Movies, Kind::Pet],
    follow_ups: &[
        FollowUp {
            question: "have you always been afraid of {x} ?",
            replies: &["yes , even as a child {x} scared me", "no , i used to be fine with {x}"],
        },
        FollowUp {
            question: "what do you do then ?",
            replies: &["i just try to avoid {x}", "i close my eyes and forget about {x}"],
        },
    ],
};
