//! Checks of multipart uploads.

use aws_sdk_s3::types::{ChecksumAlgorithm, ChecksumType, CompletedPart, Part};

use super::integrity::SHA256_OF_NOTHING;
use super::target::{PART_BYTES, Target, Upload, crc64nvme, refused};
use crate::support::pattern;

pub(super) async fn c11_parts_out_of_order(target: Target) {
    let (key, first) = (target.key("whole"), pattern(PART_BYTES, 9));
    let upload = target.begin(&key).await;
    let last = upload.part(3, b"the end").await;
    let parts = [upload.part(1, &first).await, last];
    assert!(!target.has(&key).await);
    upload.complete(&parts).send().await.unwrap();
    assert!(target.get(&key).await == [first, b"the end".to_vec()].concat());
}

pub(super) async fn c12_list_parts(target: Target) {
    let upload = target.begin(&target.key("parts")).await;
    upload.part(3, b"last").await;
    upload.part(1, b"first").await;
    let request = target.client.list_parts().bucket(&target.bucket);
    let request = request.key(&upload.key).upload_id(&upload.id);
    let listed = request.send().await.unwrap();
    let parts = listed.parts().iter();
    let parts: Vec<_> = parts
        .map(|part| (part.part_number(), part.size()))
        .collect();
    assert_eq!(parts, [(Some(1), Some(5)), (Some(3), Some(4))]);
    assert!(
        listed
            .parts()
            .iter()
            .all(|part: &Part| part.e_tag().is_some())
    );
}

pub(super) async fn c13_list_uploads(target: Target) {
    let upload = target.begin(&target.key("begun")).await;
    let request = target
        .client
        .list_multipart_uploads()
        .bucket(&target.bucket);
    let listed = request.prefix(target.prefix()).send().await.unwrap();
    let uploads = listed.uploads().iter();
    let uploads: Vec<_> = uploads
        .map(|found| (found.key(), found.upload_id()))
        .collect();
    assert_eq!(
        uploads,
        [(Some(upload.key.as_str()), Some(upload.id.as_str()))]
    );
    let request = target
        .client
        .abort_multipart_upload()
        .bucket(&target.bucket);
    request
        .key(&upload.key)
        .upload_id(&upload.id)
        .send()
        .await
        .unwrap();
}

pub(super) async fn c14_wrong_etag_at_complete(target: Target) {
    let upload = target.begin(&target.key("strict")).await;
    upload.part(1, b"bytes").await;
    let etag = "\"0123456789abcdef0123456789abcdef\"";
    let wrong = CompletedPart::builder().part_number(1).e_tag(etag).build();
    refused(upload.complete(&[wrong]).send().await);
    assert!(!target.has(&upload.key).await);
}

pub(super) async fn c15_wrong_part_checksum(target: Target) {
    let upload = target.begin(&target.key("strict")).await;
    let request = target.client.upload_part().bucket(&target.bucket);
    let request = request
        .key(&upload.key)
        .upload_id(&upload.id)
        .part_number(1);
    let request = request.checksum_sha256(SHA256_OF_NOTHING);
    refused(request.body(b"bytes".to_vec().into()).send().await);
}

pub(super) async fn c16_wrong_whole_checksum(target: Target) {
    let key = target.key("strict");
    let request = target
        .client
        .create_multipart_upload()
        .bucket(&target.bucket);
    let request = request.key(&key).checksum_type(ChecksumType::FullObject);
    let begun = request
        .checksum_algorithm(ChecksumAlgorithm::Crc64Nvme)
        .send()
        .await;
    let upload = Upload {
        target: &target,
        key: key.clone(),
        id: begun.unwrap().upload_id.unwrap(),
    };
    let request = target.client.upload_part().bucket(&target.bucket);
    let request = request.key(&key).upload_id(&upload.id).part_number(1);
    let crc = crc64nvme(b"bytes");
    let sent = request
        .checksum_crc64_nvme(&crc)
        .body(b"bytes".to_vec().into());
    let part = CompletedPart::builder()
        .part_number(1)
        .set_e_tag(sent.send().await.unwrap().e_tag)
        .checksum_crc64_nvme(crc)
        .build();
    let request = upload
        .complete(&[part])
        .checksum_type(ChecksumType::FullObject);
    let wrong = crc64nvme(b"other");
    refused(request.checksum_crc64_nvme(wrong).send().await);
    assert!(!target.has(&key).await);
}

pub(super) async fn c17_small_middle_part(target: Target) {
    let upload = target.begin(&target.key("small")).await;
    let parts = [upload.part(1, b"small").await, upload.part(2, b"end").await];
    refused(upload.complete(&parts).send().await);
    assert!(!target.has(&upload.key).await);
}

pub(super) async fn c18_multipart_over_one_put(target: Target) {
    let (key, first) = (target.key("replaced"), pattern(PART_BYTES, 4));
    target.put(&key, b"what was there before").await;
    let upload = target.begin(&key).await;
    let parts = [upload.part(1, &first).await, upload.part(2, b"end").await];
    assert_eq!(target.get(&key).await, b"what was there before");
    upload.complete(&parts).send().await.unwrap();
    assert!(target.get(&key).await == [first, b"end".to_vec()].concat());
}
