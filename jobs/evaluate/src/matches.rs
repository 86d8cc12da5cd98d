//! How often the greedy program is the reference itself: by its text, and by its syntax tree.
//!
//! Secondary numbers: a right program may look like no other. They are of the greedy programs and exist where every problem has
//! a reference.

use serde_json::Value;
use wmtp_grading::{Grader, Program};
use wmtp_job_kit::{JobError, Run};
use wmtp_records::{ErrorClass, GradedSample, Problem};

/// Parses two texts and compares their trees, docstrings aside. The texts are hostile: it runs in the sandbox, as they do.
const COMPARISON: &str = include_str!("ast_match.py");

/// Shares of the problems, 0…1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Matches {
    /// Equal but for comments, blanks at the ends of lines and empty lines. Indentation counts for nothing and a `#` in a text
    /// ends it: the rule is kept as it is to be comparable.
    pub(crate) exact: f64,
    /// Equal as syntax trees.
    pub(crate) ast: f64,
}

/// Compares; `None` where a problem has no reference or no graded greedy program.
///
/// # Errors
/// 143 when a signal asks to stop.
pub(crate) fn of(
    problems: &[Problem],
    samples: &[GradedSample],
    grader: &Grader,
    run: &Run,
) -> Result<Option<Matches>, JobError> {
    let Some(pairs) = pairs(problems, samples) else {
        return Ok(None);
    };
    let programs: Vec<Program> = pairs.iter().map(|(a, b)| comparison(a, b)).collect();
    let verdicts = grader.grade_all(&programs, |_, _| run.flow());
    // Programs that were not run are no differences.
    run.go_on()?;
    let share = |count: usize| count as f64 / pairs.len() as f64;
    let same_text = |(a, b): &&(&str, &str)| bare_lines(a) == bare_lines(b);
    Ok(Some(Matches {
        exact: share(pairs.iter().filter(same_text).count()),
        ast: share(verdicts.iter().filter(|verdict| verdict.passed).count()),
    }))
}

/// Greedy program and reference of each problem, if there are any and no problem lacks either.
fn pairs<'a>(
    problems: &'a [Problem],
    samples: &'a [GradedSample],
) -> Option<Vec<(&'a str, &'a str)>> {
    let pairs: Vec<(&str, &str)> = problems
        .iter()
        .map(|problem| {
            let greedy = samples.iter().find(|sample| {
                sample.completion.problem_id == problem.problem_id
                    && sample.completion.sample.is_none()
                    && sample.verdict.class != ErrorClass::Infrastructure
            })?;
            Some((
                greedy.completion.program.as_str(),
                problem.reference.as_deref()?,
            ))
        })
        .collect::<Option<_>>()?;
    (!pairs.is_empty()).then_some(pairs)
}

fn comparison(program: &str, reference: &str) -> Program {
    // A text in JSON is the same text in Python.
    let literal = |text: &str| Value::from(text).to_string();
    let call = format!(
        "assert tree({}) == tree({})\n",
        literal(program),
        literal(reference)
    );
    format!("{COMPARISON}{call}").into()
}

fn bare_lines(program: &str) -> Vec<&str> {
    program
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim())
        .filter(|line| !line.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use wmtp_grading::GraderConfig;

    use super::*;

    #[test]
    fn comments_blanks_and_empty_lines_are_no_difference_of_text() {
        let bare = bare_lines("def f(x):  # adds\n\n    return x + 1   \n# end\n");
        assert_eq!(bare, ["def f(x):", "return x + 1"]);
    }

    #[test]
    fn trees_are_equal_whatever_the_layout_and_docstring() {
        let grader = Grader::start(GraderConfig {
            workers: NonZeroUsize::MIN,
            ..GraderConfig::default()
        })
        .unwrap();
        let equal = |a: &str, b: &str| grader.grade(&comparison(a, b)).passed;
        let reference = "def f(x):\n    return x + 1\n";
        assert!(equal(
            "def f( x ):\n  '''Adds.'''\n  return (x+1) # one",
            reference
        ));
        assert!(equal("'''A module.'''\ndef f(x): return x + 1", reference));
        assert!(!equal("def f(x): return 1 + x", reference));
        assert!(!equal("def f(x): return x + 1\n'text'", reference));
        assert!(!equal("def f(x:", reference));
        // It is read and never run.
        assert!(!equal("import os\nos._exit(0)", reference));
        assert!(!equal(&"(".repeat(100_000), reference));
        assert!(equal(
            "s = 'a\"\\n\\\\ \u{1f600}'",
            "s = \"a\\\"\\n\\\\ \u{1f600}\""
        ));
    }
}
