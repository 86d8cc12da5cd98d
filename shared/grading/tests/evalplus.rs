//! Problems as EvalPlus publishes them: base and plus inputs, the reference as judge, tolerances, special rules.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;

use serde_json::{Value, json};
use wmtp_grading::files::{Files, Shard, TestChoice};
use wmtp_grading::{Grader, GraderConfig};
use wmtp_records::jsonl;

/// The numbers are Python's: a parser that reads them as doubles would change `same`'s.
const PROBLEMS: &str = r#"
{"task_id": "HumanEval/900", "prompt": "def half(x):\n", "entry_point": "half", "canonical_solution": "    return x / 2\n", "test": "", "contract": "", "base_input": [[2], [3]], "plus_input": [[1e300], [100000000000000000000000001]], "atol": 0}
{"task_id": "HumanEval/901", "prompt": "def same(x):\n", "entry_point": "same", "canonical_solution": "    return x\n", "test": "", "contract": "", "base_input": [[1]], "plus_input": [[100000000000000000000000001], [[1, 2]]], "atol": 0}
{"task_id": "HumanEval/32", "prompt": "def find_zero(xs):\n", "entry_point": "find_zero", "canonical_solution": "    return -xs[0] / xs[1]\n", "test": "", "contract": "", "base_input": [[[1, 2]]], "plus_input": [[[-6, 11, -6, 1]]], "atol": 0.0001}
{"task_id": "Mbpp/2", "prompt": "\"\"\"Write a function.\"\"\"\n", "entry_point": "similar_elements", "canonical_solution": "def similar_elements(a, b):\n    return tuple(set(a) & set(b))\n", "contract": "", "assertion": "", "base_input": [[[3, 4, 5, 6], [5, 7, 4, 10]]], "plus_input": [[[], []]], "atol": 0}
{"task_id": "Mbpp/737", "prompt": "\"\"\"Write a function.\"\"\"\n", "entry_point": "check_str", "canonical_solution": "import re\ndef check_str(text):\n    return re.search('^[aeiou]', text)\n", "contract": "", "assertion": "", "base_input": [["annie"]], "plus_input": [["dawood"]], "atol": 0}
"#;

struct Outcome {
    passed: bool,
    result: String,
    audit: Value,
}

fn grade(task_id: &str, field: &str, text: &str, base_only: bool) -> Outcome {
    let folder = tempfile::tempdir().unwrap();
    let [problems, samples, out] =
        ["p.jsonl", "s.jsonl", "r.jsonl"].map(|name| folder.path().join(name));
    fs::write(&problems, PROBLEMS).unwrap();
    fs::write(
        &samples,
        json!({"task_id": task_id, field: text}).to_string(),
    )
    .unwrap();
    let grader = Grader::start(GraderConfig {
        workers: NonZeroUsize::MIN,
        audit: true,
        ..GraderConfig::default()
    })
    .unwrap();
    let files = Files {
        problems: &problems,
        tests: TestChoice {
            base_only,
            ..TestChoice::default()
        },
        samples: &samples,
        out: &out,
    };
    files
        .grade(&grader, Shard::ALL, |_, _| ControlFlow::Continue(()))
        .unwrap();
    let row: Value = jsonl::read(&out).unwrap().remove(0);
    Outcome {
        passed: row["passed"].as_bool().unwrap(),
        result: row["result"].as_str().unwrap().to_owned(),
        audit: row["audit"]["outcome"].clone(),
    }
}

#[test]
fn right_programs_pass_in_one_process_and_in_two() {
    for (task_id, field, text) in [
        ("HumanEval/900", "completion", "    return x / 2"),
        // Equal within the tolerance that floats have.
        (
            "HumanEval/900",
            "completion",
            "    return x * 0.500000000001",
        ),
        ("HumanEval/900", "solution", "def half(x): return x / 2"),
        ("HumanEval/901", "completion", "    return x"),
        // Of the second polynomial's three roots the reference finds none; the value at the answer is what counts.
        (
            "HumanEval/32",
            "completion",
            "    return -0.5 if len(xs) == 2 else 2.0",
        ),
        (
            "Mbpp/2",
            "completion",
            "def similar_elements(a, b):\n    assert type(a) is tuple\n    return sorted(set(a) & set(b), reverse=True)",
        ),
        (
            "Mbpp/737",
            "solution",
            "def check_str(text): return text[0] in 'aeiou'",
        ),
        (
            "Mbpp/737",
            "solution",
            "import re\ndef check_str(text): return re.match('[aeiou]', text)",
        ),
        // Names of its own that the tests' text has too, and built-in ones that it uses.
        (
            "HumanEval/901",
            "completion",
            "    return x\ndef check(x): return 1\ndef close(x): return 2\njson = math = tuples = None\ndef sum(x): return 3\nlen = 4",
        ),
        ("HumanEval/901", "completion", "    print(x)\n    return x"),
    ] {
        let outcome = grade(task_id, field, text, false);
        assert!(outcome.passed, "{text}: {}", outcome.result);
        assert_eq!(outcome.audit, "confirmed", "{text}");
    }
}

#[test]
fn plus_tests_find_what_base_tests_do_not() {
    for (task_id, text, expected) in [
        (
            "HumanEval/900",
            "    return x / 2 if x < 10 else 0.0",
            "plus test 1 of 2: expected 5e+299, got 0.0",
        ),
        (
            "HumanEval/901",
            "    return int(float(x)) if x != [1, 2] else x",
            "plus test 1 of 2: expected 1",
        ),
        (
            "HumanEval/901",
            "    return x if x != [1, 2] else (1, 2)",
            "plus test 2 of 2",
        ),
        ("HumanEval/32", "    return -0.5", "plus test 1 of 1"),
        (
            "Mbpp/2",
            "def similar_elements(a, b): return set(a) & set(b) or {1}",
            "plus test 1 of 1",
        ),
        (
            "Mbpp/737",
            "def check_str(text): return 1",
            "plus test 1 of 1",
        ),
    ] {
        let outcome = grade(task_id, "completion", text, false);
        assert!(
            outcome.result.contains(expected),
            "{text}: {}",
            outcome.result
        );
        let outcome = grade(task_id, "completion", text, true);
        assert!(outcome.passed, "{text}: {}", outcome.result);
    }
}

#[test]
fn a_wrong_type_within_the_tolerance_is_wrong() {
    let outcome = grade(
        "HumanEval/900",
        "completion",
        "    return x // 2 if x == 2 else x / 2",
        false,
    );
    assert!(
        outcome.passed,
        "equal values pass whatever their type: {}",
        outcome.result
    );
    let outcome = grade(
        "HumanEval/900",
        "completion",
        "    return int(x / 2 + 1e-9) + 0",
        false,
    );
    assert!(
        outcome
            .result
            .contains("base test 2 of 2: expected 1.5, got 1"),
        "{}",
        outcome.result
    );
}

#[test]
fn an_object_equal_to_everything_is_not_confirmed() {
    let text = "    return Any()\nclass Any:\n    def __eq__(a, b): return True";
    let outcome = grade("HumanEval/901", "completion", text, false);
    assert!(outcome.passed);
    assert_eq!(outcome.audit, "not_by_value");
}
