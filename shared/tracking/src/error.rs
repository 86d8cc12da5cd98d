//! Why a tracking server does not have what it was told.

use wmtp_artifacts::ExitClass;

/// Failure of a request to a tracking server, or of what it was made from.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The variables that name the server cannot be used.
    #[error("{0}")]
    Settings(String),
    /// The server does not answer, is overloaded, or answers what is no reply of MLflow: a later attempt may succeed.
    #[error("{call} at {server}: {detail}")]
    Unreachable {
        /// Where it should be.
        server: String,
        /// What was asked.
        call: String,
        /// What came instead of an answer.
        detail: String,
    },
    /// The server refuses the request, and would again.
    #[error("{server} refuses {call}: {detail}")]
    Refused {
        /// Where it is.
        server: String,
        /// What was asked.
        call: String,
        /// MLflow's code, such as `RESOURCE_DOES_NOT_EXIST`, or the HTTP status.
        code: String,
        /// What it says.
        detail: String,
    },
    /// The store does not tell what the server is to be told.
    #[error(transparent)]
    Store(#[from] wmtp_artifacts::Error),
    /// This process ends, or made a mistake.
    #[error("a request to the store was given up: {0}")]
    GivenUp(#[from] tokio::task::JoinError),
}

impl Error {
    /// Whether the same request may succeed later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Store(error) => error.exit_class() == ExitClass::Unavailable,
            _ => false,
        }
    }

    pub(crate) fn has_code(&self, wanted: &str) -> bool {
        matches!(self, Self::Refused { code, .. } if code == wanted)
    }
}
