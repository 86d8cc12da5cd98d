//! What can go wrong with a data set.

use std::io;
use std::path::PathBuf;

use wmtp_records::jsonl;

/// Why a data set could not be read, labelled or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file or folder is not what it should be.
    #[error("{}: {reason}", path.display())]
    BadInput {
        /// The file or folder.
        path: PathBuf,
        /// What was found and what was expected.
        reason: String,
    },
    /// A program could not be executed, so its row has no label.
    #[error("problem {problem_id}: a program could not be executed: {reason}")]
    Ungraded {
        /// The problem.
        problem_id: String,
        /// What the grader said.
        reason: String,
    },
    /// The caller asked to stop.
    #[error("stopped before every program was executed")]
    Stopped,
    /// The settings leave a split without rows.
    #[error("the {split} split has no rows; {reason}")]
    EmptySplit {
        /// The split.
        split: wmtp_records::Split,
        /// What to change.
        reason: &'static str,
    },
    /// Rows could not be written or read, or one lacks a field or holds what it should not.
    #[error(transparent)]
    Rows(#[from] jsonl::Error),
    /// The tokenizer could not be applied.
    #[error(transparent)]
    Tokens(#[from] wmtp_tokens::Error),
}

impl Error {
    /// Whether the input is at fault, not the machine.
    pub fn is_bad_input(&self) -> bool {
        match self {
            Self::BadInput { .. } | Self::EmptySplit { .. } => true,
            Self::Rows(error) => matches!(error, jsonl::Error::Row { .. }),
            Self::Tokens(error) => !matches!(error, wmtp_tokens::Error::Io { .. }),
            Self::Io { .. } | Self::Ungraded { .. } | Self::Stopped => false,
        }
    }
}
