//! Generated programs and what became of them.

use std::fmt;
use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

use crate::Contamination;

/// One generated program. Made by evaluate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Completion {
    /// The problem that it answers.
    pub problem_id: String,
    /// 0-based number of the sample within its problem; `None` for the greedy one.
    pub sample: Option<u32>,
    /// The text as generated, end token removed.
    pub raw: String,
    /// The program that is executed, after the extraction rule.
    pub program: String,
    /// Number of generated tokens; of a model from outside it may not be known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_tokens: Option<u32>,
    /// Whether generation ended by itself, not by the token limit; unknown as the number of tokens may be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished: Option<bool>,
}

/// How long the text of a completion took, whatever was generated beside it. Made by evaluate; apart from
/// [`Completion`], since times differ where texts do not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CompletionTiming {
    /// The problem.
    pub problem_id: String,
    /// As [`Completion::sample`].
    pub sample: Option<u32>,
    /// Wall milliseconds from taking up the prompt to the first token.
    pub prefill_ms: f64,
    /// Mean wall milliseconds of a token after the first; `None` for a text of one token.
    pub token_ms: Option<f64>,
    /// Wall milliseconds from taking up the prompt to the end.
    pub sample_ms: f64,
}

/// Paths inside an artifact of completions.
pub mod completion_files {
    /// JSON lines of [`super::Completion`], problems in the data set's order.
    pub const COMPLETIONS: &str = "completions.jsonl";
    /// JSON lines of [`super::CompletionTiming`], in the same order.
    pub const TIMINGS: &str = "timings.jsonl";
    /// [`crate::Usage`].
    pub const USAGE: &str = "usage.json";
}

/// What a program did wrong, if anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorClass {
    /// Every test passed.
    Passed,
    /// The source does not parse.
    Syntax,
    /// An assertion failed.
    WrongAnswer,
    /// Any other exception.
    Runtime,
    /// The program ended before its tests did (`os._exit`, `sys.exit`).
    EarlyExit,
    /// CPU time used up.
    CpuTimeout,
    /// Wall-clock time used up.
    WallTimeout,
    /// Memory limit met.
    Memory,
    /// Output limit met.
    OutputLimit,
    /// Killed by another signal.
    Killed,
    /// The grader could not run it; no statement about the program.
    Infrastructure,
}

impl ErrorClass {
    /// The name used in files and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Syntax => "syntax",
            Self::WrongAnswer => "wrong_answer",
            Self::Runtime => "runtime",
            Self::EarlyExit => "early_exit",
            Self::CpuTimeout => "cpu_timeout",
            Self::WallTimeout => "wall_timeout",
            Self::Memory => "memory",
            Self::OutputLimit => "output_limit",
            Self::Killed => "killed",
            Self::Infrastructure => "infrastructure",
        }
    }
}

impl fmt::Display for ErrorClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Result of executing one program against its tests. Made by grading.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// Whether every test passed.
    pub passed: bool,
    /// What went wrong.
    pub class: ErrorClass,
    /// At most 300 characters for a person: exception and message.
    pub message: String,
    /// The end of the standard error stream, at most 2,000 characters.
    pub stderr: String,
    /// CPU seconds used.
    pub cpu_secs: f64,
    /// Wall-clock seconds used.
    pub wall_secs: f64,
    /// For a program that reads its tests' inputs: how many of the outputs are right.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cases: Option<CaseCounts>,
    /// For a program that passed and was audited: whether it passes its tests from another process too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit: Option<Audit>,
}

/// A passing candidate run once more with its tests in a process of their own, which it reaches by nothing but the values it
/// returns. Beside its tests a program can forge their verdict: an object equal to everything, a walk over frames.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audit {
    /// What came of it.
    pub outcome: AuditOutcome,
    /// At most 300 characters for a person; empty for a confirmed one.
    pub message: String,
    /// Words in the candidate's text that forgeries use and solutions seldom do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub flags: Vec<String>,
}

/// What an audit says of a program that passed beside its tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuditOutcome {
    /// It passes from another process too.
    Confirmed,
    /// It does not: its pass is forged, or hangs on sharing a process with its tests.
    Refuted,
    /// The tests need something of it that cannot be copied, such as an object of its own class; nothing is known.
    NotByValue,
    /// The grader could not run it; nothing is known.
    NotRun,
}

impl AuditOutcome {
    /// The name used in files and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Confirmed => "confirmed",
            Self::Refuted => "refuted",
            Self::NotByValue => "not_by_value",
            Self::NotRun => "not_run",
        }
    }
}

/// Tests whose output is right, by several rules; a program passes by DeepMind's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaseCounts {
    /// All tests.
    pub total: u32,
    /// Equal words but for case, numbers within 1e-5.
    pub deepmind: u32,
    /// Equal words.
    pub tokens: u32,
    /// Equal lines but for blanks at their ends.
    pub lines: u32,
    /// Equal but for blanks around the whole.
    pub trimmed: u32,
    /// Equal.
    pub exact: u32,
}

impl AddAssign for CaseCounts {
    fn add_assign(&mut self, other: Self) {
        self.total += other.total;
        self.deepmind += other.deepmind;
        self.tokens += other.tokens;
        self.lines += other.lines;
        self.trimmed += other.trimmed;
        self.exact += other.exact;
    }
}

/// A completion with its verdict: one line of `samples.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GradedSample {
    /// What was generated.
    #[serde(flatten)]
    pub completion: Completion,
    /// What became of it.
    pub verdict: Verdict,
    /// What of its problem was among the rows that the model was trained on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contamination: Option<Contamination>,
}
