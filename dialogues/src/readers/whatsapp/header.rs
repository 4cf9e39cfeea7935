//! What begins a message: a date in any order, a time of 12 or 24 hours. whatstk (Cabrera 2019) lists 96 forms of it; they differ in the
//! separators, the brackets, the order of the date and the names of the halves of a day.

/// A message's date, not yet understood, and its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::readers) struct Header {
    /// As they stand.
    date: [u32; 3],
    /// Whether the first has four digits.
    year_first: bool,
    /// Of the day.
    seconds: u32,
}

/// Which number of a date is what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum DateOrder {
    DayMonthYear,
    MonthDayYear,
    YearMonthDay,
}

/// What the dates of a file say about their order.
#[derive(Debug, Default)]
pub(super) struct Orders {
    orders: [Tried; 3],
}

/// The dates of a file in one order.
#[derive(Debug, Clone, Copy, Default)]
struct Tried {
    /// How many are none, or before the one before.
    wrong: usize,
    first: Option<i64>,
    last: Option<i64>,
}

const ORDERS: [DateOrder; 3] = [DateOrder::DayMonthYear, DateOrder::MonthDayYear, DateOrder::YearMonthDay];

impl Orders {
    /// Looks at the next date.
    pub(super) fn see(&mut self, header: &Header) {
        for (order, tried) in ORDERS.into_iter().zip(&mut self.orders) {
            let Some(time) = header.time(order) else {
                tried.wrong += 1;
                continue;
            };
            tried.wrong += usize::from(tried.last.is_some_and(|last| time < last));
            tried.first.get_or_insert(time);
            tried.last = Some(time);
        }
    }

    /// The order in which the fewest dates are wrong, and of those the one in which the chat took the shortest time: in a wrong one days
    /// are months or years. The day comes first where nothing tells.
    pub(super) fn order(&self) -> DateOrder {
        let span = |tried: &Tried| tried.first.zip(tried.last).map(|(first, last)| last.abs_diff(first));
        let found = ORDERS.into_iter().zip(&self.orders).min_by_key(|(_, tried)| (tried.wrong, span(tried)));
        found.map_or(DateOrder::DayMonthYear, |(order, _)| order)
    }
}

impl Header {
    /// Seconds since 1970 by the writer's clock; `None` where there is no such day.
    pub(super) fn time(&self, order: DateOrder) -> Option<i64> {
        let [a, b, c] = self.date;
        let (year, month, day) = match order {
            DateOrder::DayMonthYear => (c, b, a),
            DateOrder::MonthDayYear => (c, a, b),
            DateOrder::YearMonthDay => (a, b, c),
        };
        if self.year_first != (order == DateOrder::YearMonthDay) && (a > 99 || c > 99) {
            return None;
        }
        let year = if year < 100 { 2000 + year } else { year };
        let [month, day] = [month, day].map(i8::try_from);
        let date = jiff::civil::Date::new(i16::try_from(year).ok()?, month.ok()?, day.ok()?).ok()?;
        Some(crate::conversation::seconds(date.into()) + i64::from(self.seconds))
    }
}

/// Whether a line begins a message.
pub(in crate::readers) fn is_header(line: &str) -> bool {
    header(line).is_some()
}

/// The header of a line, and what follows it.
pub(super) fn header(line: &str) -> Option<(Header, &str)> {
    let mut at = Scan(line.trim_start_matches(super::is_mark));
    let bracketed = at.take(|character| character == '[');
    let mut date = [0; 3];
    let mut year_first = false;
    for (place, number) in date.iter_mut().enumerate() {
        let (value, digits) = at.number()?;
        *number = value;
        year_first |= place == 0 && digits == 4;
        if place < 2 && !at.take(|character| matches!(character, '/' | '.' | '-')) {
            return None;
        }
        at.blanks();
    }
    at.take(|character| character == '.');
    at.take(|character| matches!(character, ',' | '،'));
    at.blanks();
    let mut half = at.half();
    at.blanks();
    let (hour, _) = at.number()?;
    let mut rest = [0; 2];
    for (place, number) in rest.iter_mut().enumerate() {
        if !at.take(|character| matches!(character, ':' | '.')) {
            if place == 0 {
                return None;
            }
            break;
        }
        *number = at.number()?.0;
    }
    at.blanks();
    half = half.or_else(|| at.half());
    at.blanks();
    let ended = match bracketed {
        true => at.take(|character| character == ']'),
        false => at.take(|character| matches!(character, '-' | '–')),
    };
    if !ended {
        return None;
    }
    at.take(is_blank);
    let [minute, second] = rest;
    let hour = match half {
        Some(Half::Before) if hour == 12 => 0,
        Some(Half::After) if hour < 12 => hour + 12,
        _ => hour,
    };
    if hour > 24 || minute > 59 || second > 60 {
        return None;
    }
    Some((Header { date, year_first, seconds: (hour * 60 + minute) * 60 + second }, at.0))
}

/// A half of the day.
#[derive(Clone, Copy)]
enum Half {
    Before,
    After,
}

/// What is still to be read of a line.
struct Scan<'a>(&'a str);

fn is_blank(character: char) -> bool {
    matches!(character, ' ' | '\u{A0}' | '\u{202F}' | '\u{2009}' | '\t') || super::is_mark(character)
}

impl<'a> Scan<'a> {
    fn take(&mut self, is: impl Fn(char) -> bool) -> bool {
        match self.0.chars().next() {
            Some(character) if is(character) => {
                self.0 = self.0.get(character.len_utf8()..).unwrap_or_default();
                true
            }
            _ => false,
        }
    }

    fn blanks(&mut self) {
        self.0 = self.0.trim_start_matches(is_blank);
    }

    /// A number of one to four digits, of Latin or other scripts, and how many.
    fn number(&mut self) -> Option<(u32, usize)> {
        let (mut value, mut digits) = (0, 0);
        while let Some((character, digit)) = self.0.chars().next().and_then(|one| Some((one, digit(one)?))) {
            if digits == 4 {
                return None;
            }
            value = value * 10 + digit;
            digits += 1;
            self.0 = self.0.get(character.len_utf8()..).unwrap_or_default();
        }
        (digits > 0).then_some((value, digits))
    }

    /// `AM`, `p. m.`, `오후` and the like.
    fn half(&mut self) -> Option<Half> {
        let end = self.0.find(|character: char| digit(character).is_some() || "]-–:,".contains(character))?;
        let word: String = self.0.get(..end)?.chars().filter(|one| one.is_alphabetic()).collect();
        let half = match word.to_lowercase().as_str() {
            "am" | "a" | "π" | "πμ" | "오전" | "上午" | "午前" | "ص" | "vorm" | "de" | "पूर्वाह्न" => {
                Half::Before
            }
            "pm" | "p" | "μμ" | "오후" | "下午" | "午後" | "م" | "nachm" | "du" | "अपराह्न" => {
                Half::After
            }
            _ => return None,
        };
        self.0 = self.0.get(end..)?;
        Some(half)
    }
}

/// The value of a decimal digit of the scripts in which phones write dates.
fn digit(character: char) -> Option<u32> {
    const ZEROS: [char; 6] = ['0', '\u{660}', '\u{6F0}', '\u{966}', '\u{9E6}', '\u{FF10}'];
    ZEROS.into_iter().find_map(|zero| (character as u32).checked_sub(zero as u32).filter(|value| *value < 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seconds between a header's time and midnight of 2025-11-03, and what follows.
    fn found(line: &str, order: DateOrder) -> Option<(i64, &str)> {
        let midnight = jiff::civil::date(2025, 11, 3).duration_since(jiff::civil::date(1970, 1, 1)).as_secs();
        let (header, rest) = header(line)?;
        Some((header.time(order)? - midnight, rest))
    }

    #[test]
    fn the_forms_of_many_languages_are_read() {
        use DateOrder::{DayMonthYear as Day, MonthDayYear as Month, YearMonthDay as Year};
        let at = (18 * 60 + 4) * 60;
        for (line, order, seconds) in [
            ("[03/11/2025, 18:04:11] Ada: x", Day, at + 11),
            ("[3/11/25, 6:04:11 PM] Ada: x", Day, at + 11),
            ("[11/3/25, 6:04:11\u{202F}PM] Ada: x", Month, at + 11),
            ("\u{200E}[2025-11-03, 6:04:11 PM] Ada: x", Year, at + 11),
            ("[03.11.25, 18:04:11] Ada: x", Day, at + 11),
            ("03/11/2025, 18:04 - Ada: x", Day, at),
            ("03.11.25, 18:04 - Ada: x", Day, at),
            ("3.11.2025 18:04 - Ada: x", Day, at),
            ("3. 11. 2025 18:04 - Ada: x", Day, at),
            ("11/3/25, 6:04 PM - Ada: x", Month, at),
            ("3/11/25, 6:04 p. m. - Ada: x", Day, at),
            ("3/11/25 6:04\u{A0}p.\u{A0}m. - Ada: x", Day, at),
            ("2025/11/03, 18:04 - Ada: x", Year, at),
            ("2025-11-03 18.04 - Ada: x", Year, at),
            ("2025. 11. 3. 오후 6:04 - Ada: x", Year, at),
            ("٣/١١/٢٠٢٥، ٦:٠٤ م - Ada: x", Day, at),
            ("3/11/2025, 18.04 - Ada: x", Day, at),
            ("03/11/2025, 12:04 am – Ada: x", Day, 4 * 60),
        ] {
            assert_eq!(found(line, order), Some((seconds, "Ada: x")), "{line}");
        }
    }

    #[test]
    fn what_is_no_header_is_none() {
        for line in [
            "",
            "[",
            "3/11",
            "[03/11/2025, 18:04:11 Ada: x",
            "03/11/2025 - Ada: x",
            "hello: 3/11/25, 18:04 - x",
            "03/11/2025, 99:04 - Ada: x",
            "12345/1/1, 18:04 - x",
            "3/11/25, 18:04",
            "1 your persona: i ski.",
        ] {
            assert_eq!(header(line), None, "{line}");
        }
        assert_eq!(found("31/02/2025, 18:04 - Ada: x", DateOrder::DayMonthYear), None);
    }

    #[test]
    fn the_order_is_that_in_which_time_goes_on() {
        let order = |lines: &[&str]| {
            let mut orders = Orders::default();
            lines.iter().for_each(|line| orders.see(&header(line).unwrap().0));
            orders.order()
        };
        assert_eq!(order(&["03/11/2025, 18:04 - a"]), DateOrder::DayMonthYear);
        assert_eq!(order(&["03/11/2025, 18:04 - a", "03/28/2025, 18:04 - a"]), DateOrder::MonthDayYear);
        assert_eq!(order(&["3/4/25, 18:04 - a", "3/6/25, 18:04 - a", "4/1/25, 18:04 - a"]), DateOrder::MonthDayYear);
        assert_eq!(order(&["3/4/25, 18:04 - a", "6/4/25, 18:04 - a", "1/5/25, 18:04 - a"]), DateOrder::DayMonthYear);
        assert_eq!(order(&["3/4/25, 6:04 PM - a", "3/5/25, 6:04 PM - a"]), DateOrder::MonthDayYear);
        assert_eq!(order(&["2025-03-04, 18:04 - a"]), DateOrder::YearMonthDay);
        assert_eq!(
            order(&["25/03/04, 18:04 - a", "25/04/03, 18:04 - a", "26/01/01, 18:04 - a"]),
            DateOrder::YearMonthDay
        );
    }
}
