//! Exit codes, one table for all jobs.

use serde::{Deserialize, Serialize};
use wmtp_records::jsonl;

/// How a job ended. A launcher retries [`Exit::Unavailable`], [`Exit::Held`] and [`Exit::Preempted`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum Exit {
    /// Done, or already done.
    Done = 0,
    /// Wrong arguments, or a recipe that breaks the schema.
    Usage = 2,
    /// Input data that is missing or not what its format says.
    BadInput = 65,
    /// Store or device cannot be reached or refuses the credentials.
    Unavailable = 69,
    /// A mistake of the program.
    Internal = 70,
    /// No room on disk or in memory.
    NoRoom = 73,
    /// Another process holds the work; try again.
    Held = 75,
    /// A digest does not match, or two contents claim one id.
    Integrity = 76,
    /// A gate refuses: sandbox tier, stage-1 gate, budget, promotion.
    Refused = 77,
    /// Not-a-number or divergence after the fallbacks.
    Numeric = 78,
    /// Stopped by a signal with everything saved that resuming needs.
    Preempted = 143,
}

impl Exit {
    /// Every way to end.
    pub const ALL: [Self; 11] = [
        Self::Done,
        Self::Usage,
        Self::BadInput,
        Self::Unavailable,
        Self::Internal,
        Self::NoRoom,
        Self::Held,
        Self::Integrity,
        Self::Refused,
        Self::Numeric,
        Self::Preempted,
    ];

    /// The number that the process ends with.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// A word for events and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Usage => "usage",
            Self::BadInput => "bad_input",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
            Self::NoRoom => "no_room",
            Self::Held => "held",
            Self::Integrity => "integrity",
            Self::Refused => "refused",
            Self::Numeric => "numeric",
            Self::Preempted => "preempted",
        }
    }

    /// Whether a launcher should start the same command again.
    pub fn is_retryable(self) -> bool {
        matches!(self, Self::Unavailable | Self::Held | Self::Preempted)
    }
}

impl From<&jsonl::Error> for Exit {
    fn from(error: &jsonl::Error) -> Self {
        match error {
            jsonl::Error::Row { .. } => Self::BadInput,
            jsonl::Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                Self::BadInput
            }
            jsonl::Error::Io { .. } => Self::Internal,
        }
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

#[cfg(test)]
mod tests {
    use super::Exit;

    #[test]
    fn the_codes_are_the_documented_table() {
        let codes: Vec<u8> = Exit::ALL.iter().map(|exit| exit.code()).collect();
        assert_eq!(codes, [0, 2, 65, 69, 70, 73, 75, 76, 77, 78, 143]);
        let retried: Vec<u8> = Exit::ALL
            .iter()
            .filter(|exit| exit.is_retryable())
            .map(|exit| exit.code())
            .collect();
        assert_eq!(retried, [69, 75, 143]);
    }
}
