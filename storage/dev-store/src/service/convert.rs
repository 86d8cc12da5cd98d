//! Between the words of S3 and ours: keys in listings, page tokens, checksum names, times, errors.

use std::fmt::Write as _;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper::HeaderMap;
use s3s::dto::{
    ChecksumAlgorithm, ChecksumType, ETag, EncodingType, Error as ErrorEntry,
    Object as ObjectEntry, Timestamp,
};
use s3s::{S3Error, S3ErrorCode, S3Result, s3_error};

use crate::backend::listing::Start;
use crate::backend::record::ObjectRecord;
use crate::checksums::{Algorithm, Sums};
use crate::error::Error;

/// Entries per page of any listing, as in S3.
const PAGE_LIMIT: i32 = 1000;

/// How keys are written into a listing: plain, or percent-encoded for clients that ask, since XML cannot hold all of them.
#[derive(Clone, Copy)]
pub(super) enum KeyEncoding {
    Plain,
    Url,
}

impl KeyEncoding {
    pub(super) fn of(asked: Option<&EncodingType>) -> Self {
        if asked.is_some_and(|asked| asked.as_str() == EncodingType::URL) {
            Self::Url
        } else {
            Self::Plain
        }
    }

    pub(super) fn apply(self, key: &str) -> String {
        match self {
            Self::Plain => key.to_owned(),
            Self::Url => {
                let mut text = String::with_capacity(key.len());
                for byte in key.bytes() {
                    if byte.is_ascii_alphanumeric() || b"-_.~/".contains(&byte) {
                        text.push(char::from(byte));
                    } else {
                        write!(text, "%{byte:02X}").expect("a String takes all text");
                    }
                }
                text
            }
        }
    }
}

pub(super) fn object_entry(record: &ObjectRecord, encode: KeyEncoding) -> ObjectEntry {
    let algorithms = record
        .checksums
        .sums
        .keys()
        .map(|each| ChecksumAlgorithm::from_static(each.name()));
    ObjectEntry {
        key: Some(encode.apply(&record.key)),
        size: Some(record.size as i64),
        e_tag: Some(ETag::Strong(record.etag.clone())),
        last_modified: Some(timestamp(record.modified)),
        checksum_algorithm: Some(algorithms.collect()),
        checksum_type: Some(checksum_type(record.checksums.composite)),
        ..ObjectEntry::default()
    }
}

pub(super) fn error_entry(key: String, error: Error) -> ErrorEntry {
    let error = S3Error::from(error);
    ErrorEntry {
        key: Some(key),
        code: Some(error.code().as_str().to_owned()),
        message: error.message().map(str::to_owned),
        ..ErrorEntry::default()
    }
}

pub(super) fn page_limit(asked: Option<i32>) -> S3Result<i32> {
    match asked.unwrap_or(PAGE_LIMIT) {
        negative if negative < 0 => Err(s3_error!(
            InvalidArgument,
            "a page cannot have {negative} entries"
        )),
        limit => Ok(limit.min(PAGE_LIMIT)),
    }
}

pub(super) fn encode_token(start: &Start) -> String {
    let text = match start {
        Start::Beginning => String::new(),
        Start::AfterKey(key) => format!("k{key}"),
        Start::AfterPrefix(prefix) => format!("p{prefix}"),
    };
    URL_SAFE_NO_PAD.encode(text)
}

pub(super) fn decode_token(token: &str) -> S3Result<Start> {
    let bytes = URL_SAFE_NO_PAD.decode(token).ok();
    let text = bytes
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .unwrap_or_default();
    match (text.strip_prefix('k'), text.strip_prefix('p')) {
        (Some(key), _) => Ok(Start::AfterKey(key.to_owned())),
        (_, Some(prefix)) => Ok(Start::AfterPrefix(prefix.to_owned())),
        _ => Err(s3_error!(
            InvalidArgument,
            "the continuation token is not one of ours"
        )),
    }
}

/// `aws-chunked` describes the transfer, not the object.
pub(super) fn stored_encoding(sent: &str) -> Option<String> {
    let kept: Vec<&str> = sent
        .split(',')
        .map(str::trim)
        .filter(|name| !matches!(*name, "" | "aws-chunked"))
        .collect();
    (!kept.is_empty()).then(|| kept.join(", "))
}

pub(super) fn announced_trailers(headers: &HeaderMap) -> Vec<Algorithm> {
    let announced = headers
        .get("x-amz-trailer")
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let names: Vec<String> = announced
        .split(',')
        .map(|name| name.trim().to_ascii_lowercase())
        .collect();
    Algorithm::ALL
        .into_iter()
        .filter(|algorithm| names.iter().any(|name| name == algorithm.header()))
        .collect()
}

pub(super) fn trailing_sums(trailers: &HeaderMap) -> Sums {
    let value = |algorithm: Algorithm| {
        trailers
            .get(algorithm.header())?
            .to_str()
            .ok()
            .map(|text| text.trim().to_owned())
    };
    Algorithm::ALL
        .into_iter()
        .filter_map(|algorithm| Some((algorithm, value(algorithm)?)))
        .collect()
}

/// The kind of checksum a multipart object gets: what the client asks for, else what S3 defaults to.
pub(super) fn is_composite(algorithm: Option<Algorithm>, asked: Option<&ChecksumType>) -> bool {
    match (algorithm, asked) {
        (None | Some(Algorithm::Crc64nvme), _) => false,
        (Some(_), Some(kind)) => kind.as_str() == ChecksumType::COMPOSITE,
        (Some(_), None) => true,
    }
}

pub(super) fn checksum_type(composite: bool) -> ChecksumType {
    ChecksumType::from_static(if composite {
        ChecksumType::COMPOSITE
    } else {
        ChecksumType::FULL_OBJECT
    })
}

pub(super) fn unknown_algorithm(name: &ChecksumAlgorithm) -> S3Error {
    s3_error!(
        InvalidArgument,
        "unknown checksum algorithm {}",
        name.as_str()
    )
}

pub(super) fn timestamp(time: jiff::Timestamp) -> Timestamp {
    Timestamp::from(SystemTime::from(time))
}

/// HTTP dates have whole seconds, so conditions compare those.
pub(super) fn whole_seconds(time: jiff::Timestamp) -> Timestamp {
    timestamp(jiff::Timestamp::from_second(time.as_second()).unwrap_or(time))
}

impl From<Error> for S3Error {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::NoSpace { .. } => S3ErrorCode::ServiceUnavailable,
            Error::NoSuchBucket(_) => S3ErrorCode::NoSuchBucket,
            Error::BucketExists(_) => S3ErrorCode::BucketAlreadyOwnedByYou,
            Error::NoSuchKey(_) => S3ErrorCode::NoSuchKey,
            Error::NoSuchUpload(_) => S3ErrorCode::NoSuchUpload,
            Error::PreconditionFailed(_) => S3ErrorCode::PreconditionFailed,
            Error::BadDigest { .. } => S3ErrorCode::BadDigest,
            Error::Body(_) => S3ErrorCode::IncompleteBody,
            Error::InvalidPart { .. } => S3ErrorCode::InvalidPart,
            Error::InvalidPartOrder => S3ErrorCode::InvalidPartOrder,
            Error::PartTooSmall { .. } => S3ErrorCode::EntityTooSmall,
            Error::Invalid(_) => S3ErrorCode::InvalidRequest,
            Error::Io { .. }
            | Error::RootHeld { .. }
            | Error::Listen { .. }
            | Error::Damaged { .. }
            | Error::Internal(_) => {
                tracing::error!(%error, "request failed");
                S3ErrorCode::InternalError
            }
        };
        Self::with_message(code, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::{KeyEncoding, decode_token, encode_token, stored_encoding};
    use crate::backend::listing::Start;
    use crate::error::Error;
    use s3s::S3Error;
    use std::path::PathBuf;

    #[test]
    fn a_full_disk_is_503_with_a_plain_message() {
        let error = S3Error::from(Error::NoSpace {
            path: PathBuf::from("/store"),
        });
        assert_eq!(error.status_code().map(|status| status.as_u16()), Some(503));
        assert_eq!(
            error.message(),
            Some("no space left on the disk under /store")
        );
    }

    #[test]
    fn tokens_read_back_and_foreign_ones_are_refused() {
        for start in [
            Start::AfterKey("a/ü".to_owned()),
            Start::AfterPrefix("k/".to_owned()),
        ] {
            assert_eq!(decode_token(&encode_token(&start)).unwrap(), start);
        }
        decode_token("nonsense").unwrap_err();
    }

    #[test]
    fn the_transfer_encoding_is_not_stored() {
        assert_eq!(stored_encoding("aws-chunked"), None);
        assert_eq!(
            stored_encoding("aws-chunked, gzip"),
            Some("gzip".to_owned())
        );
    }

    #[test]
    fn keys_are_percent_encoded_by_byte() {
        assert_eq!(KeyEncoding::Url.apply("a b/ü~"), "a%20b/%C3%BC~");
    }
}
