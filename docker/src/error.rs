//! Why a command about images ends without a result.

use std::path::PathBuf;

use wmtp_job_kit::JobError;

/// What went wrong, and where.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A bake file or a Dockerfile that is none.
    #[error("{}: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Which part, and what was expected.
        message: String,
    },
    /// A name that the bake file does not have.
    #[error("the bake file has no target or group {name:?}; it has {known}")]
    NoTarget {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// No container engine.
    #[error("no container engine: {found}")]
    NoEngine {
        /// What was looked for and what it said.
        found: String,
    },
    /// A command of the engine that failed.
    #[error("`{command}` {ended}")]
    Engine {
        /// The command.
        command: String,
        /// How it ended, and its last words.
        ended: String,
    },
}

impl From<Error> for JobError {
    fn from(error: Error) -> Self {
        match &error {
            Error::File { .. } | Error::Syntax { .. } | Error::NoTarget { .. } => {
                Self::usage(error)
            }
            Error::NoEngine { .. } => Self::unavailable(error).hint(
                "install docker with buildx, podman or buildah (Debian: apt-get install podman), or name one: WMTP_ENGINE=podman",
            ),
            Error::Engine { .. } => Self::unavailable(error),
        }
    }
}
