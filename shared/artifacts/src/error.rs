//! Why an artifact operation failed, by meaning.

use std::io;
use std::path::{Path, PathBuf};

/// Result of an artifact operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an artifact operation failed.
///
/// The message says what was wrong and where; [`Error::hint`] says what to do. Neither ever holds a secret.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting or an argument makes no sense.
    #[error("{what}: {detail}")]
    Usage {
        /// The setting or argument.
        what: String,
        /// What is wrong with it.
        detail: String,
    },
    /// Data given to us breaks a rule of the protocol.
    #[error("{what}: {detail}")]
    BadInput {
        /// The object or file.
        what: String,
        /// The rule it breaks.
        detail: String,
    },
    /// The store holds no such artifact or name.
    #[error("{what} does not exist in {store}")]
    NotFound {
        /// What was looked for.
        what: String,
        /// Where.
        store: String,
        /// What there is instead, if that helps.
        hint: Option<String>,
    },
    /// The store cannot be used now: unreachable, refusing us, or not fit for the protocol.
    #[error("cannot {operation} in {store}: {detail}")]
    Unavailable {
        /// What was tried, as a verb with its object.
        operation: String,
        /// Endpoint and bucket.
        store: String,
        /// What the network or the server said.
        detail: String,
        /// What to check.
        check: String,
    },
    /// Bytes are not what their digest or id says.
    #[error("{what} is damaged: {detail}")]
    Corrupt {
        /// The object or file.
        what: String,
        /// What differs.
        detail: String,
    },
    /// A disk, ours or the store's, is full.
    #[error("no space left for {what}: {detail}")]
    NoSpace {
        /// What was being written.
        what: String,
        /// What the system said.
        detail: String,
    },
    /// Another process works on the same run.
    #[error("{run} is held by {holder}")]
    Held {
        /// The run.
        run: String,
        /// Who holds it, and since when it was last heard of.
        holder: String,
    },
    /// It has to wait for something that goes on in the store.
    #[error("{what} has to wait: {detail}")]
    NotYet {
        /// What was to be done.
        what: String,
        /// What it waits for.
        detail: String,
        /// What to do.
        hint: String,
    },
    /// A local file could not be read or written.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// What an error means for the exit code of a job; the codes are those of the design's one table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitClass {
    /// Usage or recipe: 2.
    Usage,
    /// Bad input data: 65.
    BadInput,
    /// Store unavailable: 69, worth a retry.
    Unavailable,
    /// Internal: 70.
    Internal,
    /// No room: 73.
    NoRoom,
    /// Held by another: 75, worth a retry.
    Held,
    /// Integrity: 76.
    Integrity,
}

impl ExitClass {
    /// The process exit code.
    pub fn code(self) -> u8 {
        match self {
            Self::Usage => 2,
            Self::BadInput => 65,
            Self::Unavailable => 69,
            Self::Internal => 70,
            Self::NoRoom => 73,
            Self::Held => 75,
            Self::Integrity => 76,
        }
    }
}

impl Error {
    /// Which exit code the error calls for.
    pub fn exit_class(&self) -> ExitClass {
        match self {
            Self::Usage { .. } => ExitClass::Usage,
            Self::BadInput { .. } | Self::NotFound { .. } => ExitClass::BadInput,
            Self::Unavailable { .. } => ExitClass::Unavailable,
            Self::Corrupt { .. } => ExitClass::Integrity,
            Self::NoSpace { .. } => ExitClass::NoRoom,
            Self::Held { .. } | Self::NotYet { .. } => ExitClass::Held,
            Self::Io { .. } => ExitClass::Internal,
        }
    }

    /// What a person can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Usage { .. } | Self::BadInput { .. } | Self::Io { .. } => None,
            Self::NotFound { hint, .. } => hint.clone(),
            Self::NotYet { hint, .. } => Some(hint.clone()),
            Self::Unavailable { check, .. } => Some(check.clone()),
            Self::Corrupt { .. } => Some(
                "run the job that made it again with --force: it uploads the content anew, \
                 under the same id when the bytes are the same"
                    .to_owned(),
            ),
            Self::NoSpace { .. } => Some("free some space, then run the same command again".to_owned()),
            Self::Held { .. } => Some(
                "wait for it to finish; when it died, its claim lapses 90 seconds after its last heartbeat"
                    .to_owned(),
            ),
        }
    }

    /// A setting or an argument that makes no sense.
    pub(crate) fn usage(what: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::Usage {
            what: what.into(),
            detail: detail.into(),
        }
    }

    /// Data that breaks a rule.
    pub(crate) fn bad_input(what: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::BadInput {
            what: what.into(),
            detail: detail.into(),
        }
    }

    /// Bytes that are not what they should be.
    pub(crate) fn corrupt(what: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::Corrupt {
            what: what.into(),
            detail: detail.into(),
        }
    }

    /// A local file that could not be read or written; a full disk gets its own meaning.
    pub(crate) fn io(path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace {
                what: path.display().to_string(),
                detail: source.to_string(),
            },
            _ => Self::Io {
                path: path.to_owned(),
                source,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_of_the_design() {
        let codes = [
            (ExitClass::Usage, 2),
            (ExitClass::BadInput, 65),
            (ExitClass::Unavailable, 69),
            (ExitClass::Internal, 70),
            (ExitClass::NoRoom, 73),
            (ExitClass::Held, 75),
            (ExitClass::Integrity, 76),
        ];
        for (class, code) in codes {
            assert_eq!(class.code(), code, "{class:?}");
        }
    }

    #[test]
    fn a_full_disk_is_no_internal_error() {
        let full = io::Error::from(io::ErrorKind::StorageFull);
        let error = Error::io(Path::new("blob.part"), full);
        assert_eq!(error.exit_class(), ExitClass::NoRoom);
        assert!(error.to_string().contains("blob.part"), "{error}");
    }
}
