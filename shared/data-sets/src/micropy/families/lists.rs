//! Families over lists of numbers.

use std::collections::BTreeSet;

use super::{Kind, Task, collect_bodies, ints, none, some_ints, task};
use crate::micropy::parts::{CONSTANTS, Change, Condition, Cut, Order, Total};
use crate::micropy::value::{Input, Value};

/// Every task of these families.
pub(super) fn tasks() -> Vec<Task> {
    let families: [fn() -> Vec<Task>; 7] = [
        aggregate, filter, change, slice, order, membership, pairwise,
    ];
    families.iter().flat_map(|family| family()).collect()
}

fn aggregate() -> Vec<Task> {
    let mut tasks: Vec<Task> = Total::ALL
        .into_iter()
        .map(|total| {
            let input = if total == Total::Sum {
                ints(Vec::new())
            } else {
                some_ints(Vec::new())
            };
            task("aggregate", total.key(), "a")
                .say_with(
                    &["the {0} of a", "the {0} of all numbers of a"],
                    &total.noun(),
                    &none(),
                )
                .returns(format!("{}(a)", total.function()))
                .body(total.loop_body("a", "x"))
                .input(input)
                .value(move |v| Value::Int(total.of(v[0].ints().iter().copied())))
        })
        .collect();
    tasks.push(
        task("aggregate", "count", "a")
            .say(&[
                "the number of elements of a",
                "the length of a",
                "how many elements a has",
            ])
            .returns("len(a)")
            .body("t = 0\nfor x in a:\n    t += 1\nreturn t")
            .input(ints(Vec::new()))
            .value(|v| Value::Int(v[0].ints().len() as i64)),
    );
    tasks.push(
        task("aggregate", "spread", "a")
            .say(&[
                "the largest minus the smallest of a",
                "the maximum of a minus the minimum of a",
            ])
            .returns("max(a) - min(a)")
            .body("a = sorted(a)\nreturn a[-1] - a[0]")
            .input(some_ints(Vec::new()))
            .value(|v| {
                let numbers = || v[0].ints().iter().copied();
                Value::Int(Total::Largest.of(numbers()) - Total::Smallest.of(numbers()))
            }),
    );
    tasks
}

fn filter() -> Vec<Task> {
    Condition::all()
        .into_iter()
        .map(|condition| {
            let code = condition.code("x");
            let builder = task("filter", condition.key(), "a")
                .constant_if(condition.has_constant())
                .say_with(
                    &["the {0} of a", "the list of the {0} in a"],
                    &condition.plural(),
                    &none(),
                );
            collect_bodies(builder, &code, "x")
                .returns(format!("list(filter(lambda x: {code}, a))"))
                .input(ints(condition.points()))
                .value(move |v| {
                    Value::Ints(
                        v[0].ints()
                            .iter()
                            .copied()
                            .filter(|&x| condition.holds(x))
                            .collect(),
                    )
                })
        })
        .collect()
}

fn change() -> Vec<Task> {
    Change::all()
        .into_iter()
        .map(|change| {
            let code = change.code("x");
            task("change", change.key(), "a")
                .constant_if(change.has_constant())
                .say_with(
                    &["each number of a {0}", "the list a with each number {0}"],
                    &change.participle(),
                    &none(),
                )
                .returns(format!("[{code} for x in a]"))
                .body(format!(
                    "r = []\nfor x in a:\n    r.append({code})\nreturn r"
                ))
                .returns(format!("list(map(lambda x: {code}, a))"))
                .input(ints(vec![0]))
                .value(move |v| Value::Ints(v[0].ints().iter().map(|&x| change.apply(x)).collect()))
        })
        .collect()
}

fn slice() -> Vec<Task> {
    Cut::all()
        .into_iter()
        .map(|cut| {
            let code = cut.code("a");
            task("slice", cut.key(), "a")
                .kind(Kind::Constant)
                .say_with(
                    &["{0} of a", "{0} of the list a"],
                    &cut.noun("elements"),
                    &none(),
                )
                .returns(&code)
                .returns(format!("list({code})"))
                .input(ints(Vec::new()))
                .value(move |v| Value::Ints(cut.apply(v[0].ints())))
        })
        .collect()
}

fn order() -> Vec<Task> {
    let mut tasks: Vec<Task> = Order::ALL
        .into_iter()
        .map(|order| {
            let second = match order {
                Order::Reversed => "return list(reversed(a))",
                Order::Ascending => "r = list(a)\nr.sort()\nreturn r",
                Order::Descending => "return sorted(a)[::-1]",
            };
            task("order", order.key(), "a")
                .say_with(&["a {0}", "the list a {0}"], &order.participle(), &none())
                .returns(order.code("a"))
                .body(second)
                .input(ints(Vec::new()))
                .value(move |v| Value::Ints(order.apply(v[0].ints())))
        })
        .collect();
    tasks.push(
        task("order", "distinct", "a")
            .say(&[
                "a without duplicates, in order",
                "the distinct numbers of a, in order",
            ])
            .returns("list(dict.fromkeys(a))")
            .body("r = []\nfor x in a:\n    if x not in r:\n        r.append(x)\nreturn r")
            .input(ints(vec![1, 2, 3]))
            .value(|v| {
                let mut seen = BTreeSet::new();
                Value::Ints(
                    v[0].ints()
                        .iter()
                        .copied()
                        .filter(|&x| seen.insert(x))
                        .collect(),
                )
            }),
    );
    tasks.push(
        task("order", "sorted_distinct", "a")
            .say(&[
                "a sorted without duplicates",
                "the distinct numbers of a, sorted",
            ])
            .returns("sorted(set(a))")
            .body("return sorted(dict.fromkeys(a))")
            .input(ints(vec![1, 2, 3]))
            .value(|v| {
                Value::Ints(
                    v[0].ints()
                        .iter()
                        .copied()
                        .collect::<BTreeSet<_>>()
                        .into_iter()
                        .collect(),
                )
            }),
    );
    tasks
}

fn membership() -> Vec<Task> {
    let mut tasks = Vec::new();
    for k in CONSTANTS {
        tasks.push(
            task("membership", format!("count{k}"), "a")
                .kind(Kind::Constant)
                .say(&[
                    &format!("how often {k} occurs in a"),
                    &format!("the number of times {k} is in a"),
                ])
                .returns(format!("a.count({k})"))
                .body(format!(
                    "t = 0\nfor x in a:\n    if x == {k}:\n        t += 1\nreturn t"
                ))
                .input(ints(vec![k]))
                .value(move |v| Value::Int(v[0].ints().iter().filter(|&&x| x == k).count() as i64)),
        );
        tasks.push(
            task("membership", format!("contains{k}"), "a")
                .kind(Kind::Constant)
                .say(&[
                    &format!("whether {k} is in a"),
                    &format!("True if a contains {k}, else False"),
                ])
                .returns(format!("{k} in a"))
                .body(format!(
                    "for x in a:\n    if x == {k}:\n        return True\nreturn False"
                ))
                .input(ints(vec![k]))
                .value(move |v| Value::Bool(v[0].ints().contains(&k))),
        );
        tasks.push(
            collect_bodies(
                task("membership", format!("without{k}"), "a")
                    .kind(Kind::Constant)
                    .say(&[
                        &format!("a without the number {k}"),
                        &format!("the numbers of a other than {k}"),
                    ]),
                &format!("x != {k}"),
                "x",
            )
            .input(ints(vec![k]))
            .value(move |v| Value::Ints(v[0].ints().iter().copied().filter(|&x| x != k).collect())),
        );
    }
    tasks
}

fn pairwise() -> Vec<Task> {
    type Row = (
        &'static str,
        [&'static str; 2],
        &'static str,
        fn(i64, i64) -> i64,
    );
    let rows: [Row; 4] = [
        (
            "sum",
            [
                "the sums of the pairs of a and b",
                "a and b added element by element",
            ],
            "x + y",
            |x, y| x + y,
        ),
        (
            "difference",
            [
                "the differences of the pairs of a and b",
                "b subtracted from a element by element",
            ],
            "x - y",
            |x, y| x - y,
        ),
        (
            "product",
            [
                "the products of the pairs of a and b",
                "a and b multiplied element by element",
            ],
            "x * y",
            |x, y| x * y,
        ),
        (
            "larger",
            [
                "the larger of each pair of a and b",
                "the maximum of a and b element by element",
            ],
            "max(x, y)",
            i64::max,
        ),
    ];
    let mut tasks: Vec<Task> = rows
        .into_iter()
        .map(|(key, phrases, code, apply)| {
            task("pairwise", key, "a, b")
                .say(&phrases)
                .returns(format!("[{code} for x, y in zip(a, b)]"))
                .body(format!(
                    "r = []\nfor x, y in zip(a, b):\n    r.append({code})\nreturn r"
                ))
                .input(ints(Vec::new()))
                .input(Input::SameLength)
                .value(move |v| {
                    Value::Ints(
                        v[0].ints()
                            .iter()
                            .zip(v[1].ints())
                            .map(|(&x, &y)| apply(x, y))
                            .collect(),
                    )
                })
        })
        .collect();
    tasks.push(
        task("pairwise", "dot", "a, b")
            .say(&[
                "the dot product of a and b",
                "the sum of the products of the pairs of a and b",
            ])
            .returns("sum(x * y for x, y in zip(a, b))")
            .body("t = 0\nfor x, y in zip(a, b):\n    t += x * y\nreturn t")
            .input(ints(Vec::new()))
            .input(Input::SameLength)
            .value(|v| {
                Value::Int(
                    v[0].ints()
                        .iter()
                        .zip(v[1].ints())
                        .map(|(x, y)| x * y)
                        .sum(),
                )
            }),
    );
    tasks
}
