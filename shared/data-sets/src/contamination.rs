//! Keeping training clear of evaluation: no statement of validation or test, or nearly one, in training; and telling
//! what a model has seen of a problem all the same.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use wmtp_records::{Contamination, Problem, Record, Split};

use crate::SourceProblem;

/// Words per shingle.
const SHINGLE: usize = 3;

/// Two statements whose shingle sets overlap by this share (Jaccard) are the same statement retold.
const NEAR: f64 = 0.8;

/// Training problems that were left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Separation {
    /// Same statement, letter case, blanks and punctuation aside.
    pub exact: usize,
    /// Nearly the same statement.
    pub near: usize,
}

/// Drops training problems whose statement occurs, exactly or nearly, in validation or test.
///
/// Exact: equal after lower-casing and cutting into words. Near: word 3-shingles overlap by 0.8 or more. Numbers are
/// words like others: another constant makes a short statement another one, but a long statement stays near.
pub fn separate(problems: Vec<SourceProblem>) -> (Vec<SourceProblem>, Separation) {
    let evaluation = Statements::new(
        problems
            .iter()
            .filter(|problem| problem.split != Split::Train)
            .map(|problem| problem.problem.instruction.as_str()),
    );
    let mut counts = Separation::default();
    let kept = problems
        .into_iter()
        .filter(|problem| {
            if problem.split != Split::Train {
                return true;
            }
            let words = words(&problem.problem.instruction);
            let exact = evaluation.has(&words);
            let near = !exact && evaluation.has_near(&words);
            counts.exact += usize::from(exact);
            counts.near += usize::from(near);
            !exact && !near
        })
        .collect();
    (kept, counts)
}

/// What a policy was trained on, to hold problems against it: statements and programs of correct rows.
#[derive(Debug)]
pub struct TrainingRows {
    statements: Statements,
    programs: BTreeSet<String>,
}

impl TrainingRows {
    /// Takes rows one by one; what stays in memory are different statements and programs.
    ///
    /// # Errors
    /// The first that the rows bring.
    pub fn read<E>(rows: impl Iterator<Item = Result<Record, E>>) -> Result<Self, E> {
        let (mut statements, mut programs) = (BTreeSet::new(), BTreeSet::new());
        for row in rows {
            let row = row?;
            if row.is_correct == Some(true) {
                statements.insert(row.instruction);
                programs.insert(bare(&row.response));
            }
        }
        Ok(Self {
            statements: Statements::new(statements.iter().map(String::as_str)),
            programs,
        })
    }

    /// What of a problem is among them: its statement by the rules of [`separate`], or one of `programs`, which solve it.
    pub fn contamination<'a>(
        &self,
        problem: &Problem,
        mut programs: impl Iterator<Item = &'a str>,
    ) -> Option<Contamination> {
        let words = words(&problem.instruction);
        if self.statements.has(&words) {
            Some(Contamination::Statement)
        } else if self.statements.has_near(&words) {
            Some(Contamination::NearStatement)
        } else if programs.any(|program| self.programs.contains(&bare(program))) {
            Some(Contamination::Program)
        } else {
            None
        }
    }
}

/// A program without lines that say nothing: empty ones, and those of a comment alone.
fn bare(program: &str) -> String {
    let lines = program.lines().map(str::trim_end);
    let saying = lines.filter(|line| !line.is_empty() && !line.trim_start().starts_with('#'));
    saying.collect::<Vec<_>>().join("\n")
}

#[derive(Debug)]
struct Statements {
    exact: BTreeSet<Vec<String>>,
    shingles: Vec<BTreeSet<Vec<String>>>,
    holders: BTreeMap<Vec<String>, Vec<usize>>,
}

impl Statements {
    fn new<'a>(texts: impl Iterator<Item = &'a str>) -> Self {
        let mut statements = Self {
            exact: BTreeSet::new(),
            shingles: Vec::new(),
            holders: BTreeMap::new(),
        };
        for text in texts {
            let words = words(text);
            let shingles = shingles(&words);
            for shingle in &shingles {
                let holders = statements.holders.entry(shingle.clone()).or_default();
                holders.push(statements.shingles.len());
            }
            statements.shingles.push(shingles);
            statements.exact.insert(words);
        }
        statements
    }

    fn has(&self, words: &[String]) -> bool {
        self.exact.contains(words)
    }

    fn has_near(&self, words: &[String]) -> bool {
        let own = shingles(words);
        let mut shared: BTreeMap<usize, usize> = BTreeMap::new();
        for shingle in &own {
            for &holder in self.holders.get(shingle).map_or(&[][..], Vec::as_slice) {
                *shared.entry(holder).or_default() += 1;
            }
        }
        shared.into_iter().any(|(holder, both)| {
            let either = own.len() + self.shingles[holder].len() - both;
            both as f64 >= NEAR * either as f64
        })
    }
}

fn words(text: &str) -> Vec<String> {
    text.split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
        .collect()
}

/// Statements shorter than a shingle are one shingle.
fn shingles(words: &[String]) -> BTreeSet<Vec<String>> {
    if words.len() < SHINGLE {
        return BTreeSet::from([words.to_vec()]);
    }
    words.windows(SHINGLE).map(<[String]>::to_vec).collect()
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use wmtp_records::{RecordMetadata, Tests};

    use super::*;

    fn problem(split: Split, statement: &str) -> SourceProblem {
        SourceProblem {
            problem: Problem {
                problem_id: statement.to_owned(),
                instruction: statement.to_owned(),
                input: String::new(),
                prompt: String::new(),
                tests: Tests::Asserts {
                    setup: String::new(),
                    asserts: Vec::new(),
                },
                reference: None,
                family: String::new(),
                difficulty: 0,
            },
            split,
            original_split: None,
            solutions: Vec::new(),
            mutants: Vec::new(),
        }
    }

    #[test]
    fn exact_and_near_statements_leave_training_only() {
        let long =
            "Write a function to find the longest chain of pairs in a given list of number pairs";
        let (kept, counts) = separate(vec![
            problem(Split::Test, "Return the sum of a."),
            problem(Split::Test, long),
            problem(Split::Validation, "Return the sum of a."),
            problem(Split::Train, "return  the SUM of a"),
            problem(Split::Train, &format!("{long} now")),
            problem(Split::Train, "Return the numbers of a above 3."),
        ]);
        assert_eq!(counts, Separation { exact: 1, near: 1 });
        assert_eq!(kept.len(), 4);
    }

    #[test]
    fn another_constant_is_another_statement_if_it_is_short() {
        let short = |n| format!("Return the numbers of a above {n}.");
        let (kept, counts) = separate(vec![
            problem(Split::Test, &short(3)),
            problem(Split::Train, &short(4)),
        ]);
        assert_eq!((kept.len(), counts), (2, Separation::default()));

        // 9 shingles each, 8 in common: 8 of 10.
        let long = |n| format!("Write f(a) that returns the numbers of a above {n}.");
        let (kept, counts) = separate(vec![
            problem(Split::Test, &long(3)),
            problem(Split::Train, &long(4)),
        ]);
        assert_eq!((kept.len(), counts), (1, Separation { exact: 0, near: 1 }));
    }

    fn row(statement: &str, program: &str, is_correct: bool) -> Record {
        Record {
            problem_id: statement.to_owned(),
            task_id: String::new(),
            instruction: statement.to_owned(),
            input: String::new(),
            output: program.to_owned(),
            prompt: String::new(),
            response: program.to_owned(),
            is_correct: Some(is_correct),
            n_prompt_tokens: 0,
            n_response_tokens: 0,
            difficulty: 0,
            language: String::new(),
            metadata: RecordMetadata {
                source: String::new(),
                has_tests: true,
                original_split: None,
                is_correct: Some(is_correct),
                family: String::new(),
            },
        }
    }

    #[test]
    fn what_the_training_rows_hold_of_a_problem_is_told_and_nothing_else() {
        let long =
            "Write a function to find the longest chain of pairs in a given list of number pairs";
        let rows = [
            row(
                "Return the sum of a.",
                "def f(a):\n    return sum(a)\n",
                true,
            ),
            row(long, "def f(a):\n    return chain(a)\n", true),
            // No policy is trained on a wrong row.
            row(
                "Return the longest word of a.",
                "def f(a):\n    return max(a)\n",
                false,
            ),
        ];
        let rows = TrainingRows::read(rows.into_iter().map(Ok::<_, Infallible>)).unwrap();
        let found = |statement: &str, programs: &[&str]| {
            let problem = problem(Split::Test, statement).problem;
            rows.contamination(&problem, programs.iter().copied())
        };
        let sum = "# adds up\ndef f(a):\n\n    return sum(a)  \n";
        assert_eq!(
            found("return the SUM of: a", &[sum]),
            Some(Contamination::Statement),
            "the gravest is told"
        );
        assert_eq!(
            found(&format!("{long} now"), &[]),
            Some(Contamination::NearStatement)
        );
        assert_eq!(
            found("Add the numbers of a.", &["def f(a): pass", sum]),
            Some(Contamination::Program)
        );
        // Indentation is Python's, and another name is another program.
        for other in ["def f(a):\n  return sum(a)", "def g(a):\n    return sum(a)"] {
            assert_eq!(found("Add the numbers of a.", &[other]), None, "{other}");
        }
        assert_eq!(
            found(
                "Return the longest word of a.",
                &["def f(a):\n    return max(a)"]
            ),
            None
        );
    }

    #[test]
    fn a_row_that_cannot_be_read_is_an_error() {
        let rows = [Ok(row("a", "b", true)), Err("line 2")];
        assert_eq!(TrainingRows::read(rows.into_iter()).unwrap_err(), "line 2");
    }
}
