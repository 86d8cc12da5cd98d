//! What can go wrong around grading; what goes wrong inside a program is a verdict.

use std::io;
use std::path::PathBuf;

use wmtp_records::jsonl;

use crate::SandboxReport;

/// Why grading could not start or a file could not be graded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No usable CPython on this machine.
    #[error("no CPython 3.9 or newer with ctypes found; tried {}", if tried.is_empty() { "nothing".to_owned() } else { tried.join("; ") })]
    Interpreter {
        /// Each interpreter with the reason against it.
        tried: Vec<String>,
    },
    /// The platform lacks something without which no program can be held.
    #[error("generated programs cannot be held on this machine: {what}")]
    Unsupported {
        /// What is missing.
        what: String,
    },
    /// The fork server did not come up.
    #[error("the grading server did not start: {what}")]
    Start {
        /// What it said, or what the system said.
        what: String,
    },
    /// Layers of the sandbox are missing, and nobody accepted that.
    #[error("the sandbox is degraded on this machine: {report}")]
    Degraded {
        /// What is enforced and what is not.
        report: Box<SandboxReport>,
    },
    /// A file could not be written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file of problems or samples does not hold what it should.
    #[error(transparent)]
    Rows(#[from] jsonl::Error),
}
