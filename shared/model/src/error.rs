//! What can go wrong when a model is read, built or run.

use std::path::{Path, PathBuf};

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Errors of the model room, by meaning.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor operation failed.
    #[error("tensor operation failed")]
    Candle(#[from] candle_core::Error),
    /// A file could not be read or written.
    #[error("cannot access {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file is there but is not what it should be: truncated, not safetensors, not `params.json`.
    #[error("{} is damaged or of another format: {reason}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// A tensor the configuration demands is not in the file or store.
    #[error("{origin}: tensor {name} is missing")]
    MissingTensor {
        /// File or store.
        origin: String,
        /// Tensor name.
        name: String,
    },
    /// A tensor nobody asked for is in the file.
    #[error("{origin}: tensor {name} is not part of this model")]
    UnexpectedTensor {
        /// File or store.
        origin: String,
        /// Tensor name.
        name: String,
    },
    /// A tensor has another shape than the configuration says.
    #[error("{origin}: tensor {name} has shape {found:?}, expected {expected:?}")]
    TensorShape {
        /// File or store.
        origin: String,
        /// Tensor name.
        name: String,
        /// Shape in the file.
        found: Vec<usize>,
        /// Shape by the configuration.
        expected: Vec<usize>,
    },
    /// A stored tensor contains NaN or an infinity.
    #[error("{origin}: tensor {name} contains values that are not finite")]
    NotFinite {
        /// File or store.
        origin: String,
        /// Tensor name.
        name: String,
    },
    /// The model configuration contradicts itself.
    #[error("model configuration: {0}")]
    Params(String),
    /// The device that was asked for cannot be had.
    #[error("cannot compute on {place}: {reason}")]
    Device {
        /// What was asked for.
        place: crate::Place,
        /// Why not.
        reason: String,
    },
    /// The settings of adapters contradict themselves.
    #[error("adapters: {0}")]
    Lora(String),
    /// Trials that cannot be averaged, or a question that they do not answer.
    #[error("trials: {0}")]
    Trials(String),
    /// An argument has the wrong rank, size or value.
    #[error("{0}")]
    Shape(String),
}

impl Error {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            path: path.to_path_buf(),
            source,
        }
    }

    pub(crate) fn corrupt(path: &Path, reason: impl std::fmt::Display) -> Self {
        Self::Corrupt {
            path: path.to_path_buf(),
            reason: reason.to_string(),
        }
    }
}
