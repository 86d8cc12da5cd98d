//! Values that micropy programs take and return, written as Python writes them, and random arguments.

use rand::Rng;
use rand::seq::IndexedRandom;

/// A Python value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Int(i64),
    Bool(bool),
    Str(String),
    Ints(Vec<i64>),
    Strs(Vec<String>),
    /// In insertion order.
    Dict(Vec<(String, i64)>),
    /// In insertion order.
    IntDict(Vec<(i64, i64)>),
}

impl Value {
    /// The Python literal. Texts hold letters and blanks only, so quoting is plain.
    pub(super) fn literal(&self) -> String {
        match self {
            Self::Int(value) => value.to_string(),
            Self::Bool(value) => if *value { "True" } else { "False" }.to_owned(),
            Self::Str(text) => quoted(text),
            Self::Ints(items) => format!("[{}]", joined(items.iter().map(ToString::to_string))),
            Self::Strs(items) => format!("[{}]", joined(items.iter().map(|item| quoted(item)))),
            Self::Dict(items) => format!(
                "{{{}}}",
                joined(items.iter().map(|(k, v)| format!("{}: {v}", quoted(k))))
            ),
            Self::IntDict(items) => format!(
                "{{{}}}",
                joined(items.iter().map(|(k, v)| format!("{k}: {v}")))
            ),
        }
    }

    pub(super) fn int(&self) -> i64 {
        match self {
            Self::Int(value) => *value,
            other => unreachable!("an int is expected, not {other:?}"),
        }
    }

    pub(super) fn text(&self) -> &str {
        match self {
            Self::Str(text) => text,
            other => unreachable!("a text is expected, not {other:?}"),
        }
    }

    pub(super) fn ints(&self) -> &[i64] {
        match self {
            Self::Ints(items) => items,
            other => unreachable!("a list of ints is expected, not {other:?}"),
        }
    }

    pub(super) fn dict(&self) -> &[(String, i64)] {
        match self {
            Self::Dict(items) => items,
            other => unreachable!("a dictionary is expected, not {other:?}"),
        }
    }
}

fn quoted(text: &str) -> String {
    format!("'{text}'")
}

fn joined(items: impl Iterator<Item = String>) -> String {
    items.collect::<Vec<_>>().join(", ")
}

/// How one argument is drawn. `points` are values near which programs differ: constants of the task and their
/// neighbours. A number takes each of them once, lists and dictionaries hold them often.
#[derive(Debug, Clone)]
pub(super) enum Input {
    Int {
        low: i64,
        high: i64,
        points: Vec<i64>,
    },
    Ints {
        min_len: usize,
        points: Vec<i64>,
    },
    /// Every other list holds numbers of `points` only.
    IntsOf {
        points: Vec<i64>,
    },
    /// As long as the first argument.
    SameLength,
    Text {
        min_len: usize,
        letters: String,
    },
    Sentence,
    Dict {
        min_len: usize,
        points: Vec<i64>,
    },
}

const LONGEST: usize = 6;
const WORDS: [&str; 12] = [
    "sun", "moon", "tree", "a", "river", "to", "stone", "cat", "house", "go", "apple", "sea",
];
const KEYS: [&str; 8] = ["a", "b", "c", "d", "e", "k", "x", "y"];

impl Input {
    /// One argument; the 0th of a task is the smallest that is allowed.
    pub(super) fn draw(&self, index: usize, earlier: &[Value], rng: &mut impl Rng) -> Value {
        let mut len = |min: usize| {
            if index == 0 {
                min
            } else {
                rng.random_range(min.max(2)..=LONGEST)
            }
        };
        match self {
            Self::Int { low, high, points } => Value::Int(match index {
                0 => *low,
                _ => points
                    .get(index - 1)
                    .copied()
                    .unwrap_or_else(|| rng.random_range(*low..=*high)),
            }),
            Self::Ints { min_len, points } => {
                let len = len(*min_len);
                Value::Ints((0..len).map(|_| number(-9, 12, points, rng)).collect())
            }
            Self::IntsOf { points } => {
                let len = len(0);
                let draw = |_| match points.choose(rng) {
                    Some(&point) if index.is_multiple_of(2) => point,
                    _ => number(-9, 12, points, rng),
                };
                Value::Ints((0..len).map(draw).collect())
            }
            Self::SameLength => {
                let len = earlier.first().map_or(0, |first| first.ints().len());
                Value::Ints((0..len).map(|_| number(-9, 12, &[], rng)).collect())
            }
            Self::Text { min_len, letters } => {
                let len = len(*min_len);
                let letters: Vec<char> = letters.chars().collect();
                Value::Str((0..len).filter_map(|_| letters.choose(rng)).collect())
            }
            Self::Sentence => {
                let len = if index == 0 {
                    1
                } else {
                    rng.random_range(2..=4)
                };
                let words: Vec<&str> = WORDS.choose_multiple(rng, len).copied().collect();
                Value::Str(words.join(" "))
            }
            Self::Dict { min_len, points } => {
                let len = len(*min_len);
                let keys: Vec<&str> = KEYS.choose_multiple(rng, len).copied().collect();
                Value::Dict(
                    keys.into_iter()
                        .map(|key| (key.to_owned(), number(-9, 12, points, rng)))
                        .collect(),
                )
            }
        }
    }
}

/// Every third number comes from `points`.
fn number(low: i64, high: i64, points: &[i64], rng: &mut impl Rng) -> i64 {
    match points.choose(rng) {
        Some(&point) if rng.random_range(0..3) == 0 => point,
        _ => rng.random_range(low..=high),
    }
}
