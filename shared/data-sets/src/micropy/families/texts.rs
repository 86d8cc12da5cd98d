//! Families over texts and words.

use super::{Kind, Task, none, task, text, text_with};
use crate::micropy::parts::{Cut, LETTERS};
use crate::micropy::value::{Input, Value};

/// Every task of these families.
pub(super) fn tasks() -> Vec<Task> {
    let families: [fn() -> Vec<Task>; 5] = [
        text_transform,
        text_letter,
        text_slice,
        words,
        text_composition,
    ];
    families.iter().flat_map(|family| family()).collect()
}

fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| {
        first.to_uppercase().chain(chars).collect()
    })
}

fn text_transform() -> Vec<Task> {
    type Row = (
        &'static str,
        [&'static str; 2],
        [&'static str; 2],
        fn(&str) -> String,
    );
    let rows: [Row; 7] = [
        (
            "upper",
            ["s in upper case", "s with capital letters"],
            ["return s.upper()", "return ''.join(x.upper() for x in s)"],
            str::to_uppercase,
        ),
        (
            "reversed",
            ["s reversed", "the letters of s in reverse order"],
            ["return s[::-1]", "return ''.join(reversed(s))"],
            |s| s.chars().rev().collect(),
        ),
        (
            "capitalised",
            ["s with a capital first letter", "s capitalised"],
            ["return s.capitalize()", "return s[:1].upper() + s[1:]"],
            capitalised,
        ),
        (
            "twice",
            ["s twice", "s followed by s"],
            ["return s + s", "return s * 2"],
            |s| s.repeat(2),
        ),
        (
            "sorted",
            ["the letters of s sorted", "s with its letters in order"],
            [
                "return ''.join(sorted(s))",
                "r = sorted(s)\nreturn ''.join(r)",
            ],
            |s| {
                let mut letters: Vec<char> = s.chars().collect();
                letters.sort_unstable();
                letters.into_iter().collect()
            },
        ),
        (
            "mirrored",
            ["s followed by its reverse", "s and then s reversed"],
            ["return s + s[::-1]", "r = s[::-1]\nreturn s + r"],
            |s| s.chars().chain(s.chars().rev()).collect(),
        ),
        (
            "without_vowels",
            ["s without vowels", "the letters of s that are no vowels"],
            [
                "return ''.join(x for x in s if x not in 'aeiou')",
                "r = ''\nfor x in s:\n    if x not in 'aeiou':\n        r += x\nreturn r",
            ],
            |s| s.replace(['a', 'e', 'i', 'o', 'u'], ""),
        ),
    ];
    let mut tasks: Vec<Task> = rows
        .into_iter()
        .map(|(key, phrases, bodies, apply)| {
            task("text_transform", key, "s")
                .say(&phrases)
                .body(bodies[0])
                .body(bodies[1])
                .input(text())
                .value(move |v| Value::Str(apply(v[0].text())))
        })
        .collect();
    tasks.push(
        task("text_transform", "vowels", "s")
            .say(&["the number of vowels in s", "how many vowels s has"])
            .returns("sum(x in 'aeiou' for x in s)")
            .returns("len([x for x in s if x in 'aeiou'])")
            .body("t = 0\nfor x in s:\n    if x in 'aeiou':\n        t += 1\nreturn t")
            .input(text())
            .value(|v| {
                Value::Int(v[0].text().chars().filter(|&c| "aeiou".contains(c)).count() as i64)
            }),
    );
    tasks.push(
        task("text_transform", "palindrome", "s")
            .say(&[
                "whether s is a palindrome",
                "True if s equals its reverse, else False",
            ])
            .returns("s == s[::-1]")
            .body("r = s[::-1]\nreturn r == s")
            .input(Input::Text {
                min_len: 0,
                letters: "ab".to_owned(),
            })
            .value(|v| Value::Bool(v[0].text().chars().eq(v[0].text().chars().rev()))),
    );
    tasks
}

fn text_letter() -> Vec<Task> {
    let mut tasks = Vec::new();
    for c in LETTERS {
        tasks.push(
            task("text_letter", format!("count_{c}"), "s")
                .kind(Kind::Constant)
                .say(&[
                    &format!("how often '{c}' occurs in s"),
                    &format!("the number of '{c}' in s"),
                ])
                .returns(format!("s.count('{c}')"))
                .body(format!(
                    "t = 0\nfor x in s:\n    if x == '{c}':\n        t += 1\nreturn t"
                ))
                .input(text_with(&c.to_string()))
                .value(move |v| Value::Int(v[0].text().matches(c).count() as i64)),
        );
        tasks.push(
            task("text_letter", format!("contains_{c}"), "s")
                .kind(Kind::Constant)
                .say(&[
                    &format!("whether '{c}' is in s"),
                    &format!("True if s contains '{c}', else False"),
                ])
                .returns(format!("'{c}' in s"))
                .returns(format!("s.count('{c}') > 0"))
                .input(text_with(&c.to_string()))
                .value(move |v| Value::Bool(v[0].text().contains(c))),
        );
        tasks.push(
            task("text_letter", format!("without_{c}"), "s")
                .kind(Kind::Constant)
                .say(&[
                    &format!("s without '{c}'"),
                    &format!("s with every '{c}' left out"),
                ])
                .returns(format!("s.replace('{c}', '')"))
                .returns(format!("''.join(x for x in s if x != '{c}')"))
                .input(text_with(&c.to_string()))
                .value(move |v| Value::Str(v[0].text().replace(c, ""))),
        );
    }
    tasks
}

fn cut_text(cut: Cut, text: &str) -> String {
    cut.apply(&text.chars().collect::<Vec<_>>())
        .into_iter()
        .collect()
}

fn text_slice() -> Vec<Task> {
    Cut::all()
        .into_iter()
        .map(|cut| {
            task("text_slice", cut.key(), "s")
                .kind(Kind::Constant)
                .say_with(
                    &["{0} of s", "{0} of the text s"],
                    &cut.noun("letters"),
                    &none(),
                )
                .returns(cut.code("s"))
                .body(format!("r = {}\nreturn r", cut.code("s")))
                .input(text())
                .value(move |v| Value::Str(cut_text(cut, v[0].text())))
        })
        .collect()
}

fn words() -> Vec<Task> {
    type Row = (
        &'static str,
        [&'static str; 2],
        [&'static str; 2],
        fn(&[&str]) -> Value,
    );
    fn texts<'a>(words: impl Iterator<Item = &'a str>) -> Value {
        Value::Strs(words.map(str::to_owned).collect())
    }
    let rows: [Row; 8] = [
        (
            "list",
            ["the list of the words of s", "s cut into words"],
            ["return s.split()", "return [x for x in s.split()]"],
            |w| texts(w.iter().copied()),
        ),
        (
            "count",
            ["the number of words of s", "how many words s has"],
            [
                "return len(s.split())",
                "t = 0\nfor x in s.split():\n    t += 1\nreturn t",
            ],
            |w| Value::Int(w.len() as i64),
        ),
        (
            "first",
            ["the first word of s", "the word that s begins with"],
            ["return s.split()[0]", "r = s.split()\nreturn r[0]"],
            |w| Value::Str(w[0].to_owned()),
        ),
        (
            "last",
            ["the last word of s", "the word that s ends with"],
            ["return s.split()[-1]", "r = s.split()\nreturn r[-1]"],
            |w| Value::Str(w[w.len() - 1].to_owned()),
        ),
        (
            "reversed",
            [
                "the words of s in reverse order",
                "the list of the words of s reversed",
            ],
            [
                "return s.split()[::-1]",
                "r = s.split()\nr.reverse()\nreturn r",
            ],
            |w| texts(w.iter().rev().copied()),
        ),
        (
            "lengths",
            [
                "the length of each word of s",
                "the list of the lengths of the words of s",
            ],
            [
                "return [len(x) for x in s.split()]",
                "r = []\nfor x in s.split():\n    r.append(len(x))\nreturn r",
            ],
            |w| Value::Ints(w.iter().map(|x| x.len() as i64).collect()),
        ),
        (
            "initials",
            [
                "the first letter of each word of s",
                "the list of the initials of the words of s",
            ],
            [
                "return [x[0] for x in s.split()]",
                "r = []\nfor x in s.split():\n    r.append(x[0])\nreturn r",
            ],
            |w| texts(w.iter().map(|x| &x[..1])),
        ),
        (
            "longest",
            [
                "the length of the longest word of s",
                "how long the longest word of s is",
            ],
            [
                "return max(len(x) for x in s.split())",
                "t = 0\nfor x in s.split():\n    t = max(t, len(x))\nreturn t",
            ],
            |w| Value::Int(w.iter().map(|x| x.len() as i64).max().unwrap_or(0)),
        ),
    ];
    rows.into_iter()
        .map(|(key, phrases, bodies, apply)| {
            task("words", key, "s")
                .say(&phrases)
                .body(bodies[0])
                .body(bodies[1])
                .input(Input::Sentence)
                .value(move |v| apply(&v[0].text().split(' ').collect::<Vec<_>>()))
        })
        .collect()
}

fn text_composition() -> Vec<Task> {
    type Change = (&'static str, &'static str, &'static str, fn(&str) -> String);
    let changes: [Change; 4] = [
        ("upper", "in upper case", ".upper()", str::to_uppercase),
        ("reversed", "reversed", "[::-1]", |s| {
            s.chars().rev().collect()
        }),
        ("twice", "repeated twice", " * 2", |s| s.repeat(2)),
        ("capitalised", "capitalised", ".capitalize()", capitalised),
    ];
    let mut tasks = Vec::new();
    for cut in Cut::all() {
        for (key, phrase, code, apply) in changes {
            let part = cut.code("s");
            tasks.push(
                task("text_composition", format!("{}_{key}", cut.key()), "s")
                    .kind(Kind::Composition)
                    .say_with(
                        &["{0} of s, {1}", "{0} of s, then {1}"],
                        &cut.noun("letters"),
                        &[phrase.to_owned()],
                    )
                    .returns(format!("{part}{code}"))
                    .body(format!("r = {part}\nreturn r{code}"))
                    .input(text())
                    .value(move |v| Value::Str(apply(&cut_text(cut, v[0].text())))),
            );
        }
    }
    tasks
}
