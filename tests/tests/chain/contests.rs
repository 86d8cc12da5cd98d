//! CodeContests through the chain: rows, labels by execution, and scores by what programs print.

use std::path::Path;

use serde_json::{Value, json};

use crate::place::Place;

const PREFIX: &str = "contests";

/// One problem: read a number, print it plus `number`.
fn row(number: u32) -> String {
    let right = format!("print(int(input()) + {number})");
    let wrong = format!("print(int(input()) - {number})");
    let row = json!({
        "name": format!("{number}_A. Plus"),
        "description": format!("Print the number that is given plus {number}, on a line."),
        "public_tests": {"input": ["1\n"], "output": [format!("{}\n", 1 + number)]},
        "private_tests": {"input": ["5\n"], "output": [format!("{}\n", 5 + number)]},
        "generated_tests": {"input": ["0\n"], "output": [format!("{number}\n")]},
        "solutions": {"language": [1, 3], "solution": ["print input()", right]},
        "incorrect_solutions": {"language": [3], "solution": [wrong]},
        "time_limit": {"seconds": 1, "nanos": 0},
        "difficulty": 7,
    });
    format!("{row}\n")
}

fn file(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).expect("a file of the scores");
    serde_json::from_str(&text).expect("JSON")
}

/// Everything that the manifests of the data sets hold.
fn manifests(place: &Place) -> String {
    let keys = place.artifacts(PREFIX).into_iter();
    let of_data = keys.filter(|key| key.contains("/processed-data/"));
    let files = of_data.flat_map(|key| place.data_files(&key));
    let text =
        |path| String::from_utf8_lossy(&std::fs::read(path).expect("a manifest")).into_owned();
    files.map(text).collect()
}

#[test]
fn contest_problems_are_labelled_and_scored_by_what_programs_print() {
    let place = Place::new();
    for (name, numbers) in [("train", 1..7), ("valid", 7..10), ("test", 10..12)] {
        let rows: String = numbers.map(row).collect();
        place.write(&format!("raw/code_contests_{name}.jsonl"), &rows);
    }
    let run = |job: &str, arguments: &[&str]| {
        let own = [
            "--recipe",
            "tiny.yaml",
            "--set=data.source=codecontests",
            "--set=experiment.dataset=codecontests",
        ];
        place.run(PREFIX, job, &[arguments, &own].concat())
    };
    let push = [
        "push", "--kind", "raw-data", "--folder", "raw", "--name", "rows",
    ];
    place.run(PREFIX, "sync-storage", &push).expect(0);
    run("prepare-data", &["--name", "d"])
        .expect(2)
        .says(&["data.source is codecontests, but no raw rows are given"]);
    run(
        "prepare-data",
        &["--raw=rows", "--name=d", "--set=data.test_share=0.5"],
    )
    .expect(2)
    .says(&[
        "data.test_share is set, but the rows of codecontests tell the split of every problem",
        "data.split_by: shares",
    ]);
    run(
        "prepare-data",
        &[
            "--raw=rows",
            "--name=overruled",
            "--set=data.test_share=0.5",
            "--set=data.split_by=shares",
        ],
    )
    .expect(0)
    .says(&["train: 4 problems", "test: 6 problems", "level recipe"]);
    run("prepare-data", &["--raw", "rows", "--name", "d"])
        .expect(0)
        .says(&["train: 6 problems, 12 rows (6 correct)", "level stored"]);
    for level in ["stored", "recipe"] {
        let attribute = format!("\"split_level\":\"{level}\"");
        assert!(manifests(&place).contains(&attribute), "{level}");
    }
    let create = [
        "create",
        "--model",
        "micro-mtp",
        "--data",
        "d",
        "--name",
        "base",
    ];
    run("sync-storage", &create).expect(0);
    run(
        "evaluate",
        &["--data", "d", "--base", "base", "--name", "s"],
    )
    .expect(0);

    let to = place.path("scores");
    let pull = [
        "pull",
        "s",
        "--kind",
        "scores",
        "--to",
        to.to_str().expect("a plain name"),
    ];
    place.run(PREFIX, "sync-storage", &pull).expect(0);
    let score = file(&to.join("eval_score.json"));
    let names: Vec<&str> = score["metrics"]
        .as_array()
        .expect("metrics")
        .iter()
        .filter_map(|metric| metric["name"].as_str())
        .collect();
    for name in [
        "pass_at_1",
        "strict_pass_at_1",
        "pass_at_1_exact",
        "pass_at_1_tokens",
        "tests_passed_share",
        "exact_match",
        "ast_match",
        "calibration_error_head_1",
        "mean_tokens",
    ] {
        assert!(names.contains(&name), "{name} is not among {names:?}");
    }
    let summary = file(&to.join("summary.json"));
    assert_eq!(summary["sandbox"]["tier"], "full");
    assert!(summary["pass_at_1_spread"]["high"].is_number(), "{summary}");
    let samples = std::fs::read_to_string(to.join("samples.jsonl")).expect("samples");
    for line in samples.lines() {
        let sample: Value = serde_json::from_str(line).expect("a sample");
        assert_eq!(sample["verdict"]["cases"]["total"], 3, "{sample}");
    }
}
