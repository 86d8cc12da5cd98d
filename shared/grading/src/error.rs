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
    /// Another run writes the same results.
    #[error("{}: another run is writing it; give each its own --out", path.display())]
    Busy {
        /// The unfinished results.
        path: PathBuf,
    },
    /// Grading was stopped; it goes on where it was when it is started again.
    #[error("stopped after {num_done} samples; {} holds them", path.display())]
    Stopped {
        /// The unfinished results.
        path: PathBuf,
        /// Rows in it.
        num_done: usize,
    },
    /// A shard's results end before those of the others.
    #[error("{}: its rows end before a sample of {task_id}; give the shards of these samples, all and in order", path.display())]
    Short {
        /// The results of the shard.
        path: PathBuf,
        /// The problem whose sample has no result.
        task_id: String,
    },
    /// A file of problems or samples does not hold what it should.
    #[error(transparent)]
    Rows(#[from] jsonl::Error),
}
