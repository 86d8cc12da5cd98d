//! Small bodies: they lie behind the record, in the object's own file, so that such an object is one file to make
//! durable instead of two.
//!
//! ```text
//! the sealed record, which is JSON without a line break; "\n"; the bytes
//! ```
//!
//! A write replaces the file as a whole. Whoever still reads the object that was there finds its bytes in memory: they
//! are taken along just before the file goes.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::OnceLock;

use bytes::Bytes;

use super::record::{ObjectRecord, seal};
use crate::error::{AtPath, Error};

/// The largest body that lies behind its record.
pub(crate) const MOST_BYTES: usize = 64 << 10;

/// Ends the record where bytes follow.
const END: u8 = b'\n';

/// The bytes of a small object, once its file belongs to another.
#[derive(Debug, Default)]
pub(crate) struct Inline {
    taken_along: OnceLock<Bytes>,
}

impl Inline {
    /// The whole body; `path` is the file of the key's record.
    pub(crate) fn read(&self, path: &Path, record: &ObjectRecord) -> Result<Bytes, Error> {
        if let Some(bytes) = self.taken_along.get() {
            return Ok(bytes.clone());
        }
        let read = match fs::read(path) {
            Ok(file) => body_of(file, record).map_err(|reason| Error::Damaged {
                path: path.to_owned(),
                reason,
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Error::Damaged {
                path: path.to_owned(),
                reason: "the file is gone".to_owned(),
            }),
            Err(error) => Err(error).at(path),
        };
        // The file may have gone to a newer object since the look at what was taken along.
        read.or_else(|error| self.taken_along.get().cloned().ok_or(error))
    }

    /// Keeps the bytes for those who still read them; call it before the file is replaced or removed.
    pub(crate) fn take_along(&self, path: &Path, record: &ObjectRecord) {
        match self.read(path, record) {
            // They are there already where an earlier write failed behind this.
            Ok(bytes) => drop(self.taken_along.set(bytes)),
            Err(error) => tracing::warn!(%error, "an object is replaced that could not be read"),
        }
    }
}

/// The file of an object with a small body.
pub(crate) fn file_of(record: &ObjectRecord, body: &[u8]) -> Vec<u8> {
    let mut file = seal(record);
    file.reserve_exact(1 + body.len());
    file.push(END);
    file.extend_from_slice(body);
    file
}

/// The bytes behind a record, if it is this record that the file holds.
fn body_of(file: Vec<u8>, record: &ObjectRecord) -> Result<Bytes, String> {
    let head = seal(record);
    if !file.starts_with(&head) || file.get(head.len()) != Some(&END) {
        return Err("it holds another record".to_owned());
    }
    let body = Bytes::from(file).split_off(head.len() + 1);
    require_size(body.len() as u64, record.size)?;
    Ok(body)
}

/// Fails when there are not as many bytes behind a record as it says.
pub(crate) fn require_size(found: u64, stated: u64) -> Result<(), String> {
    if found == stated {
        Ok(())
    } else {
        Err(format!(
            "{found} bytes lie behind the record, it says {stated}"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::{Inline, file_of};
    use crate::backend::record::{Headers, ObjectRecord, SegmentEntry};
    use crate::checksums::Checksums;
    use crate::error::Error;
    use jiff::Timestamp;

    fn record(etag: &str, size: u64) -> ObjectRecord {
        ObjectRecord {
            key: "a\nb".to_owned(),
            size,
            etag: etag.to_owned(),
            modified: Timestamp::UNIX_EPOCH,
            headers: Headers::default(),
            checksums: Checksums::default(),
            segments: vec![SegmentEntry { name: None, size }],
        }
    }

    #[test]
    fn a_replaced_object_stays_readable_and_never_gives_the_bytes_of_another() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.json");
        let (old, new) = (record("1", 4), record("2", 4));
        std::fs::write(&path, file_of(&old, b"o\nld")).unwrap();
        let (kept, lost) = (Inline::default(), Inline::default());
        assert_eq!(kept.read(&path, &old).unwrap(), "o\nld");
        kept.take_along(&path, &old);
        for there in [Some(file_of(&new, b"new\n")), None] {
            match there {
                Some(file) => std::fs::write(&path, file).unwrap(),
                None => std::fs::remove_file(&path).unwrap(),
            }
            assert_eq!(kept.read(&path, &old).unwrap(), "o\nld");
            let refused = lost.read(&path, &old);
            assert!(matches!(refused, Err(Error::Damaged { .. })), "{refused:?}");
        }
    }

    #[test]
    fn a_body_of_another_length_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.json");
        let record = record("1", 4);
        for body in [&b"123"[..], b"", b"12345"] {
            std::fs::write(&path, file_of(&record, body)).unwrap();
            let refused = Inline::default().read(&path, &record);
            assert!(matches!(refused, Err(Error::Damaged { .. })), "{refused:?}");
        }
    }
}
