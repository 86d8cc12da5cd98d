//! Keeping training clear of evaluation: no statement of validation or test, or nearly one, in training.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use wmtp_records::Split;

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
            .filter(|problem| problem.split != Split::Train),
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

struct Statements {
    exact: BTreeSet<Vec<String>>,
    shingles: Vec<BTreeSet<Vec<String>>>,
    holders: BTreeMap<Vec<String>, Vec<usize>>,
}

impl Statements {
    fn new<'a>(problems: impl Iterator<Item = &'a SourceProblem>) -> Self {
        let mut statements = Self {
            exact: BTreeSet::new(),
            shingles: Vec::new(),
            holders: BTreeMap::new(),
        };
        for problem in problems {
            let words = words(&problem.problem.instruction);
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
    use wmtp_records::{Problem, Tests};

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
}
