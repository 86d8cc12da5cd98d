//! Families over numbers.

use super::{Kind, Task, count, int, none, task};
use crate::micropy::parts::{CONSTANTS, Condition};
use crate::micropy::value::{Input, Value};

/// Every task of these families.
pub(super) fn tasks() -> Vec<Task> {
    let families: [fn() -> Vec<Task>; 5] =
        [arithmetic, linear, number_test, two_numbers, number_loop];
    families.iter().flat_map(|family| family()).collect()
}

fn arithmetic() -> Vec<Task> {
    type Row = (&'static str, [String; 2], [String; 2], fn(i64, i64) -> i64);
    let mut tasks = Vec::new();
    for k in CONSTANTS {
        let rows: [Row; 3] = [
            (
                "plus",
                [format!("n plus {k}"), format!("n increased by {k}")],
                [format!("n + {k}"), format!("{k} + n")],
                |n, k| n + k,
            ),
            (
                "minus",
                [format!("n minus {k}"), format!("n decreased by {k}")],
                [format!("n - {k}"), format!("-{k} + n")],
                |n, k| n - k,
            ),
            (
                "times",
                [format!("n times {k}"), format!("n multiplied by {k}")],
                [format!("n * {k}"), format!("{k} * n")],
                |n, k| n * k,
            ),
        ];
        for (name, phrases, code, apply) in rows {
            tasks.push(
                task("arithmetic", format!("{name}{k}"), "n")
                    .kind(Kind::Constant)
                    .say(&[&phrases[0], &phrases[1]])
                    .returns(&code[0])
                    .returns(&code[1])
                    .input(int(vec![0, k]))
                    .value(move |v| Value::Int(apply(v[0].int(), k))),
            );
        }
    }
    tasks
}

fn linear() -> Vec<Task> {
    let mut tasks = Vec::new();
    for factor in CONSTANTS {
        for addend in CONSTANTS {
            for sign in [1, -1] {
                let (word, operator) = if sign > 0 {
                    ("plus", '+')
                } else {
                    ("minus", '-')
                };
                tasks.push(
                    task("linear", format!("times{factor}_{word}{addend}"), "n")
                        .kind(Kind::Composition)
                        .say(&[
                            &format!("n times {factor} {word} {addend}"),
                            &format!("{factor} times n, {word} {addend}"),
                            &format!("n multiplied by {factor}, then {word} {addend}"),
                        ])
                        .returns(format!("n * {factor} {operator} {addend}"))
                        .body(format!("r = n * {factor}\nreturn r {operator} {addend}"))
                        .input(int(vec![0, 1]))
                        .value(move |v| Value::Int(v[0].int() * factor + sign * addend)),
                );
            }
        }
    }
    tasks
}

fn number_test() -> Vec<Task> {
    Condition::all()
        .into_iter()
        .map(|condition| {
            let code = condition.code("n");
            task("number_test", condition.key(), "n")
                .constant_if(condition.has_constant())
                .say_with(
                    &["whether n is {0}", "True if n is {0}, else False"],
                    &condition.adjective(),
                    &none(),
                )
                .returns(&code)
                .body(format!("if {code}:\n    return True\nreturn False"))
                .input(int(condition.points()))
                .value(move |v| Value::Bool(condition.holds(v[0].int())))
        })
        .collect()
}

fn two_numbers() -> Vec<Task> {
    type Row = (
        &'static str,
        [&'static str; 2],
        [&'static str; 2],
        fn(i64, i64) -> i64,
    );
    let rows: [Row; 7] = [
        (
            "sum",
            ["the sum of a and b", "a plus b"],
            ["return a + b", "return sum([a, b])"],
            |a, b| a + b,
        ),
        (
            "difference",
            ["a minus b", "the difference of a and b"],
            ["return a - b", "return -b + a"],
            |a, b| a - b,
        ),
        (
            "product",
            ["the product of a and b", "a times b"],
            ["return a * b", "return b * a"],
            |a, b| a * b,
        ),
        (
            "larger",
            ["the larger of a and b", "the maximum of a and b"],
            ["return max(a, b)", "if a > b:\n    return a\nreturn b"],
            i64::max,
        ),
        (
            "smaller",
            ["the smaller of a and b", "the minimum of a and b"],
            ["return min(a, b)", "if a < b:\n    return a\nreturn b"],
            i64::min,
        ),
        (
            "distance",
            [
                "the distance of a and b",
                "the absolute difference of a and b",
            ],
            ["return abs(a - b)", "return max(a, b) - min(a, b)"],
            |a, b| (a - b).abs(),
        ),
        (
            "squares",
            [
                "the sum of the squares of a and b",
                "a squared plus b squared",
            ],
            ["return a * a + b * b", "return a ** 2 + b ** 2"],
            |a, b| a * a + b * b,
        ),
    ];
    rows.into_iter()
        .map(|(key, phrases, bodies, apply)| {
            task("two_numbers", key, "a, b")
                .say(&phrases)
                .body(bodies[0])
                .body(bodies[1])
                .input(int(vec![0]))
                .input(int(vec![0]))
                .value(move |v| Value::Int(apply(v[0].int(), v[1].int())))
        })
        .collect()
}

fn number_loop() -> Vec<Task> {
    type Row = (
        &'static str,
        [&'static str; 2],
        [&'static str; 2],
        fn(i64) -> Value,
    );
    let rows: [Row; 6] = [
        (
            "sum_to",
            [
                "the sum of the numbers from 1 to n",
                "1 plus 2 and so on up to n",
            ],
            [
                "return sum(range(n + 1))",
                "t = 0\nfor x in range(1, n + 1):\n    t += x\nreturn t",
            ],
            |n| Value::Int((1..=n).sum()),
        ),
        (
            "factorial",
            [
                "the factorial of n",
                "the product of the numbers from 1 to n",
            ],
            [
                "t = 1\nfor x in range(1, n + 1):\n    t *= x\nreturn t",
                "if n < 2:\n    return 1\nreturn n * f(n - 1)",
            ],
            |n| Value::Int((1..=n).product()),
        ),
        (
            "squares_to",
            [
                "the sum of the squares from 1 to n",
                "the sum of x squared for x up to n",
            ],
            [
                "return sum(x * x for x in range(n + 1))",
                "t = 0\nfor x in range(1, n + 1):\n    t += x * x\nreturn t",
            ],
            |n| Value::Int((1..=n).map(|x| x * x).sum()),
        ),
        (
            "digit_sum",
            ["the sum of the digits of n", "the digits of n added up"],
            [
                "return sum(int(x) for x in str(n))",
                "t = 0\nfor x in str(n):\n    t += int(x)\nreturn t",
            ],
            |n| Value::Int(n.to_string().bytes().map(|b| i64::from(b - b'0')).sum()),
        ),
        (
            "divisors",
            ["the list of the divisors of n", "all numbers that divide n"],
            [
                "return [x for x in range(1, n + 1) if n % x == 0]",
                "r = []\nfor x in range(1, n + 1):\n    if n % x == 0:\n        r.append(x)\nreturn r",
            ],
            |n| Value::Ints((1..=n).filter(|x| n % x == 0).collect()),
        ),
        (
            "range",
            [
                "the list of the numbers from 1 to n",
                "all numbers from 1 to n",
            ],
            [
                "return list(range(1, n + 1))",
                "return [x for x in range(1, n + 1)]",
            ],
            |n| Value::Ints((1..=n).collect()),
        ),
    ];
    let mut tasks: Vec<Task> = rows
        .into_iter()
        .map(|(key, phrases, bodies, apply)| {
            task("number_loop", key, "n")
                .say(&phrases)
                .body(bodies[0])
                .body(bodies[1])
                .input(count(if key == "digit_sum" { 999 } else { 12 }))
                .value(move |v| apply(v[0].int()))
        })
        .collect();
    tasks.extend(CONSTANTS.map(|k| {
        task("number_loop", format!("multiples{k}"), "n")
            .kind(Kind::Constant)
            .say(&[
                &format!("the first n multiples of {k}"),
                &format!("{k} times each number from 1 to n"),
            ])
            .returns(format!("[x * {k} for x in range(1, n + 1)]"))
            .body(format!(
                "r = []\nfor x in range(1, n + 1):\n    r.append(x * {k})\nreturn r"
            ))
            .input(Input::Int {
                low: 1,
                high: 6,
                points: Vec::new(),
            })
            .value(move |v| Value::Ints((1..=v[0].int()).map(|x| x * k).collect()))
    }));
    tasks
}
