//! A problem before its programs are judged.

use wmtp_records::{Problem, Split};

/// A problem with candidate programs. Made by the readers; judged by [`crate::label()`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceProblem {
    /// Statement, prompt and tests.
    pub problem: Problem,
    /// The part of the data set that it belongs to.
    pub split: Split,
    /// The split that the source itself names.
    pub original_split: Option<Split>,
    /// Programs meant to be right, best first.
    pub solutions: Vec<String>,
    /// Programs meant to be wrong, in the order in which they are wanted.
    pub mutants: Vec<String>,
}
