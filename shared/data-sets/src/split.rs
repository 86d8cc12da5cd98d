//! Which split a problem belongs to, where nothing before says it: exact shares, whole contest rounds, any order of rows.

use std::collections::BTreeMap;

use wmtp_records::Split;

use crate::SourceProblem;
use crate::random::stable_hash;

/// Who decides the split of a problem, the first that does so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SplitLevel {
    /// The recipe: its shares, whatever the rows say.
    Recipe,
    /// The rows themselves.
    Stored,
    /// The shares that hold where neither says anything.
    Default,
}

impl SplitLevel {
    /// The word that artifacts hold.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Recipe => "recipe",
            Self::Stored => "stored",
            Self::Default => "default",
        }
    }
}

/// Parts of a data set that are kept from training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shares {
    /// Share of validation, 0…1.
    pub validation: f64,
    /// Share of test, 0…1; both together leave something to train on.
    pub test: f64,
    /// Determines which problems these are.
    pub seed: u64,
}

/// Gives every problem to a split: as many as the shares say, rounded by largest remainder.
///
/// Problems of one contest round stay together, so a split may have more than its number by less than one round. The order
/// in which the rounds are taken is that of a hash of their names: neither the order of the rows nor that of the files counts.
pub fn by_shares<'a>(problems: impl IntoIterator<Item = &'a mut SourceProblem>, shares: &Shares) {
    let mut rounds: BTreeMap<(u64, String), Vec<&'a mut SourceProblem>> = BTreeMap::new();
    let mut num_problems = 0;
    for problem in problems {
        let round = round(&problem.problem.problem_id).to_owned();
        let place = (stable_hash(shares.seed, &format!("split/{round}")), round);
        rounds.entry(place).or_default().push(problem);
        num_problems += 1;
    }
    let [_, validation, test] = largest_remainder(num_problems, shares);
    let mut left = [(Split::Test, test), (Split::Validation, validation)];
    for problems in rounds.into_values() {
        let open = left.iter_mut().find(|(_, left)| *left > 0);
        let split = open.map_or(Split::Train, |(split, left)| {
            *left = left.saturating_sub(problems.len());
            *split
        });
        for problem in problems {
            problem.split = split;
        }
    }
}

/// Numbers of training, validation and test: what a share says, cut; what is left goes one each to the largest cuts.
fn largest_remainder(num_problems: usize, shares: &Shares) -> [usize; 3] {
    let train = 1.0 - shares.validation - shares.test;
    let exact = [train, shares.validation, shares.test].map(|share| share * num_problems as f64);
    let mut counts = exact.map(|exact| exact as usize);
    let mut order = [0_usize, 1, 2];
    order.sort_by(|&a, &b| exact[b].fract().total_cmp(&exact[a].fract()));
    let missing = num_problems.saturating_sub(counts.iter().sum());
    for place in order.into_iter().cycle().take(missing) {
        counts[place] += 1;
    }
    counts
}

/// The contest round of a problem such as `1575_A. Another Sorting Problem`; what names none is a round of its own.
fn round(problem_id: &str) -> &str {
    match problem_id.split_once('_') {
        Some((round, _)) if !round.is_empty() && round.bytes().all(|b| b.is_ascii_digit()) => round,
        _ => problem_id,
    }
}

#[cfg(test)]
mod tests {
    use wmtp_records::{Problem, Tests};

    use super::*;

    fn problem(id: &str) -> SourceProblem {
        SourceProblem {
            problem: Problem {
                problem_id: id.to_owned(),
                instruction: String::new(),
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
            split: Split::Train,
            original_split: None,
            solutions: Vec::new(),
            mutants: Vec::new(),
        }
    }

    fn shares(validation: f64, test: f64) -> Shares {
        Shares {
            validation,
            test,
            seed: 42,
        }
    }

    /// Name to split.
    fn split<S: AsRef<str>>(ids: &[S], shares: &Shares) -> BTreeMap<String, Split> {
        let mut problems: Vec<_> = ids.iter().map(|id| problem(id.as_ref())).collect();
        by_shares(&mut problems, shares);
        let named = problems.into_iter();
        named
            .map(|one| (one.problem.problem_id, one.split))
            .collect()
    }

    fn counts(splits: &BTreeMap<String, Split>) -> [usize; 3] {
        Split::ALL.map(|wanted| splits.values().filter(|&&split| split == wanted).count())
    }

    #[test]
    fn counts_are_those_of_the_largest_remainders() {
        // 7 of 10, 10, 80 %: 0.7, 0.7, 5.6; both of the larger remainders get what the cuts left.
        assert_eq!(largest_remainder(7, &shares(0.1, 0.1)), [5, 1, 1]);
        // 3 of 25, 25, 50 %: 0.75, 0.75, 1.5.
        assert_eq!(largest_remainder(3, &shares(0.25, 0.25)), [1, 1, 1]);
        assert_eq!(largest_remainder(974, &shares(0.1, 0.2)), [682, 97, 195]);
        assert_eq!(largest_remainder(5, &shares(0.0, 0.0)), [5, 0, 0]);
        assert_eq!(largest_remainder(0, &shares(0.5, 0.25)), [0, 0, 0]);
        let ids: Vec<String> = (0..210).map(|number| format!("p{number}")).collect();
        assert_eq!(counts(&split(&ids, &shares(0.1, 0.2))), [147, 21, 42]);
    }

    #[test]
    fn the_order_of_the_rows_does_not_count_and_the_seed_does() {
        let mut ids: Vec<String> = (0..60).map(|number| format!("p{number}")).collect();
        let forth = split(&ids, &shares(0.2, 0.3));
        ids.reverse();
        assert_eq!(split(&ids, &shares(0.2, 0.3)), forth);
        let other = Shares {
            seed: 43,
            ..shares(0.2, 0.3)
        };
        assert_ne!(split(&ids, &other), forth);
    }

    #[test]
    fn a_contest_round_is_never_in_two_splits() {
        let ids: Vec<String> = (0..90)
            .map(|number| {
                format!(
                    "{}_{}. Name",
                    1500 + number / 3,
                    ["A", "B_1", "C"][number % 3]
                )
            })
            .collect();
        let splits = split(&ids, &shares(0.1, 0.2));
        let [_, validation, test] = counts(&splits);
        assert_eq!((validation, test), (9, 18), "whole rounds of three");
        let mut rounds: BTreeMap<&str, Split> = BTreeMap::new();
        for (id, split) in &splits {
            assert_eq!(*rounds.entry(round(id)).or_insert(*split), *split, "{id}");
        }
        assert_eq!(rounds.len(), 30);
        assert_eq!(round("p02601 AtCoder_A"), "p02601 AtCoder_A");
    }
}
