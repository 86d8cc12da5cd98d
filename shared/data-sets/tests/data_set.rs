//! From generator and reader to files, with labels established in the sandbox.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use wmtp_data_sets::micropy::{self, Settings};
use wmtp_data_sets::{
    DataSet, Description, Error, Labelled, SourceProblem, TokenFile, label, mbpp, separate,
    tokenizer_texts,
};
use wmtp_grading::{Grader, GraderConfig};
use wmtp_records::{Problem, Record, Split, Tests, data_files, jsonl};
use wmtp_tokens::{Tokenizer, encode_pair};

fn settings(num_problems: usize) -> Settings {
    Settings {
        num_problems,
        validation_share: 0.1,
        test_share: 0.1,
        solutions_per_problem: 4,
        incorrect_per_problem: 3,
        seed: 42,
    }
}

/// Degraded is accepted: these programs are our own.
fn grader(workers: usize) -> Grader {
    Grader::start(GraderConfig {
        workers: NonZeroUsize::new(workers).expect("positive"),
        accept_degraded: true,
        ..GraderConfig::default()
    })
    .expect("python3 runs")
}

fn labelled(problems: Vec<SourceProblem>, grader: &Grader) -> Labelled {
    label(problems, 3, grader, |_, _| ControlFlow::Continue(())).expect("every program runs")
}

fn assemble(problems: Vec<SourceProblem>, grader: &Grader, max_length: usize) -> DataSet {
    let (problems, separation) = separate(problems);
    let labelled = labelled(problems, grader);
    let tokenizer =
        Tokenizer::train(&tokenizer_texts(&labelled), 400).expect("400 tokens are enough");
    let description = Description {
        dataset: "micropy".to_owned(),
        description: "Small problems.".to_owned(),
        source: "made by rule".to_owned(),
    };
    DataSet::assemble(description, &labelled, separation, tokenizer, max_length)
        .expect("rows are left")
}

/// Every file below a folder with its bytes, by relative path.
fn files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(here) = folders.pop() {
        for entry in std::fs::read_dir(here).expect("readable") {
            let path = entry.expect("readable").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).expect("below").to_owned();
                found.push((name, std::fs::read(&path).expect("readable")));
            }
        }
    }
    found.sort();
    found
}

#[test]
fn every_solution_style_of_every_family_passes_and_mutants_fail() {
    let problems = micropy::generate(&settings(320));
    let families: BTreeSet<String> = problems.iter().map(|p| p.problem.family.clone()).collect();
    assert!(families.len() >= 25, "{families:?}");
    let labelled = labelled(problems, &grader(2));
    for problem in &labelled.problems {
        let source = &problem.source;
        assert_eq!(
            problem.correct, source.solutions,
            "{:?}",
            source.problem.tests
        );
    }
    let counts = labelled.counts;
    assert_eq!((counts.solutions_failed, counts.problems_unsolved), (0, 0));
    assert!(
        counts.mutants_failed > 6 * counts.mutants_passed,
        "{counts:?}"
    );
    let with_wrong = labelled
        .problems
        .iter()
        .filter(|p| p.incorrect.len() >= 2)
        .count();
    assert!(with_wrong * 10 > labelled.problems.len() * 9, "{counts:?}");
}

#[test]
fn equal_settings_give_equal_bytes_at_any_number_of_workers() {
    let folder = tempfile::tempdir().expect("temporary folder");
    for workers in [1, 3] {
        let set = assemble(micropy::generate(&settings(60)), &grader(workers), 200);
        set.write(&folder.path().join(workers.to_string()))
            .expect("writable");
    }
    let (one, three) = (
        files(&folder.path().join("1")),
        files(&folder.path().join("3")),
    );
    assert!(
        one.len() >= 15,
        "{:?}",
        one.iter().map(|(name, _)| name).collect::<Vec<_>>()
    );
    for (one, three) in one.iter().zip(&three) {
        assert_eq!(one.0, three.0);
        assert!(one.1 == three.1, "{} differs", one.0.display());
    }
}

#[test]
fn files_agree_with_each_other_and_nothing_is_too_long() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let max_length = 88;
    let set = assemble(micropy::generate(&settings(60)), &grader(2), max_length);
    set.write(folder.path()).expect("writable");
    let at = |name: String| folder.path().join(name);
    let tokenizer = Tokenizer::load(&at(data_files::TOKENIZER.to_owned())).expect("written");
    let mut owners: Vec<BTreeSet<String>> = Vec::new();
    for split in Split::ALL {
        let records: Vec<Record> = jsonl::read(&at(data_files::records(split))).expect("written");
        let problems: Vec<Problem> =
            jsonl::read(&at(data_files::problems(split))).expect("written");
        let tokens = TokenFile::load(&at(data_files::tokens(split))).expect("written");
        assert_eq!(records.len(), tokens.len());
        for (index, record) in records.iter().enumerate() {
            let sample =
                encode_pair(&tokenizer, &record.prompt, &record.response).expect("a boundary");
            let row = tokens.row(index);
            assert_eq!(
                (row.ids, row.prompt_len),
                (sample.ids.as_slice(), sample.prompt_len)
            );
            assert_eq!(
                (row.is_correct, row.prompt_len as u32),
                (record.is_correct, record.n_prompt_tokens)
            );
            assert!(row.ids.len() <= max_length);
        }
        assert!(problems.iter().all(|problem| problem.reference.is_some()));
        owners.push(
            problems
                .into_iter()
                .map(|problem| problem.problem_id)
                .collect(),
        );
    }
    assert!(
        owners[0].is_disjoint(&owners[1])
            && owners[0].is_disjoint(&owners[2])
            && owners[1].is_disjoint(&owners[2])
    );
    let summary = set.summary();
    assert!(
        summary
            .dropped
            .get("row_too_long")
            .is_some_and(|&rows| rows > 0),
        "{:?}",
        summary.dropped
    );
}

#[test]
fn a_solution_that_fails_is_labelled_by_execution_and_weak_or_broken_mutants_are_left_out() {
    let problem = Problem {
        problem_id: "p".to_owned(),
        instruction: "Return n plus 1.".to_owned(),
        input: String::new(),
        prompt: "Return n plus 1.\n".to_owned(),
        tests: Tests::Asserts {
            setup: String::new(),
            asserts: vec!["assert f(1) == 2".to_owned()],
        },
        reference: None,
        family: String::new(),
        difficulty: 0,
    };
    let text = |body: &str| format!("def f(n):\n    return {body}");
    let source = SourceProblem {
        problem,
        split: Split::Train,
        original_split: None,
        solutions: vec![text("n + 2"), text("n + 1")],
        mutants: vec![
            text("n * 2"),
            text("n - 1"),
            text("n +* 1"),
            text("n"),
            text("0"),
            text("7"),
        ],
    };
    let labelled = labelled(vec![source], &grader(1));
    let result = &labelled.problems[0];
    assert_eq!(result.correct, [text("n + 1")]);
    assert_eq!(
        result.incorrect,
        [text("n + 2"), text("n - 1"), text("n"), text("0")]
    );
    assert_eq!(result.source.problem.reference, Some(text("n + 1")));
    let counts = labelled.counts;
    assert_eq!(
        (
            counts.mutants_passed,
            counts.mutants_unparsable,
            counts.mutants_surplus
        ),
        (1, 1, 1)
    );
}

#[test]
fn labelling_can_be_stopped() {
    let problems = micropy::generate(&settings(30));
    let error =
        label(problems, 3, &grader(1), |_, _| ControlFlow::Break(())).expect_err("stopped at once");
    assert!(matches!(error, Error::Stopped));
}

#[test]
fn mbpp_references_pass_and_their_mutants_are_judged() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let rows = [
        r#"{"text": "Write a function to find the larger number.", "code": "def larger(a, b):\r\n  if a > b:\r\n    return a\r\n  return b", "task_id": 601, "test_setup_code": "", "test_list": ["assert larger(1, 2) == 2", "assert larger(3, 2) == 3", "assert larger(0, 0) == 0"], "challenge_test_list": []}"#,
        r#"{"text": "Write a function to sum a tree.", "code": "class Node:\r\n    def __init__(self, v):\r\n        self.v = v\r\ndef total(n):\r\n    return n.v + 0", "task_id": 367, "test_setup_code": "root = Node(4)", "test_list": ["assert total(root) == 4"], "challenge_test_list": []}"#,
    ];
    std::fs::write(folder.path().join("mbpp.jsonl"), rows.join("\n")).expect("writable");
    let problems = mbpp::read(folder.path(), 3, 42).expect("full rows");
    let labelled = labelled(problems, &grader(1));
    let splits: Vec<Split> = labelled.problems.iter().map(|p| p.source.split).collect();
    assert_eq!(splits, [Split::Test, Split::Train]);
    assert!(labelled.problems.iter().all(|p| p.correct.len() == 1));
    assert_eq!(labelled.problems[1].incorrect.len(), 3);
}
