//! What can go wrong in training.

use std::error::Error as StdError;
use std::io;
use std::iter::successors;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use wmtp_job_kit::{Exit, is_out_of_room};

/// Why training could not go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model or its files.
    #[error(transparent)]
    Model(wmtp_model::Error),
    /// A tensor operation.
    #[error(transparent)]
    Tensor(candle_core::Error),
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
    /// Memory ran out, of which this rank alone knows.
    #[error(transparent)]
    OutOfMemory(Shortage),
    /// Memory ran out, which all ranks have told each other: they go on together, or end together.
    #[error(transparent)]
    NoRoom(Shortage),
    /// Another rank cannot go on.
    #[error("rank {rank}: {reason}")]
    Rank {
        /// Which one.
        rank: usize,
        /// What it said, with its causes.
        reason: String,
        /// How it ends, and all others with it.
        exit: Exit,
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

/// How memory ran out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Shortage {
    /// A micro-batch needs more than is left.
    #[error(
        "a micro-batch of {sequences} sequences needs about {} MiB of memory, but only {} MiB are left",
        needed >> 20,
        available >> 20
    )]
    MicroBatch {
        /// Sequences in it, at most.
        sequences: usize,
        /// Bytes that it needs.
        needed: u64,
        /// Bytes that there are.
        available: u64,
    },
    /// A device's allocator had nothing to give, in its words.
    #[error("an allocator had nothing to give: {0}")]
    Allocator(String),
}

impl Shortage {
    /// What candle's error says, where it comes from an allocator: candle passes on what driver and cuBLAS say as text.
    fn of(source: &candle_core::Error, said: impl FnOnce() -> String) -> Option<Self> {
        let text = source.to_string();
        let signs = ["OUT_OF_MEMORY", "ALLOC_FAILED"];
        let is_one = signs.iter().any(|sign| text.contains(sign));
        is_one.then(|| Self::Allocator(said()))
    }
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        match Shortage::of(&error, || said(&error)) {
            Some(shortage) => Self::OutOfMemory(shortage),
            None => Self::Tensor(error),
        }
    }
}

impl From<wmtp_model::Error> for Error {
    fn from(error: wmtp_model::Error) -> Self {
        let shortage = match &error {
            wmtp_model::Error::Candle(source) => Shortage::of(source, || said(&error)),
            _ => None,
        };
        shortage.map_or(Self::Model(error), Self::OutOfMemory)
    }
}

impl Error {
    /// Whether all ranks of a run come to this error when one does.
    pub(crate) fn is_shared(&self) -> bool {
        matches!(self, Self::Numeric { .. } | Self::NoRoom(_))
    }

    /// The error of a rank that has nobody else to tell.
    pub(crate) fn told(self) -> Self {
        match self {
            Self::OutOfMemory(shortage) => Self::NoRoom(shortage),
            other => other,
        }
    }

    /// What this says, with its causes.
    pub(crate) fn said(&self) -> String {
        said(self)
    }

    /// How a run ends with this.
    pub(crate) fn exit(&self) -> Exit {
        use wmtp_model::Error as Model;
        use wmtp_weighting::Error as Weighting;
        match self {
            _ if is_out_of_room(self) => Exit::NoRoom,
            Self::OutOfMemory(_) | Self::NoRoom(_) => Exit::NoRoom,
            Self::Rank { exit, .. } => *exit,
            Self::RankLost { .. } | Self::Model(Model::Device { .. }) => Exit::Unavailable,
            Self::Rows(error) => Exit::from(error),
            Self::Io { .. }
            | Self::Model(Model::Io { .. } | Model::Candle(_))
            | Self::Tensor(_)
            | Self::NoGradient { .. }
            | Self::Weighting(Weighting::Invariant(_)) => Exit::Internal,
            Self::Weighting(Weighting::Setting { .. }) => Exit::Usage,
            Self::Data(data) if !data.is_bad_input() => Exit::Internal,
            Self::Model(_)
            | Self::Data(_)
            | Self::Weighting(_)
            | Self::BadFile { .. }
            | Self::BadData(_) => Exit::BadInput,
            Self::Numeric { .. } => Exit::Numeric,
        }
    }
}

/// Messages from an error to its innermost cause, without repetitions.
fn said(error: &(dyn StdError + 'static)) -> String {
    let mut said = String::new();
    for message in successors(Some(error), |&error| error.source()).map(ToString::to_string) {
        if said.is_empty() {
            said = message;
        } else if !said.ends_with(&message) {
            said = format!("{said}: {message}");
        }
    }
    said
}

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
