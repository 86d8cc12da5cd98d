//! Labels by execution: a program is right when its problem's tests pass in the sandbox, and not otherwise.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};
use wmtp_grading::{Grader, Program};
use wmtp_records::{ErrorClass, Verdict};

use crate::{Error, SourceProblem};

/// A problem whose programs have been executed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelledProblem {
    /// The problem; its reference passes.
    pub source: SourceProblem,
    /// Programs that pass.
    pub correct: Vec<String>,
    /// Programs that do not.
    pub incorrect: Vec<String>,
}

/// What execution said, and what it contradicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LabelCounts {
    /// Different programs that were executed, tests included.
    pub executed: usize,
    /// Solutions that pass.
    pub solutions_passed: usize,
    /// Solutions that do not; such a row is labelled incorrect.
    pub solutions_failed: usize,
    /// Mutants that do not pass.
    pub mutants_failed: usize,
    /// Mutants that pass, left out: the change means nothing, or the tests are too weak to tell.
    pub mutants_passed: usize,
    /// Mutants that do not parse, left out: that is no semantic change.
    pub mutants_unparsable: usize,
    /// Failing mutants beyond the number that is wanted per problem, left out.
    pub mutants_surplus: usize,
    /// Problems without any passing program.
    pub problems_unsolved: usize,
}

/// Every problem with its labelled programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labelled {
    /// In the order given.
    pub problems: Vec<LabelledProblem>,
    /// Counts over all of them.
    pub counts: LabelCounts,
}

/// Executes every program with its problem's tests and labels it by the verdict.
///
/// At most `incorrect_per_problem` failing mutants are kept, in their given order. A problem keeps its reference only
/// if it passes. Equal programs with equal tests are executed once. `on_done` hears how many programs of how many
/// are done, and says now and then whether to go on.
///
/// # Errors
/// [`Error::Ungraded`] when the grader could not run a program: a row without a true label is not made up;
/// [`Error::Stopped`] when `on_done` said so.
pub fn label(
    problems: Vec<SourceProblem>,
    incorrect_per_problem: usize,
    grader: &Grader,
    mut on_done: impl FnMut(usize, usize) -> ControlFlow<()>,
) -> Result<Labelled, Error> {
    let mut numbers: BTreeMap<Program, usize> = BTreeMap::new();
    let mut programs = Vec::new();
    for problem in &problems {
        for candidate in problem.solutions.iter().chain(&problem.mutants) {
            let program = Program::from_tests(candidate, &problem.problem.tests);
            numbers.entry(program.clone()).or_insert_with(|| {
                programs.push(program);
                programs.len() - 1
            });
        }
    }
    let (mut done, mut stopped) = (0, false);
    let verdicts = grader.grade_all(&programs, |_, _| {
        done += 1;
        let next = on_done(done, programs.len());
        stopped |= next.is_break();
        next
    });
    if stopped {
        return Err(Error::Stopped);
    }
    let mut counts = LabelCounts {
        executed: programs.len(),
        ..LabelCounts::default()
    };
    let verdict_of = |problem: &SourceProblem, candidate: &str| {
        let program = Program::from_tests(candidate, &problem.problem.tests);
        &verdicts[numbers[&program]]
    };
    let problems = problems
        .into_iter()
        .map(|problem| sort_out(problem, incorrect_per_problem, &verdict_of, &mut counts))
        .collect::<Result<_, _>>()?;
    Ok(Labelled { problems, counts })
}

fn sort_out<'a>(
    mut source: SourceProblem,
    incorrect_per_problem: usize,
    verdict_of: &impl Fn(&SourceProblem, &str) -> &'a Verdict,
    counts: &mut LabelCounts,
) -> Result<LabelledProblem, Error> {
    let (mut correct, mut incorrect) = (Vec::new(), Vec::new());
    for solution in &source.solutions {
        if passes(&source, verdict_of(&source, solution))? {
            counts.solutions_passed += 1;
            correct.push(solution.clone());
        } else {
            counts.solutions_failed += 1;
            incorrect.push(solution.clone());
        }
    }
    let mut kept = 0;
    for mutant in &source.mutants {
        let verdict = verdict_of(&source, mutant);
        if passes(&source, verdict)? {
            counts.mutants_passed += 1;
        } else if verdict.class == ErrorClass::Syntax {
            counts.mutants_unparsable += 1;
        } else {
            counts.mutants_failed += 1;
            if kept == incorrect_per_problem {
                counts.mutants_surplus += 1;
            } else {
                kept += 1;
                incorrect.push(mutant.clone());
            }
        }
    }
    counts.problems_unsolved += usize::from(correct.is_empty());
    source.problem.reference = correct.first().cloned();
    Ok(LabelledProblem {
        source,
        correct,
        incorrect,
    })
}

fn passes(problem: &SourceProblem, verdict: &Verdict) -> Result<bool, Error> {
    if verdict.class == ErrorClass::Infrastructure {
        return Err(Error::Ungraded {
            problem_id: problem.problem.problem_id.clone(),
            reason: verdict.message.clone(),
        });
    }
    Ok(verdict.passed)
}
