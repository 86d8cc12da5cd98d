//! The grader as a job starts it, by way of its own binary: the attack suite, and what an order that makes no sense ends with.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../../../shared/grading/tests/attacks/mod.rs"]
mod attacks;

use std::fs;
use std::process::{Command, Stdio};

use attacks::Traps;
use serde_json::{Value, json};

const EVALUATE: &str = env!("CARGO_BIN_EXE_evaluate");

#[test]
fn no_attack_reaches_anything_of_a_grader_that_its_own_binary_launched() {
    let traps = Traps::set();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    // Those that wait would take their wall limit twice.
    let attacks: Vec<_> = attacks::all()
        .into_iter()
        .filter(|attack| attack.mark != "waits")
        .collect();
    let mut samples: Vec<String> = attacks
        .iter()
        .map(|attack| json!({"task_id": 1, "completion": traps.program(attack, 0)}).to_string())
        .collect();
    samples.push(json!({"task_id": 1, "completion": "print(1)"}).to_string());
    fs::write(
        path("problems.jsonl"),
        r#"{"task_id": 1, "test_list": ["pass"]}"#,
    )
    .unwrap();
    fs::write(path("samples.jsonl"), samples.join("\n")).unwrap();
    let output = Command::new(EVALUATE)
        .args([
            "grade",
            "--problems",
            "problems.jsonl",
            "--samples",
            "samples.jsonl",
        ])
        .args([
            "--out",
            "results.jsonl",
            "--cpu-secs",
            "1",
            "--workers",
            "2",
            "--json",
        ])
        .current_dir(folder.path())
        .env("SECRET_OF_THE_JOB", "secret")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let told: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    assert_eq!(told["sandbox"]["launched"], "by the own binary", "{told}");
    assert_eq!(told["sandbox"]["tier"], "full", "{told}");
    let results = fs::read_to_string(path("results.jsonl")).unwrap();
    let passed: Vec<bool> = results
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["passed"] == true)
        .collect();
    for (attack, passed) in attacks.iter().zip(&passed) {
        assert!(!passed, "{} reached something", attack.name);
    }
    assert_eq!(passed.len(), attacks.len() + 1);
    assert_eq!(passed.last(), Some(&true), "the benign one");
    traps.assert_untouched();
}

#[test]
fn an_order_that_makes_no_sense_starts_nothing() {
    for order in [
        &["--wmtp-become-server"][..],
        &["--wmtp-become-server", "{}"],
    ] {
        let output = Command::new(EVALUATE)
            .args(order)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(70));
        assert!(!output.stderr.is_empty());
    }
}
