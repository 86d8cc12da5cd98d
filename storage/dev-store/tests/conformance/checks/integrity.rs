//! Checks of digests on the way in.

use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumAlgorithm, ChecksumMode};

use super::target::{Target, refused};
use crate::support::pattern;

/// SHA-256 of nothing, in base64.
pub(super) const SHA256_OF_NOTHING: &str = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";

/// Stores an object with a digest and looks for it.
async fn is_kept(
    target: Target,
    algorithm: ChecksumAlgorithm,
    of: impl Fn(&HeadObjectOutput) -> Option<&str>,
) {
    let (key, body) = (target.key("digested"), pattern(100_000, 3));
    let request = target.client.put_object().bucket(&target.bucket).key(&key);
    let request = request.checksum_algorithm(algorithm);
    request
        .body(ByteStream::from(body.clone()))
        .send()
        .await
        .unwrap();
    let request = target.client.head_object().bucket(&target.bucket).key(&key);
    let head = request.checksum_mode(ChecksumMode::Enabled).send().await;
    let head = head.unwrap();
    assert!(of(&head).is_some(), "{head:?}");
    assert!(target.get(&key).await == body);
}

pub(super) async fn c03_crc32(target: Target) {
    is_kept(
        target,
        ChecksumAlgorithm::Crc32,
        HeadObjectOutput::checksum_crc32,
    )
    .await;
}

pub(super) async fn c04_crc32c(target: Target) {
    is_kept(
        target,
        ChecksumAlgorithm::Crc32C,
        HeadObjectOutput::checksum_crc32_c,
    )
    .await;
}

pub(super) async fn c05_crc64nvme(target: Target) {
    is_kept(
        target,
        ChecksumAlgorithm::Crc64Nvme,
        HeadObjectOutput::checksum_crc64_nvme,
    )
    .await;
}

pub(super) async fn c06_sha1(target: Target) {
    is_kept(
        target,
        ChecksumAlgorithm::Sha1,
        HeadObjectOutput::checksum_sha1,
    )
    .await;
}

pub(super) async fn c07_sha256(target: Target) {
    is_kept(
        target,
        ChecksumAlgorithm::Sha256,
        HeadObjectOutput::checksum_sha256,
    )
    .await;
}

pub(super) async fn c08_wrong_sha256_refused(target: Target) {
    let request = target.client.put_object().bucket(&target.bucket);
    let request = request
        .key(target.key("x"))
        .checksum_sha256(SHA256_OF_NOTHING);
    refused(request.body(ByteStream::from_static(b"new")).send().await);
}

pub(super) async fn c09_refusal_keeps_the_old_object(target: Target) {
    let key = target.key("kept");
    target.put(&key, b"old").await;
    let request = target.client.put_object().bucket(&target.bucket).key(&key);
    let request = request.checksum_sha256(SHA256_OF_NOTHING);
    // Whether it is refused is another check.
    let _ = request.body(ByteStream::from_static(b"new")).send().await;
    assert_eq!(target.get(&key).await, b"old");
}

pub(super) async fn c10_wrong_md5_refused(target: Target) {
    let key = target.key("x");
    let request = target.client.put_object().bucket(&target.bucket).key(&key);
    // The MD5 of nothing.
    let request = request.content_md5("1B2M2Y8AsgTpgAmY7PhCfg==");
    refused(request.body(ByteStream::from_static(b"new")).send().await);
    assert!(!target.has(&key).await);
}
