//! CodeContests: problems whose programs read standard input and are judged by what they print.
//!
//! Reads `*.jsonl` or `*.jsonl.gz` rows in the published schema, grouped by problem as they come: `{name, description,
//! public_tests, private_tests, generated_tests, solutions, incorrect_solutions, time_limit, difficulty}`. Python 3 programs
//! alone are taken (language 3; 1 is Python 2). All tests, the hidden ones too, judge; none stands in the prompt.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Deserialize;
use wmtp_records::{Case, Problem, Split, Tests, jsonl};
use wmtp_tokens::render_prompt;

use crate::source::{is_jsonl, jsonl_files, no_rows};
use crate::{Error, Shares, SourceProblem, by_shares};

/// Python 3 among the languages of the set.
const PYTHON_3: u32 = 3;
/// A program gets this many times what its problem grants: the limits are those of compiled languages.
const LIMIT_SHARE: u64 = 5;
/// Programs given as wrong that are offered for each one that is wanted: the tests let some pass.
const SPARE: usize = 2;
/// What every statement leaves to say.
const HOW: &str = "The program reads from standard input and prints to standard output.";

/// How much is taken.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Of the problems whose files name no split.
    pub shares: Shares,
    /// Programs given as right per problem, at most.
    pub solutions_per_problem: usize,
    /// Wrong programs wanted per problem; twice as many are offered.
    pub incorrect_per_problem: usize,
}

#[derive(Debug, Deserialize)]
struct Row {
    name: String,
    description: String,
    #[serde(default)]
    public_tests: Io,
    #[serde(default)]
    private_tests: Io,
    #[serde(default)]
    generated_tests: Io,
    solutions: Programs,
    #[serde(default)]
    incorrect_solutions: Programs,
    time_limit: Option<TimeLimit>,
    #[serde(default)]
    difficulty: u32,
}

#[derive(Debug, Default, Deserialize)]
struct Io {
    input: Vec<String>,
    output: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
struct Programs {
    language: Vec<u32>,
    solution: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct TimeLimit {
    seconds: u64,
}

/// Reads every file below a folder; problems come in the order of files and rows.
///
/// A file whose name holds `train`, `valid` or `test` as a word gives its problems to that split ([`named_split`]). Those of
/// other files are divided among each other, see [`by_shares`].
///
/// # Errors
/// [`Error::Rows`] names file and line of a row that lacks a field, repeats a problem, or has no test;
/// [`Error::BadInput`] when there is no row at all.
pub fn read(folder: &Path, settings: &Settings) -> Result<Vec<SourceProblem>, Error> {
    let mut problems = Vec::new();
    let mut seen = BTreeSet::new();
    for path in jsonl_files(folder)? {
        let original_split = named_split(&path);
        for row in jsonl::rows(&path)? {
            let (line, row): (usize, Row) = row?;
            let bad = |what: String| jsonl::Error::Row {
                path: path.clone(),
                line,
                what,
            };
            if !seen.insert(row.name.clone()) {
                return Err(bad(format!("problem {} occurs twice", row.name)).into());
            }
            problems.push(source_problem(row, original_split, settings).map_err(bad)?);
        }
    }
    if problems.is_empty() {
        return Err(no_rows(folder));
    }
    let unnamed = |problem: &&mut SourceProblem| problem.original_split.is_none();
    by_shares(problems.iter_mut().filter(unnamed), &settings.shares);
    Ok(problems)
}

/// Whether a file is one of those that [`read`] reads.
pub fn holds_rows(path: &Path) -> bool {
    is_jsonl(path)
}

/// The split that the name of a file tells for its problems.
pub fn named_split(path: &Path) -> Option<Split> {
    let name = path.file_name()?.to_string_lossy().to_lowercase();
    let mut words = name.split(|c: char| !c.is_ascii_alphabetic());
    words.find_map(|word| match word {
        "train" => Some(Split::Train),
        "valid" | "validation" => Some(Split::Validation),
        "test" => Some(Split::Test),
        _ => None,
    })
}

fn source_problem(
    row: Row,
    original_split: Option<Split>,
    settings: &Settings,
) -> Result<SourceProblem, String> {
    let mut cases = Vec::new();
    for (group, tests) in [
        ("public_tests", row.public_tests),
        ("private_tests", row.private_tests),
        ("generated_tests", row.generated_tests),
    ] {
        let (inputs, outputs) = (tests.input.len(), tests.output.len());
        if inputs != outputs {
            return Err(format!(
                "field `{group}`: {inputs} inputs, {outputs} outputs"
            ));
        }
        let pairs = tests.input.into_iter().zip(tests.output);
        cases.extend(pairs.map(|(input, output)| Case { input, output }));
    }
    if cases.is_empty() {
        return Err("a problem without tests".to_owned());
    }
    let instruction = format!("{}\n\n{HOW}", row.description.replace("\r\n", "\n").trim());
    let solutions = python_3(row.solutions, &[], settings.solutions_per_problem);
    // What stands under both labels is for execution to tell.
    let limit = SPARE * settings.incorrect_per_problem;
    let mutants = python_3(row.incorrect_solutions, &solutions, limit);
    Ok(SourceProblem {
        // Of a file that names none: until all problems are read.
        split: original_split.unwrap_or(Split::Train),
        problem: Problem {
            prompt: render_prompt(&instruction, ""),
            problem_id: row.name,
            instruction,
            input: String::new(),
            tests: Tests::Outputs {
                cases,
                cpu_secs: row
                    .time_limit
                    .map_or(0, |limit| LIMIT_SHARE * limit.seconds),
            },
            reference: solutions.first().cloned(),
            family: String::new(),
            difficulty: row.difficulty,
        },
        original_split,
        solutions,
        mutants,
    })
}

/// Different Python 3 programs, LF line ends, in their order; none of `others`.
fn python_3(programs: Programs, others: &[String], limit: usize) -> Vec<String> {
    let mut taken: Vec<String> = Vec::new();
    for (language, text) in programs.language.into_iter().zip(programs.solution) {
        let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        let program = lines.join("\n").trim_matches('\n').to_owned();
        let is_new = !taken.contains(&program) && !others.contains(&program);
        if language == PYTHON_3 && is_new && taken.len() < limit {
            taken.push(program);
        }
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: Settings = Settings {
        shares: Shares {
            validation: 0.2,
            test: 0.3,
            seed: 42,
        },
        solutions_per_problem: 2,
        incorrect_per_problem: 1,
    };

    fn read_files(files: &[(&str, String)]) -> Result<Vec<SourceProblem>, Error> {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        read(folder.path(), &SETTINGS)
    }

    fn row(name: &str) -> String {
        format!(
            concat!(
                r#"{{"name": "{}", "description": "Double it.\r\n", "difficulty": 7, "time_limit": {{"seconds": 2}},"#,
                r#" "public_tests": {{"input": ["1\n"], "output": ["2\n"]}},"#,
                r#" "generated_tests": {{"input": ["3\n"], "output": ["6\n"]}},"#,
                r#" "solutions": {{"language": [1, 3, 3, 3, 2, 3], "solution": ["print 1", "print(1)\r\n", "print(1)  ","#,
                r#" "print(2)", "int main", "print(3)"]}},"#,
                r#" "incorrect_solutions": {{"language": [3, 3], "solution": ["print(1)", "print(0)"]}}}}"#,
                "\n"
            ),
            name
        )
    }

    #[test]
    fn python_3_programs_and_all_tests_are_taken() {
        let problems = read_files(&[("a.jsonl", row("x"))]).unwrap();
        let problem = &problems[0];
        assert_eq!(problem.solutions, ["print(1)", "print(2)"]);
        assert_eq!(
            problem.mutants,
            ["print(0)"],
            "print(1) stands under both labels"
        );
        let Tests::Outputs { cases, cpu_secs } = &problem.problem.tests else {
            panic!("{:?}", problem.problem.tests);
        };
        assert_eq!((cases.len(), *cpu_secs), (2, 10));
        assert_eq!(cases[1].output, "6\n");
        assert_eq!(problem.problem.instruction, format!("Double it.\n\n{HOW}"));
        assert!(
            !problem.problem.prompt.contains('6'),
            "no test in the prompt"
        );
    }

    #[test]
    fn files_name_their_split_and_the_problems_of_others_are_divided() {
        let of_file = |name: &str| read_files(&[(name, row("x"))]).unwrap()[0].original_split;
        assert_eq!(
            of_file("code_contests_valid-00000.jsonl"),
            Some(Split::Validation)
        );
        assert_eq!(of_file("test.jsonl"), Some(Split::Test));
        assert_eq!(of_file("contest.jsonl"), None);
        let rows = |from: usize, to: usize| -> String {
            (from..to)
                .map(|number| row(&format!("p{number}")))
                .collect()
        };
        let files = [
            ("valid.jsonl", rows(0, 10)),
            ("contest.jsonl", rows(10, 30)),
        ];
        let problems = read_files(&files).unwrap();
        let count = |named, split| {
            let counted = problems.iter();
            counted
                .filter(|one| one.original_split.is_some() == named && one.split == split)
                .count()
        };
        assert_eq!(count(true, Split::Validation), 10);
        let divided = Split::ALL.map(|split| count(false, split));
        assert_eq!(divided, [10, 4, 6], "20 problems, 50, 20 and 30 %");
    }

    #[test]
    fn broken_rows_are_named() {
        let error = |rows: String| read_files(&[("a.jsonl", rows)]).unwrap_err().to_string();
        assert!(error(row("x") + &row("x")).contains("line 2: problem x occurs twice"));
        let uneven = row("x").replace(r#""output": ["2\n"]"#, r#""output": []"#);
        assert!(error(uneven).contains("line 1: field `public_tests`: 1 inputs, 0 outputs"));
        let none =
            r#"{"name": "x", "description": "", "solutions": {"language": [], "solution": []}}"#;
        assert!(error(none.to_owned()).contains("a problem without tests"));
    }
}
