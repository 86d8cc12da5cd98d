//! Known answers: `tests/statistics/reference.py` computed them with scipy and statsmodels, and with a generator of its own
//! where random draws decide. `make stats-reference` recomputes them.

use serde_json::Value;
use wmtp_stats::{
    Resampler, Seeds, holm, mcnemar_exact, pass_at_k, resolution, shared_ranks, wilson,
};

/// Digits that must agree: all that a float prints, but for the last one or two, which the order of sums decides.
const TOLERANCE: f64 = 4e-15;

fn answers(name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string("../../tests/statistics/answers.json").expect("the answers");
    let all: Value = serde_json::from_str(&text).expect("JSON");
    match &all[name] {
        Value::Array(cases) => cases.clone(),
        Value::Null => panic!("no answers for {name}"),
        one => vec![one.clone()],
    }
}

fn number(value: &Value) -> f64 {
    value.as_f64().expect("a number")
}

fn whole(value: &Value) -> u64 {
    value.as_u64().expect("a whole number")
}

fn numbers(value: &Value) -> Vec<f64> {
    value
        .as_array()
        .expect("a list")
        .iter()
        .map(number)
        .collect()
}

fn rows(value: &Value) -> Vec<Vec<f64>> {
    value
        .as_array()
        .expect("rows")
        .iter()
        .map(numbers)
        .collect()
}

fn slices(rows: &[Vec<f64>]) -> Vec<&[f64]> {
    rows.iter().map(Vec::as_slice).collect()
}

#[track_caller]
fn same(found: f64, expected: &Value, case: &Value) {
    let expected = number(expected);
    assert!(
        (found - expected).abs() <= TOLERANCE * expected.abs().max(1e-3),
        "{found} is not {expected} in {case}"
    );
}

#[test]
fn wilson_agrees_with_statsmodels() {
    for case in answers("wilson") {
        let found = wilson(whole(&case["successes"]), whole(&case["trials"])).expect("trials");
        same(found.low, &case["interval"][0], &case);
        same(found.high, &case["interval"][1], &case);
    }
}

#[test]
fn mcnemar_agrees_with_exact_fractions() {
    for case in answers("mcnemar") {
        let found = mcnemar_exact(whole(&case["only_first"]), whole(&case["only_second"]));
        let expected = number(&case["p_value"]);
        // Above a thousand discordant tasks the terms are logarithms, which keep eleven digits.
        let discordant = whole(&case["only_first"]) + whole(&case["only_second"]);
        let tolerance = if discordant <= 1000 { 1e-13 } else { 1e-11 };
        assert!(
            (found - expected).abs() <= tolerance * expected,
            "{found} is not {expected} in {case}"
        );
    }
}

#[test]
fn holm_agrees_with_statsmodels() {
    for case in answers("holm") {
        let found = holm(&numbers(&case["p_values"]));
        for (found, expected) in found
            .iter()
            .zip(case["adjusted"].as_array().expect("a list"))
        {
            same(*found, expected, &case);
        }
    }
}

#[test]
fn pass_at_k_agrees_with_exact_fractions() {
    for case in answers("pass_at_k") {
        let [n, c, k] = ["n", "c", "k"].map(|name| whole(&case[name]));
        let found = pass_at_k(n, c, k).expect("defined");
        let expected = number(&case["value"]);
        assert!(
            (found - expected).abs() <= 2e-14,
            "{found} is not {expected} in {case}"
        );
    }
}

#[test]
fn the_resolution_is_that_of_the_normal_distribution() {
    for case in answers("resolution") {
        let tasks = whole(&case["tasks"]) as usize;
        let found = resolution(number(&case["mean_square"]), tasks).expect("tasks");
        same(found.significant, &case["significant"], &case);
        same(found.reliable, &case["reliable"], &case);
    }
}

#[test]
fn estimates_over_tasks_and_seeds_agree() {
    for case in answers("estimate") {
        let rows = rows(&case["rows"]);
        let (draws, seed) = (whole(&case["draws"]) as usize, whole(&case["seed"]));
        let resampler = Resampler::new(rows[0].len(), draws, seed).expect("tasks");
        let found = resampler.mean(&slices(&rows)).expect("rows");
        same(found.mean, &case["mean"], &Value::Null);
        same(found.interval.low, &case["interval"][0], &Value::Null);
        same(found.interval.high, &case["interval"][1], &Value::Null);
    }
}

#[test]
fn differences_over_tasks_and_seeds_agree() {
    for case in answers("difference") {
        let (first, second) = (rows(&case["first"]), rows(&case["second"]));
        let (draws, seed) = (whole(&case["draws"]) as usize, whole(&case["seed"]));
        let seeds = if case["paired"] == Value::Bool(true) {
            Seeds::Paired
        } else {
            Seeds::Independent
        };
        let resampler = Resampler::new(first[0].len(), draws, seed).expect("tasks");
        let found = resampler
            .difference(&slices(&first), &slices(&second), seeds)
            .expect("rows");
        same(found.difference, &case["difference"], &Value::Null);
        same(found.interval.low, &case["interval"][0], &Value::Null);
        same(found.interval.high, &case["interval"][1], &Value::Null);
        same(found.p_value, &case["p_value"], &Value::Null);
    }
}

#[test]
fn draws_approach_the_interval_of_all_resamples() {
    let case = &answers("exhaustive")[0];
    let scores = numbers(&case["scores"]);
    let resampler = Resampler::new(scores.len(), wmtp_stats::DRAWS, 42).expect("tasks");
    let found = resampler.mean(&[&scores]).expect("rows").interval;
    let tolerance = number(&case["tolerance"]);
    for (found, expected) in [found.low, found.high]
        .iter()
        .zip(numbers(&case["interval"]))
    {
        assert!(
            (found - expected).abs() <= tolerance,
            "{found} is not near {expected}"
        );
    }
}

#[test]
fn ranks_are_shared_as_defined() {
    for case in answers("shared_ranks") {
        let (scores, noise) = (numbers(&case["scores"]), number(&case["noise"]));
        let found = shared_ranks(scores.len(), |leader, others| {
            let level = |&row: &usize| scores[leader] - scores[row] < noise;
            others.iter().map(level).collect()
        });
        let expected: Vec<u64> = case["ranks"]
            .as_array()
            .expect("ranks")
            .iter()
            .map(whole)
            .collect();
        assert_eq!(
            found
                .iter()
                .map(|&rank| u64::from(rank))
                .collect::<Vec<_>>(),
            expected
        );
    }
}
