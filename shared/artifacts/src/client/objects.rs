//! Requests for one object.

use std::time::Duration;

use aws_config::retry::RetryConfig;
use aws_sdk_s3::config::Builder;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumMode, ChecksumType};
use aws_smithy_types::byte_stream;
use bytes::Bytes;
use crc_fast::CrcAlgorithm::Crc64Nvme;

use super::clock::{DateHeader, age};
use super::failure::{CHECK_NETWORK, causes, is_absent, status};
use super::{Bucket, Patience};
use crate::{Crc64, Error, Result};

/// Wrong bytes are asked for again this often: they may have been altered on the way.
pub(crate) const MAX_MISMATCHES: u32 = 2;

/// Largest small object: records, not contents. A manifest may be as large.
pub(crate) const MAX_SMALL: u64 = crate::manifest::MAX_BYTES;

/// What a browser is told with an object.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Headers<'a> {
    pub(crate) content_type: Option<&'a str>,
    pub(crate) cache_control: Option<&'a str>,
}

/// What a HEAD request tells.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    pub(crate) size: u64,
    /// Time since the last change, by the store's clock.
    pub(crate) age: Option<Duration>,
}

/// Some bytes of an object.
struct Part<'a> {
    range: String,
    /// Of the version that is wanted.
    etag: Option<&'a str>,
}

impl<'a> Part<'a> {
    fn of(start: u64, length: u64, etag: Option<&'a str>) -> Self {
        Self {
            range: format!("bytes={start}-{}", start + length.max(1) - 1),
            etag,
        }
    }
}

impl Bucket {
    /// Size and age of an object, or none.
    pub(crate) async fn head(&self, key: &str) -> Result<Option<Head>> {
        let date = DateHeader::default();
        let request = self
            .client
            .head_object()
            .bucket(&self.uri.bucket)
            .key(self.key(key));
        match request.customize().interceptor(date.clone()).send().await {
            Ok(output) => Ok(Some(Head {
                size: u64::try_from(output.content_length().unwrap_or(0)).unwrap_or(0),
                age: age(output.last_modified(), date.seconds()),
            })),
            Err(error) if status(&error) == Some(404) => Ok(None),
            Err(error) => Err(self.failure(&format!("look up {key}"), error).await),
        }
    }

    /// A small object, or none.
    pub(crate) async fn get(&self, key: &str) -> Result<Option<Bytes>> {
        self.get_with(Patience::Full, key).await
    }

    /// A small object read by the probing client or the patient one; checked by the SDK on arrival.
    pub(crate) async fn get_with(&self, patience: Patience, key: &str) -> Result<Option<Bytes>> {
        let mut bytes = Vec::new();
        let is_there = self.download(patience, key, None, MAX_SMALL, &mut bytes);
        Ok(is_there.await?.map(|_| bytes.into()))
    }

    /// Puts some bytes of a content into `bytes` instead of what is in there; their checksum, or none when there is no
    /// such object. The caller compares it: the SDK does not check a part.
    pub(crate) async fn get_range(
        &self,
        key: &str,
        start: u64,
        length: u64,
        bytes: &mut Vec<u8>,
    ) -> Result<Option<Crc64>> {
        let part = Part::of(start, length, None);
        self.download(Patience::Full, key, Some(part), length, bytes)
            .await
    }

    /// [`Bucket::get_range`] of an object that must not have changed; none when it has.
    pub(crate) async fn get_range_of(
        &self,
        key: &str,
        start: u64,
        length: u64,
        etag: &str,
    ) -> Result<Option<Bytes>> {
        let (part, mut bytes) = (Part::of(start, length, Some(etag)), Vec::new());
        let is_there = self.download(Patience::Full, key, Some(part), length, &mut bytes);
        Ok(is_there.await?.map(|_| bytes.into()))
    }

    /// The CRC64NVME of an object as headers spell it, where the store keeps that of the whole.
    pub(crate) async fn whole_crc(&self, key: &str) -> Result<Option<String>> {
        let request = self
            .client
            .head_object()
            .bucket(&self.uri.bucket)
            .key(self.key(key))
            .checksum_mode(ChecksumMode::Enabled);
        match request.send().await {
            Ok(output) => {
                let is_whole = output.checksum_type() != Some(&ChecksumType::Composite);
                let crc = output.checksum_crc64_nvme().filter(|_| is_whole);
                Ok(crc.map(str::to_owned))
            }
            Err(error) => Err(self.failure(&format!("look up {key}"), error).await),
        }
    }

    /// Reads a body, again when it breaks off: the SDK retries only up to the first byte. Its checksum, or none when there
    /// is no such object.
    async fn download(
        &self,
        patience: Patience,
        key: &str,
        part: Option<Part<'_>>,
        limit: u64,
        bytes: &mut Vec<u8>,
    ) -> Result<Option<Crc64>> {
        let mut pause = self.backoff();
        let mut mismatches = 0;
        loop {
            bytes.clear();
            let request = self
                .client_for(patience)
                .get_object()
                .bucket(&self.uri.bucket)
                .key(self.key(key))
                .set_checksum_mode(part.is_none().then_some(ChecksumMode::Enabled))
                .set_if_match(part.as_ref().and_then(|part| part.etag).map(str::to_owned))
                .set_range(part.as_ref().map(|part| part.range.clone()));
            let output = match request.send().await {
                Ok(output) => output,
                Err(error) if is_absent(&error) || status(&error) == Some(412) => return Ok(None),
                // The object ends before the range begins.
                Err(error) if status(&error) == Some(416) => return Ok(Some(Crc64::of(&[]))),
                Err(error) => return Err(self.failure(&format!("read {key}"), error).await),
            };
            let length = u64::try_from(output.content_length().unwrap_or(0)).unwrap_or(u64::MAX);
            if length > limit {
                return Err(Error::bad_input(
                    format!("{key} in {}", self.place()),
                    format!("{length} bytes where at most {limit} were expected"),
                ));
            }
            let detail = match collect(output.body, length, bytes).await {
                Ok(crc) => return Ok(Some(crc)),
                Err(error) => causes(&error),
            };
            mismatches += u32::from(detail.contains("checksum"));
            if mismatches > MAX_MISMATCHES {
                return Err(Error::corrupt(format!("{key} in {}", self.place()), detail));
            }
            tracing::warn!(key, detail, "a download broke off");
            if !pause.wait().await {
                return Err(self.unavailable(&format!("read {key}"), detail, CHECK_NETWORK));
            }
        }
    }

    /// Writes a small object, replacing what is there.
    pub(crate) async fn put(&self, key: &str, body: Bytes) -> Result<()> {
        self.put_with(key, body, Headers::default()).await
    }

    /// [`Bucket::put`] with headers for those who read the object over HTTP.
    pub(crate) async fn put_with(
        &self,
        key: &str,
        body: Bytes,
        headers: Headers<'_>,
    ) -> Result<()> {
        let crc = self.send_checksums.then(|| Crc64::of(&body).base64());
        let request = self
            .sender
            .put_object()
            .bucket(&self.uri.bucket)
            .key(self.key(key))
            .set_content_type(headers.content_type.map(str::to_owned))
            .set_cache_control(headers.cache_control.map(str::to_owned))
            .set_checksum_crc64_nvme(crc)
            .body(body.into());
        let mut request = request.customize();
        if !self.sign_payload {
            request = request.disable_payload_signing();
        }
        match request.send().await {
            Ok(_) => Ok(()),
            Err(error) => Err(self.failure(&format!("write {key}"), error).await),
        }
    }

    /// Deletes an object; one that is not there counts as deleted. False when an answer failed to come on the way
    /// there: then that request may still be on its own way, and take effect later.
    pub(crate) async fn delete(&self, key: &str) -> Result<bool> {
        let mut pause = self.backoff();
        let mut was_answered = true;
        loop {
            let once = Builder::new().retry_config(RetryConfig::disabled());
            let request = self
                .client
                .delete_object()
                .bucket(&self.uri.bucket)
                .key(self.key(key))
                .customize()
                .config_override(once);
            let error = match request.send().await {
                Ok(_) => return Ok(was_answered),
                Err(error) if is_absent(&error) => return Ok(was_answered),
                Err(error) => error,
            };
            let status = status(&error);
            was_answered &= status.is_some();
            let is_final = matches!(status, Some(400 | 401 | 403 | 404 | 501));
            if is_final || !pause.wait().await {
                return Err(self.failure(&format!("delete {key}"), error).await);
            }
        }
    }
}

/// A body of an announced length, in one piece, and its checksum, computed while what arrived is in the processor's
/// cache; the SDK's own way holds the body twice for a moment.
async fn collect(
    mut body: ByteStream,
    length: u64,
    bytes: &mut Vec<u8>,
) -> std::result::Result<Crc64, byte_stream::error::Error> {
    bytes.reserve_exact(length as usize);
    let mut crc = crc_fast::Digest::new(Crc64Nvme);
    while let Some(chunk) = body.try_next().await? {
        crc.update(&chunk);
        bytes.extend_from_slice(&chunk);
    }
    Ok(Crc64::from_value(crc.finalize()))
}
