//! What the persona eats, drinks and wears.

use super::{FollowUp, Kind, Table};

pub(super) const FOOD: Table = Table {
    values: "pizza, sushi, pasta, tacos, burgers, steak, curry, lasagna, pancakes, waffles, soup, salad, ramen, noodles, \
             ribs, chili, dumplings, burritos, spaghetti, meatballs, sandwiches, omelets, cheesecake, chocolate, ice \
             cream, apple pie, fried chicken, lobster, shrimp, salmon, tofu, fried rice, potatoes, popcorn, donuts, \
             brownies, cupcakes, cookies, risotto, kebabs, falafel, hummus, nachos, hot dogs, french toast, stew, \
             bagels, pretzels, paella, gumbo",
    short: &["i love {x}", "my favorite food is {x}", "i eat a lot of {x}"],
    questions: &[
        "what is your favorite food ?",
        "what do you like to eat ?",
        "what food do you like best ?",
        "what is the best thing to eat ?",
        "what would you eat every day ?",
        "what do you usually have for dinner ?",
        "do you have a favorite dish ?",
        "what kind of food do you like ?",
        "i am hungry , what should we eat ?",
    ],
    replies: &[
        "i love to eat {x}",
        "my favorite food is {x}",
        "i could eat {x} all day",
        "to me nothing beats {x}",
        "i can never say no to {x}",
        "i eat {x} all the time",
    ],
    reactions: &["yum .", "now i am hungry .", "{x} would be good right now .", "i have not had {x} in a while ."],
    related: &[Kind::Drink, Kind::Movies],
    follow_ups: &[
        FollowUp {
            question: "how often do you eat that ?",
            replies: &["i have {x} every week", "i eat {x} almost every day", "not often enough , i miss {x}"],
        },
        FollowUp {
            question: "do you know a good place for {x} ?",
            replies: &["yes , we have great {x} in town", "no , i make {x} at home"],
        },
    ],
};

pub(super) const DRINK: Table = Table {
    values: "coffee, tea, lemonade, milk, cold water, orange juice, apple juice, hot chocolate, cocoa, soda, green tea, \
             iced tea, espresso, cider, ginger ale, root beer, fruit punch, coconut water, sparkling water, tomato \
             juice, grape juice, cherry juice, mint tea, herbal tea, cranberry juice, eggnog, kombucha, carrot juice, \
             almond milk, soy milk, black tea, chocolate milk, iced coffee, pineapple juice",
    short: &["i drink a lot of {x}", "i love to drink {x}", "my favorite drink is {x}"],
    questions: &[
        "what do you like to drink ?",
        "what is your favorite drink ?",
        "what do you drink in the morning ?",
        "what drink do you like best ?",
        "can i get you something to drink ?",
        "what do you drink the most ?",
        "are you a coffee person ?",
        "what would you order at a cafe ?",
        "i am thirsty , what should i drink ?",
    ],
    replies: &[
        "i drink {x} every day",
        "my favorite drink is {x}",
        "i always go for {x}",
        "i can not live without {x}",
        "for me it is always {x}",
        "nothing is better than {x}",
    ],
    reactions: &["i should try that .", "i have not had {x} in a while .", "that sounds tasty ."],
    related: &[Kind::Food, Kind::Music],
    follow_ups: &[
        FollowUp {
            question: "do you drink that every day ?",
            replies: &["yes , i have {x} every day", "yes , i start my day with {x}"],
        },
        FollowUp {
            question: "why do you like {x} so much ?",
            replies: &["i just like how {x} tastes", "{x} makes me feel good", "i grew up with {x}"],
        },
    ],
};

pub(super) const COLOR: Table = Table {
    values: "red, blue, green, yellow, purple, pink, orange, black, white, gray, brown, gold, silver, teal, navy, \
             turquoise, violet, beige, maroon, lavender, crimson, indigo, magenta, coral, cream, tan, scarlet, olive",
    short: &["my favorite color is {x}", "i love the color {x}", "i wear a lot of {x}"],
    questions: &[
        "what is your favorite color ?",
        "what color do you like best ?",
        "which color do you like the most ?",
        "do you have a favorite color ?",
        "if you had to pick one color , which ?",
        "what color do you wear the most ?",
        "what color would you paint a room ?",
        "what is the best color ?",
        "what color makes you happy ?",
    ],
    replies: &[
        "my favorite color is {x}",
        "i love the color {x}",
        "everything i own is {x}",
        "{x} is the best color",
        "for me it has to be {x}",
        "i just love {x}",
    ],
    reactions: &["{x} is pretty .", "{x} is a good color .", "i have some {x} shirts .", "i wear {x} sometimes ."],
    related: &[Kind::Season, Kind::Ride, Kind::Music],
    follow_ups: &[
        FollowUp {
            question: "do you have a lot of {x} clothes ?",
            replies: &["yes , most of my clothes are {x}", "yes , even my shoes are {x}"],
        },
        FollowUp { question: "why {x} ?", replies: &["{x} makes me happy", "{x} looks good on me"] },
    ],
};
