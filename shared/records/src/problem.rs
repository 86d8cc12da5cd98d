//! One programming problem with its tests.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Part of a data set. Problems are disjoint between splits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Seen in training.
    Train,
    /// For choosing checkpoints, temperatures and versions.
    Validation,
    /// For the final report only.
    Test,
}

impl Split {
    /// All splits in their customary order.
    pub const ALL: [Self; 3] = [Self::Train, Self::Validation, Self::Test];

    /// The name used in paths and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "validation",
            Self::Test => "test",
        }
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A problem as the evaluator needs it. Made by prepare-data; read by evaluate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Unique in the data set.
    pub problem_id: String,
    /// The statement.
    pub instruction: String,
    /// Examples shown with the statement; empty when there are none.
    pub input: String,
    /// The prompt that a model is given, exactly as in training.
    pub prompt: String,
    /// How a program is judged.
    pub tests: Tests,
    /// A program that passes, when one is known; shown beside failing samples.
    pub reference: Option<String>,
    /// Problem family (micropy) or empty.
    #[serde(default)]
    pub family: String,
    /// Difficulty as the source gives it; 0 is unknown.
    #[serde(default)]
    pub difficulty: u32,
}

/// What of a problem was among the rows that a model was trained on, the gravest where several are true.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Contamination {
    /// Its statement: the same words, letter case and punctuation aside.
    Statement,
    /// Nearly its statement.
    NearStatement,
    /// A program that solves it, comments and empty lines aside, under another statement.
    Program,
}

impl Contamination {
    /// The name used in files and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Statement => "statement",
            Self::NearStatement => "near_statement",
            Self::Program => "program",
        }
    }
}

/// How a program is judged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Tests {
    /// The program, then the set-up code, then every assertion. The set-up comes after the program because
    /// MBPP's set-up code builds objects of the class that the program defines.
    Asserts {
        /// Code run between program and assertions; often empty.
        setup: String,
        /// One statement each.
        asserts: Vec<String>,
    },
    /// The program followed by a test module that defines `check`, then `check(entry_point)` (HumanEval).
    Check {
        /// Source that defines `check(candidate)`.
        test: String,
        /// Name of the function under test.
        entry_point: String,
    },
    /// The program runs once for each case, as `python3 program.py < input`, and what it prints is judged from outside
    /// (CodeContests).
    Outputs {
        /// Public and hidden ones.
        cases: Vec<Case>,
        /// CPU seconds that the problem grants a case at least, whatever the limits of the evaluation say.
        #[serde(default)]
        cpu_secs: u64,
    },
}

/// What a program reads and what it should print.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Case {
    /// Standard input.
    pub input: String,
    /// Standard output.
    pub output: String,
}
