//! Families over lists of numbers that combine two parts.

use super::{Kind, Task, collect_bodies, ints, none, some_ints, task};
use crate::micropy::parts::{Change, Condition, Cut, Order, Total};
use crate::micropy::value::{Input, Value};

/// Every task of these families.
pub(super) fn tasks() -> Vec<Task> {
    let families: [fn() -> Vec<Task>; 6] = [
        filter_aggregate,
        change_aggregate,
        quantifier,
        order_change,
        filter_change,
        slice_aggregate,
    ];
    families.iter().flat_map(|family| family()).collect()
}

fn filter_aggregate() -> Vec<Task> {
    let mut tasks = Vec::new();
    for condition in Condition::all() {
        let code = condition.code("x");
        tasks.push(
            task("filter_aggregate", format!("sum_{}", condition.key()), "a")
                .kind(Kind::Composition)
                .say_with(
                    &["the {0} of the {1} of a", "the {0} of all {1} in a"],
                    &Total::Sum.noun(),
                    &condition.plural(),
                )
                .returns(format!("sum(x for x in a if {code})"))
                .body(format!(
                    "t = 0\nfor x in a:\n    if {code}:\n        t += x\nreturn t"
                ))
                .input(ints(condition.points()))
                .value(move |v| {
                    Value::Int(v[0].ints().iter().filter(|&&x| condition.holds(x)).sum())
                }),
        );
        tasks.push(
            task(
                "filter_aggregate",
                format!("count_{}", condition.key()),
                "a",
            )
            .kind(Kind::Composition)
            .say_with(
                &["the number of {0} in a", "how many {0} a has"],
                &condition.plural(),
                &none(),
            )
            .returns(format!("len([x for x in a if {code}])"))
            .returns(format!("sum(1 for x in a if {code})"))
            .body(format!(
                "t = 0\nfor x in a:\n    if {code}:\n        t += 1\nreturn t"
            ))
            .input(ints(condition.points()))
            .value(move |v| {
                Value::Int(v[0].ints().iter().filter(|&&x| condition.holds(x)).count() as i64)
            }),
        );
    }
    tasks
}

fn change_aggregate() -> Vec<Task> {
    let mut tasks = Vec::new();
    for change in Change::all() {
        for total in Total::ALL {
            let code = change.code("x");
            tasks.push(
                task(
                    "change_aggregate",
                    format!("{}_{}", total.key(), change.key()),
                    "a",
                )
                .kind(Kind::Composition)
                .say_with(
                    &[
                        "the {0} of a with each number {1}",
                        "the {0} of a, each {1}",
                    ],
                    &total.noun(),
                    &change.participle(),
                )
                .returns(format!("{}({code} for x in a)", total.function()))
                .body(total.loop_body("a", &code))
                .input(if total == Total::Sum {
                    ints(vec![0])
                } else {
                    some_ints(vec![0])
                })
                .value(move |v| Value::Int(total.of(v[0].ints().iter().map(|&x| change.apply(x))))),
            );
        }
    }
    tasks
}

fn quantifier() -> Vec<Task> {
    let mut tasks = Vec::new();
    for condition in Condition::all() {
        let code = condition.code("x");
        tasks.push(
            task("quantifier", format!("all_{}", condition.key()), "a")
                .kind(Kind::Composition)
                .say_with(
                    &[
                        "whether all numbers of a are {0}",
                        "True if every number of a is {0}, else False",
                    ],
                    &[condition.adjective()[0].clone()],
                    &none(),
                )
                .returns(format!("all({code} for x in a)"))
                .body(format!(
                    "for x in a:\n    if not {code}:\n        return False\nreturn True"
                ))
                .input(Input::IntsOf {
                    points: satisfying(condition),
                })
                .value(move |v| Value::Bool(v[0].ints().iter().all(|&x| condition.holds(x)))),
        );
        tasks.push(
            task("quantifier", format!("any_{}", condition.key()), "a")
                .kind(Kind::Composition)
                .say_with(
                    &[
                        "whether any number of a is {0}",
                        "True if some number of a is {0}, else False",
                    ],
                    &[condition.adjective()[0].clone()],
                    &none(),
                )
                .returns(format!("any({code} for x in a)"))
                .body(format!(
                    "for x in a:\n    if {code}:\n        return True\nreturn False"
                ))
                .input(ints(condition.points()))
                .value(move |v| Value::Bool(v[0].ints().iter().any(|&x| condition.holds(x)))),
        );
    }
    tasks
}

fn satisfying(condition: Condition) -> Vec<i64> {
    (-9..=12).filter(|&x| condition.holds(x)).collect()
}

fn order_change() -> Vec<Task> {
    let mut tasks = Vec::new();
    for order in Order::ALL {
        for change in Change::all() {
            let code = change.code("x");
            let ordered = order.code("a");
            tasks.push(
                task(
                    "order_change",
                    format!("{}_{}", order.key(), change.key()),
                    "a",
                )
                .kind(Kind::Composition)
                .say_with(
                    &["a {0}, then each {1}", "the list a {0}, each number {1}"],
                    &order.participle(),
                    &change.participle(),
                )
                .returns(format!("[{code} for x in {ordered}]"))
                .body(format!(
                    "r = []\nfor x in {ordered}:\n    r.append({code})\nreturn r"
                ))
                .input(ints(Vec::new()))
                .value(move |v| {
                    Value::Ints(
                        order
                            .apply(v[0].ints())
                            .into_iter()
                            .map(|x| change.apply(x))
                            .collect(),
                    )
                }),
            );
        }
    }
    tasks
}

fn filter_change() -> Vec<Task> {
    let mut tasks = Vec::new();
    for condition in Condition::all() {
        for change in Change::all() {
            let builder = task(
                "filter_change",
                format!("{}_{}", condition.key(), change.key()),
                "a",
            )
            .kind(Kind::Composition)
            .say_with(
                &["the {0} of a, each {1}", "each of the {0} in a {1}"],
                &condition.plural(),
                &change.participle(),
            );
            tasks.push(
                collect_bodies(builder, &condition.code("x"), &change.code("x"))
                    .input(ints(condition.points()))
                    .value(move |v| {
                        let kept = v[0].ints().iter().filter(|&&x| condition.holds(x));
                        Value::Ints(kept.map(|&x| change.apply(x)).collect())
                    }),
            );
        }
    }
    tasks
}

fn slice_aggregate() -> Vec<Task> {
    let mut tasks = Vec::new();
    for cut in Cut::all() {
        for total in Total::ALL {
            let code = cut.code("a");
            let min_len = (0..10)
                .find(|&len| cut.leaves_something_of(len))
                .unwrap_or(1);
            tasks.push(
                task(
                    "slice_aggregate",
                    format!("{}_{}", total.key(), cut.key()),
                    "a",
                )
                .kind(Kind::Composition)
                .say_with(
                    &["the {0} of {1} of a"],
                    &total.noun(),
                    &cut.noun("numbers"),
                )
                .returns(format!("{}({code})", total.function()))
                .body(total.loop_body(&code, "x"))
                .input(Input::Ints {
                    min_len,
                    points: Vec::new(),
                })
                .value(move |v| Value::Int(total.of(cut.apply(v[0].ints()).into_iter()))),
            );
        }
    }
    tasks
}
