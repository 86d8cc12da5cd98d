//! Mostly Basic Python Problems, in the official row format.
//!
//! Reads `*.jsonl` or `*.jsonl.gz` rows of `{text, code, task_id, test_list, test_setup_code, challenge_test_list}`; makes LF of
//! the CRLF that nearly every row holds; splits by the official task ids.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Deserialize;
use wmtp_records::{Problem, Split, Tests, jsonl};
use wmtp_tokens::render_prompt;

use crate::random::stream;
use crate::source::{jsonl_files, no_rows};
use crate::{Error, SourceProblem, mutate};

/// Mutants kept for each one that is wanted: some still pass or do not parse.
const SPARE_MUTANTS: usize = 3;

#[derive(Debug, Deserialize)]
struct Row {
    text: String,
    code: String,
    task_id: u32,
    test_list: Vec<String>,
    test_setup_code: String,
    challenge_test_list: Vec<String>,
}

/// Reads every `*.jsonl` or `*.jsonl.gz` file below a folder; problems come in the order of task ids.
///
/// Each problem comes with its reference and enough mutants for `incorrect_per_problem` wrong programs.
///
/// # Errors
/// [`Error::Rows`] names file and line of a row that lacks a field, repeats a task id or holds an unknown one;
/// [`Error::BadInput`] when there is no row at all.
pub fn read(
    folder: &Path,
    incorrect_per_problem: usize,
    seed: u64,
) -> Result<Vec<SourceProblem>, Error> {
    let mut problems = Vec::new();
    let mut seen = BTreeSet::new();
    for path in jsonl_files(folder)? {
        for row in jsonl::rows(&path)? {
            let (line, row): (usize, Row) = row?;
            let bad = |what: String| jsonl::Error::Row {
                path: path.clone(),
                line,
                what,
            };
            check(&row).map_err(bad)?;
            if !seen.insert(row.task_id) {
                return Err(bad(format!("task_id {} occurs twice", row.task_id)).into());
            }
            let split = split_of(row.task_id)
                .ok_or_else(|| bad(format!("task_id {} is not in 1..=974", row.task_id)))?;
            problems.push((
                row.task_id,
                source_problem(row, split, incorrect_per_problem, seed),
            ));
        }
    }
    if problems.is_empty() {
        return Err(no_rows(folder));
    }
    problems.sort_by_key(|&(task_id, _)| task_id);
    Ok(problems.into_iter().map(|(_, problem)| problem).collect())
}

/// Says which text is missing, if one is.
fn check(row: &Row) -> Result<(), String> {
    for (field, empty) in [
        ("text", row.text.trim().is_empty()),
        ("code", row.code.trim().is_empty()),
        ("test_list", row.test_list.is_empty()),
    ] {
        if empty {
            return Err(format!("field `{field}` is empty"));
        }
    }
    Ok(())
}

/// The official split; the ten prompt examples train.
fn split_of(task_id: u32) -> Option<Split> {
    match task_id {
        1..=10 | 601..=974 => Some(Split::Train),
        11..=510 => Some(Split::Test),
        511..=600 => Some(Split::Validation),
        _ => None,
    }
}

fn source_problem(
    row: Row,
    split: Split,
    incorrect_per_problem: usize,
    seed: u64,
) -> SourceProblem {
    let problem_id = format!("mbpp-{:03}", row.task_id);
    let code = normalised(&row.code);
    let asserts: Vec<String> = row
        .test_list
        .iter()
        .chain(&row.challenge_test_list)
        .map(|test| normalised(test))
        .collect();
    let instruction = instruction(&row.text, &code, &asserts);
    let mut rng = stream(seed, &format!("mbpp/mutants/{problem_id}"));
    let limit = incorrect_per_problem * SPARE_MUTANTS;
    SourceProblem {
        problem: Problem {
            prompt: render_prompt(&instruction, ""),
            problem_id,
            instruction,
            input: String::new(),
            tests: Tests::Asserts {
                setup: normalised(&row.test_setup_code),
                asserts,
            },
            reference: Some(code.clone()),
            family: String::new(),
            difficulty: 0,
        },
        split,
        original_split: (row.task_id > 10).then_some(split),
        mutants: mutate::mutants(&code, limit, &mut rng),
        solutions: vec![code],
    }
}

/// LF line ends, no blanks at line ends, no blank lines around.
fn normalised(text: &str) -> String {
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    lines.join("\n").trim_matches('\n').to_owned()
}

/// The statement and a sentence that names what the tests call: the names that the reference defines.
fn instruction(text: &str, code: &str, asserts: &[String]) -> String {
    let called: Vec<&str> = defined_names(code)
        .into_iter()
        .filter(|name| asserts.iter().any(|assert| calls(assert, name)))
        .collect();
    let text = text.trim().replace("\r\n", "\n");
    match called.as_slice() {
        [] => text,
        [name] => format!("{text} The function should be named {name}."),
        names => format!("{text} The functions should be named {}.", names.join(", ")),
    }
}

/// Names of functions and classes at the left margin, in order, without repetition.
fn defined_names(code: &str) -> Vec<&str> {
    let mut names = Vec::new();
    for line in code.lines() {
        let Some(rest) = line
            .strip_prefix("def ")
            .or_else(|| line.strip_prefix("class "))
        else {
            continue;
        };
        let rest = rest.trim_start();
        let end = rest
            .find(|c: char| !c.is_alphanumeric() && c != '_')
            .unwrap_or(rest.len());
        if end > 0 && !names.contains(&&rest[..end]) {
            names.push(&rest[..end]);
        }
    }
    names
}

fn calls(assert: &str, name: &str) -> bool {
    assert.match_indices(name).any(|(at, _)| {
        let word_before =
            assert[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '.');
        !word_before && assert[at + name.len()..].trim_start().starts_with('(')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROW: &str = r#"{"text": "Write a function to add.", "code": "def helper(x):\r\n  return x\r\ndef add(a, b):\r\n  return a + helper(b) ", "task_id": 601, "test_setup_code": "", "test_list": ["assert int(add (1, 2)) == 3"], "challenge_test_list": []}"#;

    fn read_lines(lines: &[&str]) -> Result<Vec<SourceProblem>, Error> {
        let folder = tempfile::tempdir().expect("temporary folder");
        std::fs::write(folder.path().join("mbpp.jsonl"), lines.join("\n")).expect("writable");
        read(folder.path(), 2, 42)
    }

    #[test]
    fn carriage_returns_go_and_the_called_function_is_named() {
        let problems = read_lines(&[ROW]).expect("a full row");
        let problem = &problems[0];
        assert_eq!(
            problem.solutions,
            ["def helper(x):\n  return x\ndef add(a, b):\n  return a + helper(b)"]
        );
        assert_eq!(
            problem.problem.instruction,
            "Write a function to add. The function should be named add."
        );
        assert_eq!(problem.problem.problem_id, "mbpp-601");
        assert_eq!(problem.split, Split::Train);
    }

    #[test]
    fn a_missing_field_is_named_with_file_and_line() {
        let broken = ROW
            .replace("\"test_list\"", "\"tests\"")
            .replace("601", "602");
        let error = read_lines(&[ROW, "", &broken]).expect_err("line 3 has no test_list");
        assert!(error.is_bad_input());
        let text = error.to_string();
        assert!(
            text.contains("mbpp.jsonl, line 3") && text.contains("test_list"),
            "{text}"
        );
    }

    #[test]
    fn repeated_and_unknown_task_ids_are_refused() {
        let text = read_lines(&[ROW, ROW]).expect_err("601 twice").to_string();
        assert!(text.contains("line 2") && text.contains("twice"), "{text}");
        let text = read_lines(&[&ROW.replace("601", "975")])
            .expect_err("no such task")
            .to_string();
        assert!(text.contains("line 1") && text.contains("975"), "{text}");
    }

    #[test]
    fn a_folder_without_rows_is_refused() {
        assert!(read_lines(&[]).expect_err("nothing there").is_bad_input());
        let folder = tempfile::tempdir().expect("temporary folder");
        std::fs::write(folder.path().join("train.parquet"), "PAR1").expect("writable");
        let text = read(folder.path(), 2, 42)
            .expect_err("no JSON lines")
            .to_string();
        assert!(text.contains("train.parquet is Parquet"), "{text}");
    }

    #[test]
    fn splits_follow_the_official_ids() {
        let splits = [10, 11, 510, 511, 600, 601, 974].map(split_of);
        let (train, validation, test) = (
            Some(Split::Train),
            Some(Split::Validation),
            Some(Split::Test),
        );
        assert_eq!(
            splits,
            [train, test, test, validation, validation, train, train]
        );
        assert_eq!((split_of(0), split_of(975)), (None, None));
    }
}
