//! Compares our numbers with PyTorch goldens, stage by stage, and names the first divergence.
//!
//! A golden case is a folder with weights, inputs, the f64 results of a PyTorch program and the distance
//! of that program's own f32 run from them (`spec/parity.md` 4). This crate runs our model on the same
//! inputs, each stage on our own upstream results (chained mode), and judges every tensor.

mod compare;
mod golden;
mod report;
mod stages;
mod subject;

use std::path::Path;

pub use compare::{Comparison, Gate};
pub use golden::{Case, Config, Values};
pub use report::{Divergence, Element, Report, StageReport, Status, Subject, Worst};
pub use subject::{Mutation, Precision};

/// Why a comparison could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The golden case is missing, unreadable or not what its manifest says.
    #[error("golden case {path}: {reason}")]
    Golden {
        /// Folder or file.
        path: String,
        /// What was found.
        reason: String,
    },
    /// Our own code failed before it produced a number to compare.
    #[error("the code under test failed")]
    Subject(#[from] wmtp_model::Error),
    /// The weighting of tokens failed.
    #[error("the token weighting under test failed")]
    Weighting(#[from] wmtp_weighting::Error),
    /// A report could not be written.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: String,
        /// The system's reason.
        source: std::io::Error,
    },
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::Subject(error.into())
    }
}

/// Compares one case at one precision.
pub fn run(case: &Case, precision: Precision) -> Result<Report, Error> {
    run_mutated(case, precision, None)
}

/// Compares a subject with a deliberate fault: the tests of this harness use it to prove that each fault
/// is reported at the stage that contains it.
pub fn run_mutated(
    case: &Case,
    precision: Precision,
    mutation: Option<Mutation>,
) -> Result<Report, Error> {
    let actual = subject::run(case, precision, mutation)?;
    Ok(stages::judge(case, precision, &actual))
}

/// Finds the case `name` under `goldens`, or `goldens` itself when it is the case's folder.
pub fn load(goldens: &Path, name: &str) -> Result<Case, Error> {
    let below = goldens.join(name);
    Case::load(if below.join("manifest.json").is_file() {
        &below
    } else {
        goldens
    })
}
