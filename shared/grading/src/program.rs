//! The text that is executed: candidate and tests.

use wmtp_records::Tests;

/// One program to grade. It passes when it runs to its end without an exception.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Python source: the candidate, then what judges it.
    pub source: String,
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
    /// assert_eq!(program.source, "def one():\n    return 1\nx = one()\nassert x == 1\n");
    /// ```
    pub fn from_tests(candidate: &str, tests: &Tests) -> Self {
        let mut source = String::new();
        push_part(&mut source, candidate);
        match tests {
            Tests::Asserts { setup, asserts } => {
                push_part(&mut source, setup);
                for assert in asserts {
                    push_part(&mut source, assert);
                }
            }
            Tests::Check { test, entry_point } => {
                push_part(&mut source, test);
                push_part(&mut source, &format!("check({entry_point})"));
            }
        }
        Self { source }
    }

    /// A HumanEval program: prompt and completion are one text, then test and `check(entry_point)`.
    pub fn human_eval(prompt: &str, completion: &str, test: &str, entry_point: &str) -> Self {
        Self {
            source: format!("{prompt}{completion}\n{test}\ncheck({entry_point})\n"),
        }
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
            program.source,
            "def f():\n    return 1\ndef check(c): pass\ncheck(f)\n"
        );
    }

    #[test]
    fn check_follows_the_test_module() {
        let tests = Tests::Check {
            test: "def check(c): assert c() == 1".into(),
            entry_point: "f".into(),
        };
        let program = Program::from_tests("def f(): return 1", &tests);
        assert!(program.source.ends_with("== 1\ncheck(f)\n"));
    }
}
