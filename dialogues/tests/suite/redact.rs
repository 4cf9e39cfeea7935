use std::borrow::Cow;
use std::time::{Duration, Instant};

use marionette_dialogues::{Redacted, Redactor};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const KINDS: [Redacted; 6] =
    [Redacted::Email, Redacted::Link, Redacted::Phone, Redacted::Card, Redacted::Account, Redacted::Blocked];

/// Parts of random texts.
const FRAGMENTS: &str = "ann@example.com~@~https://~www.~example.com~.com~.~/~555~123-4567~-~0~+49~(~)~ ~ ~12.05.2024~\
    1990-~4111 1111 1111 1111~DE89~370400440532013000~ann~Ann Lee~lee~[email]~[~]~[blocked~1~é~ß~看~٣~\u{301}~\u{a0}~\n~🙂~,~$~\
    12345678~0171~06 12 34~56 78~x~:~555 1234 ~mailto:~77 ~ - ";

/// What becomes of a text; what was heard must be what its placeholders stand for, and a second time finds nothing.
fn redacted(redactor: &Redactor, text: &str) -> String {
    let mut heard = Vec::new();
    let result = redactor.redact(text, &mut |kind, what| heard.push((kind, what)));
    assert_eq!(matches!(result, Cow::Borrowed(_)), heard.is_empty(), "{text:?}");
    let mut rest: &str = text;
    let mut left: &str = &result;
    for (kind, what) in heard {
        assert!(!what.is_empty(), "{text:?}");
        // Up to a placeholder of this kind, both are the same; one that stood in the text before may be on the way.
        let at = left
            .match_indices(kind.placeholder())
            .map(|(at, _)| at)
            .find(|&at| rest.get(..at) == left.get(..at) && rest[at..].starts_with(what));
        assert!(at.is_some(), "{text:?}: {kind:?} {what:?} in {result:?}");
        let at = at.unwrap();
        rest = &rest[at + what.len()..];
        left = &left[at + kind.placeholder().len()..];
    }
    assert_eq!(left, rest, "{text:?}");
    let mut heard = Vec::new();
    let again = redactor.redact(&result, &mut |kind, what| heard.push((kind, what)));
    assert_eq!((again, heard), (Cow::Borrowed(&*result), vec![]), "{text:?}");
    result.into_owned()
}

#[track_caller]
fn check(redactor: &Redactor, rows: &[(&str, &str)]) {
    let wrong: Vec<_> = rows
        .iter()
        .map(|(text, expected)| (text, expected, redacted(redactor, text)))
        .filter(|(_, expected, result)| *expected != result)
        .collect();
    assert!(wrong.is_empty(), "text, expected, result: {wrong:#?}");
}

fn plain() -> Redactor {
    Redactor::new::<&str>(&[])
}

#[track_caller]
fn all(kind: Redacted, rows: &str) {
    let around = |middle: &str| {
        [middle.to_string(), format!("Ruf an: {middle}."), format!("(c'est {middle}, oui)"), format!("me {middle} ok?")]
    };
    let rows: Vec<_> =
        rows.split(" | ").flat_map(|row| around(row).into_iter().zip(around(kind.placeholder()))).collect();
    check(&plain(), &rows.iter().map(|(text, expected)| (text.as_str(), expected.as_str())).collect::<Vec<_>>());
}

#[track_caller]
fn none(rows: &str) {
    check(&plain(), &rows.split(" | ").map(|row| (row, row)).collect::<Vec<_>>());
}

#[test]
fn phone_numbers_of_several_countries() {
    // The United States.
    all(
        Redacted::Phone,
        "+1 555 123 4567 | +1-555-123-4567 | +1 (555) 123-4567 | +15551234567 | 1-800-555-1234 | \
         (555) 123-4567 | (555)123-4567 | 555-123-4567 | 555.123.4567 | 555 123 4567 | 555-1234 | 555 1234 | \
         1 (555) 123-4567 | 1 555 123 4567 | 555/123-4567",
    );
    // The United Kingdom.
    all(
        Redacted::Phone,
        "+44 20 7946 0958 | +44 (0)20 7946 0958 | 020 7946 0958 | (020) 7946 0958 | 07700 900123 | 07700900123 | \
         07700 900 123 | 01632 960001 | 0044 20 7946 0958 | +447700900123 | 0800 123 4567 | 7700 900123",
    );
    // Germany.
    all(
        Redacted::Phone,
        "+49 (0)30 123456 | +49 30 123456 | 030 / 123 456 | 030/123456 | 030 123456-78 | 030 123456-0 | \
         0171 1234567 | 0171-1234567 | 0171/1234567 | 01711234567 | +49 171 1234567 | (030) 123456 | \
         +49(0)30/123456 | (+49) 30 123456 | 0049 30 123456 | 0151 12345678 | 0171 1234 5678 | 030 – 123456",
    );
    // France.
    all(
        Redacted::Phone,
        "06 12 34 56 78 | 06.12.34.56.78 | 06-12-34-56-78 | 0612345678 | +33 6 12 34 56 78 | \
         +33 (0)6 12 34 56 78 | +33612345678 | 0033 6 12 34 56 78 | +33.6.12.34.56.78",
    );
    // India.
    all(
        Redacted::Phone,
        "+91 98765 43210 | +91-98765-43210 | +91-9876543210 | 98765 43210 | 98765-43210 | 098765 43210 | \
         080-12345678 | 080 1234 5678 | 1800-123-4567 | +91 (80) 1234 5678",
    );
    // Brazil.
    all(
        Redacted::Phone,
        "+55 11 98765-4321 | +55 (11) 98765-4321 | (11) 98765-4321 | (11) 3456-7890 | 11 98765-4321 | \
         11 3456-7890 | 98765-4321 | 3456-7890 | 0800 123 4567 | (011) 3456-7890 | 11 9 8765-4321 | \
         11 98765 4321 | +5511987654321",
    );
    // Others.
    all(Redacted::Phone, "+7 912 345-67-89 | 8 (912) 345-67-89 | 138 1234 5678 | +86 138 1234 5678 | +852 2123 4567");
    // Other blanks, hyphens and digits.
    all(Redacted::Phone, "+1\u{a0}555\u{a0}123\u{a0}4567 | 555‑123‑4567 | ０６ １２ ３４ ５６ ７８ | ٠٦ ١٢ ٣٤ ٥٦ ٧٨");
    check(
        &plain(),
        &[
            ("555-123-4567 555-987-6543", "[phone] [phone]"),
            ("0171 1234567,0172 1234567", "[phone],[phone]"),
            ("(0171 1234567)", "([phone])"),
            ("tel:+49171123456", "tel:[phone]"),
            ("555-123-4567x12", "[phone]x12"),
            ("\u{202a}+49 171 1234567\u{202c} hat geschrieben", "\u{202a}[phone]\u{202c} hat geschrieben"),
            ("am 12.05.2024 030 123456", "am 12.05.2024 [phone]"),
            ("+49 30 123456 2 Mal", "[phone] 2 Mal"),
            ("+49 30 123456 10:30", "[phone] 10:30"),
            ("order 5 555-123-4567", "order 5 [phone]"),
        ],
    );
}

#[test]
fn ordinary_numbers_stay() {
    none(
        "2024-01-02 | 12.05.2024 | 1/2/24 | 12/05/2024 | on 01.02.2024, 10:30 | 05-06-2024 | 12. 05. 2024 | \
         01 02 2024 | 01.02.2024-05.02.2024 | 01.02.24-05.02.24 | 02.2024 - 05.2024 | 2024-01-02T10:30:00Z | \
         2024-01-02 10:30:00 | [12.05.24, 10:30:12] Ann: hi | 10:30 | 10.30 | 08:30-09:45 | 08.30-09.45 Uhr | \
         1990-1995 | 1990–1995 | 2019 - 2020 | 2019/2020 | in 2019 2020 2021 | 1,000,000 | 1.000.000 | \
         1 000 000 | 12 345 678 | 3.14159 | 3.14159265358979 | 0,12345678 | -0.5-0.75 | 12,34,567 | $5 | \
         $1000000 | $12345678 | 12345678 € | 1.299,00 € | £1,234.56 | 3-2 | 21-19 21-18 | 2:1, 3:2 | 1.2.3.4 | \
         192.168.100.200 | 120.0.6099.109 | v1.12.3 | 100-200 | 3000-4000 people | 200 - 300 - 4000 | \
         10115 Berlin | 24/7 | 16:9 | 007 | 4711 | 0815 | 1234567 | 5 |  | +1 | +100 points | (2019) | (5) | \
         I have 3 cats and 12 dogs | 2 + 2 = 4 | 00:00:00 | 0-100 | 1 2 3 4 5 6 7 8 9 | 10 20 30 40 50 | \
         978-3-16-148410-0 | 500-1000 | 70000 80000 | 100 200 300 | 50% | 90° | 1st 2nd 3rd | ١٢ ٣ | \
         A4, B12, C3PO | 52.520008, 13.404954 | room 555 2024 | + | ( | ++--((( | 5k | 10h30",
    );
}

#[test]
fn links_and_domains() {
    all(
        Redacted::Link,
        "https://example.com | http://example.com/a?b=c&d=e#f | HTTPS://EXAMPLE.COM/ | ftp://host/file.txt | \
         https://en.wikipedia.org/wiki/Foo_(bar) | https://user:word@host.de:8080/x | \
         https://x.com/12345678901 | www.example.com | www.beispiel.de/straße | example.com | \
         sub.example.co.uk | example.de/pfad | bit.ly/3xYz | youtu.be/dQw4w9WgXcQ | t.me/someone | \
         example.com:8080/x | münchen.de | mail.example.com.br | EXAMPLE.ORG | whatsapp://send | \
         https://ann@example.com/ | http://[::1]:80/x | foo.gov.in | https://192.168.0.1/x",
    );
    check(
        &plain(),
        &[
            ("(see https://en.wikipedia.org/wiki/Foo_(bar))", "(see [link])"),
            ("[x](https://example.com/a)!", "[x]([link])!"),
            ("«https://example.com»", "«[link]»"),
            ("\"https://example.com/a,\" he said", "\"[link],\" he said"),
            ("*https://example.com/*?!", "*[link]*?!"),
            ("看https://example.com/看，谢谢", "看[link]，谢谢"),
            ("Is it example.com?", "Is it [link]?"),
            ("it's example.com's", "it's [link]'s"),
            ("on example.com.Then we go", "on [link].Then we go"),
        ],
    );
    none(
        "e.g. | z.B. so | i.e. this | file.txt | node.js | hello.there | wait...what | it.in fact | yes.me too | \
         sim.eu quero | http:// | http://) | www. | www... | :// | a.b/c | 3.km/h | U.S.A. | Ph.D. | either/or | \
         he said.she said | main.rs | readme.md | 5.5 | J.R.R. Tolkien | .com | com | p.m./a.m.",
    );
}

#[test]
fn addresses_of_e_mail() {
    all(
        Redacted::Email,
        "ann@example.com | ann.o'brien+tag@mail.example.co.uk | jörg@müller.de | 用户@例子.公司 | a_b-c%d@x-y.org | \
         ANN@EXAMPLE.COM | 12345678@qq.com | 123456789012@qq.com | a@xn--mller-kva.xn--p1ai",
    );
    check(
        &plain(),
        &[
            ("mailto:ann@example.com", "mailto:[email]"),
            ("<ann@example.com>", "<[email]>"),
            ("ann@example.com,bob@example.com", "[email],[email]"),
            ("write to ann@example.com.", "write to [email]."),
            ("+49171123456@s.whatsapp.net", "[phone]@[link]"),
        ],
    );
    none("@ann | ann@home | a @ b.c | 5 @ 3 | @ | me@ | a@b.c | ann@.com");
}

#[test]
fn cards_have_the_check_digit_of_luhn() {
    all(
        Redacted::Card,
        "4111 1111 1111 1111 | 4111111111111111 | 5500-0000-0000-0004 | 5500000000000004 | 378282246310005 | \
         3782 822463 10005 | 6011 1111 1111 1117 | 4222222222222 | 4222 2222 2222 2 | ４１１１ １１１１ １１１１ １１１１ | \
         6304000000000000 | 4000000000000000006",
    );
    check(
        &plain(),
        &[
            // One digit wrong: what is in one run is an account's number, what is in groups is none.
            ("4111111111111112", "[account]"),
            ("378282246310006", "[account]"),
            ("4111 1111 1111 1112", "4111 1111 1111 1112"),
            ("5500-0000-0000-0005", "5500-0000-0000-0005"),
            ("3782 822463 10006", "3782 822463 10006"),
            // Two neighbours exchanged; a first digit that is no card's.
            ("4111111111111121", "[account]"),
            ("1111111111111117", "[account]"),
            ("4111 1111 1111 1111 123 12/25", "[card] 123 12/25"),
            ("$4111111111111111", "$[card]"),
        ],
    );
}

#[test]
fn accounts_are_ibans_and_long_runs_of_digits() {
    all(
        Redacted::Account,
        "DE89370400440532013000 | DE89 3704 0044 0532 0130 00 | de89370400440532013000 | \
         GB82 WEST 1234 5698 7654 32 | gb82west12345698765432 | FR14 2004 1010 0505 0001 3M02 606 | \
         NO93 8601 1117 947 | BR1800360305000010009795493C1 | MT84MALT011000012345MTLCAST001S | 12345678 | \
         5551234567 | 9876543210 | 1234567890123456789012345 | ٠١٢٣٤٥٦٧٨٩٠١٢٣٤٥٦",
    );
    check(
        &plain(),
        &[
            ("DE88370400440532013000", "DE[account]"),
            ("DE89370400440532013001", "DE[account]"),
            ("GB82 WEST 1234 5698 7654 33", "GB82 WEST 1234 5698 7654 33"),
            ("DE89 3704 0044 0532 0130 00 ist mein Konto", "[account] ist mein Konto"),
            ("IBAN:DE89370400440532013000,BIC", "IBAN:[account],BIC"),
            ("Kunde AB12345678", "Kunde AB[account]"),
            ("#12345678", "#[account]"),
            ("+1234567890123456", "+[account]"),
        ],
    );
    none("at10 we go home and then we eat something | AB12CDEFGHIJKLMNOPQ | 1234567");
}

#[test]
fn a_block_list_has_whole_words_and_phrases() {
    let redactor = Redactor::new(&[
        "ann",
        "Straße",
        "Acme Corp",
        "acme corp of ohio",
        "O'Brien",
        "C++",
        " ",
        "",
        "\tsecret   plan ",
        "οδός",
        "Łódź",
        "email",
        "555",
        "see email",
    ]);
    check(
        &redactor,
        &[
            ("Ann is planning with ANN, and Joanna", "[blocked] is planning with [blocked], and Joanna"),
            ("ann's ann_x ann2 ann-marie", "[blocked]'s ann_x ann2 [blocked]-marie"),
            ("STRASSE, straße, Straßen", "[blocked], [blocked], Straßen"),
            ("acme  corp\nacme\u{a0}Corp of Ohio, acme", "[blocked]\n[blocked], acme"),
            ("acme corp of", "[blocked] of"),
            ("o'brien o brien", "[blocked] o brien"),
            ("I know C++.", "I know [blocked]."),
            ("the SECRET plan", "the [blocked]"),
            ("ΟΔΌΣ łódź", "[blocked] [blocked]"),
            // What has a placeholder's look stays, whoever put it there.
            ("see [email] and email, see ann@example.com", "see [email] and [blocked], see [email]"),
            ("ann.lee@example.com www.ann.com", "[email] [link]"),
            ("call 555 or 555-123-4567", "call [blocked] or [phone]"),
            ("ann12345678", "[blocked][account]"),
        ],
    );
    check(&Redactor::new(&["[link]", "a [link] b", "x"]), &[("a [link] b x", "a [link] b [blocked]")]);
}

#[test]
fn a_long_block_list_and_long_texts_take_no_time() {
    let list: Vec<String> = (0..10_000).map(|n| format!("the secret of number{n} and more")).collect();
    let started = Instant::now();
    let redactor = Redactor::new(&list);
    let text = "the secret of number77 and less, the secret of number9999 AND more. ".repeat(2_000);
    let mut count = 0;
    redactor.redact(&text, &mut |_, _| count += 1);
    assert_eq!(count, 2_000);
    for piece in [
        "555 1234 ",
        "98765 43210 ",
        "555-1234-",
        "0171 ",
        "1 000 ",
        "11 98765 4321 ",
        "1",
        "1 ",
        "1 111 ",
        "111 ",
        "1,",
        "+1 ",
        "(",
        "(1",
        "0 1",
        "12.",
        "a.",
        "a@",
        "a.b@",
        "://",
        "a://",
        "www.",
        "AB12 ",
        "1-1-",
        "$1,",
        "é",
        "12 34 ",
    ] {
        redactor.redact(&format!("{}x", piece.repeat(100_000 / piece.len())), &mut |_, _| {});
    }
    // What is found must not lay bare one more thing before it, and so on.
    let fragments: Vec<&str> = FRAGMENTS.split('~').collect();
    let redactor = Redactor::new(&["ann lee", "lee 555", "1 2", "ann"]);
    let mut rng = ChaCha8Rng::seed_from_u64(8);
    for _ in 0..200 {
        let count = rng.random_range(1..6);
        let piece: String = (0..count).map(|_| fragments[rng.random_range(0..fragments.len())]).collect();
        redactor.redact(&piece.repeat(20_000 / piece.len()), &mut |_, _| {});
    }
    // Quadratic time would be many minutes.
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
}

#[test]
fn whatever_the_text_it_does_not_panic_and_a_second_time_finds_nothing() {
    let fragments: Vec<&str> = FRAGMENTS.split('~').collect();
    let redactor = Redactor::new(&["ann lee", "lee 555", "email", "ann", "1 2", "é", "com"]);
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    for _ in 0..20_000 {
        let count = rng.random_range(0..12);
        let text: String = (0..count).map(|_| fragments[rng.random_range(0..fragments.len())]).collect();
        redacted(&redactor, &text);
    }
    for _ in 0..5_000 {
        let count = rng.random_range(0..40);
        let text: String = (0..count)
            .filter_map(|_| {
                let most = if rng.random_range(0..2) == 0 { 0x80 } else { 0x11_0000 };
                char::from_u32(rng.random_range(0..most))
            })
            .collect();
        redacted(&redactor, &text);
    }
}

#[test]
fn kinds_have_names_for_people_and_for_files() {
    let names = KINDS.map(|kind| (kind.to_string(), kind.placeholder(), serde_json::to_string(&kind).unwrap()));
    let expected = [
        ("e-mail addresses", "[email]", r#""email""#),
        ("links", "[link]", r#""link""#),
        ("phone numbers", "[phone]", r#""phone""#),
        ("card numbers", "[card]", r#""card""#),
        ("account numbers", "[account]", r#""account""#),
        ("blocked words", "[blocked]", r#""blocked""#),
    ];
    assert_eq!(names, expected.map(|(name, placeholder, json)| (name.into(), placeholder, json.into())));
}
