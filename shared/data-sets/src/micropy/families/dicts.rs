//! Families over dictionaries.

use std::collections::BTreeSet;

use super::{Task, ints, none, task, text};
use crate::micropy::parts::{Change, Condition, Order, Total};
use crate::micropy::value::{Input, Value};

/// Every task of these families.
pub(super) fn tasks() -> Vec<Task> {
    let families: [fn() -> Vec<Task>; 4] = [dict_aggregate, dict_filter, dict_build, dict_change];
    families.iter().flat_map(|family| family()).collect()
}

fn dict(min_len: usize, points: Vec<i64>) -> Input {
    Input::Dict { min_len, points }
}

fn dict_aggregate() -> Vec<Task> {
    let mut tasks: Vec<Task> = Total::ALL
        .into_iter()
        .map(|total| {
            task("dict_aggregate", total.key(), "d")
                .say_with(
                    &["the {0} of the values of d", "the {0} of all values in d"],
                    &total.noun(),
                    &none(),
                )
                .returns(format!("{}(d.values())", total.function()))
                .returns(format!("{}(d[k] for k in d)", total.function()))
                .input(dict(usize::from(total != Total::Sum), Vec::new()))
                .value(move |v| Value::Int(total.of(v[0].dict().iter().map(|&(_, x)| x))))
        })
        .collect();
    tasks.push(
        task("dict_aggregate", "count", "d")
            .say(&["the number of keys of d", "how many keys d has"])
            .returns("len(d)")
            .returns("len(d.keys())")
            .input(dict(0, Vec::new()))
            .value(|v| Value::Int(v[0].dict().len() as i64)),
    );
    tasks.push(
        task("dict_aggregate", "sorted_keys", "d")
            .say(&["the keys of d sorted", "the sorted list of the keys of d"])
            .returns("sorted(d)")
            .returns("sorted(d.keys())")
            .input(dict(0, Vec::new()))
            .value(|v| {
                Value::Strs(
                    v[0].dict()
                        .iter()
                        .map(|(k, _)| k.clone())
                        .collect::<BTreeSet<_>>()
                        .into_iter()
                        .collect(),
                )
            }),
    );
    tasks.push(
        task("dict_aggregate", "sorted_values", "d")
            .say(&[
                "the values of d sorted",
                "the sorted list of the values of d",
            ])
            .returns("sorted(d.values())")
            .returns("sorted(d[k] for k in d)")
            .input(dict(0, Vec::new()))
            .value(|v| {
                Value::Ints(
                    Order::Ascending
                        .apply(&v[0].dict().iter().map(|&(_, x)| x).collect::<Vec<_>>()),
                )
            }),
    );
    tasks.push(
        task("dict_aggregate", "best_key", "d")
            .say(&[
                "the key of d with the largest value",
                "the key with the maximum value in d",
            ])
            .returns("max(d, key=d.get)")
            .returns("max(d, key=lambda k: d[k])")
            .input(dict(1, Vec::new()))
            .value(|v| {
                let items = v[0].dict();
                let best = Total::Largest.of(items.iter().map(|&(_, x)| x));
                let first = items
                    .iter()
                    .find(|&&(_, x)| x == best)
                    .map(|(k, _)| k.clone());
                Value::Str(first.unwrap_or_default())
            }),
    );
    tasks
}

fn dict_filter() -> Vec<Task> {
    Condition::all()
        .into_iter()
        .map(|condition| {
            let code = condition.code("d[k]");
            task("dict_filter", condition.key(), "d")
                .constant_if(condition.has_constant())
                .say_with(
                    &[
                        "the keys of d whose value is {0}",
                        "the list of the keys of d with a value that is {0}",
                    ],
                    &condition.adjective(),
                    &none(),
                )
                .returns(format!("[k for k in d if {code}]"))
                .body(format!(
                    "r = []\nfor k in d:\n    if {code}:\n        r.append(k)\nreturn r"
                ))
                .input(dict(0, condition.points()))
                .value(move |v| {
                    let kept = v[0].dict().iter().filter(|&&(_, x)| condition.holds(x));
                    Value::Strs(kept.map(|(k, _)| k.clone()).collect())
                })
        })
        .collect()
}

fn dict_build() -> Vec<Task> {
    vec![
        task("dict_build", "lengths", "s")
            .say(&[
                "a dictionary from each word of s to its length",
                "a dict of the words of s and their lengths",
            ])
            .returns("{x: len(x) for x in s.split()}")
            .body("d = {}\nfor x in s.split():\n    d[x] = len(x)\nreturn d")
            .input(Input::Sentence)
            .value(|v| {
                Value::Dict(
                    v[0].text()
                        .split(' ')
                        .map(|x| (x.to_owned(), x.len() as i64))
                        .collect(),
                )
            }),
        task("dict_build", "letters", "s")
            .say(&[
                "a dictionary from each letter of s to its count",
                "a dict of the letters of s and how often each occurs",
            ])
            .returns("{x: s.count(x) for x in s}")
            .body("d = {}\nfor x in s:\n    d[x] = d.get(x, 0) + 1\nreturn d")
            .input(text())
            .value(|v| {
                let text = v[0].text();
                let mut seen = BTreeSet::new();
                let letters = text.chars().filter(|&c| seen.insert(c));
                Value::Dict(
                    letters
                        .map(|c| (c.to_string(), text.matches(c).count() as i64))
                        .collect(),
                )
            }),
        task("dict_build", "squares", "a")
            .say(&[
                "a dictionary from each number of a to its square",
                "a dict of the numbers of a and their squares",
            ])
            .returns("{x: x * x for x in a}")
            .body("d = {}\nfor x in a:\n    d[x] = x * x\nreturn d")
            .input(ints(Vec::new()))
            .value(|v| int_dict(v[0].ints(), |x, _| x * x)),
        task("dict_build", "counts", "a")
            .say(&[
                "a dictionary from each number of a to its count",
                "a dict of the numbers of a and how often each occurs",
            ])
            .returns("{x: a.count(x) for x in a}")
            .body("d = {}\nfor x in a:\n    d[x] = d.get(x, 0) + 1\nreturn d")
            .input(ints(vec![1, 2, 3]))
            .value(|v| {
                int_dict(v[0].ints(), |x, a| {
                    a.iter().filter(|&&y| y == x).count() as i64
                })
            }),
    ]
}

fn int_dict(numbers: &[i64], value: fn(i64, &[i64]) -> i64) -> Value {
    let mut seen = BTreeSet::new();
    let distinct = numbers.iter().copied().filter(|&x| seen.insert(x));
    Value::IntDict(distinct.map(|x| (x, value(x, numbers))).collect())
}

fn dict_change() -> Vec<Task> {
    Change::all()
        .into_iter()
        .map(|change| {
            let code = change.code("d[k]");
            task("dict_change", change.key(), "d")
                .constant_if(change.has_constant())
                .say_with(
                    &["d with each value {0}", "the dictionary d, each value {0}"],
                    &change.participle(),
                    &none(),
                )
                .returns(format!("{{k: {code} for k in d}}"))
                .body(format!(
                    "r = {{}}\nfor k in d:\n    r[k] = {code}\nreturn r"
                ))
                .input(dict(0, vec![0]))
                .value(move |v| {
                    Value::Dict(
                        v[0].dict()
                            .iter()
                            .map(|(k, x)| (k.clone(), change.apply(*x)))
                            .collect(),
                    )
                })
        })
        .collect()
}
