//! The parts that tasks are composed of: each knows how it is said, how Python writes it and what it computes.

use std::ops::RangeInclusive;

/// Constants that tasks are made with: few, so that a micro model meets each one often.
pub(super) const CONSTANTS: RangeInclusive<i64> = 2..=3;

/// Constants that multiply or divide; doubling and evenness have words of their own.
const FACTORS: RangeInclusive<i64> = 3..=4;

/// Letters that tasks ask for.
pub(super) const LETTERS: [char; 2] = ['a', 'e'];

/// A condition on a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Condition {
    Even,
    Odd,
    Positive,
    Negative,
    Above(i64),
    Below(i64),
    Divisible(i64),
}

/// A change of a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Double,
    Square,
    Negate,
    Magnitude,
    Plus(i64),
    Minus(i64),
    Times(i64),
}

/// An order of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Reversed,
    Ascending,
    Descending,
}

/// A part of a list or text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    First(usize),
    Last(usize),
    WithoutFirst(usize),
    WithoutLast(usize),
}

/// A number made of a list of numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Total {
    Sum,
    Largest,
    Smallest,
}

impl Condition {
    pub(super) fn all() -> Vec<Self> {
        let mut all = vec![Self::Even, Self::Odd, Self::Positive, Self::Negative];
        all.extend(CONSTANTS.map(Self::Above));
        all.extend(CONSTANTS.map(Self::Below));
        all.extend(FACTORS.map(Self::Divisible));
        all
    }

    pub(super) fn key(self) -> String {
        match self {
            Self::Even => "even".to_owned(),
            Self::Odd => "odd".to_owned(),
            Self::Positive => "positive".to_owned(),
            Self::Negative => "negative".to_owned(),
            Self::Above(k) => format!("above{k}"),
            Self::Below(k) => format!("below{k}"),
            Self::Divisible(k) => format!("divisible{k}"),
        }
    }

    pub(super) fn has_constant(self) -> bool {
        matches!(self, Self::Above(_) | Self::Below(_) | Self::Divisible(_))
    }

    /// "…", as in "the … of a".
    pub(super) fn plural(self) -> Vec<String> {
        match self {
            Self::Divisible(k) => vec![
                format!("numbers divisible by {k}"),
                format!("multiples of {k}"),
            ],
            Self::Even | Self::Odd | Self::Positive | Self::Negative => {
                vec![format!("{} numbers", self.key())]
            }
            Self::Above(_) | Self::Below(_) => self
                .adjective()
                .iter()
                .map(|is| format!("numbers {is}"))
                .collect(),
        }
    }

    /// "…", as in "n is …".
    pub(super) fn adjective(self) -> Vec<String> {
        match self {
            Self::Above(k) => vec![format!("above {k}"), format!("greater than {k}")],
            Self::Below(k) => vec![format!("below {k}"), format!("less than {k}")],
            Self::Divisible(k) => vec![format!("divisible by {k}"), format!("a multiple of {k}")],
            _ => vec![self.key()],
        }
    }

    pub(super) fn code(self, x: &str) -> String {
        match self {
            Self::Even => format!("{x} % 2 == 0"),
            Self::Odd => format!("{x} % 2 == 1"),
            Self::Positive => format!("{x} > 0"),
            Self::Negative => format!("{x} < 0"),
            Self::Above(k) => format!("{x} > {k}"),
            Self::Below(k) => format!("{x} < {k}"),
            Self::Divisible(k) => format!("{x} % {k} == 0"),
        }
    }

    pub(super) fn holds(self, x: i64) -> bool {
        match self {
            Self::Even => x % 2 == 0,
            Self::Odd => x % 2 != 0,
            Self::Positive => x > 0,
            Self::Negative => x < 0,
            Self::Above(k) => x > k,
            Self::Below(k) => x < k,
            Self::Divisible(k) => x % k == 0,
        }
    }

    pub(super) fn points(self) -> Vec<i64> {
        match self {
            Self::Even | Self::Odd => vec![0, 1, 2],
            Self::Positive | Self::Negative => vec![-1, 0, 1],
            Self::Above(k) | Self::Below(k) => vec![k - 1, k, k + 1],
            Self::Divisible(k) => vec![0, k, k + 1, 2 * k, -k],
        }
    }
}

impl Change {
    pub(super) fn all() -> Vec<Self> {
        let mut all = vec![Self::Double, Self::Square, Self::Negate, Self::Magnitude];
        all.extend(CONSTANTS.map(Self::Plus));
        all.extend(CONSTANTS.map(Self::Minus));
        all.extend(FACTORS.map(Self::Times));
        all
    }

    pub(super) fn key(self) -> String {
        match self {
            Self::Double => "double".to_owned(),
            Self::Square => "square".to_owned(),
            Self::Negate => "negate".to_owned(),
            Self::Magnitude => "magnitude".to_owned(),
            Self::Plus(k) => format!("plus{k}"),
            Self::Minus(k) => format!("minus{k}"),
            Self::Times(k) => format!("times{k}"),
        }
    }

    pub(super) fn has_constant(self) -> bool {
        matches!(self, Self::Plus(_) | Self::Minus(_) | Self::Times(_))
    }

    /// "…", as in "each number …".
    pub(super) fn participle(self) -> Vec<String> {
        match self {
            Self::Double => vec!["doubled".to_owned()],
            Self::Square => vec!["squared".to_owned()],
            Self::Negate => vec!["negated".to_owned()],
            Self::Magnitude => vec!["without its sign".to_owned()],
            Self::Plus(k) => vec![format!("plus {k}"), format!("increased by {k}")],
            Self::Minus(k) => vec![format!("minus {k}"), format!("decreased by {k}")],
            Self::Times(k) => vec![format!("times {k}"), format!("multiplied by {k}")],
        }
    }

    pub(super) fn code(self, x: &str) -> String {
        match self {
            Self::Double => format!("{x} * 2"),
            Self::Square => format!("{x} * {x}"),
            Self::Negate => format!("-{x}"),
            Self::Magnitude => format!("abs({x})"),
            Self::Plus(k) => format!("{x} + {k}"),
            Self::Minus(k) => format!("{x} - {k}"),
            Self::Times(k) => format!("{x} * {k}"),
        }
    }

    pub(super) fn apply(self, x: i64) -> i64 {
        match self {
            Self::Double => x * 2,
            Self::Square => x * x,
            Self::Negate => -x,
            Self::Magnitude => x.abs(),
            Self::Plus(k) => x + k,
            Self::Minus(k) => x - k,
            Self::Times(k) => x * k,
        }
    }
}

impl Order {
    pub(super) const ALL: [Self; 3] = [Self::Reversed, Self::Ascending, Self::Descending];

    pub(super) fn key(self) -> &'static str {
        match self {
            Self::Reversed => "reversed",
            Self::Ascending => "ascending",
            Self::Descending => "descending",
        }
    }

    /// "…", as in "a …".
    pub(super) fn participle(self) -> Vec<String> {
        match self {
            Self::Reversed => vec!["reversed".to_owned(), "in reverse order".to_owned()],
            Self::Ascending => vec!["sorted".to_owned(), "in ascending order".to_owned()],
            Self::Descending => vec![
                "sorted downwards".to_owned(),
                "in descending order".to_owned(),
            ],
        }
    }

    pub(super) fn code(self, a: &str) -> String {
        match self {
            Self::Reversed => format!("{a}[::-1]"),
            Self::Ascending => format!("sorted({a})"),
            Self::Descending => format!("sorted({a}, reverse=True)"),
        }
    }

    pub(super) fn apply(self, a: &[i64]) -> Vec<i64> {
        let mut a = a.to_vec();
        match self {
            Self::Reversed => a.reverse(),
            Self::Ascending => a.sort_unstable(),
            Self::Descending => {
                a.sort_unstable();
                a.reverse();
            }
        }
        a
    }
}

impl Cut {
    pub(super) fn all() -> Vec<Self> {
        CONSTANTS
            .flat_map(|k| {
                let k = k as usize;
                [
                    Self::First(k),
                    Self::Last(k),
                    Self::WithoutFirst(k),
                    Self::WithoutLast(k),
                ]
            })
            .collect()
    }

    pub(super) fn key(self) -> String {
        match self {
            Self::First(k) => format!("first{k}"),
            Self::Last(k) => format!("last{k}"),
            Self::WithoutFirst(k) => format!("without_first{k}"),
            Self::WithoutLast(k) => format!("without_last{k}"),
        }
    }

    /// "… of a": the part's name with the things that it counts.
    pub(super) fn noun(self, things: &str) -> Vec<String> {
        match self {
            Self::First(k) => vec![format!("the first {k} {things}")],
            Self::Last(k) => vec![format!("the last {k} {things}")],
            Self::WithoutFirst(k) => vec![format!("all but the first {k} {things}")],
            Self::WithoutLast(k) => vec![format!("all but the last {k} {things}")],
        }
    }

    pub(super) fn code(self, a: &str) -> String {
        match self {
            Self::First(k) => format!("{a}[:{k}]"),
            Self::Last(k) => format!("{a}[-{k}:]"),
            Self::WithoutFirst(k) => format!("{a}[{k}:]"),
            Self::WithoutLast(k) => format!("{a}[:-{k}]"),
        }
    }

    pub(super) fn apply<T: Clone>(self, a: &[T]) -> Vec<T> {
        let len = a.len();
        match self {
            Self::First(k) => a[..k.min(len)].to_vec(),
            Self::Last(k) => a[len.saturating_sub(k)..].to_vec(),
            Self::WithoutFirst(k) => a[k.min(len)..].to_vec(),
            Self::WithoutLast(k) => a[..len.saturating_sub(k)].to_vec(),
        }
    }

    pub(super) fn leaves_something_of(self, len: usize) -> bool {
        match self {
            Self::First(_) | Self::Last(_) => len > 0,
            Self::WithoutFirst(k) | Self::WithoutLast(k) => len > k,
        }
    }
}

impl Total {
    pub(super) const ALL: [Self; 3] = [Self::Sum, Self::Largest, Self::Smallest];

    pub(super) fn key(self) -> &'static str {
        match self {
            Self::Sum => "sum",
            Self::Largest => "largest",
            Self::Smallest => "smallest",
        }
    }

    /// "the … of …".
    pub(super) fn noun(self) -> Vec<String> {
        match self {
            Self::Sum => vec!["sum".to_owned(), "total".to_owned()],
            Self::Largest => vec!["largest".to_owned(), "maximum".to_owned()],
            Self::Smallest => vec!["smallest".to_owned(), "minimum".to_owned()],
        }
    }

    pub(super) fn function(self) -> &'static str {
        match self {
            Self::Sum => "sum",
            Self::Largest => "max",
            Self::Smallest => "min",
        }
    }

    /// # Panics
    /// For the extremes of nothing: such tasks never draw an empty list.
    pub(super) fn of(self, items: impl Iterator<Item = i64>) -> i64 {
        match self {
            Self::Sum => items.sum(),
            Self::Largest => items.max().expect("extremes are asked of something"),
            Self::Smallest => items.min().expect("extremes are asked of something"),
        }
    }

    /// Lines that collect `value` for every `x` of `source` by hand.
    pub(super) fn loop_body(self, source: &str, value: &str) -> String {
        match self {
            Self::Sum => format!("t = 0\nfor x in {source}:\n    t += {value}\nreturn t"),
            Self::Largest | Self::Smallest => {
                let sign = if self == Self::Largest { ">" } else { "<" };
                format!(
                    "t = None\nfor x in {source}:\n    if t is None or {value} {sign} t:\n        t = {value}\nreturn t"
                )
            }
        }
    }
}
