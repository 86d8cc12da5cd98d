//! What a read asks for: which bytes, and under which conditions.

use std::ops::Range;

use s3s::dto::{ETagCondition, Range as RangeHeader, Timestamp};
use s3s::{S3Error, S3ErrorCode, S3Result, s3_error};

use super::convert::whole_seconds;
use crate::backend::etag_matches;
use crate::backend::record::ObjectRecord;
use crate::error::Error;

/// The part of an object that a read asks for.
pub(super) struct Selection {
    pub(super) bytes: Range<u64>,
    /// Less than the whole was asked for, by range or by part.
    pub(super) partial: bool,
    pub(super) of_part: bool,
}

impl Selection {
    pub(super) fn of(
        record: &ObjectRecord,
        range: Option<RangeHeader>,
        part: Option<i32>,
    ) -> S3Result<Self> {
        match (range, part) {
            (None, None) => Ok(Self {
                bytes: 0..record.size,
                partial: false,
                of_part: false,
            }),
            (Some(range), None) => {
                let bytes = range
                    .check(record.size)
                    .map_err(|_| S3Error::new(S3ErrorCode::InvalidRange))?;
                Ok(Self {
                    bytes,
                    partial: true,
                    of_part: false,
                })
            }
            (None, Some(number)) => {
                let index = usize::try_from(number)
                    .ok()
                    .and_then(|number| number.checked_sub(1));
                let entry = index
                    .and_then(|index| record.segments.get(index))
                    .zip(index);
                let (entry, index) = entry
                    .ok_or_else(|| s3_error!(InvalidRange, "the object has no part {number}"))?;
                let begin: u64 = record.segments[..index]
                    .iter()
                    .map(|entry| entry.size)
                    .sum();
                Ok(Self {
                    bytes: begin..begin + entry.size,
                    partial: true,
                    of_part: true,
                })
            }
            (Some(_), Some(_)) => Err(s3_error!(
                InvalidRequest,
                "a range and a part number exclude each other"
            )),
        }
    }

    pub(super) fn content_range(&self, size: u64) -> Option<String> {
        let wanted = self.partial && !self.bytes.is_empty();
        wanted.then(|| format!("bytes {}-{}/{size}", self.bytes.start, self.bytes.end - 1))
    }
}

/// The conditions of a read: its `If-...` headers.
pub(super) struct ReadConditions {
    pub(super) matching: Option<ETagCondition>,
    pub(super) none_matching: Option<ETagCondition>,
    pub(super) modified_since: Option<Timestamp>,
    pub(super) unmodified_since: Option<Timestamp>,
}

impl ReadConditions {
    /// An ETag condition, where there is one, decides over the matching time condition (RFC 9110, 13.2.2).
    pub(super) fn check(&self, record: &ObjectRecord) -> S3Result<()> {
        let modified = whole_seconds(record.modified);
        let unwanted = match (&self.matching, &self.unmodified_since) {
            (Some(wanted), _) => !etag_matches(wanted, &record.etag),
            (None, Some(time)) => modified > *time,
            (None, None) => false,
        };
        if unwanted {
            return Err(Error::PreconditionFailed("If-Match or If-Unmodified-Since").into());
        }
        let known = match (&self.none_matching, &self.modified_since) {
            (Some(known), _) => etag_matches(known, &record.etag),
            (None, Some(time)) => modified <= *time,
            (None, None) => false,
        };
        if known {
            Err(S3Error::new(S3ErrorCode::NotModified))
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Selection;

    #[test]
    fn an_empty_part_has_no_content_range() {
        assert_eq!(
            Selection {
                bytes: 0..0,
                partial: true,
                of_part: true
            }
            .content_range(0),
            None
        );
    }
}
