//! Where a store is: bucket and prefix.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

/// `s3://bucket/prefix`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct StoreUri {
    /// 3 to 63 lower-case letters, digits, dots and dashes.
    pub bucket: String,
    /// Key prefix without slashes at its ends; may be empty.
    pub prefix: String,
}

impl fmt::Display for StoreUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.prefix.is_empty() {
            write!(f, "s3://{}", self.bucket)
        } else {
            write!(f, "s3://{}/{}", self.bucket, self.prefix)
        }
    }
}

impl FromStr for StoreUri {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |detail: &str| Error::usage(format!("store {text:?}"), detail);
        let rest = text
            .strip_prefix("s3://")
            .ok_or_else(|| wrong("expected s3://BUCKET/PREFIX"))?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        check_bucket(bucket).map_err(wrong)?;
        let prefix = prefix.trim_end_matches('/');
        check_prefix(prefix).map_err(wrong)?;
        Ok(Self {
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
        })
    }
}

fn check_bucket(bucket: &str) -> Result<(), &'static str> {
    let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.');
    let edge = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    if (3..=63).contains(&bucket.len())
        && bucket.bytes().all(allowed)
        && edge(bucket.bytes().next())
        && edge(bucket.bytes().next_back())
    {
        return Ok(());
    }
    Err("a bucket name has 3 to 63 lower-case letters, digits, dots and dashes")
}

fn check_prefix(prefix: &str) -> Result<(), &'static str> {
    if prefix.is_empty() {
        return Ok(());
    }
    let whole = prefix
        .split('/')
        .all(|part| !part.is_empty() && part != "." && part != "..");
    if whole && prefix.len() <= 256 && !prefix.chars().any(char::is_control) {
        return Ok(());
    }
    Err("a prefix has no empty, '.' or '..' parts, no control characters, and at most 256 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bucket_and_prefix_are_told_apart() {
        let uri: StoreUri = "s3://research/wmtp/main/".parse().unwrap();
        assert_eq!(
            (uri.bucket.as_str(), uri.prefix.as_str()),
            ("research", "wmtp/main")
        );
        assert_eq!(uri.to_string(), "s3://research/wmtp/main");
        assert_eq!("s3://abc".parse::<StoreUri>().unwrap().prefix, "");
    }

    #[test]
    fn bad_uris_are_usage_errors() {
        for text in [
            "wmtp",
            "http://x/y",
            "s3://ab/x",
            "s3://Bucket/x",
            "s3://abc/../x",
            "s3://abc/a//b",
        ] {
            let error = text.parse::<StoreUri>().unwrap_err();
            assert_eq!(error.exit_class().code(), 2, "{text}");
        }
    }
}
