//! What can go wrong in training.

use std::io;
use std::path::PathBuf;

/// Why training could not go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model or its files.
    #[error(transparent)]
    Model(#[from] wmtp_model::Error),
    /// A tensor operation.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// Token weights.
    #[error(transparent)]
    Weighting(#[from] wmtp_weighting::Error),
    /// The data set.
    #[error(transparent)]
    Data(#[from] wmtp_data_sets::Error),
    /// A file of rows.
    #[error(transparent)]
    Rows(#[from] wmtp_records::jsonl::Error),
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("{}: {reason}", path.display())]
    BadFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The inputs hold nothing to learn from, or do not fit together.
    #[error("{0}")]
    BadData(String),
    /// A trainable tensor got no gradient: the graph is cut somewhere above it.
    #[error("{name} received no gradient in step {step}")]
    NoGradient {
        /// The tensor.
        name: String,
        /// The optimizer step.
        step: u64,
    },
    /// There is no room for a micro-batch.
    #[error(
        "a micro-batch of {sequences} sequences needs about {} MiB of memory, but only {} MiB are left",
        needed >> 20,
        available >> 20
    )]
    OutOfMemory {
        /// Sequences in it, at most.
        sequences: usize,
        /// Bytes that it needs.
        needed: u64,
        /// Bytes that there are.
        available: u64,
    },
    /// Another rank cannot go on.
    #[error("rank {rank}: {reason}")]
    Rank {
        /// Which one.
        rank: usize,
        /// What it said.
        reason: String,
    },
    /// Another rank is there no more.
    #[error("rank {rank} of {world} is lost: {reason}")]
    RankLost {
        /// Which one.
        rank: usize,
        /// How many there were.
        world: usize,
        /// What the connection said.
        reason: String,
    },
    /// The fallbacks are used up.
    #[error(
        "step {step}: {in_a_row} steps in a row had a loss or gradient that is not finite, \
         although the learning rate was halved each time"
    )]
    Numeric {
        /// The optimizer step.
        step: u64,
        /// How many bad steps there were.
        in_a_row: u32,
    },
}

impl Error {
    /// Whether all ranks of a run end with this error when one does.
    pub(crate) fn is_shared(&self) -> bool {
        matches!(self, Self::Numeric { .. }) || self.is_out_of_memory()
    }

    /// Whether memory ran out, the process's or a device's.
    pub(crate) fn is_out_of_memory(&self) -> bool {
        match self {
            Self::OutOfMemory { .. } => true,
            Self::Tensor(error) | Self::Model(wmtp_model::Error::Candle(error)) => {
                // candle passes the errors of driver and cuBLAS on as text.
                let text = error.to_string();
                text.contains("OUT_OF_MEMORY") || text.contains("ALLOC_FAILED")
            }
            _ => false,
        }
    }
}

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
