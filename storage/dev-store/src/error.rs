//! What can go wrong in the store, by meaning. `service` turns these into S3 error codes, the binary into exit codes.

use std::io;
use std::path::{Path, PathBuf};

/// Everything the store can fail with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file operation failed.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file or folder concerned.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The disk under the root is full, or too full for what was announced.
    #[error("no space left on the disk under {}", .path.display())]
    NoSpace {
        /// A path on the full disk.
        path: PathBuf,
    },
    /// Another server works on the same root.
    #[error("{} is held by another dev-store", .root.display())]
    RootHeld {
        /// The root folder.
        root: PathBuf,
    },
    /// The loopback port cannot be opened.
    #[error("cannot listen on 127.0.0.1:{port}: {source}")]
    Listen {
        /// The port asked for; 0 lets the system choose.
        port: u16,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A stored file is not what its record says.
    #[error("{} is damaged: {reason}", .path.display())]
    Damaged {
        /// The damaged file.
        path: PathBuf,
        /// What was found and what was expected.
        reason: String,
    },
    /// The bucket does not exist.
    #[error("bucket {0} does not exist")]
    NoSuchBucket(String),
    /// The bucket exists already.
    #[error("bucket {0} exists already")]
    BucketExists(String),
    /// The object does not exist.
    #[error("key {0} does not exist")]
    NoSuchKey(String),
    /// The multipart upload does not exist, was completed or was aborted.
    #[error("upload {0} does not exist")]
    NoSuchUpload(String),
    /// A condition of the request (`If-Match`, `If-None-Match`) does not hold.
    #[error("the condition {0} does not hold")]
    PreconditionFailed(&'static str),
    /// The bytes received are not those the client described.
    #[error("{algorithm} mismatch: the client sent {sent}, the body has {computed}")]
    BadDigest {
        /// The digest algorithm.
        algorithm: &'static str,
        /// The value sent by the client.
        sent: String,
        /// The value computed from the bytes.
        computed: String,
    },
    /// The request body ended early, broke its framing or differs from its signed digest.
    #[error("the request body broke off or was altered: {0}")]
    Body(String),
    /// A part named at completion is missing or differs.
    #[error("part {number}: {reason}")]
    InvalidPart {
        /// The part number.
        number: i32,
        /// What was found and what was expected.
        reason: String,
    },
    /// The parts named at completion are not in ascending order.
    #[error("parts must be named in ascending order")]
    InvalidPartOrder,
    /// A part other than the last is below the minimum of 5 MiB.
    #[error("part {number} has {size} bytes; every part but the last needs 5242880")]
    PartTooSmall {
        /// The part number.
        number: u16,
        /// Its size in bytes.
        size: u64,
    },
    /// The request is well formed but makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// A worker of the server died.
    #[error("internal failure: {0}")]
    Internal(String),
}

/// Adds the path to an I/O error and tells a full disk from other failures.
pub(crate) trait AtPath<T> {
    /// Wraps the error with the path it happened at.
    fn at(self, path: &Path) -> Result<T, Error>;
}

impl<T> AtPath<T> for io::Result<T> {
    fn at(self, path: &Path) -> Result<T, Error> {
        self.map_err(|source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::NoSpace {
                path: path.to_owned(),
            },
            _ => Error::Io {
                path: path.to_owned(),
                source,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{AtPath, Error};
    use std::io;
    use std::path::Path;

    #[test]
    fn a_full_disk_is_told_from_other_failures() {
        let full: io::Result<()> = Err(io::Error::from(io::ErrorKind::StorageFull));
        assert!(matches!(
            full.at(Path::new("/x")),
            Err(Error::NoSpace { .. })
        ));
        let denied: io::Result<()> = Err(io::Error::from(io::ErrorKind::PermissionDenied));
        assert!(matches!(denied.at(Path::new("/x")), Err(Error::Io { .. })));
    }
}
