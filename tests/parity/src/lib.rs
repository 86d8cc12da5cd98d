//! Compares our numbers with PyTorch goldens, stage by stage, and names the first divergence.
//!
//! A golden case is a folder with inputs, the f64 results of a PyTorch program (`reference/`) and the distance
//! of that program's own f32 run from them (`spec/parity.md` 4). This crate runs our code on the same inputs
//! and judges every tensor. Each stage takes our own upstream results (chained mode, which finds where a run
//! leaves the reference) or the golden's (isolated mode, which tells a wrong stage from one that inherits).
//!
//! To add a case: a function in `reference/`, a [`Kind`] with its stages, and its subject.

mod compare;
mod contract;
mod floor;
mod golden;
mod report;
mod stages;
mod subject;

use std::path::{Path, PathBuf};

use candle_core::Device;

pub use compare::{Comparison, Gate};
pub use floor::Floor;
pub use golden::{Case, Kind, Values};
pub use report::{Divergence, Element, Report, StageReport, Status, Subject, Worst};
pub use subject::{Mode, Mutation, Precision};

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
    /// The model failed before it produced a number to compare.
    #[error("the model under test failed")]
    Model(#[from] wmtp_model::Error),
    /// The weighting of tokens failed.
    #[error("the token weighting under test failed")]
    Weighting(#[from] wmtp_weighting::Error),
    /// The optimizer or the loss over heads failed.
    #[error("the training step under test failed")]
    Training(#[from] wmtp_training::Error),
    /// Generation failed.
    #[error("the decoding under test failed")]
    Decoding(#[from] wmtp_decoding::Error),
    /// The tokenizer failed.
    #[error("the tokenizer under test failed")]
    Tokens(#[from] wmtp_tokens::Error),
    /// A report could not be written, or an older one not be removed.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: String,
        /// The system's reason.
        source: std::io::Error,
    },
}

impl Error {
    /// Its message and those of its causes.
    pub(crate) fn said(&self) -> String {
        let first: &dyn std::error::Error = self;
        let messages = std::iter::successors(Some(first), |error| error.source());
        let messages: Vec<String> = messages.map(ToString::to_string).collect();
        messages.join(": ")
    }
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::Model(error.into())
    }
}

/// Compares one case at one precision. A chained run that diverges is followed by an isolated one, which says
/// of the diverging stage and its successor whether they are wrong themselves.
pub fn run(
    case: &Case,
    precision: Precision,
    mode: Mode,
    device: &Device,
) -> Result<Report, Error> {
    compare(case, precision, mode, device, None)
}

/// Compares a subject with a deliberate fault, on the CPU: the tests of this harness use it to prove that each fault
/// is reported at the stage that contains it.
pub fn run_mutated(
    case: &Case,
    precision: Precision,
    mode: Mode,
    mutation: Option<&Mutation>,
) -> Result<Report, Error> {
    compare(case, precision, mode, &Device::Cpu, mutation)
}

fn compare(
    case: &Case,
    precision: Precision,
    mode: Mode,
    device: &Device,
    mutation: Option<&Mutation>,
) -> Result<Report, Error> {
    let precision = precision.of(case.kind);
    let judged = |mode| {
        let outcome = subject::run(case, precision, mode, device, mutation)?;
        stages::judge(case, precision, mode, device, outcome)
    };
    let mut report = judged(mode)?;
    // The chained run has said what differs, whether or not a second one can say more.
    if mode == Mode::Chained
        && report.first_divergence.is_some()
        && let Ok(isolated) = judged(Mode::Isolated)
    {
        report.adopt_isolated(&isolated);
    }
    Ok(report)
}

/// The folder of the case `name` under `goldens`, or `goldens` itself when it is that case's folder.
pub fn find(goldens: &Path, name: &str) -> Result<PathBuf, Error> {
    let below = goldens.join(name);
    if below.join(MANIFEST).is_file() {
        return Ok(below);
    }
    let is_it = |case: &Case| case.name == name || goldens.ends_with(name);
    if goldens.join(MANIFEST).is_file() && is_it(&Case::load(goldens)?) {
        return Ok(goldens.to_owned());
    }
    Err(Error::Golden {
        path: below.display().to_string(),
        reason: format!("there is no case with a {MANIFEST}"),
    })
}

/// The folders of all cases under `goldens` by name, or `goldens` itself when it is a case's folder.
pub fn find_all(goldens: &Path) -> Result<Vec<PathBuf>, Error> {
    if goldens.join(MANIFEST).is_file() {
        return Ok(vec![goldens.to_owned()]);
    }
    let error = |reason: String| Error::Golden {
        path: goldens.display().to_string(),
        reason,
    };
    let entries = std::fs::read_dir(goldens).map_err(|e| error(e.to_string()))?;
    let mut found: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.join(MANIFEST).is_file())
        .collect();
    found.sort();
    if found.is_empty() {
        return Err(error(format!("no folder in it has a {MANIFEST}")));
    }
    Ok(found)
}

/// What makes a folder a case.
const MANIFEST: &str = "manifest.json";
