//! Checks of reads: ranges, parts, conditions, and reads while the object changes.

use super::target::{PART_BYTES, Target, refused};
use crate::support::{pattern, refusal};

/// Reads, and their size, while the object is overwritten.
const READS: usize = 40;
const READ_BYTES: usize = 8 << 20;
/// Each version is one byte over and over, so any tear shows.
const VERSIONS: u8 = 8;

pub(super) async fn c19_ranges(target: Target) {
    let key = target.key("digits");
    target.put(&key, b"0123456789").await;
    for (range, bytes) in [
        ("bytes=2-4", "234"),
        ("bytes=-3", "789"),
        ("bytes=8-", "89"),
    ] {
        let request = target.client.get_object().bucket(&target.bucket).key(&key);
        let output = request.range(range).send().await.unwrap();
        let body = output.body.collect().await.unwrap().to_vec();
        assert_eq!(body, bytes.as_bytes(), "{range}");
    }
}

pub(super) async fn c20_range_behind_the_end(target: Target) {
    let key = target.key("digits");
    target.put(&key, b"0123456789").await;
    let request = target.client.get_object().bucket(&target.bucket).key(&key);
    assert_eq!(refusal(request.range("bytes=10-").send().await).0, 416);
}

pub(super) async fn c21_get_by_part(target: Target) {
    let upload = target.begin(&target.key("parts")).await;
    let parts = [
        upload.part(1, &pattern(PART_BYTES, 1)).await,
        upload.part(2, b"second").await,
    ];
    upload.complete(&parts).send().await.unwrap();
    let request = target.client.get_object().bucket(&target.bucket);
    let output = request
        .key(&upload.key)
        .part_number(2)
        .send()
        .await
        .unwrap();
    assert_eq!(output.parts_count, Some(2));
    assert_eq!(output.body.collect().await.unwrap().to_vec(), b"second");
}

pub(super) async fn c22_get_if_match(target: Target) {
    let key = target.key("page");
    let etag = target.put(&key, b"text").await;
    let get = || target.client.get_object().bucket(&target.bucket).key(&key);
    get().if_match(etag).send().await.unwrap();
    let other = "\"0123456789abcdef0123456789abcdef\"";
    assert_eq!(refused(get().if_match(other).send().await).0, 412);
}

pub(super) async fn c23_get_if_none_match(target: Target) {
    let key = target.key("page");
    let etag = target.put(&key, b"text").await;
    let get = || target.client.get_object().bucket(&target.bucket).key(&key);
    assert_eq!(refusal(get().if_none_match(etag).send().await).0, 304);
    let other = "\"0123456789abcdef0123456789abcdef\"";
    get().if_none_match(other).send().await.unwrap();
}

pub(super) async fn c42_reads_during_overwrites(target: Target) {
    let key = target.key("live");
    target.put(&key, &vec![0; READ_BYTES]).await;
    let writer = tokio::spawn({
        let (target, key) = (target.clone(), key.clone());
        async move {
            for seed in (0..VERSIONS).cycle() {
                target.put(&key, &vec![seed; READ_BYTES]).await;
            }
        }
    });
    for _ in 0..READS {
        let bytes = target.get(&key).await;
        assert_eq!(bytes.len(), READ_BYTES);
        assert!(bytes == vec![bytes[0]; READ_BYTES], "a torn read");
    }
    writer.abort();
    assert!(writer.await.unwrap_err().is_cancelled(), "a write failed");
}
