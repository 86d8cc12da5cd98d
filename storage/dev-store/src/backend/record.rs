//! The records: what is written about an object, an upload and a part, and how a file of them is recognised as whole.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::checksums::{Algorithm, Checksums, Sums};

/// One stretch of an object's bytes: where it lies and the size it must have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SegmentEntry {
    /// A file under `segments/`; none for a small body, which lies behind the record in the record's own file.
    pub(crate) name: Option<String>,
    pub(crate) size: u64,
}

/// What a client attaches to an object and gets back with it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Headers {
    pub(crate) content_type: Option<String>,
    pub(crate) content_encoding: Option<String>,
    pub(crate) content_disposition: Option<String>,
    pub(crate) content_language: Option<String>,
    pub(crate) cache_control: Option<String>,
    pub(crate) metadata: BTreeMap<String, String>,
}

/// One object. The file that holds it is the object: it exists when this exists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ObjectRecord {
    pub(crate) key: String,
    pub(crate) size: u64,
    pub(crate) etag: String,
    pub(crate) modified: Timestamp,
    pub(crate) headers: Headers,
    pub(crate) checksums: Checksums,
    /// In order; one per part for a multipart object. Their sizes add up to `size`.
    pub(crate) segments: Vec<SegmentEntry>,
}

impl ObjectRecord {
    /// Whether the bytes lie in the record's own file.
    pub(crate) fn is_inline(&self) -> bool {
        matches!(&self.segments[..], [SegmentEntry { name: None, .. }])
    }
}

/// A multipart upload that is under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UploadRecord {
    pub(crate) id: String,
    pub(crate) bucket: String,
    pub(crate) key: String,
    pub(crate) initiated: Timestamp,
    pub(crate) headers: Headers,
    pub(crate) algorithm: Option<Algorithm>,
    pub(crate) composite: bool,
}

/// One received part of an upload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PartRecord {
    pub(crate) number: u16,
    pub(crate) etag: String,
    pub(crate) modified: Timestamp,
    pub(crate) sums: Sums,
    pub(crate) segment: SegmentEntry,
}

/// A record with the CRC of its own JSON, so that a damaged file is never taken for a record.
#[derive(Serialize, Deserialize)]
struct Sealed<T> {
    crc64nvme: String,
    record: T,
}

/// The bytes of a record's file.
pub(crate) fn seal<T: Serialize>(record: &T) -> Vec<u8> {
    json(&Sealed {
        crc64nvme: crc(record),
        record,
    })
}

/// Reads a record back, or says what is wrong with its file.
pub(crate) fn unseal<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let sealed: Sealed<T> = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let found = crc(&sealed.record);
    if found == sealed.crc64nvme {
        Ok(sealed.record)
    } else {
        Err(format!(
            "its CRC64NVME is {found}, its seal says {}",
            sealed.crc64nvme
        ))
    }
}

fn crc<T: Serialize>(record: &T) -> String {
    format!(
        "{:016x}",
        crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, &json(record))
    )
}

fn json<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("records have string keys only, so they always serialise")
}

/// The file name of a key's record: its SHA-256, so that any key of any length and any characters has one.
pub(crate) fn record_name(key: &str) -> String {
    format!("{:x}.json", Sha256::digest(key.as_bytes()))
}

/// A new opaque ETag. The dash keeps tools from taking it for an MD5.
pub(crate) fn new_etag(parts: usize) -> String {
    format!("{}-{parts}", crate::disk::random_name())
}

#[cfg(test)]
mod tests {
    use super::{PartRecord, SegmentEntry, record_name, seal, unseal};
    use crate::checksums::{Algorithm, Sums};
    use jiff::Timestamp;
    use proptest::prelude::{prop_assert, proptest};

    fn part() -> PartRecord {
        PartRecord {
            number: 7,
            etag: "0f-1".to_owned(),
            modified: Timestamp::UNIX_EPOCH,
            sums: Sums::from([(Algorithm::Crc32, "y/Q5Jg==".to_owned())]),
            segment: SegmentEntry {
                name: Some("aa".to_owned()),
                size: 9,
            },
        }
    }

    #[test]
    fn a_record_reads_back_equal() {
        assert_eq!(unseal::<PartRecord>(&seal(&part())).unwrap(), part());
    }

    #[test]
    fn record_names_are_sha256_of_the_key() {
        // printf abc | sha256sum
        assert_eq!(
            record_name("abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad.json"
        );
    }

    proptest! {
        #[test]
        fn no_changed_byte_goes_unnoticed(position in 0_usize..1000, flip in 1_u8..=255) {
            let mut bytes = seal(&part());
            let position = position % bytes.len();
            bytes[position] ^= flip;
            // A flip may be neutral for JSON (case of an escape); it must never yield another record.
            prop_assert!(unseal::<PartRecord>(&bytes).map_or(true, |read| read == part()));
        }
    }
}
