//! The text that is executed: candidate and tests.

use std::sync::Arc;

use wmtp_records::{Case, Tests};

/// One program to grade.
///
/// Without cases it holds its own tests, and passes when it runs to its end without an exception. With cases it is run once
/// for each, as `python3 program.py < input`, and passes when every output is right by DeepMind's rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Program {
    /// Python source of what is judged.
    pub candidate: String,
    /// Python source that judges it, run after it in one text; an audit runs it in a process of its own.
    pub tests: Arc<str>,
    /// Inputs with their expected outputs.
    pub cases: Arc<[Case]>,
    /// CPU seconds that the problem grants a case at least, whatever the grader's limits say.
    pub cpu_secs: u64,
}

impl From<String> for Program {
    /// A program that holds its own tests.
    fn from(source: String) -> Self {
        Self {
            candidate: source,
            tests: Arc::from(""),
            cases: Arc::default(),
            cpu_secs: 0,
        }
    }
}

impl Program {
    /// A candidate followed by its tests.
    ///
    /// The order for assertions is candidate, set-up, assertions: MBPP's set-up code builds objects of a
    /// class that the candidate defines (rows 367 and 927).
    ///
    /// ```
    /// use wmtp_grading::Program;
    /// use wmtp_records::Tests;
    ///
    /// let tests = Tests::Asserts { setup: "x = one()".into(), asserts: vec!["assert x == 1".into()] };
    /// let program = Program::from_tests("def one():\n    return 1", &tests);
    /// assert_eq!(program.source(), "def one():\n    return 1\nx = one()\nassert x == 1\n");
    /// ```
    pub fn from_tests(candidate: &str, tests: &Tests) -> Self {
        let (mut own, mut judge) = (String::new(), String::new());
        push_part(&mut own, candidate);
        match tests {
            Tests::Asserts { setup, asserts } => {
                push_part(&mut judge, setup);
                for assert in asserts {
                    push_part(&mut judge, assert);
                }
            }
            Tests::Check { test, entry_point } => {
                push_part(&mut judge, test);
                push_part(&mut judge, &format!("check({entry_point})"));
            }
            Tests::Outputs { cases, cpu_secs } => {
                return Self {
                    cases: cases.as_slice().into(),
                    cpu_secs: *cpu_secs,
                    ..own.into()
                };
            }
        }
        Self::of(own, judge.into())
    }

    /// Another candidate with the same tests, which the two share.
    #[must_use]
    pub fn with_candidate(&self, candidate: &str) -> Self {
        let mut own = String::new();
        push_part(&mut own, candidate);
        Self {
            candidate: own,
            ..self.clone()
        }
    }

    /// A HumanEval program: prompt and completion are one text, then test and `check(entry_point)`.
    pub fn human_eval(prompt: &str, completion: &str, test: &str, entry_point: &str) -> Self {
        Self::of(
            format!("{prompt}{completion}\n"),
            format!("{test}\ncheck({entry_point})\n").into(),
        )
    }

    /// A candidate and a text that judges it, which begins on a line of its own.
    pub(crate) fn of(candidate: String, tests: Arc<str>) -> Self {
        Self {
            tests,
            ..candidate.into()
        }
    }

    /// Candidate and tests as one text.
    pub fn source(&self) -> String {
        format!("{}{}", self.candidate, self.tests)
    }

    /// Whether candidate and tests can be told apart.
    pub(crate) fn can_be_audited(&self) -> bool {
        self.cases.is_empty() && !self.tests.is_empty()
    }
}

/// Appends a part on lines of its own; empty parts leave nothing.
fn push_part(source: &mut String, part: &str) {
    if part.is_empty() {
        return;
    }
    source.push_str(part);
    if !part.ends_with('\n') {
        source.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn human_eval_joins_prompt_and_completion_without_a_gap() {
        let program = Program::human_eval("def f():\n", "    return 1", "def check(c): pass", "f");
        assert_eq!(
            program.source(),
            "def f():\n    return 1\ndef check(c): pass\ncheck(f)\n"
        );
    }

    #[test]
    fn another_candidate_shares_the_tests() {
        let case = Case {
            input: "1".into(),
            output: "2".into(),
        };
        let tests = Tests::Outputs {
            cases: vec![case],
            cpu_secs: 7,
        };
        let empty = Program::from_tests("", &tests);
        let program = empty.with_candidate("print(2)");
        assert_eq!(program, Program::from_tests("print(2)", &tests));
        assert_eq!((program.cpu_secs, program.tests.as_ref()), (7, ""));
        assert!(Arc::ptr_eq(&program.cases, &empty.cases));
    }

    #[test]
    fn check_follows_the_test_module() {
        let tests = Tests::Check {
            test: "def check(c): assert c() == 1".into(),
            entry_point: "f".into(),
        };
        let program = Program::from_tests("def f(): return 1", &tests);
        assert!(program.source().ends_with("== 1\ncheck(f)\n"));
    }
}
