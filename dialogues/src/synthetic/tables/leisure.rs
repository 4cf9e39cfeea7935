//! What the persona does for fun.

use super::{FollowUp, Kind, Table};

pub(super) const MUSIC: Table = Table {
    values: "jazz, rock, country, hip hop, rap, opera, blues, classical music, techno, punk, reggae, heavy metal, pop, \
             folk, soul, disco, gospel, salsa, funk, swing, bluegrass, indie rock, ska, house music, piano music, soft \
             rock, flamenco, polka, samba, tango, grunge, choir music",
    short: &["i listen to {x}", "i love to hear {x}", "i am a fan of {x}"],
    questions: &[
        "what kind of music do you like ?",
        "what music do you listen to ?",
        "do you like music ?",
        "what is your favorite music ?",
        "what do you listen to ?",
        "what is playing on your radio ?",
        "what songs do you like ?",
        "what kind of concerts do you go to ?",
        "are you into music ?",
    ],
    replies: &[
        "i listen to {x} all day",
        "i am a big fan of {x}",
        "my favorite music is {x}",
        "i mostly listen to {x}",
        "i love {x} more than anything",
        "it is always {x} for me",
    ],
    reactions: &["i like {x} too .", "i do not know much about {x} .", "my mother listens to {x} .", "music is life ."],
    related: &[Kind::Movies, Kind::Hobby],
    follow_ups: &[
        FollowUp {
            question: "do you go to concerts ?",
            replies: &["yes , i see {x} shows a lot", "yes , i love live {x}"],
        },
        FollowUp {
            question: "when do you listen to {x} ?",
            replies: &["i play {x} all day long", "i listen to {x} when i cook", "i play {x} in the morning"],
        },
    ],
};

pub(super) const MOVIES: Table = Table {
    values: "comedies, westerns, cartoons, thrillers, musicals, dramas, mysteries, documentaries, horror movies, action \
             movies, war movies, spy movies, superhero movies, zombie movies, vampire movies, crime movies, space \
             movies, silent movies, dance movies, sports movies, disaster movies, monster movies, fairy tales, love \
             stories, police shows, cooking shows, game shows, soap operas",
    short: &["i like {x}", "i watch a lot of {x}", "i enjoy watching {x}"],
    questions: &[
        "what movies do you like ?",
        "what kind of movies do you watch ?",
        "do you like movies ?",
        "what do you watch on tv ?",
        "what should we watch tonight ?",
        "what is good on tv ?",
        "do you watch a lot of movies ?",
        "have you seen anything good lately ?",
        "what do you like to watch ?",
    ],
    replies: &[
        "i love watching {x}",
        "i mostly watch {x}",
        "i can watch {x} all night",
        "i am a big fan of {x}",
        "{x} are my favorite",
        "i only watch {x} these days",
    ],
    reactions: &[
        "i watch {x} too .",
        "my brother likes {x} .",
        "i do not watch many {x} .",
        "i should watch more tv .",
    ],
    related: &[Kind::Music, Kind::Food, Kind::Fear],
    follow_ups: &[
        FollowUp {
            question: "do you watch them alone ?",
            replies: &["i watch {x} with my friends", "yes , i watch {x} alone"],
        },
        FollowUp {
            question: "what do you like about {x} ?",
            replies: &["{x} help me relax", "{x} are never boring to me", "i forget everything with {x}"],
        },
    ],
};

pub(super) const HOBBY: Table = Table {
    values: "painting, fishing, knitting, gardening, cooking, baking, reading, camping, singing, dancing, drawing, \
             sewing, pottery, photography, chess, puzzles, video games, board games, juggling, bird watching, \
             woodworking, writing, poetry, astronomy, crosswords, card games, karaoke, magic tricks, quilting, making \
             candles, making jewelry, making soap, model trains, calligraphy, crochet, blogging, flying kites, growing \
             roses, collecting stamps, collecting coins, collecting shells",
    short: &["i enjoy {x}", "my hobby is {x}", "i am into {x}"],
    questions: &[
        "what do you do for fun ?",
        "do you have any hobbies ?",
        "what are your hobbies ?",
        "what do you do in your free time ?",
        "what do you like to do ?",
        "how do you spend your evenings ?",
        "what do you do after work ?",
        "what do you enjoy doing ?",
        "what are you into ?",
    ],
    replies: &[
        "i really enjoy {x}",
        "my hobby is {x}",
        "i am really into {x}",
        "my evenings are all about {x}",
        "i am crazy about {x}",
    ],
    reactions: &["that sounds fun .", "i wish i had time for {x} .", "my aunt is into {x} .", "i never tried {x} ."],
    related: &[Kind::Music, Kind::Sport, Kind::Drink],
    follow_ups: &[
        FollowUp {
            question: "are you good at it ?",
            replies: &["yes , i am quite good at {x}", "not really , but i love {x}"],
        },
        FollowUp {
            question: "how did you get into {x} ?",
            replies: &["a friend got me into {x}", "my grandmother got me into {x}"],
        },
    ],
};

pub(super) const SPORT: Table = Table {
    values: "tennis=play tennis, soccer=play soccer, basketball=play basketball, baseball=play baseball, football=play \
             football, golf=play golf, hockey=play hockey, volleyball=play volleyball, badminton=play badminton, \
             cricket=play cricket, rugby=play rugby, softball=play softball, lacrosse=play lacrosse, squash=play \
             squash, water polo=play water polo, swimming=go swimming, running=go running, skiing=go skiing, \
             surfing=go surfing, bowling=go bowling, cycling=go cycling, rowing=go rowing, sailing=go sailing, \
             climbing=go climbing, skating=go skating, hiking=go hiking, jogging=go jogging, yoga=do yoga, karate=do \
             karate, judo=do judo, boxing=practice boxing, gymnastics=do gymnastics, ballet=dance ballet, archery=practice archery, \
             fencing=practice fencing, wrestling=practice wrestling",
    short: &["i {v}", "my sport is {x}", "i {v} every week"],
    questions: &[
        "do you play any sports ?",
        "what sport do you do ?",
        "what is your favorite sport ?",
        "how do you stay in shape ?",
        "do you work out ?",
        "are you into sports ?",
        "what do you do to stay fit ?",
        "do you like sports ?",
        "what do you do for exercise ?",
    ],
    replies: &[
        "i {v} every week",
        "my favorite sport is {x}",
        "i {v} with my friends",
        "i love to {v}",
        "i {v} to stay in shape",
        "i {v} whenever i can",
    ],
    reactions: &["that sounds fun .", "i am not good at {x} .", "i tried {x} once .", "you must be very fit ."],
    related: &[Kind::Hobby, Kind::Music, Kind::Season],
    follow_ups: &[
        FollowUp {
            question: "how often do you {v} ?",
            replies: &["i {v} twice a week", "i {v} almost every day", "i {v} when i have time"],
        },
        FollowUp {
            question: "is {x} hard to learn ?",
            replies: &["no , anyone can learn {x}", "{x} takes a lot of practice"],
        },
    ],
};
